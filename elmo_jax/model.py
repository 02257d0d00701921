"""The bidirectional language model as functions of arrays: words and a window → activations of both directions, state.

B rows, T positions in a window, U distinct words, C characters of a word, P projection size, D cell size, L layers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elmo_jax.char_cnn import char_cnn_shapes, character_cnn, spelled_vectors
from elmo_jax.config import ModelConfig, Precision
from elmo_jax.lstm import LSTMState, lstm, lstm_shapes, prepared
from elmo_jax.products import over_directions, paired
from elmo_jax.vocabulary import BEGIN_SENTENCE, END_SENTENCE, Alphabet, Vocabulary, character_ids, words_read

DIRECTIONS = ("forward", "backward")
# What the LSTMs read before a sentence for its state to be warm: the words of a short sentence.
WARM_SENTENCE = (".",)

# Words as a model reads them.
Words = jax.Array | tuple[jax.Array, jax.Array]
# Of each direction, each layer's state.
State = tuple[tuple[LSTMState, ...], tuple[LSTMState, ...]]


def zero_state(model: ModelConfig, *rows: int) -> State:
    """Zeros for every direction and layer: NumPy arrays cell [*rows, D], hidden [*rows, P]."""
    shapes = (*rows, model.cell_dim), (*rows, model.projection_dim)
    layer = LSTMState(*(np.zeros(shape, np.float32) for shape in shapes))
    return ((layer,) * model.layers,) * 2


def parameter_shapes(model: ModelConfig, vocabulary_size: int = 0) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shape of every parameter: {"words": {name: shape}, "forward_0": .., "backward_0": .., ..}.

    A model without characters has a vector of each word of the vocabulary instead of a char CNN; one with an alphabet
    may have both.
    """
    table = {"embedding": (vocabulary_size, model.projection_dim)}
    layers = [f"{direction}_{layer}" for direction in DIRECTIONS for layer in range(model.layers)]
    words = char_cnn_shapes(model) if model.input == "characters" else table
    if model.word_dim:
        words = words | {"word_embedding": (vocabulary_size, model.word_dim)}
    return {"words": words, **{name: lstm_shapes(model) for name in layers}}


def word_vectors(
    model: ModelConfig, parameters: dict[str, jax.Array], words: Words, count: jax.Array, precision: Precision
) -> jax.Array:
    """Vectors [U, P] of distinct words, given the parameters of "words" and what `encoded` says of the words.

    `count` [] of them are there.
    """
    if model.input == "words":
        return parameters["embedding"][words]
    if model.alphabet is None:
        return character_cnn(parameters, words, count, model, precision)
    characters, ids = words if model.word_dim else (words, None)
    own = None if ids is None else parameters["word_embedding"][ids]
    return spelled_vectors(parameters, characters, model, precision, own)


def encoded(
    model: ModelConfig, words: Sequence[str], vocabulary: Vocabulary | None, alphabet: Alphabet | None = None
) -> Words:
    """What the model reads of words: character ids [U, C], ids in the vocabulary [U], or both."""
    if model.input == "words":
        return vocabulary.ids(words)
    characters = character_ids(words, model.max_characters, alphabet)
    return (characters, vocabulary.ids(words_read(words, model.max_characters))) if model.word_dim else characters


class Reading(NamedTuple):
    """What the rows of a window read.

    forward   [B, T] which of the words each position of a forward row reads
    backward  [B, T] the same for the backward rows
    reset     [B, T] true where the state becomes the start state before the position; None: nowhere
    used      [T] false where no row has a word: the position is left out; None: all are read
    """

    forward: jax.Array
    backward: jax.Array
    reset: jax.Array | None = None
    used: jax.Array | None = None


def read_window(
    model: ModelConfig,
    parameters: dict[str, Any],
    vectors: jax.Array,
    reading: Reading,
    lstm_state: State,
    start_state: State | None = None,
    *,
    precision: Precision = "float32",
    dropout: Callable[[int, jax.Array], jax.Array] | None = None,
    recurrent_mask: Callable[[int], jax.Array] | None = None,
) -> tuple[list[list[jax.Array]], State]:
    """Reads a window (Peters et al. 2018, section 3.1): vectors [U, P] → activations [T, B, P], LSTM state.

    Activations are, of each direction, the word vectors, then each layer's output. parameters may be `prepared_layers`;
    lstm_state [B, ..] is where the rows stand; start_state (no row axis) what it becomes at resets. dropout (number of
    the place, x [T, B, P]) → x is called on every LSTM layer's input; recurrent_mask (number of the place) → [B, P]
    gives what all outputs of a layer of a direction are multiplied by.
    """
    reset = None if reading.reset is None else reading.reset.T

    def read(weights, inputs, before, begin, mask):
        return lstm(weights, inputs, before, model, precision, reset, begin, reading.used, mask)

    of_words = jnp.asarray(vectors)[jnp.stack([reading.forward.T, reading.backward.T])]  # [2, T, B, P]
    activations = [[of_words[direction]] for direction in range(len(DIRECTIONS))]
    new_state: tuple[list[LSTMState], list[LSTMState]] = [], []
    for layer in range(model.layers):
        inputs = [outputs[-1] for outputs in activations]
        if dropout is not None:
            inputs = [dropout(direction * model.layers + layer, x) for direction, x in enumerate(inputs)]
        weights = parameters[layer] if layer in parameters else paired(*of_layer(parameters, layer))
        before = paired(*(of_one[layer] for of_one in lstm_state))
        begin = paired(*((None, None) if start_state is None else (of_one[layer] for of_one in start_state)))
        masks = (None, None)
        if recurrent_mask is not None:
            masks = (recurrent_mask(direction * model.layers + layer) for direction in range(len(DIRECTIONS)))
        outputs, after = over_directions(read, weights, paired(*inputs), before, begin, paired(*masks))
        for direction in range(len(DIRECTIONS)):
            output = outputs[direction]
            if model.skip_connections and layer > 0:
                output = output + inputs[direction]  # as in bilm-tf, inputs after dropout; the recurrent one without
            activations[direction].append(output)
            new_state[direction].append(after[direction])
    return activations, (tuple(new_state[0]), tuple(new_state[1]))


