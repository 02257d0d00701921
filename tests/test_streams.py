import json

import numpy as np
import pytest
from conftest import SENTENCES, SMALL

from elmo_jax.corpus import Corpus
from elmo_jax.streams import LanguageModelStream, Rows, SentenceStream, character_width, word_table
from elmo_jax.vocabulary import PADDING, Vocabulary, character_ids

VOCABULARY = Vocabulary(["<S>", "</S>", "<UNK>", *"abcdefgh"])
TEXT = [list(line) for line in ("abc", "dx", "e", "fghabcdyf", "gh", "ab", "zcab")]


def lay(lengths, rows, window, **options):
    return [[tuple(s) for s in segments] for segments in Rows(rows, window, enumerate(lengths), **options)]


def test_a_sentence_goes_to_the_row_that_is_free_first():
    assert lay([3, 5, 2, 1], rows=2, window=4) == [
        [(0, 0, 0, 0, 3, True), (1, 0, 1, 0, 4, False), (0, 3, 2, 0, 1, False)],
        [(1, 0, 1, 4, 1, True), (0, 0, 2, 1, 1, True), (0, 1, 3, 0, 1, True)],
    ]


def test_sentences_in_turn():
    windows = lay([9, 1, 1, 1], rows=2, window=4, in_turn=True)
    placed = {(s[2], s[0]) for window in windows for s in window}
    assert placed == {(0, 0), (1, 1), (2, 0), (3, 1)}
    assert windows[2] == [(0, 0, 0, 8, 1, True), (0, 1, 2, 0, 1, True)]


@pytest.mark.parametrize("window", [1, 4, 50])
def test_every_position_of_every_sentence_is_there_once(window):
    lengths = np.random.default_rng(0).integers(1, 20, 100).tolist()
    seen = np.zeros((100, 20), int)
    for segments in Rows(7, window, enumerate(lengths)):
        filled = np.zeros((7, window), int)
        for row, start, sentence, offset, length, last in segments:
            filled[row, start : start + length] += 1
            seen[sentence, offset : offset + length] += 1
            assert last == (offset + length == lengths[sentence])
        assert filled.max() == 1
    assert (seen == (np.arange(20) < np.array(lengths)[:, None])).all()


def test_the_order_of_sentences_does_not_depend_on_the_window():
    lengths = np.random.default_rng(0).integers(1, 20, 100).tolist()
    where = []
    for window in (1, 4, 50):
        windows = enumerate(Rows(7, window, enumerate(lengths)))
        begins = [(s.sentence, s.row, number * window + s.start) for number, w in windows for s in w if s.offset == 0]
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
    position = json.loads(json.dumps(batches.position()))
    _, resumed = stream(shuffle=True, seed=3, devices=1, position=position)
    for _ in range(20):
        expected, found = next(batches), next(resumed)
        assert (expected.reset.reshape(3, 4) == found.reset[0]).all()
        assert (expected.targets.swapaxes(0, 1).reshape(2, 3, 4) == found.targets[0]).all()
    assert batches.position() == resumed.position()


def test_sentence_stream_reads_boundaries_in_both_directions():
    words = SentenceStream(SENTENCES, 2, 8, np.array, devices=2)
    forward, backward = {}, {}
    for batch, segments in words:
        for row, start, sentence, _, length, _ in segments:
            at = np.s_[row, 0, start : start + length]
            forward.setdefault(sentence, []).extend(batch.words[row][batch.forward[at]])
            backward.setdefault(sentence, []).extend(batch.words[row][batch.backward[at]])
    for number, sentence in enumerate(SENTENCES):
        whole = ["<S>", *sentence, "</S>"]
        assert forward[number] == whole
        assert backward[number] == whole[::-1]
    assert not words.unread


def test_idle_rows_stay_empty():
    batch, segments = next(SentenceStream(SENTENCES, 3, 8, np.array, devices=2, idle_rows=1))
    assert batch.mask.shape == (2, 2, 8)
    assert max(segment.row for segment in segments) == 2


@pytest.mark.parametrize(("rows", "window", "size"), [(3, 4, 24), (10, 40, 800)])
def test_the_shape_of_words_depends_on_the_windows_shape_alone(rows, window, size):
    corpus, batches = stream(rows, window)
    for _ in range(3):
        batch = next(batches)
        assert batch.words.shape == (1, size)
        assert batch.count[0] == len(set(batch.words[0])) <= len(corpus.words)
        assert max(batch.forward.max(), batch.backward.max()) < batch.count[0]


def test_character_width_leaves_a_window_of_padding():
    for length, width in ((3, 16), (12, 16), (13, 24), (20, 24), (28, 32), (29, 50), (60, 50)):
        ids = character_ids(["a", "b" * length], 50)
        assert character_width(ids, widest_filter=2) == width
        assert width == 50 or (ids[:, width - 2 :] == PADDING).all()


def test_word_table():
    corpus = Corpus(TEXT, VOCABULARY)
    assert (word_table(corpus, SMALL) == character_ids(corpus.words, 12)).all()
