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
from elmo_jax.optimizers import ADAGRAD, Optimizer, learning_rate, optimizer_of
from elmo_jax.parallel import AXIS, fetch, has_peers, parallel, replicate
from elmo_jax.products import form
from elmo_jax.softmax_table import PARAMETER_AXES, Exchange, Touched, WholePart, places_of
from elmo_jax.streams import Batch


class TrainState(NamedTuple):
    """Everything that a step changes and that does not belong to rows.

    step           int32 []: steps done
    parameters     {"bilm": .., "softmax": {"weight" [V, P], "bias" [V]}}
    accumulators   {"bilm": .., "softmax": ..}: what the optimiser keeps of both; Adagrad the same tree, sums of squared
                   gradients

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
    """Of one step: losses of both directions [2] (nats a token), norm of the unclipped gradient of loss × window [].

    layer_norms: with train.tensorboard that of each of `layers`.
    """

    losses: jax.Array
    gradient_norm: jax.Array
    layer_norms: jax.Array | None = None

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


def init_state(parameters: dict[str, Any], optimizer: Optimizer = ADAGRAD) -> TrainState:
    """The state before the first step; what the optimiser keeps takes no memory until `place`."""
    return TrainState(jnp.zeros((), jnp.int32), parameters, optimizer.start(parameters))


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


def recurrent_masks_by_row(key: jax.Array, row_ids: jax.Array, rate: float, size: int):
    """Dropout of an LSTM's outputs, as it reads them again: (place) → mask [B, size], one for a whole window."""

    def mask(place: int) -> jax.Array:
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, place), row))(row_ids)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (size,)))(keys)
        return jnp.where(keep, 1 / (1 - rate), 0.0)

    return mask


def reset_by_row(key: jax.Array, row_ids: jax.Array, rate: float, lstm_state: State) -> State:
    """The LSTM state, leaves [B, ..], zero in a share `rate` of the rows."""
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(row_ids)
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
    return jax.tree.map(lambda leaf: jnp.where(keep[:, None], leaf, 0.0), lstm_state)


class LossInputs(NamedTuple):
    """What the loss depends on beside the parameters.

    See `train_step`; targets int32 [2, N], of both directions, places in the softmax's table; words: of the sampled
    softmax, each with a leading axis of directions, None: the full softmax. N: tokens of all microbatches.
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
    targets = batch.targets if batch.targets.ndim == 3 else batch.targets.swapaxes(0, 1)
    targets = targets.reshape(2, -1)
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
    own_key = lambda number: jax.random.fold_in(key, 2 * model.layers + 2 + number)  # after the places of `dropout`
    if train.recurrent_dropout:
        rate, size = train.recurrent_dropout, model.projection_dim
        options["recurrent_mask"] = recurrent_masks_by_row(own_key(0), inputs.row_ids, rate, size)
    lstm_state = inputs.lstm_state
    if train.state_reset:
        lstm_state = reset_by_row(own_key(1), inputs.row_ids, train.state_reset, lstm_state)
    activations, lstm_state = read_window(model, bilm, vectors, reading, lstm_state, **options)
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


def own_gradients(config: Config, parameters: dict[str, Any], inputs: LossInputs) -> tuple[dict, tuple]:
    """Gradients of `loss` of this device's rows, and what it returns beside."""
    differentiate = jax.grad(lambda parameters: loss(config, parameters, inputs), has_aux=True)
    return differentiate(parameters)


def accumulated_gradients(config: Config, parameters: dict[str, Any], inputs: LossInputs) -> tuple[dict, tuple]:
    """`own_gradients` of microbatches of rows, one after the other: as if they were one, to rounding.

    Of tokens only the softmax's rows and their gradients are there all the time, P numbers of each; what the layers
    keep for the backward pass is that of one microbatch.
    """
    count, words, table = config.train.accumulate, inputs.words, dict(parameters["softmax"])
    apart = lambda array: array.reshape(count, -1, *array.shape[1:])
    tokens_apart = lambda array: array.reshape(2, count, -1, *array.shape[2:]).swapaxes(0, 1)
    together = lambda array: array.reshape(-1, *array.shape[2:])
    tokens_together = lambda array: array.swapaxes(0, 1).reshape(2, -1, *array.shape[3:])
    of_rows = jax.tree.map(apart, (inputs.lstm_state, inputs.row_ids))
    of_words = None if words is None else (words.targets, words.target_log_counts)
    of_tokens = jax.tree.map(tokens_apart, (inputs.targets, of_words, table.pop("targets", None)))

    def add(totals, microbatch):
        batch, (lstm_state, row_ids), (targets, of_words, rows) = microbatch
        own_words = None if words is None else words._replace(targets=of_words[0], target_log_counts=of_words[1])
        softmax = table if rows is None else table | {"targets": rows}
        given = LossInputs(inputs.step, lstm_state, batch, row_ids, targets, own_words)
        gradients, (losses, lstm_state) = own_gradients(config, parameters | {"softmax": softmax}, given)
        own = gradients["softmax"].pop("targets", None)
        return jax.tree.map(jnp.add, totals, (gradients, losses)), (lstm_state, own)

    zeros = jax.tree.map(jnp.zeros_like, parameters | {"softmax": table}), jnp.zeros(2)
    totals, (lstm_state, own) = lax.scan(add, zeros, (inputs.batch, of_rows, of_tokens))
    gradients, losses = totals
    if own is not None:
        gradients["softmax"]["targets"] = jax.tree.map(tokens_together, own)
    gradients, losses = jax.tree.map(lambda total: total / count, (gradients, losses))
    return gradients, (losses, jax.tree.map(together, lstm_state))


