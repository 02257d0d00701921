"""Contextual similarity against what people say: SCWS, USim and WiC. N pairs of words in context."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from elmo_jax.tasks.cosines import cosine, known, layers_of, parts, with_average
from elmo_jax.tasks.evaluate import Options, Piece
from elmo_jax.tasks.formats import Pair, Parts, Ratings, read_ratings
from elmo_jax.tasks.report import Figure, Interval, bootstrap, resampled
from elmo_jax.tasks.systems import System

# Thresholds beyond all cosines.
BELOW, ABOVE = -2.0, 2.0
DIGITS = 6


def similarities(system: System, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of each pair's words in every layer [N, L], float64, and which pairs have words that are known [N].

    A word of several tokens is their mean. A pair that a system does not know has cosine 0. Rounded, so that where all
    are the same, a word's static vectors, nothing is told by the last digits.
    """
    cosines, knows = [], []
    for part in parts(system, len(pairs)):
        words = [word for pair in pairs[part] for word in (pair.first, pair.second)]
        sentences = list(dict.fromkeys(tuple(word.tokens) for word in words))
        vectors, rows = system.embed(sentences), {tokens: row for row, tokens in enumerate(sentences)}
        each = [vectors.of(rows[tuple(word.tokens)])[word.begin : word.end].mean(0) for word in words]
        both = with_average(np.array(each, np.float64).reshape(-1, 2, *vectors.values.shape[1:]))
        cosines.append(cosine(both[:, 0], both[:, 1]))
        knows.append(known(both).all((1, 2)))
    return np.round(np.concatenate(cosines), DIGITS), np.concatenate(knows)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The rank correlation of two arrays; nan where one of them is all the same, or empty."""
    if not (len(first) and np.ptp(first) and np.ptp(second)):
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def correlation(cosines: np.ndarray, ratings: np.ndarray) -> Interval:
    """Spearman's, with its interval."""
    whole = spearman(cosines, ratings)
    return Interval(whole, whole, whole) if math.isnan(whole) else resampled(spearman, cosines, ratings)


class Threshold(NamedTuple):
    """The cosine from which on words are said to have one sense, and how often that is right where it was chosen."""

    cosine: float
    accuracy: float


def best_threshold(cosines: np.ndarray, same: np.ndarray) -> Threshold:
    """The threshold between two cosines, or beyond all, that is right most often; of several the lowest."""
    values, group = np.unique(cosines, return_inverse=True)
    others_below = np.concatenate([[0], np.cumsum(np.bincount(group, ~same, len(values)))])
    same_below = np.concatenate([[0], np.cumsum(np.bincount(group, same, len(values)))])
    right = others_below + same_below[-1] - same_below
    best = int(right.argmax())
    between = [BELOW, *(values[:-1] / 2 + values[1:] / 2), ABOVE]
    return Threshold(float(between[best]), float(right[best] / len(cosines)))


def pieces(path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """Of a file in the form of SCWS or USim, or a folder in that of WiC (`formats.read_ratings`)."""
    rated = read_ratings(path)
    decides = {"task": "ratings", "data": [rated.name, rated.digest], "limit": options.limit}

    def piece(system: System) -> Piece:
        if isinstance(rated, Ratings):
            of_system = functools.partial(correlations, rated.name, rated.pairs[: options.limit], system)
        else:
            learned, measured, where = split(rated)
            of_system = functools.partial(
                accuracies, rated.name, learned[: options.limit], measured[: options.limit], where, system
            )
        whole = decides | {"system": [system.name, system.identity]}
        return Piece(f"ratings: {rated.name}, {system.name}", whole, of_system)

    return [piece(system) for system in systems]


def correlations(data: str, pairs: Sequence[Pair], system: System) -> list[Figure]:
    """Spearman's rank correlation of cosines and mean ratings, of each layer, over the pairs that a system knows."""
    cosines, knows = similarities(system, pairs)
    ratings = np.array([pair.rating for pair in pairs])[knows]
    details, found = {"unknown": int((~knows).sum())}, []
    for layer, of_layer in zip(layers_of(system), cosines[knows].T, strict=True):
        same = len(np.unique(of_layer)) < 2
        over = f"{len(ratings):,} pairs ({'all have the same cosine' if same else 'bootstrap'})"
        interval = correlation(of_layer, ratings)
        found.append(Figure("ratings", data, system.name, layer, "Spearman", *interval, over, details))
    return found


def split(rated: Parts[Pair]) -> tuple[list[Pair], list[Pair], str]:
    """Pairs by which the threshold is chosen, those on which it is measured, and the name of these."""
    if rated.test is None:
        return rated.train, rated.dev or [], "dev"
    return rated.train + (rated.dev or []), rated.test, "test"


def accuracies(
    data: str, learned: Sequence[Pair], measured: Sequence[Pair], where: str, system: System
) -> list[Figure]:
    """How often a word is rightly said to have one sense in both contexts, by a threshold, of each layer."""
    cosines, knows = similarities(system, [*learned, *measured])
    same = np.array([pair.rating > 0 for pair in (*learned, *measured)])
    count, found = len(learned), []
    for layer, of_layer in zip(layers_of(system), cosines.T, strict=True):
        threshold = best_threshold(of_layer[:count], same[:count])
        right = (of_layer[count:] >= threshold.cosine) == same[count:]
        details = {"threshold": threshold._asdict(), "same": float(same[count:].mean()), "unknown": int((~knows).sum())}
        over = f"{len(measured):,} pairs of {where} (bootstrap)"
        found.append(Figure("ratings", data, system.name, layer, "accuracy", *bootstrap([right]), over, details))
    return found
