import gzip
import io
import sys

import numpy as np
import pytest

from elmo_jax import corpus
from elmo_jax.corpus import Corpus, count_words, find_files, read_input, sentences
from elmo_jax.errors import InputError
from elmo_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary(["<S>", "</S>", "<UNK>", "the", "cat"])


def test_files_and_globs(tmp_path):
    (tmp_path / "b.txt").write_text("the cat\n\nsat\n")
    with gzip.open(tmp_path / "a.gz", "wt") as file:
        file.write("on\u00a0the\tmat")
    assert [path.name for path in find_files([f"{tmp_path}/*"], "TEXT")] == ["a.gz", "b.txt"]
    text = list(sentences([f"{tmp_path}/*"], "TEXT"))
    assert text == [["on", "the", "mat"], ["the", "cat"], ["sat"]]
    assert list(read_input(f"{tmp_path}/b.txt")) == [["the", "cat"], [], ["sat"]]


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n\nsat")))
    assert list(read_input("-")) == [["the", "cat"], [], ["sat"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"ok\ncaf\xe9 au lait\n", "line 2, is not UTF-8"),
        ("half.gz", gzip.compress(b"the cat sat " * 99)[:-9], "not a whole gzip file"),
        ("text.gz", b"the cat", "not a whole gzip file"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(sentences([str(tmp_path / name)], "TEXT"))


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"--data.train: no file matches .*/\*.txt"):
        find_files([f"{tmp_path}/*.txt"], "--data.train")
    with pytest.raises(InputError, match=r"--data.train: there is no file .*/a.txt"):
        find_files([f"{tmp_path}/a.txt"], "--data.train")


def test_boundary_marks_in_text_are_kept_with_a_warning(tmp_path):
    (tmp_path / "a.txt").write_text("the <S> cat\n<S>\n")
    with pytest.warns(UserWarning, match="line 1, has <S> or </S> as a token"):
        text = Corpus(sentences([f"{tmp_path}/a.txt"], "TEXT"), VOCABULARY)
    assert text.types.tolist() == [0, 3, 0, 4, 1, 0, 0, 1]


def test_unknown_words_keep_their_spelling():
    vocabulary = Vocabulary([*VOCABULARY.words, "the"])  # twice: id 5
    text = Corpus([["the", "dog"], ["a", "cat", "dog"]], vocabulary)
    assert text.types.tolist() == [0, 5, 6, 1, 0, 7, 4, 6, 1]
    assert text.words[6:] == ["dog", "a"]
    assert text.targets(text.types).tolist() == [0, 5, 2, 1, 0, 2, 4, 2, 1]
    assert (len(text), text.tokens) == (2, 7)
    assert text.starts.tolist() == [0, 4, 9]


def test_empty_corpus():
    with pytest.raises(InputError, match=r"nothing.txt has no sentences"):
        Corpus([], VOCABULARY, "nothing.txt")


def test_builtin_text_is_english_with_a_tenth_held_out():
    train, heldout = (list(sentences(["builtin"], "TEXT", heldout=held)) for held in (False, True))
    assert len(heldout) == -(-(len(train) + len(heldout)) // corpus.HELDOUT_EVERY)
    assert not {tuple(tokens) for tokens in train} >= {tuple(tokens) for tokens in heldout}
    counts = count_words(train)
    assert counts.total() > 40_000
    assert {word for word, _ in counts.most_common(8)} >= {"the", "a", ".", ","}
    assert all(tokens == sentence for tokens, sentence in zip(train, sentences(["builtin"], "TEXT"), strict=True))
    assert np.mean([len(tokens) for tokens in train]) < 40
