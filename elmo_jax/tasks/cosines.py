"""Cosines of vectors, layer by layer. L layers, D width of a vector."""

from collections.abc import Iterator, Sequence

import numpy as np

from elmo_jax.tasks.systems import System

AVERAGE = "average"
TOGETHER = 2048  # sentences whose tokens' vectors are held at a time where only few or pooled ones are needed


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [.., D] at length 1; zeros, which have no direction, stay zeros: their cosine with anything is 0."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of vectors and others, [.., D] each → [..]."""
    return (unit(first) * unit(second)).sum(-1)


def known(vectors: np.ndarray) -> np.ndarray:
    """Which of vectors [.., D] say anything: zeros are those of words that a system does not know."""
    return np.asarray(vectors.any(-1))


def layers_of(system: System) -> tuple[str, ...]:
    """The layers that are compared: the system's, and where it has several their average."""
    return (*system.layers, AVERAGE) if len(system.layers) > 1 else system.layers


def with_average(values: np.ndarray) -> np.ndarray:
    """Vectors [.., L, D] of a system's layers → those of `layers_of` it, [.., L + 1, D], or of one as they are."""
    if values.shape[-2] == 1:
        return values
    return np.concatenate([values, values.mean(-2, keepdims=True)], -2)


def parts(system: System, count: int) -> Iterator[slice]:
    """Of so many sentences those that are embedded at a time.

    Systems of one layer, static vectors, have them all at once: they look words up in a file, which takes its time.
    """
    size = TOGETHER if len(system.layers) > 1 else max(1, count)
    return (slice(begin, begin + size) for begin in range(0, count, size))


def pooled(system: System, sentences: Sequence[Sequence[str]]) -> np.ndarray:
    """The mean of each sentence's tokens in every layer, [N, L, D], in bounded memory."""
    return np.concatenate([system.embed(sentences[part]).pooled() for part in parts(system, len(sentences))])