def stacked(activations: list[list[jax.Array]]) -> jax.Array:
    """Activations of `read_window` in one array [2, L + 1, B, T, P]."""
    return jnp.stack([jnp.stack(layers).swapaxes(1, 2) for layers in activations])


def of_layer(parameters: dict[str, Any], layer: int) -> tuple[Any, Any]:
    """Both directions' parameters of a layer."""
    forward, backward = (parameters[f"{name}_{layer}"] for name in DIRECTIONS)
    return forward, backward


def prepared_layers(model: ModelConfig, parameters: dict[str, Any], precision: Precision) -> dict[int, Any]:
    """The LSTMs' parameters prepared once for many windows: what `read_window` takes in their place, by layer."""
    layers = {layer: of_layer(parameters, layer) for layer in range(model.layers)}
    return {layer: paired(*(prepared(one, precision) for one in both)) for layer, both in layers.items()}


class Before(NamedTuple):
    """What is read before every sentence, from zero: words as in `word_vectors`, and the positions of one row."""

    words: Words
    reading: Reading


def read_before(
    model: ModelConfig,
    vocabulary: Vocabulary | None,
    mode: Literal["warm", "zero"],
    boundaries: bool = True,
    alphabet: Alphabet | None = None,
) -> Before | None:
    """What leads to the fixed state where a sentence begins; None: nothing does, it is zero.

    "warm": the end of a short sentence; in training no sentence began with a zero state. Unless the `boundaries` are
    positions of their own, the one that each direction reads first is read here, once for all.
    """
    words = [BEGIN_SENTENCE, *WARM_SENTENCE, END_SENTENCE]
    places = list(range(len(words) - 1)) if mode == "warm" else []
    if not boundaries:
        places.append(0)
    if not places:
        return None
    forward = np.array([places], np.int32)
    return Before(encoded(model, words, vocabulary, alphabet), Reading(forward, len(words) - 1 - forward))


@functools.partial(jax.jit, static_argnums=0)
def state_after(model: ModelConfig, parameters: dict[str, Any], before: Before | None) -> State:
    """The fixed state where a sentence begins: cell [D], hidden [P] of every direction and layer."""
    if before is None:
        return zero_state(model)
    count = len(jax.tree.leaves(before.words)[0])
    vectors = word_vectors(model, parameters["words"], before.words, np.int32(count), "float32")
    _, state = read_window(model, parameters, vectors, before.reading, zero_state(model, 1))
    return jax.tree.map(lambda array: array[0], state)


def start_state(
    model: ModelConfig,
    parameters: dict[str, Any],
    vocabulary: Vocabulary | None,
    mode: Literal["warm", "zero"],
    boundaries: bool = True,
    alphabet: Alphabet | None = None,
) -> State:
    """`state_after` what is read before every sentence, as NumPy."""
    state = state_after(model, parameters, read_before(model, vocabulary, mode, boundaries, alphabet))
    return jax.tree.map(np.asarray, state)


def scalar_mix(
    activations: jax.Array,
    weights: jax.Array,
    gamma: jax.Array,
    layer_norm: bool = False,
    mask: jax.Array | None = None,
) -> jax.Array:
    """γ · Σ softmax(w)_l · h_l over L + 1 layers (Peters et al. 2018, equation 1).

    activations [L + 1, .., 2P], weights [L + 1], gamma [] → [.., 2P]. With `layer_norm`, each layer is first
    normalised by one mean and variance over all of its values where `mask` [..] is true (as published, hence the
    result depends on what else is in the batch).
    """
    if layer_norm:
        activations = jnp.stack([normalise(layer, mask) for layer in activations])
    return gamma * jnp.tensordot(jax.nn.softmax(weights), activations, 1, precision=jax.lax.Precision.HIGHEST)


def normalise(layer: jax.Array, mask: jax.Array | None) -> jax.Array:
    """layer [.., 2P] with mean 0 and variance 1 over all values where `mask` [..] is true (bilm-tf elmo.py)."""
    where = None if mask is None else mask[..., None]
    mean = layer.mean(where=where)
    return (layer - mean) * jax.lax.rsqrt(jnp.square(layer - mean).mean(where=where) + 1e-12)
