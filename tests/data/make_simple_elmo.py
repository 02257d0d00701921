"""Makes tests/data/simple_elmo: an archive as NLPL publishes them, and the vectors that simple_elmo 0.9.2 computes.

It needs an environment of its own: `pip install simple_elmo==0.9.2 tensorflow-cpu tf-keras`; then, in the root of the
project, `python tests/data/make_simple_elmo.py`. The weights are random.

- model.zip: model.hdf5, options.json, vocab.txt, meta.json
- vectors.npz: of each sentence and choice of layers the vectors [tokens, 14], LSTM state zero
"""

import json
import os
import zipfile
from pathlib import Path

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
import h5py
import numpy as np
import tensorflow as tf
from simple_elmo import ElmoModel

SENTENCES = ["the cat sat on the mat", "über naïve 猫 🐈 cats", "incomprehensibilities"]
OPTIONS = {
    "lstm": {
        "dim": 11, "projection_dim": 7, "n_layers": 2, "cell_clip": 3, "proj_clip": 3, "use_skip_connections": True
    },
    "char_cnn": {
        "activation": "relu", "embedding": {"dim": 3}, "filters": [[1, 4], [2, 6], [3, 9]], "n_highway": 1,
        "n_characters": 262, "max_characters_per_token": 20,
    },
    "bidirectional": True, "dropout": 0.1, "n_tokens_vocab": 6, "unroll_steps": 20, "batch_size": 192,
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


def main() -> None:
    target = Path(__file__).resolve().parent / "simple_elmo"
    target.mkdir(exist_ok=True)
    generator = np.random.default_rng(11)
    weights = target / "model.hdf5"
    with h5py.File(weights, "w") as file:
        for name, shape in SHAPES.items():
            file[name] = (0.4 * generator.normal(size=shape)).astype(np.float32)
    about = {"algorithm": {"name": "Embeddings from Language Models (ELMo)", "version": "bilm"}, "dimensions": 14}
    with zipfile.ZipFile(target / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", json.dumps(about))
        archive.write(weights, "model.hdf5")
        archive.writestr("options.json", json.dumps(OPTIONS))
        archive.writestr("vocab.txt", "<S>\n</S>\n<UNK>\nthe\ncat\nsat\n")
    weights.unlink()
    vectors = {}
    for layers in ("average", "top", "all"):
        for number, sentence in enumerate(SENTENCES):
            tf.compat.v1.reset_default_graph()
            model = ElmoModel()
            model.load(str(target / "model.zip"))
            found = model.get_elmo_vectors([sentence.split()], warmup=False, layers=layers)[0]
            vectors[f"{layers}_{number}"] = found.astype(np.float32)
    np.savez_compressed(target / "vectors.npz", sentences=SENTENCES, **vectors)


if __name__ == "__main__":
    main()
