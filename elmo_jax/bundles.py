"""Checkpoints of bilm-tf, which are TensorFlow's tensor bundles: an index of names and files of numbers.

Read without TensorFlow, as tensorflow/core/util/tensor_bundle and core/lib/io/table write them. The index is a table
of blocks: keys in order, each without what it shares with the one before; values are small protocol buffers.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from tqdm import tqdm

from elmo_jax.config import ModelConfig, from_options
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.files import read_json, reading
from elmo_jax.hdf5 import finite_floats
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import ModelFolder, misfits, weight_names, weight_shapes

MAGIC, FOOTER, TRAILER = bytes.fromhex("57fb808b247547db"), 48, 5
# Bytes of an index, and of a name in it; that of the largest models takes some 10,000.
LARGEST_INDEX, LONGEST_NAME = 1 << 24, 1000
# Numbers of types in tensorflow/core/framework/types.proto.
FLOATS: tuple[Any, ...] = ("<f4", "<f8", ml_dtypes.bfloat16, "<f2")
KINDS = dict(zip((1, 2, 14, 19), FLOATS, strict=True)) | {3: "<i4", 9: "<i8"}


class Entry(NamedTuple):
    """Where an array lies in its file of numbers, and the checksum of its bytes."""

    kind: Any
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


class Bundle(Mapping):
    """The arrays of a checkpoint by name: entries with their shape; `array` reads one.

    Whatever is wrong with the files is an InputError.
    """

    def __init__(self, folder: Path):
        self._prefix = newest_checkpoint(folder)
        self._entries: dict[str, Entry] = {}
        self._shards = 0
        path = f"{os.fspath(self._prefix)}.index"
        with reading(path) as local:
            try:
                if local.stat().st_size > LARGEST_INDEX:
                    raise ValueError(f"it is larger than {LARGEST_INDEX:,} bytes")
                for key, value in _table(local.read_bytes()):
                    if key:
                        self._entries[key.decode()] = _entry(value)
                    else:
                        self._shards = _header(value)
            except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
                raise InputError(f"{path} is not the whole index of a TensorFlow checkpoint ({brief(error)})") from None

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def array(self, name: str) -> np.ndarray:
        """An array as it is stored, whose checksum is right."""
        entry = self._entries[name]
        if entry.kind is None:
            raise InputError(f"{os.fspath(self._prefix)}: {brief(name, 80)} has numbers of an unknown type")
        path = f"{os.fspath(self._prefix)}.data-{entry.shard:05}-of-{self._shards:05}"
        with reading(path) as local, local.open("rb") as file:
            there = local.stat().st_size
            file.seek(min(entry.offset, there))
            data = file.read(min(entry.size, there))
        if len(data) != entry.size or masked(crc32c(data)) != entry.checksum:
            raise InputError(f"{path} is damaged: {brief(name, 80)} is not what was saved. Take another copy")
        return np.frombuffer(data, entry.kind).reshape(entry.shape)

    def floats(self, name: str) -> np.ndarray:
        """An array as float32; all must be finite."""
        if self._entries[name].kind not in FLOATS:
            raise InputError(f"{os.fspath(self._prefix)}: {brief(name, 80)} has no floating numbers")
        array = self.array(name)
        try:
            return finite_floats(name, array)
        except InputError as error:
            raise InputError(f"{os.fspath(self._prefix)}: {error}") from None


def newest_checkpoint(folder: Path) -> Path:
    """The path of a checkpoint without the ends of its files' names: the one that `checkpoint` names, or the only one.

    The file names it as it was called where it was trained, so its last part counts.
    """
    listing = folder / "checkpoint"
    found = (
        re.search(r'^model_checkpoint_path: "([^"\n]*)"', _text(listing), re.MULTILINE) if listing.exists() else None
    )
    if found is not None and found[1].rpartition("/")[2]:
        return folder / found[1].rpartition("/")[2]
    prefixes = sorted(folder.glob("*.index"))
    if len(prefixes) != 1:
        names = listed([brief(file.name, 80) for file in prefixes], ", ") or "none"
        raise InputError(
            f"{folder} has no whole TensorFlow checkpoint: one file *.index is expected, there are: {names}"
        )
    return folder / prefixes[0].name.removesuffix(".index")


def _text(path: Path) -> str:
    with reading(path) as local, local.open("rb") as file:
        return file.read(1 << 16).decode("utf-8", "replace")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits in each byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return value, place
    raise ValueError("a number is too long")


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys, in order, and values of a block."""
    block, trailer = data[offset : offset + size], data[offset + size : offset + size + TRAILER]
    if (
        len(trailer) != TRAILER
        or trailer[0]
        or masked(crc32c(block + trailer[:1])) != int.from_bytes(trailer[1:], "little")
    ):
        raise ValueError("a block of it is damaged or compressed")
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        before, key = key, key[:shared] + block[place : place + own]
        if len(key) > LONGEST_NAME or key < before:
            raise ValueError("a name in it is too long or not in order")
        yield key, block[place + own : place + own + length]
        place += own + length


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table."""
    footer = data[-FOOTER:]
    if len(footer) != FOOTER or not footer.endswith(MAGIC):
        raise ValueError("it does not end as one")
    place = 0
    for _ in range(2):  # past the handle of blocks about blocks
        _, place = _varint(footer, place)
    end = 0
    for _, handle in _block(data, *_handle(footer[place:])):
        offset, size = _handle(handle)
        if offset < end:
            raise ValueError("its blocks do not follow one another")
        end = offset + size
        yield from _block(data, offset, size)


def _handle(data: bytes) -> tuple[int, int]:
    """Offset and size of a block."""
    offset, place = _varint(data, 0)
    return offset, _varint(data, place)[0]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protocol buffer's fields."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        if tag & 7 == 0:
            value, place = _varint(data, place)
        elif tag & 7 in (1, 5):
            size = 8 if tag & 7 == 1 else 4
            value, place = int.from_bytes(data[place : place + size], "little"), place + size
        elif tag & 7 == 2:
            size, place = _varint(data, place)
            value, place = data[place : place + size], place + size
        else:
            raise ValueError("an entry is of an unknown kind")
        yield tag >> 3, value


def _header(data: bytes) -> int:
    """Number of the files of numbers."""
    fields = dict(_fields(data))
    if fields.get(2):
        raise ValueError("its numbers are big-endian")
    return fields.get(1, 0)


def _entry(data: bytes) -> Entry:
    fields: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 7:
            raise ValueError("an array is saved in slices")
        fields[number] = value
    sides = [dict(_fields(value)).get(1, 0) for number, value in _fields(fields.get(2, b"")) if number == 2]
    entry = Entry(KINDS.get(fields[1]), tuple(sides), *(fields.get(number, 0) for number in (3, 4, 5, 6)))
    if len(sides) > 32 or any(not 0 <= number < 2**62 for number in (*sides, *entry[2:])):
        raise ValueError("a number is too large")
    if entry.kind is not None and math.prod(sides) * np.dtype(entry.kind).itemsize != entry.size:
        raise ValueError(f"an array of shape {entry.shape} has {entry.size:,} bytes")
    return entry


def _rounds(values: np.ndarray, count: int) -> np.ndarray:
    """What so many zero bits do to registers of a CRC-32C (Castagnoli, reflected)."""
    for _ in range(count):
        values = (values >> 1) ^ np.where(values & 1, np.uint32(0x82F63B78), np.uint32(0))
    return values


EACH_BIT = np.arange(32, dtype=np.uint32)
TWO_BYTES = _rounds(np.arange(1 << 16, dtype=np.uint32), 16)


def _apply(operator: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A linear operator, what it makes of each bit [32], of registers [N]."""
    return np.bitwise_xor.reduce(np.where((values[:, None] >> EACH_BIT) & 1, operator, np.uint32(0)), axis=1)


