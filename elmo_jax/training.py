"""The pure training step, and the step compiled for all devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from elmo_jax.config import Config
from elmo_jax.losses import full_softmax_loss, log_expected_count, sample_negatives, sampled_softmax_loss
from elmo_jax.model import Reading, State, read_window, word_vectors
from elmo_jax.parallel import AXIS, fetch, gather_words, parallel, replicate, shard_words
from elmo_jax.streams import Batch


class TrainState(NamedTuple):
    """Everything that a step changes and that does not belong to rows.

    step           int32 []: steps done
    parameters     {"bilm": .., "softmax": {"weight" [V, P], "bias" [V]}}
    accumulators   the same tree: Adagrad's sums of squared gradients

    All devices share it, but for the full softmax: then each has its own part of the vocabulary, weight [v, P] and
    bias [v].
    """

    step: jax.Array
    parameters: dict[str, Any]
    accumulators: dict[str, Any]


def is_split(config: Config) -> bool:
    """Whether every device has its own part of the softmax's words."""
    return config.train.softmax == "full"


class Negatives(NamedTuple):
    """ids int32 [2, S]: words drawn for the forward and the backward loss; draws int32 [2]: how many draws it took."""

    ids: np.ndarray
    draws: np.ndarray


class Metrics(NamedTuple):
    """Of one step: losses of both directions [2] (nats a token), norm of the unclipped gradient of loss × window []."""

    losses: jax.Array
    gradient_norm: jax.Array

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


def init_state(parameters: dict[str, Any]) -> TrainState:
    """The state before the first step; Adagrad's accumulators start at 1 (bilm-tf)."""
    return TrainState(jnp.zeros((), jnp.int32), parameters, jax.tree.map(jnp.ones_like, parameters))


def draw_negatives(config: Config, vocabulary_size: int, step: int) -> Negatives:
    """The negatives of a step, a function of seed and step; all devices share them."""
    keys = [(config.train.seed, 1, step, direction) for direction in (0, 1)]
    ids, draws = zip(*(sample_negatives(vocabulary_size, config.train.negatives, key) for key in keys), strict=True)
    return Negatives(np.stack(ids), np.array(draws, np.int32))


def dropout_by_row(key: jax.Array, rows: jax.Array, rate: float):
    """Dropout whose masks depend on the key, the place and the row, not on which device holds the row.

    Returns (place, x [T, B, P]) → x, with a fresh mask at every position; rows int32 [B] are the rows' numbers.
    """

    def dropout(place: int, x: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, place), row))(rows)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (x.shape[0], x.shape[2])), out_axes=1)(keys)
        return jnp.where(keep, x / (1 - rate), 0.0)

    return dropout


def distinct_rows(ids: jax.Array, vocabulary_size: int) -> tuple[jax.Array, jax.Array]:
    """Distinct ids, ascending [K], and which of them each of ids [M] is; K is the lesser of M and V.

    The places left over hold numbers from V up, all different, which gathers and scatters leave out.
    """
    size = min(len(ids), vocabulary_size)
    distinct, numbers = jnp.unique(ids, return_inverse=True, size=size, fill_value=vocabulary_size)
    spare = vocabulary_size + jnp.arange(size, dtype=ids.dtype)
    return jnp.where(distinct < vocabulary_size, distinct, spare), numbers


def gather_rows(table: jax.Array, rows: jax.Array, fill: float) -> jax.Array:
    """table [V, ..], rows [K] → [K, ..]."""
    return table.at[rows].get(mode="fill", fill_value=fill, unique_indices=True, indices_are_sorted=True)


def scatter_rows(table: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    """table [V, ..] with values [K, ..] in `rows` [K]; in place if the table is donated."""
    return table.at[rows].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)


class SoftmaxRows(NamedTuple):
    """The rows of the softmax that a step touches, and where its words are among them.

    rows        int32 [K] ascending, see `distinct_rows`; None: the whole table
    targets     int32 [2, N] of the forward and the backward loss
    negatives   int32 [2, S]; None: full softmax
    """

    rows: jax.Array | None
    targets: jax.Array
    negatives: jax.Array | None

    def select(self, tree: dict[str, Any], fill: float) -> dict[str, Any]:
        """A tree like the parameters with only these rows of its softmax."""
        if self.rows is None:
            return tree
        return tree | {"softmax": jax.tree.map(lambda table: gather_rows(table, self.rows, fill), tree["softmax"])}

    def merge(self, tree: dict[str, Any], selected: dict[str, Any]) -> dict[str, Any]:
        """`selected` with the rows that it lacks taken from `tree`."""
        if self.rows is None:
            return selected
        put = lambda table, values: scatter_rows(table, self.rows, values)
        return selected | {"softmax": jax.tree.map(put, tree["softmax"], selected["softmax"])}


