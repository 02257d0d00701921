"""Sentences → rows → windows: one builder for training and for inference.

The model reads B rows, each a stream of sentences laid end to end, cut into windows of T positions. A forward row
reads each sentence left to right; the backward row reads the same sentence at the same place right to left. A
sentence that does not fit into a window goes on in the next one, in the same row.
"""

import functools
import heapq
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from elmo_jax.config import ModelConfig
from elmo_jax.corpus import Corpus, ranges
from elmo_jax.vocabulary import BEGIN_SENTENCE, END_SENTENCE, PADDING, character_widths


class Segments(NamedTuple):
    """The parts of sentences that lie in one window, arrays with an entry for each.

    A part takes the positions [start, start + length) of its row. Of its sentence, which takes `total` positions,
    earlier windows hold the first `offset`.
    """

    row: np.ndarray
    start: np.ndarray
    sentence: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    total: np.ndarray

    def places(self, window: int) -> np.ndarray:
        """Where all their positions lie in an array [rows · window]."""
        return ranges(self.row * window + self.start, self.length)


class Layout:
    """Lays sentences end to end in rows and cuts the rows into windows.

    `queue` yields (number of a sentence, positions it takes). A sentence goes to the row that is free first (the
    lowest of several), or, `in_turn`, the i-th sentence to row i modulo `rows`.
    With `ahead`, rows wait idle rather than take a sentence when that many positions have been taken since the oldest
    sentence that is not read whole: without it, one very long sentence would let the others run ahead without bound.
    """

    def __init__(
        self,
        rows: int,
        window: int,
        queue: Iterator[tuple[int, int]],
        in_turn: bool = False,
        ahead: int | None = None,
    ):
        self.rows, self.window, self.queue, self.in_turn, self.ahead = rows, window, queue, in_turn, ahead
        self.begin = 0  # position where the next window begins
        self.sentences = self.taken = 0  # sentences taken from the queue, positions that they take
        # A line for each sentence not read whole: row, position where it begins, number, length, `taken` before it.
        self.placed = np.zeros((0, 5), np.int64)
        self.free = [(0, row) for row in range(rows)]  # where each row is free: a heap, or in_turn in order of rows

    def __next__(self) -> Segments:
        """The segments of the next window, in the order in which their sentences were taken."""
        end, free, taken = self.begin + self.window, self.free, []
        if not self.in_turn and free[0][0] < self.begin:  # rows have been idle
            free[:] = sorted((max(place, self.begin), row) for place, row in free)
        oldest = self.placed[0, 4] if len(self.placed) else self.taken
        while (min(free) if self.in_turn else free[0])[0] < end:
            if self.ahead is not None and self.taken - oldest > self.ahead:
                break
            sentence, length = next(self.queue, (None, 0))
            if sentence is None:
                break
            place, row = free[self.sentences % self.rows if self.in_turn else 0]
            place = max(place, self.begin)
            taken.append((row, place, sentence, length, self.taken))
            self.sentences, self.taken = self.sentences + 1, self.taken + length
            if self.in_turn:
                free[row] = place + length, row
            else:
                heapq.heapreplace(free, (place + length, row))
        if taken:
            self.placed = np.concatenate([self.placed, np.array(taken, np.int64)])
        if not len(self.placed):
            raise StopIteration
        row, place, sentence, length, _ = self.placed[self.placed[:, 1] < end].T
        first, stop = np.maximum(place, self.begin), np.minimum(place + length, end)
        segments = Segments(row, first - self.begin, sentence, first - place, stop - first, length)
        self.placed = self.placed[self.placed[:, 1] + self.placed[:, 3] > end]
        self.begin = end
        return segments

    def __iter__(self) -> "Layout":
        return self


class Batch(NamedTuple):
    """A training window for n devices with b = B / n rows each, ready for the model.

    words     [n, U, C] uint16 character ids, or [n, U] int32 ids in the vocabulary, of each device's distinct words
    count     [n] int32: how many of the U words there are; U itself depends only on the window's shape
    forward   [n, b, T] int32: which of the words each position of a forward row reads
    backward  [n, b, T] int32: the same for the backward rows
    reset     [n, b, T] bool: a sentence begins here
    targets   [n, 2, b, T] int32 ids to predict, forward and backward
    mask      [n, b, T] bool: there is a word here
    """

    words: np.ndarray
    count: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    reset: np.ndarray
    targets: np.ndarray
    mask: np.ndarray


