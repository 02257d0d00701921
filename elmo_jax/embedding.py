"""load() and Elmo: sentences → vectors; the HDF5 writer."""

import functools
import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import h5py
import jax
import numpy as np
from etils import epath
from jax import lax
from tqdm import tqdm

from elmo_jax.char_cnn import spelled_vectors
from elmo_jax.config import ModelConfig, Precision
from elmo_jax.errors import InputError
from elmo_jax.files import writing
from elmo_jax.model import Reading, State, read_window, start_state, zero_state
from elmo_jax.parallel import AXIS, device_count, keep_compiled, parallel, replicate, shard
from elmo_jax.streams import Segments, SentenceStream, Window, character_width, longest_first_at_end, make_window
from elmo_jax.vocabulary import PADDING, Vocabulary, character_ids
from elmo_jax.weights import ModelFolder, read_folder, read_model

Sentence = Sequence[str] | str
Layers = Literal["average", "top", "all", "mix"]
StateMode = Literal["warm", "zero", "carry"]

# Rows on each device for little to much text, and positions of a window: a fixed set of shapes, so of compilations.
ROWS = (1, 8, 64, 256)
WINDOW = 32
# What a step costs beside its rows' work, counted in rows: it reads all weights.
STEP_OVERHEAD = 16
# Windows' worth of text that is looked at ahead, to choose the rows and so that they end together.
LOOK_AHEAD = 4
# Windows that short sentences may be read ahead of the oldest one not read whole: bounds what waits for it.
AHEAD = 16
# Windows that the device may be behind the host.
IN_FLIGHT = 3
# Words whose vectors are kept, the last ones used; new ones go through the char CNN so many at a time on each device.
CACHED_WORDS = 65536
NEW_WORDS = 64


class Mix(NamedTuple):
    """A scalar mix, γ · Σ softmax(weights)_l · h_l.

    With `layer_norm`, each layer is first normalised by one mean and variance over all values of the sentence that
    are returned: what bilm-tf computes for a batch of that one sentence, or AllenNLP if boundaries are kept.
    """

    weights: Sequence[float]
    gamma: float = 1.0
    layer_norm: bool = False


def load(
    model: str | Path | None = None,
    *,
    options: str | Path | None = None,
    weights: str | Path | None = None,
    vocab: str | Path | None = None,
) -> "Elmo":
    """Loads a model folder, a training workdir, or the two published files (`options=..., weights=...`)."""
    keep_compiled()
    if model is not None and (options, weights, vocab) == (None, None, None):
        return Elmo(read_folder(epath.Path(model)))
    if model is None and options is not None and weights is not None:
        return Elmo(read_model(epath.Path(options), epath.Path(weights), vocab and epath.Path(vocab)))
    raise InputError("load() takes a folder, or options= and weights= (and for models without characters vocab=)")


def embedding_step(
    model: ModelConfig,
    precision: Precision,
    parameters: dict[str, Any],
    vectors: jax.Array,
    state: State,
    window: Window,
    start: State,
    layer_weights: jax.Array | None,
) -> tuple[jax.Array, State]:
    """One window on one device: activations [2, L + 1, r, T, P], or their weighted sum [2, 1, r, T, P], and the state.

    parameters of the LSTMs; vectors [words, P]; state of all b rows, of which the window reads r. A mix is linear, so
    it is taken here, before anything is copied to the host; layer_weights [L + 1].
    """
    reading = Reading(window.forward, window.backward, window.reset, window.used)
    before = jax.tree.map(lambda array: array[window.rows], state)
    activations, read = read_window(model, parameters, vectors, reading, before, start, precision=precision)
    if layer_weights is not None:
        activations = (activations * layer_weights[None, :, None, None, None]).sum(1, keepdims=True)
    return activations, jax.tree.map(lambda array, rows: array.at[window.rows].set(rows), state, read)


def remember(
    model: ModelConfig, parameters: dict[str, Any], table: jax.Array, places: jax.Array, characters: jax.Array
) -> jax.Array:
    """Writes the vectors of words into a table [words, P] that all devices share.

    Each device spells some of the words: character ids [c, C]; places [n · c] of all devices' words, those behind the
    table's end are left out.
    """
    vectors = spelled_vectors(parameters, characters, model, "float32")
    return table.at[places].set(lax.all_gather(vectors, AXIS, tiled=True), mode="drop")


@functools.cache
def embedding_program(model: ModelConfig, precision: Precision):
    """`embedding_step` over all devices, compiled once for all models of one shape."""
    step = functools.partial(embedding_step, model, precision)
    return parallel(step, (None, None, 0, 0, None, None), (0, 0), donate=(2,))


