"""Contextual similarity: how much a word's vector follows its context in each layer (Ethayarajh 2019).

M tokens of all sentences, n occurrences of a word, L layers, D width of a vector.
"""

import functools
import hashlib
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from elmo_jax.errors import InputError
from elmo_jax.sources import read_input
from elmo_jax.tasks.cosines import AVERAGE, cosine, known, unit
from elmo_jax.tasks.evaluate import Options, Piece
from elmo_jax.tasks.formats import digest, stem
from elmo_jax.tasks.report import Figure, Interval, bootstrap
from elmo_jax.tasks.systems import System

CONTEXTS = 5  # different sentences that a word must stand in
# What is looked at, at most: sentences of the text, words, occurrences of a word, pairs of tokens.
SENTENCES, WORDS, OCCURRENCES, PAIRS = 2000, 1000, 100, 5000
SHOWN = 10  # words with the highest and the lowest self-similarity, in the details


class Sample(NamedTuple):
    """What is looked at, the same for all systems: sentences, and rows of their tokens.

    `occurrences` has for each of `words` the rows where it stands, one a sentence; `pairs` [K, 2] are rows of tokens of
    different sentences.
    """

    sentences: list[list[str]]
    words: list[str]
    occurrences: list[np.ndarray]
    pairs: np.ndarray


def drawn(sentences: Iterable[Sequence[str]], count: int) -> list[list[str]]:
    """Different sentences of two tokens or more, so many at random: those whose hashes are the smallest, in order."""
    kept: dict[int, list[str]] = {}
    largest: list[int] = []  # a heap of the hashes, negative
    for sentence in sentences:
        if len(sentence) < 2:
            continue
        key = int.from_bytes(hashlib.blake2b("\n".join(sentence).encode(), digest_size=8).digest(), "big")
        if key in kept or (len(kept) == count and key > -largest[0]):
            continue
        kept[key] = list(sentence)
        heapq.heappush(largest, -key)
        if len(kept) > count:
            del kept[-heapq.heappop(largest)]
    return list(kept.values())


