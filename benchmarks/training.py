"""Trains on the same text with the same options by this project and by bilm-tf, in one run.

git clone https://github.com/allenai/bilm-tf
python -m benchmarks.training --text TEXT --peers bilm-tf --clone bilm-tf
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import operations, tables
from benchmarks.systems import System, available_memory, command, machine, python_of, result_path, save, spread
from elmo_jax.config import Config, ModelConfig, Precision, TrainConfig, load_config, to_options
from elmo_jax.corpus import WordCounts, sentences
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.vocabulary import Vocabulary

STEPS = 3
GB = 10**9
BASE = 11 * GB // 10


class Candidate(NamedTuple):
    """A system that is to be measured, with a vocabulary of so many words."""

    name: str
    precision: Precision
    vocabulary_size: int


def needed_memory(candidate: Candidate, model: ModelConfig, train: TrainConfig) -> int:
    """Bytes that a system needs at its peak, no less than what was measured (results/training-*.json).

    1.1 GB for libraries and text. The state is parameters and Adagrad's sums in float32, S. A step keeps about twelve
    numbers for each cell and six for each negative at every position, T. elmo_jax holds the state, the parameters
    that it began with and the softmax's table again when it begins; a quarter of the state and T more in a step.
    bilm-tf holds twice the state and 2T.
    """
    table = 4 * candidate.vocabulary_size * (model.projection_dim + 1)
    state = 2 * (4 * operations.parameters(model) + table)
    cells, positions = 2 * model.layers * model.cell_dim, train.batch_size * train.window
    step = 4 * operations.parameters(model) + 4 * positions * (12 * cells + 6 * train.negatives)
    if candidate.name == "elmo_jax":
        return BASE + max(state + state // 2 + table, state + state // 4 + step)
    return BASE + 2 * state + 2 * step


def visits(candidates: int, repeats: int, together: bool) -> list[tuple[list[int], int]]:
    """Which candidates are started together, and for how many rounds; each of the list is started anew.

    Those that do not fit together run one at a time, in one order and then in the reverse, half of the rounds each:
    what drifts evenly with time drifts for all of them.
    """
    if together:
        return [(list(range(candidates)), repeats)]
    order, half = list(range(candidates)), repeats - repeats // 2
    turns = [(order, half), (order[::-1], repeats - half)]
    return [([number], rounds) for order, rounds in turns for number in order if rounds]


def plan(candidates: list[Candidate], config: Config, available: int) -> dict[str, Any]:
    """Whether all are started together, and why: they must fit into nine tenths of the memory that is available."""
    needed = [needed_memory(candidate, config.model, config.train) for candidate in candidates]
    together = sum(needed) <= 0.9 * available
    estimates = ", ".join(
        f"{name} {precision} {amount / GB:.1f} GB"
        for (name, precision, _), amount in zip(candidates, needed, strict=True)
    )
    reason = f"{estimates} needed, {available / GB:.1f} GB available"
    print(f"{'all systems together' if together else 'one system at a time'}: {reason}")
    return {"together": together, "reason": reason, "needed_bytes": needed, "available_bytes": available}


class Measured:
    """What a candidate answered, over all its starts."""

    def __init__(self):
        self.begun, self.answers, self.memory = [], [], []
        self.peaks: list[float] = []  # of the machine, in the same rounds
        self.about: dict[str, Any] = {}
        self.words: list = []
        self.more: dict[str, Any] = {}

    def finish(self, system: System) -> None:
        """The last questions before a system is closed."""
        self.about = system.ask("about")
        self.memory.append(system.ask("memory"))
        if system.name == "elmo_jax":
            self.words = system.ask("words")
            self.more = {
                "input_tokens_per_second": system.ask("input_speed", steps=1000),
                **system.ask("split", repeats=3),
            }


@contextlib.contextmanager
def started(candidates: list[Candidate], arguments: dict[str, Any], folder: Path) -> Iterator[list[System]]:
    """Workers of the candidates, until they are closed; arguments: the JSON of the workers without what differs."""
    with contextlib.ExitStack() as stack:
        systems = []
        for name, precision, size in candidates:
            asked = arguments | {"options": arguments["options"] | {"n_tokens_vocab": size}}
            asked |= {"precision": precision, "vocab": str(folder / f"{size}.txt")}
            script = f"train_with_{name.replace('-', '_')}.py"
            systems.append(System(name, precision, python_of(name), script, json.dumps(asked)))
            stack.callback(systems[-1].close)
        yield systems


def worker_options(config: Config) -> dict[str, Any]:
    """options.json as bilm-tf trains with it, its training settings included."""
    train = config.train
    options = to_options(config.model, 0) | {
        "dropout": train.dropout,
        "all_clip_norm_val": train.clip_norm,
        "learning_rate": train.learning_rate,
        "n_negative_samples_batch": train.negatives,
        "batch_size": train.batch_size,
        "unroll_steps": train.window,
        "sample_softmax": True,
    }
    options["char_cnn"] |= {"n_characters": 261}  # as bilm-tf trains; 262 is for inference
    return options


def write_vocabulary(folder: Path, known: Vocabulary, size: int) -> None:
    """SIZE.txt: the text's words, and made-up ones up to the size."""
    made_up = (f"made-up-{number}" for number in range(size - len(known)))
    (folder / f"{size}.txt").write_text("".join(f"{word}\n" for word in [*known.words[:size], *made_up]), "utf-8")