@functools.cache
def remember_program(model: ModelConfig):
    """`remember` over all devices."""
    return parallel(functools.partial(remember, model), (None, None, None, 0), None, donate=(1,))


class WordVectors:
    """Vectors of the words used last, on the devices: the char CNN, the costly part of a word, runs once per word.

    The place of a word in the table is that of its vector until `capacity` words have been used since.
    """

    def __init__(self, model: ModelConfig, parameters: dict[str, Any], capacity: int):
        self.model, self.parameters, self.capacity = model, parameters, capacity
        self.table = replicate(np.zeros((capacity, model.projection_dim), np.float32))
        self.place: dict[str, int] = {}
        self.word = [""] * capacity
        self.clock, self.used = 0, np.zeros(capacity, np.int64)  # when each place was used last
        self.free = list(range(capacity))[::-1]

    def places(self, words: list[str]) -> np.ndarray:
        """Where in the table the vectors of words are, int32; they are put there if need be."""
        self.clock += 1
        found = list(map(self.place.get, words))
        new = list(dict.fromkeys(word for word, place in zip(words, found, strict=True) if place is None))
        if new:
            self.used[[place for place in found if place is not None]] = self.clock
            self._add(new)
            found = list(map(self.place.__getitem__, words))
        places = np.array(found, np.int32)
        self.used[places] = self.clock
        return places

    def _add(self, words: list[str]) -> None:
        """Puts new words into the table, in place of those that were not used for longest."""
        if len(words) > len(self.free):
            count = max(len(words), self.capacity // 8)  # many at a time; places that are free count as oldest
            oldest = np.argpartition(self.used, count - 1)[:count]
            for place in oldest[self.used[oldest] < self.clock].tolist():
                if self.used[place]:
                    del self.place[self.word[place]]
                    self.used[place] = 0
                    self.free.append(place)
        characters = character_ids(words, self.model.max_characters)
        order = np.argsort((characters != PADDING).sum(1), kind="stable")  # words of like length go together
        places = np.array([self.free.pop() for _ in words], np.int32)
        size = NEW_WORDS * device_count()
        for first in range(0, len(words), size):
            chunk = order[first : first + size]
            rest = (0, size - len(chunk))
            spelled = np.pad(characters[chunk], (rest, (0, 0)), mode="edge")
            spelled = spelled[:, : character_width(spelled, self.model.widest_filter)]
            targets = np.pad(places[chunk], rest, constant_values=self.capacity)
            spelled = spelled.reshape(device_count(), NEW_WORDS, -1)
            self.table = remember_program(self.model)(self.parameters, self.table, targets, spelled)
        for word, place in zip(words, places.tolist(), strict=True):
            self.place[word], self.word[place] = place, word
            self.used[place] = self.clock


class Elmo:
    """A pretrained biLM that turns sentences into vectors. Made by `elmo_jax.load`.

    The result is a function of the sentences and the arguments alone: no state is kept between calls but the vectors
    of words. May be used by several threads.
    """

    def __init__(self, folder: ModelFolder):
        self.model: ModelConfig = folder.model
        self.vocabulary: Vocabulary | None = folder.vocabulary
        self._folder = folder
        self._lock = threading.Lock()
        self._words = replicate(folder.parameters["words"])
        self._vectors: WordVectors | None = None
        self._start = functools.cache(functools.partial(start_state, *folder[:3]))
        self._lstms = functools.cache(self._lstm_parameters)

    def _lstm_parameters(self, precision: Precision) -> dict[str, Any]:
        """The LSTMs' parameters on the devices, those that enter products already rounded."""

        def convert(path: tuple, array: np.ndarray) -> np.ndarray:
            return array if path[-1].key == "bias" else array.astype(precision)

        lstms = {name: module for name, module in self._folder.parameters.items() if name != "words"}
        return replicate(jax.tree.map_with_path(convert, lstms))

    @property
    def dim(self) -> int:
        """Width of a vector, 2P: both directions."""
        return 2 * self.model.projection_dim

    def embed(self, sentences: Iterable[Sentence], **options) -> list[np.ndarray]:
        """Vectors of each sentence, float32 [T_i, 2P], or [L + 1, T_i, 2P] with layers="all".

        A sentence is a list of tokens or a str of tokens separated by spaces. Options are those of `embed_iter`.
        """
        sentences = sentences if isinstance(sentences, str) else list(sentences)
        vectors = self.embed_iter(sentences, **options)
        return list(tqdm(vectors, "embedding", len(sentences), unit=" sentences", delay=2, leave=False))

    def embed_iter(
        self,
        sentences: Iterable[Sentence],
        *,
        layers: Layers = "average",
        state: StateMode = "warm",
        precision: Precision = "float32",
        boundaries: bool = False,
        batch_size: int | None = None,
        mix: Mix | None = None,
    ) -> Iterator[np.ndarray]:
        """Vectors of each sentence of a stream, in order, in constant memory.

        layers      "average" of all layers, "top", "all", or "mix": the scalar mix given as `mix`
        state       the LSTM state at the beginning of a sentence: "warm" (a fixed state of the model), "zero", or
                    "carry" (what the row's sentence before left: bilm-tf's stateful behaviour, zero at first)
        precision   of the LSTMs' products: "float32" or "bfloat16" (summed in float32; on CPU a single row, so one
                    sentence alone, is always read in float32, which is faster there). Word vectors are float32
        boundaries  keep the vectors of <S> and </S>: T_i is two longer
        batch_size  rows of sentences read at a time; by default few for little text, many for much. With "carry",
                    sentence i goes to row i modulo batch_size (by default one row: the text as it stands)
        """
        if isinstance(sentences, str):
            raise InputError("embed() and embed_iter() take several sentences; got one str: put it into a list")
        _check_choice("layers", layers, Layers)
        _check_choice("state", state, StateMode)
        _check_choice("precision", precision, Precision)
        if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
            raise InputError(f"batch_size is {batch_size}; it must be a whole number from 1 up, or None")
        if (mix is not None) != (layers == "mix"):
            raise InputError('layers="mix" and mix=Mix(weights, gamma, layer_norm) go together')
        if mix is not None and len(mix.weights) != self.model.layers + 1:
            needed = f"{self.model.layers + 1}: word vectors and {self.model.layers} LSTM layers"
            raise InputError(f"mix has {len(mix.weights)} weights; the model needs {needed}")
        return self._embed(map(_tokens, sentences), layers, state, precision, boundaries, batch_size, mix)

    def _embed(self, sentences, layers, state, precision, boundaries, batch_size, mix) -> Iterator[np.ndarray]:
        carry = state == "carry"
        if carry:
            numbered, rows = enumerate(sentences), batch_size or 1
        else:
            sentences, rows = _choose_rows(sentences, batch_size)
            numbered = longest_first_at_end(sentences, LOOK_AHEAD * rows * WINDOW)
        devices = device_count()
        rows_each = -(-rows // devices)  # where devices do not divide the rows, those that fill them up stay empty
        read_boundaries = boundaries or carry
        stream = SentenceStream(
            numbered,
            rows,
            WINDOW,
            boundaries=read_boundaries,
            in_turn=carry,
            ahead=None if carry else AHEAD * rows * WINDOW,
        )
        start = self._start("zero" if carry else state, read_boundaries)
        weights = self._layer_weights(layers, mix)
        if rows_each == 1 and jax.default_backend() == "cpu":
            precision = "float32"  # XLA:CPU multiplies a single row by bfloat16 weights several times more slowly
        parameters, program = self._lstms(precision), embedding_program(self.model, precision)
        lstm_state = shard(zero_state(self.model, devices * rows_each))
        joiner = Joiner()
        in_flight: deque[tuple[jax.Array, Segments]] = deque()
        finish = functools.partial(self._finish, layers=layers, cut=read_boundaries and not boundaries, mix=mix)
        for segments, words in stream:
            with self._lock:
                vectors, numbers = self._read_words(words, rows_each)
                window, segments = make_window(
                    segments,
                    numbers,
                    (devices, rows_each, WINDOW),
                    [*(size for size in ROWS if size < rows_each), rows_each],
                )
                if carry:
                    window.reset[:] = False
                activations, lstm_state = program(parameters, vectors, lstm_state, window, start, weights)
            activations.copy_to_host_async()
            in_flight.append((activations, segments))
            if len(in_flight) == IN_FLIGHT:
                yield from map(finish, joiner.add(*in_flight.popleft()))
        while in_flight:
            yield from map(finish, joiner.add(*in_flight.popleft()))

    def _read_words(self, words: tuple[list[str], list[str]], rows: int) -> tuple[jax.Array, np.ndarray]:
        """A table of word vectors [words, P], and which of them the words are, int32 [2, positions]."""
        every = words[0] + words[1]
        if self.model.input == "words":
            return self._words["embedding"], self.vocabulary.ids(every).reshape(2, -1)
        capacity = max(CACHED_WORDS, 2 * rows * device_count() * WINDOW)  # no fewer than a window may have
        if self._vectors is None or self._vectors.capacity < capacity:
            self._vectors = WordVectors(self.model, self._words, capacity)
        places = self._vectors.places(every).reshape(2, -1)
        return self._vectors.table, places

    def _layer_weights(self, layers: Layers, mix: Mix | None) -> np.ndarray | None:
        if layers == "all" or (mix is not None and mix.layer_norm):
            return None
        if layers == "average":
            return np.full(self.model.layers + 1, 1 / (self.model.layers + 1), np.float32)
        if layers == "top":
            return np.eye(self.model.layers + 1, dtype=np.float32)[-1]
        return _mix_weights(mix)

    def _finish(self, vectors: np.ndarray, *, layers: Layers, cut: bool, mix: Mix | None) -> np.ndarray:
        """[L + 1 or 1, positions, 2P] → what the caller asked for; `cut`: without the first and the last position."""
        vectors = vectors[:, 1:-1] if cut else vectors
        if mix is not None and mix.layer_norm and vectors.size:
            mean, variance = vectors.mean((1, 2), keepdims=True), vectors.var((1, 2), keepdims=True)
            normal = (vectors - mean) / np.sqrt(variance + 1e-12)
            vectors = np.tensordot(_mix_weights(mix), normal, 1)[None]
        return np.ascontiguousarray(vectors if layers == "all" else vectors[0])


class Joiner:
    """Puts the parts of sentences that windows hold back together, and the sentences back in order."""

    def __init__(self):
        self.begun: dict[int, np.ndarray] = {}  # [K, positions, 2P], written as windows come
        self.done: dict[int, np.ndarray] = {}
        self.next = 0

    def add(self, activations: jax.Array, segments: Segments) -> Iterator[np.ndarray]:
        """activations [n, 2, K, r, T, P] of a window → sentences [K, positions, 2P] that are complete, in order."""
        host = np.asarray(activations)
        _, _, layers, rows, _, width = host.shape
        for row, start, sentence, offset, length, total in zip(*(array.tolist() for array in segments), strict=True):
            if offset == 0:
                self.begun[sentence] = np.empty((layers, total, 2 * width), np.float32)
            vectors, stop = self.begun[sentence], offset + length
            forward, backward = host[row // rows, :, :, row % rows, start : start + length]
            vectors[:, offset:stop, :width] = forward
            vectors[:, total - stop : total - offset, width:] = backward[:, ::-1]
            if stop == total:
                self.done[sentence] = self.begun.pop(sentence)
        while self.next in self.done:
            yield self.done.pop(self.next)
            self.next += 1


def _mix_weights(mix: Mix) -> np.ndarray:
    """γ · softmax(weights), float32 [L + 1]."""
    powers = np.exp(np.asarray(mix.weights) - np.max(mix.weights))
    return (mix.gamma * powers / powers.sum()).astype(np.float32)


def _tokens(sentence: Sentence) -> list[str]:
    if isinstance(sentence, str):
        return sentence.split()
    if isinstance(sentence, Iterable):
        tokens = list(sentence)
        if all(isinstance(token, str) for token in tokens):
            return tokens
    raise InputError(f"a sentence is a str or a list of str; got {sentence!r}")


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, get_args(choices)))}")


