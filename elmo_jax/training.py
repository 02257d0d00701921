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
    """Of one step: losses of both directions [2] (nats a token), norm of the gradient of loss × window [], unclipped."""

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
    """Distinct ids, ascending [K], and which of them each of ids [K] is.

    The places left over hold numbers from V up, all different, which gathers and scatters leave out.
    """
    distinct, numbers = jnp.unique(ids, return_inverse=True, size=len(ids), fill_value=vocabulary_size)
    spare = vocabulary_size + jnp.arange(len(ids), dtype=ids.dtype)
    return jnp.where(distinct < vocabulary_size, distinct, spare), numbers


def gather_rows(table: jax.Array, rows: jax.Array, fill: float) -> jax.Array:
    """table [V, ..], rows [K] → [K, ..]."""
    return table.at[rows].get(mode="fill", fill_value=fill, unique_indices=True, indices_are_sorted=True)


def scatter_rows(table: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
    """table [V, ..] with values [K, ..] in `rows` [K]; in place if the table is donated."""
    return table.at[rows].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)


def train_step(
    config: Config,
    axis: str,
    state: TrainState,
    lstm_state: State,
    batch: Batch,
    rows: jax.Array,
    negatives: Negatives | None,
) -> tuple[TrainState, State, Metrics]:
    """One step on one device's rows; devices meet over the mapped axis `axis`.

    As bilm-tf: loss is the mean of both directions' mean loss; the gradient of loss × window is averaged over
    devices, clipped once by its global norm, and applied by Adagrad. Of the softmax only the rows that the step
    touches are gathered, differentiated, updated and scattered back; Adagrad leaves the others as they are, so this
    is exactly the dense update.

    lstm_state leaves [b, ..]; batch without its device axis; rows int32 [b]; negatives None: full softmax.
    """
    train = config.train
    softmax = state.parameters["softmax"]
    vocabulary_size = len(softmax["weight"])
    bilm = BiLM(config.model, vocabulary_size, train.precision)
    key = jax.random.fold_in(jax.random.key(train.seed), state.step)
    dropout = dropout_by_row(key, rows, train.dropout) if train.dropout else None

    targets = batch.targets.reshape(2, -1)  # [2, N]
    if negatives is None:
        touched, target_rows, negative_rows = None, targets, None
    else:
        everyones = lax.all_gather(targets, axis).reshape(-1)
        touched, numbers = distinct_rows(jnp.concatenate([everyones, negatives.ids.reshape(-1)]), vocabulary_size)
        target_rows = numbers[: len(everyones)].reshape(-1, *targets.shape)[lax.axis_index(axis)]
        negative_rows = numbers[len(everyones) :].reshape(negatives.ids.shape)

    def select(tree, fill):
        if touched is None:
            return tree
        return tree | {"softmax": jax.tree.map(lambda table: gather_rows(table, touched, fill), tree["softmax"])}

    def loss(parameters):
        activations, new_lstm_state = bilm.apply(
            {"params": parameters["bilm"]}, batch.words, batch.forward, batch.backward, lstm_state, dropout=dropout
        )
        losses = []
        for direction, hidden in enumerate(activations[:, -1]):  # [b, T, P]
            if dropout is not None:
                place = 2 * config.model.layers + direction
                hidden = dropout(place, hidden.swapaxes(0, 1)).swapaxes(0, 1)
            table = parameters["softmax"]["weight"], parameters["softmax"]["bias"]
            inputs = hidden.reshape(-1, hidden.shape[-1]), *table, target_rows[direction]
            if negatives is None:
                loss = full_softmax_loss(*inputs, train.precision)
            else:
                counts = [
                    log_expected_count(ids[direction], negatives.draws[direction], vocabulary_size)
                    for ids in (targets, negatives.ids)
                ]
                loss = sampled_softmax_loss(*inputs, negative_rows[direction], *counts, train.precision)
            losses.append(loss.mean())
        losses = jnp.stack(losses)
        return losses.mean() * train.window, (losses, new_lstm_state)

    parameters = select(state.parameters, 0.0)
    gradients, (losses, lstm_state) = jax.grad(loss, has_aux=True)(parameters)
    losses, gradients = lax.pmean((losses, gradients), axis)
    norm = optax.tree.norm(gradients)
    clipped, _ = optax.clip_by_global_norm(train.clip_norm).update(gradients, optax.EmptyState())
    sums = optax.ScaleByRssState(select(state.accumulators, 1.0))
    updates, sums = optax.scale_by_rss(eps=0.0).update(clipped, sums)
    parameters = jax.tree.map(lambda value, update: value - train.learning_rate * update, parameters, updates)

    def merge(tree, new):
        if touched is None:
            return new
        put = lambda table, values: scatter_rows(table, touched, values)
        return new | {"softmax": jax.tree.map(put, tree["softmax"], new["softmax"])}

    parameters = merge(state.parameters, parameters)
    accumulators = merge(state.accumulators, sums.sum_of_squares)
    return TrainState(state.step + 1, parameters, accumulators), lstm_state, Metrics(losses, norm)
