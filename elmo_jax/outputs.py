"""Vectors of a text into files: one mechanism that goes on where it was stopped, and what it makes for each format.

The text is embedded in blocks, each by a call of its own, so that no bit depends on where a run was stopped or on which
process embeds which block. Their vectors are appended to OUTPUT.partial, the flat format in the making
(`embeddings.py`), which becomes the output, or of which HDF5 or Parquet is written in the end.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import filelock
import h5py
import jax
import numpy as np
from tqdm import tqdm

from elmo_jax.arrays import DESCRIPTION, FORMAT, GrowingArrays, Unwritable
from elmo_jax.config import to_options
from elmo_jax.dump import LARGEST_INDEX, write_hdf5
from elmo_jax.elmo import Elmo
from elmo_jax.embeddings import (
    HDF5_SUFFIXES,
    MADE_OF,
    MAGIC,
    MANIFEST,
    OFFSETS,
    PARQUET_SUFFIX,
    VECTOR_TYPES,
    Made,
    parse_tokens,
    read_manifest,
    shard_names,
)
from elmo_jax.engine import WINDOW
from elmo_jax.errors import InputError, brief, needing
from elmo_jax.files import as_path, check_output, is_remote, unwritable, writing
from elmo_jax.sources import STANDARD_INPUT, Lines, Place
from elmo_jax.streams import prefetch

VectorType = Literal["float16", "float32"]
Compression = Literal["gzip"]
# Windows of a block of text, and the least tokens of one: at its end some rows of the devices stand idle.
BLOCK_WINDOWS, SMALLEST_BLOCK = 16, 2**15
# Positions whose vectors are appended at a time, parts that may wait for it, sentences that are read back at a time.
APPENDED, WAITING, READ_BACK = 4096, 4, 1024
# In the scratch folder, what begins or goes on so is an output that is being made.
MAKING = "output"
# Bytes of the vectors, and sentences, in a group of rows of Parquet.
GROUP_BYTES, GROUP_SENTENCES = 2**24, 2**16
# Bytes that HDF5 takes for each dataset beside its values, and more for one that is compressed.
DATASET_BYTES, CHUNKED_BYTES = 320, 3200


class Total(NamedTuple):
    """Of a text, or of a shard's blocks of it: sentences, tokens, and bytes of the tokens as lines of JSON."""

    sentences: int = 0
    tokens: int = 0
    bytes: int = 0

    def and_one(self, tokens: list[str], line: bytes) -> "Total":
        return Total(self.sentences + 1, self.tokens + len(tokens), self.bytes + len(line))


class Shard(NamedTuple):
    """Of the blocks 0, 1, 2, .. of a text those with this number modulo `count`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """ "0/2" → the first of two."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and int(number) < int(count) < 2**20):
            raise InputError(f"shard is {brief(repr(text))}; give I/N, for instance 0/2 and, elsewhere, 1/2")
        return cls(int(number), int(count))


