import bz2
import gzip
import io
import json
import lzma
import re
import sys
import zipfile
import zlib

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import fails, same_file

from elmo_jax import commands, corpus, parquet_checks, sources
from elmo_jax.config import DataConfig
from elmo_jax.corpus import Corpus, cached, read_corpora, sentences
from elmo_jax.errors import InputError
from elmo_jax.sources import TextForm, find_files, read_input
from elmo_jax.vocabulary import Vocabulary

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_CHECKED = {zstd.CompressionParameter.checksum_flag: 1}
COMPRESS = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstd.compress(data, options=ZSTD_CHECKED),
}
COMPRESSED = [".gz", ".bz2", ".xz", ".zst"]
TEXT = [["the", "cat", "sat"], ["naïve", "猫", "🐈", "\0"], ["#", "one"], ["."], ["two", "words"]]
VOCABULARY = Vocabulary(["<S>", "</S>", "<UNK>", "the", "cat"])


def as_lines(text):
    return "".join(" ".join(tokens) + "\n" for tokens in text)


def as_conll(text):
    return "".join("".join(f"{n} {token} X O\n" for n, token in enumerate(tokens)) + "\n" for tokens in text)


def as_conllu(text):
    rows = lambda tokens: "".join(f"{n}\t{token}" + "\t_" * 8 + "\n" for n, token in enumerate(tokens, start=1))
    return "".join(f"# text = {' '.join(tokens)}\n{rows(tokens)}\n" for tokens in text)


def as_jsonl(text):
    return "".join(json.dumps({"id": n, "tokens": tokens}) + "\n" for n, tokens in enumerate(text))


WRITE = {"lines": as_lines, "conll": as_conll, "conllu": as_conllu, "jsonl": as_jsonl}
ENDS = {"lines": ".txt", "conll": ".conll", "conllu": ".conllu", "jsonl": ".jsonl"}


def write_table(path, column, text=TEXT, kind=None, group=2):
    table = pyarrow.table({"id": range(len(text)), column: pyarrow.array(text, kind)})
    pyarrow.parquet.write_table(table, path, row_group_size=group)


def everywhere(names, *form):
    """What is read, which is the same from every place on."""
    lines = read_input(names, *form)
    places, text = [lines.place()], []
    for tokens in lines:
        text.append(tokens)
        places.append(lines.place())
    assert [list(read_input(names, *form, begin=place)) for place in places] == [text[n:] for n in range(len(text) + 1)]
    return text


def test_files_and_globs(tmp_path):
    (tmp_path / "b.txt").write_text("the cat\n\nsat\n")
    with gzip.open(tmp_path / "a.gz", "wt") as file:
        file.write("on\u00a0the\tmat")
    assert [path.name for path in find_files([f"{tmp_path}/*"], "TEXT")] == ["a.gz", "b.txt"]
    text = list(sentences([f"{tmp_path}/*"], "TEXT"))
    assert text == [["on", "the", "mat"], ["the", "cat"], ["sat"]]
    assert everywhere([f"{tmp_path}/b.txt", f"{tmp_path}/a.gz"]) == [["the", "cat"], [], ["sat"], ["on", "the", "mat"]]
    (tmp_path / "b[1].txt").write_text("a name, no glob")
    assert list(read_input([f"{tmp_path}/b[1].txt"])) == [["a", "name,", "no", "glob"]]


def test_missing_files(tmp_path):
    with pytest.raises(InputError, match=r"--data.train: no file matches .*/\*.txt"):
        find_files([f"{tmp_path}/*.txt"], "--data.train")
    with pytest.raises(InputError, match=r"--data.train: there is no file .*/a.txt"):
        find_files([f"{tmp_path}/a.txt"], "--data.train")


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("form", WRITE)
def test_formats(tmp_path, form, compression):
    """By the name, and by --text_format where the name says nothing; from every place on; the size is the file's."""
    column = {"conll": "2"}.get(form)
    data = COMPRESS[compression](WRITE[form](TEXT).encode())
    path, other = tmp_path / f"text{ENDS[form]}{compression.upper()}", tmp_path / f"text.of.2024{compression}"
    path.write_bytes(data)
    other.write_bytes(data)
    assert everywhere([str(path)], None, column) == TEXT
    assert everywhere([str(path), str(other)], form, column) == TEXT + TEXT
    assert read_input([str(path)], form, column).sizes == [len(data)]


