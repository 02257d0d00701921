"""An interactive page of words in their contexts: one HTML file that needs no network.

N occurrences of a word, L layers, D width of a vector.
"""

import heapq
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from elmo_jax.corpus import WordCounts
from elmo_jax.elmo import PathLike
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.files import writing
from elmo_jax.pictures import principal, vectors_of
from elmo_jax.tasks.cosines import unit
from elmo_jax.tasks.formats import Occurrence
from elmo_jax.tasks.systems import System

# What bounds the page: its words, occurrences of each, tokens on either side, nearest contexts that a click shows.
MOST_WORDS = 50
MOST_OCCURRENCES = 200
CONTEXT = 20
NEIGHBOURS = 5
FEWEST_OCCURRENCES = 3
# Words that are taken where none are given: so many, after the most frequent ones, which mean little by themselves.
WORDS, LITTLE_MEANING = 20, 150
# Places of points are whole numbers up to this.
GRID = 1000
PLACE = "DATA"  # in the template


class Found(NamedTuple):
    """A word's occurrences in a text, in its order: how many there are, and those that the page shows."""

    count: int
    occurrences: list[Occurrence]


def frequent_words(sentences: Iterable[list[str]]) -> list[str]:
    """The most frequent words of letters after the LITTLE_MEANING most frequent; of a text with few words, from all."""
    counts = WordCounts(sentences)
    if not counts.tokens:
        raise InputError("the text has no words; give text with a sentence a line")
    words = ((-count, word) for word, count in counts if word.isalpha() and count >= FEWEST_OCCURRENCES)
    ranked = [word for _, word in heapq.nsmallest(LITTLE_MEANING + WORDS, words)]
    if not ranked:
        raise InputError(
            f"no word of the text occurs {FEWEST_OCCURRENCES} times, as one to look at must; give more text"
        )
    return ranked[LITTLE_MEANING:] or ranked[:WORDS]


def occurrences_of(sentences: Iterable[list[str]], words: Sequence[str]) -> dict[str, Found]:
    """Where words occur; of more than MOST_OCCURRENCES those that chance has chosen, always the same."""
    generator = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    kept: dict[str, list[tuple[int, Occurrence]]] = {word: [] for word in words}
    numbers = itertools.count()
    for tokens in sentences:
        for place, word in enumerate(tokens):
            if word not in kept:
                continue
            counts[word] += 1
            occurrence = next(numbers), Occurrence("", word, place, "", tokens)
            if counts[word] <= MOST_OCCURRENCES:
                kept[word].append(occurrence)
            elif (chosen := int(generator.integers(counts[word]))) < MOST_OCCURRENCES:
                kept[word][chosen] = occurrence
    rare = [f"{brief(repr(word), 40)} {counts[word]} times" for word in words if counts[word] < FEWEST_OCCURRENCES]
    if rare:
        raise InputError(
            f"the text has {listed(rare, ', ')}; give words, as they are written there, that occur "
            f"{FEWEST_OCCURRENCES} times or more"
        )
    in_order = lambda word: [occurrence for _, occurrence in sorted(kept[word], key=lambda numbered: numbered[0])]
    return {word: Found(counts[word], in_order(word)) for word in words}


def turned(points: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """Points [N, 2] turned and mirrored to lie as near as can be to those of the layer before (Procrustes)."""
    if before is None:
        return points
    left, _, right = np.linalg.svd(points.T @ before)
    return points @ (left @ right)


def nearest(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each of N vectors [N, D], which others are nearest by cosine, [N, k], and the cosines."""
    units = unit(vectors)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -np.inf)
    places = np.argsort(-cosines, 1, kind="stable")[:, : min(NEIGHBOURS, len(vectors) - 1)]
    return places, np.take_along_axis(cosines, places, 1)


def layer_of(vectors: np.ndarray, before: np.ndarray | None) -> tuple[dict[str, Any], np.ndarray]:
    """What the page has of a word in one layer [N, D]; and the points [N, 2], to turn those of the next layer by."""
    points, shares = principal(vectors)
    points = turned(points, before)
    largest = np.abs(points).max() or 1.0
    places, cosines = nearest(vectors)
    about = {
        "points": np.round((points / largest + 1) / 2 * GRID).astype(int).tolist(),
        "shown": round(float(shares.sum()), 3),
        "different": len(np.unique(vectors.round(4), axis=0)),
        "near": places.tolist(),
        "cosines": np.round(cosines, 3).tolist(),
    }
    return about, points


def context_of(occurrence: Occurrence) -> list[str]:
    """An occurrence as the page shows it: what stands left of the word, the word, what stands right of it."""
    tokens, place = occurrence.tokens, occurrence.index
    left, right = tokens[max(0, place - CONTEXT) : place], tokens[place + 1 : place + 1 + CONTEXT]
    left = ["…", *left] if place > CONTEXT else left
    right = [*right, "…"] if len(tokens) > place + 1 + CONTEXT else right
    return [" ".join(left), tokens[place], " ".join(right)]


def explored(
    system: System, read: Callable[[], Iterable[list[str]]], words: Sequence[str], layers: Sequence[int]
) -> dict[str, Any]:
    """What the page shows: words of a text, which `read` reads from its beginning, in layers (all where none)."""
    words = list(dict.fromkeys(words))
    if len(words) > MOST_WORDS:
        raise InputError(f"--words has {len(words)} words; a page has room for {MOST_WORDS}")
    if wrong := [layer for layer in layers if not 0 <= layer < len(system.layers)]:
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(system.layers))
        raise InputError(f"--layers has {wrong[0]}; {system.name} has the layers {known}")
    chosen = sorted(set(layers)) or list(range(len(system.layers)))
    found = occurrences_of(read(), words or frequent_words(read()))
    made = []
    for word, (count, occurrences) in tqdm(found.items(), "exploring", unit=" words", delay=2, leave=False):
        vectors, before, of_layers = vectors_of(system, occurrences), None, []
        for layer in chosen:
            about, before = layer_of(vectors[:, layer], before)
            of_layers.append(about)
        contexts = [context_of(occurrence) for occurrence in occurrences]
        made.append({"word": word, "count": count, "contexts": contexts, "layers": of_layers})
    return {"model": system.name, "layers": [system.layers[layer] for layer in chosen], "grid": GRID, "words": made}


def write_page(explored: dict[str, Any], text: str, output: PathLike) -> None:
    """Writes the page; it appears only when it is whole. `text` says where the contexts are from."""
    template = resources.files("elmo_jax").joinpath("explore.html").read_text(encoding="utf-8")
    data = json.dumps(explored | {"text": text}, ensure_ascii=False, separators=(",", ":"))
    before, after = template.split(PLACE)
    with writing(output) as partial:
        # No word of a text can end the script that the data stand in.
        partial.write_text(before + data.replace("<", "\\u003c") + after, encoding="utf-8")
