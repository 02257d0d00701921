"""LSTM layer with projection: its definition, then the same faster, with a backward pass of its own.

B rows, T positions in a window, P projection size, D cell size. Arrays are float32 unless said otherwise. `d_x` is the
gradient of the loss with respect to x.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.products import (
    applied,
    bias_gradient,
    blocks,
    columns,
    form,
    joined_blocks,
    kept_parts,
    operand,
    packed,
    parts,
    product,
    scan,
    sigmoid,
    transposed,
    unpacked,
    weight_gradient,
)

# i, j, f, o
GATES = 4


class LSTMState(NamedTuple):
    """Cell [B, D] and output [B, P] of one layer of one direction."""

    cell: jax.Array
    hidden: jax.Array


def lstm_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of a layer: rows of the kernel are x, h, its columns i, j, f, o."""
    size, cell = model.projection_dim, model.cell_dim
    projection = {} if size == cell else {"projection": (cell, size)}
    return {"kernel": (2 * size, 4 * cell), "bias": (4 * cell,)} | projection


def clip(x: jax.Array, limit: float | None) -> jax.Array:
    return x if limit is None else jnp.clip(x, -limit, limit)


def restarted(state: LSTMState, begins: jax.Array | None, start_state: LSTMState | None) -> LSTMState:
    """The state [B, ..] with `start_state` (no row axis) where a sentence `begins` [B]."""
    if begins is None:
        return state
    return jax.tree.map(lambda old, new: jnp.where(begins[:, None], new[None], old), state, start_state)


# The definition


def plain_cell(
    parameters: dict, x: jax.Array, state: LSTMState, model: ModelConfig, mask: jax.Array | None = None
) -> LSTMState:
    """One position of an LSTM with projection (Sak et al. 2014): x [B, P], state → state, whose `hidden` is output.

    z = [x; h] W + b, split into i, j, f, o (TensorFlow's order); c = clip(σ(f + 1) c + σ(i) tanh(j));
    h = clip((σ(o) tanh(c)) Wp). The 1 is not in the stored bias. As in TensorFlow, h is clipped only if projected. Last
    it is multiplied by `mask` [B, P] (AllenNLP's LstmCellWithProjection).
    """
    joined = jnp.concatenate([x, state.hidden], -1)
    z = product(joined, parameters["kernel"], "float32") + parameters["bias"][None]
    i, j, f, o = jnp.split(z, 4, -1)
    cell = clip(jax.nn.sigmoid(f + 1) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(j), model.cell_clip)
    hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
    if "projection" in parameters:
        hidden = clip(product(hidden, parameters["projection"], "float32"), model.projection_clip)
    return LSTMState(cell, hidden if mask is None else hidden * mask)


def plain_lstm(
    parameters: dict,
    inputs: jax.Array,
    state: LSTMState,
    model: ModelConfig,
    reset: jax.Array | None = None,
    start_state: LSTMState | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, LSTMState]:
    """One layer over a window: inputs [T, B, P], state → outputs [T, B, P], state.

    Where `reset` [T, B] is true, the state before the position is `start_state` (cell [D], hidden [P]). Every output,
    and so what is read of it at the next position, is multiplied by `mask` [B, P].
    """

    def step(state, position):
        x, begins = position
        state = plain_cell(parameters, x, restarted(state, begins, start_state), model, mask)
        return state, state.hidden

    state, outputs = lax.scan(step, state, (inputs, reset))
    return outputs, state


# The same, faster


class Positions(NamedTuple):
    """What the scan reads at each position: inputs [T, B, P] packed, reset [T, B] and used [T] as in `lstm`."""

    inputs: jax.Array
    reset: jax.Array | None
    used: jax.Array | None


class Trace(NamedTuple):
    """What the backward pass needs of every position, packed but for the cells.

    hidden       [T, B, P] the output before the position, which the product read beside x
    gates        [T, B, D] each: σ(i), tanh(j), σ(f + 1), σ(o); or all in one array
    cell         [T, B, D] the cell before the position
    unprojected  [T, B, D] the output before its projection; None where it is not projected
    """

    hidden: jax.Array
    gates: list[jax.Array]
    cell: jax.Array
    unprojected: jax.Array | None


