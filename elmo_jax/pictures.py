"""Pictures of what vectors know: senses of a word, words in two contexts, results of `elmo-jax evaluate`.

Each is a figure of matplotlib, 1000 pixels wide. N vectors, L layers, D their width.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from elmo_jax.curves import COLOURS, DASHES
from elmo_jax.errors import InputError, brief, listed, needing
from elmo_jax.files import read_json
from elmo_jax.tasks.cosines import AVERAGE, unit
from elmo_jax.tasks.formats import Occurrence, WordOccurrences
from elmo_jax.tasks.report import Figure
from elmo_jax.tasks.systems import MIX, System, systems_of

Projection = Literal["pca", "umap"]
# Of what is told apart by colour, also the shape; what is more frequent comes first.
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
OTHER = "#999999"
# Occurrences of a word in a picture: more would cover each other.
MOST_OCCURRENCES = 500
# Words of a sentence in a heat map: more would not be legible.
MOST_WORDS = 20
ROUNDING = 1e-5  # of float32 vectors, as a part of the largest component
ROOM_FOR_VALUES = 0.22  # inches of a cell with a number in it
MOST_PANELS, MOST_BARS = 12, 30
ROOM_FOR_SHARE, ROOM_FOR_SPREAD = 0.04, 0.1  # in a bar, for the number, and for its deviation beside it
ROOM_FOR_LABELS = 90  # letters below panels side by side
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo")
BESIDE_EACH_OTHER = 0.1  # of the way from one layer to the next, systems
# Figures of learned mixes have in their details the layers' shares, of each seed or fold.
MIX_SHARES = "mix"
BESIDE_LAYERS = (MIX, AVERAGE, "fine-tuned")
WIDTH, DPI = 10, 100  # inches, pixels of each
TITLE, LABEL, SMALL, VALUE = 13, 12, 11, 7.5  # sizes of letters


def system_of(name: str) -> System:
    """A model as `load` takes it, or vectors:FILE or hf:NAME, baselines of `elmo-jax evaluate`."""
    baseline = name.startswith(("vectors:", "hf:"))
    (system,) = systems_of([], [name]) if baseline else systems_of([name])
    return system


def as_text(text: str, limit: int = 30) -> str:
    """What stands in a picture as it is: a dollar sign begins no formula."""
    return brief(text, limit).replace("$", r"\$")


def figure_of(height: float) -> Any:
    """An empty figure of so many inches."""
    with needing("plot"):
        from matplotlib.figure import Figure as Canvas
    return Canvas(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def panels_in(figure: Any, rows: int, columns: int, count: int) -> list[Any]:
    """So many axes in rows."""
    every = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for left_over in every[count:]:
        left_over.remove()
    return every[:count]


class Plane(NamedTuple):
    """Points in the plane float64 [N, 2], and what its axes are called."""

    points: np.ndarray
    axes: tuple[str, str]


def principal(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [N, D] → the first two principal components [N, 2], and what share of the variance each has [2].

    The sign of a component, which is arbitrary, makes the point that lies farthest out positive. A component that has
    nothing but float32's rounding is zero, else it would fill the picture.
    """
    centred = np.asarray(vectors, np.float64)
    centred = centred - centred.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    values[values < ROUNDING * values[0]] = 0.0
    points, variances = np.zeros((len(centred), 2)), np.zeros(2)
    kept = min(2, len(values))
    points[:, :kept], variances[:kept] = left[:, :kept] * values[:kept], np.square(values[:kept])
    farthest = points[np.abs(points).argmax(0), [0, 1]]
    return points * np.where(farthest < 0, -1, 1), variances / max(np.square(values).sum(), np.finfo(float).tiny)


