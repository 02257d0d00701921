"""Log-probabilities of a text's tokens, and the words that a model expects in their places."""

import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from elmo_jax.config import Precision
from elmo_jax.corpus import Corpus
from elmo_jax.elmo import PathLike
from elmo_jax.engine import StateMode
from elmo_jax.errors import InputError, brief
from elmo_jax.evaluation import Perplexity, Read, check_rows, check_scoring, prepared, reader
from elmo_jax.files import writing
from elmo_jax.published import read_any
from elmo_jax.softmax_table import table_size, words_at
from elmo_jax.streams import prefetch
from elmo_jax.weights import ModelFolder

# A word and its probability.
Guess = tuple[str, float]


class Score(NamedTuple):
    """Natural logarithms of the probabilities of a sentence's n tokens and of its boundaries.

    tokens        the sentence
    unknown       which of the tokens the vocabulary lacks: they are scored as <UNK>
    forward       float32 [n + 1]: of each token after those before it, and last of </S>
    backward      float32 [n + 1]: of each token before those after it, and last of <S>
    forward_top   of each of these n + 1, the most probable words in that place, with their probabilities
    backward_top  the same of the other direction

    A sentence without tokens, a blank line, is not scored: all of it is empty.
    """

    tokens: list[str]
    unknown: list[int]
    forward: np.ndarray
    backward: np.ndarray
    forward_top: list[list[Guess]]
    backward_top: list[list[Guess]]

    @property
    def both(self) -> np.ndarray:
        """The mean of both directions, [n + 1]."""
        return (self.forward + self.backward) / 2


NOTHING = Score([], [], np.zeros(0, np.float32), np.zeros(0, np.float32), [], [])


def score(
    model: PathLike | ModelFolder,
    sentences: Iterable[Sequence[str]],
    *,
    state: StateMode = "warm",
    precision: Precision = "float32",
    top: int = 0,
    batch_size: int = 32,
    window: int = 32,
) -> Iterator[Score]:
    """The scores of sentences, lists of tokens, in their order.

    model       what `load` takes, with a softmax and a vocabulary, as models of training runs have; or a ModelFolder
    state       the LSTMs' at the beginning of a sentence: "warm" and "zero" score each sentence by itself; "carry" goes
                on from the sentence before in its row, number i - batch_size, as in training
    top         how many of the most probable words of each position to give
    batch_size  rows of sentences on all devices together; window: positions that are read at a time

    The text is held as numbers, and 2^24 logits at a time, however many words the model has. exp(-mean) of all
    `forward`, `backward` or `both` is the `perplexity` of the same state.
    """
    check_rows(batch_size, window)
    folder = model if isinstance(model, ModelFolder) else read_any(model, with_softmax=True)
    check_scoring(folder, "the model" if isinstance(model, ModelFolder) else str(model))
    words = len(folder.vocabulary)
    if not 0 <= top <= words:
        raise InputError(f"top is {top}; it must be from 0 to {words:,}, the words of the model")
    lengths = array("q")
    text = Corpus(_counted(sentences, lengths), folder.vocabulary)
    return _scores(folder, text, lengths, state, precision, top, batch_size, window)


def _counted(sentences: Iterable[Sequence[str]], lengths: array) -> Iterator[list[str]]:
    """Those sentences that have tokens; of all, how many they have."""
    if isinstance(sentences, str):
        raise InputError(
            f"score() was given {brief(repr(sentences), 80)}; it takes a list of sentences, lists of tokens"
        )
    for sentence in sentences:
        if isinstance(sentence, str) or not all(isinstance(token, str) for token in sentence):
            raise InputError(f"a sentence is a list of tokens; score() was given {brief(repr(sentence), 80)}")
        lengths.append(len(sentence))
        if sentence:
            yield list(sentence)


class Found(NamedTuple):
    """What was found of positions: losses [2, .., positions], and their most probable words [2, .., positions, k]."""

    losses: np.ndarray
    log_probability: np.ndarray
    place: np.ndarray


class Row:
    """A row's sentences, put together again from its windows.

    `sentences` are the number of each sentence that the row reads, and how many positions it takes.
    """

    def __init__(self, sentences: Iterator[tuple[int, int]]):
        self.sentences = sentences
        self.parts: list[Found] = []
        self.number, self.missing = next(self.sentences, (-1, 0))

    def add(self, found: Found) -> Iterator[tuple[int, Found]]:
        """Takes what was found of the next positions, [2, positions, ..]; yields the sentences that end there."""
        begin, length = 0, found.losses.shape[1]
        while begin < length:
            end = min(length, begin + self.missing)
            # Copies, else a part would hold the whole window.
            self.parts.append(Found(*(values[:, begin:end].copy() for values in found)))
            self.missing -= end - begin
            if not self.missing:
                yield self.number, Found(*(np.concatenate(values, 1) for values in zip(*self.parts, strict=True)))
                self.parts = []
                self.number, self.missing = next(self.sentences, (-1, 0))
            begin = end


