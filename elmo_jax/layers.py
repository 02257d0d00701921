"""Char CNN, highway, LSTM with projection: functions of arrays, then the Linen modules that own their parameters.

B rows, T positions in a window, U distinct words, C characters of a word, E size of a character's embedding,
F filters, P projection size, D cell size, V vocabulary. Arrays are float32 unless said otherwise.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn.initializers import constant, glorot_uniform, normal, zeros

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.vocabulary import CHARACTERS

# Distinct words that the char CNN takes at a time: bounds its memory, large enough for efficient products.
CHUNK = 256


def product(x: jax.Array, y: jax.Array, precision: Precision) -> jax.Array:
    """x [.., K] · y [K, N] → [.., N], of inputs rounded to `precision`, summed in float32."""
    x, y = x.astype(precision), y.astype(precision)
    exact = lax.Precision.HIGHEST if precision == "float32" else lax.Precision.DEFAULT
    return jnp.matmul(x, y, precision=exact, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, weight: jax.Array, precision: Precision) -> jax.Array:
    """`product` whose gradients are products of the same precision (autodiff would mix bfloat16 with float32)."""
    return product(x, weight, precision)


def _matmul_forward(x, weight, precision):
    return product(x, weight, precision), (x, weight)


def _matmul_backward(precision, saved, gradient):
    x, weight = saved
    flat = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    of_weight = product(flat[0].T, flat[1], precision)
    return product(gradient, weight.T, precision).astype(x.dtype), of_weight.astype(weight.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def highway(x, transform_kernel, transform_bias, carry_kernel, carry_bias, precision: Precision):
    """Highway layer (Srivastava et al. 2015) [U, F] → [U, F]: g · relu(x Wt + bt) + (1 - g) · x, g = σ(x Wc + bc)."""
    gate = jax.nn.sigmoid(matmul(x, carry_kernel, precision) + carry_bias[None])
    return gate * jax.nn.relu(matmul(x, transform_kernel, precision) + transform_bias[None]) + (1 - gate) * x


def spelled_vectors(parameters: dict, characters: jax.Array, model: ModelConfig, precision: Precision) -> jax.Array:
    """Character ids [c, C] → word vectors [c, P] (Kim et al. 2015).

    The maximum is over all positions, padding included: padding is a character with an embedding like any other.
    """
    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[model.activation]
    embedded = parameters["embedding"][characters.astype(jnp.int32)]  # [c, C, E]
    features = []
    for number, (width, filters) in enumerate(model.filters):
        positions = characters.shape[1] - width + 1
        patches = jnp.concatenate([embedded[:, first : first + positions] for first in range(width)], -1)
        kernel = parameters[f"kernel_{number}"].reshape(-1, filters)
        scores = matmul(patches, kernel, precision)  # [c, positions, filters]
        features.append(activation(scores.max(1) + parameters[f"bias_{number}"][None]))
    x = jnp.concatenate(features, -1)  # [c, F]
    for number in range(model.highway_layers):
        x = highway(x, *(parameters[f"{name}_{number}"] for name in HIGHWAY), precision)
    if "projection_kernel" in parameters:
        x = matmul(x, parameters["projection_kernel"], precision) + parameters["projection_bias"][None]
    return x


def _chunks(characters: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Character ids [U, C] as chunks [k, c, C], and which chunks hold any of the first `count` words [k]."""
    size = min(len(characters), CHUNK)
    chunks = jnp.pad(characters, ((0, -len(characters) % size), (0, 0))).reshape(-1, size, characters.shape[1])
    return chunks, np.arange(len(chunks), dtype=np.int32) * size < count


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def character_cnn(
    parameters: dict, characters: jax.Array, count: jax.Array, model: ModelConfig, precision: Precision
) -> jax.Array:
    """Vectors [U, P] of the first `count` [] of U words given as character ids [U, C].

    Goes over chunks of words and leaves out those behind `count`, so that one compiled program of one shape serves
    every window, and keeps nothing of a chunk for the backward pass but its characters.
    """

    def step(_, chunk):
        encode = lambda characters: spelled_vectors(parameters, characters, model, precision)
        nothing = lambda characters: jnp.zeros((len(characters), model.projection_dim))
        return None, lax.cond(chunk[1], encode, nothing, chunk[0])

    _, vectors = lax.scan(step, None, _chunks(characters, count))
    return vectors.reshape(-1, model.projection_dim)[: len(characters)]


def _character_cnn_forward(parameters, characters, count, model, precision):
    return character_cnn(parameters, characters, count, model, precision), (parameters, characters, count)


