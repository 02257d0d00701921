"""Words → vectors on the devices: the char CNN, the costly part of a word, runs once per word."""

import functools
from typing import Any

import jax
import numpy as np
from jax import lax

from elmo_jax import compilation
from elmo_jax.char_cnn import char_cnn_shapes, quickly_spelled
from elmo_jax.config import ModelConfig
from elmo_jax.parallel import AXIS, computing_on, parallel, replicate
from elmo_jax.products import form
from elmo_jax.streams import character_width
from elmo_jax.vocabulary import PADDING, Alphabet, Vocabulary, character_ids, words_read

# Words whose vectors are remembered, the last ones used.
REMEMBERED_WORDS = 65536


def spell(
    model: ModelConfig,
    parameters: dict[str, Any],
    table: jax.Array,
    places: jax.Array,
    characters: jax.Array,
    words: jax.Array | None,
) -> jax.Array:
    """Writes the vectors of words into a table [words, P] that all devices share.

    Each device spells some of the words: character ids [c, C] and, where the model has some, the words' own vectors
    [c, W]; places [n · c] of all devices' words, those behind the table's end are left out.
    """
    vectors = quickly_spelled(parameters, characters, model, "float32", words)
    return table.at[places].set(lax.all_gather(vectors, AXIS, tiled=True), mode="drop")


@functools.cache
def spelling_program(model: ModelConfig, devices: tuple[jax.Device, ...]):
    """`spell` over devices, compiled once for all models of one shape."""
    step = functools.partial(spell, model)
    return parallel(step, (None, None, None, 0, 0), None, donate=(1,), devices=devices)


class VocabularyVectors:
    """Word vectors of a model without characters: one of each of its vocabulary's words, always `sound`."""

    sound = True

    def __init__(self, parameters: dict[str, Any], vocabulary: Vocabulary, devices: tuple[jax.Device, ...]):
        self.table = replicate(parameters["embedding"], devices)
        self.vocabulary = vocabulary

    def look_up(self, words: list[str], most: int) -> tuple[jax.Array, np.ndarray]:
        """A table of vectors [.., P], and where in it those of words are, int32."""
        return self.table, self.vocabulary.ids(words)


class SpelledVectors:
    """Vectors of the words used last, by a char CNN.

    The place of a word in the table is that of its vector until `capacity` words have been used since. While a table
    changes it is not `sound`; one whose change was interrupted stays so, and the next call begins a new one: its
    buffer may be gone (it is donated), and what is written about it be half the truth.
    """

    def __init__(
        self,
        model: ModelConfig,
        parameters: dict[str, Any],
        devices: tuple[jax.Device, ...],
        keep: bool = False,
        vocabulary: Vocabulary | None = None,
        alphabet: Alphabet | None = None,
    ):
        self.model, self.devices, self.keep = model, devices, keep
        self.vocabulary, self.alphabet = vocabulary, alphabet
        self.own_vectors = parameters.get("word_embedding")  # [V, W], of which devices see those of new words
        self.parameters = replicate({name: parameters[name] for name in char_cnn_shapes(model)}, devices)
        with computing_on(devices):
            self.new_words = form().new_words  # that are spelled at a time on each device
        self.capacity = 0
        self.sound = False

    def look_up(self, words: list[str], most: int) -> tuple[jax.Array, np.ndarray]:
        """A table of vectors [capacity, P], and where in it those of words are, int32; `most` words may come at once.

        The table is good until the next call.
        """
        if not self.sound or self.capacity < most:
            self._begin(max(REMEMBERED_WORDS, most, self.capacity))
        self.clock += 1
        places = list(map(self.place.get, words))
        new = list(dict.fromkeys(word for word, place in zip(words, places, strict=True) if place is None))
        if new:
            self.last_used[[place for place in places if place is not None]] = self.clock
            self.sound = False
            self._spell(new, self._take_places(len(new)))
            self.sound = True
            places = list(map(self.place.__getitem__, words))
        in_table = np.array(places, np.int32)
        self.last_used[in_table] = self.clock
        return self.table, in_table

    def _begin(self, capacity: int) -> None:
        self.sound = False
        self.capacity = capacity
        self.table = replicate(np.zeros((capacity, self.model.projection_dim), np.float32), self.devices)
        self.place: dict[str, int] = {}
        self.word = [""] * capacity
        self.clock, self.last_used = 0, np.zeros(capacity, np.int64)  # when each place was used last
        self.free = list(range(capacity))[::-1]
        self.sound = True

    def _take_places(self, count: int) -> np.ndarray:
        """Free places for new words, if need be those that were not used for longest."""
        if count > len(self.free):
            many = max(count, self.capacity // 8)  # at a time; places that are free count as oldest
            oldest = np.argpartition(self.last_used, many - 1)[:many]
            for place in oldest[self.last_used[oldest] < self.clock].tolist():
                if self.last_used[place]:
                    del self.place[self.word[place]]
                    self.last_used[place] = 0
                    self.free.append(place)
        return np.array([self.free.pop() for _ in range(count)], np.int32)

    def _spell(self, words: list[str], places: np.ndarray) -> None:
        """Puts the vectors of new words into their places."""
        characters = character_ids(words, self.model.max_characters, self.alphabet)
        own = None
        if self.own_vectors is not None:
            own = self.own_vectors[self.vocabulary.ids(words_read(words, self.model.max_characters))]
        order = np.argsort((characters != PADDING).sum(1), kind="stable")  # words of like length go together
        program, size = spelling_program(self.model, self.devices), self.new_words * len(self.devices)
        for first in range(0, len(words), size):
            chunk = order[first : first + size]
            rest = (0, size - len(chunk))
            spelled = np.pad(characters[chunk], (rest, (0, 0)), mode="edge")
            spelled = spelled[:, : character_width(spelled, self.model.widest_filter)]
            targets = np.pad(places[chunk], rest, constant_values=self.capacity)
            spelled = spelled.reshape(len(self.devices), self.new_words, -1)
            shapes = self.capacity, spelled.shape
            of_words = None if own is None else np.pad(own[chunk], (rest, (0, 0))).reshape(*spelled.shape[:2], -1)
            arguments = self.parameters, self.table, targets, spelled, of_words
            self.table = compilation.run(program, shapes, *arguments, keep=self.keep)
        for word, place in zip(words, places.tolist(), strict=True):
            self.place[word], self.word[place] = place, word
            self.last_used[place] = self.clock
