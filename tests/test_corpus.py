import contextlib
import gzip
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, fails

from elmo_jax import commands, corpus, sources
from elmo_jax.config import DataConfig
from elmo_jax.corpus import (
    Corpus,
    WordCounts,
    cached,
    read_corpora,
    read_text,
    sentences,
)
from elmo_jax.errors import InputError
from elmo_jax.vocabulary import Vocabulary, character_ids

VOCABULARY = Vocabulary(["<S>", "</S>", "<UNK>", "the", "cat"])


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
    monkeypatch.setattr(corpus, "SAVED_EVERY", 3)
    monkeypatch.setattr(sources, "RECORDS", 7)
    folders = []
    for name, counts in (("whole", ()), ("other", (4, 8))):
        for count in counts:
            with interrupted(count):
                cached(["tfds:small_text/train"], "--data.train", VOCABULARY, str(tmp_path / name))
        found, folder = cached(["tfds:small_text/train"], "--data.train", VOCABULARY, str(tmp_path / name))
        same(found, Corpus(text, VOCABULARY))
        folders.append(content(folder))
    assert folders[0] == folders[1]
    assert sorted(text) == sorted(["sentence", str(number), "naïve"] for number in range(20))
    assert list(sentences(["tfds:small_text/train"], "--data.train")) == text
    for name, message in (
        ("tfds:nothing_such/train", "cannot read tfds:nothing_such/train"),
        ("tfds:small_text/test", "cannot read tfds:small_text/test"),
        ("tfds:small_text", "is not tfds:DATASET/SPLIT"),
    ):
        with pytest.raises(InputError, match=message):
            list(sentences([name], "--data.train"))