def softmax_rows(batch: Batch, negatives: Negatives | None, vocabulary_size: int) -> SoftmaxRows:
    """The rows that all devices together touch, the same on every device; batch without its device axis."""
    targets = batch.targets.reshape(2, -1)
    if negatives is None:
        return SoftmaxRows(None, targets, None)
    everyones = lax.all_gather(targets, AXIS)  # [n, 2, N]
    rows, numbers = distinct_rows(jnp.concatenate([everyones.ravel(), negatives.ids.ravel()]), vocabulary_size)
    of_targets, of_negatives = jnp.split(numbers, [everyones.size])
    own = of_targets.reshape(everyones.shape)[lax.axis_index(AXIS)]
    return SoftmaxRows(rows, own, of_negatives.reshape(negatives.ids.shape))


def loss(
    config: Config,
    step: jax.Array,
    parameters: dict[str, Any],
    lstm_state: State,
    batch: Batch,
    rows: jax.Array,
    negatives: Negatives | None,
    of_softmax: SoftmaxRows,
    vocabulary_size: int,
) -> tuple[jax.Array, tuple[jax.Array, State]]:
    """Loss × window of one device's rows, and (the losses [2] of both directions, the LSTM state after the window).

    The loss is the mean of both directions' mean loss (bilm-tf training.py, train). parameters: of the softmax only
    the rows of `of_softmax`; the other arguments as in `train_step`.
    """
    model, train = config.model, config.train
    key = jax.random.fold_in(jax.random.key(train.seed), step)
    dropout = dropout_by_row(key, rows, train.dropout) if train.dropout else None
    bilm, reading = parameters["bilm"], Reading(batch.forward, batch.backward)
    vectors = word_vectors(model, bilm["words"], batch.words, batch.count, train.precision)
    activations, lstm_state = read_window(
        model, bilm, vectors, reading, lstm_state, precision=train.precision, dropout=dropout
    )
    table = parameters["softmax"]["weight"], parameters["softmax"]["bias"]
    losses = []
    for direction, hidden in enumerate(activations[:, -1].swapaxes(1, 2)):  # [T, b, P]
        if dropout is not None:
            hidden = dropout(2 * model.layers + direction, hidden)
        hidden = hidden.swapaxes(0, 1).reshape(-1, model.projection_dim)  # [N, P]
        if negatives is None:
            of_tokens = full_softmax_loss(hidden, *table, of_softmax.targets[direction], train.precision, AXIS)
        else:
            ids = batch.targets[direction].reshape(-1), negatives.ids[direction]
            counts = (log_expected_count(some, negatives.draws[direction], vocabulary_size) for some in ids)
            numbers = of_softmax.targets[direction], of_softmax.negatives[direction]
            of_tokens = sampled_softmax_loss(hidden, *table, *numbers, *counts, train.precision)
        losses.append(of_tokens.mean())
    losses = jnp.stack(losses)
    return losses.mean() * train.window, (losses, lstm_state)


def loss_gradients(
    config: Config, step: jax.Array, parameters: dict[str, Any], *inputs
) -> tuple[dict, jax.Array, State]:
    """Gradients of `loss`, averaged over devices, the losses [2] of both directions, and the LSTM state."""
    of_parameters = jax.grad(lambda parameters: loss(config, step, parameters, *inputs), has_aux=True)
    gradients, (losses, lstm_state) = of_parameters(parameters)
    if is_split(config):  # each device has the sum of its words' gradients
        own = jax.tree.map(lambda gradient: gradient / lax.axis_size(AXIS), gradients["softmax"])
        shared, losses = lax.pmean((gradients["bilm"], losses), AXIS)
        return {"bilm": shared, "softmax": own}, losses, lstm_state
    gradients, losses = lax.pmean((gradients, losses), AXIS)
    return gradients, losses, lstm_state


