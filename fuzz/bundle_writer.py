"""Checkpoints as TensorFlow lays them out, put together by hand: valid ones, and with anything wrong in them."""

import struct

import numpy as np

from elmo_jax.bundles import FOOTER, MAGIC, crc32c, masked


def varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def field(number: int, value) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def block(items: dict[bytes, bytes]) -> bytes:
    data = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in items.items())
    return data + struct.pack("<II", 0, 1)


def trailed(data: bytes) -> bytes:
    return data + b"\0" + masked(crc32c(data + b"\0")).to_bytes(4, "little")


def index(items: dict[bytes, bytes]) -> bytes:
    """A table with one block."""
    data, end = trailed(block(items)), trailed(block({b"z": varint(0) + varint(len(block(items)))}))
    handle = varint(len(data)) + varint(len(end) - 5)
    return data + end + (varint(0) * 2 + handle).ljust(FOOTER - 8, b"\0") + MAGIC


def entry(array: np.ndarray, place: int, **changed) -> bytes:
    """What the index says of an array of float32."""
    sides = b"".join(field(2, field(1, side)) for side in array.shape)
    numbers = {"kind": 1, "shape": sides, "offset": place, "size": array.nbytes} | changed
    numbers |= {"checksum": masked(crc32c(array.tobytes()))}
    start = (
        field(1, numbers["kind"]) + field(2, numbers["shape"]) + field(4, numbers["offset"]) + field(5, numbers["size"])
    )
    return start + varint(6 << 3 | 5) + numbers["checksum"].to_bytes(4, "little")


def write_bundle(folder, arrays, **changed):
    """A checkpoint as TensorFlow lays it out; `changed` is of every entry."""
    folder.mkdir(exist_ok=True)
    items, data = {b"": field(1, 1) + field(3, field(1, 1))}, b""
    for name, array in sorted(arrays.items()):
        items[name.encode()] = entry(array, len(data), **changed)
        data += array.tobytes()
    (folder / "model.ckpt.index").write_bytes(index(items))
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(data)
    return folder
