"""Where sentences come from: text in several formats, data sets, standard input; one reader for all commands.

A place in a text is a number of bytes (after decompression), rows or records; reading goes on from any place.
"""

import bz2
import contextlib
import functools
import glob
import gzip
import io
import itertools
import json
import lzma
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath
from tqdm import tqdm

from elmo_jax.arrays import Unwritable
from elmo_jax.config import TextFormat
from elmo_jax.errors import InputError, brief, listed, needing
from elmo_jax.files import as_path, is_remote, matching
from elmo_jax.parquet_checks import check_pages, read_row_groups
from elmo_jax.vocabulary import BEGIN_SENTENCE, END_SENTENCE

TFDS, STANDARD_INPUT = "tfds:", "-"
RECORDS = 1024  # of a data set that are read at a time: one at a time takes three times as long
ROWS = 128  # of Parquet that are read at a time: each can be the same long text, that the file holds once
LONGEST = 2**24  # bytes of a line: a small compressed file can hold an endless one
CHUNK = 2**16  # bytes that are decompressed at a time
SHOWN_EVERY = 256  # lines, in the progress bar

# The format that the end of a name says, .gz and the like taken off; everything else is lines of text but these.
SUFFIXES: dict[str, TextFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".conll": "conll",
    ".conllu": "conllu",
    ".parquet": "parquet",
}
UNCLEAR = {".json": "jsonl, or lines", ".conllup": "conllu", ".csv": "lines", ".tsv": "lines, or conll"}
PACKED = (".zip", ".tar", ".tgz", ".7z", ".rar", ".arrow", ".feather", ".hdf5", ".h5", ".docx", ".pdf", ".lzma", ".z")
CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
FIELD = "tokens"  # of JSON lines and Parquet, where no other is named

# Of each compression by its suffix: its name, how its files begin, and what decompresses them.
COMPRESSIONS = {
    ".gz": ("gzip", re.compile(rb"\x1f\x8b"), "zcat"),
    ".bz2": ("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), "bzcat"),
    ".xz": ("xz", re.compile(rb"\xfd7zXZ\0"), "xzcat"),
    ".zst": ("Zstandard", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), "zstdcat"),
}
PARQUET = re.compile(rb"PAR1\x15")
OBJECT = re.compile(rb'(\xef\xbb\xbf)?\s*\{\s*"')  # how a line of JSON begins that has a field
MOST_MEMORY = 2**29  # bytes that an xz file may ask for
MOST_TOKENS = 1_000_000  # of a CoNLL sentence
# In CoNLL formats but CoNLL-U: what is a comment and no token "#"; in CoNLL-U: IDs of what is no word of its own.
COMMENT = re.compile(r"#(begin document|end document| [\w.:]+ = )")
NO_WORD = re.compile(r"[0-9]+(-[0-9]+|\.[0-9]+)")


class TextForm(NamedTuple):
    """How text is written: its format, by default what the file's name says, and which column or field is read."""

    format: TextFormat | None = None
    column: str | None = None


BY_NAME = TextForm()


def find_files(patterns: Sequence[str], option: str) -> list[epath.Path]:
    """Files that match the globs, sorted within each; `option` says in errors where the patterns came from.

    A name that is that of a file is no glob.
    """
    files = []
    for pattern in patterns:
        named = glob.has_magic(pattern) and not is_remote(pattern) and os.path.isfile(pattern)
        matches = matching(glob.escape(pattern) if named else pattern)
        if not matches:
            problem = f"no file matches {pattern}" if glob.has_magic(pattern) else f"there is no file {pattern}"
            if as_path(pattern).is_dir():
                problem = f"{pattern} is a folder"
            raise InputError(
                f"{option}: {problem}; give text files, plain or .gz, .bz2, .xz, .zst, with a sentence a line, or "
                ".jsonl, .conllu, .conll, .parquet"
            )
        files += matches
    return files


def files_of(patterns: Iterable[str], option: str) -> list[str]:
    """The files among what patterns name: what must not be written while they are read."""
    names = [pattern for pattern in patterns if pattern != STANDARD_INPUT and not pattern.startswith(TFDS)]
    return [os.fspath(path) for path in find_files(names, option)]


