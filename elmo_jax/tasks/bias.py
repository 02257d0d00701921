"""Bias: associations of sets of words by WEAT and SEAT, and hard debiasing.

WEAT (Caliskan et al. 2017) asks whether one set of target words is nearer to one set of attributes than another set
is; SEAT (May et al. 2019) asks it of sentences, templates with the words in them. N target words, S sentences of each
(one, the word alone, in WEAT), L layers, D width of a vector.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from elmo_jax.elmo import Elmo
from elmo_jax.errors import InputError
from elmo_jax.tasks.cosines import known, layers_of, unit, with_average
from elmo_jax.tasks.evaluate import Options, Piece
from elmo_jax.tasks.formats import TEMPLATE_WORD, WordSets, digest, read_word_sets
from elmo_jax.tasks.report import CONFIDENCE, RESAMPLES, Figure, Interval
from elmo_jax.tasks.systems import System, Vectors

# Partitions of the target words that are all counted; of more, as many are drawn. Then the error of p is 1.96 standard
# errors at most, 0.0014 at p = 0.05.
MOST_PARTITIONS = 100_000
DRAWN_TOGETHER = 10_000


class Significance(NamedTuple):
    """p with its interval of 95 % (of a p over all partitions, itself), how many partitions, and whether all."""

    p: float
    low: float
    high: float
    partitions: int
    exact: bool


def associations(words: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How much nearer each word's sentences are to one set of attributes than to the other, [N, S] (s(w, A, B)).

    The mean cosine with `first` [A, S, D] less that with `second` [B, S, D], of words [N, S, D].
    """
    apart = unit(first).mean((0, 1)) - unit(second).mean((0, 1))
    return unit(words) @ apart


def effect_size(first: np.ndarray, second: np.ndarray) -> float:
    """d of the associations of two sets of targets, [N, S] and [M, S]: how many standard deviations they are apart.

    The deviation is that of all of them together, with n - 1; d lies between -2 and 2 (nearly), nan where they are all
    the same.
    """
    deviation = np.concatenate([first.ravel(), second.ravel()]).std(ddof=1)
    return float((first.mean() - second.mean()) / deviation) if deviation > 0 else math.nan


