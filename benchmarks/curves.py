"""Loss curves of the same run in both precisions, and at each step what a plain step makes of the same state.

python -m benchmarks.curves --text TEXT
"""

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

from benchmarks import tables
from benchmarks.systems import ROOT, command, machine, result_path, save
from elmo_jax import parallel, training
from elmo_jax.char_cnn import spelled_vectors
from elmo_jax.config import Config, load_config
from elmo_jax.corpus import Corpus, WordCounts, sentences
from elmo_jax.errors import exit_on_bad_input
from elmo_jax.losses import log_expected_count
from elmo_jax.lstm import plain_lstm
from elmo_jax.model import State, zero_state
from elmo_jax.modules import init_bilm, init_softmax
from elmo_jax.streams import Batch, LanguageModelStream, word_encoder
from elmo_jax.vocabulary import Vocabulary


def plain_loss(
    config: Config,
    parameters: dict[str, Any],
    step: jax.Array,
    lstm_state: State,
    batch: Batch,
    rows: jax.Array,
    negatives: training.Negatives,
) -> tuple[jax.Array, jax.Array]:
    """The loss × window as it is defined, and the loss: the whole softmax table, every word; no axis of devices."""
    model, train = config.model, config.train
    dropout = training.dropout_by_row(jax.random.fold_in(jax.random.key(train.seed), step), rows, train.dropout)
    vectors = spelled_vectors(parameters["bilm"]["words"], batch.words, model, "float32")
    weight, bias = parameters["softmax"]["weight"], parameters["softmax"]["bias"]
    losses = []
    for direction, (name, numbers) in enumerate((("forward", batch.forward), ("backward", batch.backward))):
        hidden = vectors[numbers.T]
        for layer in range(model.layers):
            inputs = dropout(direction * model.layers + layer, hidden)
            before = lstm_state[direction][layer]
            hidden = plain_lstm(parameters["bilm"][f"{name}_{layer}"], inputs, before, model)[0]
            if layer > 0 and model.skip_connections:
                hidden = hidden + inputs
        hidden = dropout(2 * model.layers + direction, hidden).swapaxes(0, 1).reshape(-1, model.projection_dim)
        targets, drawn = batch.targets[direction].reshape(-1), negatives.ids[direction]
        of_target, of_drawn = (
            bias[ids] - log_expected_count(ids, negatives.draws[direction], len(bias)) for ids in (targets, drawn)
        )
        of_target = of_target + (hidden * weight[targets]).sum(-1)
        of_drawn = jnp.where(drawn[None] == targets[:, None], -jnp.inf, of_drawn[None] + hidden @ weight[drawn].T)
        logits = jnp.concatenate([of_target[:, None], of_drawn], -1)
        losses.append((jax.nn.logsumexp(logits, -1) - of_target).mean())
    loss = jnp.stack(losses).mean()
    return loss * train.window, loss


def run(config: Config, parameters: dict[str, Any], inputs, with_plain: bool) -> dict[str, list[float]]:
    """Losses and gradient norms of a run by this project's step; those that are plain, from the state of each step."""
    train = config.train
    train_step = training.step_on_devices(config)
    state = training.place(training.init_state(parameters), train.batch_size)
    lstm_state = parallel.shard(zero_state(config.model, train.batch_size))
    rows = np.arange(train.batch_size, dtype=np.int32)[None]
    found = {"loss": [], "norm": [], "plain_loss": [], "plain_norm": []}

    @jax.jit
    def plain(parameters, *inputs):
        inputs = jax.tree.map(lambda array: array[0], inputs)  # without the axis of devices
        of_parameters = jax.grad(functools.partial(plain_loss, config), has_aux=True)
        gradients, loss = of_parameters(parameters, *inputs)
        return loss, optax.tree.norm(gradients)

    for step, (batch, negatives) in enumerate(tqdm(inputs, train.precision, train.steps)):
        if with_plain:
            of_all = jax.tree.map(lambda array: array[None], (np.array(step, np.int32), negatives))
            with jax.default_matmul_precision("highest"):
                whole = training.to_host(state.parameters, len(parameters["softmax"]["bias"]), train.batch_size)
                loss, norm = plain(whole, of_all[0], lstm_state, batch, rows, of_all[1])
            found["plain_loss"].append(float(loss))
            found["plain_norm"].append(float(norm))
        state, lstm_state, metrics = train_step(state, lstm_state, batch, rows, negatives)
        found["loss"].append(metrics.loss)
        found["norm"].append(float(metrics.gradient_norm))
    return found


def benchmark(
    text: tuple[str, ...],
    vocab: Path | None = None,
    config: str = "small",
    rows: int = 128,
    steps: int = 300,
    output: Path | None = None,
) -> None:
    """Trains the same model on the same batches in both precisions and compares the losses of every step.

    Beside the run in float32 a plain step (automatic differentiation of the definition, the whole softmax table) is
    given the same state at every step: left to itself for hundreds of steps, it would drift away by rounding alone.

    Args:
        text: Text files or globs, a sentence a line.
        vocab: Vocabulary; by default the words of the text.
        config: Size of the model, a file in configs/ or a path; its training settings are used too.
        rows: Rows of sentences.
        steps: Steps of each run.
        output: JSON file to write; by default results/curves-CONFIG-DEVICE.json beside this module.
    """
    chosen = load_config(config, ROOT / "configs")
    chosen = replace(chosen, train=replace(chosen.train, batch_size=rows, steps=steps))
    counts = lambda: WordCounts(sentences(text, "--text"))
    vocabulary = Vocabulary.load(vocab) if vocab else Vocabulary.from_counts(counts())
    corpus = Corpus(sentences(text, "--text"), vocabulary)
    encode = word_encoder(corpus, chosen.model)
    keys = jax.random.split(jax.random.key(chosen.train.seed))
    parameters = {
        "bilm": init_bilm(keys[0], chosen.model),
        "softmax": init_softmax(keys[1], chosen.model, len(vocabulary)),
    }

    def inputs():
        stream = LanguageModelStream(corpus, rows, chosen.train.window, encode, shuffle=True)
        for step in range(1, steps + 1):
            yield next(stream), training.draw_negatives(chosen, len(vocabulary), step)

    curves = {}
    for precision in ("float32", "bfloat16"):
        of_precision = replace(chosen, train=replace(chosen.train, precision=precision))
        curves[precision] = run(of_precision, parameters, inputs(), with_plain=precision == "float32")
    result = {
        "benchmark": "curves",
        "command": command("curves"),
        "machine": machine(),
        "config": config,
        "rows": rows,
        "window": chosen.train.window,
        "vocabulary_size": len(vocabulary),
        "curves": curves,
    }
    save(output or result_path("curves", config), result)
    print(tables.curves(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
