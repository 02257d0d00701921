import threading
import time
from dataclasses import replace

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
    shuffled,
    word_encoder,
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
    return corpus, LanguageModelStream(corpus, rows, window, lambda types: types, **options)


def words_of(corpus):
    """The words of all types of a text of ASCII letters."""
    spelled = np.split(corpus.spellings, corpus.spelling_starts[1:-1])
    marks = {b"\xfe": "<S>", b"\xff": "</S>"}
    return [marks.get(bytes(part)) or bytes(part).decode() for part in spelled]


def read_rows(corpus, batches, rows):
    """Words of each row in order: inputs and targets of both directions."""
    names = words_of(corpus)
    texts = [[[], [], [], []] for _ in range(rows)]
    for batch in batches:
        _, per_device, _ = batch.mask.shape
        for row in range(rows):
            device, own = divmod(row, per_device)
            used = batch.mask[device, own]
            for text, numbers in zip(texts[row], (batch.forward, batch.backward), strict=False):
                text += [names[t] for t in batch.words[device][numbers[device, own]][used]]
            for direction in (0, 1):
                ids = batch.targets[device, direction, own][used]
                texts[row][2 + direction] += [VOCABULARY.words[t] for t in ids]
    return texts


@pytest.mark.parametrize("devices", [1, 3])
def test_one_pass_reads_every_sentence_in_both_directions(devices):
    corpus, batches = stream(once=True, devices=devices)
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
    _, batches = stream(rows=1, window=5, once=True)
    begins = np.cumsum([0] + [len(s) + 1 for s in TEXT[:-1]])
    found = np.concatenate([batch.reset[0, 0] for batch in batches])
    assert np.flatnonzero(found).tolist() == begins.tolist()


def test_once_gives_rows_sentences_in_turn():
    """As bilm-tf deals the held-out text to its rows: a state is carried between sentences that are not neighbours."""
    corpus = Corpus([["a"] * (1 + number % 9) for number in range(500)], VOCABULARY)
    stream = LanguageModelStream(corpus, 7, 6, lambda types: types, once=True)
    windows = stream.windows
    segments = [stream.segments() for _ in range(windows)]
    begun = np.concatenate([part.sentence[part.offset == 0] for part in segments])
    row = np.concatenate([part.row[part.offset == 0] for part in segments])
    for number in range(7):
        assert begun[row == number].tolist() == list(range(number, 500, 7))
    assert not len(stream.segments().row)
    assert windows == pytest.approx(corpus.tokens / (7 * 6), rel=0.05)


def test_more_rows_than_sentences():
    corpus, batches = stream(rows=20, once=True)
    texts = read_rows(corpus, batches, 20)
    assert sum(bool(text[0]) for text in texts) == len(TEXT)


def test_epochs_are_shuffled_by_seed_and_number():
    def order(seed):
        corpus, batches = stream(rows=1, window=sum(len(s) + 1 for s in TEXT), shuffle=True, seed=seed)
        return ["".join(read_rows(corpus, [next(batches)], 1)[0][2]) for _ in range(3)]

    assert order(1) == order(1)
    assert len(set(order(1) + order(2))) == 6
    assert len({"".join(sorted(epoch)) for epoch in order(1)}) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 16, 17, 1000, 99_991])
def test_shuffled_is_a_permutation_for_each_key(size):
    places = np.arange(size)
    orders = [shuffled(places, size, np.full(size, key, np.uint64)) for key in (0, 1, 2**63 + 5)]
    for order in orders:
        assert (np.sort(order) == places).all()
    keys = np.array([0, 2**63 + 5], np.uint64)[places % 2]
    assert (shuffled(places, size, keys) == np.where(places % 2, orders[2], orders[0])).all()


def test_shuffled_looks_random():
    """What a random order of n has: n / 3 of displacement, no correlation of neighbours, one place that stays."""
    size, places = 100_003, np.arange(100_003)
    orders = np.stack([shuffled(places, size, np.full(size, key, np.uint64)) for key in range(40)])
    centred = orders / size - 0.5
    # Standard errors over 40 · 100,003 places are 0.00012 of displacement and 0.0005 of the correlations.
    assert np.abs(orders - places).mean() / size == pytest.approx(1 / 3, abs=0.0006)
    for lag in (1, 2, 317, 316):  # 317 is the larger side of the pairs
        assert abs((centred[:, lag:] * centred[:, :-lag]).mean() * 12) < 0.0025
    assert abs((centred[1:] * centred[:-1]).mean() * 12) < 0.0025  # of orders whose keys are neighbours
    assert (orders == places).sum() < 2 * 40


