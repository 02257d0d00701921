"""PyTorch's files, read as data. The golden ones were written by PyTorch (tests/data/make_allennlp.py)."""

import io
import pickle
import tarfile
import time
import zipfile

import numpy as np
import pytest
from conftest import ROOT

from elmo_jax.errors import InputError
from elmo_jax.pickles import MAGIC, PROTOCOL, Name, Tensor, open_torch, read_pickle, write_torch

ARCHIVE = ROOT / "tests/data/allennlp/two_mixes.tar.gz"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file that torch.save wrote."""
    path = tmp_path_factory.mktemp("torch") / "weights.th"
    with tarfile.open(ARCHIVE) as archive:
        path.write_bytes(archive.extractfile("weights.th").read())
    return path


class Call:
    """Pickles as a call of a function in a module."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Writer(pickle._Pickler):
    """Pickles calls and storages as PyTorch does, whatever they are."""

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Name):
            module, _, name = value.name.rpartition(" ")
            self.write(b"c" + module.encode() + b"\n" + name.encode() + b"\n")
        elif isinstance(value, Call):
            self.save(Name(f"{value.module} {value.name}"))
            self.save(value.arguments)
            self.write(b"R")
        else:
            super().save(value, save_persistent_id)

    def persistent_id(self, value):
        return value[1] if isinstance(value, tuple) and value[:1] == ("persistent",) else None


def pickled(value) -> bytes:
    file = io.BytesIO()
    Writer(file, 2).dump(value)
    return file.getvalue()


def tensor(count, offset, shape, strides, kind="FloatStorage", key="0", extra=()):
    storage = ("persistent", ("storage", Name(f"torch {kind}"), key, "cpu", count, *extra))
    return Call("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, None)


def zipped(path, content, storages, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(content))
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array if isinstance(array, bytes) else array.tobytes())
        for name, member in members.items():
            archive.writestr(f"archive/{name}", member)
    return path


def legacy(path, content, storages):
    """As torch.save wrote before 1.6."""
    pickles = [MAGIC, PROTOCOL, {"little_endian": True, "protocol_version": 1001}, content, list(storages)]
    data = b"".join(map(pickled, pickles))
    data += b"".join(np.int64(len(array)).tobytes() + array.tobytes() for array in storages.values())
    path.write_bytes(data)
    return path


def test_both_forms_of_files(tmp_path, written):
    with open_torch(written) as file:
        arrays = {name: file.floats(name) for name in file}
        assert {name: file[name].shape for name in file} == {name: array.shape for name, array in arrays.items()}
    assert len(arrays) == 35
    assert arrays["reader.layers._elmo_lstm._token_embedder._char_embedding_weights"].shape == (262, 3)
    flat = np.arange(12, dtype=np.float32)
    content = {"a": tensor(12, 1, (2, 3), (1, 4)), "n": tensor(1, 0, (), (), "LongStorage", "1"), "no": "tensor"}
    expected = np.array([[1, 5, 9], [2, 6, 10]], np.float32)
    storages = {"0": flat, "1": np.array([7])}
    older = {name: value if name == "no" else with_view(value) for name, value in content.items()}
    for path in (zipped(tmp_path / "new", content, storages), legacy(tmp_path / "old", older, storages)):
        with open_torch(path) as file:
            assert set(file) == {"a", "n"}
            assert (file.floats("a") == expected).all()
            with pytest.raises(InputError, match="n is a torch LongStorage, no floating numbers"):
                file.floats("n")


def with_view(value):
    """Files of old say of each storage whether it is part of another."""
    _, identity = value.arguments[0]
    return Call(value.module, value.name, ("persistent", (*identity, None)), *value.arguments[1:])


def test_what_is_written_is_read(tmp_path):
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1, np.float32)}
    write_torch(tmp_path / "file", arrays)
    with open_torch(tmp_path / "file") as file:
        assert all((file.floats(name) == array).all() for name, array in arrays.items())