class Target(NamedTuple):
    """Where vectors go to: a path, the suffix that says in which format, and whether it is in a folder of shards."""

    path: Path
    suffix: str
    of_shards: bool = False

    @classmethod
    def of(cls, output: str | os.PathLike[str], shard: Shard | None = None) -> "Target":
        """A shard has a place of its own in the folder `output`. InputError where the suffix names no format."""
        suffix = Path(output).suffix.lower()
        if os.fspath(output) == STANDARD_INPUT:
            raise InputError("the output is -, but vectors are no text: give a file, or a folder in the flat format")
        if suffix not in ("", *HDF5_SUFFIXES, PARQUET_SUFFIX):
            raise InputError(
                f"the output {os.fspath(output)} ends with {suffix}; give a name that ends with .hdf5 or .h5, with "
                ".parquet, or with no suffix for a folder in the flat format"
            )
        if is_remote(output):
            if shard is not None or not suffix:
                raise InputError(
                    f"{os.fspath(output)}: shards and the flat format are written to the disk; copy them afterwards"
                )
            return cls(as_path(output), suffix)
        path = Path(os.path.realpath(output))
        if shard is None:
            return cls(path, suffix)
        return cls(path / shard_names(shard.count, suffix)[shard.number], suffix, of_shards=True)

    @property
    def growing(self) -> Path:
        """What GrowingArrays makes: beside the output; for an object store among temporary files."""
        if is_remote(self.path):
            name = hashlib.sha256(os.fspath(self.path).encode()).hexdigest()[:16]
            return Path(tempfile.gettempdir(), f"elmo_jax-{name}")
        return self.path

    @property
    def scratch(self) -> Path:
        return self.growing.with_name(f"{self.growing.name}.partial")

    def check(self, inputs: Iterable[str | os.PathLike[str] | None] = ()) -> None:
        """Refuses, before any work, an output that cannot be written, or whose place holds something else."""
        if self.suffix == PARQUET_SUFFIX:
            with needing("parquet"):
                import pyarrow.parquet  # noqa: F401
        folder = self.path.parent
        if self.of_shards and not folder.is_dir():
            check_output(folder, *inputs)
            if folder.exists():
                raise unwritable(folder, "shards go into a folder, and it is a file")
            return
        if self.suffix:
            check_output(self.path, *inputs)
            if not is_remote(self.path) and self.path.is_file() and not _begins_as(self.path, self.suffix):
                raise unwritable(self.path, "it is there and holds no vectors")
            return
        check_output(self.scratch.with_name(f"{self.scratch.name}.lock"))
        if os.path.lexists(self.path) and not (self.path / DESCRIPTION).is_file() and not _is_empty(self.path):
            raise unwritable(self.path, "it is there and holds no vectors")

    def made_of(self) -> Any:
        """The key that the whole output which is there was made of; None where there is none."""
        with contextlib.suppress(Exception):  # it is not there, or of somebody else
            if not self.suffix:
                description = json.loads((self.path / DESCRIPTION).read_bytes())
                return description["key"] if description["about"]["whole"] else None
            if self.suffix == PARQUET_SUFFIX:
                import pyarrow.parquet as parquet

                return json.loads(parquet.read_schema(self.path).metadata[MADE_OF.encode()])
            with h5py.File(self.path, "r") as file:
                return json.loads(file.attrs[MADE_OF])
        return None


def _begins_as(file: Path, suffix: str) -> bool:
    """Whether a file is empty or begins as those of a suffix do."""
    with file.open("rb") as content:
        begin = content.read(8)
    return not begin or begin.startswith(MAGIC[suffix])


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def fingerprint(elmo: Elmo) -> str:
    """Tells a model's parameters, configuration and words from any others."""
    folder = elmo._folder
    digest = hashlib.sha256(json.dumps(to_options(folder.model), sort_keys=True).encode())
    for path, array in jax.tree_util.tree_leaves_with_path(folder.parameters):
        digest.update(f"{jax.tree_util.keystr(path)}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    for words in (folder.vocabulary, folder.alphabet):
        digest.update(b"" if words is None else words.to_bytes())
    return digest.hexdigest()[:32]


def made_as(elmo: Elmo, options: Mapping[str, Any], dtype: VectorType) -> dict[str, Any]:
    """The part of a `key` that is of the vectors' shape, for `Made`."""
    return {
        "dtype": dtype,
        "all layers": elmo.model.layers + 1 if options.get("layers") == "all" else None,
        "width": elmo.dim,
        "pool": options.get("pool"),
    }


def _of_text(lines: Lines) -> str | None:
    """Tells a text's files from others, or from what they were; None where the text can be read only once."""
    try:
        versions = [[source.key, *source.version()] for source in lines.sources]
    except Unwritable:
        return None
    return hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:32]


