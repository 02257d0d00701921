"""What is compared: models, and baselines that give each token vectors too.

N sentences, M tokens of all of them, L layers, D width of a vector.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from elmo_jax.elmo import Elmo

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


def together(arrays: Sequence[np.ndarray], begins: np.ndarray | None = None) -> Vectors:
    """Arrays [T, L, D] of sentences as one."""
    lengths = [len(array) for array in arrays]
    return Vectors(np.concatenate(arrays).astype(np.float32, copy=False), np.cumsum([0, *lengths]))
