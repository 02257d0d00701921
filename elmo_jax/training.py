"""The pure training step, and the step compiled for all devices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from elmo_jax.config import Config
from elmo_jax.losses import (
    full_softmax_loss,
    log_expected_count,
    sample_negatives,
    sampled_softmax_loss,
    softmax_axes,
)
from elmo_jax.model import Reading, State, read_window, word_vectors
from elmo_jax.parallel import AXIS, fetch, gather_words, has_peers, parallel, replicate, shard_words
from elmo_jax.products import form
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


def dropout_by_row(key: jax.Array, row_ids: jax.Array, rate: float):
    """Dropout whose masks depend on the key, the place and the row, not on which device holds the row.

    Returns (place, x [T, B, P]) → x, with a fresh mask at every position; row_ids int32 [B].
    """

    def dropout(place: int, x: jax.Array) -> jax.Array:
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, place), row))(row_ids)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (x.shape[0], x.shape[2])), out_axes=1)(keys)
        return jnp.where(keep, x / (1 - rate), 0.0)

    return dropout


def distinct_ids(ids: jax.Array, vocabulary_size: int) -> tuple[jax.Array, jax.Array]:
    """Distinct ids, ascending [K], and which of them each of ids [M] is; K is the lesser of M and V.

    The places left over hold numbers from V up, all different, which gathers and scatters leave out.
    """
    ordered, places = lax.sort_key_val(ids, lax.iota(ids.dtype, len(ids)))
    ranks = jnp.cumsum(jnp.diff(ordered, prepend=ordered[:1]) > 0)  # jnp.unique takes TPUs' compiler twice as long
    spare = vocabulary_size + lax.iota(ids.dtype, min(len(ids), vocabulary_size))
    return spare.at[ranks].set(ordered), jnp.zeros_like(ids).at[places].set(ranks, unique_indices=True)


@jax.named_scope("rows")
def gather_rows(table: jax.Array, row_ids: jax.Array) -> jax.Array:
    """table [V, ..], row_ids [K] → [K, ..]; ids from V up give the last row, of which nothing is used."""
    return table.at[row_ids].get(mode="clip", indices_are_sorted=True)


@jax.named_scope("rows")
def scatter_rows(table: jax.Array, row_ids: jax.Array, values: jax.Array) -> jax.Array:
    """table [V, ..] with values [K, ..] in `row_ids` [K]; in place if the table is donated."""
    return table.at[row_ids].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)


class TouchedWords(NamedTuple):
    """The words whose part of the softmax a step touches, and where its targets and negatives are among them.

    row_ids              int32 [K] ascending, see `distinct_ids`: their rows of the table; None: all
    targets              int32 [2, N] of the forward and the backward loss
    negatives            int32 [2, S]
    target_log_counts    [2, N] see `log_expected_count`
    negative_log_counts  [2, S]

    With the full softmax all but the targets are None.
    """

    row_ids: jax.Array | None
    targets: jax.Array
    negatives: jax.Array | None = None
    target_log_counts: jax.Array | None = None
    negative_log_counts: jax.Array | None = None

    def select(self, tree: dict[str, Any]) -> dict[str, Any]:
        """A tree like the parameters with only these words' rows of its softmax."""
        if self.row_ids is None:
            return tree
        return tree | {"softmax": jax.tree.map(lambda table: gather_rows(table, self.row_ids), tree["softmax"])}

    def merge(self, tree: dict[str, Any], selected: dict[str, Any]) -> dict[str, Any]:
        """`selected` with the rows that it lacks taken from `tree`."""
        if self.row_ids is None:
            return selected
        put = lambda table, values: scatter_rows(table, self.row_ids, values)
        return selected | {"softmax": jax.tree.map(put, tree["softmax"], selected["softmax"])}