def sample(sentences: list[list[str]], name: str, seed: int = 0) -> Sample:
    """Words that stand in CONTEXTS of the sentences, drawn at random where there are many; `name` is of the text."""
    generator = np.random.default_rng(seed)
    begins = np.cumsum([0, *map(len, sentences)])
    rows: dict[str, list[int]] = {}
    for begin, sentence in zip(begins, sentences, strict=False):
        for word in dict.fromkeys(sentence):
            rows.setdefault(word, []).append(int(begin) + sentence.index(word))
    words = sorted(word for word, of_word in rows.items() if len(of_word) >= CONTEXTS)
    if not words:
        raise InputError(
            f"{name} has no word that stands in {CONTEXTS} different sentences, among the {len(sentences):,} of two "
            "tokens or more that were drawn of it; contextual similarity compares a word's occurrences: give more text"
        )
    words = [words[number] for number in np.sort(generator.permutation(len(words))[:WORDS])]
    occurrences = [np.sort(generator.permutation(rows[word])[:OCCURRENCES]) for word in words]
    shuffled = generator.permutation(begins[-1])
    pairs = shuffled[: len(shuffled) // 2 * 2].reshape(-1, 2)
    sentence_of = np.repeat(np.arange(len(sentences)), np.diff(begins))
    pairs = pairs[sentence_of[pairs[:, 0]] != sentence_of[pairs[:, 1]]][:PAIRS]
    return Sample(sentences, words, occurrences, pairs)


def self_similarity(vectors: np.ndarray) -> float:
    """Mean cosine of every two of a word's occurrences [n, D]: 1 for a static vector."""
    directions, count = unit(vectors.astype(np.float64)), len(vectors)
    return float((np.square(directions.sum(0)).sum() - np.square(directions).sum()) / (count * (count - 1)))


def explained_variance(vectors: np.ndarray) -> float:
    """Share of vectors [n, D] that their first singular vector explains: what one static vector can say of them."""
    vectors = vectors.astype(np.float64)
    sizes = np.linalg.eigvalsh(vectors @ vectors.T if len(vectors) < vectors.shape[1] else vectors.T @ vectors)
    return float(sizes[-1] / sizes.sum())


def sentence_similarity(vectors: np.ndarray) -> float:
    """Mean cosine of a sentence's tokens [T, D] with their mean."""
    return float((unit(vectors) @ unit(vectors.mean(0))).mean())


def each_layer(system: System, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Vectors [M, D] of every layer and, where there are several, of their average, out of [M, L, D]."""
    for layer, name in enumerate(system.layers):
        yield name, values[:, layer]
    if len(system.layers) > 1:
        yield AVERAGE, values.mean(1)


class Similarities(NamedTuple):
    """What was found in a layer: a number for each word, sentence or pair that the system knows."""

    words: list[str]
    selves: np.ndarray
    explained: np.ndarray
    explained_of_others: np.ndarray
    sentences: np.ndarray
    pairs: np.ndarray


def measure(looked_at: Sample, values: np.ndarray, begins: np.ndarray, seed: int = 0) -> Similarities:
    """Similarities in a layer's vectors [M, D]; tokens that the system does not know are left out.

    What one vector explains of so many tokens drawn at random is found for each word with as many as it has.
    """
    generator = np.random.default_rng(seed)
    knows = known(values)
    rows, words = np.flatnonzero(knows), [n for n, of_word in enumerate(looked_at.occurrences) if knows[of_word].all()]
    of_words = [values[looked_at.occurrences[number]] for number in words]
    others = [values[generator.choice(rows, len(vectors), replace=False)] for vectors in of_words]
    sentences = [values[begin:end][knows[begin:end]] for begin, end in itertools.pairwise(begins)]
    pairs = looked_at.pairs[knows[looked_at.pairs].all(1)]
    return Similarities(
        [looked_at.words[number] for number in words],
        np.array([self_similarity(vectors) for vectors in of_words]),
        np.array([explained_variance(vectors) for vectors in of_words]),
        np.array([explained_variance(vectors) for vectors in others]),
        np.array([sentence_similarity(vectors) for vectors in sentences if len(vectors) > 1]),
        cosine(values[pairs[:, 0]], values[pairs[:, 1]]),
    )


def intervals(found: Similarities, seed: int = 0) -> dict[str, tuple[Interval, str]]:
    """Of each metric its mean with an interval, and what it is over.

    Adjusted for anisotropy: less the mean cosine of tokens drawn at random, or what one vector explains of them.
    """
    words, sentences, pairs = (f"{len(of):,} " for of in (found.selves, found.sentences, found.pairs))

    def mean(values: np.ndarray, less: np.ndarray | None = None) -> Interval:
        """Of values, less that of others that are resampled for themselves: of two groups `bootstrap` is the half."""
        groups = [values] if less is None else [2 * values, -2 * less]
        return bootstrap(groups, seed) if all(map(len, groups)) else Interval(math.nan, math.nan, math.nan)

    of_words, of_sentences = f"{words}words (bootstrap)", f"{sentences}sentences (bootstrap)"
    return {
        "anisotropy": (mean(found.pairs), f"{pairs}pairs of tokens (bootstrap)"),
        "self-similarity": (mean(found.selves), of_words),
        "self-similarity, adjusted": (mean(found.selves, found.pairs), of_words),
        "sentence similarity": (mean(found.sentences), of_sentences),
        "sentence similarity, adjusted": (mean(found.sentences, found.pairs), of_sentences),
        "explained variance": (mean(found.explained), of_words),
        "explained variance, adjusted": (mean(found.explained - found.explained_of_others), of_words),
    }


def pieces(path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """Of a text, a sentence a line; of a long one SENTENCES drawn at random, or of its first `options.limit`."""
    lines = itertools.islice(read_input([path], option="similarity", progress="reading"), options.limit)
    looked_at = sample(drawn(lines, SENTENCES), path)
    text = digest("\n".join(map(" ".join, looked_at.sentences)).encode())
    name = stem(path)
    decides = {"task": "similarity", "data": [name, text]}

    def piece(system: System) -> Piece:
        of_system = functools.partial(figures, looked_at, name, system)
        whole = decides | {"system": [system.name, system.identity]}
        return Piece(f"similarity: {name}, {system.name}", whole, of_system)

    return [piece(system) for system in systems]


def figures(looked_at: Sample, data: str, system: System) -> list[Figure]:
    """Every metric of every layer of a system."""
    vectors = system.embed(looked_at.sentences)
    found_in: list[Figure] = []
    for layer, values in tqdm(each_layer(system, vectors.values), "similarity", unit=" layers", delay=2, leave=False):
        found = measure(looked_at, values, vectors.begins)
        order = np.argsort(found.selves, kind="stable")
        ends = {"lowest": order[:SHOWN], "highest": order[::-1][:SHOWN]}
        extremes = {end: {found.words[n]: float(found.selves[n]) for n in numbers} for end, numbers in ends.items()}
        for metric, (interval, over) in intervals(found).items():
            details: dict[str, Any] = {"sentences": len(looked_at.sentences), "tokens": len(values)}
            details |= extremes if metric == "self-similarity" else {}
            found_in.append(Figure("similarity", data, system.name, layer, metric, *interval, over, details))
    return found_in