def write_text(folder, lines=400):
    """A plain and a compressed file with blank lines, and a vocabulary that lacks some of their words."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in range(60)] + ["naïve", "猫"]
    text = [" ".join(generator.choice(words, generator.integers(0, 9))) + "\n" for _ in range(lines)]
    (folder / "a.txt").write_text("".join(text[:150]), encoding="utf-8-sig")
    with gzip.open(folder / "b.gz", "wt") as file:
        file.writelines(text[150:])
    return (str(folder / "a.txt"), str(folder / "b.gz")), Vocabulary([*VOCABULARY.words, "w3", "w7", "naïve"])


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one, other):
    assert one.fingerprint() == other.fingerprint()
    assert (one.unknown, one.tokens, len(one)) == (other.unknown, other.tokens, len(other))
    for name in corpus.ARRAYS:
        assert getattr(one, name).dtype == getattr(other, name).dtype
        assert (getattr(one, name) == getattr(other, name)).all()


def test_a_cached_text_is_the_text_in_memory(tmp_path, monkeypatch):
    files, vocabulary = write_text(tmp_path / "text")
    in_memory = Corpus(sentences(files, "TEXT"), vocabulary)
    assert 0.5 < in_memory.unknown < 1
    monkeypatch.setattr(corpus, "SAVED_EVERY", 70)
    first, folder = cached(files, "TEXT", vocabulary, str(tmp_path / "cache"))
    same(first, in_memory)
    assert folder.parent == tmp_path / "cache"
    monkeypatch.setattr(corpus, "Lines", None)  # the text is not read again
    same(cached((f"{tmp_path}/text/*",), "TEXT", vocabulary, str(tmp_path / "cache"))[0], in_memory)


def test_a_changed_text_or_another_vocabulary_is_read_anew(tmp_path, capsys):
    files, vocabulary = write_text(tmp_path / "text")
    cache = str(tmp_path / "cache")
    folder = cached(files, "TEXT", vocabulary, cache)[1]
    assert cached(files, "TEXT", VOCABULARY, cache)[1] != folder
    assert capsys.readouterr().out.startswith(f"reading {' '.join(files)} into {folder}")
    before = os.stat(files[0])
    data = Path(files[0]).read_bytes()
    Path(files[0]).write_bytes(data.replace(b"w1", b"w2"))  # of the same length
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    text, again = cached(files, "TEXT", vocabulary, cache)
    assert again == folder
    assert f"{folder} is of other files, or these have changed; it is made again\n" in capsys.readouterr().out
    same(text, Corpus(sentences(files, "TEXT"), vocabulary))


class Interrupted(BaseException):
    pass


@contextlib.contextmanager
def interrupted(lines):
    """What is done inside is interrupted after it has read so many lines."""
    read_lines, left = sources.read_lines, lines

    def some(*arguments):
        nonlocal left
        for tokens in read_lines(*arguments):
            if left == 0:
                raise Interrupted
            left -= 1
            yield tokens

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(sources, "read_lines", some)
        with pytest.raises(Interrupted):
            yield


@pytest.mark.parametrize("lines", [(0, 100), (33, 150, 60), (151, 248)])
def test_an_interrupted_cache_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch, lines):
    files, vocabulary = write_text(tmp_path / "text")
    monkeypatch.setattr(corpus, "SAVED_EVERY", 40)
    whole = cached(files, "TEXT", vocabulary, str(tmp_path / "whole"))[1]
    begun, lines_of = [], corpus.Lines

    def begins(sources, progress, place):
        begun.append(place.line + 150 * place.source)
        return lines_of(sources, progress, place)

    monkeypatch.setattr(corpus, "Lines", begins)
    for count in lines:
        with interrupted(count):
            cached(files, "TEXT", vocabulary, str(tmp_path / "cache"))
    folder = cached(files, "TEXT", vocabulary, str(tmp_path / "cache"))[1]
    for count, (begin, after) in zip(lines, itertools.pairwise(begun), strict=True):
        assert begin + count - 60 < after <= begin + count  # 40 sentences at most, and blank lines, are read again
    assert content(folder) == content(whole)


def test_where_nothing_can_be_kept_the_text_is_held_in_memory(tmp_path, capsys):
    files, vocabulary = write_text(tmp_path / "text")
    (tmp_path / "file").write_text("")
    text = read_text(files, "TEXT", vocabulary, str(tmp_path / "file"))
    same(text, Corpus(sentences(files, "TEXT"), vocabulary))
    printed = capsys.readouterr().out
    assert "is held in memory, and read again at the next start" in printed
    assert "cannot be written" in printed
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        pipe.write("the cat\n")
    text = read_text((f"/dev/fd/{reader}",), "TEXT", VOCABULARY, str(tmp_path / "cache"))
    os.close(reader)
    assert text.types.tolist() == [0, 3, 4, 1]
    assert "is no regular file: nothing is kept of it" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"data.cache is gs://there; give a folder on this machine"):
        read_text(files, "TEXT", vocabulary, "gs://there")


def test_a_text_without_sentences_has_no_cache(tmp_path):
    (tmp_path / "blank.txt").write_text("\n \n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"blank.txt has no sentences"):
            cached((str(tmp_path / "blank.txt"),), "TEXT", VOCABULARY, str(tmp_path / "cache"))


def test_what_tokenize_keeps_is_what_training_finds(tmp_path, monkeypatch, capsys):
    files, vocabulary = write_text(tmp_path / "text")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    vocabulary.save(tmp_path / "vocab.txt")
    (tmp_path / "heldout.txt").write_text("the cat sat\n")
    for text, options in ((files, []), ([str(tmp_path / "heldout.txt")], [])):
        commands.main(["tokenize", *text, "--vocab", str(tmp_path / "vocab.txt"), *options])
    assert re.search(
        r"\d+ sentences, [\d,]+ tokens, \d.*% <UNK>, are in .*/user/elmo_jax/text/a.txt-", capsys.readouterr().out
    )
    monkeypatch.setattr(corpus, "Lines", None)  # no text is read
    data = DataConfig((f"{tmp_path}/text/*",), (str(tmp_path / "heldout.txt"),), str(tmp_path / "vocab.txt"))
    train, heldout = read_corpora(data, None)
    assert isinstance(train.types.base, np.memmap)
    assert (len(heldout), heldout.types.tolist()) == (1, [0, 3, 4, 8, 1])


def test_tokenize_counts_the_vocabulary_as_training_does(tmp_path, monkeypatch):
    files, _ = write_text(tmp_path / "text")
    commands.main(["tokenize", *files, "--cache", str(tmp_path / "cache")])
    made = sorted(path.name for path in (tmp_path / "cache").iterdir())
    train, _ = read_corpora(DataConfig(files, cache=str(tmp_path / "cache")), None)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == made
    assert train.unknown == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["builtin"], "files or tfds:DATASET/SPLIT, not builtin"),
        ([], "which text?"),
        (["{text}", "--cache", "{text}"], "cannot be written"),
        (["{text}.missing"], "TEXT: there is no file"),
    ],
)
def test_what_tokenize_refuses(tmp_path, capsys, arguments, message):
    (tmp_path / "a.txt").write_text("the cat\n")
    fails(commands.main, ["tokenize", *(part.format(text=tmp_path / "a.txt") for part in arguments)], message, capsys)


TOKENIZE = """
import sys
from elmo_jax import arrays, corpus
from elmo_jax.vocabulary import Vocabulary
corpus.SAVED_EVERY = int(sys.argv[3])
most, save, lines_of = 0, arrays.GrowingArrays.save, corpus.Lines
def begins(sources, progress, place):
    print("begins", flush=True)
    return lines_of(sources, None, place)
