import json
import threading
import time

import numpy as np
import pytest
from conftest import SENTENCES, SMALL

from elmo_jax.corpus import Corpus
from elmo_jax.errors import InputError
from elmo_jax.streams import (
    LanguageModelStream,
    Layout,
    Segments,
    SentenceStream,
    character_width,
    longest_first_at_end,
    make_window,
    prefetch,
    word_table,
)
from elmo_jax.vocabulary import PADDING, Vocabulary, character_ids

VOCABULARY = Vocabulary(["<S>", "</S>", "<UNK>", *"abcdefgh"])
TEXT = [list(line) for line in ("abc", "dx", "e", "fghabcdyf", "gh", "ab", "zcab")]


def lay(lengths, rows, window, **options):
    """Of every window its segments: (row, start, sentence, offset, length, total)."""
    windows = Layout(rows, window, enumerate(lengths), **options)
    return [list(zip(*(array.tolist() for array in segments), strict=True)) for segments in windows]


def test_a_sentence_goes_to_the_row_that_is_free_first():
    assert lay([3, 5, 2, 1], rows=2, window=4) == [
        [(0, 0, 0, 0, 3, 3), (1, 0, 1, 0, 4, 5), (0, 3, 2, 0, 1, 2)],
        [(1, 0, 1, 4, 1, 5), (0, 0, 2, 1, 1, 2), (0, 1, 3, 0, 1, 1)],
    ]


def test_sentences_in_turn():
    windows = lay([9, 1, 1, 1], rows=2, window=4, in_turn=True)
    placed = {(sentence, row) for window in windows for row, _, sentence, *_ in window}
    assert placed == {(0, 0), (1, 1), (2, 0), (3, 1)}
    assert windows[2] == [(0, 0, 0, 8, 1, 9), (0, 1, 2, 0, 1, 1)]


def test_an_empty_sentence_takes_no_position():
    assert lay([2, 0, 1], rows=1, window=4) == [[(0, 0, 0, 0, 2, 2), (0, 2, 1, 0, 0, 0), (0, 2, 2, 0, 1, 1)]]


def test_rows_that_waited_go_on_where_the_window_begins():
    """Row 1 takes no more once 16 positions have been taken, until sentence 0 has been read whole."""
    windows = lay([11, 3, 3, 3, 3], rows=2, window=4, ahead=16)
    assert [[segment[:3] for segment in window if segment[3] == 0] for window in windows] == [
        [(0, 0, 0), (1, 0, 1), (1, 3, 2)],
        [],
        [],
        [(0, 0, 3), (1, 0, 4)],
    ]


@pytest.mark.parametrize("window", [1, 4, 50])
def test_every_position_of_every_sentence_is_there_once(window):
    lengths = np.random.default_rng(0).integers(0, 20, 100).tolist()
    seen = np.zeros((100, 20), int)
    for segments in Layout(7, window, enumerate(lengths)):
        filled = np.zeros((7, window), int)
        np.add.at(filled.ravel(), segments.places(window), 1)
        for _, _, sentence, offset, length, total in zip(*segments, strict=True):
            seen[sentence, offset : offset + length] += 1
            assert total == lengths[sentence]
        assert filled.max() == 1
    assert (seen == (np.arange(20) < np.array(lengths)[:, None])).all()


def test_the_order_of_sentences_does_not_depend_on_the_window():
    lengths = np.random.default_rng(0).integers(1, 20, 100).tolist()
    where = []
    for window in (1, 4, 50):
        windows = enumerate(lay(lengths, 7, window))
        begins = [(s, row, number * window + start) for number, w in windows for row, start, s, at, *_ in w if at == 0]
        where.append(sorted(begins))
    assert where[0] == where[1] == where[2]


def stream(rows=3, window=4, **options):
    corpus = Corpus(TEXT, VOCABULARY)
    table = np.arange(len(corpus.words), dtype=np.int32)
    return corpus, LanguageModelStream(corpus, rows, window, table.__getitem__, **options)