def _zeros(count: int) -> np.ndarray:
    """The operator of so many zero bytes."""
    result = np.uint32(1) << EACH_BIT
    power = _rounds(result, 8)
    while count:
        if count & 1:
            result = _apply(power, result)
        power, count = _apply(power, power), count >> 1
    return result


def crc32c(data: bytes) -> int:
    """CRC-32C, in many lanes at once: zeros before the data change nothing, and lanes are joined in pairs."""
    lanes = 1 << max(0, min(15, len(data).bit_length() - 8))
    length = -(-len(data) // (2 * lanes)) * 2
    padded = np.zeros(lanes * length, np.uint8)
    padded[len(padded) - len(data) :] = np.frombuffer(data, np.uint8)
    values = np.zeros(lanes, np.uint32)
    for column in padded.view("<u2").reshape(lanes, -1).T:
        values = TWO_BYTES[(values ^ column) & 0xFFFF] ^ (values >> 16)
    operator = _zeros(length)
    while len(values) > 1:
        values = _apply(operator, values[::2]) ^ values[1::2]
        operator = _apply(operator, operator)
    begun = _apply(_zeros(len(data)), np.array([0xFFFFFFFF], np.uint32))
    return int(values[0] ^ begun[0]) ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """A checksum as TensorFlow stores it."""
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def variable_names(model: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Name of every variable in bilm-tf's checkpoints (without `lm/`) → path in {"bilm", "softmax"} parameters."""
    names: dict[str, tuple[str, ...]] = {}
    for name, path in weight_names(model).items():
        variable = name
        if name.startswith("RNN_"):
            variable = name.replace("/RNN/MultiRNNCell/Cell", "/rnn/multi_rnn_cell/cell_")
            variable = variable.replace("LSTMCell/W_0", "lstm_cell/kernel").replace("LSTMCell/B", "lstm_cell/bias")
            variable = variable.replace("LSTMCell/W_P_0", "lstm_cell/projection/kernel")
            if model.layers == 1:
                variable = variable.replace("multi_rnn_cell/cell_0/", "")
        names[variable] = ("bilm", *path)
    return names | {"softmax/W": ("softmax", "weight"), "softmax/b": ("softmax", "bias")}


def tree_of(model: ModelConfig, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays by variable name → a tree like the parameters, of what is there of it."""
    tree: dict[str, Any] = {}
    for name, (group, *modules, leaf) in variable_names(model).items():
        if name in arrays:
            node = tree.setdefault(group, {})
            for module in modules:
                node = node.setdefault(module, {})
            node[leaf] = arrays[name]
    return tree


def variable_shapes(model: ModelConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Shape of every variable."""
    softmax = {"softmax/W": (vocabulary_size, model.projection_dim), "softmax/b": (vocabulary_size,)}
    shapes = weight_shapes(model, vocabulary_size)
    return dict(zip(variable_names(model), [*shapes.values(), *softmax.values()], strict=True))


def read_variables(bundle: Bundle, names: Mapping[str, tuple[int, ...]], source: Path) -> dict[str, np.ndarray]:
    """Variables of a checkpoint in float32, which must be there (after `lm/`) with these shapes."""
    if problems := misfits(bundle, {f"lm/{name}": shape for name, shape in names.items()}):
        raise InputError(f"the checkpoint in {source} does not fit its options.json: {listed(problems)}")
    shown = tqdm(names, "reading the checkpoint", delay=2, leave=False, unit=" arrays")
    return {name: bundle.floats(f"lm/{name}") for name in shown}


def read_checkpoint(folder: Path, with_softmax: bool = False) -> ModelFolder:
    """The model in a folder with options.json, the newest checkpoint and, if there, vocab.txt.

    A softmax needs the vocabulary, and one of its own: bilm-tf may have shared it with the table of words.
    """
    options = read_json(folder / "options.json")
    model = from_options(options, str(folder / "options.json"))
    vocabulary = Vocabulary.load(folder / "vocab.txt") if (folder / "vocab.txt").exists() else None
    if model.input == "words" and vocabulary is None:
        raise InputError(f"{folder / 'options.json'} has no char_cnn: the model reads words and needs its vocab.txt")
    bundle = Bundle(folder)
    shapes = variable_shapes(model, len(vocabulary or ()))
    if not with_softmax or vocabulary is None or "lm/softmax/W" not in bundle:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("softmax/")}
    tree = tree_of(model, read_variables(bundle, shapes, folder))
    return ModelFolder(model, tree["bilm"], vocabulary, tree.get("softmax"))
