import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, SMALL, random_weights, relative_error, write_random_model

from elmo_jax.config import ModelConfig, from_options, read_options
from elmo_jax.errors import InputError
from elmo_jax.folders import model_files, read_folder
from elmo_jax.mix import Mix
from elmo_jax.modules import init_bilm
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import (
    ModelFolder,
    named_weights,
    read_model,
    read_weights,
    weight_shapes,
    write_arrays,
    write_folder,
    write_model,
)

WORDS = ModelConfig(input="words", cell_dim=11, projection_dim=7)


def contents(path):
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


@pytest.mark.parametrize("trace", ["one_device", "two_devices"])
def test_exported_names_are_those_of_bilm_tf(golden, tmp_path, trace):
    folder = golden / "training" / trace
    model = from_options(json.loads((folder / "options.json").read_text()), "options.json")
    write_arrays(tmp_path / "weights.hdf5", named_weights(init_bilm(jax.random.key(0), model), model))
    ours, theirs = contents(tmp_path / "weights.hdf5"), contents(folder / "dumped_weights.hdf5")
    describe = lambda arrays: {name: (array.shape, array.dtype) for name, array in arrays.items()}
    assert describe(ours) == describe(theirs)


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        dataclasses.replace(SMALL, highway_layers=0, layers=3, filters=((1, 3), (2, 4)), projection_dim=7),
        dataclasses.replace(SMALL, cell_dim=7, activation="tanh", layers=1),
        WORDS,
    ],
    ids=["usual", "no highway, no CNN projection", "no LSTM projection", "words"],
)
def test_load_of_export_is_bit_identical(model, tmp_path):
    vocabulary = Vocabulary(["<S>", "</S>", "<UNK>", "the", "cat"])
    bilm = init_bilm(jax.random.key(0), model, len(vocabulary))
    softmax = {"weight": np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32), "bias": np.arange(5.0)}
    write_folder(tmp_path, model, {"bilm": bilm, "softmax": softmax}, vocabulary)
    folder = read_folder(tmp_path, with_softmax=True)
    assert folder.model == model
    assert folder.vocabulary.words == vocabulary.words
    assert jax.tree.structure(folder.parameters) == jax.tree.structure(bilm)
    for found, saved in zip(jax.tree.leaves(folder.parameters), jax.tree.leaves(bilm), strict=True):
        assert (found == saved).all()
    assert (folder.softmax["weight"] == softmax["weight"]).all()
    assert (folder.softmax["bias"] == softmax["bias"]).all()


def test_exported_options_suit_the_originals(tmp_path):
    """bilm-tf refuses n_characters other than 262 at inference, AllenNLP needs all of these keys."""
    folder = write_random_model(tmp_path, SMALL)
    options = json.loads((folder / "options.json").read_text())
    assert options["char_cnn"]["n_characters"] == 262
    assert set(options["char_cnn"]) >= {"activation", "embedding", "filters", "n_highway", "max_characters_per_token"}
    assert set(options["lstm"]) == {
        "dim", "projection_dim", "n_layers", "cell_clip", "proj_clip", "use_skip_connections"
    }  # fmt: skip


def test_all_problems_are_reported_together(tmp_path):
    path = tmp_path / "weights.hdf5"
    arrays = random_weights(SMALL)
    del arrays["CNN_proj/b_proj"]
    arrays["extra"] = np.zeros(3)
    arrays["char_embed"] = np.zeros((262, 3))
    write_arrays(path, arrays)
    with pytest.raises(InputError) as error:
        read_weights(path, SMALL)
    message = str(error.value)
    assert str(path) in message
    assert "missing: CNN_proj/b_proj (7,)" in message
    assert "not known: extra" in message
    assert "char_embed is (262, 3), expected (261, 3)" in message


def test_one_layer_as_bilm_tf_names_it(tmp_path):
    model = dataclasses.replace(SMALL, layers=1)
    arrays = random_weights(model)
    renamed = {name.replace("/MultiRNNCell/Cell0", ""): array for name, array in arrays.items()}
    assert set(renamed) != set(arrays)
    write_arrays(tmp_path / "weights.hdf5", renamed)
    parameters = read_weights(tmp_path / "weights.hdf5", model)
    assert (parameters["forward_0"]["kernel"] == arrays["RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/W_0"]).all()


