"""The pure training step, and the step compiled for all devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from elmo_jax import softmax_table
from elmo_jax.config import Config, Precision
from elmo_jax.losses import (
    SampledWords,
    full_softmax_loss,
    log_expected_count,
    sample_negatives,
    sampled_softmax_loss,
)
from elmo_jax.model import Reading, State, read_window, word_vectors
from elmo_jax.parallel import AXIS, fetch, has_peers, parallel, replicate
from elmo_jax.products import form
from elmo_jax.softmax_table import NO_WORD, PARAMETER_AXES, Exchange, WholePart, places_of
from elmo_jax.streams import Batch


class TrainState(NamedTuple):
    """Everything that a step changes and that does not belong to rows.

    step           int32 []: steps done
    parameters     {"bilm": .., "softmax": {"weight" [V, P], "bias" [V]}}
    accumulators   the same tree: Adagrad's sums of squared gradients

    On the devices, which share the rest, the softmax is divided: each has its own part of the places, weight [v, P] and
    bias [v]; see `softmax_table`.
    """

    step: jax.Array
    parameters: dict[str, Any]
    accumulators: dict[str, Any]


# Axis of the devices in each part of the state.
STATE_AXES = TrainState(None, PARAMETER_AXES, PARAMETER_AXES)


class Negatives(NamedTuple):
    """Words drawn of a vocabulary for the forward and the backward loss of a step.

    ids              int32 [2, S]
    draws            int32 [2]: how many draws it took
    vocabulary_size  int32 []
    """

    ids: np.ndarray
    draws: np.ndarray
    vocabulary_size: np.ndarray


class Metrics(NamedTuple):
    """Of one step: losses of both directions [2] (nats a token), norm of the unclipped gradient of loss × window []."""

    losses: jax.Array
    gradient_norm: jax.Array

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


def init_state(parameters: dict[str, Any]) -> TrainState:
    """The state before the first step; Adagrad's accumulators start at 1 (bilm-tf), without memory until `place`."""
    ones = jax.tree.map(lambda array: np.broadcast_to(np.float32(1), array.shape), parameters)
    return TrainState(jnp.zeros((), jnp.int32), parameters, ones)


def draw_negatives(config: Config, vocabulary_size: int, step: int) -> Negatives:
    """The negatives of a step, a function of seed and step; all devices share them."""
    keys = [(config.train.seed, 1, step, direction) for direction in (0, 1)]
    ids, draws = zip(*(sample_negatives(vocabulary_size, config.train.negatives, key) for key in keys), strict=True)
    return Negatives(np.stack(ids), np.array(draws, np.int32), np.array(vocabulary_size, np.int32))


def dropout_by_row(key: jax.Array, row_ids: jax.Array, rate: float):
    """Dropout whose masks depend on the key, the place and the row, not on which device holds the row.

    Returns (place, x [T, B, P]) → x, with a fresh mask at every position; row_ids int32 [B].
    """

    def dropout(place: int, x: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, place), row))(row_ids)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (x.shape[0], x.shape[2])), out_axes=1)(keys)
        return jnp.where(keep, x / (1 - rate), 0.0)

    return dropout


class LossInputs(NamedTuple):
    """What the loss depends on beside the parameters.

    See `train_step`; targets int32 [2, N], of both directions, places in the softmax's table; words: of the sampled
    softmax, each with a leading axis of directions, None: the full softmax.
    """

    step: jax.Array
    lstm_state: State
    batch: Batch
    row_ids: jax.Array
    targets: jax.Array
    words: SampledWords | None


@jax.named_scope("rows")
def loss_inputs(
    state: TrainState, lstm_state: State, batch: Batch, row_ids: jax.Array, negatives: Negatives | None
) -> tuple[LossInputs, Exchange | WholePart]:
    """What the loss takes, and how the softmax's rows come and go; arguments as in `train_step`."""
    devices, part = lax.axis_size(AXIS), len(state.parameters["softmax"]["bias"])
    place = lambda ids: places_of(ids, len(row_ids) * devices, part * devices)
    targets = batch.targets.reshape(2, -1)
    if negatives is None:
        return LossInputs(state.step, lstm_state, batch, row_ids, place(targets), None), WholePart()
    count = lambda ids: log_expected_count(ids, negatives.draws[:, None], negatives.vocabulary_size)
    words = SampledWords(targets, negatives.ids, count(targets), count(negatives.ids))
    exchange = Exchange(place(targets), place(negatives.ids), part)
    return LossInputs(state.step, lstm_state, batch, row_ids, place(targets), words), exchange


