"""Flax Linen modules: they own and initialise parameters, and call the functions of `model`.

Initial values are distributed as bilm-tf's; they are a function of the key, the modules' names and the parameters'
order.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import constant, glorot_uniform, normal, ones, zeros

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.model import (
    Reading,
    State,
    parameter_shapes,
    read_window,
    scalar_mix,
    stacked,
    word_vectors,
    zero_state,
)

Initialiser = Callable[..., jax.Array]


def symmetric_uniform(limit: float) -> Initialiser:
    """Uniform between minus and plus `limit`."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


def initial_word(model: ModelConfig, name: str, shape: tuple[int, ...]) -> Initialiser:
    """Of a parameter of "words" (bilm-tf training.py, _build_word_char_embeddings and _build_word_embeddings)."""
    if model.input == "words":
        return glorot_uniform()
    kind = name.rstrip("0123456789")
    if kind in ("embedding", "word_embedding"):
        return symmetric_uniform(1.0)
    if kind == "kernel_":
        return normal((shape[1] * shape[2]) ** -0.5) if model.activation == "tanh" else symmetric_uniform(0.05)
    if kind.endswith(("kernel", "kernel_")):
        return normal(model.filter_dim**-0.5)
    return constant(-2.0) if kind == "carry_bias_" else zeros


def initial_lstm(model: ModelConfig, name: str, shape: tuple[int, ...]) -> Initialiser:
    """Of a parameter of an LSTM layer."""
    return zeros if name == "bias" else glorot_uniform()


class Parameters(nn.Module):
    """Owns one module's parameters: calling it returns them by name."""

    model: ModelConfig
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    initial: Callable[[ModelConfig, str, tuple[int, ...]], Initialiser]

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        return {name: self.param(name, self.initial(self.model, name, shape), shape) for name, shape in self.shapes}


class BiLM(nn.Module):
    """The bidirectional language model of Peters et al. 2018, section 3.1, without its softmax."""

    model: ModelConfig
    vocabulary_size: int = 0  # used by models without characters
    precision: Precision = "float32"

    @nn.compact
    def __call__(
        self,
        words: jax.Array,
        count: jax.Array,
        forward: jax.Array,
        backward: jax.Array,
        lstm_state: State,
        reset: jax.Array | None = None,
        start_state: State | None = None,
        used: jax.Array | None = None,
        dropout: Callable[[int, jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, State]:
        """Reads a window, given its words as in `word_vectors` → activations [2, L + 1, B, T, P], LSTM state.

        The other arguments are those of `Reading` and of `read_window`.
        """
        parameters = {}
        for module, shapes in parameter_shapes(self.model, self.vocabulary_size).items():
            initial = initial_word if module == "words" else initial_lstm
            parameters[module] = Parameters(self.model, tuple(shapes.items()), initial, name=module)()
        vectors = word_vectors(self.model, parameters["words"], words, count, self.precision)
        reading = Reading(forward, backward, reset, used)
        options = {"precision": self.precision, "dropout": dropout}
        activations, state = read_window(self.model, parameters, vectors, reading, lstm_state, start_state, **options)
        return stacked(activations), state


class Softmax(nn.Module):
    """Owns the output layer that both directions share: weight [V, P], bias [V] (bilm-tf training.py, _build_loss)."""

    vocabulary_size: int
    projection_dim: int

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        shape = self.vocabulary_size, self.projection_dim
        return {
            "weight": self.param("weight", normal(self.projection_dim**-0.5), shape),
            "bias": self.param("bias", zeros, shape[:1]),
        }


class ScalarMix(nn.Module):
    """`scalar_mix` whose weights and γ are learned."""

    layer_norm: bool = False

    @nn.compact
    def __call__(self, activations: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """activations [L + 1, .., 2P], mask [..] → [.., 2P]."""
        weights = self.param("weights", zeros, (activations.shape[0],))
        gamma = self.param("gamma", ones, ())
        return scalar_mix(activations, weights, gamma, self.layer_norm, mask)


def init_bilm(key: jax.Array, model: ModelConfig, vocabulary_size: int = 0) -> dict:
    """Initial parameters of the biLM, distributed as bilm-tf's."""
    words = jnp.zeros((1, model.max_characters) if model.input == "characters" else (1,), jnp.int32)
    if model.word_dim:
        words = words, jnp.zeros((1,), jnp.int32)
    position = jnp.zeros((1, 1), jnp.int32)
    bilm = BiLM(model, vocabulary_size)
    return jax.jit(bilm.init)(key, words, jnp.int32(1), position, position, zero_state(model, 1))["params"]


def init_softmax(key: jax.Array, model: ModelConfig, vocabulary_size: int) -> dict[str, jax.Array]:
    """Initial parameters of the output layer."""
    return jax.jit(Softmax(vocabulary_size, model.projection_dim).init)(key)["params"]