def _choose_rows(sentences: Iterator[list[str]], batch_size: int | None) -> tuple[Iterator[list[str]], int]:
    """The sentences, and how many rows to lay them in: those that read the first sentences soonest."""
    if batch_size is not None:
        return sentences, batch_size
    choices = [rows * device_count() for rows in ROWS]
    held, tokens, longest = [], 0, 0
    for sentence in sentences:
        held.append(sentence)
        tokens, longest = tokens + len(sentence), max(longest, len(sentence))
        if tokens > LOOK_AHEAD * choices[-1] * WINDOW:
            break
    cost = lambda rows: max(longest, tokens / rows) * (rows + STEP_OVERHEAD * device_count())
    return chain(held, sentences), min(choices, key=cost)


def write_hdf5(path: Path, sentences: Iterable[list[str]], vectors: Iterable[np.ndarray]) -> None:
    """Writes vectors in the format of bilm-tf's and AllenNLP's dumps; the file appears only when it is whole.

    Dataset "i" holds the vectors of sentence i, and `sentence_to_index` [1] JSON from each sentence to its (last) i.
    """
    index = {}
    with writing(path) as partial, h5py.File(partial, "w") as file:
        for number, (tokens, array) in enumerate(zip(sentences, vectors, strict=True)):
            file.create_dataset(str(number), data=array)
            index[" ".join(tokens)] = str(number)
        file.create_dataset("sentence_to_index", (1,), dtype=h5py.string_dtype())
        file["sentence_to_index"][0] = json.dumps(index)