def read_rows(corpus, batches, rows):
    """Words of each row in order: inputs and targets of both directions."""
    texts = [[[], [], [], []] for _ in range(rows)]
    for batch in batches:
        _, per_device, _ = batch.mask.shape
        for row in range(rows):
            device, own = divmod(row, per_device)
            used = batch.mask[device, own]
            for text, numbers in zip(texts[row], (batch.forward, batch.backward), strict=False):
                text += [corpus.words[t] for t in batch.words[device][numbers[device, own]][used]]
            for direction in (0, 1):
                ids = batch.targets[device, direction, own][used]
                texts[row][2 + direction] += [VOCABULARY.words[t] for t in ids]
    return texts


@pytest.mark.parametrize("devices", [1, 3])
def test_one_pass_reads_every_sentence_in_both_directions(devices):
    corpus, batches = stream(passes=1, devices=devices)
    texts = read_rows(corpus, batches, 3)
    assert sum(len(text[0]) for text in texts) == corpus.tokens
    known = lambda word: word if word in VOCABULARY.index else "<UNK>"
    for forward, backward, targets, targets_back in texts:
        sentences = [list(line) for line in "".join(w if len(w) == 1 else " " for w in forward).split()]
        assert all(sentence in TEXT for sentence in sentences)
        assert forward == [w for s in sentences for w in ["<S>", *s]]
        assert targets == [known(w) for s in sentences for w in [*s, "</S>"]]
        assert backward == [w for s in sentences for w in ["</S>", *s[::-1]]]
        assert targets_back == [known(w) for s in sentences for w in [*s[::-1], "<S>"]]


def test_reset_is_where_a_sentence_begins():
    _, batches = stream(rows=1, window=5, passes=1)
    begins = np.cumsum([0] + [len(s) + 1 for s in TEXT[:-1]])
    found = np.concatenate([batch.reset[0, 0] for batch in batches])
    assert np.flatnonzero(found).tolist() == begins.tolist()


def test_epochs_are_shuffled_by_seed_and_number():
    def order(seed):
        corpus, batches = stream(rows=1, window=sum(len(s) + 1 for s in TEXT), shuffle=True, seed=seed)
        return ["".join(read_rows(corpus, [next(batches)], 1)[0][2]) for _ in range(3)]

    assert order(1) == order(1)
    assert len(set(order(1) + order(2))) == 6
    assert len({"".join(sorted(epoch)) for epoch in order(1)}) == 1


def test_a_saved_position_goes_on_exactly():
    _, batches = stream(shuffle=True, seed=3, devices=3)
    for _ in range(5):
        next(batches)
    position = json.loads(json.dumps(batches.position().as_json()))
    _, resumed = stream(shuffle=True, seed=3, devices=1, position=position)
    for _ in range(20):
        expected, found = next(batches), next(resumed)
        assert (expected.reset.reshape(3, 4) == found.reset[0]).all()
        assert (expected.targets.swapaxes(0, 1).reshape(2, 3, 4) == found.targets[0]).all()
    assert batches.position().as_json() == resumed.position().as_json()


@pytest.mark.parametrize("boundaries", [False, True])
def test_a_sentence_stream_reads_sentences_in_both_directions(boundaries):
    stream = SentenceStream(enumerate(SENTENCES), 4, 8, boundaries=boundaries)
    found = [[[], []] for _ in SENTENCES]
    for segments, words in stream:
        numbers = np.arange(len(words[0])), np.arange(len(words[0]))
        window, laid_out = make_window(segments, np.stack(numbers), (2, 2, 8), [1, 2])
        size = window.active_rows.shape[1]
        for row, start, sentence, _, length, _ in zip(*laid_out, strict=True):
            device, own = divmod(row, size)
            for direction, places in enumerate((window.forward, window.backward)):
                found[sentence][direction] += [
                    words[direction][place] for place in places[device, own, start : start + length]
                ]
    for sentence, (forward, backward) in zip(SENTENCES, found, strict=True):
        whole = ["<S>", *sentence, "</S>"] if boundaries else sentence
        assert forward == whole
        assert backward == whole[::-1]
    assert not stream.unread