def plane(vectors: np.ndarray, projection: Projection) -> Plane:
    """Vectors [N, D] in the plane."""
    if projection == "pca":
        points, shares = principal(vectors)
        first, second = (f"component {number} ({share:.0%} of variance)" for number, share in enumerate(shares, 1))
        return Plane(points, (first, second))
    with needing("umap"):
        import umap
    reducer = umap.UMAP(n_neighbors=min(15, len(vectors) - 1), metric="cosine", random_state=0, n_jobs=1)
    return Plane(np.asarray(reducer.fit_transform(vectors), np.float64), ("UMAP 1", "UMAP 2"))


def chosen_occurrences(word: WordOccurrences) -> list[Occurrence]:
    """All of them, or as many as have room, drawn by chance, always the same."""
    count = len(word.occurrences)
    if count <= MOST_OCCURRENCES:
        return word.occurrences
    places = np.sort(np.random.default_rng(0).permutation(count)[:MOST_OCCURRENCES])
    return [word.occurrences[place] for place in places]


def vectors_of(system: System, occurrences: Sequence[Occurrence]) -> np.ndarray:
    """Of each occurrence the word's vectors, [N, L, D]."""
    vectors = system.embed([occurrence.tokens for occurrence in occurrences])
    return vectors.values[vectors.begins[:-1] + [occurrence.index for occurrence in occurrences]]


