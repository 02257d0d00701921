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
from elmo_jax.vocabulary import CHARACTERS, PADDING, character_widths

# Distinct words that the char CNN takes at a time: bounds its memory, large enough for efficient products.
CHUNK = 256


def packed(x: jax.Array, precision: Precision) -> jax.Array:
    """float32 x in `precision`, to keep: bfloat16 as its bits, uint16.

    XLA:CPU converts whole stacked arrays of bfloat16 where a scan reads or writes a slice of them.
    """
    if precision == "float32":
        return x
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)  # to the nearest, of two the even
    return (bits >> 16).astype(jnp.uint16)


def unpacked(x: jax.Array) -> jax.Array:
    """What `packed` made → float32."""
    if x.dtype == jnp.float32:
        return x
    return lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def as_operand(x: jax.Array) -> jax.Array:
    """What `packed` made → float32 or bfloat16, to multiply."""
    return x if x.dtype == jnp.float32 else lax.bitcast_convert_type(x, jnp.bfloat16)


def product(x: jax.Array, y: jax.Array, precision: Precision) -> jax.Array:
    """x [.., K] · y [K, N] → [.., N], of inputs rounded to `precision`, summed in float32."""
    x, y = x.astype(precision), y.astype(precision)
    exact = lax.Precision.HIGHEST if precision == "float32" else lax.Precision.DEFAULT
    return jnp.matmul(x, y, precision=exact, preferred_element_type=jnp.float32)