@pytest.mark.parametrize(
    ("column", "text", "kind"),
    [
        ("tokens", TEXT, None),
        ("tokens", TEXT, pyarrow.large_list(pyarrow.large_string())),
        ("tokens", TEXT, pyarrow.list_(pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))),
        ("text", [" ".join(tokens) for tokens in TEXT], None),
        ("text", ["a a", "", "a a"], pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
    ],
)
@pytest.mark.parametrize("records", [1, 3, 1024])
def test_parquet(tmp_path, monkeypatch, column, text, kind, records):
    monkeypatch.setattr(sources, "ROWS", records)
    path = str(tmp_path / "text.parquet")
    write_table(path, column, text, kind)
    expected = [tokens.split() if isinstance(tokens, str) else tokens for tokens in text]
    assert everywhere([path], None, None if column == "tokens" else column) == expected
    assert read_input([path], "parquet", column).sizes == [len(text)]


class Unbuffered(type(sources.as_path("/"))):
    """A path that opens as those of object stores do: its streams cannot be peeked into."""

    def open(self, mode):
        return open(self, mode, buffering=0)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.zst", "a.gz", "a.parquet"])
def test_streams_of_object_stores(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "find_files", lambda names, option: [Unbuffered(name) for name in names])
    monkeypatch.setattr(sources, "is_remote", lambda path: True)
    path = tmp_path / name
    if path.suffix == ".parquet":
        write_table(path, "tokens")
    else:
        text = as_jsonl(TEXT) if "jsonl" in name else as_lines(TEXT)
        path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](text.encode()))
    assert everywhere([str(path)]) == TEXT
    (source,) = read_input([str(path)]).sources
    assert source.version()[:2] == [path.stat().st_size, int(path.stat().st_mtime)]


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_what_a_compressed_file_may_be(tmp_path, suffix):
    path, compress = tmp_path / f"a{suffix}", COMPRESS[suffix]
    name = sources.COMPRESSIONS[suffix][0]
    whole = compress(b"the cat\n")
    path.write_bytes(whole + compress(b"") + compress(b"sat on\nthe mat"))  # several, one after the other
    assert everywhere([str(path)]) == [["the", "cat"], ["sat", "on"], ["the", "mat"]]
    for data, message in (
        (b"", f"is no {name} file, though its name ends with {suffix}: it is empty"),
        (b"the cat sat on the mat", f"is no {name} file, though its name ends with {suffix}; rename it"),
        (compress(b"the cat " * 99)[:-9], f"is not a whole {name} file"),
        (whole + b"the cat sat", f"is not a whole {name} file"),
        (whole[:12], f"is not a whole {name} file"),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError, match=re.escape(message)):
            list(read_input([str(path)]))
    (tmp_path / "a.txt").write_bytes(whole)
    other = next(other for other in COMPRESSED if other != suffix)
    (tmp_path / f"b{other}").write_bytes(whole)
    with pytest.raises(InputError, match=rf"a.txt holds {name} data; let its name end with {suffix}"):
        list(read_input([f"{tmp_path}/a.txt"]))
    with pytest.raises(InputError, match=rf"though its name ends with {other}: it holds {name} data"):
        list(read_input([f"{tmp_path}/b{other}"]))


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_damaged_compressed_files(tmp_path, suffix):
    """Each is one clear error, or has the same text: not all of a file's header counts."""
    lines = [[f"w{n}" for n in np.random.default_rng(seed).integers(99, size=9)] for seed in range(9)]
    whole = COMPRESS[suffix]("\n".join(map(" ".join, lines)).encode())
    path, refused = tmp_path / f"text{suffix}", 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        data = bytearray(whole)
        place = int(generator.integers(len(data)))
        if seed % 4 == 0:
            del data[place:]
        else:
            data[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        try:
            assert list(read_input([str(path)])) == lines
        except InputError as error:
            assert re.search(r"is not a whole \w+ file|is no \w+ file|is not UTF-8", str(error))  # noqa: PT017
            refused += 1
    assert refused > 170


def test_damaged_parquet_files(tmp_path):
    path, refused = tmp_path / "text.parquet", 0
    write_table(path, "tokens")
    whole = path.read_bytes()
    for seed in range(200):
        generator = np.random.default_rng(seed)
        data = bytearray(whole)
        place = int(generator.integers(len(data)))
        if seed % 4 == 0:
            del data[place:]
        else:
            data[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        try:
            list(read_input([str(path)]))
        except InputError as error:
            assert "text.parquet" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 50


def test_a_compressed_file_that_asks_for_much_memory_is_refused(tmp_path):
    small = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**16}])
    data = bytearray(small.compress(b"the cat") + small.flush())
    header = bytearray(data[12:24])  # of the block: size, flags, filter id, size of properties, dictionary, ..., CRC-32
    assert header[2:4] == b"\x21\x01"
    header[4] = 36  # 1 GiB
    header[8:] = zlib.crc32(header[:8]).to_bytes(4, "little")
    data[12:24] = header
    (tmp_path / "a.xz").write_bytes(data)
    with pytest.raises(InputError, match=r"a.xz is not a whole xz file .*[Mm]emory"):
        list(read_input([f"{tmp_path}/a.xz"]))


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.jsonl", "a.conll"])
def test_a_line_without_end_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, "LONGEST", 2000)
    line = {"a.jsonl": b'{"tokens": ["%s"]}'}.get(name, b"%s 0") % (b"a" * 1980)
    for content, fits in ((line + b"\n", True), (line + b" " * 99, False)):
        data = b"a b\n" * (name == "a.txt") + content
        (tmp_path / name).write_bytes(gzip.compress(data) if name == "a.gz" else data)
        text = read_input([f"{tmp_path}/{name}"], None, "1" if name == "a.conll" else None)
        if fits:
            assert list(text)[-1][0] == "a" * 1980
        else:
            with pytest.raises(InputError, match="is longer than 0 MiB; divide it into sentences"):
                list(text)


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("a.json", (), "what .*a.json holds is not clear from .json; give --text_format jsonl, or lines"),
        ("a.csv.gz", (), "is not clear from .csv; give --text_format lines"),
        ("a.conllup", (), "is not clear from .conllup; give --text_format conllu"),
        ("a.tar.gz", (), "is no text by its name; unpack it"),
        ("a.zip", ("lines",), "is no text by its name; unpack it"),
        ("a.parquet.gz", (), "is compressed, Parquet must not be"),
        ("a.txt", (None, "tokens"), "is lines of text, which have no column tokens"),
        ("a.conll", (), "which column of .*a.conll the tokens are in is not known; give --text_column with its number"),
        ("a.conll", (None, "FORM"), "cannot be 'FORM'; give --text_column with its number, from 1$"),
        ("a.conllu", (None, "WORD"), "cannot be 'WORD'; give .* number, from 1, or of ID, FORM, LEMMA"),
        ("a.conll", (None, "0"), "cannot be '0'"),
        ("a.parquet", (), "a.parquet is no Parquet file that can be read"),
        ("-", ("parquet",), "Parquet cannot be read from standard input"),
        ("-", ("conll",), "which column of - the tokens are in is not known"),
        ("tfds:a/train", ("lines",), "tfds:a/train has a format of its own"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path, monkeypatch, name, form, message):
    monkeypatch.chdir(tmp_path)
    if name.startswith("a."):
        (tmp_path / name).write_text("the cat")
    with pytest.raises(InputError, match=message):
        read_input([name], *form)