class Damaged(Exception):
    """A compressed file is not whole, or not what it should be; the message says why."""


class Decompressed(io.RawIOBase):
    """The content of the streams that a compressed file holds, one after the other; what is no such stream is refused.

    `make` gives a decompressor, of the kind that bz2, lzma and zstd have; between streams zero bytes may stand.
    """

    def __init__(self, raw: Any, make: Callable[[], Any]):
        self.raw, self.make, self.decompressor, self.rest = raw, make, make(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self.decompressor.eof:
                rest = (self.rest or self.decompressor.unused_data).lstrip(b"\0")
                while not rest and (read := self.raw.read(CHUNK)):
                    rest = read.lstrip(b"\0")
                if not rest:
                    self.rest = b""
                    return 0
                self.rest, self.decompressor = rest, self.make()
            elif self.decompressor.needs_input and not self.rest:
                self.rest = self.raw.read(CHUNK)
                if not self.rest:
                    raise Damaged("it ends before its end mark")
            try:
                content = self.decompressor.decompress(self.rest, len(buffer))
            except Exception as error:  # OSError, ValueError, LZMAError, ZstdError
                raise Damaged(error) from None
            self.rest = b""
            if content:
                buffer[: len(content)] = content
                return len(content)


def decompressed(raw: Any, suffix: str) -> Any:
    """The content of a compressed file."""
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if suffix == ".bz2":
        return Decompressed(raw, bz2.BZ2Decompressor)
    if suffix == ".xz":
        return Decompressed(raw, functools.partial(lzma.LZMADecompressor, memlimit=MOST_MEMORY))
    with needing("zstd"):
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    return Decompressed(raw, zstd.ZstdDecompressor)


def beginning(stream: Any) -> bytes:
    """The first bytes of a stream that is at its beginning, and stays there."""
    if hasattr(stream, "peek"):
        return stream.peek(16)[:16]
    begin = stream.read(16)
    stream.seek(0)
    return begin


def check_beginning(begin: bytes, name: str, suffix: str = "") -> None:
    """Refuses what begins as something else than its name says, so that no compressed file is read as text."""
    kinds = [end for end, (_, magic, _) in COMPRESSIONS.items() if magic.match(begin)]
    if suffix and suffix not in kinds:
        problem = f"is no {COMPRESSIONS[suffix][0]} file, though its name ends with {suffix}"
        if kinds or not begin:
            problem += f": it {'is empty' if not begin else f'holds {COMPRESSIONS[kinds[0]][0]} data'}"
        raise InputError(f"{name} {problem}; rename it, or compress it again")
    if kinds and not suffix and name == StandardInput.name:
        kind, _, command = COMPRESSIONS[kinds[0]]
        raise InputError(f"{name} holds {kind} data; decompress it first, with {command}")
    if kinds and not suffix:
        raise InputError(
            f"{name} holds {COMPRESSIONS[kinds[0]][0]} data; let its name end with {kinds[0]}, or decompress it first"
        )
    if PARQUET.match(begin):
        raise InputError(f"{name} holds Parquet data, no text; let its name end with .parquet")
    if begin.startswith(b"PK\x03\x04"):
        raise InputError(f"{name} is an archive (.zip, .docx, ...), no text; unpack it, or save it as text in UTF-8")
    if begin.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{name} is text in UTF-16; convert it: iconv -f UTF-16 -t UTF-8")


def check_guess(begin: bytes, name: str) -> None:
    """Refuses JSON lines that are taken for lines of text because nobody has said what they are."""
    if OBJECT.match(begin):
        raise InputError(
            f"{name} begins as an object of JSON does; give text_format jsonl, or lines to have it read as text"
        )


def split_lines(stream: Any) -> Iterator[bytes]:
    """Lines of a stream; a longer one than is read comes in parts, of which the first is too long."""
    return iter(functools.partial(stream.readline, LONGEST + 1), b"")


class TextFile:
    """A file of lines, CoNLL columns or JSON lines: plain, or compressed with gzip, bzip2, xz or Zstandard."""

    length = staticmethod(len)

    def __init__(self, path: epath.Path, form: TextForm, guessed: bool):
        self.path, self.form, self.guessed = path, form, guessed and form.format == "lines"
        self.suffix = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""
        self.name = os.fspath(path) if is_remote(path) else os.path.abspath(path)
        regular = is_remote(path) or os.path.isfile(path)
        self.size = path.stat().length if regular else None  # bytes of the file

    @property
    def key(self) -> str | list[str | None]:
        """Tells this text from what the same file is in another form."""
        return self.name if self.form.format == "lines" else [self.name, *self.form]

    def version(self) -> list[int | str]:
        """Tells this content from what it is when the file has been changed, or is read in another form."""
        return version(self.path, self.name) + ([] if self.form.format == "lines" else [*self.form])

    @contextlib.contextmanager
    def lines(self, offset: int) -> Iterator[tuple[Iterable[bytes], Callable[[int], int]]]:
        """Its lines from a byte of the text on, and how much of `size` has been read at a byte."""
        with self.path.open("rb") as raw:
            check_beginning(beginning(raw), self.name, self.suffix)
            if not self.suffix:
                if self.guessed:
                    check_guess(beginning(raw), self.name)
                if offset:
                    raw.seek(offset)
                yield split_lines(raw), lambda offset: offset
                return
            stream = io.BufferedReader(decompressed(raw, self.suffix), CHUNK)
            try:
                if self.guessed:
                    check_guess(stream.peek(16), self.name)
                skip(stream, offset)
                yield split_lines(stream), lambda _: raw.tell()
            except (Damaged, gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise InputError(
                    f"{self.path} is not a whole {COMPRESSIONS[self.suffix][0]} file ({error}); compress it again"
                ) from None

    def parse(self, lines: Iterable[bytes], line: int) -> Iterator[list[str]]:
        return parse(lines, self.name, line, self.form)


class StandardInput:
    """Text that is read once, from the beginning; it has no size that is known before."""

    length = staticmethod(len)
    name, key, size = "standard input", STANDARD_INPUT, None

    def __init__(self, form: TextForm, option: str, guessed: bool):
        if sys.stdin is None:
            raise InputError(f"{option} - reads standard input, which is closed; give text to it, or a file")
        self.form, self.guessed = form, guessed

    def version(self) -> list[int]:
        raise Unwritable("standard input can be read only once: nothing is kept of it")

    @contextlib.contextmanager
    def lines(self, offset: int) -> Iterator[tuple[Iterable[bytes], Callable[[int], int]]]:
        """Its lines from a byte of the text on."""
        stream = sys.stdin.buffer
        check_beginning(beginning(stream), self.name)
        if self.guessed:
            check_guess(beginning(stream), self.name)
        skip(stream, offset)
        yield split_lines(stream), lambda offset: offset

    def parse(self, lines: Iterable[bytes], line: int) -> Iterator[list[str]]:
        return parse(lines, self.name, line, self.form)


def skip(stream: Any, count: int) -> None:
    """Reads over bytes of a stream."""
    while count and (read := len(stream.read(min(count, CHUNK)))):
        count -= read


def version(path: epath.Path, name: str) -> list[int]:
    """Tells a file's content from what it is when the file has been changed."""
    if is_remote(path):
        about = path.stat()
        return [about.length, int(about.mtime)]
    if not os.path.isfile(path):
        raise Unwritable(f"{name} is no regular file: nothing is kept of it")
    return [os.stat(path).st_size, os.stat(path).st_mtime_ns]


class Records:
    """The field `text` of the records of `tfds:DATASET/SPLIT`, in order of storage, without TensorFlow.

    The dataset must be there in the format array_record (in $TFDS_DATA_DIR, by default ~/tensorflow_datasets).
    """

    def __init__(self, name: str, option: str):
        dataset, _, split = name.removeprefix(TFDS).rpartition("/")
        if not dataset or not split:
            raise InputError(f"{option}: {name} is not tfds:DATASET/SPLIT; give for instance tfds:lm1b/train")
        import tensorflow_datasets as tfds

        try:
            self.source = tfds.data_source(dataset, split=split, download=False)
            if "text" not in self.source.dataset_info.features:
                raise ValueError(f"it has no field text, but {', '.join(self.source.dataset_info.features)}")
        except Exception as error:  # the library's errors have many types: not found, not prepared, wrong format, ...
            raise InputError(
                f"{option}: cannot read {name} ({type(error).__name__}: {brief(error)}); prepare it once with "
                f"tfds.builder({dataset!r}, file_format='array_record').download_and_prepare()"
            ) from None
        self.name = self.key = name
        self.size = len(self.source)

    def length(self, line: bytes) -> int:
        return 1

    def version(self) -> list[int | str]:
        """Tells this content from that of another version of the dataset."""
        return [self.size, self.source.dataset_info.full_name]

    @contextlib.contextmanager
    def lines(self, offset: int) -> Iterator[tuple[Iterable[bytes], Callable[[int], int]]]:
        """The text of every record from a number on."""
        records = (
            record["text"]
            for first in range(offset, self.size, RECORDS)
            for record in self.source.__getitems__(list(range(first, min(first + RECORDS, self.size))))
        )
        yield records, lambda offset: offset

    def parse(self, lines: Iterable[bytes], line: int) -> Iterator[list[str]]:
        return read_lines(lines, self.name, line)


class Table:
    """A column of a Parquet file, of lists of tokens or of text; read some rows at a time."""

    def __init__(self, path: epath.Path, column: str | None, option: str):
        with needing("parquet"):
            import pyarrow as pa
        self.path, self.column = path, column or FIELD
        self.name = os.fspath(path) if is_remote(path) else os.path.abspath(path)
        self.key = [self.name, "parquet", self.column]
        self.damaged = (pa.ArrowException, OSError, ValueError)
        with self.opened() as (file, raw):
            schema, self.size = file.schema_arrow, sum(group.rows for group in read_row_groups(raw, path))
        if self.column not in schema.names:
            raise InputError(
                f"{option}: {path} has no column {brief(self.column)}, but {brief(listed(schema.names, ', '))}; "
                f"{naming(option, 'column')} one of them"
            )
        kind = value = schema.field(self.column).type
        if pa.types.is_list(value) or pa.types.is_large_list(value):
            value = value.value_type
        if pa.types.is_dictionary(value):
            value = value.value_type
        if not (pa.types.is_string(value) or pa.types.is_large_string(value)):
            raise InputError(
                f"{option}: column {brief(self.column)} of {path} holds {brief(kind)}; it must be of lists of tokens "
                "(list<string>) or of text (string)"
            )

    def length(self, row: Any) -> int:
        return 1

    def version(self) -> list[int | str]:
        """Tells this content from what it is when the file has been changed, or is read from another column."""
        return [*version(self.path, self.name), self.column]

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Any, Any]]:
        """The file, as Arrow reads it and as it is; errors inside are of a file that is damaged."""
        import pyarrow.parquet

        with self.path.open("rb") as raw:
            try:
                with pyarrow.parquet.ParquetFile(raw, buffer_size=CHUNK, pre_buffer=False) as file:
                    yield file, raw
            except self.damaged as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{self.path} is no Parquet file that can be read ({brief(error)})") from None

    @contextlib.contextmanager
    def lines(self, offset: int) -> Iterator[tuple[Iterable[Any], Callable[[int], int]]]:
        """The column's values from a row on: lists of str, or str."""
        with self.opened() as (file, raw):
            groups = read_row_groups(raw, self.path)
            sizes = [group.rows for group in groups]
            first = next((n for n, end in enumerate(itertools.accumulate(sizes)) if end > offset), len(sizes))

            def read() -> Iterator[Any]:
                for group in range(first, len(sizes)):  # lists of dictionary words cannot be read across groups
                    check_pages(raw, groups[group], self.path, self.column)
                    for batch in file.iter_batches(ROWS, [group], [self.column]):
                        yield from batch.column(self.column).to_pylist()

            yield itertools.islice(read(), offset - sum(sizes[:first]), None), lambda offset: offset

    def parse(self, rows: Iterable[Any], line: int) -> Iterator[list[str]]:
        for number, row in enumerate(rows, start=line + 1):
            if isinstance(row, str) and len(row) > LONGEST:
                raise too_long(f"{self.name}, row {number}")
            yield tokens_of(row, f"{self.name}, row {number}", self.column)