@jax.named_scope("rows")
def touched_words(batch: Batch, negatives: Negatives | None, vocabulary_size: int) -> TouchedWords:
    """The words that all devices together touch, the same on every device; batch without its device axis."""
    targets = batch.targets.reshape(2, -1)
    if negatives is None:
        return TouchedWords(None, targets)
    everyones = lax.all_gather(targets, AXIS)  # [n, 2, N]
    row_ids, numbers = distinct_ids(jnp.concatenate([everyones.ravel(), negatives.ids.ravel()]), vocabulary_size)
    of_targets, of_negatives = jnp.split(numbers, [everyones.size])
    own = of_targets.reshape(everyones.shape)[lax.axis_index(AXIS)]
    log_counts = (
        log_expected_count(ids, negatives.draws[:, None], vocabulary_size) for ids in (targets, negatives.ids)
    )
    return TouchedWords(row_ids, own, of_negatives.reshape(negatives.ids.shape), *log_counts)


class LossInputs(NamedTuple):
    """What the loss depends on beside the parameters: see `train_step`, and the words that the step touches."""

    step: jax.Array
    lstm_state: State
    batch: Batch
    row_ids: jax.Array
    touched: TouchedWords


def loss(config: Config, parameters: dict[str, Any], inputs: LossInputs) -> tuple[jax.Array, tuple[jax.Array, State]]:
    """Loss × window of one device's rows, and (the losses [2] of both directions, the LSTM state after the window).

    The loss is the mean of both directions' mean loss (bilm-tf training.py, train). parameters: of the softmax only
    the rows of the touched words.
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
    losses = token_losses(config, parameters["softmax"], hidden, inputs.touched).mean(1)
    return losses.mean() * train.window, (losses, lstm_state)


def token_losses(config: Config, softmax: dict[str, jax.Array], hidden: jax.Array, touched: TouchedWords) -> jax.Array:
    """Loss [2, N] of each token of both directions, given the top layer's outputs [2, N, P]."""
    table, precision = (softmax["weight"], softmax["bias"]), config.train.precision
    if touched.negatives is not None:
        of_direction = lambda hidden, *words: sampled_softmax_loss(hidden, *table, *words, precision)
        return jax.vmap(of_direction)(hidden, *touched[1:])
    of_direction = lambda hidden, targets: full_softmax_loss(hidden, *table, targets, precision, AXIS)
    return jnp.stack(list(map(of_direction, hidden, touched.targets)))


def loss_gradients(config: Config, parameters: dict[str, Any], inputs: LossInputs) -> tuple[dict, jax.Array, State]:
    """Gradients of `loss`, averaged over devices, the losses [2] of both directions, and the LSTM state."""
    differentiate = jax.grad(lambda parameters: loss(config, parameters, inputs), has_aux=True)
    gradients, (losses, lstm_state) = differentiate(parameters)
    if is_split(config):  # each device has the sum of its words' gradients
        own = jax.tree.map(lambda gradient: gradient / lax.axis_size(AXIS), gradients["softmax"])
        shared, losses = lax.pmean((gradients["bilm"], losses), AXIS)
        return {"bilm": shared, "softmax": own}, losses, lstm_state
    gradients, losses = lax.pmean((gradients, losses), AXIS)
    return gradients, losses, lstm_state


@jax.named_scope("update")
def global_norm(config: Config, gradients: dict[str, Any]) -> jax.Array:
    """Norm [] of the gradients of all parameters. Of those that devices share each sums up its part of the rows."""
    devices = lax.axis_size(AXIS)

    def own_square(gradient):
        if len(gradient) % devices:
            return optax.tree.norm(gradient, squared=True) / devices
        size = len(gradient) // devices
        return optax.tree.norm(lax.dynamic_slice_in_dim(gradient, lax.axis_index(AXIS) * size, size), squared=True)

    own = {"softmax": gradients["softmax"]} if is_split(config) else {}
    shared = jax.tree.leaves({part: tree for part, tree in gradients.items() if part not in own})
    return jnp.sqrt(lax.psum(sum(map(own_square, shared)) + optax.tree.norm(own, squared=True), AXIS))