def test_the_advice_names_the_option_of_training(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match=r"give --data.text_format jsonl"):
        read_corpora(DataConfig((f"{tmp_path}/a.json",)), None)


def test_parquet_is_not_read_as_lines(tmp_path):
    write_table(tmp_path / "a.txt", "tokens")
    with pytest.raises(InputError, match=r"holds Parquet data, no text; let its name end with .parquet"):
        list(read_input([f"{tmp_path}/a.txt"]))
    (tmp_path / "b.txt").write_text("PAR1 and PARE are words")
    assert list(map(len, read_input([f"{tmp_path}/b.txt"]))) == [5]


def read(tmp_path, content, *form):
    (tmp_path / "text").write_bytes(content)
    return everywhere([f"{tmp_path}/text"], *form)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a b\r\n\r\nc\r\n", [["a", "b"], [], ["c"]]),
        (b"a\tb\rc\n", [["a", "b", "c"]]),  # only a line feed ends a line
        (b"a\xc2\x85b\xe2\x80\xa8c\x0bd\n", [["a", "b", "c", "d"]]),
        (b"a\0 \0 b\n", [["a\0", "\0", "b"]]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", [["a"], ["\ufeffb"]]),
        (b"\n \n\t\n", [[], [], []]),
        (b"", []),
    ],
)
def test_what_lines_are(tmp_path, content, text):
    assert read(tmp_path, content) == text