class Writer:
    """Embeds a text into an output; `write` goes on where it was stopped.

    `read(progress, begin)` gives the `Lines` of the text; `options` are those of `Elmo.embed_iter`.
    """

    def __init__(
        self,
        elmo: Elmo,
        read: Callable[..., Lines],
        target: Target,
        options: Mapping[str, Any],
        dtype: VectorType = "float32",
        compression: Compression | None = None,
        shard: Shard | None = None,
    ):
        self.elmo, self.read, self.target, self.options = elmo, read, target, dict(options)
        self.compression, self.shard = compression, shard
        elmo.embed_iter([], **options)  # checks them
        self.saved: dict[str, Any] = {"sentences": 0}
        engine, mix = elmo._engine, options.get("mix")
        if options.get("layers") == "mix" and mix is None:
            mix = elmo.mix
        self.carries = options.get("state") == "carry"
        if shard is not None and self.carries:
            raise InputError("state carry reads the text from beginning to end; it and --shard exclude each other")
        if compression is not None and not target.suffix:
            raise InputError("the flat format is mapped into memory as it is; --compression is for .hdf5 and .parquet")
        rows = options.get("batch_size") or max(engine.form.rows) * len(engine.devices)
        # Tokens and ends of sentences of a block; a state that is carried knows no blocks.
        self.block = None if self.carries else max(BLOCK_WINDOWS * rows * WINDOW, SMALLEST_BLOCK)
        self.of_text = _of_text(read())
        key = {
            "model": fingerprint(elmo),
            "text": self.of_text,
            **{name: value for name, value in self.options.items() if name != "mix"},
            "mix": mix and [np.asarray(mix.weights).tolist(), float(mix.gamma), bool(mix.layer_norm)],
            **made_as(elmo, options, dtype),
            "block": self.block,
            "devices": f"{len(engine.devices)} {engine.platform}",
            "shard": shard,
        }
        self.key = json.loads(json.dumps(key))
        self.made = Made(self.key)
        self.dtypes = {"vectors": VECTOR_TYPES[dtype], **OFFSETS}

    def write(self) -> str:
        """Writes the output, and says what has become of it."""
        target = self.target
        if not is_remote(target.path):
            target.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            about = self._begun()
            if self.of_text is not None and target.made_of() == self.key:
                shutil.rmtree(target.scratch, ignore_errors=True)
                return f"{target.path} is there and whole: the same command has written it"
            if about is not None:
                total = about["total"] and Total(*about["total"])
            else:
                total = None if self.of_text is None else self._count()
            if os.path.lexists(target.path) and not _is_empty(target.path):
                print(f"{target.path} holds other vectors, which will be replaced")
            self._foresee(total, about is not None)
            self.saved = about or self.saved
            try:
                self._embed(total)
                self._finish()
            except Unwritable as error:
                raise unwritable(
                    target.path,
                    f"{brief(error.__cause__)}: what is done stays in {target.scratch}, and the same command goes on",
                ) from None
            except BaseException:
                if not self.saved["sentences"]:
                    shutil.rmtree(target.scratch, ignore_errors=True)
                raise
        return f"wrote {target.path}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """No other process writes the same output meanwhile."""
        file = self.target.scratch.with_name(f"{self.target.scratch.name}.lock")
        lock = filelock.FileLock(file)
        try:
            with lock.acquire(timeout=0):
                try:
                    yield
                finally:
                    file.unlink(missing_ok=True)
        except filelock.Timeout:
            raise InputError(f"another process is writing {self.target.path}; wait until it has ended") from None

    def _begun(self) -> dict[str, Any] | None:
        """What was saved when the same work was stopped; None at the beginning. InputError for any other work."""
        scratch = self.target.scratch
        advice = f"to begin again remove the folder {scratch}, or give another output"
        try:
            description = json.loads((scratch / DESCRIPTION).read_bytes())
            key, about = description["key"], description["about"]
            if description["format"] != FORMAT or not isinstance(key, dict):
                raise ValueError
        except FileNotFoundError:
            if scratch.exists() and {file.name for file in scratch.iterdir()} - {f"{DESCRIPTION}.new", *self.dtypes}:
                raise InputError(f"{scratch} holds something else than vectors; {advice}") from None
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            raise InputError(f"{scratch} has a {DESCRIPTION} that cannot be read; {advice}") from None
        if other := sorted(name for name in self.key | key if key.get(name) != self.key.get(name)):
            raise InputError(
                f"{scratch} was begun with other settings or another text (differs: {', '.join(other)}); give those "
                f"again to go on, or {advice}"
            )
        for file in scratch.glob(f"*{MAKING}*"):
            file.unlink()  # an output that was being made
        return about

    def _blocks(self, lines: Iterable[list[str]], first: int = 0) -> Iterator[tuple[bool, Iterator[list[str]]]]:
        """The text in blocks, each to be read to its end before the next: whether it is to be embedded here, and it.

        The last one is empty.
        """
        lines = iter(lines)
        for number in itertools.count(first):
            block = Block(lines, self.block)
            yield self.shard is None or number % self.shard.count == self.shard.number, block
            if not block.sentences:
                return

    def _count(self) -> Total:
        """What there is to embed here, by reading all of the text."""
        total = Total()
        for own, block in self._blocks(self.read(progress="counting the text")):
            for tokens in block:
                if own:
                    total = total.and_one(tokens, to_line(tokens))
        return total

    def _foresee(self, total: Total | None, begun: bool) -> None:
        """Prints what will be written; InputError where the disk has not as much room."""
        target, sizes = self.target, []
        if begun:
            print(
                f"{target.scratch} was begun before: "
                + ("the state is carried, so it begins with the text's first sentence" if self.carries else "going on")
            )
        if total is None:
            vectors = self.made.numbers * np.dtype(self.made.dtype).itemsize
            of = "sentence" if self.made.pool else "token"
            print(f"how much text there is will be known in the end; the vectors of each {of} take {vectors:,} bytes")
            return
        flat, output = self.sizes(total)
        sizes = [flat] if output is None else [flat, output]
        there = sum(file.stat().st_size for file in target.scratch.iterdir()) if begun else 0
        free = shutil.disk_usage(target.scratch.parent).free
        print(
            f"{total.sentences:,} sentences, {total.tokens:,} tokens: {target.path} will take about "
            f"{in_bytes(sizes[-1])}{f', and {in_bytes(flat)} beside it until it is whole' if output else ''}; "
            f"{in_bytes(free)} are free"
        )
        if self.shard is not None and not total.sentences:
            print(f"shards take turns at blocks of {self.block:,} tokens and ends of sentences; this one has none")
        if sum(sizes) - there > free:
            raise InputError(
                f"the disk of {target.path} has {in_bytes(free)} free, and {in_bytes(sum(sizes) - there)} are needed; "
                "make room, or write less: --dtype float16, --pool mean, the flat format (an output without suffix)"
            )
        if target.suffix in HDF5_SUFFIXES and total.bytes > LARGEST_INDEX:
            raise InputError(
                "the text is longer than 2 GB, too long for one HDF5 file; give an output without suffix, in the flat "
                "format, or embed it in parts"
            )

    def sizes(self, total: Total) -> tuple[int, int | None]:
        """About how many bytes the flat format and the output's own will take."""
        positions = total.tokens + 2 * total.sentences * bool(self.options.get("boundaries"))
        if self.made.pool:
            positions = total.sentences
        vectors = positions * self.made.numbers * np.dtype(self.made.dtype).itemsize
        flat = vectors + 16 * total.sentences + total.bytes
        if not self.target.suffix:
            return flat, None
        if self.target.suffix == PARQUET_SUFFIX:
            return flat, vectors + total.bytes
        of_each = DATASET_BYTES + (CHUNKED_BYTES if self.compression else 0)
        return flat, vectors + of_each * total.sentences + total.bytes

    def _lines(self, about: dict[str, Any]) -> Lines:
        """The text from where it was left. InputError where a text that cannot be known by its files is another."""
        if self.of_text is not None:
            return self.read(begin=Place(*about["place"]))
        lines, sum_, read = iter(self.read()), 0, 0
        for tokens in itertools.islice(lines, about["sentences"]):
            sum_, read = zlib.crc32(to_line(tokens), sum_), read + 1
        if (read, sum_) != (about["sentences"], about["sum"]):
            raise InputError(
                f"the text does not begin with the {about['sentences']:,} sentences that {self.target.scratch} was "
                "made of; give the same text to go on, or remove that folder to begin again"
            )
        return lines

    def _embed(self, total: Total | None) -> None:
        """Makes the scratch folder whole."""
        begin = {"place": [0, 0, 0], "sentences": 0, "tokens": 0, "sum": 0, "whole": False, "total": total}
        with GrowingArrays(self.target.growing, self.dtypes, self.key) as growing:
            self.saved = growing.about or begin
            if growing.about is None:
                growing.append({"offsets": np.zeros(1), "text_offsets": np.zeros(1)})
                growing.save(begin)
            if self.saved["whole"]:
                return
            positions = growing.sizes["vectors"] // self.made.numbers
            bar = tqdm(
                desc="embedding",
                total=total and total.tokens,
                initial=self.saved["tokens"],
                unit=" tokens",
                unit_scale=True,
            )
            with bar, contextlib.closing(prefetch(self._parts(self.saved, growing.sizes["blocks"]), WAITING)) as parts:
                for part in parts:
                    ends = np.cumsum(part.positions)
                    growing.append(
                        {
                            "vectors": part.vectors.reshape(-1),
                            "offsets": positions + ends,
                            "text": np.frombuffer(b"".join(part.lines), np.uint8),
                            "text_offsets": growing.sizes["text"] + np.cumsum([*map(len, part.lines)]),
                            "blocks": np.array(part.blocks),
                        }
                    )
                    positions += int(ends[-1]) if len(ends) else 0
                    bar.update(part.tokens)
                    if part.about is not None:
                        self.saved = part.about
                        growing.save(self.saved)
                    if self.target.suffix in HDF5_SUFFIXES and growing.sizes["text"] > LARGEST_INDEX:
                        raise InputError("the text is longer than 2 GB, too long for one HDF5 file; embed it in parts")

    def _parts(self, begun: dict[str, Any], first: int) -> Iterator["Part"]:
        """The text's vectors some thousand positions at a time; every block ends with a part."""
        lines, about = self._lines(begun), dict(begun)
        for own, block in self._blocks(lines, first):
            waiting: deque[tuple[bytes, int]] = deque()

            def noted(block: "Block" = block, waiting: deque | None = waiting if own else None) -> Iterator[list[str]]:
                for tokens in block:
                    line = to_line(tokens)
                    about["sum"] = zlib.crc32(line, about["sum"])
                    if waiting is not None:
                        waiting.append((line, len(tokens)))
                    yield tokens

            part = Part.empty(self.made)
            if own:
                arrays, positions, texts, tokens = [], [], [], 0
                for vectors in self.elmo.embed_iter(noted(), **self.options):
                    arrays.append(self.made.of_position(vectors))
                    positions.append(len(arrays[-1]))
                    line, count = waiting.popleft()
                    texts.append(line)
                    tokens += count
                    about["tokens"] += count
                    if len(arrays) + sum(positions) > APPENDED:
                        yield self._part(arrays, positions, texts, tokens)
                        arrays, positions, texts, tokens = [], [], [], 0
                if arrays:
                    part = self._part(arrays, positions, texts, tokens)
            else:
                deque(noted(), 0)
            about["sentences"] += block.sentences
            if isinstance(lines, Lines):
                about["place"] = list(lines.place())
            about["whole"] = not block.sentences
            yield part._replace(blocks=[block.sentences] if block.sentences else [], about=dict(about))

    def _part(self, arrays: list[np.ndarray], positions: list[int], lines: list[bytes], tokens: int) -> "Part":
        return Part(self.made.stored(arrays), positions, lines, tokens, [], None)

    def _finish(self) -> None:
        """Makes the output of the scratch folder, which is whole."""
        target, key = self.target, json.dumps(self.key)
        if self.shard is not None:
            self._write_manifest(target.scratch)
        if not target.suffix:
            with GrowingArrays(target.growing, self.dtypes, self.key) as growing:
                growing.finish()
            return
        count = (target.scratch / "offsets").stat().st_size // 8 - 1
        stored = tqdm(self._stored(), f"writing {target.path.name}", count, unit=" sentences", leave=False)
        # In the scratch folder until it is whole, so that nothing of it is left beside the output when it is killed.
        path = target.path if is_remote(target.path) else target.scratch / f"{MAKING}{target.suffix}"
        if target.suffix == PARQUET_SUFFIX:
            write_parquet(path, stored, self.made, key, self.compression)
        else:
            one, other = itertools.tee(stored)
            sentences = (parse_tokens(line, target.scratch, 0) for line, _ in one)
            vectors = (self.made.of_sentence(positions) for _, positions in other)
            write_hdf5(path, sentences, vectors, self.compression is not None, {MADE_OF: key})
        if path != target.path:
            try:
                os.replace(path, target.path)
            except OSError as error:
                raise unwritable(target.path, error.strerror) from None
        shutil.rmtree(target.scratch)

    def _stored(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """The text and the vectors of every sentence [positions, ..] in the scratch folder, read and not mapped."""
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context((self.target.scratch / name).open("rb")) for name in self.dtypes}
            take = lambda name, count: np.fromfile(files[name], self.dtypes[name], int(count))
            position, byte = take("offsets", 1), take("text_offsets", 1)
            while len(ends := take("offsets", READ_BACK)):
                positions = np.diff(np.concatenate([position, ends]))
                lengths = np.diff(np.concatenate([byte, text_ends := take("text_offsets", READ_BACK)]))
                position, byte = ends[-1:], text_ends[-1:]
                for count, length in zip(positions.tolist(), lengths.tolist(), strict=True):
                    vectors = take("vectors", count * self.made.numbers).reshape(-1, *self.made.shape)
                    yield files["text"].read(length), vectors

    def _write_manifest(self, folder: Path) -> None:
        """Says how the shards make up the text; every shard writes the same. InputError where another is there."""
        of_all = {name: value for name, value in self.key.items() if name != "shard"}
        blocks = np.fromfile(folder / "blocks", np.int64).tolist()
        manifest = {"format": FORMAT, "shards": self.shard.count, "suffix": self.target.suffix, "blocks": blocks}
        manifest["key"] = of_all
        file = self.target.path.parent / MANIFEST
        if file.exists() and (there := read_manifest(file.parent)) != manifest:
            differs = [name for name in manifest if there.get(name) != manifest[name]]
            raise InputError(
                f"{file} is of other shards (differs: {', '.join(differs)}); give another output, or remove that file"
            )
        with writing(file) as partial:
            partial.write_text(json.dumps(manifest), encoding="utf-8")


