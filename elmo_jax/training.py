"""Initial parameters and the pure training step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from elmo_jax.config import Config, ModelConfig
from elmo_jax.losses import Softmax, full_softmax_loss, log_expected_count, sample_negatives, sampled_softmax_loss
from elmo_jax.model import BiLM, State
from elmo_jax.parallel import AXIS
from elmo_jax.streams import Batch


class TrainState(NamedTuple):
    """Everything that a step changes and that all devices share.

    step           int32 []: steps done
    parameters     {"bilm": .., "softmax": {"weight" [V, P], "bias" [V]}}
    accumulators   the same tree: Adagrad's sums of squared gradients
    """

    step: jax.Array
    parameters: dict[str, Any]
    accumulators: dict[str, Any]


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


def init_softmax(key: jax.Array, model: ModelConfig, vocabulary_size: int) -> dict[str, jax.Array]:
    """Initial parameters of the output layer."""
    return jax.jit(Softmax(vocabulary_size, model.projection_dim).init)(key)["params"]


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
    bilm = BiLM(model, vocabulary_size, train.precision)
    key = jax.random.fold_in(jax.random.key(train.seed), step)
    dropout = dropout_by_row(key, rows, train.dropout) if train.dropout else None
    inputs = batch.words, batch.count, batch.forward, batch.backward, lstm_state
    activations, lstm_state = bilm.apply({"params": parameters["bilm"]}, *inputs, dropout=dropout)
    table = parameters["softmax"]["weight"], parameters["softmax"]["bias"]
    losses = []
    for direction, hidden in enumerate(activations[:, -1].swapaxes(1, 2)):  # [T, b, P]
        if dropout is not None:
            hidden = dropout(2 * model.layers + direction, hidden)
        hidden = hidden.swapaxes(0, 1).reshape(-1, model.projection_dim)  # [N, P]
        if negatives is None:
            of_tokens = full_softmax_loss(hidden, *table, of_softmax.targets[direction], train.precision)
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
    gradients, losses = lax.pmean((gradients, losses), AXIS)
    return gradients, losses, lstm_state


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
    norm = optax.tree.norm(gradients)
    clipped, _ = optax.clip_by_global_norm(train.clip_norm).update(gradients, optax.EmptyState())
    sums = optax.ScaleByRssState(of_softmax.select(state.accumulators, 1.0))
    updates, sums = optax.scale_by_rss(eps=0.0).update(clipped, sums)
    parameters = jax.tree.map(lambda value, update: value - train.learning_rate * update, parameters, updates)
    state = TrainState(
        state.step + 1,
        of_softmax.merge(state.parameters, parameters),
        of_softmax.merge(state.accumulators, sums.sum_of_squares),
    )
    return state, lstm_state, Metrics(losses, norm)
