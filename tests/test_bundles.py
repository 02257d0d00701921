"""bilm-tf's checkpoints. The golden ones were written by TensorFlow; crafted ones are put together here."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from conftest import relative_error, write_random_model

import elmo_jax
from elmo_jax.bundles import FOOTER, MAGIC, Bundle, crc32c, newest_checkpoint, variable_names, variable_shapes
from elmo_jax.config import ModelConfig, to_options
from elmo_jax.errors import InputError
from elmo_jax.folders import read_folder
from fuzz.bundle_writer import block, field, index, trailed, varint, write_bundle

ONE_LAYER = ModelConfig(
    character_dim=3,
    filters=((1, 4), (2, 6)),
    max_characters=12,
    cell_dim=11,
    projection_dim=7,
    highway_layers=0,
    layers=1,
)


def test_checksums():
    """Those of RFC 3720, and of lengths around those of the lanes, taken bit by bit."""
    assert [crc32c(bytes(32)), crc32c(b"\xff" * 32), crc32c(b"123456789")] == [0x8A9136AA, 0x62A8AB43, 0xE3069283]

    def plainly(data):
        value = 0xFFFFFFFF
        for byte in data:
            value ^= byte
            for _ in range(8):
                value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        return value ^ 0xFFFFFFFF

    data = np.random.default_rng(0).bytes(2000)
    for size in (0, 1, 2, 3, 4, 5, 127, 128, 129, 255, 256, 257, 1000, 1023, 2000):
        assert crc32c(data[:size]) == plainly(data[:size])


@pytest.mark.parametrize("trace", ["one_device", "two_devices"])
def test_every_array_that_tensorflow_saved(golden, trace):
    folder = golden / "training" / trace
    bundle, final = Bundle(folder / "tf_checkpoint"), dict(np.load(folder / "final.npz"))
    slots = dict(np.load(folder / "final_adagrad_accumulator.npz"))
    assert set(bundle) >= {f"lm/{name}" for name in final} | {f"lm/{name}/Adagrad" for name in slots}
    for name, array in final.items():
        assert (bundle.floats(f"lm/{name}") == array).all()
        assert (bundle.floats(f"lm/{name}/Adagrad") == slots[name]).all()


@pytest.mark.slow
def test_a_checkpoint_is_loaded_as_its_dump(golden, tmp_path):
    """From bilm-tf's folder, and from a .zip as NLPL has them."""
    source, vocabulary = golden / "training/one_device", golden / "training/text/a_vocab.txt"
    sentences = ["a lobster .", "the sea"]
    dumped = elmo_jax.load(source / "tf_checkpoint/options.json", source / "dumped_weights.hdf5").embed(sentences)
    folder = tmp_path / "model"
    shutil.copytree(source / "tf_checkpoint", folder)
    shutil.copy(vocabulary, folder / "vocab.txt")
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    for path in (source / "tf_checkpoint", folder, tmp_path / "model.zip"):
        for found, expected in zip(elmo_jax.load(path).embed(sentences), dumped, strict=True):
            assert relative_error(found, expected) < 1e-6
    softmax = read_folder(tmp_path / "model.zip", with_softmax=True).softmax
    assert (softmax["weight"] == np.load(source / "final.npz")["softmax/W"]).all()
    assert read_folder(source / "tf_checkpoint", with_softmax=True).softmax is None  # no vocabulary


def test_one_layer_without_highway(tmp_path):
    """bilm-tf's scopes are others with one layer; options may have 261 characters and no n_highway."""
    shapes = {name: shape for name, shape in variable_shapes(ONE_LAYER, 0).items() if "softmax" not in name}
    assert "RNN_0/rnn/lstm_cell/projection/kernel" in shapes
    generator = np.random.default_rng(0)
    arrays = {f"lm/{name}": generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    folder = write_bundle(tmp_path / "model", arrays)
    options = to_options(ONE_LAYER)
    options["char_cnn"]["n_characters"] = 261
    del options["char_cnn"]["n_highway"]
    (folder / "options.json").write_text(json.dumps(options))
    read = read_folder(folder)
    assert read.model == ONE_LAYER
    for name, (group, *path) in variable_names(ONE_LAYER).items():
        if group == "bilm":
            module, array = path
            assert (read.parameters[module][array] == arrays[f"lm/{name}"]).all()
    del arrays["lm/CNN/b_cnn_0"], arrays["lm/char_embed"]
    write_bundle(folder, arrays)
    with pytest.raises(InputError, match=r"missing: lm/char_embed \(261, 3\); missing: lm/CNN/b_cnn_0"):
        read_folder(folder)


def test_which_checkpoint(tmp_path):
    """The last part of what `checkpoint` names, wherever it was trained; without that file the only one."""
    for name in ("model.ckpt-10", "model.ckpt-20"):
        (tmp_path / f"{name}.index").touch()
    with pytest.raises(InputError, match=r"one file \*.index is expected, there are: model.ckpt-10.index, model"):
        newest_checkpoint(tmp_path)
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "/home/someone/model.ckpt-10"\nall_model_checkpoint_paths: "/tmp/model.ckpt-20"\n'
    )
    assert newest_checkpoint(tmp_path) == tmp_path / "model.ckpt-10"
    (tmp_path / "checkpoint").write_text("")
    (tmp_path / "model.ckpt-10.index").unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "model.ckpt-20"


ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}


