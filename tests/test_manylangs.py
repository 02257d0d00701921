"""ELMoForManyLangs' models: random ones that the package wrote, against the vectors that it gives with them."""

import dataclasses
import json
import pickle
import shutil
from functools import partial

import h5py
import jax
import numpy as np
import pytest
from conftest import ROOT, TOLERANCE, relative_error

import elmo_jax
from elmo_jax import commands
from elmo_jax.char_cnn import quickly_spelled, spelled_vectors
from elmo_jax.errors import InputError
from elmo_jax.folders import read_folder
from elmo_jax.manylangs import read_manylangs, write_manylangs
from elmo_jax.model import word_vectors
from elmo_jax.pickles import write_torch
from elmo_jax.products import FORMS, compiled_for
from elmo_jax.weights import write_model

DATA = ROOT / "tests/data/manylangs"
SENTENCES = json.loads((DATA / "sentences.json").read_text())
NAMES = ["words_and_characters", "characters"]


def vectors_of(folder, **options):
    return elmo_jax.load(folder).embed(SENTENCES, layers="all", state="zero", **options)


@pytest.fixture(params=NAMES)
def original(request):
    return DATA / request.param


@pytest.fixture
def copy(tmp_path):
    """A folder to change, of the model with vectors of words."""
    return shutil.copytree(DATA / NAMES[0], tmp_path / "model")