corpus.Lines = begins
def saved(self, about):
    global most
    save(self, about)
    status = open("/proc/self/status").read()
    most = max(most, int(status.split("RssAnon:")[1].split()[0]))
arrays.GrowingArrays.save = saved
corpus.cached((sys.argv[1],), "TEXT", Vocabulary(["<S>", "</S>", "<UNK>", "w1"]), sys.argv[2])
print(most * 1024)
"""


def tokenize(text, cache, every):
    return subprocess.Popen(
        [sys.executable, "-c", TOKENIZE, text, cache, str(every)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def write_long_text(path, lines):
    generator = np.random.default_rng(0)
    many = [" ".join(f"w{n}" for n in generator.zipf(1.3, 20) % 100_000) + "\n" for _ in range(10_000)]
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        for _ in range(lines // len(many)):
            file.writelines(many)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.txt", "a.gz"])
def test_a_killed_cache_goes_on_and_ends_with_the_same_bytes(tmp_path, name):
    """Killed at random moments, until it is whole."""
    write_long_text(tmp_path / name, 100_000)
    tokenize(tmp_path / name, tmp_path / "whole", 2_000).communicate()
    kept = lambda cache: content(*(path for path in cache.iterdir() if path.is_dir()))
    expected = kept(tmp_path / "whole")
    generator, kills = np.random.default_rng(0), 0
    while True:
        process = tokenize(tmp_path / name, tmp_path / "cache", 2_000)
        process.stdout.readline()  # it begins
        try:
            process.communicate(timeout=generator.uniform(0, 0.5))[0]
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    assert process.returncode == 0
    assert kills > 2
    print(f"\nkilled {kills} times")
    found = kept(tmp_path / "cache")
    assert found.keys() == expected.keys()
    assert all(found[file] == expected[file] for file in expected)


@pytest.mark.slow
def test_making_a_cache_takes_the_same_memory_whatever_the_texts_length(tmp_path):
    most = []
    for number, lines in enumerate((200_000, 800_000)):
        write_long_text(tmp_path / f"{number}.txt", lines)
        most.append(int(tokenize(tmp_path / f"{number}.txt", tmp_path, 20_000).communicate()[0].splitlines()[-1]))
    print(f"\n{most[0] / 1e6:.0f} MB, {most[1] / 1e6:.0f} MB")
    assert most[1] - most[0] < 5e6  # the text's numbers take 53 MB more


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