def test_a_byte_order_mark_begins_any_format(tmp_path):
    for name in WRITE:
        content = WRITE[name](TEXT).replace("\n", "\r\n").encode("utf-8-sig")
        assert read(tmp_path, content, name, "2" if name == "conll" else None) == TEXT
    with pytest.raises(InputError, match="is text in UTF-16; convert it: iconv -f UTF-16 -t UTF-8"):
        read(tmp_path, "the cat".encode("utf-16"))


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a", "-"])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf", b" \n"])
def test_json_lines_that_nobody_has_called_so(tmp_path, monkeypatch, name, begin):
    """They are not taken for lines of text, unless it is asked for."""
    content = begin + b'{"tokens": ["the", "cat"]}\n'
    source = name
    if name == "-":
        give(monkeypatch, content)
    else:
        source = str(tmp_path / name)
        (tmp_path / name).write_bytes(gzip.compress(content) if name == "a.gz" else content)
    with pytest.raises(InputError, match="begins as an object of JSON does; give text_format jsonl, or lines"):
        list(read_input([source]))
    if name == "-":
        give(monkeypatch, content)
    assert list(read_input([source], "lines"))[-1] == ['{"tokens":', '["the",', '"cat"]}']


def test_archives_are_no_text(tmp_path):
    path = tmp_path / "report.txt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", "the cat")
    with pytest.raises(InputError, match=r"report.txt is an archive \(.zip, .docx, ...\), no text; unpack it"):
        list(read_input([str(path)]))


@pytest.mark.parametrize("name", WRITE)
def test_text_that_is_not_utf8(tmp_path, name):
    content = WRITE[name]([["ok"], ["café"]]).replace("\\u00e9", "é").encode("latin-1")
    with pytest.raises(InputError, match=r"text, line \d, is not UTF-8 .* at byte \d+\); convert the file"):
        read(tmp_path, content, name, "2" if name == "conll" else None)


