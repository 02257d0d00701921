import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import ROOT

from elmo_jax import dump
from elmo_jax.dump import nearest, write_hdf5
from elmo_jax.errors import InputError

GENERATOR = np.random.default_rng(0)
TEXT = ["the cat sat", "", "the ünïcode 🐈", 'a "quoted" \\ line', "the cat sat", "one"]
SENTENCES = [line.split() for line in TEXT]


def vectors_of(sentences, width=5, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(len(tokens), width)).astype(np.float32) for tokens in sentences]


def test_the_published_format(tmp_path):
    """As the readers of bilm-tf and AllenNLP take it."""
    vectors = vectors_of(SENTENCES)
    write_hdf5(tmp_path / "dump", iter(SENTENCES), iter(vectors))
    with h5py.File(tmp_path / "dump") as file:
        assert set(file) == {*map(str, range(6)), "sentence_to_index"}
        assert file["sentence_to_index"].shape == (1,)
        assert json.loads(file["sentence_to_index"][0]) == {TEXT[n]: str(n) for n in (4, 1, 2, 3, 5)}
        for number, array in enumerate(vectors):
            assert file[str(number)].dtype == np.float32
            assert (file[str(number)][()] == array).all()
    assert os.listdir(tmp_path) == ["dump"]
    write_hdf5(tmp_path / "dump", [], [])
    with h5py.File(tmp_path / "dump") as file:
        assert json.loads(file["sentence_to_index"][0]) == {}


def test_a_dump_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def failing():
        yield vectors_of(SENTENCES)[0]
        raise PermissionError(13, "Permission denied", "text")

    with pytest.raises(PermissionError, match="'text'"):  # of what is read, not of what is written
        write_hdf5(tmp_path / "dump", SENTENCES, failing())
    monkeypatch.setattr(dump, "LARGEST_INDEX", 30)
    with pytest.raises(InputError, match="too long for one file"):
        write_hdf5(tmp_path / "dump", SENTENCES, vectors_of(SENTENCES))
    assert not os.listdir(tmp_path)


MEASURE = """
import resource, sys, tracemalloc
from pathlib import Path
import numpy as np
from elmo_jax.dump import write_hdf5
count, folder = int(sys.argv[1]), Path(sys.argv[2])
sentences = ([f"word{n}", *["some"] * 30] for n in range(count))
vectors = np.ones((31, 2), np.float32)
write_hdf5(folder / "warm", [["a"]], [vectors[:1]])
tracemalloc.start()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_hdf5(folder / "dump", sentences, (vectors for _ in range(count)))
print(tracemalloc.get_traced_memory()[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peaks(count, folder):
    """Peak of Python's memory and of the process, bytes, when so many sentences are written."""
    command = [sys.executable, "-c", MEASURE, str(count), str(folder)]
    return list(map(int, subprocess.check_output(command, cwd=ROOT).split()))


@pytest.mark.slow
def test_the_text_is_not_held(tmp_path):
    """9,000 sentences more are 1.5 MB of text more."""
    assert peaks(10_000, tmp_path)[0] < peaks(1000, tmp_path)[0] + 300_000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    few, many = peaks(3000, tmp_path), peaks(300_000, tmp_path)
    print(
        f"Python {few[0] / 1e6:.1f} MB, then {many[0] / 1e6:.1f} MB; process {few[1] / 1e6:.0f}, {many[1] / 1e6:.0f} MB"
    )
    assert many[0] < few[0] + 1e6
    assert many[1] < few[1] + 30e6  # HDF5's cache, once it is full; the text is 48 MB


def plain_nearest(sentences, vectors, word, count):
    """All pairs, in order of similarity."""
    unit = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in vectors]
    tokens = [(s, p) for s, words in enumerate(sentences) for p in range(len(words))]
    result = []
    for own in [(s, p) for s, p in tokens if sentences[s][p] == word]:
        similarity = {(s, p): float(unit[s][p] @ unit[own[0]][own[1]]) for s, p in tokens if (s, p) != own}
        ranked = sorted(similarity, key=similarity.get, reverse=True)
        same = [(s, p) for s, p in ranked if sentences[s][p] == word]
        others = {}
        for s, p in ranked:
            if sentences[s][p] != word:
                others.setdefault(sentences[s][p], (s, p))
        result.append([[similarity[token] for token in kind][:count] for kind in (same, list(others.values()))])
    return result


@pytest.mark.parametrize("compared", [1, 7, 4096])
def test_nearest_is_exact(tmp_path, monkeypatch, compared):
    monkeypatch.setattr(dump, "COMPARED", compared)
    generator = np.random.default_rng(3)
    lines = {tuple(f"w{n}" for n in generator.integers(9, size=generator.integers(8))) for _ in range(30)}
    sentences = [list(line) for line in sorted(lines)]
    vectors = vectors_of(sentences)
    write_hdf5(tmp_path / "dump", sentences, vectors)
    for word in ("w3", "w8"):
        expected = plain_nearest(sentences, vectors, word, 4)
        found = nearest(tmp_path / "dump", word, 4)
        chosen = np.linspace(0, len(expected) - 1, min(len(expected), 10)).astype(int)
        assert len(expected) > 10 == len(found)
        for occurrence, number in zip(found, chosen, strict=True):
            for kind, values in zip((occurrence.same_word, occurrence.other_words), expected[number], strict=True):
                assert np.allclose([neighbour.similarity for neighbour in kind], values, atol=1e-6)
            words = [neighbour.context.split("[")[1].split("]")[0] for neighbour in occurrence.other_words]
            assert len(set(words)) == len(words) == 4
            assert word not in words
            assert all(f"[{word}]" in neighbour.context for neighbour in occurrence.same_word)


