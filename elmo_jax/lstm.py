"""LSTM layer with projection.

B rows, T positions in a window, P projection size, D cell size. Arrays are float32 unless said otherwise.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.products import as_operand, packed, product, transposed, unpacked


def lstm_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter; rows of the kernel x, h, columns i, j, f, o; no projection if P = D."""
    shapes: dict[str, tuple[int, ...]] = {
        "kernel": (2 * model.projection_dim, 4 * model.cell_dim),
        "bias": (4 * model.cell_dim,),
    }
    if model.projection_dim != model.cell_dim:
        shapes["projection"] = model.cell_dim, model.projection_dim
    return shapes


class LSTMState(NamedTuple):
    """Cell [B, D] and output [B, P] of one layer of one direction."""

    cell: jax.Array
    hidden: jax.Array


def sigmoid(x: jax.Array) -> jax.Array:
    """σ(x) by tanh, which costs less than exp on CPU."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def clip(x: jax.Array, limit: float | None) -> jax.Array:
    return x if limit is None else jnp.clip(x, -limit, limit)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def lstm(
    parameters: dict,
    inputs: jax.Array,
    state: LSTMState,
    reset: jax.Array | None,
    start: LSTMState | None,
    used: jax.Array | None,
    model: ModelConfig,
    precision: Precision,
) -> tuple[jax.Array, LSTMState]:
    """One LSTM layer with projection over a window: inputs [T, B, P], state → outputs [T, B, P], state.

    z = [x; h] W + b, split into i, j, f, o (TensorFlow's order); c = clip(σ(f + 1) c + σ(i) tanh(j));
    h = clip((σ(o) tanh(c)) Wp) is output and recurrent. The 1 is not in the stored bias. Where `reset` [T, B] is
    true, the state before the position is `start` (cell [D], hidden [P]). Positions that are not `used` [T] cost
    nothing: their output is zero, the state stays (not for training). One joined product in the scan: on CPU faster
    than x W hoisted out of it, which writes and reads back a large buffer.
    """
    outputs, _, state = _lstm_scan(parameters, inputs, state, reset, start, used, model, precision, keep=False)
    return outputs, state


class Kept(NamedTuple):
    """What the backward pass of an LSTM layer needs of every position, packed but for the cells.

    read     [T, B, 2P] what the product read, [x; h]
    gates    [T, B, D] each: σ(i), tanh(j), σ(f + 1), σ(o)
    cell     [T, B, D] the cell before the position
    """

    read: jax.Array
    gates: list[jax.Array]
    cell: jax.Array


def _lstm_scan(parameters, inputs, state, reset, start, used, model, precision, keep):
    """Outputs [T, B, P], if `keep` what the backward pass needs, and the state."""
    parameters = {name: array.astype("float32" if name == "bias" else precision) for name, array in parameters.items()}

    def step(state, at):
        x, begins, _ = at
        if begins is not None:
            state = jax.tree.map(lambda old, new: jnp.where(begins[:, None], new[None], old), state, start)
        read = packed(jnp.concatenate([x, state.hidden], -1), precision)
        z = product(as_operand(read), parameters["kernel"], precision) + parameters["bias"][None]
        i, j, f, o = jnp.split(z, 4, -1)
        i, j, f, o = sigmoid(i), jnp.tanh(j), sigmoid(f + 1), sigmoid(o)
        cell = clip(f * state.cell + i * j, model.cell_clip)
        hidden = o * jnp.tanh(cell)
        if "projection" in parameters:  # as in TensorFlow, the output is clipped only if it is projected
            hidden = clip(product(hidden, parameters["projection"], precision), model.projection_clip)
        kept = Kept(read, [packed(gate, precision) for gate in (i, j, f, o)], state.cell) if keep else None
        return LSTMState(cell, hidden), (hidden, kept)

    def step_if_used(state, at):
        skip = lambda state, at: (state, (jnp.zeros_like(at[0]), None))
        return lax.cond(at[2], step, skip, state, at)

    state, (outputs, kept) = lax.scan(step if used is None else step_if_used, state, (inputs, reset, used))
    return outputs, kept, state


def _lstm_forward(parameters, inputs, state, reset, start, used, model, precision):
    if used is not None:
        raise NotImplementedError("positions can be left out at inference only")
    outputs, kept, end = _lstm_scan(parameters, inputs, state, reset, start, None, model, precision, keep=True)
    return (outputs, end), (parameters, reset, start, outputs, kept)


def _lstm_backward(model, precision, saved, gradient):
    """Back through time; the weights' gradients are products over all positions, after the scan.

    In the scan, as autodiff has them, they would be read and written again at every position.
    """
    parameters, reset, start, outputs, kept = saved
    kernel = transposed(parameters["kernel"].astype(precision))
    projection = transposed(parameters["projection"].astype(precision)) if "projection" in parameters else None
    within = lambda x, limit: jnp.ones_like(x) if limit is None else (jnp.abs(x) < limit).astype(jnp.float32)

    def step(carry, at):
        (of_cell, of_hidden), of_start = carry
        of_output, output, gates, cell_before, begins = at
        i, j, f, o = (unpacked(gate) for gate in gates)
        of_hidden = of_hidden + of_output
        of_unprojected = of_hidden
        if projection is not None:
            of_hidden = packed(of_hidden * within(output, model.projection_clip), precision)
            of_unprojected = product(as_operand(of_hidden), projection, precision)
        cell = clip(f * cell_before + i * j, model.cell_clip)
        tanh = jnp.tanh(cell)
        of_cell = (of_cell + of_unprojected * o * (1 - tanh * tanh)) * within(cell, model.cell_clip)
        of_z = [
            of_cell * j * i * (1 - i),
            of_cell * i * (1 - j * j),
            of_cell * cell_before * f * (1 - f),
            of_unprojected * tanh * o * (1 - o),
        ]
        of_z = jnp.concatenate([packed(part, precision) for part in of_z], -1)
        of_x, of_hidden_before = jnp.split(product(as_operand(of_z), kernel, precision), 2, -1)
        of_before = LSTMState(of_cell * f, of_hidden_before)
        if begins is not None:
            from_start = jax.tree.map(lambda g: jnp.where(begins[:, None], g, 0.0), of_before)
            of_start = jax.tree.map(lambda total, g: total + g.sum(0), of_start, from_start)
            of_before = jax.tree.map(lambda g: jnp.where(begins[:, None], 0.0, g), of_before)
        return (of_before, of_start), (of_x, of_z, of_hidden, packed(o * tanh, precision))

    of_outputs, of_end = gradient
    of_start = jax.tree.map(jnp.zeros_like, start)
    positions = of_outputs, outputs, kept.gates, kept.cell, reset
    (of_state, of_start), found = lax.scan(step, (of_end, of_start), positions, reverse=True)
    of_inputs, *found = found
    flat = lambda x: as_operand(x.reshape(-1, x.shape[-1]))
    of_z, of_hidden, unprojected = map(flat, found)
    of_parameters = {
        "kernel": product(transposed(flat(kept.read)), of_z, precision),
        "bias": product(jnp.ones((1, len(of_z))), of_z, precision)[0],
    }
    if projection is not None:
        of_parameters["projection"] = transposed(product(transposed(of_hidden), unprojected, precision))
    return of_parameters, of_inputs, of_state, None, of_start, None


lstm.defvjp(_lstm_forward, _lstm_backward)
