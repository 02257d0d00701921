"""What a training step costs as it grows, counted from compiled programs, and what that predicts for larger machines.

python -m benchmarks.scaling --text TEXT
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import operations, tables
from benchmarks.systems import RESULTS, ROOT, command, machine, save
from elmo_jax import training
from elmo_jax.compilation import keep_compiled
from elmo_jax.config import Config, load_config
from elmo_jax.corpus import Corpus, WordCounts, sentences
from elmo_jax.errors import exit_on_bad_input
from elmo_jax.model import zero_state
from elmo_jax.modules import init_bilm
from elmo_jax.softmax_table import table_size
from elmo_jax.streams import LanguageModelStream, word_encoder
from elmo_jax.vocabulary import Vocabulary

POD = "pod-original.json"  # the result of `benchmarks.pod` that has what a host does for a step


@dataclass(frozen=True)
class Target:
    """A machine: what its compiler says of a step, and by its makers' figures and prices the rest.

    `account` is a result of `benchmarks.compiled`, `hosts` how many hosts its devices have; of each device the bytes a
    second that it sends over the network in one direction.
    """

    name: str
    account: str
    devices: int
    hosts: int
    network_bytes_per_second: float
    dollars_per_device_hour: float


def count(config: Config, corpus: Corpus, vocabulary_size: int, devices: int) -> dict[str, int]:
    """Operations and bytes of a step of one device, from the shapes alone: nothing is run."""
    model, train = config.model, config.train
    everyones = train.batch_size * devices
    encode = word_encoder(corpus, model)
    stream = LanguageModelStream(corpus, everyones, train.window, encode, devices=devices, shuffle=True)
    for _ in range(3):  # in the first windows the rows begin together
        batch = next(stream)
    words = operations.words_of(batch)
    part = table_size(vocabulary_size, everyones) // devices
    array = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    softmax = {"weight": array(devices, part, model.projection_dim), "bias": array(devices, part)}
    bilm = jax.eval_shape(lambda: init_bilm(jax.random.key(0), model))
    state = jax.eval_shape(training.init_state, {"bilm": bilm, "softmax": softmax})
    lstm_state = jax.tree.map(lambda array: np.stack([array] * devices), zero_state(model, train.batch_size))
    negatives = training.draw_negatives(config, vocabulary_size, 1)
    rows = np.arange(everyones, dtype=np.int32).reshape(devices, -1)
    step = training.step_on_devices(config)
    compiled = step.lower(state, lstm_state, batch, rows, negatives).compile()
    memory = compiled.memory_analysis()
    tokens = train.batch_size * train.window
    return {
        "vocabulary_size": vocabulary_size,
        "rows": train.batch_size,
        "window": train.window,
        "devices": devices,
        "precision": train.precision,
        "distinct_words": sum(number for _, number in words) // devices,
        "operations": operations.of_training_step(model, tokens * devices, words, train.negatives) // devices,
        "exchanged": dict(operations.exchanged(compiled.as_text())),
        "state_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


# What a ring of n devices sends from each to the next for a byte of a collective's result.
RING = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
}


def predict(target: Target, pod: dict) -> dict:
    """Seconds of each part of a step, from the compiler's account of it and the rehearsal of its hosts' work."""
    account = json.loads((RESULTS / target.account).read_text())
    step = next(row for row in account["programs"] if row["program"] == "training step")
    host = next(row for row in pod["hosts"] if row["hosts"] == target.hosts)
    sent = sum(RING[name](target.devices) * size for name, size in step["exchanged"].items())
    return {
        "name": target.name,
        "devices": target.devices,
        "account": target.account,
        "tokens_per_step": target.devices * step["rows"] * step["window"],
        "cycles": step["cycles"],
        "hertz": account["chip"]["hertz"],
        "share_of_peak": step["share_of_peak"],
        "exchanged": step["exchanged"],
        "sent_bytes": sent,
        "network_bytes_per_second": target.network_bytes_per_second,
        "device_seconds": step["cycles"] / account["chip"]["hertz"],
        "network_seconds": sent / target.network_bytes_per_second,
        "input_seconds": host["all"]["median"],
        "dollars_per_device_hour": target.dollars_per_device_hour,
    }


def benchmark(
    text: tuple[str, ...],
    config: str = "original",
    vocabulary_size: int = 793_471,
    devices: tuple[int, ...] = (1, 2, 4, 8),
    tpu_price: float = 1.20,
    output: Path = RESULTS / "scaling.json",
) -> None:
    """Counts a step's operations and bytes against vocabulary, rows, window and devices, and predicts larger machines.

    Args:
        text: Text files or globs, a sentence a line: how many distinct words a window has depends on it.
        config: Size of the model, a file in configs/ or a path.
        vocabulary_size: Words of the softmax.
        devices: Numbers of devices, from 1 up.
        tpu_price: Dollars a TPU v5e chip costs in an hour; put in yours.
        output: JSON file to write.
    """
    jax.config.update("jax_num_cpu_devices", max(devices))
    jax.config.update("jax_platforms", "cpu")
    keep_compiled()
    chosen = load_config(config, ROOT / "configs")
    chosen = replace(chosen, train=replace(chosen.train, precision="bfloat16"))
    corpus = Corpus(sentences(text, "--text"), Vocabulary.from_counts(WordCounts(sentences(text, "--text"))))
    base = chosen.train
    cases = [(vocabulary_size, base.batch_size, base.window, number) for number in devices]
    cases += [(vocabulary_size // 10, base.batch_size, base.window, number) for number in devices[:2]]
    cases += [(vocabulary_size, rows, base.window, 1) for rows in (base.batch_size // 2, base.batch_size * 2)]
    cases += [(vocabulary_size, base.batch_size, window, 1) for window in (base.window // 2, base.window * 2)]
    counted = [
        count(replace(chosen, train=replace(base, batch_size=rows, window=window)), corpus, size, number)
        for size, rows, window, number in tqdm(cases, "compiling")
    ]
    counted.append(count(replace(chosen, train=replace(base, precision="float32")), corpus, vocabulary_size, 1))
    pod = json.loads((RESULTS / POD).read_text())
    targets = [
        Target("TPU v5e-8", "compiled-original-bfloat16-v5e-8.json", 8, 1, 100e9, tpu_price),
        Target("TPU v5e-256", "compiled-original-bfloat16-v5e-256.json", 256, 32, 100e9, tpu_price),
    ]
    result = {
        "benchmark": "scaling",
        "command": command("scaling"),
        "machine": machine(),
        "config": config,
        "run_tokens": 10 * 768_648_884,  # the published models: ten passes over the 1 Billion Word Benchmark
        "counted": counted,
        "predictions": [predict(target, pod) for target in targets],
    }
    save(output, result)
    print(tables.scaling(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