def test_contexts(tmp_path):
    sentences = [list("abcdefghijklmn"), ["x"], ["h"]]
    write_hdf5(tmp_path / "dump", sentences, vectors_of(sentences))
    one, other = nearest(tmp_path / "dump", "h", 20)
    assert one.context == "c d e f g [h] i j k l m"
    assert [neighbour.context for neighbour in one.same_word] == ["[h]"]
    assert other.context == "[h]"
    assert len(one.other_words) == 14
    (alone,) = nearest(tmp_path / "dump", "x", 2)
    assert alone.same_word == []
    with pytest.raises(InputError, match="'dog' does not occur"):
        nearest(tmp_path / "dump", "dog", 2)


def index(text):
    def change(file):
        del file["sentence_to_index"]
        file["sentence_to_index"] = np.array([text])

    return change


def replaced(name, **options):
    def change(file):
        del file[name]
        file.create_dataset(name, **options)

    return change


def group(name):
    def change(file):
        del file[name]
        file.create_group(name)

    return change


def linked(name):
    def change(file):
        del file[name]
        file[name] = h5py.ExternalLink("/no/file", name)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("sentence_to_index"), "not a file that embed wrote"),
        (group("sentence_to_index"), "sentence_to_index is no dataset"),
        (replaced("sentence_to_index", data=np.ones(1)), "it must be one string"),
        (replaced("sentence_to_index", data=np.array([b"{}", b"{}"])), "it must be one string"),
        (replaced("sentence_to_index", shape=(1,), dtype="S9", external=[("/etc/hostname", 0, 9)]), "another file"),
        (index(b"{"), "is not JSON"),
        (index(b"[" * 100_000), "is not JSON"),
        (index(b'{"a": ' + b"9" * 5000 + b"}"), "is not JSON"),
        (index(b"\xff\xfe"), "is not JSON"),
        (index(b"[]"), "is not JSON from sentences"),
        (index(b'{"a cat": 3}'), "is not JSON from sentences"),
        (index(b'{"a cat": "7"}'), "has no dataset 7"),
        (index(b'{"a cat": ".."}'), "has no dataset"),
        (index(b'{"a cat": "sentence_to_index"}'), "no floating numbers"),
        (index(b'{"a cat sat": "0"}'), r"dataset 0 is \(2, 5\), not one vector for each of 3 tokens"),
        (group("0"), "0 is no dataset"),
        (linked("0"), "0 is a link"),
        (linked("sentence_to_index"), "sentence_to_index is a link"),
        (replaced("0", data=np.ones((3, 2, 5))), r"is \(3, 2, 5\), not one vector"),
        (replaced("0", data=np.ones((2, 0))), "not one vector"),
        (replaced("1", data=np.ones((3, 6))), "has vectors of 6 numbers, others of 5"),
        (replaced("0", data=np.float32(1)), r"is \(\), not one vector"),
        (replaced("0", data=np.full((2, 5), b"text")), "no floating numbers"),
        (replaced("0", data=np.ones((2, 5), int)), "no floating numbers"),
        (replaced("0", data=np.full((2, 5), np.nan)), "not finite"),
        (replaced("0", shape=(2, 5), dtype="f4", external=[("/etc/hostname", 0, 40)]), "another file"),
        (replaced("0", shape=(2, 10**12), dtype="f4"), "never written whole"),
    ],
)
def test_crafted_dumps(tmp_path, change, message):
    sentences = [["a", "cat"], ["the", "cat", "sat"]]
    write_hdf5(tmp_path / "dump", sentences, vectors_of(sentences))
    with h5py.File(tmp_path / "dump", "r+") as file:
        change(file)
    with pytest.raises(InputError, match=message) as error:
        nearest(tmp_path / "dump", "cat", 2)
    assert str(tmp_path / "dump") in str(error.value)
    assert len(str(error.value)) < 600


def test_vectors_in_another_format(tmp_path):
    (tmp_path / "v.parquet").write_bytes(b"PAR1 and so on")
    for path in (tmp_path / "v.parquet", tmp_path):
        with pytest.raises(InputError, match=f"{path} is no HDF5 file; embed the text into an output that ends with"):
            nearest(path, "cat")


def test_dumps_of_the_originals(tmp_path):
    """Their index is a string of variable length."""
    with h5py.File(tmp_path / "dump", "w") as file:
        file["0"] = np.ones((2, 5), np.float32)
        file.create_dataset("sentence_to_index", (1,), dtype=h5py.string_dtype())[0] = json.dumps({"a  cat ": "0"})
    (occurrence,) = nearest(tmp_path / "dump", "cat", 2)
    ((similarity, context),) = occurrence.other_words
    assert abs(similarity - 1) < 1e-6
    assert context == "[a] cat"
