"""Parquet files that claim more than they hold."""

import re

import numpy as np
import pytest

from elmo_jax import parquet_checks
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
        fields, length = parquet_checks._header(raw, at)
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
    header = parquet_checks._header
    monkeypatch.setattr(parquet_checks, "HEADER", 4)
    monkeypatch.setattr(parquet_checks, "_header", lambda *given: seen.append(header(*given)) or seen[-1])
    assert list(read_input([str(path)])) == text
    metadata = parquet.read_metadata(path)
    values = sum(metadata.row_group(group).column(0).num_values for group in range(3))
    counts = [
        page[kind][parquet_checks.PAGE_VALUES] for page, _ in seen for kind in parquet_checks.DATA if kind in page
    ]
    assert sum(counts) == values
    assert len(seen) > 6


def altered(tmp_path, text, kinds: tuple[int, ...], after: int) -> str:
    """A file of text of which one number in the header of the first page is `after`, which takes as many bytes."""
    path = tmp_path / "text.parquet"
    parquet.write_table(arrow.table({"tokens": text}), path, use_dictionary=parquet_checks.DICTIONARY in kinds)
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
        (NUMBERS, (5, parquet_checks.PAGE_VALUES), 1_000_000, "more values than the 20000 of all"),
        (NUMBERS, (5, parquet_checks.PAGE_VALUES), -20_000, "it has -20000 for a number of"),
        (NUMBERS[:1], (parquet_checks.DICTIONARY, parquet_checks.PAGE_VALUES), -5000, "it has -5000 for a number of"),
        (LETTERS, (parquet_checks.UNCOMPRESSED,), 2**27 - 1, "would take 117,440,511 bytes of memory"),
        (LETTERS, (parquet_checks.UNCOMPRESSED,), -(2**27), "it has -134217728 for a number of"),
    ],
)
def test_a_page_that_claims_more_than_there_is(tmp_path, text, kinds, after, problem):
    path = altered(tmp_path, text, kinds, after)
    with pytest.raises(InputError, match=rf"text.parquet .*{problem}"):
        list(read_input([path]))


def test_a_dictionary_of_more_words_than_bytes(tmp_path):
    path = altered(tmp_path, [["a", "b", "c"]], (parquet_checks.DICTIONARY, parquet_checks.PAGE_VALUES), 60)
    with pytest.raises(InputError, match=r"text.parquet is no Parquet file .* more words than bytes"):
        list(read_input([path]))


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", "no header"),
        (b"\x15\x80", "no header"),
        (b"\x17" + b"a" * 7, "no header"),
        (b"\x18\x05abcd", "no header"),
        (b"\x1b\x00", "field of kind 11"),
        (b"\x1c" * 20, "field of kind 12, 17 deep"),
        (b"\x15" + b"\xff" * 12, "more than 64 bits"),
    ],
)
def test_damaged_headers(tmp_path, header, problem):
    path = tmp_path / "page"
    path.write_bytes(header)
    with path.open("rb") as raw, pytest.raises(ValueError, match=problem):
        parquet_checks._header(raw, 0)


def struct(fields: dict) -> bytes:
    """A struct, in Thrift's compact protocol, of integers, bytes, structs (dicts) and lists of these."""
    result, before = b"", 0
    for number, value in fields.items():
        kind, content = content_of(value)
        result += bytes([(number - before) << 4 | kind]) + content
        before = number
    return result + b"\0"


def content_of(value) -> tuple[int, bytes]:
    if isinstance(value, int):
        return 6, varint(value)
    if isinstance(value, bytes):
        return 8, bytes([len(value)]) + value
    if isinstance(value, dict):
        return 12, struct(value)
    contents = [content_of(each) for each in value]
    return 9, bytes([len(value) << 4 | (contents[0][0] if contents else 8)]) + b"".join(each[1] for each in contents)


COLUMN = {3: [b"tokens"], 5: 9, 6: 90, 7: 90, 9: 4}


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ([{1: [{3: COLUMN}], 3: 9}], None),
        ([{1: [{3: COLUMN | {11: 2}}], 3: 9}], None),
        ([{1: [{3: COLUMN}], 3: -1}], "it has -1 for a number of rows"),
        ([{1: [{3: COLUMN}], 3: 10}], "more rows than values, 10"),
        ([{1: [], 3: 1}], "more rows than values, 1"),
        ([{1: [{3: COLUMN | {7: 970}}], 3: 9}], "column tokens ends after the file"),
        ([{1: [{3: COLUMN | {5: -9}}], 3: 9}], "it has -9 for a number of"),
        ([{1: [{3: COLUMN | {5: 20_000_000}}], 3: 9}], "would take 92,891,136 bytes of memory or more for 90 in"),
        ([{1: [{3: COLUMN | {6: 20_000_000}}], 3: 9}], "would take 3,222,784 bytes of memory or more for 90 in"),
        ([{1: [{1: b"other", 3: COLUMN}], 3: 9}], "a column in another file"),
        ([{1: [{3: COLUMN | {3: []}}], 3: 9}], "one without a name"),
        ([{1: [{3: COLUMN | {3: [b"\xff"]}}], 3: 9}], "can't decode"),
        ([{1: [{3: COLUMN | {3: [5, 6]}}], 3: 9}], "where a list must be"),
        ([{1: [{3: 5}], 3: 9}], "where a struct must be"),
        ([{1: 5, 3: 9}], "where a list must be"),
        ([5], "where a list must be"),
    ],
)
def test_footers(tmp_path, groups, problem):
    """Numbers of more than a file can hold, and other things than there must be."""
    path, footer = tmp_path / "text.parquet", struct({1: 2, 2: [{4: b"schema"}], 3: 9, 4: groups})
    path.write_bytes(b"PAR1" + b"?" * 90 + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with path.open("rb") as raw:
        if problem is None:
            ((rows, (chunk,)),) = parquet_checks.read_row_groups(raw, path)
            assert (rows, chunk) == (9, ("tokens", 9, 90, 90, groups[0][1][0][3].get(11, 4)))
            return
        with pytest.raises(ValueError, match=re.escape(problem)):
            parquet_checks.read_row_groups(raw, path)


@pytest.mark.parametrize("cut", [1, 9, 20, 60])
def test_cut_footers(tmp_path, cut):
    path = tmp_path / "text.parquet"
    parquet.write_table(arrow.table({"tokens": [["a"]]}), path)
    data = path.read_bytes()
    path.write_bytes(data[:-8][:-cut] + (int.from_bytes(data[-8:-4], "little") - cut).to_bytes(4, "little") + b"PAR1")
    with path.open("rb") as raw, pytest.raises(ValueError, match="its footer is not whole"):
        parquet_checks.read_row_groups(raw, path)
    path.write_bytes(data[:cut])
    with path.open("rb") as raw, pytest.raises(ValueError, match="does not end as Parquet files do"):
        parquet_checks.read_row_groups(raw, path)


def test_a_column_of_which_arrow_must_not_be_asked(tmp_path):
    """Where the levels of its type are not as many as its statistics count, the process would end."""
    path = tmp_path / "text.parquet"
    parquet.write_table(arrow.table({"tokens": [["a", "b"], ["c"], [], ["d"]]}), path)
    optional = b"5\x02\x18\x06tokens"
    data = path.read_bytes()
    assert data.count(optional) == 1
    path.write_bytes(data.replace(optional, b"5\0\x18\x06tokens"))
    with pytest.raises(InputError, match=r"is no Parquet file that can be read .*histogram size mismatch"):
        list(read_input([str(path)]))
