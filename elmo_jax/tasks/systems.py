"""What is compared: models, and baselines that give each token vectors too.

N sentences, M tokens of all of them, L layers, D width of a vector.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np
from tqdm import tqdm

from elmo_jax.elmo import Elmo
from elmo_jax.errors import needing
from elmo_jax.outputs import fingerprint

MIX = "mix"


class Vectors(NamedTuple):
    """Vectors of sentences, one behind the other: values float32 [M, L, D]; sentence i is those from begins[i]."""

    values: np.ndarray
    begins: np.ndarray

    def of(self, sentence: int) -> np.ndarray:
        """Of one sentence, [T, L, D]."""
        return self.values[self.begins[sentence] : self.begins[sentence + 1]]

    def pooled(self) -> np.ndarray:
        """The mean of each sentence's tokens, [N, L, D]; zeros of one without tokens."""
        counts = np.diff(self.begins)
        sums = np.zeros((len(counts), *self.values.shape[1:]), np.float32)
        some = counts > 0
        if some.any():
            sums[some] = np.add.reduceat(self.values, self.begins[:-1][some], axis=0)
        return sums / np.maximum(counts, 1)[:, None, None]


class System(Protocol):
    """What gives vectors: `name` stands in tables, `layers` are those of its vectors, `identity` tells it from others.

    `elmo` is the model, where it is one that can be fine-tuned.
    """

    name: str
    layers: tuple[str, ...]
    identity: str
    elmo: Elmo | None

    def embed(self, sentences: Sequence[Sequence[str]]) -> Vectors:
        """Vectors of sentences, each read by itself."""


def together(arrays: Sequence[np.ndarray]) -> Vectors:
    """Arrays [T, L, D] of sentences as one."""
    lengths = [len(array) for array in arrays]
    return Vectors(np.concatenate(arrays).astype(np.float32, copy=False), np.cumsum([0, *lengths]))


def room(sentences: Sequence[Sequence[str]], layers: int, width: int) -> Vectors:
    """Zeros for the vectors of sentences."""
    begins = np.cumsum([0, *map(len, sentences)])
    return Vectors(np.zeros((begins[-1], layers, width), np.float32), begins)


class ElmoSystem:
    """A biLM: word vectors and what its LSTM layers make of them, each sentence read from the warm state."""

    def __init__(self, name: str, elmo: Elmo):
        self.name, self.elmo = name, elmo
        self.layers = ("words", *(f"LSTM {layer + 1}" for layer in range(elmo.model.layers)))
        self.identity = fingerprint(elmo)

    def embed(self, sentences: Sequence[Sequence[str]]) -> Vectors:
        """Vectors of sentences, each read by itself."""
        vectors = room(sentences, len(self.layers), self.elmo.dim)
        embedded = self.elmo.embed_iter(sentences, layers="all")
        for number, layers in enumerate(shown(embedded, self.name, len(sentences))):
            vectors.of(number)[:] = layers.swapaxes(0, 1)
        return vectors


def shown(sentences: Iterable[np.ndarray], name: str, count: int) -> Iterable[np.ndarray]:
    """What is embedded, with a progress bar."""
    return tqdm(sentences, f"embedding with {name}", count, unit=" sentences", delay=2, leave=False)


def untrained(elmo: Elmo, seed: int = 0) -> Elmo:
    """A model of the same shape with initial parameters: what the shape alone gives."""
    with needing("train"):
        from elmo_jax.modules import init_bilm
    parameters = init_bilm(jax.random.key(seed), elmo.model, len(elmo.vocabulary or ()))
    return elmo.with_parameters(jax.tree.map(np.asarray, parameters), mixes=())