def test_all_orders_of_a_few_sentences_come_about_equally_often():
    orders = shuffled(np.arange(24_000) % 4, 4, np.repeat(np.arange(6000, dtype=np.uint64) * 2**40, 4)).reshape(-1, 4)
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert (np.abs(counts - 250) < 80).all()  # five standard deviations


@pytest.mark.parametrize("rows", [3, 5])
def test_every_epoch_reads_every_sentence_once(rows):
    corpus = Corpus([["a"] * (1 + number % 11) for number in range(97)], VOCABULARY)
    stream = LanguageModelStream(corpus, rows, 4, lambda types: types, shuffle=True, seed=1)
    read = [[] for _ in range(rows)]
    while min(map(len, read)) < 2 * 97 / rows + 1:
        segments = stream.segments()
        for row, sentence in zip(
            segments.row[segments.offset == 0], segments.sentence[segments.offset == 0], strict=True
        ):
            read[row].append(int(sentence))
    in_order = [read[number % rows][number // rows] for number in range(2 * 97)]
    assert sorted(in_order[:97]) == sorted(in_order[97:]) == list(range(97))
    assert in_order[:97] != in_order[97:]


def same(one, other):
    return all((a == b).all() and a.shape == b.shape and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("options", "last"), [({"once": True}, 2), ({"shuffle": True, "seed": 3}, 30), ({}, 30)])
def test_own_rows_are_those_of_all_rows(options, last):
    devices_of = lambda batch, chosen: type(batch)(*(array[chosen] for array in batch))
    _, everyone = stream(rows=6, devices=3, **options)
    _, first = stream(rows=6, devices=1, own=range(2), **options)
    _, others = stream(rows=6, devices=2, own=range(2, 6), **options)
    number = -1
    for number, (batch, of_first, of_others) in enumerate(zip(everyone, first, others, strict=True)):
        assert same(devices_of(batch, slice(1)), of_first)
        assert same(devices_of(batch, slice(1, 3)), of_others)
        if number == 30:
            break
    assert number == last


@pytest.mark.parametrize("window", [1, 4, 40])
def test_a_saved_position_goes_on_exactly(window):
    """After any number of steps, with all rows, or with those of one of three processes."""
    _, batches = stream(window=window, shuffle=True, seed=3, devices=3)
    going_on, own = [], []
    for _ in range(12):
        position = batches.position()
        assert position.dtype == np.int32
        assert position.shape == (3, 2)
        for resumed in going_on:
            assert (resumed.position() == position).all()
        for resumed in own:
            assert (resumed.position() == position[1:2]).all()
        going_on.append(stream(window=window, shuffle=True, seed=3, devices=3, position=position)[1])
        own.append(stream(window=window, shuffle=True, seed=3, own=range(1, 2), position=position[1:2])[1])
        batch = next(batches)
        assert all(same(batch, next(resumed)) for resumed in going_on)
        of_second = type(batch)(*(array[1:2] for array in batch))
        assert all(same(of_second, next(resumed)) for resumed in own)


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
        assert batch.count[0] == len(set(batch.words[0])) <= len(words_of(corpus))
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
    encode = word_encoder(corpus, SMALL)
    batch, plain = (next(LanguageModelStream(corpus, 2, 4, spelled)) for spelled in (encode, lambda types: types))
    lengths = (batch.words[0][: batch.count[0]] != PADDING).sum(1)
    assert lengths.tolist() == [3, 3, 3, 4, 5, 6, 7, 8]
    assert (
        batch.words[0][batch.forward] == encode(plain.words[0][plain.forward[0]].ravel()).reshape(1, 2, 4, -1)
    ).all()
    assert (
        batch.words[0][batch.backward] == encode(plain.words[0][plain.backward[0]].ravel()).reshape(1, 2, 4, -1)
    ).all()


def test_character_width_leaves_a_window_of_padding():
    for length, width in ((3, 16), (12, 16), (13, 24), (20, 24), (28, 32), (29, 50), (60, 50)):
        ids = character_ids(["a", "b" * length], 50)
        assert character_width(ids, widest_filter=2) == width
        assert width == 50 or (ids[:, width - 2 :] == PADDING).all()


def test_word_encoder():
    corpus = Corpus(TEXT, VOCABULARY)
    types = np.array([13, 3, 0, 1, 2, 11])
    words = ["z", "a", "<S>", "</S>", "<UNK>", "x"]
    assert (word_encoder(corpus, SMALL)(types) == character_ids(words, 12)).all()
    assert word_encoder(corpus, replace(SMALL, input="words"))(types).tolist() == [2, 3, 0, 1, 2, 2]
