"""Char CNN: the characters of words → word vectors; its definition, then the same faster for the words of a window.

U distinct words, C characters of a word, E size of a character's embedding, F filters, P projection size, c words of
a chunk. Arrays are float32 unless said otherwise. `d_x` is the gradient of the loss with respect to x.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.products import (
    applied,
    form,
    matmul,
    operand,
    packed,
    product,
    rounded,
    transposed,
    unpacked,
    weight_gradient,
)
from elmo_jax.vocabulary import CHARACTERS, PADDING, character_widths

# Parameters of the convolutions and of a highway layer: names, most with a number behind.
CONVOLUTION = ("embedding", "kernel", "bias")
HIGHWAY = ("transform_kernel", "transform_bias", "carry_kernel", "carry_bias")


def char_cnn_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (model.alphabet or CHARACTERS, model.character_dim)}
    for number, (width, filters) in enumerate(model.filters):
        shapes[f"kernel_{number}"] = (1, width, model.character_dim, filters)
        shapes[f"bias_{number}"] = (filters,)
    for number in range(model.highway_layers):
        for name in HIGHWAY:
            shapes[f"{name}_{number}"] = (model.filter_dim,) * (2 if name.endswith("kernel") else 1)
    if model.projects:
        shapes["projection_kernel"] = (model.filter_dim + model.word_dim, model.projection_dim)
        shapes["projection_bias"] = (model.projection_dim,)
    return shapes


# The definition


@jax.named_scope("char_cnn")
def spelled_vectors(
    parameters: dict, characters: jax.Array, model: ModelConfig, precision: Precision, words: jax.Array | None = None
) -> jax.Array:
    """Character ids [c, C] → word vectors [c, P] (Kim et al. 2015; Peters et al. 2018, section 3.4).

    `words` [c, W] are the words' own vectors where the model has some: they come before the characters' features.
    """
    features = convolutions(parameters, characters, model, precision)
    return highways(parameters, features, model, precision, words=words)[0]


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
    parameters: dict,
    x: jax.Array,
    model: ModelConfig,
    precision: Precision,
    multiply: Callable = product,
    words: jax.Array | None = None,
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Features [c, F] → word vectors [c, P], and each highway layer's gate and transformation, for the backward pass.

    Highway layer (Srivastava et al. 2015): g · relu(x Wt + bt) + (1 - g) · x, g = σ(x Wc + bc). `multiply` takes the
    kernels as they are given; `words` as in `spelled_vectors`.
    """
    layers = []
    for number in range(model.highway_layers):
        transform_kernel, transform_bias, carry_kernel, carry_bias = (
            parameters[f"{name}_{number}"] for name in HIGHWAY
        )
        gate = jax.nn.sigmoid(multiply(x, carry_kernel, precision) + carry_bias[None])
        transformed = jax.nn.relu(multiply(x, transform_kernel, precision) + transform_bias[None])
        layers.append((gate, transformed))
        x = highway(x, gate, transformed)
    if words is not None:
        x = jnp.concatenate([words, x], -1)
    if "projection_kernel" in parameters:
        x = multiply(x, parameters["projection_kernel"], precision) + parameters["projection_bias"][None]
    return x, layers


# The same, faster


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def character_cnn(
    parameters: dict, characters: jax.Array, count: jax.Array, model: ModelConfig, precision: Precision
) -> jax.Array:
    """Vectors [U, P] of the first `count` [] of U words given as character ids [U, C].

    Goes over chunks of words and leaves out those behind `count`, so that one compiled program of one shape serves
    every window.
    """
    return _character_cnn_forward(parameters, characters, count, model, precision)[0]


@jax.named_scope("char_cnn")
def _character_cnn_forward(parameters, characters, count, model, precision):
    chunks = _chunks(characters)
    kernels = _highway_kernels(parameters, functools.partial(operand, precision=precision))
    convolve, _ = _convolution_form()

    def spell(characters):
        features, kept = convolve(parameters, characters, model, precision)
        vectors, layers = highways(parameters | kernels, features, model, precision, applied)
        return vectors, (jax.tree.map(lambda array: packed(array, precision), (features, layers)), kept)

    def step(number, results):
        put = lambda stack, result: lax.dynamic_update_index_in_dim(stack, result, number, 0)
        return jax.tree.map(put, results, spell(chunks[number]))

    like = jax.eval_shape(spell, chunks[0])
    empty = jax.tree.map(lambda array: lax.empty((len(chunks), *array.shape), array.dtype), like)
    vectors, traces = _over_chunks(count, chunks, step, empty)
    vectors = vectors.reshape(-1, model.projection_dim)[: len(characters)]
    return vectors, (parameters, characters, count, traces)


