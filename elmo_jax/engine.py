"""Sentences → windows → activations → the sentences' vectors, with a window on the devices while the next is made."""

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from elmo_jax import compilation
from elmo_jax.batches import number, read_sentences, with_boundaries
from elmo_jax.config import ModelConfig, Precision
from elmo_jax.errors import InputError
from elmo_jax.model import Reading, State, prepared_layers, read_window, stacked, start_state, zero_state
from elmo_jax.parallel import check_process, computing_on, divided, parallel, replicate, shard
from elmo_jax.products import Form, Platform, compiled_for, form, platform
from elmo_jax.streams import Segments, SentenceStream, Window, longest_first_at_end, make_window
from elmo_jax.weights import ModelFolder
from elmo_jax.word_vectors import SpelledVectors, VocabularyVectors

StateMode = Literal["warm", "zero", "carry"]
Pool = Literal["mean", "max"]

# Positions of a window; its rows are the platform's, `products.Form`.
WINDOW = 32
# Windows' worth of text that is looked at ahead, to choose the rows and so that they end together; the second where
# the caller chose the rows, perhaps for a live stream, which waits for it.
LOOK_AHEAD, SHORT_LOOK_AHEAD = 4, 1
# Windows that short sentences may be read ahead of the oldest one not read whole: bounds what waits for it.
AHEAD = 16
# Windows that the device may be behind the host.
IN_FLIGHT = 3


class Request(NamedTuple):
    """What a call asks for, checked: `state`, `precision`, `boundaries`, `batch_size`, `pool` as in `Elmo.embed_iter`.

    layer_weights [L + 1] are those of the sum of layers that is returned, each layer normalised over its sentence
    first with `layer_norm`; None: all layers are returned.
    """

    state: StateMode
    precision: Precision
    boundaries: bool
    batch_size: int | None
    layer_weights: np.ndarray | None
    layer_norm: bool
    pool: Pool | None

    @property
    def reads_boundaries(self) -> bool:
        """Whether <S> and </S> take positions of their own; else the start state has them read already."""
        return self.boundaries or self.state == "carry"


class Fixed(NamedTuple):
    """What all windows of a call are read with: `prepared_layers`, the start state, weights of layers [L + 1]."""

    layers: dict[int, Any]
    start_state: State
    layer_weights: np.ndarray | None


def embedding_step(
    model: ModelConfig, precision: Precision, fixed: Fixed, vectors: jax.Array, lstm_state: State, window: Window
) -> tuple[jax.Array, State]:
    """One window on one device: activations [2, L + 1, r, T, P], or their weighted sum [2, 1, r, T, P], and the state.

    vectors [words, P]; state of all b rows, of which the window reads r. A mix is linear, so it is taken here, before
    anything is copied to the host.
    """
    reading = Reading(window.forward, window.backward, window.reset, window.used)
    before = jax.tree.map(lambda array: array[window.active_rows], lstm_state)
    activations, after = read_window(
        model, fixed.layers, vectors, reading, before, fixed.start_state, precision=precision
    )
    activations = stacked(activations)
    if fixed.layer_weights is not None:
        activations = (activations * fixed.layer_weights[None, :, None, None, None]).sum(1, keepdims=True)
    return activations, jax.tree.map(lambda array, rows: array.at[window.active_rows].set(rows), lstm_state, after)


@functools.cache
def embedding_program(model: ModelConfig, precision: Precision, devices: tuple[jax.Device, ...]):
    """`embedding_step` over devices, compiled once for all models of one shape."""
    step = functools.partial(embedding_step, model, precision)
    return parallel(step, (None, None, 0, 0), (0, 0), donate=(2,), devices=devices)


