"""What Parquet files say of their own sizes, checked before Arrow believes it.

Arrow takes memory for as many values and bytes as a file claims to hold; a few bytes can claim anything.
"""

import os
from typing import Any, BinaryIO

from elmo_jax.errors import InputError

MOST_EXPANDED = 1000  # bytes of memory of a byte of a Parquet file
VALUE = 8  # bytes of memory of a value, at the least
FREE = 2**24  # bytes that every part of a file may take, however short it is
HEADER = 2**12  # bytes that are read for the header of a page, and again twice as many where it is longer
# Kinds of fields, and numbers of fields of a page's header, in parquet.thrift and Thrift's compact protocol.
TRUE, FALSE, BYTE, INTEGERS, DOUBLE, BINARY, STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, 12
UNCOMPRESSED, COMPRESSED, DICTIONARY, DATA = 2, 3, 7, (5, 8)
NUMBER_OF_VALUES = 1


def check_metadata(metadata: Any, path: str | os.PathLike) -> None:
    """InputError for a file whose metadata say that it takes very much more memory than it has bytes."""
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    for chunk in (group.column(number) for group in groups for number in range(group.num_columns)):
        # Equal values take next to nothing in the file, and are counted nevertheless.
        size = max(chunk.total_uncompressed_size - FREE, VALUE * chunk.num_values - 4 * FREE)
        _check_expansion(path, size, chunk.total_compressed_size)


def _check_expansion(path: str | os.PathLike, size: int, of: int) -> None:
    if size > MOST_EXPANDED * max(1, of):
        raise InputError(
            f"{path} would take {size:,} bytes of memory or more for {of:,} in the file; write it again, in smaller "
            "groups of rows"
        )


def check_pages(raw: BinaryIO, group: Any, path: str | os.PathLike, column: str | None = None) -> None:
    """Walks through the headers of a row group's pages. InputError as above; ValueError where they contradict it.

    raw     the file, which is left at any place
    group   the metadata of the group
    column  name of the column that will be read, by default all are
    """
    for chunk in (group.column(number) for number in range(group.num_columns)):
        if column is None or f"{chunk.path_in_schema}.".startswith(f"{column}."):
            _check_chunk(raw, chunk, path)


def _check_chunk(raw: BinaryIO, chunk: Any, path: str | os.PathLike) -> None:
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    values, end = 0, at + chunk.total_compressed_size
    while values < chunk.num_values and at < end:
        page, length = _header(raw, at)
        uncompressed, compressed = page.get(UNCOMPRESSED), page.get(COMPRESSED)
        if not (isinstance(uncompressed, int) and isinstance(compressed, int) and min(uncompressed, compressed) >= 0):
            raise ValueError(f"the page at byte {at} has no size")
        _check_expansion(path, uncompressed - FREE, compressed)
        values += _number(page, DATA)
        if values > chunk.num_values:
            raise ValueError(f"the pages of {chunk.path_in_schema} have more values than the {chunk.num_values} of all")
        if _number(page, (DICTIONARY,)) > uncompressed:
            raise ValueError(f"the dictionary of {chunk.path_in_schema} has more words than bytes")
        at += length + compressed


def _number(page: dict[int, Any], kinds: tuple[int, ...]) -> int:
    """How many values a page of one of these kinds has; 0 for another page."""
    number = sum(page[kind].get(NUMBER_OF_VALUES, 0) for kind in kinds if isinstance(page.get(kind), dict))
    if number < 0:
        raise ValueError(f"a page has {number} values")
    return number


def _header(raw: BinaryIO, at: int) -> tuple[dict[int, Any], int]:
    """The fields of the header at a byte of the file, and its length in bytes."""
    wanted = HEADER
    while True:
        raw.seek(at)
        data = raw.read(wanted)
        try:
            return _struct(data, 0)
        except IndexError:
            if len(data) < wanted or wanted > FREE:
                raise ValueError(f"the page at byte {at} has no header") from None
        wanted *= 2


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and where it ends. IndexError where it goes on after the data."""
    fields, number = {}, 0
    while head := data[at]:
        at += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        if kind in (TRUE, FALSE):
            fields[number] = kind == TRUE
        elif kind == BYTE:
            fields[number], at = data[at], at + 1
        elif kind in INTEGERS:
            fields[number], at = _integer(data, at)
        elif kind == DOUBLE:
            fields[number], at = data[at : at + 8], at + 8
        elif kind == BINARY:
            length, at = _unsigned(data, at)
            fields[number], at = data[at : at + length], at + length
        elif kind == STRUCT and depth < 8:
            fields[number], at = _struct(data, at, depth + 1)
        else:
            raise ValueError(f"the header of a page has a field of kind {kind}")
    return fields, at + 1


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
            raise ValueError("the header of a page has a number of more than 64 bits")
