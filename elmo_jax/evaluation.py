"""Perplexity of a text, exact over every token."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.losses import full_softmax_loss
from elmo_jax.model import Reading, State, read_window, word_vectors, zero_state
from elmo_jax.parallel import AXIS, parallel
from elmo_jax.softmax_table import PARAMETER_AXES, places_of
from elmo_jax.streams import Batch

# Tokens of all devices together that are scored at a time: each device holds the outputs of as many.
TOKENS_TOGETHER = 2**15


class Perplexity(NamedTuple):
    """exp of the mean loss of each direction, and of the mean of both (bilm-tf's figure)."""

    both: float
    forward: float
    backward: float


def token_losses(
    hidden: jax.Array, softmax: dict[str, jax.Array], targets: jax.Array, precision: Precision
) -> jax.Array:
    """Loss [T, b] of a window's tokens: hidden [T, b, P], this device's part of the softmax, targets [T, b] its places.

    Goes over the window in pieces of as many positions as do not exceed TOKENS_TOGETHER.
    """
    window, rows, size = hidden.shape
    everyones = rows * lax.axis_size(AXIS)
    positions = max(n for n in range(1, window + 1) if window % n == 0 and (n == 1 or n * everyones <= TOKENS_TOGETHER))
    table = softmax["weight"], softmax["bias"]
    of_piece = lambda piece: full_softmax_loss(piece[0], *table, piece[1], precision, AXIS)
    return lax.map(of_piece, (hidden.reshape(-1, positions * rows, size), targets.reshape(-1, positions * rows)))


def evaluation_step(
    model: ModelConfig,
    precision: Precision,
    parameters: dict[str, Any],
    lstm_state: State,
    batch: Batch,
    start_state: State | None,
    of_tokens: bool = False,
) -> tuple[tuple[jax.Array, jax.Array], State, jax.Array | None]:
    """Full-softmax loss of one window: (sum over all devices' tokens of each direction [2], tokens []), LSTM state.

    With `start_state` the state becomes that at each beginning of a sentence; otherwise it is carried on. With
    `of_tokens` the loss of each token, [2, T, b], too.
    """
    bilm, softmax = parameters["bilm"], parameters["softmax"]
    reading = Reading(batch.forward, batch.backward, None if start_state is None else batch.reset)
    vectors = word_vectors(model, bilm["words"], batch.words, batch.count, precision)
    activations, lstm_state = read_window(model, bilm, vectors, reading, lstm_state, start_state, precision=precision)
    devices = lax.axis_size(AXIS)
    targets = places_of(batch.targets, len(batch.mask) * devices, len(softmax["bias"]) * devices)
    losses = [
        token_losses(layers[-1], softmax, places.T, precision)
        for layers, places in zip(activations, targets, strict=True)
    ]
    mask = batch.mask.T.ravel()
    sums = jnp.stack([jnp.where(mask, loss.ravel(), 0.0).sum() for loss in losses])
    each = jnp.stack([loss.reshape(targets.shape[:0:-1]) for loss in losses]) if of_tokens else None
    return lax.psum((sums, mask.sum()), AXIS), lstm_state, each


def evaluator(
    model: ModelConfig, precision: Precision = "float32", watch: Callable[[Batch, jax.Array], None] | None = None
):
    """Compiles `evaluate(parameters, batches, start_state) → Perplexity` for as many devices as the batches have.

    parameters whose softmax `softmax_table.place` (or `training.place`) has divided for the batches' rows; batches
    from a LanguageModelStream; start_state as in `evaluation_step`. `watch` is called with every batch and the losses
    of its tokens, [devices, 2, T, b]. `evaluate.lower` is that of a window's program.
    """
    step = functools.partial(evaluation_step, model, precision, of_tokens=watch is not None)
    step = parallel(step, (PARAMETER_AXES, 0, 0, None), (None, 0, 0))

    def evaluate(parameters: dict[str, Any], batches: Iterable[Batch], start_state: State | None = None) -> Perplexity:
        """The perplexity of all batches; `batches` may raise to stop it between two windows."""
        losses, tokens, lstm_state, pending = np.zeros(2), 0, None, (0.0, 0)
        for batch in batches:
            if lstm_state is None:
                lstm_state = zero_state(model, *batch.mask.shape[:2])
            sums, lstm_state, each = step(parameters, lstm_state, batch, start_state)
            if watch is not None:
                watch(batch, each)
            losses, tokens = losses + np.asarray(pending[0], np.float64), tokens + int(pending[1])
            pending = sums  # read while the device works on the next window
        losses, tokens = losses + np.asarray(pending[0], np.float64), tokens + int(pending[1])
        forward, backward = losses / tokens
        return Perplexity(*(float(np.exp(loss)) for loss in ((forward + backward) / 2, forward, backward)))

    evaluate.lower = step.lower
    return evaluate
