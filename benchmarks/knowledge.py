"""What models know that were trained here: their training, the tasks, the pictures of docs/results.md.

python -m benchmarks.knowledge --data FOLDER

FOLDER has english/, portuguese/ (train-*, heldout.txt, vocab.txt) and tasks/. Killed, the same command goes on.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import tyro
from tqdm import tqdm

from benchmarks import tables
from benchmarks.systems import RESULTS, ROOT, command, machine, save
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.workdir import Workdir

PICTURES = ROOT / "docs" / "static" / "results"


class Study(NamedTuple):
    """A language: the options of its training, tasks by name with their data, and those of which pictures are drawn."""

    train: str
    tasks: Mapping[str, str]


STUDIES = {
    "english": Study(
        "--train.batch_size 64 --train.steps 12000 --train.decay_steps 12000 --train.warmup_steps 1000 "
        "--train.precision bfloat16 --train.checkpoint_every 500 --train.eval_every 1500",
        {
            "word-sense": "tasks/word_sense",
            "sentiment": "tasks/sentiment",
            "chunking": "tasks/chunking",
            "similarity": "english/heldout.txt",
        },
    ),
    "portuguese": Study(
        "--train.batch_size 64 --train.steps 4000 --train.decay_steps 4000 --train.warmup_steps 400 "
        "--train.precision bfloat16 --train.checkpoint_every 500 --train.eval_every 1000",
        {"entities": "tasks/ner_spanish", "similarity": "portuguese/heldout.txt"},
    ),
}


def elmo_jax(*arguments: str | Path) -> None:
    """Runs a command of this project."""
    subprocess.run([sys.executable, "-m", "elmo_jax", *map(str, arguments)], cwd=ROOT, check=True)


def run(name: str, study: Study, data: Path, folder: Path) -> dict:
    """Trains, evaluates and draws; returns what was measured."""
    workdir, evaluated = folder / name, folder / f"{name}-tasks"
    text = data / name
    options = ["--data.train", text / "train-*", "--data.heldout", text / "heldout.txt", "--data.vocab"]
    elmo_jax("train", "small_adam", "--workdir", workdir, *options, text / "vocab.txt", *study.train.split())
    tasks = [f"{task}={data / path}" for task, path in study.tasks.items()]
    elmo_jax("evaluate", *tasks, "--model", workdir, "--baselines", "untrained", "--output", evaluated)
    pictures = PICTURES / name
    pictures.mkdir(parents=True, exist_ok=True)
    elmo_jax("curves", workdir, "--output", pictures / "curves.svg")
    elmo_jax("draw", "probes", evaluated / "results.json", "--output", pictures / "probes.svg")
    elmo_jax("draw", "mixes", evaluated / "results.json", "--output", pictures / "mixes.svg")
    for file in sorted((data / study.tasks.get("word-sense", "nowhere")).glob("*.jsonl")):
        elmo_jax("draw", "senses", "--model", workdir, "--data", file, "--output", pictures / f"{file.stem}.png")
    lines, measured = Workdir(workdir).lines(), "heldout_perplexity"
    return {
        "name": name,
        "options": study.train,
        measured: {line["step"]: line[measured] for line in lines if measured in line},
        "tokens_per_second": [line["tokens_per_second"] for line in lines if "tokens_per_second" in line][-1],
        "figures": json.loads((evaluated / "results.json").read_text())["figures"],
    }


def benchmark(
    data: Path, studies: tuple[str, ...] = tuple(STUDIES), folder: Path = ROOT / "runs" / "knowledge"
) -> None:
    """Trains a model of each language, measures what it knows, and draws it.

    Args:
        data: Folder with english/, portuguese/ and tasks/.
        studies: Which languages.
        folder: Where the workdirs lie.
    """
    if unknown := [name for name in studies if name not in STUDIES]:
        raise InputError(f"there is no study {unknown[0]!r}; give some of {', '.join(STUDIES)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in tqdm(studies, "studies"):
        result = {"benchmark": "knowledge", "command": command("knowledge"), "machine": machine()}
        result |= run(name, STUDIES[name], data.absolute(), folder)
        save(RESULTS / f"knowledge-{name}.json", result)
        print(tables.knowledge(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