@pytest.mark.parametrize(
    ("content", "field", "text"),
    [
        (b'{"tokens": ["a", "b"]}\r\n\r\n{"tokens": []}', None, [["a", "b"], [], []]),
        (b'{"text": "a\\tb\\u0000\\nc", "tokens": 3}\n{"text": ""}', "text", [["a", "b\0", "c"], []]),
        (b'{"tokens": ["\\ud83d\\udc08", "\\u732b"]}', None, [["🐈", "猫"]]),
        (b'{"a": {"tokens": 1}, "b c": ["x"]}', "b c", [["x"]]),
    ],
)
def test_what_json_lines_are(tmp_path, content, field, text):
    assert read(tmp_path, content, "jsonl", field) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"tokens": ["a"]}\n{"tokens": ["a"', "line 2, is not JSON .*; give an object a line"),
        (b"[" * 10_000, "line 1, is not JSON"),
        (b'["a", "b"]', "line 1, has a list, no object; name the field"),
        (b"30", "line 1, has a int, no object; name the field"),
        (b'{"text": "a", "id": 3}', "has no field tokens, but text, id; name the field of the tokens with text_column"),
        (b"{}", "has no field tokens, but none"),
        (b'{"tokens": ["a", 3]}', "line 1: tokens is .*; it must be a list of tokens, or a text"),
        (b'{"tokens": {"a": "b"}}', "it must be a list of tokens, or a text"),
        (b'{"tokens": null}', "tokens is None; it must be a list"),
        (b'{"tokens": ["a", ""]}', "the token '' is empty or has white space inside"),
        (b'{"tokens": ["a b"]}', "the token 'a b' is empty or has white space inside"),
        (b'{"tokens": ["a", "b\\n"]}', "is empty or has white space inside"),
        (b'{"tokens": ["x", "half \\ud83d"]}', "the token .* is empty or has white space"),
        (
            b'{"tokens": ["x", "half\\ud83d"]}',
            r"line 1: tokens has '\\ud83d', half of a character \(",
        ),
        (b'{"tokens": "x \\udc08"}', r"tokens has '\\udc08', half of a character"),
    ],
)
def test_what_json_lines_must_be(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, content, "jsonl")


CONLL = """-DOCSTART- -X- O O

#begin document (a); part 000
# sent_id = 1
# NN B-NP
5% CD O
-DOCSTART- -X- O O
a\tDT\tO
bc\tNN\tO


d DT O x
#end document
"""
CONLLU = """# newdoc
# sent_id = 1
1-2\tdon't\t_\t_
1\tdo\tdo\tAUX
2\tn't\tnot\tPART
2.1\tgone\tgo\tVERB
3\t10 000\t10 000\tNUM

# text = #
1\t#\tnumber\tSYM
"""


