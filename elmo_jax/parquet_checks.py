"""What Parquet files say of their own sizes, checked before Arrow believes it.

Arrow takes memory for as many values and bytes as a file claims to hold, and a few bytes can claim anything; where it
is asked what a damaged footer says of a column, it ends the process. Names are those of parquet.thrift.
"""

import os
from typing import Any, BinaryIO, NamedTuple

from elmo_jax.errors import InputError

MAGIC = b"PAR1"  # how a Parquet file begins, and ends
MOST_EXPANDED = 1000  # bytes of memory of a byte of a Parquet file
VALUE = 8  # bytes of memory of a value, at the least
FREE = 2**24  # bytes that every part of a file may take, however short it is
HEADER = 2**12  # bytes that are read for the header of a page, and again twice as many where it is longer
DEEPEST = 16  # structs and lists within one another

# Kinds of fields in Thrift's compact protocol.
TRUE, FALSE, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12
# Fields that are read, by their numbers; within structs, and lists of them, those of theirs. Of a footer its groups of
# rows, of a group its columns and number of rows, of a column the file that it is in, and its metadata.
ROW_GROUPS, COLUMNS, NUM_ROWS, FILE_PATH, META_DATA = 4, 1, 3, 1, 3
PATH, NUM_VALUES, TOTAL_UNCOMPRESSED, TOTAL_COMPRESSED, DATA_OFFSET, DICTIONARY_OFFSET = 3, 5, 6, 7, 9, 11
COLUMN_SIZES = NUM_VALUES, TOTAL_UNCOMPRESSED, TOTAL_COMPRESSED
OF_COLUMN = {key: {} for key in (PATH, *COLUMN_SIZES, DATA_OFFSET, DICTIONARY_OFFSET)}
FOOTER = {ROW_GROUPS: {COLUMNS: {FILE_PATH: {}, META_DATA: OF_COLUMN}, NUM_ROWS: {}}}
UNCOMPRESSED, COMPRESSED, DICTIONARY, DATA, PAGE_VALUES = 2, 3, 7, (5, 8), 1
PAGE = {UNCOMPRESSED: {}, COMPRESSED: {}, **{kind: {PAGE_VALUES: {}} for kind in (DICTIONARY, *DATA)}}


class Chunk(NamedTuple):
    """A column of a row group: its name, numbers of values and of bytes, the byte where its pages begin."""

    column: str
    values: int
    uncompressed: int
    compressed: int
    begin: int


class RowGroup(NamedTuple):
    """A group of rows: how many, and its columns."""

    rows: int
    chunks: list[Chunk]


def read_row_groups(raw: BinaryIO, path: str | os.PathLike) -> list[RowGroup]:
    """What a file's footer says. ValueError if it is damaged.

    InputError if its columns take very much more memory than they have bytes. `path` names the file in errors.
    """
    size = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, size - 8))
    end = raw.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != MAGIC or length > size - 8:
        raise ValueError("it does not end as Parquet files do")
    raw.seek(size - 8 - length)
    try:
        footer, _ = _struct(raw.read(length), 0, FOOTER)
    except IndexError:
        raise ValueError("its footer is not whole") from None
    groups = [_row_group(group) for group in _list(footer, ROW_GROUPS, dict)]
    for chunk in (chunk for group in groups for chunk in group.chunks):
        if chunk.begin + chunk.compressed > size:
            raise ValueError(f"its column {chunk.column} ends after the file")
        # Equal values take next to nothing in the file, and are counted nevertheless.
        memory = max(chunk.uncompressed - FREE, VALUE * chunk.values - 4 * FREE)
        _check_expansion(path, memory, chunk.compressed)
    return groups


def check_pages(raw: BinaryIO, group: RowGroup, path: str | os.PathLike, column: str | None = None) -> None:
    """Walks through the headers of a row group's pages, of a column or of all. Errors are those of `read_row_groups`.

    It leaves the file at any place.
    """
    for chunk in group.chunks:
        if column is None or chunk.column == column:
            _check_chunk(raw, chunk, path)


def _check_chunk(raw: BinaryIO, chunk: Chunk, path: str | os.PathLike) -> None:
    at, values, end = chunk.begin, 0, chunk.begin + chunk.compressed
    while values < chunk.values and at < end:
        page, length = _header(raw, at)
        uncompressed, compressed = (_number(page, key) for key in (UNCOMPRESSED, COMPRESSED))
        _check_expansion(path, uncompressed - FREE, compressed)
        values += sum(_number(_struct_of(page, kind), PAGE_VALUES) for kind in DATA if kind in page)
        if values > chunk.values:
            raise ValueError(f"the pages of {chunk.column} have more values than the {chunk.values} of all")
        if DICTIONARY in page and _number(_struct_of(page, DICTIONARY), PAGE_VALUES) > uncompressed:
            raise ValueError(f"the dictionary of {chunk.column} has more words than bytes")
        at += length + compressed