class Weights(NamedTuple):
    """A layer's parameters as products read them: the kernel in blocks of columns, the bias in a part for each gate."""

    kernel: tuple[jax.Array, ...]
    bias: list[jax.Array]
    projection: jax.Array | None


def prepared(parameters: dict, precision: Precision) -> Weights:
    """A layer's parameters prepared once for many windows: `lstm` takes them in place of the parameters."""
    return _weights(parameters, functools.partial(operand, precision=precision))


def _weights(parameters: dict, prepare) -> Weights:
    projection = prepare(parameters["projection"]) if "projection" in parameters else None
    bias = jnp.split(parameters["bias"].astype(jnp.float32), GATES)
    return Weights(tuple(map(prepare, blocks(parameters["kernel"], GATES))), bias, projection)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def lstm(
    parameters: dict | Weights,
    inputs: jax.Array,
    state: LSTMState,
    model: ModelConfig,
    precision: Precision,
    reset: jax.Array | None = None,
    start_state: LSTMState | None = None,
    used: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, LSTMState]:
    """`plain_lstm` with products of `precision`.

    Positions that are not `used` [T] cost nothing but on GPU: their output is zero, the state stays. Neither that nor
    `Weights` are for training; `mask`, of which no gradient is taken, is for training only. x and h are multiplied
    together in the scan: x W hoisted out of it would be written and read back.
    """
    positions = Positions(packed(inputs, precision), reset, used)
    outputs, _, state = _scan(parameters, positions, state, start_state, model, precision, mask, trace=False)
    return outputs, state


@jax.named_scope("lstm")
def _scan(parameters, positions, state, start_state, model, precision, mask, trace):
    """Outputs [T, B, P], with `trace` what the backward pass needs, and the state."""
    weights = parameters if isinstance(parameters, Weights) else prepared(parameters, precision)

    def step(state, position):
        state = restarted(state, position.reset, start_state)
        hidden = packed(state.hidden, precision)
        after, gates, unprojected = _cell(weights, model, precision, state, position.inputs, hidden, mask)
        keep = functools.partial(packed, precision=precision)
        projected = weights.projection is not None
        gates = kept_parts([keep(gate) for gate in gates])
        kept = Trace(hidden, gates, state.cell, keep(unprojected) if projected else None)
        return after, (after.hidden, kept if trace else None)

    def step_if_used(state, position):
        skip = lambda state, position: (state, (jnp.zeros_like(state.hidden), None))
        if form().skips_positions:
            return lax.cond(position.used, step, skip, state, position)
        choose = functools.partial(jnp.where, position.used)
        return jax.tree.map(choose, step(state, position), skip(state, position))

    state, (outputs, traced) = scan(step if positions.used is None else step_if_used, state, positions)
    return outputs, traced, state


def _cell(weights, model, precision, state, x, hidden, mask):
    """One position, given its x and the output before it, packed → state, gates, the output not yet projected."""
    joined = jnp.concatenate([x, hidden], -1)
    z = parts([applied(joined, block, precision) for block in weights.kernel], GATES)
    i, j, f, o = (part + bias[None] for part, bias in zip(z, weights.bias, strict=True))
    gates = i, j, f, o = sigmoid(i), jnp.tanh(j), sigmoid(f + 1), sigmoid(o)
    cell = clip(f * state.cell + i * j, model.cell_clip)
    unprojected = output = o * jnp.tanh(cell)
    if weights.projection is not None:
        output = clip(applied(unprojected, weights.projection, precision), model.projection_clip)
    return LSTMState(cell, output if mask is None else output * mask), gates, unprojected