def test_what_conll_columns_are(tmp_path):
    assert read(tmp_path, CONLL.encode(), "conll", "1") == [["#", "5%"], ["a", "bc"], ["d"]]
    assert read(tmp_path, CONLL.encode(), "conll", "2") == [["NN", "CD"], ["DT", "NN"], ["DT"]]
    assert read(tmp_path, CONLLU.encode(), "conllu") == [["do", "n't", "10_000"], ["#"]]
    assert read(tmp_path, CONLLU.encode(), "conllu", "LEMMA") == [["do", "not", "10_000"], ["number"]]
    assert read(tmp_path, CONLLU.encode(), "conllu", "4") == [["AUX", "PART", "NUM"], ["SYM"]]
    plus = "# global.columns = ID LEMMA FORM UPOS\n" + CONLLU
    assert read(tmp_path, plus.encode(), "conllu", "3")[1] == ["number"]
    with pytest.raises(InputError, match="column 2 of its columns ID LEMMA FORM UPOS is not FORM; give the number"):
        read(tmp_path, plus.encode(), "conllu")


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        (
            "conll",
            "a\tb\nc\td e\n",
            "sentence that ends before line 3: the token 'd e' is empty or has white space inside",
        ),
        ("conll", "a\n", "line 1, has 1 columns, no column 2"),
        ("conll", "a b\n# text of d\n", "line 2, has 4 columns, the line before 2"),
        ("conll", "a\t\t\n", "the token '' is empty"),
        ("conllu", "a b c\n", "line 1, has 1 columns, no column 2"),
        ("conllu", "1\ta\nx\tb\n", "line 2, begins with 'x', no ID of CoNLL-U"),
        ("conllu", "1\t\t\n", "the token '' is empty"),
        ("conll", "a b\n" * 9, r"line 9: a sentence of 9 tokens; are blank lines missing\?"),
    ],
)
def test_what_conll_columns_must_be(tmp_path, monkeypatch, form, content, message):
    monkeypatch.setattr(sources, "MOST_TOKENS", 8)
    with pytest.raises(InputError, match=message):
        read(tmp_path, content.encode(), form, "2" if form == "conll" else None)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ([["a"]], "text", "text.parquet has no column tokens, but id, text; give --text_column one of them"),
        ([3], "tokens", "column tokens of .* holds int64; it must be of lists of tokens"),
        ([[["a"]]], "tokens", "it must be of lists of tokens"),
        ([["a"], None], "tokens", "text.parquet, row 2: tokens is None; it must be a list of tokens, or a text"),
        ([["a"], ["b", None]], "tokens", "row 2: tokens is .*; it must be a list of tokens"),
        ([["a"], ["b", "c d"]], "tokens", "row 2: the token 'c d' is empty or has white space inside"),
    ],
)
def test_what_parquet_must_be(tmp_path, text, column, message):
    write_table(tmp_path / "text.parquet", column, text)
    with pytest.raises(InputError, match=message):
        list(read_input([f"{tmp_path}/text.parquet"]))


def test_parquet_that_expands_without_bound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST", 2**16)
    write_table(tmp_path / "text.parquet", "tokens", ["a" * 2**20], group=1)  # snappy makes it 20 times smaller
    with pytest.raises(InputError, match="is longer than 0 MiB"):
        list(read_input([f"{tmp_path}/text.parquet"]))
    monkeypatch.setattr(parquet_checks, "FREE", 2**16)
    monkeypatch.setattr(parquet_checks, "MOST_EXPANDED", 10)
    with pytest.raises(InputError, match=r"would take \d+,\d+ bytes of memory or more for \d+,\d+ in the file; write"):
        list(read_input([f"{tmp_path}/text.parquet"]))


def test_parquet_of_equal_values(tmp_path):
    """Of which a few hundred bytes are as many as the file says."""
    tokens = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(10**7, np.int8)), ["a"])
    row = pyarrow.ListArray.from_arrays(pyarrow.array([0, 10**7], pyarrow.int32()), tokens)
    pyarrow.parquet.write_table(pyarrow.table({"tokens": row}), tmp_path / "text.parquet")
    assert (tmp_path / "text.parquet").stat().st_size < 2000
    with pytest.raises(InputError, match="bytes of memory or more for"):
        next(iter(read_input([f"{tmp_path}/text.parquet"])))


def test_parquet_text_that_is_not_utf8(tmp_path):
    text = pyarrow.StringArray.from_buffers(2, pyarrow.py_buffer(np.int32([0, 1, 5])), pyarrow.py_buffer(b"acaf\xe9"))
    write_table(tmp_path / "text.parquet", "tokens", text)
    with pytest.raises(InputError, match=r"text.parquet is no Parquet file that can be read .*utf-8"):
        list(read_input([f"{tmp_path}/text.parquet"]))