def global_norm(config: Config, gradients: dict[str, Any]) -> jax.Array:
    """Norm [] of the gradients of all parameters, also of words on other devices."""
    if not is_split(config):
        return optax.tree.norm(gradients)
    squares = [optax.tree.norm(gradients[part], squared=True) for part in ("bilm", "softmax")]
    return jnp.sqrt(squares[0] + lax.psum(squares[1], AXIS))


def train_step(
    config: Config,
    state: TrainState,
    lstm_state: State,
    batch: Batch,
    rows: jax.Array,
    negatives: Negatives | None,
) -> tuple[TrainState, State, Metrics]:
    """One step on one device's rows; devices meet over the mapped axis AXIS.

    The averaged gradient is clipped once by its global norm and applied by Adagrad (bilm-tf). Of the softmax only the
    rows that the step touches are gathered, differentiated, updated and scattered back; Adagrad leaves the others as
    they are, so this is exactly the dense update.

    lstm_state leaves [b, ..]; batch without its device axis; rows int32 [b] are the rows' numbers among those of all
    devices; negatives None: full softmax.
    """
    train, vocabulary_size = config.train, len(state.parameters["softmax"]["weight"])
    of_softmax = softmax_rows(batch, negatives, vocabulary_size)
    parameters = of_softmax.select(state.parameters, 0.0)
    gradients, losses, lstm_state = loss_gradients(
        config, state.step, parameters, lstm_state, batch, rows, negatives, of_softmax, vocabulary_size
    )
    norm = global_norm(config, gradients)
    clipped = jax.tree.map(lambda gradient: gradient * jnp.minimum(1.0, train.clip_norm / norm), gradients)
    sums = optax.ScaleByRssState(of_softmax.select(state.accumulators, 1.0))
    updates, sums = optax.scale_by_rss(eps=0.0).update(clipped, sums)
    parameters = jax.tree.map(lambda value, update: value - train.learning_rate * update, parameters, updates)
    state = TrainState(
        state.step + 1,
        of_softmax.merge(state.parameters, parameters),
        of_softmax.merge(state.accumulators, sums.sum_of_squares),
    )
    return state, lstm_state, Metrics(losses, norm)


def step_on_devices(config: Config, donate: bool = True) -> Callable:
    """`train_step` on all devices: (state, LSTM state, batch, rows, negatives) → (state, LSTM state, metrics).

    state as `place` makes it; leaves of the LSTM state [devices, b, ..], rows [devices, b]. With `donate` the states
    that go in are used up. `lower` is that of the compiled program.
    """
    axes = softmax_axes(is_split(config))
    of_state = TrainState(None, axes, axes)

    def leaves(state, *inputs):
        state, *rest = train_step(config, state, *inputs)
        return (state.step, *(tree[part] for tree in state[1:] for part in axes)), *rest

    of_leaves = None, *axes.values(), *axes.values()
    in_axes, out_axes = (of_state, 0, 0, 0, None), (of_leaves, 0, None)
    program = parallel(leaves, in_axes, out_axes, donate=(0, 1) if donate else ())

    def step(*inputs):
        (number, *trees), lstm_state, metrics = program(*inputs)
        parameters, accumulators = (dict(zip(axes, part, strict=True)) for part in (trees[:2], trees[2:]))
        return TrainState(number, parameters, accumulators), lstm_state, metrics

    step.lower = program.lower
    return step


def softmax_axes(split: bool) -> dict[str, int | None]:
    """Axis of the devices in each part of the parameters."""
    return {"bilm": None, "softmax": 0 if split else None}


# What the places without a word hold where the vocabulary is split: no probability, no gradient.
NO_WORD = {"weight": 0.0, "bias": -1e30}


def place(config: Config, state: TrainState) -> TrainState:
    """A state of whole arrays, the same on all processes → on all devices."""
    if not is_split(config):
        return replicate(state)

    def split(tree, fill):
        return {"bilm": replicate(tree["bilm"]), "softmax": shard_words(tree["softmax"], fill)}

    sums = dict.fromkeys(NO_WORD, 1.0)
    return TrainState(replicate(state.step), split(state.parameters, NO_WORD), split(state.accumulators, sums))


def whole(config: Config, state: TrainState, vocabulary_size: int) -> TrainState:
    """The inverse of `place`: NumPy arrays; every process calls it."""
    if not is_split(config):
        return fetch(state)
    join = lambda tree: {"bilm": fetch(tree["bilm"]), "softmax": gather_words(tree["softmax"], vocabulary_size)}
    return TrainState(fetch(state.step), join(state.parameters), join(state.accumulators))