class Block:
    """The next sentences of a text, of `size` tokens and ends of sentences together, or all; counts them."""

    def __init__(self, lines: Iterator[list[str]], size: int | None):
        self.lines, self.size, self.sentences = lines, size, 0

    def __iter__(self) -> Iterator[list[str]]:
        taken = 0
        while self.size is None or taken < self.size:
            tokens = next(self.lines, None)
            if tokens is None:
                return
            self.sentences, taken = self.sentences + 1, taken + len(tokens) + 1
            yield tokens


class Part(NamedTuple):
    """What is appended at a time: vectors [positions, ..], and of each sentence the positions and the text.

    `blocks` are the sentences of blocks that end here, `about` what is to be saved then.
    """

    vectors: np.ndarray
    positions: list[int]
    lines: list[bytes]
    tokens: int
    blocks: list[int]
    about: dict[str, Any] | None

    @classmethod
    def empty(cls, made: Made) -> "Part":
        return cls(np.zeros((0, *made.shape), made.dtype), [], [], 0, [], None)


def to_line(tokens: list[str]) -> bytes:
    """Tokens as a line of JSON."""
    return f"{json.dumps(tokens)}\n".encode()


def in_bytes(size: int) -> str:
    """A size for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, {"bytes": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{size:,.0f} {unit}" if unit in ("bytes", "kB") else f"{size:,.1f} {unit}"


def vector_column(sentences: Sequence[np.ndarray], made: Made) -> Any:
    """Vectors of sentences, each [positions, ..], as an array of Arrow: lists of fixed size, in lists unless pooled."""
    import pyarrow as arrow

    values = np.concatenate([np.zeros(0, made.dtype), *(own.reshape(-1) for own in sentences)])
    column = arrow.FixedSizeListArray.from_arrays(arrow.array(values), made.width)
    if made.layers is not None:
        column = arrow.FixedSizeListArray.from_arrays(column, made.layers)
    if made.pool is None:
        ends = np.cumsum([0, *map(len, sentences)])
        column = arrow.ListArray.from_arrays(arrow.array(ends, arrow.int32()), column)
    return column


def write_parquet(
    path: Path, stored: Iterable[tuple[bytes, np.ndarray]], made: Made, key: str, compression: Compression | None
) -> None:
    """A row for each sentence: `tokens`, and `vectors`, lists of a fixed size, a list of them unless pooled."""
    with needing("parquet"):
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    tokens, vectors = arrow.list_(arrow.string()), vector_column([], made).type
    schema = arrow.schema([("tokens", tokens), ("vectors", vectors)], {MADE_OF: key})

    def rows(group: list[tuple[bytes, np.ndarray]]) -> "arrow.Table":
        texts = arrow.array([json.loads(line) for line, _ in group], tokens)
        return arrow.Table.from_arrays([texts, vector_column([own for _, own in group], made)], schema=schema)

    options = {"compression": compression or "none", "use_dictionary": False, "write_statistics": False}
    with writing(path) as partial, parquet.ParquetWriter(partial, schema, **options) as file:
        group, size = [], 0
        for row in stored:
            group.append(row)
            size += row[1].nbytes
            if size >= GROUP_BYTES or len(group) >= GROUP_SENTENCES:
                file.write_table(rows(group))
                group, size = [], 0
        if group:
            file.write_table(rows(group))