def _character_cnn_backward(model, precision, saved, gradient):
    parameters, characters, count = saved
    chunks, used = _chunks(characters, count)

    def step(total, chunk):
        def add(total):
            _, pull = jax.vjp(lambda parameters: spelled_vectors(parameters, chunk[0], model, precision), parameters)
            return jax.tree.map(jnp.add, total, pull(chunk[2])[0])

        return lax.cond(chunk[1], add, lambda total: total, total), None

    padding = chunks.shape[0] * chunks.shape[1] - len(characters)
    gradients = jnp.pad(gradient, ((0, padding), (0, 0))).reshape(*chunks.shape[:2], -1)
    total, _ = lax.scan(step, jax.tree.map(jnp.zeros_like, parameters), (chunks, used, gradients))
    return total, None, None


character_cnn.defvjp(_character_cnn_forward, _character_cnn_backward)


class LSTMState(NamedTuple):
    """Cell [B, D] and output [B, P] of one layer of one direction."""

    cell: jax.Array
    hidden: jax.Array


def sigmoid(x: jax.Array) -> jax.Array:
    """σ(x) by tanh: on CPU 5 % of an LSTM step in bfloat16 faster than by exp."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def clip(x: jax.Array, limit: float | None) -> jax.Array:
    return x if limit is None else jnp.clip(x, -limit, limit)


def transposed(x: jax.Array) -> jax.Array:
    """x [T, B, K] → [K, T · B] as an array of its own: a transposition folded into a product may halve its speed."""
    return lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)


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


def _lstm_scan(parameters, inputs, state, reset, start, used, model, precision, keep):
    """Outputs [T, B, P], if `keep` what the backward pass needs of every position, and the state."""
    parameters = {name: array.astype("float32" if name == "bias" else precision) for name, array in parameters.items()}

    def step(state, at):
        x, begins, _ = at
        if begins is not None:
            state = jax.tree.map(lambda old, new: jnp.where(begins[:, None], new[None], old), state, start)
        z = product(jnp.concatenate([x, state.hidden], -1), parameters["kernel"], precision) + parameters["bias"][None]
        i, j, f, o = jnp.split(z, 4, -1)
        i, j, f, o = sigmoid(i), jnp.tanh(j), sigmoid(f + 1), sigmoid(o)
        cell = clip(f * state.cell + i * j, model.cell_clip)
        hidden = o * jnp.tanh(cell)
        if "projection" in parameters:  # as in TensorFlow, the output is clipped only if it is projected
            hidden = clip(product(hidden, parameters["projection"], precision), model.projection_clip)
        kept = (jnp.concatenate([i, j, f, o], -1).astype(precision), cell) if keep else None
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
    return (outputs, end), (parameters, inputs, state, reset, start, outputs, kept)


def _lstm_backward(model, precision, saved, gradient):
    """Back through time; the weights' gradients are products over all positions, after the scan.

    In the scan, as autodiff has them, they would be read and written again at every position.
    """
    parameters, inputs, state, reset, start, outputs, (gates, cells) = saved
    kernel = parameters["kernel"].astype(precision)
    projection = parameters["projection"].astype(precision) if "projection" in parameters else None

    def before(initial, after, begin):
        """What each position found: [T, B, ..]."""
        found = jnp.concatenate([initial[None], after[:-1]])
        return found if reset is None else jnp.where(reset[:, :, None], begin[None, None], found)

    cells_before = before(state.cell, cells, start and start.cell)
    hidden_before = before(state.hidden, outputs, start and start.hidden)
    within = lambda x, limit: jnp.ones_like(x) if limit is None else (jnp.abs(x) < limit).astype(jnp.float32)

    def step(carry, at):
        (of_cell, of_hidden), of_start = carry
        of_output, output, kept, cell, cell_before, begins = at
        i, j, f, o = jnp.split(kept.astype(jnp.float32), 4, -1)
        of_hidden = of_hidden + of_output
        of_unprojected = of_hidden
        if projection is not None:
            of_hidden = of_hidden * within(output, model.projection_clip)
            of_unprojected = product(of_hidden, projection.T, precision)
        tanh = jnp.tanh(cell)
        of_cell = (of_cell + of_unprojected * o * (1 - tanh * tanh)) * within(cell, model.cell_clip)
        of_z = [
            of_cell * j * i * (1 - i),
            of_cell * i * (1 - j * j),
            of_cell * cell_before * f * (1 - f),
            of_unprojected * tanh * o * (1 - o),
        ]
        of_z = jnp.concatenate(of_z, -1).astype(precision)
        of_x, of_hidden_before = jnp.split(product(of_z, kernel.T, precision), 2, -1)
        of_before = LSTMState(of_cell * f, of_hidden_before)
        if begins is not None:
            from_start = jax.tree.map(lambda g: jnp.where(begins[:, None], g, 0.0), of_before)
            of_start = jax.tree.map(lambda total, g: total + g.sum(0), of_start, from_start)
            of_before = jax.tree.map(lambda g: jnp.where(begins[:, None], 0.0, g), of_before)
        return (of_before, of_start), (of_x, of_z, of_hidden)

    of_outputs, of_end = gradient
    of_start = jax.tree.map(jnp.zeros_like, start)
    positions = of_outputs, outputs, gates, cells, cells_before, reset
    (of_state, of_start), (of_inputs, of_z, of_hidden) = lax.scan(step, (of_end, of_start), positions, reverse=True)
    flat = lambda x: x.reshape(-1, x.shape[-1])
    read = jnp.concatenate([inputs, hidden_before], -1).astype(precision)
    of_parameters = {
        "kernel": product(transposed(read), flat(of_z), precision),
        "bias": flat(of_z).astype(jnp.float32).sum(0),
    }
    if projection is not None:
        output_gate = gates[..., -cells.shape[-1] :].astype(jnp.float32)
        unprojected = (output_gate * jnp.tanh(cells)).astype(precision)
        of_parameters["projection"] = product(transposed(unprojected), flat(of_hidden), precision)
    return of_parameters, of_inputs, of_state, None, of_start, None


lstm.defvjp(_lstm_forward, _lstm_backward)


HIGHWAY = ("transform_kernel", "transform_bias", "carry_kernel", "carry_bias")


def symmetric_uniform(limit: float):
    """Initialiser: uniform between minus and plus `limit`."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


