"""Makes tests/data/manylangs: random models in ELMoForManyLangs' own format, and the vectors that it gives with them.

It needs an environment of its own: `pip install elmoformanylangs==0.0.4.post2 "overrides<4"`; then, in the root of the
project, `python tests/data/make_manylangs.py tests/data/manylangs`. The package's own classes hold, save and read the
weights; the dictionaries are written as its training script writes them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from elmoformanylangs import Embedder, biLM
from elmoformanylangs.frontend import Model
from elmoformanylangs.modules.embedding_layer import EmbeddingLayer

TEXT = "the cat sat on the mat and über naïve 猫 rained \u3000 it < > b o s e"
WORDS = ["<oov>", "<bos>", "<eos>", "<pad>", *dict.fromkeys(TEXT.split()), "antidisest", "hà nội"]
LINES = """the cat sat on the mat
über naïve 猫 🐈 cats ϙ
incomprehensibilities antidisestablishmentarianism antidisest a

one
it rained and rained and it rained until the river rose over its banks and took the bridge away ."""
SENTENCES = [*map(str.split, LINES.split("\n")), ["hà nội", "", "\u3000", "<oov>", "<pad>", "o>", "\ud800"]]
# Name → size of a word's vector, characters beside those of the text, clips, and whether PyTorch saves as before 1.6.
MODELS = {
    "words_and_characters": {"word_dim": 5, "more": 0, "clip": 3, "old": True},
    "characters": {"word_dim": 0, "more": 300, "clip": 0.4, "old": False},
}


def make(folder: Path, seed: int, word_dim: int, more: int, clip: float, old: bool) -> None:
    """Writes one model and its vectors."""
    folder.mkdir(parents=True)
    embedder = {"name": "cnn", "activation": "relu", "filters": [[1, 4], [2, 6], [3, 9]], "n_highway": 2}
    embedder |= {"word_dim": word_dim, "char_dim": 3, "max_characters_per_token": 12}
    encoder = {"name": "elmo", "projection_dim": 7, "cell_clip": clip, "proj_clip": clip, "dim": 11, "n_layers": 2}
    classifier = {"name": "sampled_softmax", "n_samples": 8}
    config = {"encoder": encoder, "token_embedder": embedder, "classifier": classifier, "dropout": 0.1}
    (folder / "cnn_small.json").write_text(json.dumps(config))
    options = {"config_path": "/home/somebody/configs/cnn_small.json", "model": "output/en", "min_count": 3}
    (folder / "config.json").write_text(json.dumps(options))
    letters = dict.fromkeys("".join(["<bos>", *TEXT, *map(chr, range(0x4E00, 0x4E00 + more))]).replace(" ", ""))
    specials = ["<bos>", "<eos>", "<oov>", "<pad>", "<bow>", "<eow>"]
    lexicons = {"char.dic": [*letters, *specials], "word.dic": WORDS}
    layers = {}
    for name, words in lexicons.items():
        ids = {word: number for number, word in enumerate(words)}
        size = embedder["char_dim" if name == "char.dic" else "word_dim"]
        layers[name] = EmbeddingLayer(size, ids, fix_emb=False) if size else None
        with (folder / name).open("w", encoding="utf-8") as file:
            for word, number in ids.items():
                print(f"{word}\t{number}", file=file)
    model = Model(config, layers["word.dic"], layers["char.dic"])
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    save = torch.save
    torch.save = lambda *arguments: save(*arguments, _use_new_zipfile_serialization=not old)
    biLM.Model.save_model(model, str(folder), False)
    torch.save = save
    vectors = Embedder(str(folder)).sents2elmo(SENTENCES, -2)
    np.savez(folder / "vectors.npz", *vectors)


torch.set_num_threads(1)
for number, (name, settings) in enumerate(MODELS.items()):
    make(Path(sys.argv[1], name), number, **settings)
sentences = json.dumps(SENTENCES, indent=1)
Path(sys.argv[1], "sentences.json").write_text(f"{sentences}\n")