Source = TextFile | StandardInput | Records | Table


def naming(option: str, what: str) -> str:
    """How an error asks for the format or the column of the text that an option names."""
    return f"give --{'data.' if option.startswith('--data.') else ''}text_{what}"


def find_source(path: epath.Path, form: TextForm, option: str) -> Source:
    """A file in the form that is asked for, else in the one that its name says."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    suffix = (suffixes[:-1] if compressed else suffixes)[-1:]
    suffix = suffix[0] if suffix else ""
    if suffix in PACKED:
        raise InputError(f"{option}: {path} is no text by its name; unpack it, or write its text as lines or Parquet")
    if form.format is None and suffix in UNCLEAR:
        raise InputError(
            f"{option}: what {path} holds is not clear from {suffix}; {naming(option, 'format')} {UNCLEAR[suffix]}"
        )
    chosen = form.format or SUFFIXES.get(suffix, "lines")
    if chosen == "parquet":
        if compressed:
            raise InputError(f"{option}: {path} is compressed, Parquet must not be; decompress it first")
        return Table(path, form.column, option)
    return TextFile(path, whole_form(chosen, form.column, os.fspath(path), option), form.format is None)


def whole_form(chosen: TextFormat, column: str | None, name: str, option: str) -> TextForm:
    """The format with the column that it is read from: of CoNLL a number, counted from 1."""
    if chosen == "lines":
        if column is not None:
            raise InputError(f"{option}: {name} is lines of text, which have no column {brief(column)}; leave it out")
        return TextForm("lines")
    if chosen == "jsonl":
        return TextForm("jsonl", FIELD if column is None else column)
    if chosen == "conllu":
        column = "FORM" if column is None else column
        if column in CONLLU:
            return TextForm("conllu", column)
    if column is None or not re.fullmatch("[1-9][0-9]{0,3}", column):
        names = f", or of {', '.join(CONLLU)}" if chosen == "conllu" else ""
        received = "is not known" if column is None else f"cannot be {brief(column)!r}"
        raise InputError(
            f"{option}: which column of {name} the tokens are in {received}; {naming(option, 'column')} with its "
            f"number, from 1{names}"
        )
    return TextForm(chosen, column)


def find_sources(patterns: Iterable[str], option: str, form: TextForm = BY_NAME) -> list[Source]:
    """The files and data sets that patterns name; `option` says in errors where the patterns came from."""
    sources: list[Source] = []
    for pattern in patterns:
        if pattern == STANDARD_INPUT:
            if form.format == "parquet":
                raise InputError(f"{option}: Parquet cannot be read from standard input; give a file")
            read_as = whole_form(form.format or "lines", form.column, "-", option)
            sources.append(StandardInput(read_as, option, form.format is None))
        elif pattern.startswith(TFDS):
            if form != BY_NAME:
                raise InputError(f"{option}: {pattern} has a format of its own; leave text_format and text_column out")
            sources.append(Records(pattern, option))
        else:
            sources += [find_source(path, form, option) for path in find_files([pattern], option)]
    return sources


class Place(NamedTuple):
    """A place in a text: the number of the source, and the bytes or records of it, and its lines, that lie before."""

    source: int = 0
    offset: int = 0
    line: int = 0


class Lines:
    """Tokens of every line (or CoNLL sentence, or row) of some sources, in order; a blank line gives an empty list.

    `place()` is where the next line begins. `progress` is the label of a progress bar.
    """

    def __init__(self, sources: Sequence[Source], progress: str | None = None, begin: Place | None = None):
        self.sources, self.progress = sources, progress
        self.source, self.offset, self.line = begin or Place()

    @property
    def sizes(self) -> list[int | None]:
        """Bytes (as they are stored) or records of every source; None where they are not known beforehand."""
        return [source.size for source in self.sources]

    def place(self) -> Place:
        return Place(self.source, self.offset, self.line)

    def __iter__(self) -> Iterator[list[str]]:
        sizes, warned = self.sizes, False
        with tqdm(
            total=None if None in sizes else sum(sizes),
            desc=self.progress,
            unit="B" if all(isinstance(source, TextFile | StandardInput) for source in self.sources) else "",
            unit_scale=True,
            disable=self.progress is None,
            leave=False,
        ) as bar:
            while self.source < len(self.sources):
                source = self.sources[self.source]
                before = sum(size or 0 for size in sizes[: self.source])
                with source.lines(self.offset) as (lines, done):
                    show = lambda done=done, before=before: bar.update(before + done(self.offset) - bar.n)
                    for tokens in source.parse(self._counted(lines, source, show), self.line):
                        if not warned and (BEGIN_SENTENCE in tokens or END_SENTENCE in tokens):
                            warned = True
                            warnings.warn(
                                f"{source.name}, line {self.line}, has {BEGIN_SENTENCE} or {END_SENTENCE} as a token; "
                                "sentence boundaries are added by the reader, and those in the text are kept as well",
                                stacklevel=2,
                            )
                        yield tokens
                    show()
                self.source, self.offset, self.line = self.source + 1, 0, 0

    def _counted(self, lines: Iterable[Any], source: Source, show: Callable[[], object]) -> Iterator[Any]:
        for line in lines:
            length = source.length(line)
            self.offset, self.line = self.offset + length, self.line + 1
            if length > LONGEST:
                raise too_long(f"{source.name}, line {self.line}")
            if not self.line % SHOWN_EVERY:
                show()
            yield line


def too_long(where: str) -> InputError:
    """The error of a line or a row that would take much memory."""
    return InputError(f"{where}, is longer than {LONGEST / 2**20:.0f} MiB; divide it into sentences, one a line")


def parse(lines: Iterable[bytes], source: str, line: int, form: TextForm) -> Iterator[list[str]]:
    """Tokens of every sentence of a text, `line` lines of which came before."""
    if form.format == "lines":
        return read_lines(lines, source, line)
    if form.format == "jsonl":
        return read_jsonl(lines, source, line, form.column)
    return read_conll(lines, source, line, form.column, form.format == "conllu")


def decode(text: bytes, source: str, number: int) -> str:
    """A line as str; a byte order mark at the beginning of the text is read as nothing."""
    try:
        return text.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source}, line {number}, is not UTF-8 ({error.reason} at byte {error.start + 1}); "
            "convert the file, for instance with iconv"
        ) from None


def read_lines(lines: Iterable[bytes], source: str, line: int = 0) -> Iterator[list[str]]:
    """Tokens of every line, `line` of which came before.

    Only a line feed ends a line, any Unicode white space separates tokens (as in bilm-tf): carriage returns and tabs
    too. All else belongs to tokens, NUL as well.
    """
    for number, text in enumerate(lines, start=line + 1):
        yield decode(text, source, number).split()


def read_jsonl(lines: Iterable[bytes], source: str, line: int, field: str) -> Iterator[list[str]]:
    """Tokens of a field of the object in every line: a list of tokens, or a text, separated by white space.

    A blank line is a sentence without tokens.
    """
    for number, content in enumerate(lines, start=line + 1):
        text = decode(content, source, number)
        if not text.strip():
            yield []
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source}, line {number}, is not JSON ({brief(error)}); give an object a line") from None
        if not isinstance(value, dict) or field not in value:
            found = f"a {type(value).__name__}, no object"
            if isinstance(value, dict):
                found = f"no field {brief(field)}, but {brief(listed(list(value), ', ')) or 'none'}"
            raise InputError(f"{source}, line {number}, has {found}; name the field of the tokens with text_column")
        yield tokens_of(value[field], f"{source}, line {number}", field)


def tokens_of(value: Any, where: str, field: str) -> list[str]:
    """The tokens of a field: a list of them, none empty or with white space inside, or a text that is split."""
    tokens = value.split() if isinstance(value, str) else value
    try:
        joined = " ".join(tokens) if isinstance(tokens, list) else None
    except TypeError:  # of what is no str
        joined = None
    if joined is None:
        raise InputError(f"{where}: {brief(field)} is {brief(repr(value))}; it must be a list of tokens, or a text")
    if tokens is value and joined.split() != tokens:
        wrong = next(token for token in tokens if token.split() != [token])
        raise InputError(
            f"{where}: the token {brief(repr(wrong))} is empty or has white space inside, by which tokens are told "
            "apart in files; take it out, or divide it"
        )
    try:
        joined.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {brief(field)} has {joined[error.start]!r}, half of a character (a lone surrogate), which is no "
            "text; take it out, or put U+FFFD in its place"
        ) from None
    return tokens


def read_conll(lines: Iterable[bytes], source: str, line: int, name: str, universal: bool) -> Iterator[list[str]]:
    """A column, by its number from 1 or name, of every sentence: a token a line, blank lines between sentences.

    CoNLL-U (`universal`): comments, the ranges of multiword tokens (3-4) and empty nodes (5.1) are left out; spaces
    inside a word become "_". Other formats: columns are separated by tabs, or where a line has none by white space,
    and every line of a sentence has as many; left out are -DOCSTART-, #begin document, #end document and comments of
    the form "# name = value". A "#" can be a token there.
    """
    column = CONLLU.index(name) if name in CONLLU else int(name) - 1
    tokens: list[str] = []
    width = 0
    checked = lambda: tokens_of(tokens, f"{source}, sentence that ends before line {number + 1}", f"column {name}")
    number = line
    for number, content in enumerate(lines, start=line + 1):
        text = decode(content, source, number).rstrip("\r\n")
        if not text.strip() or (not universal and text.startswith("-DOCSTART-")):
            if tokens:
                yield checked()
            tokens, width = [], 0
            continue
        if text[0] == "#" and (universal or COMMENT.match(text)):
            names = text.removeprefix("# global.columns = ").split()
            if universal and names != text.split() and name in CONLLU and names[column : column + 1] != [name]:
                raise InputError(
                    f"{source}: column {column + 1} of its columns {' '.join(names)} is not {name}; give the number of "
                    "the column as text_column"
                )
            continue
        parts = text.split("\t") if universal or "\t" in text else text.split()
        if len(parts) <= column or (width and len(parts) != width):
            other = f"no column {column + 1}" if len(parts) <= column else f"the line before {width}"
            raise InputError(
                f"{source}, line {number}, has {len(parts)} columns, {other}; they must be as many in all lines of a "
                "sentence"
            )
        token = parts[column]
        if not universal:
            width = len(parts)
        elif not parts[0].isdecimal():
            if not NO_WORD.fullmatch(parts[0]):
                raise InputError(f"{source}, line {number}, begins with {brief(repr(parts[0]))}, no ID of CoNLL-U")
            continue
        elif " " in token:
            token = "_".join(token.split())
        tokens.append(token)
        if len(tokens) > MOST_TOKENS:
            raise InputError(f"{source}, line {number}: a sentence of {len(tokens):,} tokens; are blank lines missing?")
    if tokens:
        yield checked()


def read_input(
    names: Sequence[str],
    format: TextFormat | None = None,
    column: str | None = None,
    *,
    option: str = "--input",
    progress: str | None = None,
    begin: Place | None = None,
) -> Lines:
    """Tokens of every line, blank ones too, of files, globs, `tfds:DATASET/SPLIT`, or standard input for `-`.

    `option` says in errors where the names came from. `begin` is a `place()` of the same input, to go on from.
    """
    return Lines(find_sources(names, option, TextForm(format, column)), progress, begin)
