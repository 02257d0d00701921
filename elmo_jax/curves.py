"""Training runs side by side in a picture: what their metrics.jsonl say of every step."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from elmo_jax.errors import InputError, needing
from elmo_jax.files import as_path, check_output, writing
from elmo_jax.workdir import Workdir

# Colours that the colour-blind tell apart (Okabe and Ito), and lines that differ in print without colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dashed", "dashdot", "dotted")
# Points of a line at most: more are averaged.
MOST_POINTS = 200
PANELS = {
    "heldout_perplexity": "held-out perplexity",
    "loss": "training perplexity (of its loss)",
    "gradient_norm": "norm of the gradient",
    "tokens_per_second": "tokens a second",
}


def points(lines: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one field, averaged over neighbours where there are more than MOST_POINTS; of losses exp."""
    pairs = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
    parts = np.array_split(np.array(pairs, np.float64).reshape(-1, 2), max(1, min(len(pairs), MOST_POINTS)))
    steps, values = np.array([part.mean(0) for part in parts if len(part)]).reshape(-1, 2).T
    return steps, np.exp(np.minimum(values, 700)) if name == "loss" else values


def labels(workdirs: Sequence[str]) -> list[str]:
    """Names of the folders, or where they are the same the paths."""
    names = [as_path(workdir).name for workdir in workdirs]
    return names if len(set(names)) == len(names) else list(workdirs)


def read_runs(workdirs: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The lines of each run's metrics.jsonl by its label."""
    if not workdirs:
        raise InputError("which runs? Give elmo-jax curves WORKDIR... --output FILE.png")
    runs = {}
    for label, workdir in zip(labels(workdirs), workdirs, strict=True):
        lines = Workdir(as_path(workdir)).lines()
        if not any(name in line for line in lines for name in PANELS):
            raise InputError(f"{workdir} has no metrics.jsonl with steps; give the workdirs of training runs")
        runs[label] = lines
    return runs


def check_picture(output: epath.Path, *inputs: str) -> None:
    """Refuses, before any work, what cannot be written as a picture."""
    if output.suffix not in (".png", ".svg"):
        raise InputError(f"--output is {output}; give a file that ends in .png or .svg")
    check_output(output, *inputs)


def save(figure: Any, output: epath.Path) -> None:
    """Writes a figure of matplotlib; drawn again, an .svg has the same bytes."""
    import matplotlib

    with writing(output) as partial, matplotlib.rc_context({"svg.hashsalt": "elmo_jax"}):
        metadata = {"Date": None} if output.suffix == ".svg" else None
        figure.savefig(partial, format=output.suffix[1:], metadata=metadata)


def draw(workdirs: Sequence[str], output: epath.Path) -> None:
    """Draws the runs into a .png, 1000 pixels wide, or .svg."""
    check_picture(output)
    runs = read_runs(workdirs)
    with needing("plot"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    legend_rows = math.ceil(len(runs) / 3)
    figure = Figure(figsize=(10, 7.5 + 0.25 * legend_rows), dpi=100, layout="constrained")
    lines = {}
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for number, (label, of_run) in enumerate(runs.items()):
            steps, values = points(of_run, name)
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
            marker = "o" if name == "heldout_perplexity" else None
            (lines[label],) = axes.plot(steps, values, label=label, marker=marker, markersize=4, **style)
        axes.set_title(title, fontsize=13)
        axes.set_xlabel("step", fontsize=12)
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.3, which="both")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if name != "tokens_per_second":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=min(3, len(runs)), fontsize=12)
    save(figure, output)
