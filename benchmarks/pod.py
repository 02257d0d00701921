"""What each host of a pod does for a step and at a start, rehearsed on this machine, one host after the other.

python -m benchmarks.pod --text TEXT --hosts 32 --devices_per_host 8
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import tables
from benchmarks.systems import RESULTS, ROOT, command, machine, save, spread
from benchmarks.training import write_vocabulary
from elmo_jax import training
from elmo_jax.config import Config, load_config
from elmo_jax.corpus import Corpus, WordCounts, sentences
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.streams import LanguageModelStream, word_encoder
from elmo_jax.vocabulary import Vocabulary


class Host:
    """The input of one host among `hosts`, with the seconds of its parts."""

    def __init__(self, config: Config, corpus: Corpus, hosts: int, number: int, devices: int):
        train, own = config.train, config.train.batch_size * devices
        self.config, self.corpus, self.spelling = config, corpus, 0.0
        self.encode = word_encoder(corpus, config.model)
        self.stream = LanguageModelStream(
            corpus,
            own * hosts,
            train.window,
            self.timed_encode,
            devices=devices,
            own=range(number * own, (number + 1) * own),
            shuffle=True,
            seed=train.seed,
        )
        next(self.stream)

    def timed_encode(self, types: np.ndarray) -> np.ndarray:
        begun = time.perf_counter()
        words = self.encode(types)
        self.spelling += time.perf_counter() - begun
        return words

    def step(self, number: int) -> dict[str, float]:
        """Works out one step's input: seconds of each part, and bytes that go to the devices."""
        self.spelling, begun = 0.0, time.perf_counter()
        batch = next(self.stream)
        position = self.stream.position()
        laid_out = time.perf_counter()
        negatives = training.draw_negatives(self.config, len(self.corpus.vocabulary), number)
        drawn = time.perf_counter()
        return {
            "layout": laid_out - begun - self.spelling,
            "words": self.spelling,
            "negatives": drawn - laid_out,
            "all": drawn - begun,
            "bytes": sum(array.nbytes for array in jax.tree.leaves((batch, negatives, position))),
        }


def rehearse(config: Config, corpus: Corpus, hosts: int, devices: int, steps: int) -> list[dict]:
    """Steps of one host alone and of each host of a pod, in turn: the median of each part for both."""
    results: dict[int, list[dict[str, float]]] = {1: [], hosts: []}
    for number in tqdm(range(hosts), "hosts"):
        pair = {1: Host(config, corpus, 1, 0, devices), hosts: Host(config, corpus, hosts, number, devices)}
        for step in range(steps):
            for of, host in pair.items():
                results[of].append(host.step(step))
    rows = config.train.batch_size * devices
    return [
        {"hosts": of, "rows": of * rows} | {part: spread([found[part] for found in steps]) for part in steps[0]}
        for of, steps in results.items()
    ]


def repeat(source: Path, target: Path, tokens: int, in_source: int) -> None:
    """Writes a text over and over until there are so many tokens."""
    content = source.read_bytes()
    with target.open("wb") as file:
        for _ in tqdm(range(-(-tokens // in_source)), "writing the text", leave=False):
            file.write(content)


def start(config: str, vocabulary: Path, cache: Path, hosts: int, devices: int, text: Path) -> dict:
    """A start in a process of its own, on one core."""
    worker = ROOT / "benchmarks" / "workers" / "start_with_elmo_jax.py"
    arguments = [config, vocabulary, cache, hosts, devices, text]
    done = subprocess.run(
        ["taskset", "--cpu-list", "0", sys.executable, worker, *map(str, arguments)],
        stdout=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def benchmark(
    text: tuple[str, ...],
    config: str = "original",
    hosts: int = 32,
    devices_per_host: int = 8,
    vocabulary_size: int = 793_471,
    steps: int = 5,
    tokens: int = 1_000_000_000,
    output: Path | None = None,
) -> None:
    """Rehearses the host side of a pod: a step's input on one core, and starts with and without the cache of the text.

    Args:
        text: Text files or globs, a sentence a line; for the starts it is repeated.
        config: Size of the model and rows of a device, a file in configs/ or a path.
        hosts: Hosts of the pod; the rehearsal goes through all, and sets each beside a host that is alone.
        devices_per_host: Devices of each.
        vocabulary_size: Words of the softmax; what the text lacks is made up.
        steps: Steps of each host.
        tokens: Tokens of the text that the starts read, in a temporary folder (6 GB of text and 6 GB of cache for the
            default); 0: no starts.
        output: JSON file to write; by default results/pod-CONFIG.json.
    """
    if hosts < 2:
        raise InputError(f"hosts is {hosts}; a pod has 2 or more, each is set beside one that is alone")
    jax.config.update("jax_platforms", "cpu")
    chosen = load_config(config, ROOT / "configs")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "text.txt")
        with source.open("w", encoding="utf-8") as file:
            for words in sentences(text, "--text"):
                file.write(" ".join(words) + "\n")
        again = lambda: sentences((str(source),), "--text")
        write_vocabulary(Path(folder), Vocabulary.from_counts(WordCounts(again())), vocabulary_size)
        vocabulary = Path(folder, f"{vocabulary_size}.txt")
        corpus = Corpus(again(), Vocabulary.load(vocabulary))
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        rehearsed = rehearse(chosen, corpus, hosts, devices_per_host, steps)
        os.sched_setaffinity(0, allowed)
        starts = {}
        if tokens:
            repeated = Path(folder, "repeated.txt")
            repeat(source, repeated, tokens, corpus.tokens)
            arguments = config, vocabulary, Path(folder, "cache"), hosts, devices_per_host, repeated
            starts = {"without the cache": start(*arguments), "with the cache": start(*arguments)}
    result = {
        "benchmark": "pod",
        "command": command("pod"),
        "machine": machine(),
        "config": config,
        "devices_per_host": devices_per_host,
        "rows_per_device": chosen.train.batch_size,
        "window": chosen.train.window,
        "vocabulary_size": vocabulary_size,
        "steps": steps,
        "hosts": rehearsed,
        "starts": starts,
    }
    save(output or RESULTS / f"pod-{config}.json", result)
    print(tables.pod(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