def _chunks(characters: jax.Array) -> jax.Array:
    """Character ids [U, C] as chunks [k, c, C]."""
    size = min(len(characters), form().chunk or len(characters))
    padding = (0, -len(characters) % size), (0, 0)
    return jnp.pad(characters, padding, constant_values=PADDING).reshape(-1, size, characters.shape[1])


def _over_chunks(count: jax.Array, chunks: jax.Array, step, initial):
    """`step` (number of the chunk, results) → results over the chunks that hold one of the first `count` words."""
    if len(chunks) == 1:
        return step(0, initial)
    return lax.fori_loop(0, -(-count // chunks.shape[1]), step, initial)


def _highway_kernels(parameters: dict, prepare) -> dict:
    """The kernels of `highways`, prepared for products once, not for each chunk."""
    return {name: prepare(array) for name, array in parameters.items() if "_kernel" in name}


@jax.named_scope("char_cnn")
def _character_cnn_backward(model, precision, saved, d_vectors):
    parameters, characters, count, traces = saved
    chunks = _chunks(characters)
    kernels = _highway_kernels(parameters, functools.partial(transposed, precision=precision))
    _, d_convolve = _convolution_form()
    padding = chunks.shape[0] * chunks.shape[1] - len(characters)
    d_vectors = jnp.pad(d_vectors, ((0, padding), (0, 0))).reshape(*chunks.shape[:2], -1)

    def add(number, total):
        characters, (trace, kept), d_chunk = jax.tree.map(lambda array: array[number], (chunks, traces, d_vectors))
        features, layers = jax.tree.map(unpacked, trace)
        d_parameters, d_features = _highways_backward(kernels, features, layers, d_chunk, precision)
        d_parameters |= d_convolve(parameters, characters, model, precision, features, kept, d_features)
        return jax.tree.map(jnp.add, total, d_parameters)

    return _over_chunks(count, chunks, add, jax.tree.map(jnp.zeros_like, parameters)), None, None


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


# The convolutions of a chunk, in two forms. Forward: (parameters, characters, model, precision) → features [c, F] and
# what it keeps; backward: (.., features, kept, d_features [c, F]) → the gradients of embedding, kernels and biases.


def _convolution_form():
    """Forward and backward in the form for the platform."""
    if form().narrow_chunks:
        return _narrow_convolutions, _narrow_convolutions_backward
    return _merged_convolutions, _merged_convolutions_backward


@jax.named_scope("char_cnn")
def quickly_spelled(
    parameters: dict, characters: jax.Array, model: ModelConfig, precision: Precision, words: jax.Array | None = None
) -> jax.Array:
    """`spelled_vectors` in the form for the platform, of words whose columns [c, C] have been cut to their longest."""
    if form().narrow_chunks:
        return spelled_vectors(parameters, characters, model, precision, words)
    features, _ = _merged_convolutions(parameters, characters, model, precision)
    return highways(parameters, features, model, precision, words=words)[0]


def _narrow_convolutions(parameters, characters, model, precision):
    """The definition, of as many columns of a chunk as its longest word needs: words of like length lie together."""
    convolve = lambda characters: convolutions(parameters, characters, model, precision)
    return _at_width(convolve, characters, model), ()


def _narrow_convolutions_backward(parameters, characters, model, precision, features, kept, d_features):
    convolution = {name: array for name, array in parameters.items() if name.split("_")[0] in CONVOLUTION}

    def gradients(characters, d_features):
        features = lambda parameters: convolutions(parameters, characters, model, precision)
        return jax.vjp(features, convolution)[1](d_features)[0]

    return _at_width(gradients, characters, model, d_features)


def _at_width(function, characters: jax.Array, model: ModelConfig, *arguments):
    """`function(columns of characters, *arguments)` with as few of the columns of [c, C] as the longest word needs.

    Few widths are distinguished, each of which is compiled.
    """
    widths = character_widths(characters.shape[1], model.widest_filter)
    needed = jnp.minimum((characters != PADDING).sum(-1).max() + model.widest_filter, characters.shape[1])
    at = lambda width: lambda characters, *arguments: function(characters[:, :width], *arguments)
    choice = jnp.searchsorted(np.array(widths), needed)
    return lax.switch(choice, [at(width) for width in widths], characters, *arguments)


def _merged_convolutions(parameters, characters, model, precision):
    """All filters as one product, as if all were as wide as the widest.

    Keeps where each had its maximum [c, F], and tanh's slope there [c, F], which near 1 rounded features do not tell.
    """
    patches = _patches(parameters, characters, model, precision)
    scores = product(patches, _merged_kernel(parameters, model, precision), precision)  # [C, c, F]
    last = np.concatenate([np.full(filters, len(scores) - width) for width, filters in model.filters])
    within = jnp.arange(len(scores))[:, None, None] <= last[None, None]  # narrower filters read on to the last column
    scores = jnp.where(within, scores, -jnp.inf)
    bias = jnp.concatenate([parameters[f"bias_{number}"] for number in range(len(model.filters))])
    largest = scores.max(0) + bias[None]
    if model.activation == "relu":
        return jax.nn.relu(largest), (scores.argmax(0), None)
    features = jnp.tanh(largest)
    return features, (scores.argmax(0), packed(1 - features * features, precision))


def _merged_convolutions_backward(parameters, characters, model, precision, features, kept, d_features):
    """Of each filter the gradient goes to one position alone: what is multiplied is made as the product reads it."""
    columns, width, dim = characters.shape[1], model.widest_filter, model.character_dim
    chosen, slope = kept
    d_biased = jnp.where(features > 0, d_features, 0.0) if slope is None else d_features * unpacked(slope)
    d_scores = jnp.where(jnp.arange(columns)[:, None, None] == chosen[None], d_biased[None], 0.0)  # [C, c, F]
    d_kernel = weight_gradient(_patches(parameters, characters, model, precision), d_scores, precision)
    d_patches = product(d_scores, transposed(_merged_kernel(parameters, model, precision), precision), precision)
    pieces = jnp.split(d_patches, width, -1)
    d_embedded = sum(jnp.pad(piece, ((place, 0), (0, 0), (0, 0)))[:columns] for place, piece in enumerate(pieces))
    d_parameters = {"embedding": weight_gradient(_one_hot(characters), d_embedded, precision)}
    first = 0
    for number, (filter_width, filters) in enumerate(model.filters):
        own = slice(first, first + filters)
        d_parameters[f"kernel_{number}"] = d_kernel[: filter_width * dim, own].reshape(1, filter_width, dim, filters)
        d_parameters[f"bias_{number}"] = d_biased[:, own].sum(0)
        first += filters
    return d_parameters


def _one_hot(characters):
    """[c, C] → [C, c, number of characters]."""
    return (characters.T[..., None].astype(jnp.int32) == jnp.arange(CHARACTERS)[None, None]).astype(jnp.float32)


def _patches(parameters, characters, model, precision):
    """What the widest filter reads at each position, zeros behind the end [C, c, width · E]."""
    columns, width = characters.shape[1], model.widest_filter
    if model.alphabet is None:
        embedded = product(_one_hot(characters), parameters["embedding"], precision)
    else:  # too many for a product
        embedded = parameters["embedding"][characters.T.astype(jnp.int32)]
    padded = jnp.pad(packed(embedded, precision), ((0, width - 1), (0, 0), (0, 0)))
    return jnp.concatenate([padded[place : place + columns] for place in range(width)], -1)


def _merged_kernel(parameters, model, precision):
    """The kernels of all filters [width · E, F]; what a narrower one does not read is zero."""
    rows, kernels = model.widest_filter * model.character_dim, []
    for number, (_, filters) in enumerate(model.filters):
        kernel = parameters[f"kernel_{number}"].reshape(-1, filters)
        kernels.append(jnp.pad(kernel, ((0, rows - len(kernel)), (0, 0))))
    return rounded(jnp.concatenate(kernels, 1), precision)