def train_step(
    config: Config,
    state: TrainState,
    lstm_state: State,
    batch: Batch,
    row_ids: jax.Array,
    negatives: Negatives | None,
) -> tuple[TrainState, State, Metrics]:
    """One step on one device's rows; devices meet over the mapped axis AXIS.

    The averaged gradient is clipped once by its global norm and applied by Adagrad (bilm-tf). Of the softmax only the
    rows that the step touches are gathered, differentiated, updated and scattered back; Adagrad leaves the others as
    they are, so this is exactly the dense update.

    lstm_state leaves [b, ..]; batch without its device axis; row_ids int32 [b], numbers of the rows among those of all
    devices; negatives None: full softmax.
    """
    train = config.train
    touched = touched_words(batch, negatives, len(state.parameters["softmax"]["weight"]))
    parameters = touched.select(state.parameters)
    inputs = LossInputs(state.step, lstm_state, batch, row_ids, touched)
    gradients, losses, lstm_state = loss_gradients(config, parameters, inputs)
    norm = global_norm(config, gradients)
    sums = optax.ScaleByRssState(touched.select(state.accumulators))
    with jax.named_scope("update"):
        clipped = jax.tree.map(lambda gradient: gradient * jnp.minimum(1.0, train.clip_norm / norm), gradients)
        updates, sums = optax.scale_by_rss(eps=0.0).update(clipped, sums)
        parameters = jax.tree.map(lambda value, update: value - train.learning_rate * update, parameters, updates)
    state = TrainState(
        state.step + 1,
        touched.merge(state.parameters, parameters),
        touched.merge(state.accumulators, sums.sum_of_squares),
    )
    return state, lstm_state, Metrics(losses, norm)


def trimmed(batch: Batch) -> Batch:
    """The batch with room for no more words than there are, rounded up to an eighth of U: so few programs."""
    eighth = -(-batch.words.shape[1] // 8)
    return batch._replace(words=batch.words[:, : -(-int(batch.count.max()) // eighth) * eighth])


def step_on_devices(config: Config, donate: bool = True, devices: Sequence[jax.Device] | None = None) -> Callable:
    """`train_step` on `devices`, or all: (state, LSTM state, batch, row_ids, negatives) → (state, LSTM state, metrics).

    state as `place` makes it; leaves of the LSTM state [devices, b, ..], row_ids [devices, b]. With `donate` the
    states that go in are used up. `lower` is that of the compiled program.
    """
    axes = softmax_axes(is_split(config))
    state_axes = TrainState(None, axes, axes)

    def leaves(state, lstm_state, batch, row_ids, negatives):
        state, lstm_state, metrics = train_step(config, state, lstm_state, batch, row_ids, negatives)
        return (state.step, *(tree[part] for tree in state[1:] for part in axes)), lstm_state, metrics

    leaf_axes = None, *axes.values(), *axes.values()
    in_axes, out_axes = (state_axes, 0, 0, 0, None), (leaf_axes, 0, None)
    program = parallel(leaves, in_axes, out_axes, donate=(0, 1) if donate else (), devices=devices)

    def step(state, lstm_state, batch, row_ids, negatives):
        if form().chunk is None and not has_peers():  # who must all run one program
            batch = trimmed(batch)
        (number, *trees), lstm_state, metrics = program(state, lstm_state, batch, row_ids, negatives)
        parameters, accumulators = (dict(zip(axes, part, strict=True)) for part in (trees[:2], trees[2:]))
        return TrainState(number, parameters, accumulators), lstm_state, metrics

    step.lower = program.lower
    return step


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


def to_host(config: Config, state: TrainState, vocabulary_size: int) -> TrainState:
    """The inverse of `place`: NumPy arrays; every process calls it."""
    if not is_split(config):
        return fetch(state)
    join = lambda tree: {"bilm": fetch(tree["bilm"]), "softmax": gather_words(tree["softmax"], vocabulary_size)}
    return TrainState(fetch(state.step), join(state.parameters), join(state.accumulators))