def character_width(characters: np.ndarray, widest_filter: int) -> int:
    """How many of the C columns of [U, C] character ids the char CNN must see, one of `character_widths`.

    The CNN takes a maximum over positions, so with one window of nothing but padding for the widest filter, more
    padding changes no bit (a word that nearly fills all C columns has none, and is left as it is).
    """
    needed = min((characters != PADDING).sum(1).max() + widest_filter, characters.shape[1])
    return next(width for width in character_widths(characters.shape[1], widest_filter) if width >= needed)


def word_encoder(corpus: Corpus, model: ModelConfig) -> Callable[[np.ndarray], np.ndarray]:
    """What turns word types [n] into what the model reads: character ids [n, C], or ids in the vocabulary [n]."""
    if model.input == "words":
        return corpus.targets
    return functools.partial(corpus.characters, max_characters=model.max_characters)


def make_batch(
    inputs: np.ndarray,
    targets: np.ndarray,
    reset: np.ndarray,
    mask: np.ndarray,
    devices: int,
    encode: Callable[[np.ndarray], np.ndarray],
) -> Batch:
    """Splits rows among devices and numbers each device's distinct words.

    inputs [2, B, T] word types, targets [2, B, T] ids, reset and mask [B, T]; `encode` turns types [n] into the
    model's words [n, C] or [n].
    """
    split = lambda array: array.reshape(*array.shape[:-2], devices, -1, array.shape[-1])
    of_device = split(inputs).swapaxes(0, 1)  # [n, 2, b, T]
    numbers = np.empty(of_device.shape, np.int32)
    words, count = [], np.empty(devices, np.int32)
    number = np.empty(inputs.max() + 1, np.int32)  # of every type that a device has: nothing else in it is read
    for device, part in enumerate(of_device):
        # Of equal types the last one's place stays: it stands for all of them.
        places = np.arange(part.size, dtype=np.int32).reshape(part.shape)
        number[part] = places
        types = part[number[part] == places]
        spelled = encode(types)
        if spelled.ndim == 2:  # words of like length together, as the char CNN wants them
            order = np.argsort((spelled != PADDING).sum(1, dtype=np.uint16), kind="stable")  # 16 bits: a radix sort
            types, spelled = types[order], spelled[order]
        number[types] = np.arange(len(types), dtype=np.int32)
        numbers[device], count[device] = number[part], len(types)
        words.append(np.resize(spelled, (part.size, *spelled.shape[1:])))
    return Batch(
        words=np.stack(words),
        count=count,
        forward=numbers[:, 0],
        backward=numbers[:, 1],
        reset=split(reset),
        targets=split(targets).swapaxes(0, 1),
        mask=split(mask),
    )


# Sentences that are looked up at a time of each row, or one for each position of a window if those are more.
LOOKED_UP = 32
ROUNDS = 6  # of the Feistel network