def test_a_window_leaves_out_rows_without_words():
    """Of two devices with three rows, rows 1 and 5 hold words: one row of each is left."""
    segments = Segments(*np.array([(5, 1, 0, 0, 2, 9), (1, 0, 1, 3, 1, 4)]).T)
    window, left = make_window(segments, np.array([[7, 8, 9], [4, 5, 6]]), (2, 3, 4), [1, 2, 3])
    assert window.active_rows.tolist() == [[1], [2]]
    assert window.forward.tolist() == [[[9, 0, 0, 0]], [[0, 7, 8, 0]]]
    assert window.backward.tolist() == [[[6, 0, 0, 0]], [[0, 4, 5, 0]]]
    assert window.reset.tolist() == [[[False] * 4], [[False, True, False, False]]]
    assert window.used.tolist() == [[True, False, False, False], [False, True, True, False]]
    assert left.row.tolist() == [1, 0]


def test_a_full_window_has_no_position_to_leave_out():
    segments = Segments(*np.array([(0, 0, 0, 0, 4, 4), (2, 0, 1, 0, 3, 3)]).T)
    assert make_window(segments, np.ones((2, 7)), (1, 3, 4), [1, 2, 3])[0].used is None


def test_the_end_of_a_text_is_read_longest_sentences_first():
    sentences = [["w"] * length for length in (1, 5, 2, 3, 1, 4)]
    assert [number for number, _ in longest_first_at_end(sentences, 8)] == [0, 1, 2, 5, 3, 4]
    assert [number for number, _ in longest_first_at_end(sentences, 99)] == [1, 5, 3, 2, 0, 4]


@pytest.mark.parametrize(("rows", "window", "size"), [(3, 4, 24), (10, 40, 800)])
def test_the_shape_of_words_depends_on_the_windows_shape_alone(rows, window, size):
    corpus, batches = stream(rows, window)
    for _ in range(3):
        batch = next(batches)
        assert batch.words.shape == (1, size)
        assert batch.count[0] == len(set(batch.words[0])) <= len(corpus.words)
        assert max(batch.forward.max(), batch.backward.max()) < batch.count[0]


def test_prefetch_gives_every_item_in_order_and_works_ahead():
    made = []

    def items():
        for number in range(9):
            made.append(number)
            yield number

    ahead = prefetch(items(), depth=2)
    assert next(ahead) == 0
    wait_until(lambda: len(made) == 4)  # one taken, two waiting, one in hand
    assert list(ahead) == list(range(1, 9))


def test_prefetch_raises_what_its_items_raise():
    def items():
        yield 1
        raise InputError("no more")

    ahead = prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(InputError, match="no more"):
        next(ahead)


def test_prefetch_ends_its_thread():
    before = threading.active_count()
    ahead = prefetch(iter(range(1000)))
    next(ahead)
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_words_of_like_length_lie_together():
    corpus = Corpus([["ffffff", "a", "ccc"], ["dddd", "bb", "zzzzz"]], VOCABULARY)
    table = word_table(corpus, SMALL)
    types = np.arange(len(table), dtype=np.int32)
    batch, plain = (next(LanguageModelStream(corpus, 2, 4, words.__getitem__)) for words in (table, types))
    lengths = (batch.words[0][: batch.count[0]] != PADDING).sum(1)
    assert lengths.tolist() == [3, 3, 3, 4, 5, 6, 7, 8]
    assert (batch.words[0][batch.forward] == table[plain.words[0][plain.forward]]).all()
    assert (batch.words[0][batch.backward] == table[plain.words[0][plain.backward]]).all()


def test_character_width_leaves_a_window_of_padding():
    for length, width in ((3, 16), (12, 16), (13, 24), (20, 24), (28, 32), (29, 50), (60, 50)):
        ids = character_ids(["a", "b" * length], 50)
        assert character_width(ids, widest_filter=2) == width
        assert width == 50 or (ids[:, width - 2 :] == PADDING).all()


def test_word_table():
    corpus = Corpus(TEXT, VOCABULARY)
    assert (word_table(corpus, SMALL) == character_ids(corpus.words, 12)).all()
