"""What holds for every input of a kind, tried on many that Hypothesis makes."""

import bz2
import dataclasses
import gzip
import json
import lzma
import os

import numpy as np
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from elmo_jax.config import ModelConfig, from_options, read_options, to_options
from elmo_jax.dump import write_hdf5
from elmo_jax.embeddings import Made, read_embeddings
from elmo_jax.errors import InputError
from elmo_jax.folders import read_folder
from elmo_jax.mix import Mix
from elmo_jax.outputs import to_line, write_parquet
from elmo_jax.pickles import open_torch, write_torch
from elmo_jax.sources import read_input
from elmo_jax.vocabulary import Alphabet, Vocabulary
from elmo_jax.weights import ModelFolder, as_parameters, weight_shapes, write_model

SPECIALS = ["<S>", "</S>", "<UNK>"]
CHARACTERS = st.characters(exclude_categories=("Cs",))
# A byte order mark at the beginning of a file is none of its text.
WORDS = st.text(CHARACTERS, min_size=1, max_size=6).filter(lambda word: word.split() == [word] and word[0] != "\ufeff")
SENTENCES = st.lists(st.lists(WORDS, max_size=4), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


def accepts(read, *arguments) -> bool:
    """Whether input is accepted; nothing but an InputError of one short line refuses it."""
    try:
        read(*arguments)
    except InputError as error:
        message = str(error)
    else:
        return True
    assert len(message) < 2000
    assert "\n" not in message
    return False


def numbers(array) -> bytes:
    """The bits of float32."""
    return np.asarray(array, "<f4").tobytes()


@few
@given(st.permutations(SPECIALS), st.lists(WORDS, max_size=8))
def test_vocabularies_come_back(place, specials, words):
    vocabulary = Vocabulary([*specials, *words])
    vocabulary.save(place / "vocab.txt")
    again = Vocabulary.load(place / "vocab.txt")
    assert (again.words, again.index) == (vocabulary.words, vocabulary.index)
    assert [again.words[number] for number in again.ids(words)] == words


@few
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_as_a_vocabulary(place, content, special):
    (place / "vocab.txt").write_bytes(content + b"\n<S>\n</S>\n<UNK>" * special)
    accepted = accepts(Vocabulary.load, place / "vocab.txt")
    assert special or not accepted
    accepts(Alphabet.load, place / "vocab.txt")


@few
@given(st.dictionaries(WORDS, st.integers(1, 5), max_size=10), st.integers(3, 9), st.integers(1, 3))
def test_frequent_words_come_first(counts, size, least):
    words = Vocabulary.from_counts(counts.items(), size, least).words
    assert words[:3] == SPECIALS
    assert len(words) <= size
    taken = [(-counts[word], word) for word in words[3:]]
    assert taken == sorted(taken)
    assert all(-count >= least for count, _ in taken)


@few
@given(st.lists(CHARACTERS, unique=True, max_size=300))
def test_alphabets_come_back(place, letters):
    alphabet = Alphabet.of(letters)
    (place / "characters.txt").write_bytes(alphabet.to_bytes())
    assert Alphabet.load(place / "characters.txt").characters == alphabet.characters


MODELS = st.builds(
    ModelConfig,
    input=st.sampled_from(["characters", "words"]),
    character_dim=st.integers(1, 40),
    filters=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 99)), min_size=1, max_size=4).map(tuple),
    activation=st.sampled_from(["relu", "tanh"]),
    highway_layers=st.integers(0, 3),
    max_characters=st.integers(7, 60),
    cell_dim=st.integers(8, 500),
    projection_dim=st.integers(1, 8),
    layers=st.integers(1, 4),
    cell_clip=st.none() | st.floats(0.5, 1e6),
    projection_clip=st.none() | st.floats(0.5, 1e6),
    skip_connections=st.booleans(),
)


@few
@given(MODELS)
def test_options_come_back(model):
    found = from_options(json.loads(json.dumps(to_options(model))), "options.json")
    default = ModelConfig()
    if model.input == "words":  # what they do not have stays as it is by default
        ours = ("character_dim", "filters", "activation", "highway_layers", "max_characters")
        model = dataclasses.replace(model, **{name: getattr(default, name) for name in ours})
    assert found == model


@few
@given(st.sampled_from(["lstm", "char_cnn", "lstm.dim", "char_cnn.filters", "char_cnn.n_characters", ""]), JSON)
def test_any_json_in_options(place, where, value):
    options = to_options(ModelConfig())
    *groups, name = where.split(".")
    (options[groups[0]] if groups else options)[name] = value
    (place / "options.json").write_text(json.dumps(options))
    accepts(read_options, place / "options.json")
    (place / "options.json").write_text(json.dumps(value))
    assert not accepts(read_options, place / "options.json")


def as_lines(text):
    return "".join(" ".join(tokens) + "\n" for tokens in text)


def as_json(text):
    return "".join(json.dumps({"tokens": tokens}) + "\n" for tokens in text)


def as_conll(text):
    return "".join("".join(f"{n}\t{token}\n" for n, token in enumerate(tokens, 1)) + "\n" for tokens in text)


FORMATS = {"lines": (as_lines, None), "jsonl": (as_json, None), "conll": (as_conll, "2"), "conllu": (as_conll, None)}
COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd.compress}


