"""Tensors out of PyTorch's files and into them, without PyTorch: of a pickle nothing that it names is ever run."""

import contextlib
import io
import math
import mmap
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from elmo_jax.errors import InputError, brief
from elmo_jax.files import reading
from elmo_jax.hdf5 import finite_floats

# Operations of a pickle that are read; a model's takes some 40 for each tensor.
MOST_OPERATIONS = 1_000_000
STORAGES: dict[str, Any] = {
    "torch FloatStorage": np.float32,
    "torch DoubleStorage": np.float64,
    "torch HalfStorage": np.float16,
    "torch BFloat16Storage": ml_dtypes.bfloat16,
    "torch LongStorage": np.int64,
    "torch IntStorage": np.int32,
    "torch ByteStorage": np.uint8,
    "torch BoolStorage": np.bool_,
}
FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
# First number of files that torch.save wrote before 1.6, and the protocol that follows.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Opcodes of plain values, which are their own argument, and of what is as it is.
VALUES = {
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT", "FLOAT",
    "BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BINSTRING", "SHORT_BINSTRING", "STRING",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Name(NamedTuple):
    """A class or function that a pickle names."""

    name: str


class Storage(NamedTuple):
    """Numbers that tensors are views of: their type's name, their own, and how many they are."""

    kind: str
    key: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _storage(identity: Any) -> Storage:
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise InputError("it refers to something that is no storage of numbers")
    _, kind, key, _, count = identity[:5]
    if not isinstance(kind, Name) or not isinstance(key, str) or not _natural(count):
        raise InputError("it describes a storage wrongly")
    if identity[5:] not in ((), (None,)):
        raise InputError("it has a storage that is part of another, as PyTorch wrote before 0.4; save it with a newer")
    return Storage(kind.name, key, count)


def _tensor(arguments: tuple) -> Tensor:
    storage, offset, shape, strides = arguments[:4] if len(arguments) >= 4 else (None,) * 4
    sides = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 32
    if not isinstance(storage, Storage) or not sides or not all(map(_natural, (offset, *shape, *strides))):
        raise InputError("it describes a tensor wrongly")
    return Tensor(storage, offset, shape, strides)


def _reduced(function: Any, arguments: Any) -> Any:
    """What a call stands for: of the few that describe dictionaries and tensors."""
    name = function.name if isinstance(function, Name) else type(function).__name__
    if isinstance(arguments, tuple):
        if name == "collections OrderedDict" and not arguments:
            return {}
        if name in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor"):
            return _tensor(arguments)
        if name == "torch._utils _rebuild_parameter" and arguments and isinstance(arguments[0], Tensor):
            return arguments[0]
    raise InputError(f"it asks to run {brief(name, 80)}, and nothing in a file is run; save the state_dict() alone")


def read_pickle(file: BinaryIO | mmap.mmap) -> Any:
    """One pickle: numbers, texts, tuples, lists, dictionaries, names and tensors. The file is left at its end."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = marks.pop()
        items = stack[place:]
        del stack[place:]
        return items

    def put(items: list[Any]) -> None:
        if not isinstance(stack[-1], dict):
            raise InputError(f"it puts items into a {type(stack[-1]).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise InputError(f"a dictionary has a {type(key).__name__} as a key")
            stack[-1][key] = value

    def append(items: list[Any]) -> None:
        if not isinstance(stack[-1], list):
            raise InputError(f"it appends to a {type(stack[-1]).__name__}")
        stack[-1].extend(items)

    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if count == MOST_OPERATIONS:
            raise InputError(f"it has more than {MOST_OPERATIONS:,} operations; a model has far fewer")
        if marks and len(stack) < marks[-1]:
            raise InputError("it takes away more than it put")
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in TUPLES:
            items = tuple(stack[-TUPLES[name] :])
            if len(items) < TUPLES[name]:
                raise InputError("it takes away more than it put")
            stack[-TUPLES[name] :] = [items]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("SETITEMS", "APPENDS"):
            (put if name == "SETITEMS" else append)(since_mark())
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            put([key, value])
        elif name == "APPEND":
            append([stack.pop()])
        elif name == "GLOBAL":
            stack.append(Name(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(Name(f"{module} {attribute}" if {type(module), type(attribute)} == {str} else "?"))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_reduced(function, arguments))
        elif name == "BUILD":  # attributes of a state_dict, its _metadata
            stack.pop()
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise InputError(f"it has the operation {name}, which no file of tensors has")
    raise InputError("it ends early")


class TorchFile(Mapping):
    """The tensors of a file by name: descriptions with their shape; `floats` reads one."""

    def __init__(self, file: BinaryIO):
        self._archive, self._places, self._size = None, {}, os.fstat(file.fileno()).st_size
        if zipfile.is_zipfile(file):
            self._archive = zipfile.ZipFile(file)
            records = [name for name in self._archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(records) != 1:
                raise InputError(f"it is a zip file that has {len(records)} members data.pkl; PyTorch's have one")
            self._folder = records[0].removesuffix("data.pkl")
            if f"{self._folder}byteorder" in self._archive.namelist() and self._member("byteorder") != b"little":
                raise InputError("its numbers are big-endian; save it again on a machine of today")
            content = read_pickle(io.BytesIO(self._member("data.pkl")))
        else:
            # Of a mapped file no more can be read than there is, whatever a pickle says of its parts.
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self._mapped[:1] != b"\x80":
                raise InputError("it is neither a zip file nor a pickle, so not what torch.save writes")
            if (read_pickle(self._mapped), read_pickle(self._mapped)) != (MAGIC, PROTOCOL):
                raise InputError("it is a pickle that torch.save did not write")
            system = read_pickle(self._mapped)
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise InputError("its numbers are big-endian; save it again on a machine of today")
            content = read_pickle(self._mapped)
            self._find_storages(read_pickle(self._mapped), content)
        if not isinstance(content, dict):
            raise InputError(f"it holds a {type(content).__name__}, not the tensors of a state_dict()")
        self._tensors = {
            name: tensor for name, tensor in content.items() if isinstance(name, str) and isinstance(tensor, Tensor)
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _member(self, name: str) -> bytes:
        """A member of the zip file, which PyTorch never compresses: it cannot be larger than the file."""
        info = self._archive.getinfo(self._folder + name)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise InputError(f"{brief(info.filename, 80)} is compressed, which PyTorch does not write")
        if info.file_size > self._size:  # zipfile would take that much memory before it reads
            raise InputError(f"{brief(info.filename, 80)} is not whole: it would be larger than the file")
        return self._archive.read(info)

    def _find_storages(self, keys: Any, content: Any) -> None:
        """Where in a file of old the storages lie: their numbers follow the pickles, each after a count."""
        used = content.values() if isinstance(content, dict) else ()
        storages = {tensor.storage.key: tensor.storage for tensor in used if isinstance(tensor, Tensor)}
        place = self._mapped.tell()
        for key in keys if isinstance(keys, list) else ():
            kind = storages[key].kind if isinstance(key, str) and key in storages else None
            if kind not in STORAGES:
                label = key if isinstance(key, str) else type(key).__name__
                raise InputError(f"the storage {brief(label, 40)} has no known kind")
            self._places[key] = place + 8, int.from_bytes(self._mapped[place : place + 8], "little")
            place += 8 + self._places[key][1] * np.dtype(STORAGES[kind]).itemsize

    def floats(self, name: str) -> np.ndarray:
        """The tensor as float32; all must be finite."""
        storage, offset, shape, strides = self._tensors[name]
        kind = np.dtype(STORAGES.get(storage.kind, np.void))
        if kind not in FLOATS:
            raise InputError(f"{brief(name, 80)} is a {brief(storage.kind, 40)}, no floating numbers")
        size = math.prod(shape)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if size > storage.count or (size and last >= storage.count):
            raise InputError(f"{brief(name, 80)} {shape} is larger than its storage of {storage.count:,} numbers")
        stored = self._stored(storage, kind)
        numbers = np.frombuffer(stored, kind)
        view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, [stride * kind.itemsize for stride in strides])
        return finite_floats(name, np.array(view, order="C"))

    def _stored(self, storage: Storage, kind: np.dtype) -> bytes:
        """The bytes of a storage, as many as its numbers take."""
        if self._archive is not None:
            stored = self._member(f"data/{storage.key}")
        else:
            place, count = self._places[storage.key]
            stored = self._mapped[place : place + count * kind.itemsize]
        if len(stored) != storage.count * kind.itemsize:
            raise InputError(f"the storage {brief(storage.key, 40)} has {len(stored):,} bytes, not {storage.count:,}")
        return stored


@contextlib.contextmanager
def open_torch(path: str | os.PathLike) -> Iterator[TorchFile]:
    """Opens a file that torch.save wrote, a zip file or, before 1.6, pickles; whatever is wrong is an InputError."""
    with reading(path) as local, local.open("rb") as file:
        try:
            yield TorchFile(file)
        except MemoryError:
            raise
        except InputError as error:
            raise InputError(f"{os.fspath(path)}: {error}") from None
        except Exception as error:  # of damaged files zipfile and pickletools raise nearly everything
            raise InputError(f"{os.fspath(path)} is not a whole file of PyTorch ({brief(error)})") from error


def _plain(value: object) -> bytes:
    """Opcodes that push a number, a text or a tuple of them."""
    return pickletools.optimize(pickle.dumps(value, 2)).removeprefix(b"\x80\x02").removesuffix(b".")


def write_torch(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as float32 in the state_dict that PyTorch saved before 1.6, which every version reads."""
    empty = b"ccollections\nOrderedDict\n)R"
    state = [b"\x80\x02", empty, b"("]
    for number, (name, array) in enumerate(arrays.items()):
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        storage = (
            _plain("storage") + b"ctorch\nFloatStorage\n" + b"".join(map(_plain, (str(number), "cpu", array.size)))
        )
        view = b"".join(map(_plain, (0, array.shape, strides, False)))
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"NtQ" + view + empty + b"tR"
        state += [_plain(name), tensor]
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    keys = [str(number) for number in range(len(arrays))]
    with path.open("wb") as file:
        for value in (MAGIC, PROTOCOL, system):
            file.write(pickle.dumps(value, 2))
        file.write(b"".join([*state, b"u."]))
        file.write(pickle.dumps(keys, 2))
        for array in arrays.values():
            file.write(array.size.to_bytes(8, "little"))
            file.write(np.ascontiguousarray(array, "<f4"))