def loss_gradients(config: Config, parameters: dict[str, Any], inputs: LossInputs) -> tuple[dict, jax.Array, State]:
    """Gradients of `loss`, the losses [2] of both directions, averaged over devices, and the LSTM state.

    Of the softmax's part, and of the targets' rows, each device has its own gradients: what it adds to the average.
    """
    of_rows = own_gradients if config.train.accumulate == 1 else accumulated_gradients
    gradients, (losses, lstm_state) = of_rows(config, parameters, inputs)
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
    return jnp.sqrt(lax.psum(sum(map(part_square, jax.tree.leaves(shared))) + own_square, AXIS))


def part_square(gradient: jax.Array) -> jax.Array:
    """The part [] that this device sums up of the squared norm of a gradient that all share."""
    devices = lax.axis_size(AXIS)
    if len(gradient) % devices:
        return optax.tree.norm(gradient, squared=True) / devices
    size = len(gradient) // devices
    return optax.tree.norm(lax.dynamic_slice_in_dim(gradient, lax.axis_index(AXIS) * size, size), squared=True)


def layers(parameters: dict[str, Any]) -> list[str]:
    """Names of the parts of the model whose norms are reported."""
    return [*sorted(parameters["bilm"]), "softmax"]


@jax.named_scope("update")
def layer_norms(shared: dict[str, Any], own_square: jax.Array) -> jax.Array:
    """Of each of `layers` the norm of its gradients or parameters; arguments as in `global_norm`."""
    squares = [sum(map(part_square, jax.tree.leaves(shared[name]))) for name in sorted(shared)]
    return jnp.sqrt(lax.psum(jnp.stack([*squares, own_square]), AXIS))


def parameter_norms() -> Callable[[dict[str, Any]], jax.Array]:
    """Compiles parameters as `place` makes them → the norm of each of `layers`; of the softmax that of its weight."""

    def norms(parameters):
        return layer_norms(parameters["bilm"], optax.tree.norm(parameters["softmax"]["weight"], squared=True))

    return parallel(norms, (PARAMETER_AXES,), None)


class Update(NamedTuple):
    """Calls the optimiser with the gradients × scale []."""

    config: Config
    step: jax.Array
    learning_rate: float | jax.Array
    scale: jax.Array

    @jax.named_scope("update")
    def __call__(self, parameters: Any, accumulators: Any, gradients: Any) -> tuple[Any, Any]:
        """Parameters and accumulators, {"bilm", "softmax"} or one of both, after a step."""
        train = self.config.train
        scaled = jax.tree.map(lambda gradient: gradient * self.scale, gradients)
        return optimizer_of(train).update(train, self.step, self.learning_rate, parameters, accumulators, scaled)

    def of_places(
        self, state: TrainState, bilm: Any, exchange: Exchange | WholePart, first: Touched, touched: Callable
    ):
        """Of all, given the biLM's gradients: of the table only the places that are touched, one round at a time."""
        whole = state.parameters, state.accumulators

        def of_round(touched, tables):
            selected = ({"softmax": touched.select(table)} for table in tables)
            updated = self(*selected, {"softmax": touched.gradients})
            return tuple(touched.merge(table, part["softmax"]) for table, part in zip(tables, updated, strict=True))

        tables = of_round(first, tuple(tree["softmax"] for tree in whole))
        tables = exchange.further(lambda given, tables: of_round(touched(given), tables), tables)
        bilms = self(*({"bilm": tree["bilm"]} for tree in whole), {"bilm": bilm})
        return tuple(part | {"softmax": table} for part, table in zip(bilms, tables, strict=True))

    def of_all(self, state: TrainState, bilm: Any, exchange: Any, first: Touched, touched: Callable):
        """The same where every place of the table changes, though most have the gradient 0."""
        put = lambda touched, table: touched.merge(table, touched.gradients)
        table = put(first, jax.tree.map(jnp.zeros_like, state.parameters["softmax"]))
        table = exchange.further(lambda given, table: put(touched(given), table), table)
        return self(state.parameters, state.accumulators, {"bilm": bilm, "softmax": table})