def _check_expansion(path: str | os.PathLike, size: int, of: int) -> None:
    """Refuses so many bytes of memory for so many in the file."""
    if size > MOST_EXPANDED * max(1, of):
        raise InputError(
            f"{path} would take {size:,} bytes of memory or more for {of:,} in the file; write it again, in smaller "
            "groups of rows"
        )


def _row_group(group: dict[int, Any]) -> RowGroup:
    rows, chunks = _number(group, NUM_ROWS), [_chunk(column) for column in _list(group, COLUMNS, dict)]
    if rows > min((chunk.values for chunk in chunks), default=0):
        raise ValueError(f"it has more rows than values, {rows}")
    return RowGroup(rows, chunks)


def _chunk(column: dict[int, Any]) -> Chunk:
    about = _struct_of(column, META_DATA)
    names = _list(about, PATH, bytes)
    if column.get(FILE_PATH) or not names:
        raise ValueError("it has a column in another file, or one without a name")
    begin, dictionary = _number(about, DATA_OFFSET), about.get(DICTIONARY_OFFSET)
    if isinstance(dictionary, int) and 0 < dictionary < begin:
        begin = dictionary
    return Chunk(names[0].decode(), *(_number(about, key) for key in COLUMN_SIZES), begin)


def _list(fields: dict[int, Any], key: int, kind: type) -> list[Any]:
    found = fields.get(key, [])
    if not isinstance(found, list) or not all(isinstance(value, kind) for value in found):
        raise ValueError(f"it has something else where a list must be (field {key})")
    return found


def _struct_of(fields: dict[int, Any], key: int) -> dict[int, Any]:
    if not isinstance(found := fields.get(key), dict):
        raise ValueError(f"it has something else where a struct must be (field {key})")
    return found


def _number(fields: dict[int, Any], key: int) -> int:
    if not isinstance(found := fields.get(key), int) or found < 0:
        raise ValueError(f"it has {found} for a number of rows, values or bytes")
    return found


def _header(raw: BinaryIO, at: int) -> tuple[dict[int, Any], int]:
    """The fields of the header of a page that begins at a byte of the file, and its length in bytes."""
    wanted = HEADER
    while True:
        raw.seek(at)
        data = raw.read(wanted)
        try:
            return _struct(data, 0, PAGE)
        except IndexError:
            if len(data) < wanted or wanted > FREE:
                raise ValueError(f"the page at byte {at} has no header") from None
        wanted *= 2


def _struct(data: bytes, at: int, wanted: dict[int, dict], depth: int = 0) -> tuple[dict[int, Any], int]:
    """Of a struct the wanted fields, and where it ends. IndexError where it goes on after the data."""
    fields, number = {}, 0
    while head := data[at]:
        at += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        if kind in (TRUE, FALSE):  # without a byte of its own
            continue
        value, at = _value(data, at, kind, wanted.get(number, {}), depth + 1)
        if number in wanted:
            fields[number] = value
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, wanted: dict[int, dict], depth: int) -> tuple[Any, int]:
    """A value of some kind, and where it ends."""
    if kind in INTEGERS:
        return _integer(data, at)
    if kind in (BYTE, DOUBLE, BINARY):
        size, at = _unsigned(data, at) if kind == BINARY else (1 if kind == BYTE else 8, at)
        if at + size > len(data):
            raise IndexError
        return data[at : at + size], at + size
    if depth > DEEPEST or kind not in (STRUCT, *LISTS):
        raise ValueError(f"it has a field of kind {kind}, {depth} deep")
    if kind == STRUCT:
        return _struct(data, at, wanted, depth)
    count, kind, at = data[at] >> 4, data[at] & 15, at + 1
    if count == 15:
        count, at = _unsigned(data, at)
    values = []
    for _ in range(count):
        value, at = _value(data, at, BYTE if kind in (TRUE, FALSE) else kind, wanted, depth + 1)
        values.append(value)
    return values, at


def _integer(data: bytes, at: int) -> tuple[int, int]:
    number, at = _unsigned(data, at)
    return number >> 1 ^ -(number & 1), at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("it has a number of more than 64 bits")
