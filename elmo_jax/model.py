"""The bidirectional language model: words, window and state → activations of both directions and state."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.layers import LSTM, CharacterCNN, LSTMState, WordTable

# Of each direction, each layer's state.
State = tuple[tuple[LSTMState, ...], tuple[LSTMState, ...]]


def zero_state(model: ModelConfig, *rows: int) -> State:
    """Zeros for every direction and layer: NumPy arrays cell [*rows, D], hidden [*rows, P]."""
    shapes = (*rows, model.cell_dim), (*rows, model.projection_dim)
    layer = LSTMState(*(np.zeros(shape, np.float32) for shape in shapes))
    return ((layer,) * model.layers,) * 2


class BiLM(nn.Module):
    """The bidirectional language model of Peters et al. 2018, section 3.1, without its softmax."""

    model: ModelConfig
    vocabulary_size: int = 0  # used by models without characters
    precision: Precision = "float32"

    def setup(self):
        model = self.model
        if model.input == "characters":
            self.words = CharacterCNN(model, self.precision)
        else:
            self.words = WordTable(self.vocabulary_size, model.projection_dim)
        self.forward = [LSTM(model, self.precision) for _ in range(model.layers)]
        self.backward = [LSTM(model, self.precision) for _ in range(model.layers)]

    def __call__(
        self, words: jax.Array, count: jax.Array, forward: jax.Array, backward: jax.Array, state: State, **options
    ) -> tuple[jax.Array, State]:
        """Reads a window, given the spelling of its words.

        words     [U, C] character ids, or [U] vocabulary ids, of the window's distinct words
        count     [] how many of the U words the window has

        The other arguments and the result are those of `read`.
        """
        vectors = self.words(words, count) if self.model.input == "characters" else self.words(words)
        return self.read(vectors, forward, backward, state, **options)

    def read(
        self,
        vectors: jax.Array,
        forward: jax.Array,
        backward: jax.Array,
        state: State,
        reset: jax.Array | None = None,
        start: State | None = None,
        used: jax.Array | None = None,
        dropout: Callable[[int, jax.Array], jax.Array] | None = None,
    ) -> tuple[jax.Array, State]:
        """Reads a window, given word vectors.

        vectors   [U, P] word vectors
        forward   [B, T] which of the words each position of a forward row reads; `backward` likewise
        state     where the rows stand; the state after the window is returned
        reset     [B, T] true where the state becomes `start` (no row axis) before the position; None: nowhere
        used      [T] false where no row has a word: the position is left out; None: all are read
        dropout   (number of the place, x [T, B, P]) → x, called on every LSTM layer's input

        Returns activations [2, L + 1, B, T, P]: of each direction the word vectors, then each layer's output.
        """
        reset = None if reset is None else reset.T
        activations, new_state = [], []
        directions = (self.forward, forward), (self.backward, backward)
        for direction, (lstms, numbers) in enumerate(directions):
            outputs = [vectors[numbers.T]]  # [T, B, P]
            states = []
            for layer, lstm in enumerate(lstms):
                inputs = outputs[-1]
                if dropout is not None:
                    inputs = dropout(direction * self.model.layers + layer, inputs)
                begin = None if start is None else start[direction][layer]
                output, layer_state = lstm(inputs, state[direction][layer], reset, begin, used)
                if self.model.skip_connections and layer > 0:
                    output = output + inputs  # as in bilm-tf, inputs after dropout; the recurrent output is without
                outputs.append(output)
                states.append(layer_state)
            activations.append(jnp.stack(outputs).swapaxes(1, 2))
            new_state.append(tuple(states))
        return jnp.stack(activations), tuple(new_state)


def init_bilm(key: jax.Array, model: ModelConfig, vocabulary_size: int = 0) -> dict:
    """Initial parameters of the biLM, distributed as bilm-tf's."""
    words = jnp.zeros((1, model.max_characters) if model.input == "characters" else (1,), jnp.int32)
    position = jnp.zeros((1, 1), jnp.int32)
    bilm = BiLM(model, vocabulary_size)
    return jax.jit(bilm.init)(key, words, jnp.int32(1), position, position, zero_state(model, 1))["params"]


class ScalarMix(nn.Module):
    """γ · Σ softmax(w)_l · h_l over L + 1 layers (Peters et al. 2018, equation 1), w and γ learned.

    With `layer_norm`, each layer is first normalised by one mean and variance over all of its values where `mask` is
    true (as published, hence the result depends on what else is in the batch).
    """

    layer_norm: bool = False

    @nn.compact
    def __call__(self, activations: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """activations [L + 1, .., 2P], mask [..] → [.., 2P]."""
        weights = self.param("weights", nn.initializers.zeros, (activations.shape[0],))
        gamma = self.param("gamma", nn.initializers.ones, ())
        return scalar_mix(activations, weights, gamma, self.layer_norm, mask)


def scalar_mix(activations, weights, gamma, layer_norm: bool = False, mask: jax.Array | None = None) -> jax.Array:
    """The function of `ScalarMix`: activations [L + 1, .., 2P], weights [L + 1], gamma [] → [.., 2P]."""
    if layer_norm:
        activations = jnp.stack([normalise(layer, mask) for layer in activations])
    return gamma * jnp.tensordot(jax.nn.softmax(weights), activations, 1, precision=jax.lax.Precision.HIGHEST)


def normalise(layer: jax.Array, mask: jax.Array | None) -> jax.Array:
    """layer [.., 2P] with mean 0 and variance 1 over all values where `mask` [..] is true (bilm-tf elmo.py)."""
    where = None if mask is None else mask[..., None]
    mean = layer.mean(where=where)
    return (layer - mean) * jax.lax.rsqrt(jnp.square(layer - mean).mean(where=where) + 1e-12)
