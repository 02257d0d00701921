"""Which sense a word has in its context: linear probes and nearest neighbours of its vectors, in five folds.

N occurrences of a word, L layers, D width of a vector.
"""

import functools
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from elmo_jax.errors import InputError, needing
from elmo_jax.tasks.cosines import unit
from elmo_jax.tasks.evaluate import Options, Piece
from elmo_jax.tasks.formats import digest, read_occurrences
from elmo_jax.tasks.probes import names_of_heads, probe
from elmo_jax.tasks.report import Figure, bootstrap
from elmo_jax.tasks.systems import System

TASK, ALL = "word sense", "all words"
FOLDS = 5
TOGETHER, SAME = 512, 1e-6  # rows of cosines at a time; what cosines may differ by and be the same
LINEAR, NEIGHBOUR = "accuracy, linear probe", "accuracy, nearest neighbour"
MOST_FREQUENT = "most frequent sense"


class Word(NamedTuple):
    """A word's occurrences: tokens, the word's place in them, senses int [N] with their names, and folds int [N]."""

    name: str
    sentences: list[list[str]]
    places: np.ndarray
    senses: np.ndarray
    names: list[str]
    folds: np.ndarray

    def vectors(self, system: System) -> np.ndarray:
        """The word's own vectors, float32 [N, L, D]."""
        vectors = system.embed(self.sentences)
        return vectors.values[vectors.begins[:-1] + self.places]

    def about(self) -> dict[str, Any]:
        """For the details of a figure."""
        counts = {name: int(count) for name, count in zip(self.names, np.bincount(self.senses), strict=True)}
        return {"occurrences": len(self.senses), "senses": counts}

    def by_fold(self, right: np.ndarray) -> list[float]:
        """The mean in each fold."""
        return [float(right[self.folds == fold].mean()) for fold in range(FOLDS)]


def prepare(path: str, limit: int | None) -> tuple[list[Word], str]:
    """The first occurrences of each word, divided into folds that have its senses in like parts; and a digest."""
    files = read_occurrences(path)
    words = []
    for file in files:
        some = file.occurrences[:limit]
        names = sorted({occurrence.sense for occurrence in some})
        senses = np.array([names.index(occurrence.sense) for occurrence in some])
        counts, sentences = Counter(senses.tolist()), [occurrence.tokens for occurrence in some]
        different = len(set(map(tuple, sentences)))
        if len(names) < 2 or max(counts.values()) < FOLDS or different < FOLDS:
            of = f"{file.name} has {len(some)} occurrences of {len(names)} senses in {different} different sentences"
            raise InputError(
                f"{of}, {max(counts.values())} of the most frequent sense; {FOLDS} folds need two senses, {FOLDS} "
                f"occurrences of one, and {FOLDS} sentences: give more, or leave the word out"
            )
        places = np.array([occurrence.index for occurrence in some])
        words.append(Word(file.name, sentences, places, senses, names, folds_of(senses, sentences)))
    return words, digest(*(file.digest.encode() for file in files))


def folds_of(senses: np.ndarray, sentences: Sequence[Sequence[str]]) -> np.ndarray:
    """The fold of each occurrence, int [N], in which it is tested; of senses that are rare some have none.

    A sentence that is repeated is in one fold: no occurrence is tested by what was learned of itself.
    """
    with needing("tasks"):
        from sklearn.model_selection import StratifiedGroupKFold
    numbers: dict[tuple[str, ...], int] = {}
    same = [numbers.setdefault(tuple(sentence), len(numbers)) for sentence in sentences]
    folds = np.zeros(len(senses), int)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        parts = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(senses, senses, same)
        for number, (_, tested) in enumerate(parts):
            folds[tested] = number
    return folds


class Found(NamedTuple):
    """What one way of telling senses found: how far it is right of each occurrence [N], and more about it."""

    right: np.ndarray
    about: dict[str, Any]


