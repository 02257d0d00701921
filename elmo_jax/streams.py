"""Sentences → rows → windows: one builder for training and for inference.

The model reads B rows, each a stream of sentences laid end to end, cut into windows of T positions. A forward row
reads each sentence left to right; the backward row reads the same sentence at the same place right to left. A
sentence that does not fit into a window goes on in the next one, in the same row.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from elmo_jax.config import ModelConfig
from elmo_jax.corpus import Corpus
from elmo_jax.vocabulary import BEGIN_SENTENCE, END_SENTENCE, PADDING


class Segment(NamedTuple):
    """The part of a sentence that lies in one window: positions [start, start + length) of the row."""

    row: int
    start: int
    sentence: int
    offset: int  # positions of the sentence that earlier windows hold
    length: int
    last: bool  # the sentence ends in this window


class Placed(NamedTuple):
    """A sentence in a row: it takes [start, start + length), counted from the next window; start < 0: began before."""

    row: int
    start: int
    sentence: int
    length: int
    taken: int  # positions that all sentences taken from the queue before this one take together


class Rows:
    """Lays sentences end to end in rows and cuts the rows into windows.

    `queue` yields (number of a sentence, positions it takes). A sentence goes to the row that is free first (the
    lowest of several), or, `in_turn`, the i-th sentence to row i modulo `rows`. `held` is what `position` returned.
    With `ahead`, rows wait idle rather than take a sentence when that many positions have been taken since the oldest
    sentence that is not read whole: without it, one very long sentence would let the others run ahead without bound.
    """

    def __init__(
        self,
        rows: int,
        window: int,
        queue: Iterator[tuple[int, int]],
        in_turn: bool = False,
        held: Sequence[tuple[int, int, int]] = (),
        ahead: int | None = None,
    ):
        self.window, self.queue, self.in_turn, self.ahead = window, queue, in_turn, ahead
        self.sentences = self.taken = 0  # sentences taken from the queue, positions that they take
        self.ends = [0] * rows  # where each row is free, counted from the start of the next window
        self.placed: list[Placed] = []
        for row, (sentence, offset, length) in enumerate(held):
            self.ends[row] = length - offset
            if offset < length:
                self.placed.append(Placed(row, -offset, sentence, length, 0))

    def __next__(self) -> list[Segment]:
        """The segments of the next window, of each row in order."""
        ends, window = self.ends, self.window
        free = [(end, row) for row, end in enumerate(ends)]
        heapq.heapify(free)
        while free[0][0] < window:
            if self.ahead is not None and self.placed and self.taken - self.placed[0].taken > self.ahead:
                break
            sentence, length = next(self.queue, (None, 0))
            if sentence is None:
                break
            row = self.sentences % len(ends) if self.in_turn else free[0][1]
            self.placed.append(Placed(row, ends[row], sentence, length, self.taken))
            self.sentences, self.taken = self.sentences + 1, self.taken + length
            ends[row] += length
            if self.in_turn:
                free = [(min(ends), row)]
            else:
                heapq.heapreplace(free, (ends[row], row))
        if not self.placed:
            raise StopIteration
        segments, later = [], []
        for placed in self.placed:
            row, start, sentence, length, _ = placed
            if start < window:
                first, last = max(start, 0), min(start + length, window)
                segments.append(Segment(row, first, sentence, first - start, last - first, start + length <= window))
            if start + length > window:
                later.append(placed._replace(start=start - window))
        self.placed = later
        self.ends = [max(end - window, 0) for end in ends]
        return segments

    def __iter__(self) -> "Rows":
        return self

    def position(self) -> list[tuple[int, int, int]]:
        """For each row the sentence that it is in, the positions already read and the sentence's length.

        Only for an endless queue and rows not filled in turn: then no row holds more than one sentence.
        """
        held = [(0, 0, 0)] * len(self.ends)
        for row, start, sentence, length, _ in self.placed:
            held[row] = (sentence, -start, length)
        return held


class Batch(NamedTuple):
    """A window for n devices with b = B / n rows each, ready for the model.

    words     [n, U, C] uint16 character ids, or [n, U] int32 ids in the vocabulary, of each device's distinct words
    count     [n] int32: how many of the U words there are; U itself depends only on the window's shape
    forward   [n, b, T] int32: which of the words each position of a forward row reads
    backward  [n, b, T] int32: the same for the backward rows
    reset     [n, b, T] bool: a sentence begins here
    targets   [n, 2, b, T] int32 ids to predict, forward and backward; None at inference
    mask      [n, b, T] bool: there is a word here
    """

    words: np.ndarray
    count: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    reset: np.ndarray
    targets: np.ndarray | None
    mask: np.ndarray


def character_width(characters: np.ndarray, widest_filter: int) -> int:
    """How many of the C columns of [.., U, C] character ids the char CNN must see: 16, 24, 32 or all C.

    The CNN takes a maximum over positions, so with one window of nothing but padding for the widest filter, more
    padding changes no bit (a word that nearly fills all C columns has none, and is left as it is).
    """
    used = np.flatnonzero((characters != PADDING).reshape(-1, characters.shape[-1]).any(0))[-1] + 1
    wide_enough = (width for width in (16, 24, 32) if used + widest_filter <= width < characters.shape[-1])
    return next(wide_enough, characters.shape[-1])


def word_table(corpus: Corpus, model: ModelConfig) -> np.ndarray:
    """What the model reads of every word type: character ids [types, C], or ids in the vocabulary [types]."""
    if model.input == "words":
        return corpus.targets(np.arange(len(corpus.words), dtype=np.int32))
    characters = corpus.characters(model.max_characters)
    return np.ascontiguousarray(characters[:, : character_width(characters, model.widest_filter)])


def lay_out(segments: list[Segment], shape: tuple[int, int], read: Callable[[int, int, int], tuple]) -> np.ndarray:
    """Word numbers int32 [2, B, T] of a window, forward and backward; 0 where no sentence lies.

    `read(sentence, offset, length)` gives those of a part of a sentence, read left to right and right to left.
    """
    numbers = np.zeros((2, *shape), np.int32)
    for row, start, sentence, offset, length, _ in segments:
        numbers[:, row, start : start + length] = read(sentence, offset, length)
    return numbers


def make_batch(
    segments: list[Segment],
    inputs: np.ndarray,
    devices: int,
    encode: Callable[[np.ndarray], np.ndarray],
    targets: np.ndarray | None = None,
) -> Batch:
    """Splits rows among devices and numbers each device's distinct words.

    inputs, targets [2, B, T] word types; `encode` turns types [n, U] into the model's words [n, U, C] or [n, U].
    """
    rows, window = inputs.shape[1:]
    mask, reset = np.zeros((rows, window), bool), np.zeros((rows, window), bool)
    for row, start, _, offset, length, _ in segments:
        mask[row, start : start + length] = True
        reset[row, start] = offset == 0
    of_device = inputs.reshape(2, devices, -1, window).swapaxes(0, 1)  # [n, 2, b, T]
    found = [np.unique(part, return_inverse=True) for part in of_device]
    size = of_device[0].size
    types = np.stack([np.pad(types, (0, size - len(types)), mode="edge") for types, _ in found])
    numbers = np.stack([inverse.reshape(of_device.shape[1:]).astype(np.int32) for _, inverse in found])
    return Batch(
        words=encode(types),
        count=np.array([len(types) for types, _ in found], np.int32),
        forward=numbers[:, 0],
        backward=numbers[:, 1],
        reset=reset.reshape(devices, -1, window),
        targets=None if targets is None else targets.reshape(2, devices, -1, window).swapaxes(0, 1),
        mask=mask.reshape(devices, -1, window),
    )


class LanguageModelStream:
    """A corpus as an endless stream of training batches, or (`passes=1`) as one pass over every token.

    A sentence of n tokens takes n + 1 positions: forward, <S> and the tokens predict the tokens and </S>; backward,
    </S> and the reversed tokens predict those and <S> (bilm-tf data.py). With `shuffle`, each epoch's order is a
    function of `seed` and its number. All `rows` are laid out, the rows in `own` (by default all) are read and
    divided among `devices`: so processes agree on who reads what. `encode` turns word types [n, U] into the model's
    words. Where the stream is, `position` says, as a dict for JSON.
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
        passes: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        position: dict | None = None,
    ):
        position = position or {"sentence": 0, "rows": []}
        self.corpus, self.devices, self.encode = corpus, devices, encode
        self.passes, self.shuffle, self.seed = passes, shuffle, seed
        self.own = range(rows) if own is None else own
        self.sentence, self.shape = position["sentence"], (len(self.own), window)
        self.rows = Rows(rows, window, self.queue(), held=position["rows"])

    def queue(self) -> Iterator[tuple[int, int]]:
        """Sentences in the order in which they are read, and the positions that each takes."""
        sizes = np.diff(self.corpus.starts) - 1
        while self.passes is None or self.sentence < self.passes * len(sizes):
            epoch, first = divmod(self.sentence, len(sizes))
            order = np.arange(len(sizes))
            if self.shuffle:
                key = np.random.SeedSequence((self.seed, 0, epoch))
                order = np.random.Generator(np.random.Philox(key)).permutation(len(sizes))
            for sentence in order[first:]:
                self.sentence += 1
                yield int(sentence), int(sizes[sentence])

    def position(self) -> dict:
        """Where the next batch starts: the next sentence (counted over all epochs) and what each row still holds."""
        return {"sentence": self.sentence, "rows": [list(row) for row in self.rows.position()]}

    def read(self, sentence: int, offset: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Word types of a part of a sentence in both reading orders."""
        types = self.corpus.types[self.corpus.starts[sentence] : self.corpus.starts[sentence + 1]]
        return types[offset : offset + length], types[::-1][offset : offset + length]

    def __iter__(self) -> "LanguageModelStream":
        return self

    def __next__(self) -> Batch:
        segments = [part._replace(row=part.row - self.own.start) for part in next(self.rows) if part.row in self.own]
        inputs = lay_out(segments, self.shape, self.read)
        targets = lay_out(segments, self.shape, lambda sentence, offset, size: self.read(sentence, offset + 1, size))
        return make_batch(segments, inputs, self.devices, self.encode, self.corpus.targets(targets))


class SentenceStream:
    """Sentences as windows for inference: each takes n + 2 positions, <S> and </S> are read by both directions.

    Iterating yields a batch and the segments that say which sentence each of its positions belongs to. `encode`
    turns a list of U words into character ids [U, C] or vocabulary ids [U]. Holds only sentences not yet read whole.
    `in_turn` and `ahead` as in Rows; `idle_rows` empty rows follow the `rows` that are filled, so that devices can
    have equally many.
    """

    def __init__(
        self,
        sentences: Iterable[Sequence[str]],
        rows: int,
        window: int,
        encode: Callable[[list[str]], np.ndarray],
        *,
        devices: int = 1,
        idle_rows: int = 0,
        in_turn: bool = False,
        ahead: int | None = None,
    ):
        self.sentences, self.encode, self.devices = sentences, encode, devices
        self.shape = rows + idle_rows, window
        self.unread: dict[int, list[str]] = {}
        self.rows = Rows(rows, window, self.queue(), in_turn, ahead=ahead)

    def queue(self) -> Iterator[tuple[int, int]]:
        for number, tokens in enumerate(self.sentences):
            self.unread[number] = [BEGIN_SENTENCE, *tokens, END_SENTENCE]
            yield number, len(tokens) + 2

    def __iter__(self) -> "SentenceStream":
        return self

    def __next__(self) -> tuple[Batch, list[Segment]]:
        segments = next(self.rows)
        types: dict[str, int] = {}

        def read(sentence: int, offset: int, length: int) -> tuple[list[int], list[int]]:
            words = self.unread[sentence]
            end = len(words) - offset
            orders = words[offset : offset + length], words[end - length : end][::-1]
            return tuple([types.setdefault(word, len(types)) for word in order] for order in orders)

        inputs = lay_out(segments, self.shape, read)
        words = self.encode(list(types))
        for segment in segments:
            if segment.last:
                del self.unread[segment.sentence]
        return make_batch(segments, inputs, self.devices, words.__getitem__), segments