def _lstm_forward(parameters, inputs, state, model, precision, reset, start_state, used, mask):
    if used is not None or isinstance(parameters, Weights):
        raise NotImplementedError("positions left out and prepared weights are for inference only")
    positions = Positions(packed(inputs, precision), reset, None)
    outputs, traced, state = _scan(parameters, positions, state, start_state, model, precision, mask, trace=True)
    return (outputs, state), (parameters, positions, outputs, traced, start_state, mask)


@jax.named_scope("lstm")
def _lstm_backward(model, precision, saved, d_results):
    """Back through time; the weights' gradients are products over all positions, after the scan.

    In the scan, as autodiff has them, they would be read and written again at every position.
    """
    parameters, (inputs, reset, _), outputs, traced, start_state, mask = saved
    weights = _weights(parameters, functools.partial(transposed, precision=precision))

    def step(carry, position):
        (d_state, d_start), (*position, begins) = carry, position
        d_state, gradients = _cell_backward(weights, model, precision, mask, d_state, *position)
        if begins is not None:
            d_begun = jax.tree.map(lambda d: jnp.where(begins[:, None], d, 0.0), d_state)
            d_start = jax.tree.map(lambda total, d: total + d.sum(0), d_start, d_begun)
            d_state = jax.tree.map(lambda d: jnp.where(begins[:, None], 0.0, d), d_state)
        return (d_state, d_start), gradients

    d_outputs, d_end = d_results
    initial = d_end, jax.tree.map(jnp.zeros_like, start_state)
    positions = d_outputs, outputs, traced.gates, traced.cell, reset
    (d_state, d_start), (d_inputs, d_z, d_hidden) = scan(step, initial, positions, reverse=True)
    joined = jnp.concatenate([inputs, traced.hidden], -1)
    d_parameters = {
        "kernel": columns([weight_gradient(joined, block, precision) for block in d_z]),
        "bias": jnp.concatenate([bias_gradient(block, precision) for block in d_z]),
    }
    if "projection" in parameters:
        d_parameters["projection"] = weight_gradient(traced.unprojected, d_hidden, precision)
    return d_parameters, d_inputs, d_state, None, d_start, None, None


def _cell_backward(weights, model, precision, mask, d_state, d_output, output, gates, cell_before):
    """Back through one position: d_state after it → d_state before it, and d_x; weights are given transposed.

    Beside d_x what the weights' gradients are products of, packed: d_z in blocks, and d_hidden.
    """
    i, j, f, o = parts(list(map(unpacked, gates)), GATES)
    d_hidden = d_state.hidden + d_output
    if mask is not None:
        d_hidden = d_hidden * mask
    d_unprojected = d_hidden
    if weights.projection is not None:
        d_hidden = packed(d_hidden * _within(output, model.projection_clip, mask), precision)
        d_unprojected = product(d_hidden, weights.projection, precision)
    cell = clip(f * cell_before + i * j, model.cell_clip)
    tanh = jnp.tanh(cell)
    d_cell = (d_state.cell + d_unprojected * o * (1 - tanh * tanh)) * _within(cell, model.cell_clip)
    d_z = [
        d_cell * j * i * (1 - i),
        d_cell * i * (1 - j * j),
        d_cell * cell_before * f * (1 - f),
        d_unprojected * tanh * o * (1 - o),
    ]
    d_z = joined_blocks([packed(part, precision) for part in d_z])
    d_joined = sum(product(block, weight, precision) for block, weight in zip(d_z, weights.kernel, strict=True))
    d_x, d_hidden_before = jnp.split(d_joined, 2, -1)
    return LSTMState(d_cell * f, d_hidden_before), (d_x, d_z, d_hidden)


def _within(x: jax.Array, limit: float | None, mask: jax.Array | None = None) -> jax.Array:
    """Derivative of `clip`, given its result; if that has been multiplied by a mask, where this is not 0."""
    if limit is None:
        return jnp.ones_like(x)
    return (jnp.abs(x) < (limit if mask is None else limit * mask)).astype(jnp.float32)


lstm.defvjp(_lstm_forward, _lstm_backward)