def shuffled(places: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """The sentences at some places of random orders of `size` sentences, without making the orders.

    places [..] int64 below `size`, key [..] uint64 the order of each → [..] int64. For each key a permutation: a
    Feistel network over pairs (left, right) of numbers below a and b, with a · b hardly more than `size` (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains"), walked on from what lies above `size`.
    """
    a = math.isqrt(size - 1) + 1
    sizes = [np.uint64(a), np.uint64(-(-size // a))]
    pair = [*np.divmod(places.astype(np.uint64), sizes[1])]
    for number in range(ROUNDS):
        this, other = number % 2, 1 - number % 2
        # The finalizer of splitmix64 (Steele et al. 2014), then its upper half scaled to the range.
        mixed = key + pair[other] * np.uint64(0x9E3779B97F4A7C15) + np.uint64(number << 56)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        pair[this] = pair[this] + ((mixed >> np.uint64(32)) * sizes[this] >> np.uint64(32))
        pair[this] -= sizes[this] * (pair[this] >= sizes[this])
    found = (pair[0] * sizes[1] + pair[1]).astype(np.int64)
    outside = found >= size
    if outside.any():
        found[outside] = shuffled(found[outside], size, key[outside])
    return found


class LanguageModelStream:
    """A corpus as an endless stream of training batches, or `once`: as one pass over every token.

    A sentence of n tokens takes n + 1 positions: forward, <S> and the tokens predict the tokens and </S>; backward,
    </S> and the reversed tokens predict those and <S> (bilm-tf data.py). `encode` turns word types [n] into the
    model's words. No row depends on another: only the rows in `own` (by default all) are laid out, and divided among
    `devices`.

    Of the endless sequence of sentences, epoch after epoch, row r of `rows` reads those with numbers r, r + rows,
    r + 2 · rows, .. With `shuffle`, an epoch's order is a function of `seed` and its number. `position` is where the
    own rows go on, as `position()` of another stream said. `windows` is how many there are: infinitely many, or
    `once` as many as the longest row takes.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: int,
        window: int,
        encode: Callable[[np.ndarray], np.ndarray],
        *,
        devices: int = 1,
        own: range | None = None,
        once: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        position: np.ndarray | None = None,
    ):
        own = range(rows) if own is None else own
        self.corpus, self.devices, self.encode = corpus, devices, encode
        self.rows, self.own, self.shuffle, self.seed = rows, np.arange(own.start, own.stop), shuffle, seed
        self.shape, self.windows = (len(own), window), math.inf
        self.sentences = len(corpus) if once else math.inf
        if once:  # some rows end before the others: their last windows hold no words
            totals = np.diff(corpus.starts) - 1
            self.windows = -(-max(int(totals[row::rows].sum()) for row in range(rows)) // window)
        self.look_up(np.zeros((len(own), 2), np.int32) if position is None else position)

    def look_up(self, position: np.ndarray) -> None:
        """Looks up each own row's next K sentences, the positions they take, [r, K], and the edges between them.

        edges [r, K + 1] counts positions from where the next window begins.
        """
        self.done, read = position.astype(np.int64)[:, :1], position[:, 1:].astype(np.int64)
        number = self.own[:, None] + (self.done + np.arange(max(self.shape[1], LOOKED_UP))) * self.rows
        there = number < self.sentences
        self.sentence = self.in_order(np.where(there, number, 0))
        starts = self.corpus.starts
        self.total = np.where(there, starts[self.sentence + 1] - starts[self.sentence] - 1, 0)
        self.edges = np.cumsum(np.concatenate([-read, self.total], 1), 1)

    def in_order(self, number: np.ndarray) -> np.ndarray:
        """The sentences with some numbers of the endless sequence."""
        epoch, place = np.divmod(number, len(self.corpus))
        if not self.shuffle:
            return place
        first, last = int(epoch.min()), int(epoch.max())
        seeds = (np.random.SeedSequence((self.seed, 0, epoch)) for epoch in range(first, last + 1))
        keys = np.array([seed.generate_state(1, np.uint64)[0] for seed in seeds])
        return shuffled(place, len(self.corpus), keys[epoch - first])

    def position(self) -> np.ndarray:
        """Where the next batch starts: of each own row the sentences done and positions of the next that are read.

        int32 [own rows, 2].
        """
        done = (self.edges[:, 1:] <= 0).sum(1)
        read = -np.take_along_axis(self.edges, done[:, None], 1)[:, 0]
        return np.stack([self.done[:, 0] + done, read], 1).astype(np.int32)

    def __iter__(self) -> "LanguageModelStream":
        return self

    def segments(self) -> Segments:
        """The segments of the next window."""
        window, size = self.shape[1], self.sentence.shape[1]
        more = self.own + (self.done[:, 0] + size) * self.rows < self.sentences
        if ((self.edges[:, -1] < window) & more).any():
            self.look_up(self.position())
        start, stop = np.maximum(self.edges[:, :-1], 0), np.minimum(self.edges[:, 1:], window)
        inside = start < stop
        start, length, offset = start[inside], (stop - start)[inside], (start - self.edges[:, :-1])[inside]
        self.edges -= window
        return Segments(np.nonzero(inside)[0], start, self.sentence[inside], offset, length, self.total[inside])

    def __next__(self) -> Batch:
        if self.windows == 0:
            raise StopIteration
        self.windows -= 1
        segments = self.segments()
        types, starts = self.corpus.types, self.corpus.starts
        # Of every position where it lies, and the place of its word in the corpus for either direction.
        places = segments.places(self.shape[1])
        forward = ranges(starts[segments.sentence] + segments.offset, segments.length)
        backward = -ranges(segments.offset - starts[segments.sentence + 1] + 1, segments.length)
        inputs, targets = np.zeros((2, 2, *self.shape), np.int32)
        for direction, (source, ahead) in enumerate(((forward, 1), (backward, -1))):
            inputs[direction].reshape(-1)[places] = types[source]
            targets[direction].reshape(-1)[places] = types[source + ahead]
        mask, reset = np.zeros((2, *self.shape), bool)
        mask.reshape(-1)[places] = True
        reset[segments.row, segments.start] = segments.offset == 0
        return make_batch(inputs, self.corpus.targets(targets), reset, mask, self.devices, self.encode)


def prefetch(items: Iterator, depth: int = 2) -> Iterator:
    """The items of an iterator, which a thread of its own works out up to `depth` ahead of need."""
    results = queue.Queue(depth)
    ended, closed = object(), threading.Event()

    def put(result) -> None:
        while not closed.is_set():
            try:
                results.put(result, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if closed.is_set():
                    return
            put((ended, None))
        except BaseException as error:  # raised where the item is asked for
            put((ended, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = results.get()
            if error is not None:
                raise error
            if item is ended:
                return
            yield item
    finally:
        closed.set()
        thread.join()


class Window(NamedTuple):
    """A window of inference for n devices: b rows of each, of which the r that hold words are read.

    active_rows  [n, r] int32: which of the device's b rows are read
    forward      [n, r, T] int32: number of the word that each position of a forward row reads
    backward     [n, r, T] int32: the same for the backward rows
    reset        [n, r, T] bool: a sentence begins here
    used         [n, T] bool: any row has a word here; None: yes, everywhere
    """

    active_rows: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    reset: np.ndarray
    used: np.ndarray | None


def longest_first_at_end(sentences: Iterable[Sequence[str]], ahead: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Numbers sentences; when no more than `ahead` tokens are left, gives out the longest first.

    Then the rows end at nearly the same place.
    """
    held, tokens = deque(), 0
    for item in enumerate(sentences):
        held.append(item)
        tokens += len(item[1])
        while tokens > ahead:
            tokens -= len(held[0][1])
            yield held.popleft()
    yield from sorted(held, key=lambda item: -len(item[1]))


class SentenceStream:
    """Sentences as windows for inference.

    `sentences` yields (number, tokens). A sentence of n tokens takes n positions, or with `boundaries` n + 2: then
    <S> and </S> are read by both directions. Iterating yields the segments of a window and the words of their
    positions, [forward, backward] lists in the order of `Segments.places`. Holds only sentences not yet read whole.
    `in_turn` and `ahead` as in Layout.
    """

    def __init__(
        self,
        sentences: Iterable[tuple[int, Sequence[str]]],
        rows: int,
        window: int,
        *,
        boundaries: bool,
        in_turn: bool = False,
        ahead: int | None = None,
    ):
        self.sentences, self.boundaries = sentences, boundaries
        self.unread: dict[int, list[str]] = {}
        self.layout = Layout(rows, window, self.queue(), in_turn, ahead=ahead)

    def queue(self) -> Iterator[tuple[int, int]]:
        for number, tokens in self.sentences:
            self.unread[number] = [BEGIN_SENTENCE, *tokens, END_SENTENCE] if self.boundaries else tokens
            yield number, len(self.unread[number])

    def __iter__(self) -> "SentenceStream":
        return self

    def __next__(self) -> tuple[Segments, tuple[list[str], list[str]]]:
        segments = next(self.layout)
        forward: list[str] = []
        backward: list[str] = []
        for sentence, offset, length, total in zip(*(array.tolist() for array in segments[2:]), strict=True):
            words = self.unread[sentence] if offset + length < total else self.unread.pop(sentence)
            end = len(words) - offset
            forward += words[offset : offset + length]
            backward += words[end - length : end][::-1]
        return segments, (forward, backward)


def make_window(
    segments: Segments, numbers: np.ndarray, shape: tuple[int, int, int], sizes: Sequence[int]
) -> tuple[Window, Segments]:
    """Lays the numbers of words [2, positions] of a window out for `shape` = (n devices, b rows of each, T positions).

    Leaves out rows without words where that makes a smaller one of the `sizes` do. Returns the window, and the
    segments with `row` counted among the n · r rows that are left.
    """
    devices, rows, window = shape
    active = np.zeros((devices, rows), bool)
    active.flat[segments.row] = True
    size = next(size for size in sizes if size >= active.sum(1).max())
    order = np.argsort(~active, 1, kind="stable")  # rows with words first
    place = np.argsort(order, 1) + np.arange(devices)[:, None] * size  # of each row among those that are left
    segments = segments._replace(row=place.ravel()[segments.row])
    places = segments.places(window)
    laid_out = np.zeros((2, devices, size, window), np.int32)
    laid_out.reshape(2, -1)[:, places] = numbers
    reset, used = np.zeros((devices, size, window), bool), np.zeros((devices, window), bool)
    begins = (segments.offset == 0) & (segments.length > 0)
    reset.reshape(-1, window)[segments.row[begins], segments.start[begins]] = True
    used[places // (size * window), places % window] = True
    return Window(order[:, :size].astype(np.int32), *laid_out, reset, None if used.all() else used), segments