def in_rows(window: Read) -> tuple[np.ndarray, Found]:
    """How many positions of each row of a window are read [rows], and what was found of them, [2, rows, T, ..]."""

    def joined(array) -> np.ndarray:
        """[devices, 2, T, b, ..] → [2, rows, T, ..]."""
        of_devices = np.moveaxis(np.asarray(array), (1, 3), (0, 2))  # [2, devices, b, T, ..]
        return of_devices.reshape(2, -1, *of_devices.shape[3:])

    losses, masks = joined(window.losses), window.batch.mask
    nothing = np.zeros((*losses.shape, 0), np.int32)
    of_words = (nothing, nothing) if window.expected is None else map(joined, window.expected)
    return masks.reshape(-1, masks.shape[-1]).sum(1), Found(losses, *of_words)


def _scores(
    folder: ModelFolder,
    text: Corpus,
    lengths: Sequence[int],
    state: StateMode,
    precision: Precision,
    top: int,
    rows: int,
    window: int,
) -> Iterator[Score]:
    parameters, batches, begin = prepared(folder, text, state, rows, window)
    totals = (np.diff(text.starts) - 1).tolist()
    of_rows = [Row(zip(range(number, len(text), rows), totals[number::rows], strict=True)) for number in range(rows)]
    shown = tqdm(prefetch(batches), "scoring", batches.windows, unit=" windows", delay=2, leave=False)
    windows = reader(folder.model, precision, True, top)(parameters, shown, begin)

    def in_order() -> Iterator[tuple[int, Found]]:
        finished: dict[int, Found] = {}
        number, before = 0, None
        for read in itertools.chain(windows, [None]):  # one behind: while the device works on the next
            counts, found = ((), None) if before is None else in_rows(before)
            for row, count in enumerate(counts):
                finished.update(of_rows[row].add(Found(*(values[:, row, :count] for values in found))))
            while number in finished:
                yield number, finished.pop(number)
                number += 1
            before = read

    words = Words(text, rows)
    found = in_order()
    for length in lengths:
        yield words.score(*next(found)) if length else NOTHING


class Words:
    """The words of a text and of its vocabulary, as they are written; rows as in `prepared`."""

    def __init__(self, text: Corpus, rows: int):
        self.text, self.vocabulary, self.rows = text, text.vocabulary, rows
        self.size = table_size(len(text.vocabulary), rows)

    def word(self, number: int) -> str:
        """A word type of the text."""
        if number < len(self.vocabulary):
            return self.vocabulary.words[number]
        return self.text.spellings[slice(*self.text.spelling_starts[number : number + 2])].tobytes().decode()

    def guesses(self, log_probability: np.ndarray, place: np.ndarray) -> list[list[Guess]]:
        """Of each position, [n + 1, k] → words and probabilities."""
        numbers, probabilities = words_at(place, self.rows, self.size), np.exp(log_probability)
        return [
            [(self.vocabulary.words[word], probability) for word, probability in zip(*both, strict=True)]
            for both in zip(numbers.tolist(), probabilities.tolist(), strict=True)
        ]

    def score(self, number: int, found: Found) -> Score:
        """The score of a sentence of the text; backward it was read from its end."""
        begin, end = self.text.starts[number : number + 2]
        types = self.text.types[begin + 1 : end - 1].tolist()
        forward, backward = (Found(*(values[direction] for values in found)) for direction in (0, 1))
        backward = Found(*(np.concatenate([values[-2::-1], values[-1:]]) for values in backward))
        return Score(
            [self.word(number) for number in types],
            [place for place, number in enumerate(types) if number >= len(self.vocabulary)],
            -forward.losses,
            -backward.losses,
            *(self.guesses(*direction[1:]) if found.place.shape[-1] else [] for direction in (forward, backward)),
        )


class Total(NamedTuple):
    """What `write` has written: lines, predictions of each direction, the share of the tokens that are <UNK> there."""

    lines: int
    predictions: int
    unknown: float
    perplexity: Perplexity


def record(score: Score) -> dict[str, Any]:
    """A score as JSON: what it holds, and the sums over the sentence."""
    logarithms = {"forward": score.forward, "backward": score.backward, "both": score.both}
    made: dict[str, Any] = {"tokens": score.tokens, "unknown": score.unknown}
    made |= {name: [round(value, 7) for value in values.tolist()] for name, values in logarithms.items()}
    made["sums"] = {name: round(float(values.sum(dtype=np.float64)), 7) for name, values in logarithms.items()}
    for name, of_all in (("forward_top", score.forward_top), ("backward_top", score.backward_top)):
        if of_all:
            made[name] = [[[word, float(f"{value:.7g}")] for word, value in guesses] for guesses in of_all]
    return made


def write(scores: Iterable[Score], output: PathLike) -> Total:
    """Writes the `record` of each score as a line of JSON; the file appears only when it is whole."""
    lines = tokens = predictions = unknown = 0
    losses = np.zeros(2)
    with writing(output) as partial, partial.open("w", encoding="utf-8") as file:
        for one in scores:
            file.write(json.dumps(record(one), ensure_ascii=False) + "\n")
            lines, tokens, unknown = lines + 1, tokens + len(one.tokens), unknown + len(one.unknown)
            predictions += len(one.forward)
            losses -= [one.forward.sum(dtype=np.float64), one.backward.sum(dtype=np.float64)]
    forward, backward = losses / predictions
    found = Perplexity(*(float(np.exp(loss)) for loss in ((forward + backward) / 2, forward, backward)))
    return Total(lines, predictions, unknown / tokens, found)
