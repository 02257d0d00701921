"""Char CNN: the characters of words → word vectors; its definition, then the same faster for the words of a window.

U distinct words, C characters of a word, E size of a character's embedding, F filters, P projection size, c words of
a chunk. Arrays are float32 unless said otherwise. `d_x` is the gradient of the loss with respect to x.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.products import matmul, packed, product, rounded, transposed, unpacked, weight_gradient
from elmo_jax.vocabulary import CHARACTERS, PADDING, character_widths

# Distinct words that the char CNN takes at a time: bounds its memory, large enough for efficient products.
CHUNK = 256
# Parameters of the convolutions and of a highway layer: names, most with a number behind.
CONVOLUTION = ("embedding", "kernel", "bias")
HIGHWAY = ("transform_kernel", "transform_bias", "carry_kernel", "carry_bias")


def char_cnn_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (CHARACTERS, model.character_dim)}
    for number, (width, filters) in enumerate(model.filters):
        shapes[f"kernel_{number}"] = (1, width, model.character_dim, filters)
        shapes[f"bias_{number}"] = (filters,)
    for number in range(model.highway_layers):
        for name in HIGHWAY:
            shapes[f"{name}_{number}"] = (model.filter_dim,) * (2 if name.endswith("kernel") else 1)
    if model.filter_dim != model.projection_dim:
        shapes["projection_kernel"] = (model.filter_dim, model.projection_dim)
        shapes["projection_bias"] = (model.projection_dim,)
    return shapes


# The definition


@jax.named_scope("char_cnn")
def spelled_vectors(parameters: dict, characters: jax.Array, model: ModelConfig, precision: Precision) -> jax.Array:
    """Character ids [c, C] → word vectors [c, P] (Kim et al. 2015; Peters et al. 2018, section 3.4)."""
    return highways(parameters, convolutions(parameters, characters, model, precision), model, precision)[0]


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


# The same, faster


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


@jax.named_scope("char_cnn")
def _character_cnn_forward(parameters, characters, count, model, precision):
    chunks = _chunks(characters)
    kernels = _highway_kernels(parameters, functools.partial(rounded, precision=precision))

    def spell(characters):
        scan_characters = lambda characters: convolutions(parameters, characters, model, precision)
        features = _at_width(scan_characters, characters, model)
        vectors, layers = highways(parameters | kernels, features, model, precision)
        return vectors, jax.tree.map(lambda array: packed(array, precision), (features, layers))

    def step(_, chunk):
        characters, first = chunk
        nothing = lambda characters: jax.tree.map(
            lambda shape: jnp.zeros(shape.shape, shape.dtype), jax.eval_shape(spell, characters)
        )
        return None, lax.cond(first < count, spell, nothing, characters)

    firsts = np.arange(len(chunks)) * chunks.shape[1]
    _, (vectors, traces) = lax.scan(step, None, (chunks, firsts))
    vectors = vectors.reshape(-1, model.projection_dim)[: len(characters)]
    return vectors, (parameters, characters, count, traces)


def _chunks(characters: jax.Array) -> jax.Array:
    """Character ids [U, C] as chunks [k, c, C]."""
    size = min(len(characters), CHUNK)
    padding = (0, -len(characters) % size), (0, 0)
    return jnp.pad(characters, padding, constant_values=PADDING).reshape(-1, size, characters.shape[1])


def _highway_kernels(parameters: dict, prepare) -> dict:
    """The kernels of `highways`, prepared for products once, not for each chunk."""
    return {name: prepare(array) for name, array in parameters.items() if "_kernel" in name}


def _at_width(function, characters: jax.Array, model: ModelConfig, *arguments):
    """`function(columns of characters, *arguments)` with as few of the columns of [c, C] as the longest word needs.

    Few widths are distinguished, each of which is compiled.
    """
    widths = character_widths(characters.shape[1], model.widest_filter)
    needed = jnp.minimum((characters != PADDING).sum(-1).max() + model.widest_filter, characters.shape[1])
    at = lambda width: lambda characters, *arguments: function(characters[:, :width], *arguments)
    choice = jnp.searchsorted(np.array(widths), needed)
    return lax.switch(choice, [at(width) for width in widths], characters, *arguments)


@jax.named_scope("char_cnn")
def _character_cnn_backward(model, precision, saved, d_vectors):
    parameters, characters, count, traces = saved
    chunks = _chunks(characters)
    kernels = _highway_kernels(parameters, functools.partial(transposed, precision=precision))
    convolution = {name: array for name, array in parameters.items() if name.split("_")[0] in CONVOLUTION}
    padding = chunks.shape[0] * chunks.shape[1] - len(characters)
    d_vectors = jnp.pad(d_vectors, ((0, padding), (0, 0))).reshape(*chunks.shape[:2], -1)

    def d_convolution(characters, d_features):
        features = lambda parameters: convolutions(parameters, characters, model, precision)
        return jax.vjp(features, convolution)[1](d_features)[0]

    def add(number, total):
        characters, trace, d_chunk = jax.tree.map(lambda array: array[number], (chunks, traces, d_vectors))
        d_parameters, d_features = _highways_backward(kernels, *jax.tree.map(unpacked, trace), d_chunk, precision)
        d_parameters |= _at_width(d_convolution, characters, model, d_features)
        return jax.tree.map(jnp.add, total, d_parameters)

    # Not a scan: the sums would be copied wherever a chunk is left out.
    used = -(-count // chunks.shape[1])
    return lax.fori_loop(0, used, add, jax.tree.map(jnp.zeros_like, parameters)), None, None


def _highways_backward(
    kernels: dict, x: jax.Array, layers: list, d_vectors: jax.Array, precision: Precision
) -> tuple[dict, jax.Array]:
    """d_parameters of `highways` and d_x of its features x [c, F], given its kernels transposed and its `layers`."""
    inputs = [x]
    for layer in layers:
        inputs.append(highway(inputs[-1], *layer))
    d_parameters, d_y = {}, d_vectors
    if "projection_kernel" in kernels:
        d_parameters["projection_kernel"] = weight_gradient(inputs[-1], d_y, precision)
        d_parameters["projection_bias"] = d_y.sum(0)
        d_y = product(d_y, kernels["projection_kernel"], precision)
    for number, (x, (gate, transformed)) in reversed(list(enumerate(zip(inputs[:-1], layers, strict=True)))):
        d_transform = jnp.where(transformed > 0, d_y * gate, 0.0)
        d_carry = d_y * (transformed - x) * gate * (1 - gate)
        d_y = d_y * (1 - gate)
        for name, d_scores in (("transform", d_transform), ("carry", d_carry)):
            d_parameters[f"{name}_kernel_{number}"] = weight_gradient(x, d_scores, precision)
            d_parameters[f"{name}_bias_{number}"] = d_scores.sum(0)
            d_y = d_y + product(d_scores, kernels[f"{name}_kernel_{number}"], precision)
    return d_parameters, d_y


character_cnn.defvjp(_character_cnn_forward, _character_cnn_backward)
