"""Batches for programs of one's own: sentences as arrays of few shapes, and reading them, a row for each sentence.

B rows, T positions, U distinct words, C characters of a word, P projection size, L layers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.errors import InputError
from elmo_jax.model import Reading, State, encoded, read_window
from elmo_jax.vocabulary import BEGIN_SENTENCE, END_SENTENCE, PADDING, Alphabet, Vocabulary

# Positions of the shortest batch; longer ones have twice, four times, .. as many.
SHORTEST = 16
# The room for distinct words is a multiple of this, so that devices may divide it.
WORDS_MULTIPLE = 64


class Encoded(NamedTuple):
    """Sentences as a model reads them: NumPy arrays, a pytree.

    words      character ids [U, C] of the distinct words: <S>, </S>, then shorter ones before longer ones; of a model
               that looks words up their ids [U], of one that does both a tuple of both
    count      int32 []: how many of the U words there are; programs leave out the others
    positions  int32 [B, T]: the number of the word of each position, 0 behind the end of a sentence
    mask       bool [B, T]: true where there is a token
    sentences  bool [B]: true where the row is a sentence, be it one without tokens; false where it only fills up
    """

    words: Any
    count: Any
    positions: Any
    mask: Any
    sentences: Any


class Numbered(NamedTuple):
    """Sentences by the numbers of their distinct words, <S> and </S> first; the arrays are those of `Encoded`."""

    words: list[str]
    positions: np.ndarray
    mask: np.ndarray
    sentences: np.ndarray


def number(sentences: Sequence[Sequence[str]], rows: int | None = None) -> Numbered:
    """Lists of tokens in rows, filled up to `rows`; T is 16, 32, 64, .. positions."""
    if not sentences and rows is None:
        raise InputError("there are no sentences; give at least one, or with rows=B a batch of B empty rows")
    if rows is not None and rows < len(sentences):
        raise InputError(f"{len(sentences)} sentences do not fit into rows={rows}; give fewer, or more rows")
    longest = max(map(len, sentences), default=0)
    shape = rows or len(sentences), SHORTEST << ((max(longest, 1) - 1) // SHORTEST).bit_length()
    place = {BEGIN_SENTENCE: 0, END_SENTENCE: 1}
    positions, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for row, tokens in enumerate(sentences):
        positions[row, : len(tokens)] = [place.setdefault(token, len(place)) for token in tokens]
        mask[row, : len(tokens)] = True
    return Numbered(list(place), positions, mask, np.arange(shape[0]) < len(sentences))


def word_room(distinct: int, positions: int) -> int:
    """U: half as many words as positions where that is enough, else a word for each and the two boundaries."""
    room = positions // 2 if distinct <= positions // 2 else positions + 2
    return -(-room // WORDS_MULTIPLE) * WORDS_MULTIPLE


def encode(
    model: ModelConfig,
    vocabulary: Vocabulary | None,
    alphabet: Alphabet | None,
    sentences: Sequence[Sequence[str]],
    rows: int | None = None,
) -> Encoded:
    """Lists of tokens as a model reads them.

    U depends on B and T, by `word_room`; C is that of the model: on CPU programs themselves leave out the columns that
    no word of a chunk reaches, elsewhere they cost a few percent. So the programs that read a text are few, however
    its sentences are put into batches.
    """
    words, positions, mask, real = number(sentences, rows)
    read, room = encoded(model, words, vocabulary, alphabet), word_room(len(words), positions.size)
    characters, ids = (None, read) if model.input == "words" else read if model.word_dim else (read, None)
    if characters is not None:
        lengths = (characters != PADDING).sum(1)
        lengths[:2] = 0  # the boundaries stay first
        order = np.argsort(lengths, kind="stable")
        characters = _filled(characters[order], room)
        ids = None if ids is None else ids[order]
        positions = np.where(mask, np.argsort(order).astype(np.int32)[positions], 0)
    ids = None if ids is None else _filled(ids, room)
    together = ids if characters is None else characters if ids is None else (characters, ids)
    return Encoded(together, np.array(len(words), np.int32), positions, mask, real)


def _filled(array: np.ndarray, room: int) -> np.ndarray:
    """An array of words, the last of them repeated to fill the room."""
    return np.pad(array, ((0, room - len(array)), *((0, 0),) * (array.ndim - 1)), mode="edge")


def with_boundaries(
    positions: jax.Array, mask: jax.Array, sentences: jax.Array, boundaries: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Positions and mask [B, T + 2] with <S> and </S>, whose numbers are `boundaries` [2], about each sentence."""
    place, last = jnp.arange(mask.shape[1] + 2)[None], mask.sum(1)[:, None] + 1
    tokens = jnp.pad(positions, ((0, 0), (1, 1)))
    positions = jnp.where(place == 0, boundaries[0], jnp.where(place == last, boundaries[1], tokens))
    return positions, (place <= last) & sentences[:, None]


def read_sentences(
    model: ModelConfig,
    parameters: dict[Any, Any],
    vectors: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    start_state: State,
    precision: Precision = "float32",
    used: jax.Array | None = None,
) -> jax.Array:
    """Activations [L + 1, B, T, 2P] of sentences, each from the start state; zeros behind their ends.

    parameters, vectors [U, P] and start_state as in `read_window`; positions in vectors and mask [B, T]; `used` [T]
    is as in `Reading`, not for training. A backward row reads its sentence in reverse and its padding, too, behind it.
    """
    place = jnp.arange(mask.shape[1])[None]
    order = jnp.where(mask, mask.sum(1)[:, None] - 1 - place, place)  # its own inverse
    reading = Reading(positions, jnp.take_along_axis(positions, order, 1), None, used)
    state = jax.tree.map(lambda array: jnp.broadcast_to(array[None], (len(mask), *array.shape)), start_state)
    activations, _ = read_window(model, parameters, vectors, reading, state, precision=precision)
    forward, backward = map(jnp.stack, activations)  # [L + 1, T, B, P]
    backward = jnp.take_along_axis(backward, order.T[None, :, :, None], 1)
    joined = jnp.concatenate([forward, backward], -1).swapaxes(1, 2)
    return jnp.where(mask[None, :, :, None], joined, 0.0)
