"""Makes tests/data/allennlp: model archives that AllenNLP 2.10.1 wrote, and the vectors that it computes from them.

It needs an environment of its own: Python 3.9, `pip install allennlp==2.10.1 "numpy<2"`; then, in the root of the
project, `python tests/data/make_allennlp.py`. The weights are random.

- classifier.tar.gz: ELMo as a token embedder, one mix; its options.json lies in the archive
- two_mixes.tar.gz: the same with layer norm, ELMo in a module of its own with two mixes; options.json beside it
- vectors.npz: per archive and sentence the vectors of each mix [mixes, tokens, 14], LSTM state zero, boundaries taken
  off after the mix
- embedder.npz: the archives' ELMo in a batch of all sentences, with two mixes `scalars` [2, 3] and `gammas` [2]. With
  layer norm or without, with boundaries or without: representations [2, 4, T, 14] and the mask [4, T]; the gradients of
  Σ representations · `cotangent` [2, 4, 5, 14] with respect to scalars, gammas and, under their names in weights.hdf5,
  the biLM's parameters

`python tests/data/make_allennlp.py embedder` makes the last one alone.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from allennlp.data import Vocabulary
from allennlp.models import BasicClassifier, Model
from allennlp.models.archival import archive_model, load_archive
from allennlp.modules.elmo import Elmo, batch_to_ids
from allennlp.modules.seq2vec_encoders import BagOfEmbeddingsEncoder
from allennlp.modules.text_field_embedders import BasicTextFieldEmbedder
from allennlp.modules.token_embedders import ElmoTokenEmbedder

SENTENCES = ["the cat sat on the mat", "über naïve 猫 🐈 cats", "incomprehensibilities", "one , two"]
OPTIONS = {
    "lstm": {
        "dim": 11, "projection_dim": 7, "n_layers": 2, "cell_clip": 3, "proj_clip": 3, "use_skip_connections": True
    },
    "char_cnn": {
        "activation": "tanh", "embedding": {"dim": 3}, "filters": [[1, 4], [2, 6], [3, 9]], "n_highway": 1,
        "n_characters": 262, "max_characters_per_token": 50,
    },
}  # fmt: skip
SHAPES = {
    "char_embed": (261, 3),
    **{f"CNN/W_cnn_{n}": (1, width, 3, count) for n, (width, count) in enumerate(OPTIONS["char_cnn"]["filters"])},
    **{f"CNN/b_cnn_{n}": (count,) for n, (_, count) in enumerate(OPTIONS["char_cnn"]["filters"])},
    **{f"CNN_high_0/W_{kind}": (19, 19) for kind in ("transform", "carry")},
    **{f"CNN_high_0/b_{kind}": (19,) for kind in ("transform", "carry")},
    "CNN_proj/W_proj": (19, 7),
    "CNN_proj/b_proj": (7,),
}
for direction in (0, 1):
    for layer in (0, 1):
        cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
        SHAPES |= {f"{cell}/W_0": (14, 44), f"{cell}/B": (44,), f"{cell}/W_P_0": (11, 7)}


@Model.register("two_mixes")
class TwoMixes(Model):
    """A model that has ELMo under a name of its own."""

    def __init__(self, vocab, options_file, weight_file, do_layer_norm=False):
        super().__init__(vocab)
        self.reader = torch.nn.Module()
        self.reader.layers = Elmo(options_file, weight_file, 2, do_layer_norm=do_layer_norm)


def main() -> None:
    target = Path(__file__).resolve().parent / "allennlp"
    target.mkdir(exist_ok=True)
    os.chdir(tempfile.mkdtemp())
    generator = np.random.default_rng(7)
    Path("options.json").write_text(json.dumps(OPTIONS))
    with h5py.File("weights.hdf5", "w") as file:
        for name, shape in SHAPES.items():
            file[name] = (0.4 * generator.normal(size=shape)).astype(np.float32)
    make_embedder(target)
    if "embedder" not in sys.argv:
        make_archives(target, generator)


def make_embedder(target: Path) -> None:
    generator = np.random.default_rng(8)
    characters = batch_to_ids([sentence.split() for sentence in SENTENCES])
    normal = lambda *shape: generator.normal(size=shape).astype(np.float32)
    arrays = {"scalars": normal(2, 3), "gammas": 1 + normal(2), "cotangent": normal(2, *characters.shape[:2], 14)}
    for layer_norm in (False, True):
        for boundaries in (False, True):
            options = {"do_layer_norm": layer_norm, "keep_sentence_boundaries": boundaries, "requires_grad": True}
            elmo = Elmo("options.json", "weights.hdf5", 2, dropout=0, **options)
            mixes = [getattr(elmo, f"scalar_mix_{number}") for number in range(2)]
            with torch.no_grad():
                for number, mix in enumerate(mixes):
                    mix.gamma.fill_(float(arrays["gammas"][number]))
                    for layer, parameter in enumerate(mix.scalar_parameters):
                        parameter.fill_(float(arrays["scalars"][number, layer]))
            result = elmo(characters)
            case = f"{layer_norm:d}{boundaries:d}"
            representations = torch.stack(result["elmo_representations"])
            arrays[f"{case}/representations"] = representations.detach().numpy()
            arrays[f"{case}/mask"] = result["mask"].numpy()
            if boundaries:
                continue
            valid = torch.where(result["mask"][None, :, :, None], representations, torch.tensor(0.0))
            (valid * torch.from_numpy(arrays["cotangent"])).sum().backward()
            arrays[f"{case}/gradient/gammas"] = np.array([mix.gamma.grad.item() for mix in mixes], np.float32)
            scalars = [[scalar.grad.item() for scalar in mix.scalar_parameters] for mix in mixes]
            arrays[f"{case}/gradient/scalars"] = np.array(scalars, np.float32)
            for name, gradient in bilm_gradients(elmo._elmo_lstm).items():
                arrays[f"{case}/gradient/{name}"] = gradient
    np.savez_compressed(target / "embedder.npz", **arrays)


def bilm_gradients(bilm) -> "dict[str, np.ndarray]":
    """AllenNLP's gradients in the arrangement of weights.hdf5: it adds a row of padding to the characters, keeps
    kernels transposed, the carry gate negated behind the transformation, and an LSTM's gates in the order i, f, j, o.
    """
    words, gradients = bilm._token_embedder, {}
    gradients["char_embed"] = words._char_embedding_weights.grad.numpy()[1:]
    for number in range(len(OPTIONS["char_cnn"]["filters"])):
        convolution = getattr(words, f"char_conv_{number}")
        gradients[f"CNN/W_cnn_{number}"] = convolution.weight.grad.numpy().transpose(2, 1, 0)[None]
        gradients[f"CNN/b_cnn_{number}"] = convolution.bias.grad.numpy()
    for number, layer in enumerate(words._highways._layers):
        (transform, carry), (b_transform, b_carry) = (
            np.split(parameter.grad.numpy(), 2) for parameter in (layer.weight, layer.bias)
        )
        prefix = f"CNN_high_{number}"
        gradients |= {f"{prefix}/W_transform": transform.T, f"{prefix}/W_carry": -carry.T}
        gradients |= {f"{prefix}/b_transform": b_transform, f"{prefix}/b_carry": -b_carry}
    gradients["CNN_proj/W_proj"] = words._projection.weight.grad.numpy().T
    gradients["CNN_proj/b_proj"] = words._projection.bias.grad.numpy()
    for direction, layers in enumerate((bilm._elmo_lstm.forward_layers, bilm._elmo_lstm.backward_layers)):
        for number, layer in enumerate(layers):
            prefix = f"RNN_{direction}/RNN/MultiRNNCell/Cell{number}/LSTMCell"
            rows = layer.input_linearity.weight.grad, layer.state_linearity.weight.grad
            kernel = np.concatenate([row.numpy() for row in rows], 1).T
            gradients[f"{prefix}/W_0"] = gates(kernel)
            gradients[f"{prefix}/B"] = gates(layer.state_linearity.bias.grad.numpy())
            gradients[f"{prefix}/W_P_0"] = layer.state_projection.weight.grad.numpy().T
    return gradients


def gates(array: np.ndarray) -> np.ndarray:
    i, f, j, o = np.split(array, 4, -1)
    return np.concatenate([i, j, f, o], -1)


def make_archives(target: Path, generator: np.random.Generator) -> None:
    vectors = {}
    for name in ("classifier", "two_mixes"):
        torch.manual_seed(1)
        vocabulary = Vocabulary(tokens_to_add={"labels": ["no", "yes"]})
        files = {"options_file": "options.json", "weight_file": "weights.hdf5"}
        embedder = {"type": "elmo_token_embedder", **files}
        if name == "classifier":
            model = BasicClassifier(
                vocabulary,
                BasicTextFieldEmbedder({"elmo": ElmoTokenEmbedder("options.json", "weights.hdf5")}),
                BagOfEmbeddingsEncoder(14),
            )
            config = {
                "type": "basic_classifier",
                "text_field_embedder": {"token_embedders": {"elmo": embedder}},
                "seq2vec_encoder": {"type": "bag_of_embeddings", "embedding_dim": 14},
            }
        else:
            model = TwoMixes(vocabulary, "options.json", "weights.hdf5", do_layer_norm=True)
            config = {"type": "two_mixes", **files, "do_layer_norm": True}
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "scalar_mix" in parameter_name:
                    parameter.copy_(torch.from_numpy(generator.normal(size=parameter.shape).astype(np.float32)) + 0.5)
        folder = Path(name)
        folder.mkdir()
        vocabulary.save_to_files(folder / "vocabulary")
        reader = {
            "type": "text_classification_json",
            "tokenizer": {"type": "just_spaces"},
            "token_indexers": {"elmo": {"type": "elmo_characters"}},
        }
        (folder / "config.json").write_text(json.dumps({"dataset_reader": reader, "model": config}))
        (folder / "options.json").write_text(json.dumps(OPTIONS))
        torch.save(model.state_dict(), folder / "best.th")
        included = ["options.json"] if name == "classifier" else None
        archive_model(folder, archive_path=target / f"{name}.tar.gz", include_in_archive=included)
        loaded = load_archive(target / f"{name}.tar.gz").model.eval()
        elmo = next(module for module in loaded.modules() if isinstance(module, Elmo))
        for number, sentence in enumerate(SENTENCES):
            elmo._elmo_lstm._elmo_lstm.reset_states()
            with torch.no_grad():
                mixed = elmo(batch_to_ids([sentence.split()]))["elmo_representations"]
            vectors[f"{name}_{number}"] = np.stack([vector[0].numpy() for vector in mixed])
    (target / "options.json").write_text(json.dumps(OPTIONS) + "\n")
    np.savez_compressed(target / "vectors.npz", sentences=SENTENCES, **vectors)


if __name__ == "__main__":
    sys.exit(main())
