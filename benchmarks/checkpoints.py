"""How long training waits for a checkpoint, how long writing it takes meanwhile, and a run that is told to end.

python -m benchmarks.checkpoints --text TEXT --heldout TEXT
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tyro

from benchmarks import tables
from benchmarks.systems import ROOT, command, machine, result_path, save, spread
from benchmarks.training import write_vocabulary
from elmo_jax.config import load_config
from elmo_jax.corpus import WordCounts, sentences
from elmo_jax.errors import exit_on_bad_input
from elmo_jax.vocabulary import Vocabulary


class Training:
    """A run of train.py in a process of its own."""

    def __init__(self, workdir: Path, *options: str):
        self.metrics, self.checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
        self.seen = len(self.lines())
        arguments = [sys.executable, ROOT / "train.py", *options, "--workdir", workdir]
        self.process = subprocess.Popen(list(map(str, arguments)), cwd=ROOT)

    def lines(self) -> list[dict]:
        """What the run has measured so far."""
        return [json.loads(line) for line in self.metrics.read_text().splitlines()] if self.metrics.exists() else []

    def wait(self, condition: Callable[[list[dict]], bool]) -> None:
        """Waits until the lines that have come since the start are as they should be."""
        while not condition(self.lines()[self.seen :]):
            if self.process.poll() is not None:
                raise SystemExit(f"training ended with exit code {self.process.returncode}; what it said is above")
            time.sleep(0.05)

    def saved(self) -> int:
        """The step of the newest checkpoint that is whole: Orbax gives the folder its name then."""
        return max((int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit()), default=-1)

    def told_to_end(self) -> tuple[float, float]:
        """Seconds from SIGTERM until the last step's state was saved, and until the run had ended."""
        newest, saved = self.saved(), 0.0
        self.process.send_signal(signal.SIGTERM)
        told = time.perf_counter()
        while self.process.poll() is None:
            if newest != (newest := self.saved()):
                saved = time.perf_counter() - told
            time.sleep(0.05)
        if self.process.returncode != 128 + signal.SIGTERM:
            raise SystemExit(f"training ended with exit code {self.process.returncode}; what it said is above")
        return saved, time.perf_counter() - told


def of(name: str, lines: list[dict]) -> list[float]:
    return [line[name] for line in lines if name in line]


def benchmark(
    text: tuple[str, ...],
    heldout: str,
    config: str = "original",
    vocabulary_size: int = 793_471,
    steps: int = 8,
    every: int = 2,
    output: Path | None = None,
) -> None:
    """Trains with a checkpoint every few steps, then tells the run to end, within a step and within an evaluation.

    Args:
        text: Text files or globs to train on, a sentence a line.
        heldout: A text that takes long enough to measure perplexity on that the run is told to end meanwhile.
        config: Size of the model, a file in configs/ or a path.
        vocabulary_size: Words of the softmax; what the text lacks is made up.
        steps: Steps in all.
        every: Steps between checkpoints.
        output: JSON file to write; by default results/checkpoints-CONFIG-DEVICE.json.
    """
    chosen = load_config(config, ROOT / "configs")
    tokens = chosen.train.batch_size * chosen.train.window
    with tempfile.TemporaryDirectory() as folder:
        known = Vocabulary.from_counts(WordCounts(sentences(text, "--text")))
        write_vocabulary(Path(folder), known, vocabulary_size)
        options = [config, "--data.train", *text, "--data.vocab", str(Path(folder, f"{vocabulary_size}.txt"))]
        options += ["--data.cache", folder, "--train.log_every", "1", "--train.checkpoint_every"]
        workdir = Path(folder, "run")
        training = Training(workdir, *options, str(every), "--train.steps", str(steps))
        if training.process.wait():
            raise SystemExit("training failed; what it said is above")
        lines = training.lines()
        seconds = [tokens / speed for speed in of("tokens_per_second", lines)]
        after = 1 + seconds.index(max(seconds))  # the first step, which is compiled, is in the longest time
        # A long run, which is told to end within a step, and one that has just begun to measure.
        training = Training(workdir, *options, "1000", "--train.steps", "1000000")
        training.wait(lambda lines: len(of("loss", lines)) >= 2)
        in_training = training.told_to_end()
        measured = ["--data.heldout", heldout, "--train.eval_every", "1"]
        training = Training(Path(folder, "measured"), *options, "1000", "--train.steps", "1000000", *measured)
        training.wait(lambda lines: any(line["step"] == 1 for line in lines if "checkpoint_seconds" in line))
        time.sleep(1)
        in_evaluation = training.told_to_end()
        written = of("checkpoint_written_seconds", lines + training.lines())
    result = {
        "benchmark": "checkpoints",
        "command": command("checkpoints"),
        "machine": machine(),
        "config": config,
        "vocabulary_size": vocabulary_size,
        "every": every,
        "checkpoints": len(of("checkpoint_seconds", lines)),
        "seconds": {
            "pause": spread(of("checkpoint_seconds", lines)),
            "writing": spread(written),
            "step, on average": spread([sum(seconds[after:]) / (steps - after)]),
            "told to end within a step: until saved": spread([in_training[0]]),
            "told to end within a step: until ended": spread([in_training[1]]),
            "told to end within an evaluation: until saved": spread([in_evaluation[0]]),
            "told to end within an evaluation: until ended": spread([in_evaluation[1]]),
        },
    }
    save(output or result_path("checkpoints", config), result)
    print(tables.checkpoints(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp())
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