def test_what_is_laid_out_here_is_read(tmp_path):
    bundle = Bundle(write_bundle(tmp_path, ARRAYS))
    assert {name: bundle[name].shape for name in bundle} == {"a": (2, 3), "b": (4,)}
    assert all((bundle.floats(name) == array).all() for name, array in ARRAYS.items())


CRAFTED = {
    "huge shape": ({"shape": field(2, field(1, 10**12))}, "an array of shape"),
    "huge shape and size": ({"shape": field(2, field(1, 10**12)), "size": 4 * 10**12}, "is damaged: a is not what"),
    "far away": ({"offset": 10**15}, "is damaged: a is not what was saved"),
    "beyond numbers": ({"offset": 2**65}, "is not the whole index"),
    "negative side": ({"shape": field(2, field(1, 2**64 - 1))}, "is not the whole index"),
    "text": ({"kind": 7}, "a has no floating numbers"),
    "integers": ({"kind": 3}, "a has no floating numbers"),
    "elsewhere": ({"offset": 4}, "is damaged: a is not what was saved"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_entries_are_refused(tmp_path, name):
    changed, message = CRAFTED[name]
    with pytest.raises(InputError, match=message) as error:
        Bundle(write_bundle(tmp_path, ARRAYS, **changed)).floats("a")
    assert str(tmp_path / "model.ckpt") in str(error.value)


def test_values_that_are_not_finite(tmp_path):
    with pytest.raises(InputError, match=r"a has values that are not finite"):
        Bundle(write_bundle(tmp_path, {"a": np.array([1, np.inf], np.float32)})).floats("a")


def looped() -> bytes:
    """A table whose blocks are one, again and again."""
    data = trailed(block({b"a": b""}))
    end = trailed(block({b"%04d" % number: varint(0) + varint(len(data) - 5) for number in range(1000)}))
    handle = varint(len(data)) + varint(len(end) - 5)
    return data + end + (varint(0) * 2 + handle).ljust(FOOTER - 8, b"\0") + MAGIC


INDEXES = {
    "empty": b"",
    "no table": bytes(100),
    "a long name": index({b"a" * 5000: b""}),
    "not in order": index({b"b": b"", b"a": b""}),
    "one block many times": looped(),
    "no entry": index({b"a": b"\xff" * 20}),
    "slices": index({b"a": field(1, 1) + field(7, b"x")}),
    "big-endian": index({b"": field(1, 1) + field(2, 1)}),
}


@pytest.mark.parametrize("name", INDEXES)
def test_crafted_indexes_are_refused(tmp_path, name):
    write_bundle(tmp_path, ARRAYS)
    (tmp_path / "model.ckpt.index").write_bytes(INDEXES[name])
    with pytest.raises(InputError, match=r"model.ckpt.index is not the whole index"):
        Bundle(tmp_path)


def test_damaged_checkpoints(tmp_path):
    """Every changed bit is noticed; what is cut off is an error."""
    write_bundle(tmp_path, ARRAYS)
    generator = np.random.default_rng(0)
    for file in (tmp_path / "model.ckpt.index", tmp_path / "model.ckpt.data-00000-of-00001"):
        content = file.read_bytes()
        for number in range(200):
            data, place = bytearray(content), int(generator.integers(len(content)))
            data[place] ^= 1 << (number % 8)
            file.write_bytes(data if number % 5 else data[:place])
            try:
                bundle = Bundle(tmp_path)
                arrays = {name: bundle.floats(name) for name in bundle}
            except InputError:
                continue
            assert arrays.keys() == ARRAYS.keys()  # a bit that says nothing: of the table's footer
            assert all((arrays[name] == array).all() for name, array in ARRAYS.items())
        file.write_bytes(content)


def test_weights_of_our_own_count_first(tmp_path):
    """A folder with both has been converted before."""
    folder = write_bundle(write_random_model(tmp_path / "model", ONE_LAYER), {})
    assert read_folder(folder).model == ONE_LAYER
