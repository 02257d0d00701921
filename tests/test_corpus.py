import gzip
import io
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT

from elmo_jax import corpus
from elmo_jax.corpus import Corpus, WordCounts, find_files, read_input, sentences
from elmo_jax.errors import InputError
from elmo_jax.vocabulary import Vocabulary, character_ids

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
        ("half.gz", gzip.compress(b"the cat sat " * 99, mtime=0)[:-9], "not a whole gzip file"),
        ("text.gz", b"the cat", "not a whole gzip file"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(sentences([str(tmp_path / name)], "TEXT"))


def test_damaged_gzip_files(tmp_path):
    """Each is one clear error, or has the same text: not all of a gzip file's header counts."""
    lines = [[f"w{n}" for n in np.random.default_rng(seed).integers(99, size=9)] for seed in range(9)]
    whole = gzip.compress("\n".join(map(" ".join, lines)).encode(), mtime=0)
    path, refused = tmp_path / "text.gz", 0
    for seed in range(400):
        generator = np.random.default_rng(seed)
        data = bytearray(whole)
        place = int(generator.integers(len(data)))
        if seed % 4 == 0:
            del data[place:]
        else:
            data[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        try:
            assert list(sentences([str(path)], "TEXT")) == (lines if data else [])
        except InputError as error:
            assert "not a whole gzip file" in str(error) or "is not UTF-8" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 350


def test_byte_order_marks_are_read_as_nothing(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("the cat\nsat", encoding="utf-8-sig")
    assert list(sentences([f"{tmp_path}/*.txt"], "TEXT")) == 2 * [["the", "cat"], ["sat"]]
    (tmp_path / "a.txt").write_text("the cat", encoding="utf-16")
    with pytest.raises(InputError, match="line 1, is not UTF-8"):
        list(read_input(f"{tmp_path}/a.txt"))


def test_closed_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    with pytest.raises(InputError, match="standard input, which is closed"):
        read_input("-")


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
    assert bytes(text.spellings[text.spelling_starts[6] :]) == b"doga"
    assert text.targets(text.types).tolist() == [0, 5, 2, 1, 0, 2, 4, 2, 1]
    assert (len(text), text.tokens) == (2, 7)
    assert text.starts.tolist() == [0, 4, 9]


def test_characters_are_those_of_the_words():
    """Of every type, also of words that stand twice, are longer than a model reads, or are no UTF-8."""
    vocabulary = Vocabulary([*VOCABULARY.words, "the", "<S>", "naïve"])
    unknown = ["猫🐈", "a" * 40, "aaaaaaaé", "half\ud800", "</s>"]
    text = Corpus([unknown], vocabulary)
    types = np.random.default_rng(0).permutation(13)
    words = [[*vocabulary.words, *unknown][number] for number in types]
    for most in (3, 10, 50):
        assert text.characters(types, most).dtype == np.uint16
        assert (text.characters(types, most) == character_ids(words, most)).all()


def test_empty_corpus():
    with pytest.raises(InputError, match=r"nothing.txt has no sentences"):
        Corpus([], VOCABULARY, "nothing.txt")


def test_builtin_text_is_english_with_a_tenth_held_out():
    train, heldout = (list(sentences(["builtin"], "TEXT", heldout=held)) for held in (False, True))
    assert len(heldout) == -(-(len(train) + len(heldout)) // corpus.HELDOUT_EVERY)
    assert not {tuple(tokens) for tokens in train} >= {tuple(tokens) for tokens in heldout}
    counts = Counter(dict(WordCounts(train)))
    assert counts.total() > 40_000
    assert {word for word, _ in counts.most_common(8)} >= {"the", "a", ".", ","}
    assert all(tokens == sentence for tokens, sentence in zip(train, sentences(["builtin"], "TEXT"), strict=True))
    assert np.mean([len(tokens) for tokens in train]) < 40


@pytest.mark.parametrize("held", [1, 7, 100])
def test_counting_in_bounded_memory_is_exact(held):
    generator = np.random.default_rng(0)
    text = [[f"w{n}" for n in generator.zipf(1.5, 9)] for _ in range(50)]
    counts = WordCounts(text, held)
    expected = Counter(word for tokens in text for word in tokens)
    assert dict(counts) == expected
    assert dict(counts) == expected  # again
    assert counts.tokens == 450
    assert [word for word, _ in counts] == sorted(expected)


def test_tfds(tmp_path, monkeypatch):
    """A small dataset, prepared and read without TensorFlow."""
    import tensorflow_datasets as tfds

    class SmallText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()})
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((number, {"text": f"sentence {number} naïve"}) for number in range(20))

    SmallText(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    text = list(sentences(["tfds:small_text/train"], "--data.train"))
    assert sorted(text) == sorted(["sentence", str(number), "naïve"] for number in range(20))
    assert list(sentences(["tfds:small_text/train"], "--data.train")) == text
    for name, message in (
        ("tfds:nothing_such/train", "cannot read tfds:nothing_such/train"),
        ("tfds:small_text/test", "cannot read tfds:small_text/test"),
        ("tfds:small_text", "is not tfds:DATASET/SPLIT"),
    ):
        with pytest.raises(InputError, match=message):
            list(sentences([name], "--data.train"))


MEASURE = """
import resource, sys
import numpy as np
from elmo_jax.corpus import Corpus
from elmo_jax.vocabulary import Vocabulary
words = [f"word{n}" for n in range(100_000)]
vocabulary = Vocabulary(["<S>", "</S>", "<UNK>", *words])
def text(tokens):
    numbers = np.random.default_rng(0).integers(0, len(words), 1_000_000)
    lines = [[words[n] for n in numbers[i : i + 25]] for i in range(0, len(numbers), 25)]
    for _ in range(tokens // len(numbers)):
        yield from lines
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
corpus = Corpus(text(int(sys.argv[1])), vocabulary)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_billion_words_fit_into_six_gigabytes():
    """Peak memory of reading 10 and 50 million tokens, and what follows from its growth for 10^9."""
    run = lambda tokens: int(subprocess.check_output([sys.executable, "-c", MEASURE, str(tokens)], cwd=ROOT))
    small, large = run(10_000_000), run(50_000_000)
    growth = (large - small) / 40_000_000
    print(f"{small / 1e6:.0f} MB, {large / 1e6:.0f} MB: {growth:.2f} bytes a token")
    assert large + growth * 950_000_000 < 6e9
