"""Parquet files that claim more than they hold."""

import numpy as np
import pytest

from elmo_jax import parquet_pages
from elmo_jax.errors import InputError
from elmo_jax.sources import read_input

arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


def varint(number: int) -> bytes:
    """Of a number in zigzag form."""
    number, result = 2 * number if number >= 0 else -2 * number - 1, b""
    while number > 127:
        number, result = number >> 7, result + bytes([128 | number & 127])
    return result + bytes([number])


def first_header(path) -> tuple[int, int, dict]:
    """Where the header of the file's first page begins and ends, and its fields."""
    chunk = parquet.read_metadata(path).row_group(0).column(0)
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    with path.open("rb") as raw:
        fields, length = parquet_pages._header(raw, at)
    return at, at + length, fields


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("words", [3, 10**6])
def test_what_arrow_writes_is_read(tmp_path, monkeypatch, version, compression, words):
    """With one page and with many, with a dictionary and with one that grew too large; headers of any length."""
    generator = np.random.default_rng(0)
    text = [[str(word) for word in generator.integers(words, size=generator.integers(9))] for _ in range(3000)]
    path = tmp_path / "text.parquet"
    options = {"compression": compression, "data_page_size": 2000, "dictionary_pagesize_limit": 5000}
    parquet.write_table(arrow.table({"tokens": text}), path, row_group_size=1300, data_page_version=version, **options)
    seen = []
    header = parquet_pages._header
    monkeypatch.setattr(parquet_pages, "HEADER", 4)
    monkeypatch.setattr(parquet_pages, "_header", lambda *given: seen.append(header(*given)) or seen[-1])
    assert list(read_input([str(path)])) == text
    metadata = parquet.read_metadata(path)
    values = sum(metadata.row_group(group).column(0).num_values for group in range(3))
    assert sum(parquet_pages._number(page, parquet_pages.DATA) for page, _ in seen) == values
    assert len(seen) > 6


def altered(tmp_path, text, kinds: tuple[int, ...], after: int) -> str:
    """A file of text of which one number in the header of the first page is `after`, which takes as many bytes."""
    path = tmp_path / "text.parquet"
    parquet.write_table(arrow.table({"tokens": text}), path, use_dictionary=parquet_pages.DICTIONARY in kinds)
    begin, end, before = first_header(path)
    for kind in kinds:
        before = before[kind]
    data = path.read_bytes()
    header = data[begin:end]
    assert header.count(varint(before)) == 1
    assert len(varint(after)) == len(varint(before))
    path.write_bytes(data[:begin] + header.replace(varint(before), varint(after)) + data[end:])
    return str(path)


NUMBERS, LETTERS = [[str(number) for number in range(5000)]] * 4, [["a" * 1_500_000]]


@pytest.mark.parametrize(
    ("text", "kinds", "after", "problem"),
    [
        # Of a run of equal values, which has no length in bytes, Arrow would make as many.
        (NUMBERS, (5, parquet_pages.NUMBER_OF_VALUES), 1_000_000, "more values than the 20000 of all"),
        (NUMBERS, (5, parquet_pages.NUMBER_OF_VALUES), -20_000, "has -20000 values"),
        (NUMBERS[:1], (parquet_pages.DICTIONARY, parquet_pages.NUMBER_OF_VALUES), -5000, "has -5000 values"),
        (LETTERS, (parquet_pages.UNCOMPRESSED,), 2**27 - 1, "would take 117,440,511 bytes of memory"),
        (LETTERS, (parquet_pages.UNCOMPRESSED,), -(2**27), "has no size"),
    ],
)
def test_a_page_that_claims_more_than_there_is(tmp_path, text, kinds, after, problem):
    path = altered(tmp_path, text, kinds, after)
    with pytest.raises(InputError, match=rf"text.parquet .*{problem}"):
        list(read_input([path]))


def test_a_dictionary_of_more_words_than_bytes(tmp_path):
    path = altered(tmp_path, [["a", "b", "c"]], (parquet_pages.DICTIONARY, parquet_pages.NUMBER_OF_VALUES), 60)
    with pytest.raises(InputError, match=r"text.parquet is no Parquet file .* more words than bytes"):
        list(read_input([path]))


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", "no header"),
        (b"\x15\x80", "no header"),
        (b"\x1b\x00", "field of kind 11"),
        (b"\x1c" * 20, "field of kind 12"),
        (b"\x15" + b"\xff" * 12, "more than 64 bits"),
    ],
)
def test_damaged_headers(tmp_path, header, problem):
    path = tmp_path / "page"
    path.write_bytes(header)
    with path.open("rb") as raw, pytest.raises(ValueError, match=problem):
        parquet_pages._header(raw, 0)