def give(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_standard_input(monkeypatch):
    give(monkeypatch, b"the cat\n\nsat")
    lines = read_input(["-"])
    assert lines.sizes == [None]
    assert list(lines) == [["the", "cat"], [], ["sat"]]
    give(monkeypatch, b"the cat\n\nsat")
    assert list(read_input(["-"], begin=sources.Place(0, 8, 1))) == [[], ["sat"]]
    give(monkeypatch, as_conllu(TEXT).encode())
    assert list(read_input(["-"], "conllu")) == TEXT
    give(monkeypatch, gzip.compress(b"the cat"))
    with pytest.raises(InputError, match="standard input holds gzip data; decompress it first, with zcat"):
        list(read_input(["-"]))


def test_closed_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of `<&-`
    with pytest.raises(InputError, match="standard input, which is closed"):
        read_input(["-"])


def test_training_on_standard_input(tmp_path, monkeypatch, capsys):
    VOCABULARY.save(tmp_path / "vocab.txt")
    give(monkeypatch, b"the cat\n\nsat")
    train, _ = read_corpora(DataConfig(("-",), vocab=str(tmp_path / "vocab.txt")), None)
    assert train.types.tolist() == [0, 3, 4, 1, 0, 5, 1]
    assert "standard input can be read only once: nothing is kept of it" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--data.train - can be read only once, .*; give a vocabulary"):
        read_corpora(DataConfig(("-",)), None)


def test_the_bar_ends_with_the_size(tmp_path, monkeypatch):
    shown = []

    class Bar(sources.tqdm):
        def close(self):
            if not self.disable:  # it is closed twice
                shown.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(sources, "tqdm", Bar)
    (tmp_path / "a.txt").write_text("the cat\n" * 700)
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"the cat\n" * 700))
    write_table(tmp_path / "c.parquet", "tokens")
    size = (tmp_path / "a.txt").stat().st_size + (tmp_path / "b.gz").stat().st_size
    names = [f"{tmp_path}/{name}" for name in ("a.txt", "b.gz", "c.parquet")]
    assert len(list(read_input(names[:2], progress="reading"))) == 1400
    assert len(list(read_input(names[:2], progress="reading", begin=sources.Place(1, 8, 1)))) == 699
    assert len(list(read_input(names[2:], progress="reading"))) == 5
    assert shown == [(size, size)] * 2 + [(5, 5)]


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("name", ["a.conll.gz", "a.conllu.zst", "a.jsonl.bz2", "a.txt.xz", "a.parquet"])
def test_an_interrupted_cache_of_any_format_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch, name):
    generator = np.random.default_rng(0)
    text = [[f"w{n}" for n in generator.integers(60, size=generator.integers(1, 9))] for _ in range(200)]
    path, form = tmp_path / name, TextForm(None, "2" if "conll." in name else None)
    if path.suffix == ".parquet":
        write_table(path, "tokens", text, group=31)
    else:
        kind = next(kind for kind, end in ENDS.items() if path.stem.endswith(end))
        path.write_bytes(COMPRESS[path.suffix](WRITE[kind](text).encode()))
    monkeypatch.setattr(corpus, "SAVED_EVERY", 40)
    whole, folder = cached((str(path),), "TEXT", VOCABULARY, str(tmp_path / "whole"), form)
    assert whole.fingerprint() == Corpus(text, VOCABULARY).fingerprint()
    counted = sources.Lines._counted

    for count in (0, 90):

        def some(self, lines, *arguments, count=count):
            for number, line in enumerate(counted(self, lines, *arguments)):
                if number > count:
                    raise Interrupted
                yield line

        with monkeypatch.context() as patches:
            patches.setattr(sources.Lines, "_counted", some)
            with pytest.raises(Interrupted):
                cached((str(path),), "TEXT", VOCABULARY, str(tmp_path / "cache"), form)
    again = cached((str(path),), "TEXT", VOCABULARY, str(tmp_path / "cache"), form)[1]
    content = lambda folder: {file.name: file.read_bytes() for file in folder.iterdir()}
    assert content(again) == content(folder)


