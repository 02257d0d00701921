"""Figures of tasks with intervals, and the table of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
DRAWN_TOGETHER = 2**20  # numbers of examples


class Figure(NamedTuple):
    """One line of the table: a value with its interval of 95 %.

    task, data    what was measured, and on which file or word
    system        the model or baseline
    vectors       which of its vectors: the name of a layer, "mix", "fine-tuned", ..
    metric        "accuracy", "F1", ..
    value, low, high
    over          what the interval is over: "5 seeds", "1,000 sentences (bootstrap)", ..
    details       more that was found, as JSON: the mix's weights, a value of each seed, counts
    """

    task: str
    data: str
    system: str
    vectors: str
    metric: str
    value: float
    low: float
    high: float
    over: str
    details: dict[str, Any]


class Interval(NamedTuple):
    """A mean, and where it lies in 95 of 100 repetitions."""

    value: float
    low: float
    high: float


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of repetitions with other random numbers, by Student's t; of values from 0 to 1, as accuracy and F1."""
    array = np.asarray(values, np.float64)
    mean = array.mean()
    if len(array) < 2:
        return Interval(float(mean), float("nan"), float("nan"))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * stats.sem(array)
    return Interval(float(mean), max(0.0, float(mean - half)), min(1.0, float(mean + half)))


def bootstrap(scores: Sequence[np.ndarray], seed: int = 0) -> Interval:
    """The mean over groups of the means of their scores, resampled within each group: accuracy averaged over words.

    `scores` has for each group an array with a number for each example.
    """
    generator = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for group in scores:
        group = np.asarray(group, np.float64)
        for part in np.array_split(means, max(1, RESAMPLES * len(group) // DRAWN_TOGETHER)):
            chosen = generator.integers(0, len(group), (len(part), len(group)))
            part += group[chosen].mean(1) / len(scores)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.mean([np.mean(group) for group in scores])), float(low), float(high))


def resampled(statistic: Any, *arrays: np.ndarray, seed: int = 0) -> Interval:
    """Any statistic of paired arrays (`statistic(*arrays) → float`), by resampling their elements together."""
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        chosen = generator.integers(0, len(arrays[0]), len(arrays[0]))
        draws.append(statistic(*(array[chosen] for array in arrays)))
    low, high = np.nanquantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(statistic(*arrays)), float(low), float(high))


def table(figures: Sequence[Figure]) -> str:
    """The figures in Markdown, a line each."""
    lines = ["| task | data | system | vectors | metric | value (95 % interval) | over |", "| --- " * 7 + "|"]
    for figure in figures:
        interval = "" if np.isnan(figure.low) else f" ({figure.low:.3f} – {figure.high:.3f})"
        cells = (*figure[:5], f"{figure.value:.3f}{interval}", figure.over)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