def loss(config: Config, parameters: dict[str, Any], inputs: LossInputs) -> tuple[jax.Array, tuple[jax.Array, State]]:
    """Loss × window of one device's rows, and (the losses [2] of both directions, the LSTM state after the window).

    The loss is the mean of both directions' mean loss (bilm-tf training.py, train). parameters: of the softmax this
    device's part, or for the sampled softmax the rows that `Exchange.fetch` returns.
    """
    model, train = config.model, config.train
    bilm, batch = parameters["bilm"], inputs.batch
    key = jax.random.fold_in(jax.random.key(train.seed), inputs.step)
    dropout = dropout_by_row(key, inputs.row_ids, train.dropout) if train.dropout else None
    vectors = word_vectors(model, bilm["words"], batch.words, batch.count, train.precision)
    reading, options = Reading(batch.forward, batch.backward), {"precision": train.precision, "dropout": dropout}
    activations, lstm_state = read_window(model, bilm, vectors, reading, inputs.lstm_state, **options)
    hidden = [layers[-1] for layers in activations]  # [T, b, P]
    if dropout is not None:
        hidden = [dropout(2 * model.layers + direction, array) for direction, array in enumerate(hidden)]
    hidden = jnp.stack([array.swapaxes(0, 1).reshape(-1, model.projection_dim) for array in hidden])  # [2, N, P]
    losses = token_losses(config, parameters["softmax"], hidden, inputs).mean(1)
    return losses.mean() * train.window, (losses, lstm_state)


def token_losses(config: Config, softmax: dict[str, Any], hidden: jax.Array, inputs: LossInputs) -> jax.Array:
    """Loss [2, N] of each token of both directions, given the top layer's outputs [2, N, P]."""
    precision = config.train.precision
    if inputs.words is not None:
        of_direction = functools.partial(sampled_softmax_loss, precision=precision)
        return jax.vmap(of_direction)(hidden, softmax["targets"], softmax["negatives"], inputs.words)
    table = softmax["weight"], softmax["bias"]
    of_direction = lambda hidden, targets: full_softmax_loss(hidden, *table, targets, precision, AXIS)
    return jnp.stack(list(map(of_direction, hidden, inputs.targets)))


def mean(tree: Any, precision: Precision) -> Any:
    """Mean over the devices of float32 arrays, which are rounded to `precision` and so summed."""
    total = lax.psum(jax.tree.map(lambda array: array.astype(precision), tree), AXIS)
    return jax.tree.map(lambda array: array.astype(jnp.float32) / lax.axis_size(AXIS), total)


def loss_gradients(config: Config, parameters: dict[str, Any], inputs: LossInputs) -> tuple[dict, jax.Array, State]:
    """Gradients of `loss`, the losses [2] of both directions, averaged over devices, and the LSTM state.

    Of the softmax's part, and of the targets' rows, each device has its own gradients: what it adds to the average.
    """
    differentiate = jax.grad(lambda parameters: loss(config, parameters, inputs), has_aux=True)
    gradients, (losses, lstm_state) = differentiate(parameters)
    own = gradients.pop("softmax")
    if inputs.words is not None:
        gradients["negatives"] = own.pop("negatives")
    gradients, losses = mean(gradients, config.train.reduce_precision), lax.pmean(losses, AXIS)
    own = jax.tree.map(lambda gradient: gradient / lax.axis_size(AXIS), own)
    if inputs.words is not None:
        own["negatives"] = gradients.pop("negatives")
    return gradients | {"softmax": own}, losses, lstm_state


@jax.named_scope("update")
def global_norm(shared: Any, own_square: jax.Array) -> jax.Array:
    """Norm [] of gradients that devices share, of which each sums up its part of the rows, and of their own ones.

    own_square []: the squared norm of this device's own gradients.
    """
    devices = lax.axis_size(AXIS)

    def part_square(gradient):
        if len(gradient) % devices:
            return optax.tree.norm(gradient, squared=True) / devices
        size = len(gradient) // devices
        return optax.tree.norm(lax.dynamic_slice_in_dim(gradient, lax.axis_index(AXIS) * size, size), squared=True)

    return jnp.sqrt(lax.psum(sum(map(part_square, jax.tree.leaves(shared))) + own_square, AXIS))


@jax.named_scope("update")
def adagrad(learning_rate: float, scale: jax.Array, values: Any, sums: Any, gradients: Any) -> tuple[Any, Any]:
    """Parameters and their sums of squares after a step along the gradients × scale []."""
    scaled = jax.tree.map(lambda gradient: gradient * scale, gradients)
    updates, sums = optax.scale_by_rss(eps=0.0).update(scaled, optax.ScaleByRssState(sums))
    return jax.tree.map(lambda value, update: value - learning_rate * update, values, updates), sums.sum_of_squares