class CharacterCNN(nn.Module):
    """Owns the char CNN's parameters; initial values as in bilm-tf (training.py, _build_word_char_embeddings)."""

    model: ModelConfig
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, characters: jax.Array, count: jax.Array) -> jax.Array:
        """Character ids [U, C] → word vectors [U, P] of the first `count` []."""
        model, filter_dim = self.model, self.model.filter_dim
        scaled = normal(filter_dim**-0.5)
        shapes = {"embedding": (symmetric_uniform(1.0), (CHARACTERS, model.character_dim))}
        for number, (width, filters) in enumerate(model.filters):
            tanh, relu = normal((width * model.character_dim) ** -0.5), symmetric_uniform(0.05)
            initial = tanh if model.activation == "tanh" else relu
            shapes[f"kernel_{number}"] = initial, (1, width, model.character_dim, filters)
            shapes[f"bias_{number}"] = zeros, (filters,)
        for number in range(model.highway_layers):
            for name, initial in zip(HIGHWAY, (scaled, zeros, scaled, constant(-2.0)), strict=True):
                shape = (filter_dim, filter_dim) if name.endswith("kernel") else (filter_dim,)
                shapes[f"{name}_{number}"] = initial, shape
        if filter_dim != model.projection_dim:
            shapes["projection_kernel"] = scaled, (filter_dim, model.projection_dim)
            shapes["projection_bias"] = zeros, (model.projection_dim,)
        parameters = {name: self.param(name, *description) for name, description in shapes.items()}
        return character_cnn(parameters, characters, count, model, self.precision)


class WordTable(nn.Module):
    """A vector for every word of the vocabulary, for models without characters."""

    vocabulary_size: int
    projection_dim: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """Vocabulary ids [U] → word vectors [U, P]."""
        return self.param("embedding", glorot_uniform(), (self.vocabulary_size, self.projection_dim))[ids]


class LSTM(nn.Module):
    """Owns one LSTM layer's parameters: kernel [2P, 4D] (rows x, h; columns i, j, f, o), bias [4D], projection [D, P].

    There is no projection if P = D.
    """

    model: ModelConfig
    precision: Precision = "float32"

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        state: LSTMState,
        reset: jax.Array | None = None,
        start: LSTMState | None = None,
        used: jax.Array | None = None,
    ) -> tuple[jax.Array, LSTMState]:
        """inputs [T, B, P], state → outputs [T, B, P], state; see `lstm`."""
        cell_dim, projection_dim = self.model.cell_dim, self.model.projection_dim
        parameters = {
            "kernel": self.param("kernel", glorot_uniform(), (2 * projection_dim, 4 * cell_dim)),
            "bias": self.param("bias", zeros, (4 * cell_dim,)),
        }
        if projection_dim != cell_dim:
            parameters["projection"] = self.param("projection", glorot_uniform(), (cell_dim, projection_dim))
        return lstm(parameters, inputs, state, reset, start, used, self.model, self.precision)