def transposed(x: jax.Array) -> jax.Array:
    """x [.., K] → [K, N], N all other axes in one, as an array of its own.

    XLA:CPU would fold a transposition into the product that reads it, at half the speed in bfloat16; it does not if
    the axes that are joined were apart. Nor must it be fused with what makes x, into a strided loop.
    """
    x = lax.optimization_barrier(x.reshape(-1, x.shape[-1]))
    halves = x.reshape(2 - len(x) % 2, -1, x.shape[-1])
    return lax.optimization_barrier(halves.transpose(2, 0, 1).reshape(x.shape[-1], -1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, weight: jax.Array, precision: Precision) -> jax.Array:
    """`product` whose gradients are products of the same precision (autodiff would mix bfloat16 with float32)."""
    return product(x, weight, precision)


def _matmul_forward(x, weight, precision):
    return product(x, weight, precision), (x, weight)


def _matmul_backward(precision, saved, gradient):
    x, weight = saved
    of_weight = product(transposed(x.astype(precision)), gradient.reshape(-1, gradient.shape[-1]), precision)
    of_x = product(gradient, transposed(weight.astype(precision)), precision)
    return of_x.astype(x.dtype), of_weight.astype(weight.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def convolutions(parameters: dict, characters: jax.Array, model: ModelConfig, precision: Precision) -> jax.Array:
    """Character ids [c, C] → features [c, F] (Kim et al. 2015).

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
    return jnp.concatenate(features, -1)


def highway(x: jax.Array, gate: jax.Array, transformed: jax.Array) -> jax.Array:
    """What a highway layer makes of x."""
    return gate * transformed + (1 - gate) * x


def highways(
    parameters: dict, x: jax.Array, model: ModelConfig, precision: Precision
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Features [c, F] → word vectors [c, P], and each highway layer's gate and transformation, for the backward pass.

    Highway layer (Srivastava et al. 2015): g · relu(x Wt + bt) + (1 - g) · x, g = σ(x Wc + bc).
    """
    layers = []
    for number in range(model.highway_layers):
        transform_kernel, transform_bias, carry_kernel, carry_bias = (
            parameters[f"{name}_{number}"] for name in HIGHWAY
        )
        gate = jax.nn.sigmoid(product(x, carry_kernel, precision) + carry_bias[None])
        transformed = jax.nn.relu(product(x, transform_kernel, precision) + transform_bias[None])
        layers.append((gate, transformed))
        x = highway(x, gate, transformed)
    if "projection_kernel" in parameters:
        x = product(x, parameters["projection_kernel"], precision) + parameters["projection_bias"][None]
    return x, layers


def highways_gradients(
    parameters: dict, x: jax.Array, layers: list, gradient: jax.Array, kernels: dict, precision: Precision
) -> tuple[dict, jax.Array]:
    """Gradients of the parameters of `highways` and of its features x, given `kernels`: its kernels transposed."""
    read = [x]
    for layer in layers:
        read.append(highway(read[-1], *layer))
    found = {}
    if "projection_kernel" in parameters:
        found["projection_kernel"] = product(transposed(read[-1].astype(precision)), gradient, precision)
        found["projection_bias"] = gradient.sum(0)
        gradient = product(gradient, kernels["projection_kernel"], precision)
    for number, (x, (gate, transformed)) in reversed(list(enumerate(zip(read[:-1], layers, strict=True)))):
        of_transform = jnp.where(transformed > 0, gradient * gate, 0.0)
        of_carry = gradient * (transformed - x) * gate * (1 - gate)
        gradient = gradient * (1 - gate)
        for name, of_products in (("transform", of_transform), ("carry", of_carry)):
            found[f"{name}_kernel_{number}"] = product(transposed(x.astype(precision)), of_products, precision)
            found[f"{name}_bias_{number}"] = of_products.sum(0)
            gradient = gradient + product(of_products, kernels[f"{name}_kernel_{number}"], precision)
    return found, gradient


def spelled_vectors(parameters: dict, characters: jax.Array, model: ModelConfig, precision: Precision) -> jax.Array:
    """Character ids [c, C] → word vectors [c, P]."""
    return highways(parameters, convolutions(parameters, characters, model, precision), model, precision)[0]


def _rounded(parameters: dict, precision: Precision) -> dict:
    """The parameters with the kernels of `highways` in the precision of the products: once, not for each chunk."""
    round_if = lambda name, array: array.astype(precision) if "_kernel" in name else array
    return {name: round_if(name, array) for name, array in parameters.items()}


def _chunks(characters: jax.Array) -> jax.Array:
    """Character ids [U, C] as chunks [k, c, C]."""
    size = min(len(characters), CHUNK)
    padding = (0, -len(characters) % size), (0, 0)
    return jnp.pad(characters, padding, constant_values=PADDING).reshape(-1, size, characters.shape[1])


def _at_width(function, characters: jax.Array, model: ModelConfig, *arguments):
    """`function(columns of characters, *arguments)` with as few of the columns of [c, C] as the longest word needs.

    Few widths are distinguished, each of which is compiled.
    """
    widths = character_widths(characters.shape[1])
    needed = jnp.minimum((characters != PADDING).sum(-1).max() + model.widest_filter, characters.shape[1])
    at = lambda width: lambda characters, *arguments: function(characters[:, :width], *arguments)
    choice = jnp.searchsorted(np.array(widths), needed)
    return lax.switch(choice, [at(width) for width in widths], characters, *arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def character_cnn(
    parameters: dict, characters: jax.Array, count: jax.Array, model: ModelConfig, precision: Precision
) -> jax.Array:
    """Vectors [U, P] of the first `count` [] of U words given as character ids [U, C].

    Goes over chunks of words and leaves out those behind `count`, so that one compiled program of one shape serves
    every window. Of each chunk only as many columns are read as its longest word needs, so words of like length
    should lie together.
    """
    return _character_cnn_forward(parameters, characters, count, model, precision)[0]


def _character_cnn_forward(parameters, characters, count, model, precision):
    chunks, rounded = _chunks(characters), _rounded(parameters, precision)

    def spell(characters):
        read = lambda characters: convolutions(rounded, characters, model, precision)
        features = _at_width(read, characters, model)
        vectors, layers = highways(rounded, features, model, precision)
        return vectors, jax.tree.map(lambda array: packed(array, precision), (features, layers))

    def step(_, chunk):
        characters, first = chunk
        nothing = lambda characters: jax.tree.map(
            lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(spell, characters)
        )
        return None, lax.cond(first < count, spell, nothing, characters)

    firsts = np.arange(len(chunks)) * chunks.shape[1]
    _, (vectors, kept) = lax.scan(step, None, (chunks, firsts))
    vectors = vectors.reshape(-1, model.projection_dim)[: len(characters)]
    return vectors, (parameters, characters, count, kept)


def _character_cnn_backward(model, precision, saved, gradient):
    parameters, characters, count, kept = saved
    chunks, rounded = _chunks(characters), _rounded(parameters, precision)
    kernels = {name: transposed(array) for name, array in rounded.items() if "_kernel" in name}
    of_convolutions = {name: array for name, array in parameters.items() if name.split("_")[0] in CONVOLUTION}
    padding = chunks.shape[0] * chunks.shape[1] - len(characters)
    gradients = jnp.pad(gradient, ((0, padding), (0, 0))).reshape(*chunks.shape[:2], -1)

    def of_parameters(characters, gradient):
        features = lambda parameters: convolutions(parameters, characters, model, precision)
        return jax.vjp(features, of_convolutions)[1](gradient)[0]

    def add(number, total):
        characters, kept_of_chunk, gradient = jax.tree.map(lambda array: array[number], (chunks, kept, gradients))
        features, layers = jax.tree.map(unpacked, kept_of_chunk)
        found, gradient = highways_gradients(rounded, features, layers, gradient, kernels, precision)
        found |= _at_width(of_parameters, characters, model, gradient)
        return jax.tree.map(jnp.add, total, found)

    # Not a scan: the sums would be copied wherever a chunk is left out.
    used = -(-count // chunks.shape[1])
    return lax.fori_loop(0, used, add, jax.tree.map(jnp.zeros_like, parameters)), None, None


character_cnn.defvjp(_character_cnn_forward, _character_cnn_backward)


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


CONVOLUTION = ("embedding", "kernel", "bias")
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