def batch_step(
    model: ModelConfig,
    precision: Precision,
    boundaries: bool,
    fixed: Fixed,
    vectors: jax.Array,
    rows: tuple[jax.Array, jax.Array, jax.Array],
    ends: jax.Array,
    used: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Activations [B, L + 1, T, 2P] and mask [B, T] of rows of a sentence each: positions, mask, sentences.

    ends [2] are the places of <S> and </S> among the vectors, which with `boundaries` have positions of their own.
    """
    positions, mask, sentences = rows
    if boundaries:
        positions, mask = with_boundaries(positions, mask, sentences, ends)
    read = read_sentences(model, fixed.layers, vectors, positions, mask, fixed.start_state, precision, used)
    return read.swapaxes(0, 1), mask


@functools.cache
def batch_program(model: ModelConfig, precision: Precision, boundaries: bool, platform: Platform):
    """`batch_step`, compiled once for all models of one shape; of rows that devices share each reads its own."""

    def in_form(*arguments):
        with compiled_for(platform):
            return batch_step(model, precision, boundaries, *arguments)

    return jax.jit(in_form)


class Engine:
    """A model on devices of this process. Keeps nothing between calls but vectors of words; threads may share it."""

    def __init__(self, folder: ModelFolder, keep: bool, devices: tuple[jax.Device, ...]):
        self.model, self.keep, self.devices, self._folder = folder.model, keep, devices, folder
        with computing_on(devices):
            self.form, self.platform = form(), platform()
        self.layers = functools.cache(self._layers)
        self.start_state = functools.cache(self._start_state)
        if folder.model.input == "characters":
            read_by = {"vocabulary": folder.vocabulary, "alphabet": folder.alphabet}
            self.words = SpelledVectors(folder.model, folder.parameters["words"], devices, keep, **read_by)
        else:
            self.words = VocabularyVectors(folder.parameters["words"], folder.vocabulary, devices)
        self._lock = threading.Lock()

    def _layers(self, precision: Precision) -> dict[int, Any]:
        """`prepared_layers` on the devices."""
        with computing_on(self.devices):
            return replicate(prepared_layers(self.model, self._folder.parameters, precision), self.devices)

    def _start_state(self, mode: Literal["warm", "zero"], boundaries: bool) -> State:
        """`start_state` on the devices."""
        folder = self._folder
        with compilation.keeping(self.keep), computing_on(self.devices):
            state = start_state(folder.model, folder.parameters, folder.vocabulary, mode, boundaries, folder.alphabet)
            return replicate(state, self.devices)

    def embed(self, sentences: Iterator[list[str]], request: Request) -> Iterator[np.ndarray]:
        """Vectors of sentences, in order: [T_i, 2P], or without layer weights [L + 1, T_i, 2P]; pooled without T_i."""
        with self._beginning_anew():
            yield from self._embed(sentences, request)

    @contextlib.contextmanager
    def _beginning_anew(self) -> Iterator[None]:
        """After what fails inside, the next call begins a new table of words' vectors."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, InputError):  # of a device, say, which was to fill the table
                with self._lock:
                    self.words.sound = False
            raise

    def batch(
        self,
        sentences: list[list[str]],
        mode: Literal["warm", "zero"],
        precision: Precision,
        boundaries: bool,
        rows: int | None,
    ) -> tuple[jax.Array, jax.Array]:
        """`batch_step` of sentences; rows are divided among the devices where their number allows, else on each."""
        words, *arrays = number(sentences, rows)
        used = arrays[1].any(0)
        if boundaries:
            used = np.arange(len(used) + 2) < used.sum() + 2
        precision = self._precision(precision, len(arrays[0]))
        program = batch_program(self.model, precision, boundaries, self.platform)
        fixed = Fixed(self.layers(precision), self.start_state(mode, boundaries), None)
        with self._beginning_anew(), self._lock:
            vectors, places = self.words.look_up(words, arrays[0].size + 2)
            arrays[0] = places[arrays[0]]
            shapes = vectors.shape, arrays[0].shape, len(self.devices)
            shared = replicate((places[:2], used), self.devices)
            arguments = fixed, vectors, divided(tuple(arrays), self.devices), *shared
            return compilation.run(program, shapes, *arguments, keep=self.keep)

    def _embed(self, sentences: Iterator[list[str]], request: Request) -> Iterator[np.ndarray]:
        stream, rows = lay_out(sentences, request, self.form, len(self.devices))
        shape, sizes = (len(self.devices), rows, WINDOW), [*(size for size in self.form.rows if size < rows), rows]
        program, fixed = self._prepare(request, rows)
        lstm_state = shard(zero_state(self.model, shape[0] * rows), self.devices)
        joiner = Joiner(request)
        in_flight: deque[tuple[jax.Array, Segments]] = deque()
        for segments, words in stream:
            check_process()
            with self._lock:  # the table of vectors is good until the next look-up
                vectors, places = self.words.look_up(words[0] + words[1], 2 * shape[0] * rows * WINDOW)
                window, segments = make_window(segments, places.reshape(2, -1), shape, sizes)
                if request.state == "carry":
                    window.reset[:] = False
                shapes = rows, window.active_rows.shape, window.used is None, vectors.shape, fixed.layer_weights is None
                arguments = fixed, vectors, lstm_state, window
                activations, lstm_state = compilation.run(program, shapes, *arguments, keep=self.keep)
            activations.copy_to_host_async()
            in_flight.append((activations, segments))
            if len(in_flight) == IN_FLIGHT:
                yield from joiner.add(*in_flight.popleft())
        while in_flight:
            yield from joiner.add(*in_flight.popleft())

    def _prepare(self, request: Request, rows: int):
        """The program of a call with so many rows on each device, and what all its windows are read with."""
        precision = self._precision(request.precision, rows)
        mode = "zero" if request.state == "carry" else request.state
        layer_weights = None if request.layer_norm else request.layer_weights
        fixed = Fixed(self.layers(precision), self.start_state(mode, request.reads_boundaries), layer_weights)
        return embedding_program(self.model, precision, self.devices), fixed

    def _precision(self, precision: Precision, rows: int) -> Precision:
        """XLA:CPU multiplies a single row by bfloat16 weights several times more slowly than by float32 ones."""
        return "float32" if rows == 1 and self.platform == "cpu" else precision


def lay_out(sentences: Iterator[list[str]], request: Request, form: Form, devices: int) -> tuple[SentenceStream, int]:
    """Sentences as a stream of windows, and the number of rows on each of some devices.

    Where they do not divide the rows, those that fill them up stay empty.
    """
    carry = request.state == "carry"
    if carry:
        rows = request.batch_size or 1
        numbered: Iterable[tuple[int, list[str]]] = enumerate(sentences)
    else:
        sentences, rows = (
            (sentences, request.batch_size) if request.batch_size else choose_rows(sentences, form, devices)
        )
        windows = SHORT_LOOK_AHEAD if request.batch_size else LOOK_AHEAD
        numbered = longest_first_at_end(sentences, windows * rows * WINDOW)
    ahead = None if carry else AHEAD * rows * WINDOW
    stream = SentenceStream(numbered, rows, WINDOW, boundaries=request.reads_boundaries, in_turn=carry, ahead=ahead)
    return stream, -(-rows // devices)


def choose_rows(sentences: Iterator[list[str]], form: Form, devices: int) -> tuple[Iterator[list[str]], int]:
    """The sentences, and how many rows to lay them in: those that read the first sentences soonest."""
    choices = [rows * devices for rows in form.rows]
    held, tokens, longest = [], 0, 0
    for sentence in sentences:
        held.append(sentence)
        tokens, longest = tokens + len(sentence), max(longest, len(sentence))
        if tokens > LOOK_AHEAD * choices[-1] * WINDOW:
            break
    cost = lambda rows: max(longest, tokens / rows) * (rows + form.step_overhead * devices)
    return chain(held, sentences), min(choices, key=cost)


def pooled(vectors: np.ndarray, pool: Pool) -> np.ndarray:
    """[K, T, 2P] of a sentence's tokens → [K, 2P]; zeros where there are none."""
    if not vectors.shape[1]:
        return np.zeros((len(vectors), vectors.shape[2]), np.float32)
    return vectors.mean(1) if pool == "mean" else vectors.max(1)


class Joiner:
    """Puts the vectors of sentences together from the windows that hold their parts, and gives them out in order."""

    def __init__(self, request: Request):
        self.request = request
        self.begun: dict[int, np.ndarray] = {}
        self.done: dict[int, np.ndarray] = {}
        self.next = 0

    def add(self, activations: jax.Array, segments: Segments) -> Iterator[np.ndarray]:
        """activations [n, 2, K, r, T, P] of a window → vectors of the sentences that are complete and next in order."""
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
            yield self.finish(self.done.pop(self.next))
            self.next += 1

    def finish(self, vectors: np.ndarray) -> np.ndarray:
        """[L + 1 or 1, positions, 2P] of a sentence → what the caller asked for."""
        request = self.request
        if request.reads_boundaries and not request.boundaries:
            vectors = vectors[:, 1:-1]
        if request.layer_norm and vectors.size:
            mean, variance = vectors.mean((1, 2), keepdims=True), vectors.var((1, 2), keepdims=True)
            normal = (vectors - mean) / np.sqrt(variance + 1e-12)
            vectors = np.tensordot(request.layer_weights, normal, 1)[None]
        if request.pool is not None:
            vectors = pooled(vectors, request.pool)
        return np.ascontiguousarray(vectors if request.layer_weights is None else vectors[0])
