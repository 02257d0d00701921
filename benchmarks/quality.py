"""How well models predict held-out text after the same training by this project and by bilm-tf.

git clone https://github.com/allenai/bilm-tf
python -m benchmarks.quality --text TEXT --heldout TEXT --vocab VOCAB --clone bilm-tf

Same text, options, rows and steps; the runs one after the other. The softmax is full: after few steps with the
sampled one the perplexity of both depends on luck (docs/training.md, "Where the state begins"). What bilm-tf saved is
converted, and both are measured by `elmo-jax perplexity`. Killed, the same command goes on after the last whole run.
"""

import json
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import tables
from benchmarks.systems import ROOT, System, command, elmo_jax, machine, python_of, result_path, save
from benchmarks.training import worker_options, write_vocabulary
from elmo_jax.config import Config, load_config
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.vocabulary import Vocabulary

# Steps that bilm-tf is asked for at a time, so that progress shows.
STEPS_TOGETHER = 20


def train_bilm_tf(asked: dict, steps: int, vocab: Path, workdir: Path) -> None:
    """Trains by bilm-tf; its checkpoint becomes a workdir."""
    system = System("bilm-tf", "float32", python_of("bilm-tf"), "train_with_bilm_tf.py", json.dumps(asked))
    for begun in tqdm(
        range(0, steps, STEPS_TOGETHER), f"bilm-tf, seed {asked['seed']}", unit=f" {STEPS_TOGETHER} steps"
    ):
        system.ask("run", steps=min(STEPS_TOGETHER, steps - begun))
    saved = workdir.with_name(f"{workdir.name}-saved")
    system.ask("save", folder=str(saved))
    system.close()
    shutil.rmtree(workdir, ignore_errors=True)
    elmo_jax("convert", saved, workdir, "--vocab", vocab)
    shutil.rmtree(saved)


def train_elmo_jax(asked: dict, config: str, steps: int, vocab: Path, workdir: Path) -> None:
    """Trains by this project."""
    options = ["--data.train", asked["text"], "--data.vocab", vocab, "--train.softmax", "full"]
    options += ["--train.steps", steps, "--train.seed", asked["seed"]]
    options += ["--train.batch_size", asked["rows"], "--train.window", asked["window"]]
    elmo_jax("train", config, "--workdir", workdir, *options)


def perplexities(workdir: Path, heldout: str) -> dict[str, float]:
    """Of a model, as the command prints them."""
    printed = elmo_jax("perplexity", "--model", workdir, "--input", heldout)
    found = re.match(r"perplexity ([\d.]+) \(forward ([\d.]+), backward ([\d.]+)\)", printed)
    return dict(zip(("both", "forward", "backward"), map(float, found.groups()), strict=True))


def benchmark(
    text: str,
    heldout: str,
    vocab: Path,
    clone: Path,
    config: str = "tiny",
    words: int = 8000,
    rows: int = 32,
    steps: int = 1000,
    seeds: tuple[int, ...] = (0, 1, 2),
    folder: Path = ROOT / "runs" / "quality",
    output: Path | None = None,
) -> None:
    """Trains both with each seed, and compares the held-out perplexities.

    Args:
        text: Text files or glob to train on, a sentence a line.
        heldout: Text to measure.
        vocab: Vocabulary of both, of which the first `words` are kept.
        clone: Folder with bilm-tf's code (`make peers` installs its TensorFlow).
        config: Size of the model, a file in configs/ or a path; its training settings are used too.
        words: Size of the vocabulary.
        rows: Rows of sentences.
        steps: Steps of each run.
        seeds: Of initial values and order, which differ between the two.
        folder: Where the workdirs lie.
        output: JSON file to write; by default results/quality-CONFIG-DEVICE.json beside this module.
    """
    if not (clone / "bilm").is_dir():
        raise InputError(f"--clone is {clone}; give a folder with bilm-tf's code (its folder bilm/)")
    chosen = load_config(config)
    chosen = Config(chosen.model, train=replace(chosen.train, batch_size=rows))
    if chosen.train.optimizer != "adagrad" or chosen.train.state_reset:
        raise InputError(f"config {config} trains as bilm-tf cannot; give one that trains as published")
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    known, vocab = Vocabulary.load(vocab), folder / f"{words}.txt"
    write_vocabulary(folder, known, words)
    options = worker_options(chosen) | {"n_tokens_vocab": words, "sample_softmax": False}
    asked = {"options": options, "rows": rows, "window": chosen.train.window, "text": str(Path(text).absolute())}
    asked |= {"clone": str(clone.absolute()), "vocab": str(vocab)}
    runs = []
    for seed in seeds:
        for system in ("bilm-tf", "elmo_jax"):
            workdir = folder / f"{system}-{config}-{words}-{rows}x{steps}-{seed}"
            measured, begun = workdir.with_suffix(".json"), time.perf_counter()
            if not measured.exists():
                if system == "bilm-tf":
                    train_bilm_tf(asked | {"seed": seed}, steps, vocab, workdir)
                else:
                    train_elmo_jax(asked | {"seed": seed}, config, steps, vocab, workdir)
                seconds = time.perf_counter() - begun
                run = {"system": system, "seed": seed, "seconds": seconds}
                run["heldout_perplexity"] = perplexities(workdir, heldout)
                measured.write_text(json.dumps(run))
            runs.append(json.loads(measured.read_text()))
    mean = {
        system: float(np.mean([run["heldout_perplexity"]["both"] for run in runs if run["system"] == system]))
        for system in ("bilm-tf", "elmo_jax")
    }
    result = {
        "benchmark": "quality",
        "command": command("quality"),
        "machine": machine(),
        "config": config,
        "words": words,
        "rows": rows,
        "window": chosen.train.window,
        "steps": steps,
        "mean": mean,
        "ratio": mean["elmo_jax"] / mean["bilm-tf"],
        "runs": runs,
    }
    save(output or result_path("quality", config), result)
    print(tables.quality(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
