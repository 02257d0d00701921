"""Domain adaptation: perplexity before and after a model was trained on in-domain text, and the model that comes of it.

The adapted model is kept, so that every other task can be run on it beside the one that it was.
"""

import contextlib
import functools
import itertools
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from elmo_jax.errors import InputError, needing
from elmo_jax.files import as_path, writing
from elmo_jax.published import read_any
from elmo_jax.scores import score
from elmo_jax.tasks.evaluate import Options, Piece
from elmo_jax.tasks.formats import Text, digest, files_in, read_text, stem
from elmo_jax.tasks.report import Figure, resampled
from elmo_jax.tasks.systems import System
from elmo_jax.weights import ModelFolder

# How a model is adapted: so many steps of so many rows of a window of tokens; what is kept is the best by a part of
# the training text, measured every so many steps. The optimiser and its learning rate are the published models'.
STEPS, ROWS, WINDOW, MEASURED_EVERY = 1000, 8, 20, 100
# Of the training text every tenth sentence is held out to choose by, so many at most.
HELD_OUT, MOST_HELD_OUT = 10, 300
# Words from which on the softmax is sampled, and how many of them are.
FULL_SOFTMAX = 8192
LOG_PERPLEXITY_LIMIT = 700  # beyond it exp is infinite


class Texts(NamedTuple):
    """In-domain text to train on and to choose by; what perplexity is measured on, by name."""

    name: str
    train: list[list[str]]
    chosen_by: list[list[str]]
    measured: dict[str, list[list[str]]]
    digest: str


def read_texts(path: str, limit: int | None = None) -> Texts:
    """A folder with train.txt and heldout.txt, in-domain text, and perhaps general.txt, other text."""
    folder = as_path(path)
    if not folder.is_dir():
        raise InputError(f"{path} is no folder; adaptation takes one with train.txt, heldout.txt, perhaps general.txt")
    found: dict[str, Text] = {}
    for name in ("train", "heldout", "general"):
        files = [file for file in files_in(folder, (".txt",)) if stem(file) == name]
        if len(files) > 1 or (not files and name != "general"):
            raise InputError(
                f"{path} has {len(files) or 'no'} file{'s' * (len(files) > 1)} {name}.txt; adaptation takes train.txt "
                "and heldout.txt, in-domain text, and perhaps general.txt, other text to measure"
            )
        if files:
            found[name] = read_text(files[0])
    train = found["train"].sentences[:limit]
    if len(train) < 2:
        raise InputError(f"{path}: train.txt has {len(train)} sentence; it must have two or more, to train and choose")
    held_out = set(range(0, len(train), HELD_OUT)[:MOST_HELD_OUT])
    return Texts(
        stem(path),
        [sentence for number, sentence in enumerate(train) if number not in held_out],
        [train[number] for number in sorted(held_out)],
        {name: text.sentences[:limit] for name, text in found.items() if name != "train"},
        digest(*(text.digest.encode() for text in found.values())),
    )


def source_of(system: System) -> str | None:
    """Where a system's model with its softmax is; None of baselines and of models that are in no place."""
    return None if system.elmo is None else system.elmo._source.get("model")


def pieces(path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """Of a folder of texts (`read_texts`), each model that has a softmax; baselines have none and are passed over."""
    with needing("train"):
        from elmo_jax.evaluation import check_scoring
    texts = read_texts(path, options.limit)
    if not options.output:
        raise InputError("adaptation keeps the adapted models in the folder of the output; give one")
    sources = {system.name: source for system in systems if (source := source_of(system)) is not None}
    if not sources:
        raise InputError("adaptation trains models that were given by --model; there is none")
    for name, source in sources.items():
        check_scoring(read_any(source, with_softmax=True), name)

    def piece(system: System) -> Piece:
        decides = {"task": "adaptation", "data": [texts.name, texts.digest], "limit": options.limit}
        decides |= {"system": [system.name, system.identity], "steps": STEPS, "rows": ROWS}
        called = "-".join(re.sub(r"[^\w.]+", "_", name).strip("_.") for name in (texts.name, system.name))
        folder = as_path(options.output) / "adapted" / f"{called}-{digest(repr(decides).encode())[:8]}"
        of_system = functools.partial(figures, texts, system.name, sources[system.name], folder)
        return Piece(f"adaptation: {texts.name}, {system.name}", decides, of_system)

    return [piece(system) for system in systems if system.name in sources]


def perplexity(losses: np.ndarray, counts: np.ndarray) -> float:
    """Of sentences with these sums of losses and numbers of predictions."""
    return math.exp(min(losses.sum() / counts.sum(), LOG_PERPLEXITY_LIMIT))


def figures(texts: Texts, name: str, source: str, folder: epath.Path) -> list[Figure]:
    """Perplexity of every text, both directions, each sentence by itself, before and after adaptation."""
    model = read_any(source, with_softmax=True)
    before = measure(texts, name, model, {"steps": 0})
    adapt(texts, source, len(model.vocabulary or ()), folder)
    about = {"steps": STEPS, "tokens of a step": ROWS * WINDOW, "model": f"{folder.parent.name}/{folder.name}"}
    return before + measure(texts, f"{name}, adapted", read_any(folder, with_softmax=True), about)


def measure(texts: Texts, name: str, model: ModelFolder, details: Mapping[str, Any]) -> list[Figure]:
    """Perplexity of every text, with an interval by resampling its sentences."""
    found = []
    scores = score(model, itertools.chain(*texts.measured.values()))  # all at once, by programs compiled once
    for text, sentences in texts.measured.items():
        scored = list(itertools.islice(scores, len(sentences)))
        losses = np.array([-one.both.sum(dtype=np.float64) for one in scored])
        counts = np.array([len(one.both) for one in scored])
        unknown = sum(len(one.unknown) for one in scored) / sum(len(one.tokens) for one in scored)
        interval = resampled(perplexity, losses, counts)
        over = f"{len(scored):,} sentences (bootstrap), {unknown:.1%} <UNK>"
        figure = functools.partial(Figure, "adaptation", f"{texts.name}, {text}", name, "softmax", "perplexity")
        found.append(figure(*interval, over, {**details, "unknown": unknown}))
    return found


def adapt(texts: Texts, source: str, words: int, folder: epath.Path) -> None:
    """Trains a model with a vocabulary of so many words into a model folder; what was stopped goes on."""
    if (folder / "options.json").exists():
        return
    with needing("train"):
        from elmo_jax import pretraining
    run = folder.with_name(f"{folder.name}.run")
    for name, sentences in (("train", texts.train), ("dev", texts.chosen_by)):
        with writing(run / f"{name}.txt") as partial:
            partial.write_text("".join(" ".join(sentence) + "\n" for sentence in sentences), encoding="utf-8")
    options: dict[str, object] = {
        "workdir": run / "workdir",
        "init": source,
        "data.train": run / "train.txt",
        "data.heldout": run / "dev.txt",
        "data.cache": run / "cache",
        "train.steps": STEPS,
        "train.batch_size": ROWS,
        "train.window": WINDOW,
        "train.eval_every": MEASURED_EVERY,
        "train.checkpoint_every": MEASURED_EVERY,
    }
    options |= {"train.softmax": "full"} if words <= FULL_SOFTMAX else {"train.negatives": FULL_SOFTMAX}
    argv = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    with contextlib.redirect_stdout(sys.stderr):  # what it says of its progress
        pretraining.run(pretraining.parse(["original", *argv]))
    (run / "workdir" / "model").rename(folder)
    run.rmtree()
