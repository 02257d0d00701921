"""What models know that were trained here: their training, the tasks, the pictures of docs/results.md.

python -m benchmarks.knowledge --data FOLDER

FOLDER has english/, portuguese/ (train-*, heldout.txt, vocab.txt) and tasks/. Killed, the same command goes on.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import tyro
from tqdm import tqdm

from benchmarks import tables
from benchmarks.systems import RESULTS, ROOT, command, elmo_jax, machine, save
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.tasks.formats import read_tagged
from elmo_jax.workdir import Workdir

PICTURES = ROOT / "docs" / "static" / "results"
# Lines of general text that perplexity is measured on, before and after adaptation.
GENERAL = 500


class Study(NamedTuple):
    """A language: the options of its training, and what is evaluated, by name.

    Paths begin with {data}, or with {domain}, where text of the domain lies that the model is adapted to: the tokens of
    `domain`, tagged sentences. The evaluation "adapted" takes the adapted model in place of the trained one.
    """

    train: str
    evaluations: Mapping[str, str]
    domain: str | None = None


STUDIES = {
    "english": Study(
        "--model.filters 1 32 2 32 3 64 4 128 5 256 6 512 --train.negatives 4096 --train.batch_size 64 "
        "--train.steps 9000 --train.decay_steps 9000 --train.warmup_steps 900 --train.precision bfloat16 "
        "--train.checkpoint_every 500 --train.eval_every 3000",
        {
            "frozen": "word-sense={data}/tasks/word_sense sentiment={data}/tasks/sentiment "
            "chunking={data}/tasks/chunking similarity={data}/english/heldout.txt --baselines untrained",
            "bias": "bias=configs/word_sets.json sentiment={data}/tasks/sentiment --debias configs/word_sets.json",
            "adaptation": "adaptation={domain}",
            "adapted": "chunking={data}/tasks/chunking",
            "fine-tuned": "sentiment={data}/tasks/sentiment chunking={data}/tasks/chunking --limit 400 --fine_tune",
        },
        "tasks/chunking",
    ),
    "portuguese": Study(
        "--train.batch_size 64 --train.steps 1000 --train.decay_steps 1000 --train.warmup_steps 100 "
        "--train.precision bfloat16 --train.checkpoint_every 250 --train.eval_every 250",
        {"frozen": "entities={data}/tasks/ner_spanish similarity={data}/portuguese/heldout.txt --baselines untrained"},
    ),
}


def write_domain(source: Path, general: Path, folder: Path) -> None:
    """Text to adapt to, from tagged sentences: train.txt, heldout.txt; general.txt from other text."""
    tagged = read_tagged(str(source))
    folder.mkdir(parents=True, exist_ok=True)
    for name, sentences in (("train", tagged.train), ("heldout", tagged.test)):
        (folder / f"{name}.txt").write_text("".join(" ".join(sentence.tokens) + "\n" for sentence in sentences))
    with open(general) as lines:
        (folder / "general.txt").write_text("".join(line for line, _ in zip(lines, range(GENERAL), strict=False)))


def run(name: str, study: Study, data: Path, folder: Path) -> dict:
    """Trains, evaluates and draws; returns what was measured."""
    workdir, text, domain = folder / name, data / name, folder / f"{name}-domain"
    options = ["--data.train", text / "train-*", "--data.heldout", text / "heldout.txt", "--data.vocab"]
    elmo_jax("train", "small_adam", "--workdir", workdir, *options, text / "vocab.txt", *study.train.split())
    if study.domain:
        write_domain(data / study.domain, text / "heldout.txt", domain)
    figures = {}
    for evaluation, asked in study.evaluations.items():
        output = folder / f"{name}-{evaluation}"
        model = adapted(folder / f"{name}-adaptation", folder) if evaluation == "adapted" else workdir
        parts = [part.format(data=data, domain=domain) for part in asked.split()]
        elmo_jax("evaluate", *parts, "--model", model, "--output", output)
        figures[evaluation] = json.loads((output / "results.json").read_text())["figures"]
    draw(name, data, folder)
    lines, measured = Workdir(workdir).lines(), "heldout_perplexity"
    return {
        "name": name,
        "options": study.train,
        measured: {line["step"]: line[measured] for line in lines if measured in line},
        "tokens_per_second": [line["tokens_per_second"] for line in lines if "tokens_per_second" in line][-1],
        "figures": figures,
    }


def adapted(evaluated: Path, folder: Path) -> Path:
    """The model that an evaluation has adapted, under a name that tables can have."""
    (model,) = (evaluated / "adapted").iterdir()
    shutil.copytree(model, folder / "adapted", dirs_exist_ok=True)
    return folder / "adapted"


def draw(name: str, data: Path, folder: Path) -> None:
    """The pictures of docs/results.md, from what was trained and evaluated."""
    pictures, results, model = PICTURES / name, folder / f"{name}-frozen" / "results.json", folder / name
    pictures.mkdir(parents=True, exist_ok=True)
    elmo_jax("curves", model, "--output", pictures / "curves.svg")
    if name != "english":
        return
    tasks = ["--tasks", "word sense", "sentiment", "chunking"]
    elmo_jax("draw", "probes", results, "--output", pictures / "probes.svg", *tasks)
    elmo_jax("draw", "mixes", results, "--output", pictures / "mixes.svg", *tasks)
    for word in ("line", "hard"):
        occurrences = data / "tasks" / "word_sense" / f"{word}.jsonl"
        elmo_jax("draw", "senses", "--model", model, "--data", occurrences, "--output", pictures / f"{word}.png")
    contexts = ["--first", "the bank of the river was steep .", "--second", "the bank lends money to the poor ."]
    elmo_jax("draw", "similarity", "--model", model, *contexts, "--output", pictures / "similarity.svg")


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
        result |= run(name, STUDIES[name], data.absolute(), folder.absolute())
        save(RESULTS / f"knowledge-{name}.json", result)
        print(tables.knowledge(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