def replace(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_package_gives_the_same_vectors(original):
    """Characters and words that it does not know, words too long for it, none, and marks spelled in the text."""
    with np.load(original / "vectors.npz") as file:
        published = [file[f"arr_{number}"] for number in range(len(SENTENCES))]
    found = vectors_of(original)
    assert max(np.abs(vectors).max(initial=0) for vectors in published) > 1
    for one, other in zip(found, published, strict=True):
        assert np.abs(one - other).max(initial=0) < 1e-5
    # The boundaries are spelled with the words then, not read beforehand.
    for one, other in zip(vectors_of(original, boundaries=True), published, strict=True):
        assert np.abs(one[:, 1:-1] - other).max(initial=0) < 1e-5


def test_a_folder_of_ours(original, tmp_path):
    """Written as a model folder it gives the same bits; options.json says what it reads."""
    write_model(tmp_path, read_manylangs(original))
    options = json.loads((tmp_path / "options.json").read_text())
    letters = 261 if original.name == NAMES[0] else 326
    assert options["char_cnn"]["alphabet"] == "characters.txt"
    assert options["char_cnn"]["n_characters"] == letters
    assert options["word_embedding"] == {"dim": 5 if original.name == NAMES[0] else 0}
    with h5py.File(tmp_path / "weights.hdf5") as file:
        tables = {"char_embed", "character_embed"} & set(file)
    assert tables == {"character_embed"}  # AllenNLP would take the other for that of bytes
    lines = (tmp_path / "characters.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == letters + 1
    assert lines[256:261] == ["<S>", "</S>", "<BOW>", "<EOW>", "<PAD>"]
    assert {"ü", "猫", "U+3000", "<UNK>"} < set(lines)
    for one, other in zip(vectors_of(tmp_path), vectors_of(original), strict=True):
        assert (one == other).all()


def test_written_for_the_package(original, tmp_path):
    """Read and written again, the package's numbers are the same, whatever order the dictionaries have."""
    read = read_manylangs(original)
    write_manylangs(tmp_path / "model", read)
    again = read_manylangs(tmp_path / "model")
    assert again.model == read.model
    assert again.alphabet.characters == read.alphabet.characters
    assert again.vocabulary is None or again.vocabulary.words == read.vocabulary.words
    for one, other in zip(jax.tree.leaves(again.parameters), jax.tree.leaves(read.parameters), strict=True):
        assert relative_error(one, other) < 1e-6
    for one, other in zip(vectors_of(tmp_path / "model"), vectors_of(original), strict=True):
        assert relative_error(one, other) < TOLERANCE


class Described(pickle.Unpickler):
    """Python's own reader of what PyTorch reads, with descriptions in place of its classes."""

    def find_class(self, module, name):
        return {"OrderedDict": dict, "FloatStorage": "float", "_rebuild_tensor_v2": lambda *view: view}[name]

    def persistent_load(self, place):
        return place


def test_python_reads_the_pickles(tmp_path):
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(3, 2).T, "bias": np.ones(70_000, np.float64)}
    write_torch(tmp_path / "model.pkl", arrays)
    with (tmp_path / "model.pkl").open("rb") as file:
        assert [pickle.load(file) for _ in range(2)] == [0x1950A86A20F9469CFC6C, 1001]
        assert pickle.load(file)["little_endian"] is True
        assert Described(file).load() == {
            "a.weight": (("storage", "float", "0", "cpu", 6, None), 0, (2, 3), (3, 1), False, {}),
            "bias": (("storage", "float", "1", "cpu", 70_000, None), 0, (70_000,), (1,), False, {}),
        }
        assert pickle.load(file) == ["0", "1"]
        for array in arrays.values():
            assert int.from_bytes(file.read(8), "little") == array.size
            assert file.read(4 * array.size) == array.astype("<f4").tobytes()
        assert not file.read()


def test_a_padding_word_is_made_where_none_is(copy, tmp_path):
    read = read_manylangs(copy)
    words = [word if word != "<pad>" else "pad" for word in read.vocabulary.words]
    write_manylangs(tmp_path / "new", read._replace(vocabulary=type(read.vocabulary)(words)))
    assert "<pad>\t0\n" in (tmp_path / "new" / "word.dic").read_text(encoding="utf-8")
    assert {"pad", "<pad>"} < set(read_manylangs(tmp_path / "new").vocabulary.words)


def test_words_that_a_vocabulary_cannot_hold(copy):
    """They are read as words that are not known, and the rows of the others stay with them."""
    known = read_manylangs(copy)
    for word, name in {"sat": "!!!MAXTERMID", "on": "<S>", "mat": "\u3000"}.items():
        replace(copy / "word.dic", f"\n{word}\t", f"\n{name}\t")
    read = read_manylangs(copy)
    assert set(known.vocabulary.words) - set(read.vocabulary.words) == {"sat", "on", "mat"}
    for word in ("<S>", "</S>", "<UNK>", "the", "hà nội"):
        rows = (folder.parameters["words"]["word_embedding"][folder.vocabulary.index[word]] for folder in (read, known))
        assert (next(rows) == next(rows)).all()


@pytest.mark.parametrize("platform", FORMS)
def test_every_platform_spells_alike(original, platform):
    folder = read_manylangs(original)
    generator = np.random.default_rng(0)
    characters = generator.integers(0, folder.model.alphabet, (9, 12)).astype(np.int32)
    words = generator.integers(0, 9, 9).astype(np.int32) if folder.model.word_dim else None
    own = None if words is None else folder.parameters["words"]["word_embedding"][words]
    parameters = folder.parameters["words"]
    expected = spelled_vectors(parameters, characters, folder.model, "float32", own)
    with compiled_for(platform):
        spell = jax.jit(partial(quickly_spelled, model=folder.model, precision="float32"))
        assert relative_error(spell(parameters, characters, words=own), expected) < TOLERANCE
    read = characters if words is None else (characters, words)
    assert relative_error(word_vectors(folder.model, parameters, read, np.int32(9), "float32"), expected) < TOLERANCE


def test_the_options_of_the_package(copy):
    """Published folders lack the file that config.json names, which the package has."""
    replace(copy / "config.json", "cnn_small.json", "cnn_50_100_512_4096_sample.json")
    with pytest.raises(InputError, match=r"word_emb_layer.embedding.weight is \(23, 5\), expected \(23, 100\)"):
        read_manylangs(copy)


def change(name, old, new):
    return lambda folder: replace(folder / name, old, new)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("config.json", "config_path", "config"), "config.json has no config_path"),
        (
            change("config.json", "cnn_small.json", "mine.json"),
            r"there is no file .*mine.json, which config.json names",
        ),
        (change("config.json", "configs/cnn_small.json", "configs/"), "there is no file"),
        (change("cnn_small.json", '"elmo"', '"lstm"'), "encoder.name is 'lstm'; only 'elmo' can be read"),
        (change("cnn_small.json", '"cnn"', '"lstm"'), "token_embedder.name is 'lstm'; only 'cnn' can be read"),
        (change("cnn_small.json", '"char_dim": 3', '"char_dim": 0'), "only models that read characters can be read"),
        (change("cnn_small.json", '"dim": 11', '"dim": 7'), "encoder.projection_dim is encoder.dim"),
        (change("cnn_small.json", '"dim": 11', '"dim": "big"'), "encoder.dim is 'big'; it must be int"),
        (
            change("cnn_small.json", '"n_highway"', '"highway"'),
            "describes no model .*: it lacks token_embedder.n_highway",
        ),
        (change("cnn_small.json", '"word_dim": 5', '"word_dim": 0'), "not known: word_emb_layer.embedding.weight"),
        (change("cnn_small.json", '"word_dim": 5', '"word_dim": -1'), "model.word_dim is -1"),
        (change("cnn_small.json", '"n_layers": 2', '"n_layers": 3'), "missing: forward_layer_2.input_linearity.weight"),
        (change("char.dic", "<oov>\t", "<oov\t"), "char.dic lacks <oov>"),
        (change("word.dic", "<pad>\t", "<padding>\t"), "word.dic lacks <pad>"),
        (change("word.dic", "cat\t5", "cat\t4"), "word.dic has 23 entries whose numbers are not 0, 1, 2, .. each once"),
        (change("word.dic", "cat\t5", "cat\tfive"), "word.dic has not an entry, a tab and a number on every line"),
        (change("word.dic", "cat\t5", "c\ta\tt\t5"), "word.dic has not an entry, a tab and a number on every line"),
        (change("word.dic", "cat\t5", "the\t5"), "word.dic has 22 entries whose numbers"),
        (lambda folder: (folder / "word.dic").write_bytes(b"\xff\t0\n"), "word.dic has not an entry"),
        (lambda folder: (folder / "char.dic").unlink(), "there is no file .*char.dic"),
        (
            lambda folder: (folder / "token_embedder.pkl").write_bytes(b"cos\nsystem\n"),
            "token_embedder.pkl.* torch.save",
        ),
    ],
)
def test_folders_that_cannot_be_read(copy, damage, message):
    damage(copy)
    with pytest.raises(InputError, match=message):
        read_manylangs(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip_connections": False}, "it has no skip connections"),
        ({"cell_dim": 7}, "its LSTMs have no projection"),
        ({"max_characters": 6}, "it reads fewer than 7 characters"),
    ],
)
def test_models_that_the_package_cannot_express(copy, tmp_path, changes, message):
    read = read_manylangs(copy)
    with pytest.raises(InputError, match=message):
        write_manylangs(tmp_path / "new", read._replace(model=dataclasses.replace(read.model, **changes)))
    assert not (tmp_path / "new").exists()