def train_step(
    config: Config,
    state: TrainState,
    lstm_state: State,
    batch: Batch,
    row_ids: jax.Array,
    negatives: Negatives | None,
) -> tuple[TrainState, State, Metrics]:
    """One step on one device's rows; devices meet over the mapped axis AXIS.

    The averaged gradient is clipped once by its global norm and applied by Adagrad (bilm-tf). With the sampled softmax
    only the rows of targets and negatives are fetched, differentiated, and updated by the device that has them; Adagrad
    leaves the others as they are, so this is exactly the dense update.

    lstm_state leaves [b, ..]; batch without its device axis; row_ids int32 [b], numbers of the rows among those of all
    devices; negatives None: full softmax.
    """
    inputs, exchange = loss_inputs(state, lstm_state, batch, row_ids, negatives)
    parameters, sums = state.parameters, state.accumulators
    rows = exchange.fetch(parameters["softmax"])
    gradients, losses, lstm_state = loss_gradients(config, parameters | {"softmax": rows}, inputs)
    touched = exchange.give(gradients["softmax"])
    first = touched(exchange.first)
    square = lambda touched: optax.tree.norm(touched.gradients, squared=True)
    own_square = exchange.further(lambda given, total: total + square(touched(given)), square(first))
    norm = global_norm(gradients["bilm"], own_square)
    update = functools.partial(adagrad, config.train.learning_rate, jnp.minimum(1.0, config.train.clip_norm / norm))

    def update_places(touched, tables):
        return tuple(map(touched.merge, tables, update(*map(touched.select, tables), touched.gradients)))

    tables = update_places(first, (parameters["softmax"], sums["softmax"]))
    tables = exchange.further(lambda given, tables: update_places(touched(given), tables), tables)
    bilms = update(parameters["bilm"], sums["bilm"], gradients["bilm"])
    trees = ({"bilm": bilm, "softmax": softmax} for bilm, softmax in zip(bilms, tables, strict=True))
    return TrainState(state.step + 1, *trees), lstm_state, Metrics(losses, norm)


def trimmed(batch: Batch) -> Batch:
    """The batch with room for no more words than there are, rounded up to an eighth of U: so few programs."""
    eighth = -(-batch.words.shape[1] // 8)
    return batch._replace(words=batch.words[:, : -(-int(batch.count.max()) // eighth) * eighth])


def step_on_devices(config: Config, donate: bool = True, devices: Sequence[jax.Device] | None = None) -> Callable:
    """`train_step` on `devices`, or all: (state, LSTM state, batch, row_ids, negatives) → (state, LSTM state, metrics).

    state as `place` makes it; leaves of the LSTM state [devices, b, ..], row_ids [devices, b]. With `donate` the
    states that go in are used up. `lower` is that of the compiled program.
    """
    axes = PARAMETER_AXES

    def leaves(state, lstm_state, batch, row_ids, negatives):
        state, lstm_state, metrics = train_step(config, state, lstm_state, batch, row_ids, negatives)
        return (state.step, *(tree[part] for tree in state[1:] for part in axes)), lstm_state, metrics

    leaf_axes = None, *axes.values(), *axes.values()
    in_axes, out_axes = (STATE_AXES, 0, 0, 0, None), (leaf_axes, 0, None)
    program = parallel(leaves, in_axes, out_axes, donate=(0, 1) if donate else (), devices=devices)

    def step(state, lstm_state, batch, row_ids, negatives):
        if form().chunk is None and not has_peers():  # who must all run one program
            batch = trimmed(batch)
        (number, *trees), lstm_state, metrics = program(state, lstm_state, batch, row_ids, negatives)
        parameters, accumulators = (dict(zip(axes, part, strict=True)) for part in (trees[:2], trees[2:]))
        return TrainState(number, parameters, accumulators), lstm_state, metrics

    step.lower = program.lower
    return step


def place(state: TrainState, rows: int) -> TrainState:
    """A state of whole arrays, in order of words and the same on all processes → on all devices.

    rows: those of all devices, now and for as long as the state is gone on with.
    """
    divide = lambda tree, *fill: {
        "bilm": replicate(tree["bilm"]),
        "softmax": softmax_table.place(tree["softmax"], rows, *fill),
    }
    sums = dict.fromkeys(NO_WORD, 1.0)
    return TrainState(replicate(state.step), divide(state.parameters), divide(state.accumulators, sums))


def to_host(tree: dict[str, Any], vocabulary_size: int, rows: int) -> dict[str, Any]:
    """NumPy arrays, in order of words, of parameters (or accumulators) that `place` put on the devices.

    Every process calls it, and has all.
    """
    return {"bilm": fetch(tree["bilm"]), "softmax": softmax_table.to_host(tree["softmax"], vocabulary_size, rows)}
