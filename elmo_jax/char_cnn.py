"""Char CNN: characters of words → word vectors.

U distinct words, C characters of a word, E size of a character's embedding, F filters, P projection size, c words of
a chunk. Arrays are float32 unless said otherwise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.products import matmul, packed, product, transposed, unpacked
from elmo_jax.vocabulary import CHARACTERS, PADDING, character_widths

# Distinct words that the char CNN takes at a time: bounds its memory, large enough for efficient products.
CHUNK = 256
# Parameters of a highway layer, and those of the convolutions, each with a number behind it but for the embedding.
HIGHWAY = ("transform_kernel", "transform_bias", "carry_kernel", "carry_bias")
CONVOLUTION = ("embedding", "kernel", "bias")


def char_cnn_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (CHARACTERS, model.character_dim)}
    for number, (width, filters) in enumerate(model.filters):
        shapes[f"kernel_{number}"] = 1, width, model.character_dim, filters
        shapes[f"bias_{number}"] = (filters,)
    for number in range(model.highway_layers):
        for name in HIGHWAY:
            shapes[f"{name}_{number}"] = (model.filter_dim,) * (2 if name.endswith("kernel") else 1)
    if model.filter_dim != model.projection_dim:
        shapes["projection_kernel"] = model.filter_dim, model.projection_dim
        shapes["projection_bias"] = (model.projection_dim,)
    return shapes


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
