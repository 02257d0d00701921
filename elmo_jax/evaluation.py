"""Perplexity of a text, exact over every token, and the words that a model expects at each."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elmo_jax.config import ModelConfig, Precision, check_trainable
from elmo_jax.corpus import Corpus
from elmo_jax.engine import StateMode
from elmo_jax.errors import InputError
from elmo_jax.losses import block_logits, blocks, full_softmax_loss
from elmo_jax.model import Reading, State, read_window, start_state, word_vectors, zero_state
from elmo_jax.parallel import AXIS, device_count, parallel, replicate
from elmo_jax.softmax_table import PARAMETER_AXES, place, places_of
from elmo_jax.streams import Batch, LanguageModelStream, word_encoder
from elmo_jax.weights import ModelFolder

# Tokens of all devices together that are scored at a time: each device holds the outputs of as many.
TOKENS_TOGETHER = 2**15


class Perplexity(NamedTuple):
    """exp of the mean loss of each direction, and of the mean of both (bilm-tf's figure)."""

    both: float
    forward: float
    backward: float


class Expected(NamedTuple):
    """The k most probable words of each position, the most probable first.

    log_probability  float32 [.., k]
    place            int32 [.., k] where they are in the softmax's table (`softmax_table.words_at` says which they are)
    """

    log_probability: jax.Array
    place: jax.Array


class Read(NamedTuple):
    """What was found in one window.

    batch     the window
    sums      sums of all devices' losses of each direction [2], and their tokens []
    losses    of each token, [devices, 2, T, b], or None
    expected  the most probable words, [devices, 2, T, b, k], or None
    """

    batch: Batch
    sums: tuple[jax.Array, jax.Array]
    losses: jax.Array | None
    expected: Expected | None


def most_probable(hidden: jax.Array, softmax: dict[str, jax.Array], count: int, precision: Precision) -> Expected:
    """The `count` most probable words after hidden [N, P], given this device's part of the softmax.

    Never holds [N, V]: goes over the vocabulary in blocks, like the loss; every device looks through its part for the
    tokens of all.
    """
    everyones = lax.all_gather(hidden, AXIS, tiled=True)
    weight, bias = softmax["weight"], softmax["bias"]
    size, firsts, new = blocks(len(bias), len(everyones))
    own = min(count, len(bias))

    def step(carry, block):
        largest, total, best, places = carry
        logits, _ = block_logits(everyones, weight, bias, *block, size, precision)
        new_largest = jnp.maximum(largest, logits.max(-1))
        total = total * jnp.exp(largest - new_largest) + jnp.exp(logits - new_largest[:, None]).sum(-1)
        of_block, here = lax.top_k(logits, min(own, size))
        best, chosen = lax.top_k(jnp.concatenate([best, of_block], 1), own)
        places = jnp.take_along_axis(jnp.concatenate([places, block[0] + here], 1), chosen, 1)
        return (new_largest, total, best, places), None

    unknown = jnp.full(len(everyones), -jnp.inf)
    initial = (unknown, jnp.zeros_like(unknown), jnp.full((len(everyones), own), -jnp.inf))
    of_none = jnp.zeros((len(everyones), own), jnp.int32)
    (largest, total, best, places), _ = lax.scan(step, (*initial, of_none), (firsts, new))
    places = places + lax.axis_index(AXIS) * len(bias)
    over_all = lax.pmax(largest, AXIS)
    normaliser = over_all + jnp.log(lax.psum(total * jnp.exp(largest - over_all), AXIS))
    best, places = (lax.all_gather(array, AXIS, axis=1, tiled=True) for array in (best, places))
    mine = lambda array: lax.dynamic_slice_in_dim(array, lax.axis_index(AXIS) * len(hidden), len(hidden))
    best, chosen = lax.top_k(mine(best), count)
    return Expected(best - mine(normaliser)[:, None], jnp.take_along_axis(mine(places), chosen, 1))


def of_window(
    hidden: jax.Array, softmax: dict[str, jax.Array], targets: jax.Array, precision: Precision, count: int
) -> tuple[jax.Array, Expected | None]:
    """Loss [T, b] of a window's tokens, and the `count` most probable words [T, b, count] (None of 0).

    hidden [T, b, P], this device's part of the softmax, targets [T, b] its places. Goes over the window in pieces of as
    many positions as do not exceed TOKENS_TOGETHER.
    """
    window, rows, size = hidden.shape
    everyones = rows * lax.axis_size(AXIS)
    positions = max(n for n in range(1, window + 1) if window % n == 0 and (n == 1 or n * everyones <= TOKENS_TOGETHER))

    def of_piece(piece):
        loss = full_softmax_loss(piece[0], softmax["weight"], softmax["bias"], piece[1], precision, AXIS)
        return loss, most_probable(piece[0], softmax, count, precision) if count else None

    found = lax.map(of_piece, (hidden.reshape(-1, positions * rows, size), targets.reshape(-1, positions * rows)))
    return jax.tree.map(lambda array: array.reshape(window, rows, *array.shape[2:]), found)


def evaluation_step(
    model: ModelConfig,
    precision: Precision,
    parameters: dict[str, Any],
    lstm_state: State,
    batch: Batch,
    start_state: State | None,
    of_tokens: bool = False,
    count: int = 0,
) -> tuple[tuple[jax.Array, jax.Array], State, jax.Array | None, Expected | None]:
    """Full-softmax loss of one window: (sum over all devices' tokens of each direction [2], tokens []), LSTM state.

    With `start_state` the state becomes that at each beginning of a sentence; otherwise it is carried on. With
    `of_tokens` the loss of each token, [2, T, b], too, and with `count` the words expected there, [2, T, b, count].
    """
    bilm, softmax = parameters["bilm"], parameters["softmax"]
    reading = Reading(batch.forward, batch.backward, None if start_state is None else batch.reset)
    vectors = word_vectors(model, bilm["words"], batch.words, batch.count, precision)
    activations, lstm_state = read_window(model, bilm, vectors, reading, lstm_state, start_state, precision=precision)
    devices = lax.axis_size(AXIS)
    targets = places_of(batch.targets, len(batch.mask) * devices, len(softmax["bias"]) * devices)
    found = [
        of_window(layers[-1], softmax, places.T, precision, count)
        for layers, places in zip(activations, targets, strict=True)
    ]
    losses, expected = jax.tree.map(lambda *both: jnp.stack(both), *found)
    sums = jnp.where(batch.mask.T[None], losses, 0.0).reshape(2, -1).sum(1)
    totals = lax.psum((sums, batch.mask.sum()), AXIS)
    return totals, lstm_state, losses if of_tokens else None, expected


def reader(model: ModelConfig, precision: Precision = "float32", of_tokens: bool = False, count: int = 0):
    """Compiles `read(parameters, batches, start_state)`, which yields a `Read` of each window.

    parameters, batches and start_state as in `prepared`; of_tokens and count as in `evaluation_step`. `read.lower` is
    that of a window's program.
    """
    step = functools.partial(evaluation_step, model, precision, of_tokens=of_tokens, count=count)
    step = parallel(step, (PARAMETER_AXES, 0, 0, None), (None, 0, 0, 0))

    def read(parameters: dict[str, Any], batches: Iterable[Batch], start_state: State | None = None) -> Iterator[Read]:
        lstm_state = None
        for batch in batches:
            if lstm_state is None:
                lstm_state = zero_state(model, *batch.mask.shape[:2])
            sums, lstm_state, losses, expected = step(parameters, lstm_state, batch, start_state)
            yield Read(batch, sums, losses, expected)

    read.lower = step.lower
    return read


def evaluator(
    model: ModelConfig, precision: Precision = "float32", watch: Callable[[Batch, jax.Array], None] | None = None
):
    """Compiles `evaluate(parameters, batches, start_state) → Perplexity` for as many devices as the batches have.

    parameters whose softmax `softmax_table.place` (or `training.place`) has divided for the batches' rows; batches
    from a LanguageModelStream; start_state as in `evaluation_step` (`prepared` makes them all). `watch` is called with
    every batch and the losses of its tokens, [devices, 2, T, b]. `evaluate.lower` is that of a window's program.
    """
    read = reader(model, precision, watch is not None)

    def evaluate(parameters: dict[str, Any], batches: Iterable[Batch], start_state: State | None = None) -> Perplexity:
        """The perplexity of all batches; `batches` may raise to stop it between two windows."""
        losses, tokens, pending = np.zeros(2), 0, (0.0, 0)
        for window in read(parameters, batches, start_state):
            if watch is not None:
                watch(window.batch, window.losses)
            losses, tokens = losses + np.asarray(pending[0], np.float64), tokens + int(pending[1])
            pending = window.sums  # read while the device works on the next window
        losses, tokens = losses + np.asarray(pending[0], np.float64), tokens + int(pending[1])
        forward, backward = losses / tokens
        return Perplexity(*(float(np.exp(loss)) for loss in ((forward + backward) / 2, forward, backward)))

    evaluate.lower = read.lower
    return evaluate


def check_rows(batch_size: int, window: int) -> None:
    """Raises InputError for rows that the devices cannot divide, or windows without positions."""
    devices = device_count()
    if batch_size < 1 or batch_size % devices:
        raise InputError(f"batch_size is {batch_size}, which cannot be divided by {devices} devices; give a multiple")
    if window < 1:
        raise InputError(f"window is {window}; it must be 1 or more")


def check_scoring(folder: ModelFolder, name: str) -> None:
    """Raises InputError for a model that gives words no probabilities."""
    check_trainable(folder.model)
    if folder.softmax is None or folder.vocabulary is None:
        raise InputError(f"{name} has no softmax.hdf5 (with its vocab.txt); perplexity needs it")


class Prepared(NamedTuple):
    """A model on the devices, a text in windows, and the state at each beginning of a sentence (None: carried on)."""

    parameters: dict[str, Any]
    batches: LanguageModelStream
    start_state: State | None


def prepared(folder: ModelFolder, text: Corpus, state: StateMode, batch_size: int, window: int) -> Prepared:
    """What `reader` and `evaluator` read: a model with a softmax, and once the whole of a text."""
    parameters = {"bilm": replicate(folder.parameters), "softmax": place(folder.softmax, batch_size)}
    encode = word_encoder(text, folder.model)
    batches = LanguageModelStream(text, batch_size, window, encode, devices=device_count(), once=True)
    begin = None
    if state != "carry":
        begin = start_state(folder.model, folder.parameters, folder.vocabulary, state)
    return Prepared(parameters, batches, begin)