def row_of(candidate: Candidate, measured: Measured, config: Config) -> dict[str, Any]:
    """A system's part of the result."""
    train = config.train
    positions = train.batch_size * train.window
    seconds = [second for answer in measured.answers for second in answer["seconds"][1:]]
    row = {
        "system": candidate.name,
        "precision": candidate.precision,
        "vocabulary_size": candidate.vocabulary_size,
        "versions": measured.about,
        "seconds": spread(seconds),
        "tokens_per_second": spread([positions / time for time in seconds]),
        "peak_memory_bytes": max(measured.memory),
        "first_losses": measured.begun[0]["losses"],
    }
    if candidate.name == "elmo_jax":
        useful = operations.of_training_step(config.model, positions, measured.words, train.negatives)
        peak, median = float(np.median(measured.peaks)), float(np.median(seconds))
        row |= {
            "peak_operations_per_second": peak,
            "share_of_peak": useful / median / peak,
            "share_waiting_for_input": sum(sum(answer["waited"][1:]) for answer in measured.answers) / sum(seconds),
            "compile_seconds": measured.begun[0]["seconds"][0] - median,
            "distinct_words": sum(count for _, count in measured.words),
            **measured.more,
        }
    return row


def measure(
    candidates: list[Candidate], arguments: dict[str, Any], folder: Path, repeats: int, together: bool
) -> list[Measured]:
    """Runs the rounds, with all systems started or one at a time."""
    measured = [Measured() for _ in candidates]
    products = {
        precision: System("matrix product", precision, python_of("elmo_jax"), "multiply_matrices.py", precision)
        for precision in dict.fromkeys(candidate.precision for candidate in candidates)
    }
    turns = visits(len(candidates), repeats, together)
    shown = tqdm(total=repeats * len(candidates), desc="rounds")
    for numbers, rounds in turns:
        with started([candidates[number] for number in numbers], arguments, folder) as systems:
            pairs = [(system, measured[number]) for system, number in zip(systems, numbers, strict=True)]
            for system, of_system in pairs:  # compiles
                of_system.begun.append(system.ask("run", steps=2))
            for _ in range(rounds):
                for system, of_system in pairs:
                    of_system.answers.append(system.ask("run", steps=STEPS))
                    of_system.peaks.append(products[system.precision].ask("run"))
                    shown.update()
            for system, of_system in pairs:
                of_system.finish(system)
    shown.close()
    for product in products.values():
        product.close()
    return measured


def benchmark(
    text: str,
    config: str = "original",
    peers: tuple[str, ...] = (),
    clone: Path | None = None,
    precisions: tuple[Precision, ...] = ("float32", "bfloat16"),
    vocabulary_sizes: tuple[int, ...] = (793_471,),
    rows: int = 128,
    window: int = 20,
    repeats: int = 5,
    output: Path | None = None,
) -> None:
    """Measures seconds a step, where they go, memory, and the input pipeline alone.

    Systems that do not fit into the memory together run one at a time, in one order and then in the reverse.

    Args:
        text: Text file, a sentence a line.
        config: Size of the model, a named config or a path; its training settings are used too.
        peers: What to compare with: bilm-tf (`make peers` installs its TensorFlow).
        clone: Folder with bilm-tf's code.
        precisions: Precisions of this project.
        vocabulary_sizes: Sizes of the softmax: the text's words and made-up ones. Peers take the first.
        rows: Rows of sentences.
        window: Positions of each row in a step.
        repeats: Rounds; in each, every system does three steps, of which the first is not timed: while the others
            ran, memory that it had freed may have left the machine.
        output: JSON file to write; by default results/training-CONFIG-DEVICE.json beside this module.
    """
    if "bilm-tf" in peers and not (clone and (clone / "bilm").is_dir()):
        raise InputError(f"--clone is {clone}; give a folder with bilm-tf's code (its folder bilm/)")
    chosen = load_config(config)
    chosen = Config(chosen.model, train=replace(chosen.train, batch_size=rows, window=window))
    candidates = [Candidate("elmo_jax", precision, size) for precision in precisions for size in vocabulary_sizes]
    candidates += [Candidate(peer, "float32", vocabulary_sizes[0]) for peer in peers]
    planned = plan(candidates, chosen, available_memory())
    known = Vocabulary.from_counts(WordCounts(sentences((text,), "--text")))
    arguments = {"options": worker_options(chosen), "rows": rows, "window": window, "text": text, "clone": str(clone)}
    arguments |= {"seed": 0}
    with tempfile.TemporaryDirectory() as folder:
        for size in vocabulary_sizes:
            write_vocabulary(Path(folder), known, size)
        measured = measure(candidates, arguments, Path(folder), repeats, planned["together"])
    words = measured[0].words
    result = {
        "benchmark": "training",
        "command": command("training"),
        "machine": machine(),
        "config": config,
        "rows": rows,
        "window": window,
        "negatives": chosen.train.negatives,
        "useful_operations": operations.of_training_step(chosen.model, rows * window, words, chosen.train.negatives),
        "repeats": repeats,
        "steps": STEPS - 1,
        "memory": planned,
        "systems": [row_of(*of_one, chosen) for of_one in zip(candidates, measured, strict=True)],
    }
    save(output or result_path("training", config), result)
    print(tables.training(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