FOUR = np.arange(4, dtype=np.float32)
CRAFTED = {
    "a function to run": (Call("os", "system", "true"), "it asks to run os system, and nothing in a file is run"),
    "another function": (Call("builtins", "eval", "1"), "asks to run builtins eval"),
    "a call in a tensor": (Call("torch._utils", "_rebuild_tensor_v2", Call("os", "system", ""), 0, (), ()), "os sys"),
    "no storage": (Call("torch._utils", "_rebuild_tensor_v2", 1, 0, (4,), (1,)), "describes a tensor wrongly"),
    "few arguments": (Call("torch._utils", "_rebuild_tensor_v2"), "describes a tensor wrongly"),
    "a larger view": (tensor(4, 0, (5,), (1,)), "larger than its storage of 4 numbers"),
    "beyond the end": (tensor(4, 2, (3,), (1,)), "larger than its storage of 4 numbers"),
    "repeated": (tensor(4, 0, (10**6, 10**6), (0, 0)), "larger than its storage of 4 numbers"),
    "negative": (tensor(4, -1, (2,), (1,)), "describes a tensor wrongly"),
    "fractions": (tensor(4, 0, (2.0,), (1,)), "describes a tensor wrongly"),
    "more than is there": (tensor(10**12, 0, (10**12,), (1,)), "has 16 bytes, not 1,000,000,000,000"),
    "another key": (tensor(4, 0, (4,), (1,), key="../x"), "is not a whole file of PyTorch"),
    "a view of a storage": (tensor(4, 0, (4,), (1,), extra=(("1", 0, 2),)), "part of another"),
    "a class of its own": (tensor(4, 0, (4,), (1,), "Other"), "no floating numbers"),
    "integers": (tensor(4, 0, (4,), (1,), "IntStorage"), "no floating numbers"),
    "a bytearray": (Call("builtins", "bytearray", "4"), "asks to run builtins bytearray"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused(tmp_path, name):
    value, message = CRAFTED[name]
    path = zipped(tmp_path / "weights.th", {"a": value}, {"0": FOUR})
    with pytest.raises(InputError, match=message) as error, open_torch(path) as file:
        file.floats("a")
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500


def test_values_that_are_not_finite(tmp_path):
    path = zipped(tmp_path / "weights.th", {"a": tensor(4, 0, (4,), (1,))}, {"0": FOUR * np.float32("nan")})
    with pytest.raises(InputError, match=r"weights.th: a has values that are not finite"), open_torch(path) as file:
        file.floats("a")


FILES = {
    "empty": (b"", "is not a whole file of PyTorch"),
    "text": (b"weights", "neither a zip file nor a pickle"),
    "another pickle": (pickled([1, 2]) * 2, "a pickle that torch.save did not write"),
    "early end": (b"\x80\x02", "is not a whole file of PyTorch"),
    "big-endian": (b"".join(map(pickled, [MAGIC, PROTOCOL, {"little_endian": False}])), "big-endian"),
    "a list": (b"".join(map(pickled, [MAGIC, PROTOCOL, {"little_endian": True}, [1], []])), "holds a list"),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_refused(tmp_path, name):
    content, message = FILES[name]
    (tmp_path / "weights.th").write_bytes(content)
    with pytest.raises(InputError, match=message), open_torch(tmp_path / "weights.th"):
        pass


def test_a_member_that_is_larger_than_the_file(tmp_path):
    """It is not read, for which as much memory would be taken first."""
    path = zipped(tmp_path / "weights.th", {"a": tensor(4, 0, (4,), (1,))}, {"0": FOUR})
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\1\2")
    content[place + 20 : place + 28] = (2**31 - 1).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(InputError, match="data/0 is not whole"), open_torch(path) as file:
        file.floats("a")


def test_compressed_and_other_zip_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled({"a" * 1000: 1}))
    with pytest.raises(InputError, match=r"archive/data.pkl is compressed"), open_torch(tmp_path / "packed"):
        pass
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        archive.writestr("a", "")
    with pytest.raises(InputError, match=r"has 0 members data.pkl"), open_torch(tmp_path / "other"):
        pass
    big = zipped(tmp_path / "big", {}, {}, byteorder=b"big")
    with pytest.raises(InputError, match="big-endian"), open_torch(big):
        pass


PICKLES = {
    "tuples of tuples, as a key": (b"\x80\x02}" + b")" + b"2\x86" * 60 + b"K\x01s.", "the operation DUP|as a key"),
    "a key that takes for ever to hash": (b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.", "a tuple as a key"),
    "a place of the memo": (b"\x80\x02K\x01r\xff\xff\xff\x7f.", None),
    "a long text": (b"\x80\x02X\xff\xff\xff\x7fa", "expected 2147483647 bytes|not"),
    "nothing to take": (b"\x80\x020.", "POP"),
    "no mark": (b"\x80\x02t.", "pop from empty"),
    "items of a number": (b"\x80\x02K\x01(K\x01K\x02u.", "puts items into a int"),
    "half an item": (b"\x80\x02}(K\x01u.", "shorter"),
    "instances": (b"\x80\x02(ios\nsystem\n.", "the operation INST"),
    "an object": (b"\x80\x02cos\nsystem\n)\x81.", "the operation NEWOBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "the operation EXT1"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_crafted_pickles_are_cheap(name):
    """Neither time nor memory of what a pickle says of itself."""
    data, message = PICKLES[name]
    begin = time.perf_counter()
    if message is None:
        assert read_pickle(io.BytesIO(data)) == 1
    else:
        with pytest.raises((InputError, ValueError, IndexError, KeyError), match=message):
            read_pickle(io.BytesIO(data))
    assert time.perf_counter() - begin < 1


def test_operations_are_counted(monkeypatch):
    monkeypatch.setattr("elmo_jax.pickles.MOST_OPERATIONS", 100)
    with pytest.raises(InputError, match="more than 100 operations"):
        read_pickle(io.BytesIO(b"\x80\x02" + b"]" * 200 + b"."))


def test_damaged_files(tmp_path, written):
    """Every damage of the pickle is one error, or does not matter."""
    content, generator, errors = written.read_bytes(), np.random.default_rng(0), 0
    for number in range(300):
        data = bytearray(content)
        for place in generator.integers(len(data) if number % 2 else 7000, size=3):
            data[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "damaged").write_bytes(data if number % 5 else data[: int(generator.integers(len(data)))])
        try:
            with open_torch(tmp_path / "damaged") as file:
                assert all(isinstance(file[name], Tensor) for name in file)
                arrays = [file.floats(name) for name in file]
            assert all(np.isfinite(array).all() for array in arrays)
        except InputError:
            errors += 1
    assert errors > 150