def test_what_the_package_cannot_hold(copy, folder, tmp_path):
    """A model that reads bytes; characters and a word that end a line there or are not UTF-8."""
    read = read_manylangs(copy)
    letters, words = ([*entries, "\x85"] for entries in (read.alphabet.characters, read.vocabulary.words))
    parameters = read.parameters["words"]
    tables = {name: np.pad(parameters[name], ((0, 1), (0, 0))) for name in ("embedding", "word_embedding")}
    read = read._replace(parameters=read.parameters | {"words": parameters | tables})
    for message, model in {
        "its words are spelled in bytes": read_folder(folder),
        r"its char.dic cannot hold '\\x85'": read._replace(alphabet=type(read.alphabet)(letters)),
        r"its char.dic cannot hold '\\ud800'": read._replace(alphabet=type(read.alphabet)([*letters[:-1], "\ud800"])),
        r"its word.dic cannot hold '\\x85'": read._replace(vocabulary=type(read.vocabulary)(words)),
    }.items():
        with pytest.raises(InputError, match=message):
            write_manylangs(tmp_path / "new", model)
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", ["train", "perplexity"])
def test_it_can_only_embed(original, tmp_path, capsys, command):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat\n" * 20)
    train = ["tiny", "--data.train", text, "--workdir", tmp_path / "run", "--init", original]
    arguments = train if command == "train" else ["--input", text, "--model", original]
    with pytest.raises(SystemExit) as error:
        commands.main([command, *map(str, arguments)])
    assert error.value.code == 2
    assert "the model reads characters of an alphabet of its own" in capsys.readouterr().err


def test_files_that_do_not_fit_together(copy, tmp_path):
    write_model(tmp_path / "ours", read_manylangs(copy))
    options, weights, vocabulary, characters = (
        tmp_path / "ours" / name for name in ("options.json", "weights.hdf5", "vocab.txt", "characters.txt")
    )
    assert elmo_jax.load(options, weights, vocabulary).dim == 14
    with pytest.raises(InputError, match=r"has word_embedding: .* needs its vocab\.txt"):
        elmo_jax.load(options, weights)
    with characters.open("a", encoding="utf-8") as file:
        file.write("ж\n")
    with pytest.raises(InputError, match=r"characters.txt has 262 lines, .*options.json says n_characters is 261"):
        elmo_jax.load(tmp_path / "ours")
    characters.unlink()
    with pytest.raises(InputError, match="cannot read the alphabet file"):
        elmo_jax.load(tmp_path / "ours")
