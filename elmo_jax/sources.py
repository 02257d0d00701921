"""Where sentences come from: text files, data sets, standard input; one reader for training and embedding."""

import contextlib
import glob
import gzip
import os
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from etils import epath
from tqdm import tqdm

from elmo_jax.arrays import Unwritable
from elmo_jax.errors import InputError, brief
from elmo_jax.files import as_path, is_remote, matching
from elmo_jax.vocabulary import BEGIN_SENTENCE, END_SENTENCE

TFDS, STANDARD_INPUT = "tfds:", "-"
RECORDS = 1024  # of a data set that are read at a time: one at a time takes three times as long


def find_files(patterns: Sequence[str], option: str) -> list[epath.Path]:
    """Files that match the globs, sorted within each; `option` says in errors where the patterns came from."""
    files = []
    for pattern in patterns:
        matches = matching(pattern)
        if not matches:
            problem = f"no file matches {pattern}" if glob.has_magic(pattern) else f"there is no file {pattern}"
            if as_path(pattern).is_dir():
                problem = f"{pattern} is a folder"
            raise InputError(f"{option}: {problem}; give text files, plain or .gz, with a sentence a line")
        files += matches
    return files


class TextFile:
    """A text file, plain or .gz."""

    length = staticmethod(len)

    def __init__(self, path: epath.Path):
        self.path, self.is_gzip = path, path.suffix == ".gz"
        self.name = os.fspath(path) if is_remote(path) else os.path.abspath(path)
        self.size = None if self.is_gzip else path.stat().length  # bytes of text, if that is known

    def version(self) -> list[int]:
        """Tells this content from what it is when the file has been changed."""
        if is_remote(self.path):
            about = self.path.stat()
            return [about.length, int(about.mtime)]
        if not os.path.isfile(self.path):
            raise Unwritable(f"{self.name} is no regular file: nothing is kept of it")
        return [os.stat(self.path).st_size, os.stat(self.path).st_mtime_ns]

    @contextlib.contextmanager
    def lines(self, offset: int) -> Iterator[Iterable[bytes]]:
        """Its lines from a byte of the text on."""
        with self.path.open("rb") as raw, gzip.open(raw) if self.is_gzip else raw as stream:
            try:
                if offset:
                    stream.seek(offset)
                yield stream
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise InputError(f"{self.path} is not a whole gzip file ({error}); compress it again") from None


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
        self.name, self.size = name, len(self.source)

    def length(self, line: bytes) -> int:
        return 1

    def version(self) -> list[int | str]:
        """Tells this content from that of another version of the dataset."""
        return [self.size, self.source.dataset_info.full_name]

    @contextlib.contextmanager
    def lines(self, offset: int) -> Iterator[Iterable[bytes]]:
        """The text of every record from a number on."""
        yield (
            record["text"]
            for first in range(offset, self.size, RECORDS)
            for record in self.source.__getitems__(list(range(first, min(first + RECORDS, self.size))))
        )


class StandardInput:
    """Text that is read once, from the beginning; it has no size that is known before."""

    length = staticmethod(len)
    name, size = "standard input", None

    def __init__(self, option: str):
        if sys.stdin is None:
            raise InputError(f"{option} - reads standard input, which is closed; give text to it, or a file")

    def version(self) -> list[int]:
        raise Unwritable("standard input can be read only once: nothing is kept of it")

    @contextlib.contextmanager
    def lines(self, offset: int) -> Iterator[Iterable[bytes]]:
        """Its lines; those before a byte of the text are read and dropped."""
        while offset > 0 and (line := sys.stdin.buffer.readline(offset)):
            offset -= len(line)
        yield sys.stdin.buffer


Source = TextFile | Records | StandardInput


def find_sources(patterns: Iterable[str], option: str) -> list[Source]:
    """The files and data sets that patterns name; `option` says in errors where the patterns came from."""
    sources: list[Source] = []
    for pattern in patterns:
        if pattern == STANDARD_INPUT:
            sources.append(StandardInput(option))
        elif pattern.startswith(TFDS):
            sources.append(Records(pattern, option))
        else:
            sources += map(TextFile, find_files([pattern], option))
    return sources


Format = Literal["lines", "conll", "conllu", "jsonl", "parquet"]


class Place(NamedTuple):
    """A place in a text: the number of the source, and the bytes or records of it, and its lines, that lie before."""

    source: int = 0
    offset: int = 0
    line: int = 0


class Lines:
    """Tokens of every line of some sources, in order; a blank line gives an empty list.

    `place()` is where the next line begins. `progress` is the label of a progress bar.
    """

    def __init__(self, sources: Sequence[Source], progress: str | None = None, begin: Place | None = None):
        self.sources, self.progress = sources, progress
        self.source, self.offset, self.line = begin or Place()

    @property
    def sizes(self) -> list[int | None]:
        """Bytes or records of every source; None where they are not known before all is read."""
        return [source.size for source in self.sources]

    def place(self) -> Place:
        return Place(self.source, self.offset, self.line)

    def __iter__(self) -> Iterator[list[str]]:
        sizes = self.sizes
        with tqdm(
            total=None if None in sizes else sum(sizes),
            desc=self.progress,
            unit="B" if all(isinstance(source, TextFile) for source in self.sources) else "",
            unit_scale=True,
            disable=self.progress is None,
            leave=False,
        ) as bar:
            bar.update(sum(size or 0 for size in sizes[: self.source]) + self.offset)
            while self.source < len(self.sources):
                source = self.sources[self.source]
                with source.lines(self.offset) as lines:
                    yield from read_lines(self._counted(lines, source, bar), source.name, self.line)
                self.source, self.offset, self.line = self.source + 1, 0, 0

    def _counted(self, lines: Iterable[bytes], source: Source, bar: tqdm) -> Iterator[bytes]:
        for line in lines:
            length = source.length(line)
            self.offset, self.line = self.offset + length, self.line + 1
            bar.update(length)
            yield line


def read_lines(lines: Iterable[bytes], source: str, line: int = 0) -> Iterator[list[str]]:
    """Tokens of every line, `line` of which came before.

    Only a line feed ends a line, any Unicode white space separates tokens (as in bilm-tf).
    """
    warned = False
    for number, text in enumerate(lines, start=line + 1):
        try:
            tokens = text.decode("utf-8-sig" if number == 1 else "utf-8").split()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{source}, line {number}, is not UTF-8 ({error.reason} at byte {error.start + 1}); "
                "convert the file, for instance with iconv"
            ) from None
        if not warned and (BEGIN_SENTENCE in tokens or END_SENTENCE in tokens):
            warned = True
            message = f"{source}, line {number}, has {BEGIN_SENTENCE} or {END_SENTENCE} as a token; sentence boundaries"
            warnings.warn(f"{message} are added by the reader, and those in the text are kept as well", stacklevel=2)
        yield tokens


def read_input(
    names: Sequence[str],
    format: Format | None = None,
    column: str | None = None,
    *,
    option: str = "--input",
    progress: str | None = None,
    begin: Place | None = None,
) -> Lines:
    """Tokens of every line, blank ones too, of files, globs, `tfds:DATASET/SPLIT`, or standard input for `-`.

    `option` says in errors where the names came from. `begin` is a `place()` of the same input, to go on from.
    """
    return Lines(find_sources(names, option), progress, begin)
