"""Perplexity of a text, exact over every token."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.losses import full_softmax_loss, softmax_axes
from elmo_jax.model import Reading, State, read_window, word_vectors, zero_state
from elmo_jax.parallel import AXIS, parallel
from elmo_jax.streams import Batch


class Perplexity(NamedTuple):
    """exp of the mean loss of each direction, and of the mean of both (bilm-tf's figure)."""

    both: float
    forward: float
    backward: float


def evaluation_step(
    model: ModelConfig,
    precision: Precision,
    parameters: dict[str, Any],
    lstm_state: State,
    batch: Batch,
    start_state: State | None,
    axis: str | None = None,
) -> tuple[tuple[jax.Array, jax.Array], State]:
    """Full-softmax loss of one window: (sum over all devices' tokens of each direction [2], tokens []), LSTM state.

    With `start_state` the state becomes that at each beginning of a sentence; otherwise it is carried on. `axis` as in
    `full_softmax_loss`.
    """
    bilm, softmax = parameters["bilm"], parameters["softmax"]
    reading = Reading(batch.forward, batch.backward, None if start_state is None else batch.reset)
    vectors = word_vectors(model, bilm["words"], batch.words, batch.count, precision)
    activations, lstm_state = read_window(model, bilm, vectors, reading, lstm_state, start_state, precision=precision)
    table = softmax["weight"], softmax["bias"]
    losses = [
        full_softmax_loss(layers[-1].reshape(-1, model.projection_dim), *table, targets.T.ravel(), precision, axis)
        for layers, targets in zip(activations, batch.targets, strict=True)
    ]
    mask = batch.mask.T.ravel()
    sums = jnp.stack([jnp.where(mask, loss, 0.0).sum() for loss in losses])
    return lax.psum((sums, mask.sum()), AXIS), lstm_state


def evaluator(model: ModelConfig, precision: Precision = "float32", split: bool = False):
    """Compiles `evaluate(parameters, batches, start_state) → Perplexity` for as many devices as the batches have.

    parameters as in TrainState, with `split` each device's own words of the softmax; batches from a
    LanguageModelStream; start_state as in `evaluation_step`.
    """
    step = functools.partial(evaluation_step, model, precision, axis=AXIS if split else None)
    step = parallel(step, (softmax_axes(split), 0, 0, None), (None, 0))

    def evaluate(parameters: dict[str, Any], batches: Iterable[Batch], start_state: State | None = None) -> Perplexity:
        """The perplexity of all batches; `batches` may raise to stop it between two windows."""
        losses, tokens, lstm_state, pending = np.zeros(2), 0, None, (0.0, 0)
        for batch in batches:
            if lstm_state is None:
                lstm_state = zero_state(model, *batch.mask.shape[:2])
            sums, lstm_state = step(parameters, lstm_state, batch, start_state)
            losses, tokens = losses + np.asarray(pending[0], np.float64), tokens + int(pending[1])
            pending = sums  # read while the device works on the next window
        losses, tokens = losses + np.asarray(pending[0], np.float64), tokens + int(pending[1])
        forward, backward = losses / tokens
        return Perplexity(*(float(np.exp(loss)) for loss in ((forward + backward) / 2, forward, backward)))

    return evaluate