def test_another_column_is_another_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"tokens": ["the"], "other": "cat cat"}\n')
    read_column = lambda form: cached((f"{tmp_path}/a.jsonl",), "TEXT", VOCABULARY, f"{tmp_path}/cache", form)
    version = lambda *form: read_input([f"{tmp_path}/a.jsonl"], *form).sources[0].version()
    assert len(set(map(str, (version(), version("jsonl", "other"), version("lines"))))) == 3
    assert version() == version("jsonl", "tokens")
    one, other = read_column(sources.BY_NAME), read_column(TextForm("jsonl", "other"))
    assert one[1] != other[1]
    assert (one[0].types.tolist(), other[0].types.tolist()) == ([0, 3, 1], [0, 4, 4, 1])
    assert read_column(TextForm("jsonl", "tokens"))[1] == one[1]


def test_the_commands_read_any_format(tmp_path, monkeypatch, capsys):
    """vocab, tokenize and training alike; what tokenize keeps is what training finds."""
    (tmp_path / "a.jsonl").write_text('{"words": ["the", "cat"]}\n{"words": ["the"]}\n')
    write_table(tmp_path / "b.parquet", "words", [["the", "dog"]])
    names, cache = (f"{tmp_path}/a.jsonl", f"{tmp_path}/b.parquet"), ["--cache", f"{tmp_path}/cache"]
    commands.main(["vocab", *names, "--output", f"{tmp_path}/vocab.txt", "--text_column", "words"])
    assert (tmp_path / "vocab.txt").read_text().split()[3:] == ["the", "cat", "dog"]
    give(monkeypatch, b'{"words": "of standard input"}')
    form = ["--text_column", "words", "--text_format", "jsonl"]
    commands.main(["vocab", "-", "--output", f"{tmp_path}/other.txt", *form])
    assert (tmp_path / "other.txt").read_text().split()[3:] == ["input", "of", "standard"]
    commands.main(["tokenize", *names, "--text_column", "words", *cache])
    assert "3 sentences, 5 tokens" in capsys.readouterr().out
    monkeypatch.setattr(corpus, "Lines", None)  # no text is read
    data = DataConfig(names, vocab=f"{tmp_path}/vocab.txt", cache=f"{tmp_path}/cache", text_column="words")
    assert len(read_corpora(data, None)[0]) == 3
    fails(commands.main, ["tokenize", "-", *cache], "can be read only once", capsys)
    fails(commands.main, ["vocab", names[0], "--output", names[0]], "is the file", capsys)


@pytest.mark.parametrize(("name", "extra"), [("a.zst", "zstd"), ("a.parquet", "parquet")])
def test_what_needs_an_extra_says_so(tmp_path, monkeypatch, name, extra):
    write_table(tmp_path / "a.parquet", "tokens")
    (tmp_path / "a.zst").write_bytes(zstd.compress(b"the cat"))
    monkeypatch.setitem(sys.modules, "compression" if sys.version_info >= (3, 14) else "backports", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=rf"this needs the package \w+, which the extra {extra} brings"):
        list(read_input([f"{tmp_path}/{name}"]))


@pytest.mark.slow
def test_embed_reads_any_format(tmp_path, folder):
    """The same vectors, and those of the column that is asked for."""
    (tmp_path / "a.txt").write_text("the cat\n\nsat on\n")
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress(
            b'{"tokens": ["the", "cat"], "b": "x"}\n{"tokens": [], "b": "y"}\n{"tokens": "sat on", "b": "z"}\n'
        )
    )
    embed = lambda name, *form: commands.main(
        ["embed", "--model", str(folder), "--input", f"{tmp_path}/{name}", "--output", f"{tmp_path}/{name}.hdf5", *form]
    )
    embed("a.txt")
    embed("a.jsonl.gz")
    assert same_file(tmp_path / "a.txt.hdf5", tmp_path / "a.jsonl.gz.hdf5")
    embed("a.jsonl.gz", "--text_column", "b")
    with h5py.File(tmp_path / "a.jsonl.gz.hdf5") as file:
        assert [len(file[name]) for name in "012"] == [1, 1, 1]
