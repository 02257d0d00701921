"""What a training step costs as it grows, counted from compiled programs, and what that predicts for larger machines.

python -m benchmarks.scaling --text TEXT
"""

import json
import sys
import time
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
from elmo_jax.modules import init_bilm, init_softmax
from elmo_jax.streams import LanguageModelStream, word_encoder
from elmo_jax.vocabulary import Vocabulary

HOST_DEVICES = 8  # devices of a host of the machines below


@dataclass(frozen=True)
class Target:
    """A machine by its makers' figures, per device: products in bfloat16, memory, network in one direction.

    `account` is the result of `benchmarks.compiled` that has the share of the peak which a step reaches, if one has.
    """

    name: str
    devices: int
    operations_per_second: float
    memory_bytes_per_second: float
    network_bytes_per_second: float
    dollars_per_device_hour: float
    account: str | None = None

    def share_of_peak(self, otherwise: float) -> float:
        """The share that the account's first training step reaches, memory included."""
        if self.account is None:
            return otherwise
        programs = json.loads((RESULTS / self.account).read_text())["programs"]
        return next(row["share_of_peak"] for row in programs if row["program"] == "training step")


def count(config: Config, corpus: Corpus, vocabulary_size: int, devices: int) -> dict[str, int]:
    """Operations and bytes of a step of one device, from the shapes alone: nothing is run."""
    model, train = config.model, config.train
    everyones = train.batch_size * devices
    encode = word_encoder(corpus, model)
    stream = LanguageModelStream(corpus, everyones, train.window, encode, devices=devices, shuffle=True)
    for _ in range(3):  # in the first windows the rows begin together
        batch = next(stream)
    words = operations.words_of(batch)
    keys = jax.random.split(jax.random.key(0))
    state = jax.eval_shape(
        lambda: training.init_state(
            {
                "bilm": init_bilm(keys[0], model),
                "softmax": init_softmax(keys[1], model, vocabulary_size),
            }
        )
    )
    lstm_state = jax.tree.map(lambda array: np.stack([array] * devices), zero_state(model, train.batch_size))
    negatives = training.Negatives(np.zeros((2, train.negatives), np.int32), np.full(2, train.negatives, np.int32))
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


def input_seconds(config: Config, corpus: Corpus, vocabulary_size: int, devices: int) -> float:
    """Seconds in which one host lays out a step of all devices and reads its own part; the median of five."""
    rows, own = config.train.batch_size * devices, config.train.batch_size * min(devices, HOST_DEVICES)
    encode = word_encoder(corpus, config.model)
    stream = LanguageModelStream(
        corpus,
        rows,
        config.train.window,
        encode,
        devices=min(devices, HOST_DEVICES),
        own=range(own),
        shuffle=True,
    )
    next(stream)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        next(stream)
        training.draw_negatives(config, vocabulary_size, 0)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def predict(target: Target, config: Config, counted: dict, parameters: int, vocabulary_size: int, share: float) -> dict:
    """Seconds of each part of a step on one device of `target`, from what was counted for one device.

    Nothing is measured: products at `share` of the peak or the compiler's share, memory and network at theirs.
    """
    share = target.share_of_peak(otherwise=share)
    model, train = config.model, config.train
    targets = 2 * train.batch_size * train.window * target.devices
    softmax_rows = min(targets + 2 * train.negatives, vocabulary_size)
    moved = operations.moved_in_training_step(
        model, train.batch_size, train.window, train.negatives, parameters, softmax_rows, 2
    )
    reduced = 4 * (parameters + softmax_rows * (model.projection_dim + 1))
    return {
        "name": target.name,
        "devices": target.devices,
        "figures": [target.operations_per_second, target.memory_bytes_per_second, target.network_bytes_per_second],
        "share": share,
        "account": target.account,
        "softmax_rows": softmax_rows,
        "moved_bytes": moved,
        "reduced_bytes": reduced,
        "products_seconds": counted["operations"] / (share * target.operations_per_second),
        "memory_seconds": moved / target.memory_bytes_per_second,
        # A ring sends every byte to the sum and back: 2 (n - 1) / n.
        "network_seconds": 2 * (1 - 1 / target.devices) * reduced / target.network_bytes_per_second,
        "dollars_per_device_hour": target.dollars_per_device_hour,
    }


def benchmark(
    text: tuple[str, ...],
    config: str = "original",
    vocabulary_size: int = 793_471,
    devices: tuple[int, ...] = (1, 2, 4, 8),
    share: float = 0.5,
    tpu_price: float = 1.20,
    gpu_price: float = 4.00,
    output: Path = RESULTS / "scaling.json",
) -> None:
    """Counts a step's operations and bytes against vocabulary, rows, window and devices, and predicts larger machines.

    Args:
        text: Text files or globs, a sentence a line: how many distinct words a window has depends on it.
        config: Size of the model, a file in configs/ or a path.
        vocabulary_size: Words of the softmax.
        devices: Numbers of devices, from 1 up.
        share: Share of the peak that a GPU's products are taken to reach; a TPU's step reaches what its compiler says
            (results/compiled-original-bfloat16-v5e-8.json).
        tpu_price: Dollars a TPU v5e chip costs in an hour; put in yours.
        gpu_price: Dollars an H200 costs in an hour; put in yours.
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
    parameters = sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: init_bilm(jax.random.key(0), chosen.model)))
    )
    targets = [
        Target("TPU v5e-8", 8, 197e12, 819e9, 100e9, tpu_price, "compiled-original-bfloat16-v5e-8.json"),
        Target("TPU v5e-256", 256, 197e12, 819e9, 100e9, tpu_price, "compiled-original-bfloat16-v5e-8.json"),
        Target("8 x H200", 8, 989e12, 4.8e12, 450e9, gpu_price),
    ]
    predictions = [
        predict(target, chosen, counted[0], parameters, vocabulary_size, share)
        | {"input_seconds": input_seconds(chosen, corpus, vocabulary_size, target.devices)}
        for target in tqdm(targets, "input")
    ]
    result = {
        "benchmark": "scaling",
        "command": command("scaling"),
        "machine": machine(),
        "config": config,
        "parameters": parameters,
        "tokens_per_device": base.batch_size * base.window,
        "run_tokens": 10 * 768_648_884,  # the published models: ten passes over the 1 Billion Word Benchmark
        "counted": counted,
        "predictions": predictions,
    }
    save(output, result)
    print(tables.scaling(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