def effect_interval(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Interval:
    """d, and where it lies when the words of both sets are resampled."""
    generator = np.random.default_rng(seed)
    draws = [
        of_set[generator.integers(0, len(of_set), (RESAMPLES, len(of_set)))].reshape(RESAMPLES, -1)
        for of_set in (first, second)
    ]
    apart, deviations = draws[0].mean(1) - draws[1].mean(1), np.concatenate(draws, 1).std(1, ddof=1)
    sizes = apart[deviations > 0] / deviations[deviations > 0]
    if not len(sizes):
        return Interval(math.nan, math.nan, math.nan)
    low, high = np.quantile(sizes, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(effect_size(first, second), float(low), float(high))


def significance(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Significance:
    """How often target words divided at random into sets of the same sizes are as far apart, in the same direction.

    A word's sentences stay together: they are not independent, and divided singly would give too small a p. Where
    partitions are drawn, that of the words as they are is counted too, so that p is never 0.
    """
    words = np.concatenate([first.mean(1), second.mean(1)])
    count, size = len(words), len(first)
    least = words[:size].sum() - 1e-9 * np.abs(words).sum()  # equal up to rounding is equal
    partitions = math.comb(count, size)
    if partitions <= MOST_PARTITIONS:
        chosen = np.fromiter(itertools.combinations(range(count), size), np.dtype((np.int16, size)), partitions)
        p = float((words[chosen].sum(1) >= least).mean())
        return Significance(p, p, p, partitions, True)
    generator = np.random.default_rng(seed)
    as_far = 0
    for _ in range(MOST_PARTITIONS // DRAWN_TOGETHER):
        orders = generator.permuted(np.tile(words, (DRAWN_TOGETHER, 1)), axis=1)
        as_far += int((orders[:, :size].sum(1) >= least).sum())
    found = stats.binomtest(as_far + 1, MOST_PARTITIONS + 1)
    low, high = found.proportion_ci(CONFIDENCE, "wilson")
    return Significance(float(found.statistic), float(low), float(high), MOST_PARTITIONS, False)


def directions(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What pairs [N, 2, L, D] that differ in one respect alone (he and she) differ by, in every layer.

    Unit vectors [L, D], the first principal component of the pairs' vectors, each less its pair's mean (Bolukbasi et
    al. 2016, section 5.1), and its share of their variance [L].
    """
    centred = pairs - pairs.mean(1, keepdims=True)
    rows = np.moveaxis(centred, 2, 0).reshape(pairs.shape[2], -1, pairs.shape[3])
    _, sizes, components = np.linalg.svd(rows, full_matrices=False)
    variances = sizes**2
    return components[:, 0], variances[:, 0] / np.maximum(variances.sum(-1), np.finfo(variances.dtype).tiny)


def project_out(values: np.ndarray, directions: np.ndarray) -> None:
    """Takes a direction [L, D] of each layer out of vectors [M, L, D], in their place."""
    for layer, direction in enumerate(directions):
        for begin in range(0, len(values), DRAWN_TOGETHER):
            rows = values[begin : begin + DRAWN_TOGETHER, layer]
            rows -= np.outer(rows @ direction, direction)


def name_of(system: System) -> str:
    """What a system is called once the direction of the pairs has been projected out of its vectors."""
    return f"{system.name}, debiased"


class Debiased:
    """A system with the direction of pairs of words projected out of every layer: any task can be run on it.

    Hard debiasing (Bolukbasi et al. 2016) of all words: none are excepted, and none made equal. The direction is that
    of the pairs' words by themselves.
    """

    elmo: Elmo | None = None

    def __init__(self, system: System, sets: WordSets):
        if not sets.pairs:
            raise InputError(f'{sets.name} has no "pairs", whose direction is projected out; give [["he", "she"], ..]')
        self.system, self.sets = system, sets
        self.name, self.layers = name_of(system), system.layers
        self.identity = digest(system.identity.encode(), repr(sets.pairs).encode())

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """What is projected out, [L, D]."""
        vectors = self.system.embed([word.split() for pair in self.sets.pairs for word in pair]).pooled()
        return known_directions(vectors.reshape(-1, 2, *vectors.shape[1:]), self.system, self.sets)[0]

    def embed(self, sentences: Sequence[Sequence[str]]) -> Vectors:
        """Vectors of sentences, without what is projected out."""
        vectors = self.system.embed(sentences)
        project_out(vectors.values, self.directions)
        return vectors


def debiased(systems: Sequence[System], path: str) -> list[System]:
    """Each system with the direction of the pairs of a file of word sets projected out, to run tasks on."""
    files = read_word_sets(path)
    if len(files) > 1:
        raise InputError(f"{path} has {len(files)} files of word sets; give the one whose pairs are projected out")
    return [Debiased(system, files[0]) for system in systems]


def known_directions(pairs: np.ndarray, system: System, sets: WordSets) -> tuple[np.ndarray, np.ndarray]:
    """`directions` of the pairs [N, 2, L, D] whose words the system knows."""
    knows = known(pairs).all((1, 2))
    if not knows.any():
        raise InputError(f"{system.name} knows both words of none of the pairs of {sets.name}; give others")
    return directions(pairs[knows])


def pieces(path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """Of sets of words in JSON files (`formats.read_word_sets`).

    A system debiased by the same pairs is passed over: it is among what is measured of the system itself.
    """

    def piece(sets: WordSets, system: System) -> Piece:
        decides: dict[str, Any] = {"task": "bias", "data": [sets.name, sets.digest]}
        decides |= {"system": [system.name, system.identity]}
        return Piece(f"bias: {sets.name}, {system.name}", decides, functools.partial(figures, sets, system))

    measured = lambda sets, system: isinstance(system, Debiased) and system.sets.pairs == sets.pairs
    return [piece(sets, it) for sets in read_word_sets(path) for it in systems if not measured(sets, it)]


class Asked(NamedTuple):
    """Sentences to embed, and the rows that each word and set has among them.

    `alone` is the row of each word by itself. `groups` are the four sets, targets before attributes: the words of each
    and the rows of its words in its S templates, [N, S].
    """

    sentences: list[list[str]]
    alone: dict[str, int]
    groups: list[tuple[list[str], np.ndarray]]


def asked(sets: WordSets) -> Asked:
    """All that a system is asked for the tests and for debiasing."""
    groups = [*sets.targets.items(), *sets.attributes.items()]
    words = dict.fromkeys([*itertools.chain(*(of_group for _, of_group in groups)), *itertools.chain(*sets.pairs)])
    sentences, found = [word.split() for word in words], []
    for name, of_group in groups:
        templates = sets.templates.get(name, ())
        filled = [template.replace(TEMPLATE_WORD, word).split() for word in of_group for template in templates]
        rows = len(sentences) + np.arange(len(filled)).reshape(len(of_group), -1)
        sentences += filled
        found.append((of_group, rows))
    return Asked(sentences, {word: row for row, word in enumerate(words)}, found)


def figures(sets: WordSets, system: System) -> list[Figure]:
    """Effect sizes of WEAT and, with templates, of SEAT in each layer; with pairs the same debiased, unless it is so.

    Words that the system does not know are left out.
    """
    of = asked(sets)
    rows = system.embed(of.sentences).pooled()
    found = measure(sets, of, rows, system, system.name)
    if sets.pairs and not isinstance(system, Debiased):
        pairs = np.array([[rows[of.alone[word]] for word in pair] for pair in sets.pairs])
        taken_out, shares = known_directions(pairs, system, sets)
        project_out(rows, taken_out)
        explained = dict(zip(system.layers, shares.tolist(), strict=True))
        found += measure(sets, of, rows, system, name_of(system), {"explained by the direction": explained})
    return found


def measure(
    sets: WordSets, of: Asked, rows: np.ndarray, system: System, name: str, details: dict[str, Any] | None = None
) -> list[Figure]:
    """Figures of sentences' vectors [.., L, D] of a system that is called so."""
    knows = {word: bool(known(rows[row]).all()) for word, row in of.alone.items()}
    words = [[word for word in of_group if knows[word]] for of_group, _ in of.groups]
    unknown = [word for of_group, _ in of.groups for word in of_group if not knows[word]]
    details = (details or {}) | {"words": list(map(len, words)), "unknown": unknown}
    tests = {"WEAT d": [np.array([[of.alone[word]] for word in group], int).reshape(-1, 1) for group in words]}
    if sets.templates:
        tests["SEAT d"] = [inside[[knows[word] for word in of_group]] for of_group, inside in of.groups]
    found = []
    for test, groups in tests.items():
        vectors = [with_average(rows[group].astype(np.float64)) for group in groups]
        for layer, of_layer in enumerate(layers_of(system)):
            figure = functools.partial(Figure, "bias", sets.name, name, of_layer, test)
            if min(map(len, vectors[:2])) < 2 or min(map(len, vectors[2:])) < 1:
                found.append(figure(math.nan, math.nan, math.nan, "too few words that it knows", details))
                continue
            attributes = [group[:, :, layer] for group in vectors[2:]]
            first, second = (associations(group[:, :, layer], *attributes) for group in vectors[:2])
            tested = significance(first, second)
            over = f"{len(first) + len(second):,} words (bootstrap), p = {tested.p:.2g}"
            found.append(figure(*effect_interval(first, second), over, details | {"p": tested._asdict()}))
    return found