@few
@given(SENTENCES, st.sampled_from([*FORMATS]), st.sampled_from([*COMPRESSIONS]), st.integers(0, 6))
def test_text_in_every_format(place, text, name, suffix, begin):
    """It is read whole, and from any place on."""
    write, column = FORMATS[name]
    file = place / f"text{suffix}"
    file.write_bytes(COMPRESSIONS[suffix](write(text).encode()))
    expected = [tokens for tokens in text if tokens or not name.startswith("conll")]
    assert list(read_input([str(file)], name, column)) == expected
    lines = read_input([str(file)], name, column)
    first = [tokens for _, tokens in zip(range(begin), lines, strict=False)]
    assert list(read_input([str(file)], name, column, begin=lines.place())) == expected[len(first) :]


@few
@given(st.binary(max_size=80), st.sampled_from([*FORMATS, "parquet"]), st.sampled_from([*COMPRESSIONS]), st.booleans())
def test_any_bytes_as_text(place, content, name, suffix, compress):
    file = place / f"bytes{suffix}"
    file.write_bytes(COMPRESSIONS[suffix](content) if compress else content)
    column = FORMATS.get(name, (None, None))[1]
    accepts(lambda: [[token.encode() for token in tokens] for tokens in read_input([str(file)], name, column)])


@few
@given(st.lists(FLOATS, min_size=1, max_size=5), FLOATS, st.booleans())
def test_mixes_come_back(place, weights, gamma, layer_norm):
    Mix(weights, gamma, layer_norm).save(place / "mix.json")
    assert Mix.load(place / "mix.json") == Mix(weights, gamma, layer_norm)


@few
@given(JSON, JSON, JSON)
def test_any_json_as_a_mix(place, weights, gamma, more):
    (place / "mix.json").write_text(json.dumps({"weights": weights, "gamma": gamma}))
    accepts(Mix.load, place / "mix.json")
    (place / "mix.json").write_text(json.dumps({"weights": [1.0], "more": more}))
    assert not accepts(Mix.load, place / "mix.json")


TINY = ModelConfig(
    character_dim=1, filters=((1, 2),), max_characters=3, cell_dim=2, projection_dim=1, highway_layers=1, layers=1
)
SIZE = sum(int(np.prod(shape)) for shape in weight_shapes(TINY, 0).values())


@few
@given(st.lists(FLOATS, min_size=1, max_size=50), st.lists(WORDS, max_size=3))
def test_weights_come_back_from_every_container(place, values, words):
    """HDF5 to safetensors and back: the same bits."""
    vocabulary = Vocabulary([*SPECIALS, *words])
    arrays, begin = {}, 0
    flat = np.resize(np.array(values, np.float32), SIZE)
    for name, shape in weight_shapes(TINY, 0).items():
        arrays[name] = flat[begin : begin + int(np.prod(shape))].reshape(shape)
        begin += arrays[name].size
    model = ModelFolder(TINY, as_parameters(TINY, arrays), vocabulary, None)
    for step, container in enumerate(("hdf5", "safetensors", "hdf5")):
        folder = place / f"step{step}"
        write_model(folder, model, container)
        model = read_folder(folder)
    assert model.vocabulary.words == vocabulary.words
    found = {name: {key: numbers(array) for key, array in module.items()} for name, module in model.parameters.items()}
    expected = as_parameters(TINY, arrays)
    assert found == {name: {key: numbers(own) for key, own in module.items()} for name, module in expected.items()}
    assert (place / "step0/weights.hdf5").read_bytes() == (place / "step2/weights.hdf5").read_bytes()


@few
@given(st.dictionaries(WORDS, st.lists(st.integers(0, 3), max_size=3), max_size=3), FLOATS)
def test_tensors_come_back(place, shapes, value):
    arrays = {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}
    write_torch(place / "tensors", arrays)
    with open_torch(place / "tensors") as file:
        found = {name: file.floats(name) for name in file}
    assert found.keys() == arrays.keys()
    assert all(found[name].shape == array.shape for name, array in arrays.items())
    assert all(numbers(found[name]) == numbers(array) for name, array in arrays.items())


@few
@given(SENTENCES, st.sampled_from([".hdf5", ".parquet"]), st.booleans(), st.integers(1, 3), st.data())
def test_vectors_come_back(place, text, suffix, compress, width, data):
    values = data.draw(st.lists(FLOATS, min_size=1, max_size=9))
    vectors = [np.resize(np.array(values, np.float32), (len(tokens), width)) for tokens in text]
    path = place / f"vectors{suffix}"
    if suffix == ".hdf5":
        write_hdf5(path, text, vectors, compress)
    else:
        key = {"dtype": "float32", "all layers": None, "width": width, "pool": None}
        rows = zip(map(to_line, text), vectors, strict=True)
        write_parquet(path, rows, Made(key), json.dumps(key), "gzip" if compress else None)
    with read_embeddings(os.fspath(path)) as found:
        assert len(found) == len(text)
        assert all(numbers(found[number]) == numbers(array) for number, array in enumerate(vectors))
        last = {" ".join(tokens): number for number, tokens in enumerate(text)}
        for number, tokens in enumerate(text):
            if suffix == ".parquet" or last[" ".join(tokens)] == number:
                assert found.tokens(number) == tokens