def linear(word: Word, vectors: np.ndarray) -> Found:
    """A linear probe on a mix of the layers of these vectors [N, L, D], which may be one."""
    probes = probe(vectors, word.senses, word.folds)
    about: dict[str, Any] = {"strengths": probes.strengths.tolist()}
    if vectors.shape[1] > 1:
        about["mix"] = probes.mixes.tolist()
    return Found(probes.labels[word.folds, np.arange(len(word.folds))] == word.senses, about)


def neighbour(word: Word, vectors: np.ndarray) -> Found:
    """The sense of the nearest, by the cosine, of the occurrences in other folds; vectors [N, D].

    Of several that are as near (static vectors are all the same) one is taken by chance: what counts is their share.
    """
    directions, right = unit(vectors), np.zeros(len(vectors))
    for fold in range(FOLDS):
        others = word.folds != fold
        tested = np.flatnonzero(~others)
        for part in np.array_split(tested, -(-len(tested) // TOGETHER)):
            cosines = directions[part] @ directions[others].T
            nearest = cosines >= cosines.max(1, keepdims=True) - SAME
            same = word.senses[part][:, None] == word.senses[others]
            right[part] = (nearest & same).sum(1) / nearest.sum(1)
    return Found(right, {})


def most_frequent(word: Word) -> Found:
    """The sense that is the most frequent one in the other folds."""
    labels = [np.bincount(word.senses[word.folds != fold]).argmax() for fold in range(FOLDS)]
    return Found(np.array(labels)[word.folds] == word.senses, {})


def figures_of(system: str, vectors: str, metric: str, words: Sequence[Word], found: Sequence[Found]) -> list[Figure]:
    """One for each word, and of several words the mean over them."""
    figures = []
    for word, (right, about) in zip(words, found, strict=True):
        over = f"{len(right):,} occurrences (bootstrap)"
        details = word.about() | {"folds": word.by_fold(right)} | about
        figures.append(Figure(TASK, word.name, system, vectors, metric, *bootstrap([right]), over, details))
    if len(words) > 1:
        every, by_word = bootstrap([right for right, _ in found]), [figure.value for figure in figures]
        over = f"{sum(len(right) for right, _ in found):,} occurrences (bootstrap)"
        details = {"words": [word.name for word in words], "values": by_word}
        details |= {"mix": [mix for _, about in found for mix in about["mix"]]} if "mix" in found[0].about else {}
        figures.append(Figure(TASK, ALL, system, vectors, metric, *every, over, details))
    return figures


def figures(words: Sequence[Word], system: System) -> list[Figure]:
    """Linear probes on each layer and on the mix, and nearest neighbours in each layer."""
    heads = names_of_heads(system)
    probes: list[list[Found]] = [[] for _ in heads]
    nearest: list[list[Found]] = [[] for _ in system.layers]
    for word in tqdm(words, f"{TASK}: {system.name}", unit=" words", delay=2, leave=False):
        vectors = word.vectors(system)
        for layer, of_layer in enumerate(nearest):
            of_layer.append(neighbour(word, vectors[:, layer]))
            probes[layer].append(linear(word, vectors[:, [layer]]))
        if len(heads) > len(system.layers):
            probes[-1].append(linear(word, vectors))
    lines = []
    for metric, names, every in ((LINEAR, heads, probes), (NEIGHBOUR, system.layers, nearest)):
        for name, found in zip(names, every, strict=True):
            lines += figures_of(system.name, name, metric, words, found)
    return lines


def frequencies(words: Sequence[Word]) -> list[Figure]:
    """What no vectors are needed for."""
    return figures_of(MOST_FREQUENT, "none", "accuracy", words, [most_frequent(word) for word in words])


def pieces(path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """A file of JSON lines for each word: a piece for each system, and one for the most frequent senses."""
    words, data = prepare(path, options.limit)
    decides = {"task": TASK, "names": [word.name for word in words], "data": data, "limit": options.limit}
    found = [
        Piece(
            f"{TASK}: {system.name}",
            decides | {"system": [system.name, system.identity]},
            functools.partial(figures, words, system),
        )
        for system in systems
    ]
    most = Piece(f"{TASK}: {MOST_FREQUENT}", decides | {"system": MOST_FREQUENT}, functools.partial(frequencies, words))
    return [*found, most]