def test_files_that_are_not_there_or_not_hdf5(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_weights(tmp_path / "weights.hdf5", SMALL)
    write_arrays(tmp_path / "weights.hdf5", random_weights(SMALL))
    (tmp_path / "half.hdf5").write_bytes((tmp_path / "weights.hdf5").read_bytes()[:3000])
    with pytest.raises(InputError, match="not a whole HDF5 file"):
        read_weights(tmp_path / "half.hdf5", SMALL)
    with pytest.raises(InputError, match="no folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no file .*/options.json"):
        read_folder(tmp_path)


SHAPE = (261, 3)
VALUES = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


def virtual(file, source):
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource(source, "char_embed", SHAPE)
    file.create_virtual_dataset("char_embed", layout)


def linked_group(file, other):
    for name in list(file["CNN"]):
        del file["CNN"][name]
    del file["CNN"]
    file["CNN"] = h5py.ExternalLink(other, "/")
    file["char_embed"] = VALUES


def half_the_chunks(file, other):
    file.create_dataset("char_embed", SHAPE, "f4", chunks=(9, 3))[:99] = VALUES[:99]


def many_unknown(file, other):
    file["char_embed"] = VALUES
    for number in range(2000):
        file.create_group(f"unknown{number}")
    file["x" * 60_000] = 1


CRAFTED = {
    "external": (lambda f, other: f.create_dataset("char_embed", SHAPE, "f4", external=[(other, 0, 3132)]), "another"),
    "virtual": (virtual, "another file"),
    "virtual, nothing there": (lambda f, other: virtual(f, "/no/file"), "another file"),
    "virtual, of itself": (lambda f, other: virtual(f, "."), "another file"),
    "external link": (lambda f, other: f.update({"char_embed": h5py.ExternalLink(other, "char_embed")}), "is a link"),
    "soft link": (lambda f, other: f.update({"char_embed": h5py.SoftLink("/CNN/b_cnn_0")}), "is a link"),
    "group behind a link": (linked_group, "CNN is a link"),
    "integers": (lambda f, other: f.update({"char_embed": VALUES.astype(int)}), "no floating numbers"),
    "booleans": (lambda f, other: f.update({"char_embed": VALUES > 0}), "no floating numbers"),
    "strings": (lambda f, other: f.update({"char_embed": np.full(SHAPE, b"abcd")}), "no floating numbers"),
    "an enum": (
        lambda f, other: f.create_dataset("char_embed", data=VALUES > 0, dtype=h5py.enum_dtype({"a": 1})),
        "no floating numbers",
    ),
    "complex": (lambda f, other: f.update({"char_embed": VALUES.astype(np.complex64)}), "no floating numbers"),
    "no space": (lambda f, other: f.update({"char_embed": h5py.Empty("f4")}), "never written whole"),
    "not written": (lambda f, other: f.create_dataset("char_embed", SHAPE, "f4"), "never written whole"),
    "no chunk": (lambda f, other: f.create_dataset("char_embed", SHAPE, "f4", chunks=(9, 3)), "never written whole"),
    "half the chunks": (half_the_chunks, "never written whole"),
    "huge chunks": (
        lambda f, other: f.create_dataset("char_embed", SHAPE, "f4", chunks=(10**5, 10**4), maxshape=(None, None)),
        "never written whole",
    ),
    "huge": (lambda f, other: f.create_dataset("char_embed", (10**9, 10**6), "f4"), "never written whole"),
    "compressed": (
        lambda f, other: f.create_dataset("char_embed", data=VALUES * 0, compression="lzf"), "is filtered"
    ),
    "a group": (lambda f, other: f.create_group("char_embed"), "is no dataset"),
    "one number": (lambda f, other: f.update({"char_embed": np.float32(1)}), r"is \(\), expected \(261, 3\)"),
    "NaN": (lambda f, other: f.update({"char_embed": VALUES * np.float32("nan")}), "not finite"),
    "infinite as float32": (lambda f, other: f.update({"char_embed": np.full(SHAPE, 1e300)}), "not finite"),
    "many unknown names": (many_unknown, "not known: unknown0; .* and 1991 more"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_weights_are_refused(tmp_path, name):
    """Nothing but floating numbers that are stored and written in the file itself; messages of bounded length."""
    make, message = CRAFTED[name]
    other = tmp_path / "other.hdf5"  # what a crafted file would have read
    write_arrays(other, {"char_embed": VALUES, "W_cnn_0": VALUES})
    path = tmp_path / "weights.hdf5"
    with h5py.File(path, "w") as file:
        for array_name, array in random_weights(SMALL).items():
            if array_name != "char_embed":
                file[array_name] = array
        make(file, str(other))
    with pytest.raises(InputError, match=message) as error:
        read_weights(path, SMALL)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize("kind", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "chunked"])
def test_all_floating_numbers_are_read(tmp_path, kind):
    arrays = random_weights(SMALL)
    with h5py.File(tmp_path / "weights.hdf5", "w") as file:
        for name, array in arrays.items():
            options = {"chunks": True} if kind == "chunked" else {"dtype": kind}
            file.create_dataset(name, data=array, **options)
    embedding = read_weights(tmp_path / "weights.hdf5", SMALL)["words"]["embedding"]
    assert embedding.dtype == np.float32
    assert relative_error(embedding, arrays["char_embed"]) < (1e-3 if "f2" in kind else 1e-9)


def test_pipes_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "weights.hdf5")
    for path in (tmp_path / "weights.hdf5", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a regular file"):
            read_weights(path, SMALL)


def test_checksums_of_our_own_files(tmp_path):
    path = tmp_path / "weights.hdf5"
    for change, message in (
        (
            lambda file: file["char_embed"].__setitem__((0, 0), 0.5),
            "is damaged: the checksum is not that of char_embed",
        ),
        (lambda file: file["char_embed"].attrs.pop("crc32"), "is damaged: .* char_embed. Take another copy"),
        (lambda file: file["char_embed"].attrs.create("crc32", "text"), "is damaged: .* char_embed"),
        (lambda file: file.move("CNN_high_0/W_carry", "CNN_high_0/x"), "missing: CNN_high_0/W_carry"),
    ):
        write_arrays(path, random_weights(SMALL))
        read_weights(path, SMALL)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(InputError, match=message):
            read_weights(path, SMALL)
    write_arrays(path, random_weights(SMALL))
    with h5py.File(path, "r+") as file:  # two of one shape: only their names tell them apart
        for old, new in (("W_carry", "x"), ("W_transform", "W_carry"), ("x", "W_transform")):
            file["CNN_high_0"].move(old, new)
    with pytest.raises(InputError, match="is not that of CNN_high_0/W_transform, CNN_high_0/W_carry"):
        read_weights(path, SMALL)
    with h5py.File(path, "r+") as file:  # changed on purpose
        for name in random_weights(SMALL):
            del file[name].attrs["crc32"]
    read_weights(path, SMALL)


DAMAGE = """
import sys
from pathlib import Path
import jax, h5py
import numpy as np
from conftest import SMALL, random_weights
from elmo_jax.errors import InputError
from elmo_jax.weights import read_weights, write_arrays

def damaged(content, generator):
    data = bytearray(content)
    place, other = generator.integers(len(data), size=2).tolist()
    kind = generator.integers(5)
    if kind == 0:
        data[place] = generator.integers(256)
    elif kind == 1:
        for place in generator.integers(len(data), size=8):
            data[place] ^= 1 << int(generator.integers(8))
    elif kind == 2:
        length = int(generator.integers(64))
        data[place : place + length] = data[other : other + length]
    elif kind == 3:
        data[place : place + 8] = bytes([int(generator.choice([0, 255]))]) * 8
    else:
        del data[place:]
    return data

folder, count = Path(sys.argv[1]), int(sys.argv[2])
arrays = random_weights(SMALL)
write_arrays(folder / "own", arrays)
with h5py.File(folder / "plain", "w") as file:
    for name, array in arrays.items():
        file[name] = array
right = jax.tree.leaves(read_weights(folder / "own", SMALL))
ends = {"own": [0, 0], "plain": [0, 0]}
for seed in range(count):
    for kind in ends:
        path = folder / "weights.hdf5"
        path.write_bytes(damaged((folder / kind).read_bytes(), np.random.default_rng(seed)))
        print(kind, seed, file=sys.stderr, flush=True)
        try:
            leaves = jax.tree.leaves(read_weights(path, SMALL))
        except InputError as error:
            assert len(str(error)) < 2500
            ends[kind][1] += 1
        else:
            ends[kind][0] += 1
            assert all(np.isfinite(leaf).all() for leaf in leaves)
            if kind == "own":
                assert all((leaf == value).all() for leaf, value in zip(leaves, right, strict=True))
print(*ends["own"], *ends["plain"])
"""


@pytest.mark.parametrize("count", [50, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_files(tmp_path, count):
    """Every damage is one error, or our own file is read as it was, others as finite numbers: no crash, no wait."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", DAMAGE, str(tmp_path), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 + count / 5)
    assert done.returncode == 0, done.stderr[-2000:]
    own_read, own_refused, plain_read, plain_refused = map(int, done.stdout.split())
    assert own_read + own_refused == plain_read + plain_refused == count
    assert own_refused > plain_refused > count / 4  # changed values are noticed by their checksums alone


@pytest.mark.parametrize("model", [SMALL, WORDS], ids=["characters", "words"])
def test_safetensors_hold_a_whole_model(tmp_path, model):
    vocabulary = Vocabulary(["<S>", "</S>", "<UNK>", "the", "cat"])
    bilm = init_bilm(jax.random.key(0), model, len(vocabulary))
    softmax = {"weight": np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32), "bias": np.arange(5.0)}
    mixes = Mix([0.5, -1.0, 2.0], 0.5), Mix([1.0, 2.0, 3.0], 2.0, True)
    for kept in (mixes[:1], mixes):
        folder = tmp_path / f"{len(kept)}"
        write_model(folder, ModelFolder(model, bilm, vocabulary, softmax, mixes=kept), "safetensors")
        assert {file.suffix for file in folder.iterdir()} == {".json", ".txt", ".safetensors"}
        found = read_folder(folder, with_softmax=True)
        assert (found.model, found.vocabulary.words, found.mixes) == (model, vocabulary.words, kept)
        assert jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), found.parameters, bilm))
        assert all((found.softmax[name] == softmax[name]).all() for name in softmax)
    Mix([1.0, 2.0]).save(folder / "mix-000.json")
    with pytest.raises(InputError, match="a mix of 2 layers, its model has 3"):
        read_folder(folder)


def test_two_files_of_weights_in_a_folder(tmp_path):
    folder = write_random_model(tmp_path / "model", SMALL)
    read = read_folder(folder)
    write_model(folder, read, "safetensors")
    with pytest.raises(InputError, match=r"one is expected, there are: weights.hdf5, weights.safetensors"):
        read_folder(folder)
    (folder / "weights.hdf5").unlink()
    assert read_folder(folder).model == SMALL
    (folder / "weights.safetensors").rename(folder / "elmo_weights.safetensors")
    assert read_folder(folder).model == SMALL


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_floating_numbers_of_safetensors(tmp_path, kind):
    arrays = random_weights(SMALL)
    (tmp_path / "weights.safetensors").write_bytes(
        safetensors.numpy.save({name: array.astype(kind) for name, array in arrays.items()})
    )
    embedding = read_weights(tmp_path / "weights.safetensors", SMALL)["words"]["embedding"]
    assert embedding.dtype == np.float32
    assert (embedding == arrays["char_embed"].astype(kind).astype(np.float32)).all()


def stated(path, change):
    """The file with another header."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    values = json.loads(content[8 : 8 + size])
    change(values)
    header = json.dumps(values).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])


SAFETENSORS = {
    "larger than the file": (lambda v: v["char_embed"].update(data_offsets=[0, 10**12]), "not a whole safetensors"),
    "huge shape": (lambda v: v["char_embed"].update(shape=[10**9, 10**9]), "not a whole safetensors"),
    "another shape": (lambda v: v["char_embed"].update(shape=[3, 261]), r"char_embed is \(3, 261\), expected \(261"),
    "integers": (lambda v: v["char_embed"].update(dtype="I32"), "char_embed has numbers of type I32"),
    "another name": (lambda v: v.update(x=v.pop("char_embed")), r"missing: char_embed .*not known: x"),
    "overlapping": (lambda v: v.update(x=v["char_embed"]), "not a whole safetensors"),
    "no type": (lambda v: v["char_embed"].pop("dtype"), "not a whole safetensors"),
    "a type not known": (lambda v: v["char_embed"].update(dtype="F33"), "not a whole safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAFETENSORS)
def test_crafted_safetensors_are_refused(tmp_path, name):
    change, message = SAFETENSORS[name]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.numpy.save(random_weights(SMALL)))
    stated(path, change)
    with pytest.raises(InputError, match=message) as error:
        read_weights(path, SMALL)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_other_files_are_no_safetensors(tmp_path):
    arrays = random_weights(SMALL)
    whole = safetensors.numpy.save(arrays)
    header = (10**15).to_bytes(8, "little")
    for content in (b"", b"text", whole[:1000], whole[:-1], whole + b"x", header + whole[8:], b"\x89HDF\r\n\x1a\n"):
        (tmp_path / "weights.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="is not a whole safetensors file"):
            read_weights(tmp_path / "weights.safetensors", SMALL)
    arrays["CNN/b_cnn_1"] = arrays["CNN/b_cnn_1"].astype(np.float64) * 1e300
    (tmp_path / "weights.safetensors").write_bytes(safetensors.numpy.save(arrays))
    with pytest.raises(InputError, match=r"weights.safetensors: CNN/b_cnn_1 has values that are not finite"):
        read_weights(tmp_path / "weights.safetensors", SMALL)


def test_damaged_safetensors(tmp_path):
    """Every damage is one error, or other numbers, all finite: the format has no checksums."""
    whole, generator, refused = safetensors.numpy.save(random_weights(SMALL)), np.random.default_rng(0), 0
    for number in range(200):
        data = bytearray(whole)
        for place in generator.integers(len(data) if number % 2 else 2500, size=2):
            data[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "weights.safetensors").write_bytes(
            data if number % 5 else data[: int(generator.integers(len(data)))]
        )
        try:
            leaves = jax.tree.leaves(read_weights(tmp_path / "weights.safetensors", SMALL))
        except InputError:
            refused += 1
        else:
            assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert 50 < refused < 200


def published_names(folder):
    """A folder as downloaded."""
    names = {"options.json": "elmo_2x4096_options.json", "weights.hdf5": "elmo_2x4096_weights.hdf5"}
    for name, published in names.items():
        (folder / name).rename(folder / published)
    return folder


def test_a_folder_as_downloaded(tmp_path):
    folder = published_names(write_random_model(tmp_path / "model", SMALL))
    assert read_folder(folder).model == SMALL
    shutil.copy(folder / "elmo_2x4096_weights.hdf5", folder / "other_weights.hdf5")
    with pytest.raises(InputError, match=r"no file .*/weights.hdf5, .* elmo_2x4096_weights.hdf5, other_weights.hdf5"):
        read_folder(folder)
    (folder / "other_weights.hdf5").rename(folder / "weights.hdf5")  # the name that counts
    assert model_files(folder)[1] == folder / "weights.hdf5"


def test_models_that_are_not_there(tmp_path):
    folder = write_random_model(tmp_path / "model", SMALL)
    for path in (tmp_path / "original", folder / "weights.hdf5"):
        with pytest.raises(InputError, match=r"no folder.*; give a folder with .* or the name of a published model"):
            read_folder(path)
    with pytest.raises(InputError, match=r"https://example.org/elmo is a URL .* or the name of a published model"):
        read_folder("https://example.org/elmo")
    options, weights = folder / "options.json", folder / "weights.hdf5"
    with pytest.raises(InputError, match=r"no such file; .* the two files themselves"):
        read_model(options, folder / "no.hdf5")
    with pytest.raises(InputError, match=r"weights.hdf5 is an HDF5 file, not JSON; is it in the place of options.json"):
        read_model(weights, options)
    with pytest.raises(InputError, match=r"options.json is not a whole HDF5 file"):
        read_model(options, options)


def test_an_export_that_fails_leaves_the_model_that_was_there(tmp_path):
    vocabulary = Vocabulary(["<S>", "</S>", "<UNK>"])
    bilm = init_bilm(jax.random.key(0), SMALL)
    softmax = {"weight": np.ones((3, 7)), "bias": np.ones(3)}
    write_folder(tmp_path, SMALL, {"bilm": bilm, "softmax": softmax}, vocabulary)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 4
    other = dataclasses.replace(SMALL, activation="tanh")
    with pytest.raises(KeyError):
        write_folder(tmp_path, other, {"bilm": bilm, "softmax": {}}, Vocabulary([*vocabulary.words, "a"]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_words_need_a_vocabulary(tmp_path):
    folder = write_random_model(tmp_path, SMALL)
    options = json.loads((folder / "options.json").read_text())
    del options["char_cnn"]
    (folder / "options.json").write_text(json.dumps(options))
    assert read_options(folder / "options.json").input == "words"
    with pytest.raises(InputError, match=r"needs its vocab.txt"):
        read_folder(folder)


def test_published_fixtures_load(golden):
    for name in ("bilm_tf_fixture", "allennlp_fixture"):
        model = read_options(golden / name / "options.json")
        shapes = weight_shapes(model, 0)
        assert {n: a.shape for n, a in contents(golden / name / "lm_weights.hdf5").items()} == shapes
