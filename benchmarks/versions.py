"""This checkout beside another one, in turn, in one run: embedding and training, both precisions.

git worktree add ../before COMMIT
python -m benchmarks.versions --text TEXT --other ../before
"""

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import tables
from benchmarks.embedding import write_random_model
from benchmarks.systems import ROOT, System, command, machine, python_of, result_path, save, spread
from benchmarks.training import worker_options, write_vocabulary
from elmo_jax.config import Config, Precision, load_config
from elmo_jax.corpus import WordCounts, sentences
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.sources import read_input
from elmo_jax.vocabulary import Vocabulary

WORKERS = {"embedding": "embed_with_elmo_jax.py", "training": "train_with_elmo_jax.py"}


def commit(root: Path) -> str:
    """The commit of a checkout, and whether it was changed since."""
    done = subprocess.run(
        ["git", "-C", root, "describe", "--always", "--dirty", "--exclude", "*"], capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def embedding_seconds(system: System, steps: int) -> float:
    """Seconds of embedding the whole text, the second of two passes: while the other ran, memory may have left."""
    system.ask("run")
    return system.ask("run")["seconds"]


def training_seconds(system: System, steps: int) -> float:
    """Seconds of a step: the median of so many after one that is not timed."""
    return float(np.median(system.ask("run", steps=steps + 1)["seconds"][1:]))


SECONDS = {"embedding": embedding_seconds, "training": training_seconds}


def worker_arguments(
    config: Config, text: str, folder: Path, vocabulary_size: int
) -> Callable[[str, Precision], tuple[str, ...]]:
    """What a worker of a task and a precision is started with; text.txt, model/ and vocabulary are in the folder."""
    training = {
        "options": worker_options(config) | {"n_tokens_vocab": vocabulary_size},
        "rows": config.train.batch_size,
        "window": config.train.window,
        "text": text,
        "vocab": str(folder / f"{vocabulary_size}.txt"),
        "clone": "",
    }
    return lambda task, precision: (
        (str(folder / "model"), str(folder / "text.txt"), precision)
        if task == "embedding"
        else (json.dumps(training | {"precision": precision}),)
    )


def compare(start: Callable[[Path], System], roots: list[Path], ask: Callable[[System], float], repeats: int) -> dict:
    """Seconds of both checkouts over the rounds, and their ratio in each; who begins alternates.

    `processor_ratio` is of the seconds that the processors worked: on a machine that is shared it varies less.
    """
    systems = [start(root) for root in roots]
    seconds, worked = np.zeros((2, repeats)), np.zeros((2, repeats))
    for system in systems:  # compiles
        ask(system)
    for number in range(repeats):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            before = systems[side].processor_seconds()
            seconds[side, number] = ask(systems[side])
            worked[side, number] = systems[side].processor_seconds() - before
    about = [system.ask("about") for system in systems]
    for system in systems:
        system.close()
    names = "seconds", "other_seconds", "ratio", "processor_ratio"
    measured = *seconds, seconds[1] / seconds[0], worked[1] / worked[0]
    spreads = {name: spread(values.tolist()) for name, values in zip(names, measured, strict=True)}
    return spreads | {"versions": about[0], "other_versions": about[1]}


def benchmark(
    text: str,
    other: Path,
    config: str = "small",
    precisions: tuple[Precision, ...] = ("float32", "bfloat16"),
    what: tuple[Literal["embedding", "training"], ...] = ("embedding", "training"),
    sentences_embedded: int | None = None,
    vocabulary_size: int = 79_347,
    rows: int = 128,
    steps: int = 5,
    repeats: int = 7,
    output: Path | None = None,
) -> None:
    """Measures seconds of embedding a text and of a training step: the other checkout's over this one's.

    Each checkout runs its own worker (benchmarks/workers) in this one's environment, with the same flags.

    Args:
        text: Text file, a sentence a line.
        other: Root of the other checkout.
        config: Size of the model, a named config or a path; its training settings are used too.
        precisions: Inputs of the matrix products.
        what: What to compare.
        sentences_embedded: Only the first so many of the text; by default all.
        vocabulary_size: Size of the softmax: the text's words and made-up ones.
        rows: Rows of sentences in training.
        steps: Steps that are timed in a round, after one that is not.
        repeats: Rounds; in each, both checkouts do the same once, after one that is not counted.
        output: JSON file to write; by default results/versions-CONFIG-DEVICE.json beside this module.
    """
    for script in WORKERS.values():
        if not (other / "benchmarks" / "workers" / script).exists():
            raise InputError(f"--other is {other}; give the root of a checkout, with its benchmarks/workers/{script}")
    chosen, roots = load_config(config), [ROOT, other.resolve()]
    chosen = replace(chosen, train=replace(chosen.train, batch_size=rows))
    lines = [tokens for tokens in read_input([text]) if tokens][:sentences_embedded]
    known = Vocabulary.from_counts(WordCounts(sentences((text,), "--text")))
    pairs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text("".join(" ".join(tokens) + "\n" for tokens in lines), encoding="utf-8")
        write_random_model(folder / "model", chosen.model)
        write_vocabulary(folder, known, vocabulary_size)
        asked = worker_arguments(chosen, text, folder, vocabulary_size)
        for task, precision in tqdm([(task, precision) for task in what for precision in precisions], "comparing"):
            start = lambda root, task=task, precision=precision: System(
                "elmo_jax", precision, python_of("elmo_jax"), WORKERS[task], *asked(task, precision), root=root
            )
            ask = functools.partial(SECONDS[task], steps=steps)
            pairs.append({"what": task, "precision": precision} | compare(start, roots, ask, repeats))
    result = {
        "benchmark": "versions",
        "command": command("versions"),
        "machine": machine(),
        "config": config,
        "this": commit(ROOT),
        "other": commit(roots[1]),
        "tokens": sum(map(len, lines)),
        "vocabulary_size": vocabulary_size,
        "rows": rows,
        "window": chosen.train.window,
        "steps": steps,
        "repeats": repeats,
        "pairs": pairs,
    }
    save(output or result_path("versions", config), result)
    print(tables.versions(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