def train_step(
    config: Config,
    state: TrainState,
    lstm_state: State,
    batch: Batch,
    row_ids: jax.Array,
    negatives: Negatives | None,
) -> tuple[TrainState, State, Metrics]:
    """One step on one device's rows; devices meet over the mapped axis AXIS.

    The averaged gradient is clipped once by its global norm (bilm-tf) and applied by the optimiser. With the sampled
    softmax only the rows of targets and negatives are fetched and differentiated. Where the optimiser leaves the others
    as they are (Adagrad), only these are updated, by the device that has them: exactly the dense update. Otherwise
    every device updates its whole part.

    lstm_state leaves [b, ..]; batch without its device axis, or instead with one of train.accumulate microbatches of
    the b rows; row_ids int32 [b], numbers of the rows among those of all devices; negatives None: full softmax.
    """
    inputs, exchange = loss_inputs(state, lstm_state, batch, row_ids, negatives)
    rows = exchange.fetch(state.parameters["softmax"])
    gradients, losses, lstm_state = loss_gradients(config, state.parameters | {"softmax": rows}, inputs)
    touched = exchange.give(gradients["softmax"])
    first = touched(exchange.first)
    square = lambda touched: optax.tree.norm(touched.gradients, squared=True)
    own_square = exchange.further(lambda given, total: total + square(touched(given)), square(first))
    norm = global_norm(gradients["bilm"], own_square)
    scale = jnp.minimum(1.0, config.train.clip_norm / norm)
    update = Update(config, state.step, learning_rate(config, state.step), scale)
    of = update.of_places if optimizer_of(config.train).by_place else update.of_all
    parameters, accumulators = of(state, gradients["bilm"], exchange, first, touched)
    of_layers = layer_norms(gradients["bilm"], own_square) if config.train.tensorboard else None
    return TrainState(state.step + 1, parameters, accumulators), lstm_state, Metrics(losses, norm, of_layers)


def trimmed(batch: Batch) -> Batch:
    """The batch with room for no more words than there are, rounded up to an eighth of U: so few programs."""
    eighth = -(-batch.words.shape[1] // 8)
    return batch._replace(words=batch.words[:, : -(-int(batch.count.max()) // eighth) * eighth])


def step_on_devices(config: Config, donate: bool = True, devices: Sequence[jax.Device] | None = None) -> Callable:
    """`train_step` on `devices`, or all: (state, LSTM state, batch, row_ids, negatives) → (state, LSTM state, metrics).

    state as `place` makes it; leaves of the LSTM state [devices, b, ..], row_ids [devices, b]; of the batch [devices,
    ..], or with train.accumulate [devices · microbatches, ..], as if there were as many devices. With `donate` the
    states that go in are used up. `lower` is that of the compiled program, whose batch has both axes.
    """
    axes, count = PARAMETER_AXES, config.train.accumulate

    def leaves(state, lstm_state, batch, row_ids, negatives):
        state, lstm_state, metrics = train_step(config, state, lstm_state, batch, row_ids, negatives)
        return (state.step, *(tree[part] for tree in state[1:] for part in axes)), lstm_state, metrics

    leaf_axes = None, *axes.values(), *axes.values()
    in_axes, out_axes = (STATE_AXES, 0, 0, 0, None), (leaf_axes, 0, None)
    program = parallel(leaves, in_axes, out_axes, donate=(0, 1) if donate else (), devices=devices)

    def step(state, lstm_state, batch, row_ids, negatives):
        if form().chunk is None and not has_peers():  # who must all run one program
            batch = trimmed(batch)
        if count > 1:
            batch = jax.tree.map(lambda array: array.reshape(-1, count, *array.shape[1:]), batch)
        (number, *trees), lstm_state, metrics = program(state, lstm_state, batch, row_ids, negatives)
        parameters, accumulators = (dict(zip(axes, part, strict=True)) for part in (trees[:2], trees[2:]))
        return TrainState(number, parameters, accumulators), lstm_state, metrics

    step.lower = program.lower
    return step


def place(state: TrainState, rows: int, optimizer: Optimizer = ADAGRAD) -> TrainState:
    """A state of whole arrays, in order of words and the same on all processes → on all devices.

    rows: those of all devices, now and for as long as the state is gone on with.
    """
    divide = lambda tree, *fill: {
        "bilm": replicate(tree["bilm"]),
        "softmax": softmax_table.place(tree["softmax"], rows, *fill),
    }
    return TrainState(replicate(state.step), divide(state.parameters), divide(state.accumulators, optimizer.fill))


def to_host(tree: dict[str, Any], vocabulary_size: int, rows: int) -> dict[str, Any]:
    """NumPy arrays, in order of words, of parameters (or accumulators) that `place` put on the devices.

    Every process calls it, and has all.
    """
    return {"bilm": fetch(tree["bilm"]), "softmax": softmax_table.to_host(tree["softmax"], vocabulary_size, rows)}
