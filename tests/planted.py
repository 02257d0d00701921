"""A system of vectors that a test chooses, for tasks that only compare."""

from collections.abc import Callable, Sequence

import numpy as np

from elmo_jax.tasks.systems import Vectors, room


class Planted:
    """`vector(tokens, position)` gives a token's vectors, [L, D]."""

    elmo = None

    def __init__(self, vector: Callable[[Sequence[str], int], np.ndarray], layers=("first", "second"), name="planted"):
        self.vector, self.layers, self.name, self.identity = vector, tuple(layers), name, f"planted {name}"
        self.calls: list[int] = []

    def embed(self, sentences: Sequence[Sequence[str]]) -> Vectors:
        self.calls.append(len(sentences))
        vectors = room(sentences, *np.shape(self.vector(["a"], 0)))
        for number, tokens in enumerate(sentences):
            for position in range(len(tokens)):
                vectors.of(number)[position] = self.vector(tokens, position)
        return vectors


def of_words(words: dict[str, np.ndarray], width: int) -> Callable[[Sequence[str], int], np.ndarray]:
    """Vectors by word alone, the same in both layers; zeros of others."""
    return lambda tokens, position: np.stack([words.get(tokens[position], np.zeros(width))] * 2)