def senses(system: System, word: WordOccurrences, projection: Projection = "pca") -> Any:
    """A word's occurrences in the plane, layer by layer; the senses differ in colour and shape."""
    occurrences = chosen_occurrences(word)
    counts = Counter(occurrence.sense for occurrence in occurrences)
    if len(occurrences) < 3:
        raise InputError(f"{word.name} has {len(occurrences)} occurrences; a picture takes three or more")
    named = [sense for sense, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    named, others = named[: len(COLOURS)], named[len(COLOURS) :]
    groups = [(COLOURS[number], MARKERS[number], [sense]) for number, sense in enumerate(named)]
    if others:
        groups.append((OTHER, ".", others))
    vectors = vectors_of(system, occurrences)
    columns = min(3, len(system.layers))
    rows = math.ceil(len(system.layers) / columns)
    legend_rows = math.ceil(len(groups) / 3)
    figure = figure_of(0.6 + (9.6 / columns + 0.4) * rows + 0.25 * legend_rows)
    panels = panels_in(figure, rows, columns, len(system.layers))
    for axes, (layer, name) in zip(panels, enumerate(system.layers), strict=True):
        points, labels = plane(vectors[:, layer], projection)
        drawn = []
        for colour, marker, of_group in groups:
            here = points[[occurrence.sense in of_group for occurrence in occurrences]]
            style = {"c": colour, "marker": marker, "s": 26, "alpha": 0.7, "linewidths": 0}
            drawn.append(axes.scatter(*here.T, **style))
        distinct = len(np.unique(vectors[:, layer].round(4), axis=0))
        alike = "one vector" if distinct == 1 else f"{distinct} different vectors"
        alike = "" if 2 * distinct > len(vectors) else f" ({alike})"
        axes.set_title(as_text(name) + alike, fontsize=TITLE)
        axes.set_xlabel(labels[0], fontsize=SMALL)
        axes.set_ylabel(labels[1], fontsize=SMALL)
        axes.set_xticks([])
        axes.set_yticks([])
    titles = [f"{as_text(sense)} ({counts[sense]:,})" for sense in named]
    titles += [f"{len(others)} other senses ({sum(counts[sense] for sense in others):,})"] if others else []
    legend(figure, drawn, titles)
    of_all = "" if len(occurrences) == len(word.occurrences) else f" of {len(word.occurrences):,}"
    title = f"“{as_text(word.name)}”, {len(occurrences):,}{of_all} occurrences, by {as_text(system.name)}"
    figure.suptitle(title, fontsize=TITLE + 1)
    return figure


def legend(figure: Any, handles: Sequence[Any], titles: Sequence[str]) -> None:
    """What colours stand for, below the panels."""
    numbers = [str(number) for number in range(len(titles))]  # a title that begins with _ would be left out
    options = {"loc": "outside lower center", "ncols": min(3, len(titles)), "fontsize": LABEL}
    made = figure.legend(handles, numbers, **options)
    for text, title in zip(made.get_texts(), titles, strict=True):
        text.set_text(title)


def similarity(system: System, first: Sequence[str], second: Sequence[str]) -> Any:
    """Cosines of the words of two sentences, layer by layer, as heat maps on one scale."""
    for name, tokens in (("--first", first), ("--second", second)):
        if not 1 <= len(tokens) <= MOST_WORDS:
            raise InputError(f"{name} has {len(tokens)} tokens; give from 1 to {MOST_WORDS}, between spaces")
    vectors = system.embed([first, second])
    units = [unit(vectors.of(number)).swapaxes(0, 1) for number in (0, 1)]
    cosines = units[0] @ units[1].swapaxes(1, 2)  # [L, T, S]
    most = 3 if len(second) <= 9 else 2  # with room for the words below each panel
    columns = min(len(system.layers), most)
    rows = math.ceil(len(system.layers) / columns)
    cell = min(0.35, (9.6 / most - 1.1) / len(second))
    figure = figure_of(1.4 + (cell * len(first) + 1.3) * rows)
    panels = panels_in(figure, rows, columns, len(system.layers))
    low, high = float(cosines.min()), float(cosines.max())
    for axes, name, of_layer in zip(panels, system.layers, cosines, strict=True):
        image = axes.imshow(of_layer, cmap="viridis", vmin=low, vmax=max(high, low + 1e-6), aspect="equal")
        axes.set_title(as_text(name), fontsize=TITLE)
        axes.set_xticks(range(len(second)), [as_text(token, 12) for token in second], rotation=90, fontsize=SMALL)
        axes.set_yticks(range(len(first)), [as_text(token, 12) for token in first], fontsize=SMALL)
        if cell >= ROOM_FOR_VALUES:
            for (row, column), value in np.ndenumerate(of_layer):
                colour = "white" if value < (low + high) / 2 else "black"
                told = f"{value:.2f}".replace("0.", ".").replace("-.00", ".00")
                axes.text(column, row, told, ha="center", va="center", fontsize=VALUE, color=colour)
    options = {"location": "bottom", "shrink": 0.5, "aspect": 40}
    bar = figure.colorbar(image, ax=panels, **options)
    bar.set_label("cosine of the vectors", fontsize=LABEL)
    bar.ax.tick_params(labelsize=SMALL)
    figure.suptitle(f"words of one sentence (rows) and of another (columns), by {as_text(system.name)}", fontsize=TITLE)
    return figure


def read_results(path: str) -> list[Figure]:
    """The figures of a results.json that `elmo-jax evaluate` wrote, without those that have no value."""
    figures = read_json(path).get("figures")
    accepted = "give a results.json that elmo-jax evaluate wrote"
    if not isinstance(figures, list) or not figures:
        raise InputError(f"{path} has no figures; {accepted}")
    made = []
    for number, values in enumerate(figures, start=1):
        right = isinstance(values, dict) and values.keys() == set(Figure._fields)
        right = right and all(isinstance(values[name], str) for name in (*Figure._fields[:5], "over"))
        right = right and all(isinstance(values[name], int | float | None) for name in ("value", "low", "high"))
        if not right or not isinstance(values["details"], dict):
            raise InputError(f"{path}: figure {number} is {brief(repr(values))}; {accepted}")
        bounds = {name: math.nan if values[name] is None else values[name] for name in ("low", "high")}
        if values["value"] is not None:
            made.append(Figure(**(values | bounds)))
    return made


def is_layer(figure: Figure) -> bool:
    """Whether a figure is of one layer of a system."""
    return figure.vectors not in BESIDE_LAYERS


class Shares(NamedTuple):
    """What share each layer has in a learned mix: name of the task, of the system, layers, shares [repetitions, L]."""

    task: str
    system: str
    layers: tuple[str, ...]
    values: np.ndarray


def shares_of(figures: Sequence[Figure]) -> list[Shares]:
    """The learned mixes among figures; one of several metrics of a mix counts."""
    found: dict[tuple[str, str], Shares] = {}
    for figure in figures:
        if figure.vectors != MIX or MIX_SHARES not in figure.details:
            continue
        same = (figure.task, figure.data, figure.system)
        layers = tuple(dict.fromkeys(other.vectors for other in figures if other[:3] == same and is_layer(other)))
        values = np.atleast_2d(np.asarray(figure.details[MIX_SHARES], np.float64))
        task = figure.task if figure.data in ("", figure.task) else f"{figure.task}, {figure.data}"
        if values.ndim != 2 or values.shape[1] != len(layers):
            shape = " x ".join(map(str, values.shape))
            raise InputError(
                f"{task}: {figure.system} has shares {shape} in the mix, and figures of {len(layers)} layers"
            )
        found.setdefault((task, figure.system), Shares(task, figure.system, layers, values))
    return list(found.values())


def mixes(figures: Sequence[Figure]) -> Any:
    """Learned mix weights: a bar for each task and system, divided by the shares of the layers."""
    rows = shares_of(figures)
    if not rows:
        raise InputError("the results have no learned mixes; evaluate a task that learns one (sentiment, chunking, ..)")
    if len(rows) > MOST_BARS:
        raise InputError(f"the results have {len(rows)} learned mixes, more than {MOST_BARS}; name tasks with --tasks")
    names = list(dict.fromkeys(layer for row in rows for layer in row.layers))
    if len(names) > len(COLOURS):
        raise InputError(f"the results have {len(names)} different layers, more than {len(COLOURS)} colours")
    figure = figure_of(1.6 + 0.62 * len(rows))
    axes = figure.subplots()
    handles = {}
    for place, row in enumerate(rows):
        mean, begin = row.values.mean(0), 0.0
        deviation = row.values.std(0, ddof=1) if len(row.values) > 1 else np.full(len(mean), np.nan)
        for layer, share, spread in zip(row.layers, mean, deviation, strict=True):
            number = names.index(layer)
            style = {"color": COLOURS[number], "hatch": HATCHES[number], "edgecolor": "white", "linewidth": 1}
            (handles[layer],) = axes.barh(place, share, left=begin, height=0.62, **style)
            if share > ROOM_FOR_SHARE:
                told = f"{share:.0%}"
                if share > ROOM_FOR_SPREAD and not np.isnan(spread):
                    told += f" ± {100 * spread:.0f}"
                style = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
                axes.text(begin + share / 2, place, told, ha="center", va="center", fontsize=SMALL, bbox=style)
            begin += share
    labels = [f"{as_text(row.task)}\n{as_text(row.system)}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=SMALL)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.set_title("share of each layer in the learned mix (mean ± deviation of repetitions)", fontsize=TITLE)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    legend(figure, [handles[name] for name in names], [as_text(name) for name in names])
    return figure


class Panel(NamedTuple):
    """One task, data and metric: what layers, mixes and the like reach, and systems that have neither."""

    title: str
    metric: str
    figures: list[Figure]
    references: list[Figure]

    @property
    def places(self) -> dict[str, int]:
        """Where on the axis each layer is, in their order, and behind them mixes and the like."""
        names = sorted(dict.fromkeys(figure.vectors for figure in self.figures), key=lambda name: name in BESIDE_LAYERS)
        return {name: place for place, name in enumerate(names)}


def panels_of(figures: Sequence[Figure]) -> list[Panel]:
    """Those tasks, data and metrics for which a system has several layers.

    What has other vectors than those of such a system, the most frequent sense, say, is a reference; also where its
    metric is that of the panel without the way in which vectors were used ("accuracy" and "accuracy, linear probe").
    """
    groups: dict[tuple[str, str, str], list[Figure]] = {}
    for figure in figures:
        groups.setdefault((figure.task, figure.data, figure.metric), []).append(figure)
    panels = []
    for (task, data, metric), group in groups.items():
        counts = Counter(figure.system for figure in group if is_layer(figure))
        layers = {figure.vectors for figure in group if is_layer(figure) and counts[figure.system] > 1}
        if not layers:
            continue
        has_place = lambda figure, layers=layers: figure.vectors in layers or not is_layer(figure)
        general = groups.get((task, data, metric.partition(",")[0]), group)
        others = [figure for figure in (group if general is group else [*group, *general]) if not has_place(figure)]
        title = " · ".join(dict.fromkeys((task, data)))
        panels.append(Panel(title, metric, list(filter(has_place, group)), others))
    return panels


def probes(figures: Sequence[Figure]) -> Any:
    """What each layer of each system, its mix and the like reach, with intervals: a panel for each task and metric."""
    panels = panels_of(figures)
    if not panels:
        raise InputError("the results have no figures of several layers of a system")
    if len(panels) > MOST_PANELS:
        raise InputError(f"the results have {len(panels)} panels, more than {MOST_PANELS}; name tasks with --tasks")
    systems = list(dict.fromkeys(one.system for panel in panels for one in panel.figures))
    others = list(dict.fromkeys(one.system for panel in panels for one in panel.references))
    if len(systems) > len(COLOURS) or len(others) > len(DASHES):
        raise InputError(
            f"the results are of {len(systems)} systems and {len(others)} others without layers, more than "
            f"{len(COLOURS)} and {len(DASHES)}; evaluate fewer together"
        )
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = figure_of(0.8 + 3.6 * rows + 0.25 * math.ceil((len(systems) + len(others)) / 3))
    handles: dict[str, Any] = {}
    for axes, panel in zip(panels_in(figure, rows, columns, len(panels)), panels, strict=True):
        for number, name in enumerate(systems):
            shift = (number - (len(systems) - 1) / 2) * BESIDE_EACH_OTHER
            for of_layers in (True, False):
                points = [one for one in panel.figures if one.system == name and is_layer(one) == of_layers]
                style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 6, "capsize": 3}
                style |= {"linestyle": DASHES[number % len(DASHES)] if of_layers else "none", "linewidth": 1.5}
                if points:
                    handles.setdefault(name, drawn_points(axes, points, panel.places, shift, style))
        for one in panel.references:
            style = {"color": "#555555", "linestyle": DASHES[::-1][others.index(one.system)], "linewidth": 1.2}
            handles.setdefault(one.system, axes.axhline(one.value, **style))
        axes.set_title(as_text(panel.title, 60), fontsize=TITLE)
        axes.set_ylabel(as_text(panel.metric, 40), fontsize=LABEL)
        labels = [as_text(name, 16) for name in panel.places]
        turned = {"rotation": 90} if sum(map(len, labels)) > ROOM_FOR_LABELS / columns else {}
        axes.set_xticks(range(len(labels)), labels, fontsize=SMALL, **turned)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.tick_params(axis="y", labelsize=SMALL)
        axes.grid(alpha=0.3, axis="y")
    names = [*systems, *others]
    legend(figure, [handles[name] for name in names], [as_text(name) for name in names])
    return figure


def drawn_points(axes: Any, points: Sequence[Figure], places: dict[str, int], shift: float, style: dict) -> Any:
    """Values with their intervals, where they have one."""
    x = [places[one.vectors] + shift for one in points]
    below = np.nan_to_num([one.value - one.low for one in points])
    above = np.nan_to_num([one.high - one.value for one in points])
    return axes.errorbar(x, [one.value for one in points], yerr=np.maximum([below, above], 0), **style)


def of_tasks(figures: Sequence[Figure], tasks: Sequence[str]) -> list[Figure]:
    """Those of some tasks; of all where none are named."""
    known = list(dict.fromkeys(figure.task for figure in figures))
    if unknown := [task for task in tasks if task not in known]:
        raise InputError(f"the results have no task {brief(repr(unknown[0]))}, but {listed(known, ', ')}")
    return [figure for figure in figures if not tasks or figure.task in tasks]
