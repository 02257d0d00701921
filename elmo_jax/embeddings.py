"""Vectors of text in files: HDF5, one flat array, Parquet, or shards of any of them; all are read alike, lazily.

The flat format is a folder of arrays (`arrays.py`), which other programs map into memory as well:

    vectors       float16 or float32 [N, 2P], or [N, L + 1, 2P] with all layers: of every position, or of every sentence
    offsets       int64 [S + 1]: sentence i has the vectors from offsets[i] to offsets[i + 1]
    text          bytes: the tokens of every sentence as a line of JSON, in ASCII
    text_offsets  int64 [S + 1]: where in it each sentence begins
    blocks        int64: sentences of every block of the text, of other shards' too

`description.json` says of what they were made (`key`).
"""

import bisect
import itertools
import json
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elmo_jax.arrays import DESCRIPTION, FORMAT
from elmo_jax.dump import INDEX, read_index
from elmo_jax.errors import InputError, brief, needing
from elmo_jax.files import HDF5_MAGIC
from elmo_jax.hdf5 import errors_of, floating_dataset, open_hdf5, read_array
from elmo_jax.parquet_checks import MAGIC as PARQUET_MAGIC
from elmo_jax.parquet_checks import check_pages, read_row_groups

# Readers of a folder of Parquet files leave out names that begin so.
MANIFEST = "_manifest.json"
HDF5_SUFFIXES, PARQUET_SUFFIX = (".hdf5", ".h5"), ".parquet"
MAGIC = dict.fromkeys(HDF5_SUFFIXES, HDF5_MAGIC) | {PARQUET_SUFFIX: PARQUET_MAGIC}  # how the files begin
VECTOR_TYPES = {"float16": np.float16, "float32": np.float32}
OFFSETS = {"offsets": np.int64, "text": np.uint8, "text_offsets": np.int64, "blocks": np.int64}
# The metadata of a Parquet file and the attribute of an HDF5 file that say of what it was made.
MADE_OF = "elmo_jax"


class Embeddings(ABC):
    """Vectors of sentences, read when they are asked for.

    `len(embeddings)` is their number, `embeddings[i]` are the vectors of sentence i, as they were written: [T_i, 2P],
    [L + 1, T_i, 2P] with all layers, without T_i when they are of sentences. Iterating gives them in order. A `with`
    statement closes the files.
    """

    def __getitem__(self, number: int) -> np.ndarray:
        return self._read(self._checked(number))

    def tokens(self, number: int) -> list[str]:
        """The tokens of a sentence."""
        return self._tokens(self._checked(number))

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self._read, range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self):,} sentences, {os.fspath(self.path)!r})"

    def __enter__(self) -> "Embeddings":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; memory that is mapped stays while an array of it is in use."""
        return

    def _checked(self, number: int) -> int:
        if isinstance(number, slice):
            raise TypeError("embeddings are read one sentence at a time: embeddings[3], not embeddings[3:5]")
        try:
            return range(len(self))[number]
        except IndexError:
            raise IndexError(f"there is no sentence {number} among {len(self):,}, the first of which is 0") from None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(self, number: int) -> np.ndarray: ...

    @abstractmethod
    def _tokens(self, number: int) -> list[str]: ...


def read_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Opens vectors that `elmo-jax embed` wrote, in any of its formats, or a folder of shards.

    InputError for what they are not, or where a shard is missing.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return Shards(path)
    if (path / DESCRIPTION).is_file():
        return Flat(path)
    if path.is_dir():
        raise InputError(f"{path} has neither a {DESCRIPTION} nor a {MANIFEST}; give a folder that embed has finished")
    if not path.is_file():
        raise InputError(f"there is no file or folder {path}")
    with path.open("rb") as file:
        begin = file.read(8)
    if begin.startswith(PARQUET_MAGIC):
        return Parquet(path)
    if begin.startswith(HDF5_MAGIC):
        return HDF5(path)
    raise InputError(f"{path} is neither HDF5 nor Parquet; give what embed wrote")


class Made:
    """What vectors were made as, of the `key` of a description: their dtype, and the shape of one position's."""

    def __init__(self, key: Any):
        try:
            self.dtype = VECTOR_TYPES[key["dtype"]]
            self.layers, self.width, self.pool = key["all layers"], key["width"], key["pool"]
            sizes = [self.width] if self.layers is None else [self.layers, self.width]
            if not all(isinstance(size, int) and 0 < size < 2**31 for size in sizes):
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise InputError("its description is not one of vectors") from None
        self.shape = tuple(sizes)
        self.numbers = int(np.prod(self.shape))

    def of_sentence(self, positions: np.ndarray) -> np.ndarray:
        """[positions, ..] of a sentence as they are given out: layers first, without positions if pooled."""
        if self.pool is not None:
            return positions[0]
        return positions if self.layers is None else positions.swapaxes(0, 1)

    def of_position(self, vectors: np.ndarray) -> np.ndarray:
        """The inverse."""
        if self.pool is not None:
            return vectors[None]
        return vectors if self.layers is None else vectors.swapaxes(0, 1)

    def stored(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Arrays joined, in the dtype. InputError where it cannot hold their numbers."""
        with np.errstate(over="ignore"):
            vectors = np.concatenate(arrays).astype(self.dtype)
        if self.dtype is np.float16 and not np.isfinite(vectors).all():
            raise InputError("some vectors have numbers that float16 cannot hold (above 65,504); give dtype float32")
        return vectors


class Flat(Embeddings):
    """Vectors in the flat format, mapped into memory."""

    def __init__(self, path: Path):
        self.path = path
        try:
            description = json.loads((path / DESCRIPTION).read_bytes())
            if description["format"] != FORMAT:
                raise InputError("it was written by another version")
            self.made = Made(description["key"])
            if not description["about"]["whole"]:
                raise InputError("it is not finished; give the command that writes it again")
            arrays = {}
            for name, dtype in {"vectors": self.made.dtype, **OFFSETS}.items():
                size = description["arrays"][name][0]
                if not isinstance(size, int) or (path / name).stat().st_size != size * np.dtype(dtype).itemsize:
                    raise InputError(f"{name} has not the size that its {DESCRIPTION} says")
                arrays[name] = np.memmap(path / name, dtype, "r") if size else np.zeros(0, dtype)
            self.offsets, self.text, self.text_offsets = (arrays[name] for name in ("offsets", "text", "text_offsets"))
            if len(self.offsets) != len(self.text_offsets) or not len(self.offsets):
                raise InputError("it has not as many sentences as lines of text")
            self.vectors = arrays["vectors"].reshape(-1, *self.made.shape)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{path} holds no vectors that embed wrote ({brief(repr(error))})") from None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _part(self, array: np.ndarray, offsets: np.ndarray, number: int) -> np.ndarray:
        begin, end = offsets[number : number + 2].tolist()
        if not 0 <= begin <= end <= len(array):
            raise InputError(f"{self.path}: sentence {number} lies from {begin} to {end} of {len(array)}")
        return array[begin:end]

    def _read(self, number: int) -> np.ndarray:
        positions = self._part(self.vectors, self.offsets, number)
        if self.made.pool is not None and len(positions) != 1:
            raise InputError(f"{self.path}: sentence {number} has {len(positions)} vectors")
        return self.made.of_sentence(positions)

    def _tokens(self, number: int) -> list[str]:
        return parse_tokens(self._part(self.text, self.text_offsets, number).tobytes(), self.path, number)


def parse_tokens(line: bytes, path: Path, number: int) -> list[str]:
    """Tokens of a line of JSON."""
    try:
        tokens = json.loads(line)
        if isinstance(tokens, list) and all(isinstance(token, str) for token in tokens):
            return tokens
    except (ValueError, RecursionError):
        pass
    raise InputError(f"{path}: the text of sentence {number} is no list of tokens")


class HDF5(Embeddings):
    """Vectors in the format of bilm-tf and AllenNLP, of any of their dumps."""

    def __init__(self, path: Path):
        self.path = path
        opened = open_hdf5(path)
        self._file: h5py.File = opened.__enter__()
        self._close = weakref.finalize(self, opened.__exit__, None, None, None)  # at the process' end, too
        self._texts: dict[str, str] | None = None
        try:
            with errors_of(path):
                self._count = len(self._file) - (INDEX in self._file)
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        self._close()

    def __len__(self) -> int:
        return self._count

    def _read(self, number: int) -> np.ndarray:
        with errors_of(self.path):
            return read_array(floating_dataset(self._file, str(number)))

    def _tokens(self, number: int) -> list[str]:
        if self._texts is None:
            with errors_of(self.path):
                self._texts = {name: text for text, name in read_index(self._file)}
        if str(number) not in self._texts:
            raise InputError(f"{self.path}: {INDEX} has no sentence {number}; some writers keep the last of equal ones")
        return self._texts[str(number)].split()


class Parquet(Embeddings):
    """Vectors in a Parquet file, a group of rows at a time."""

    def __init__(self, path: Path):
        self.path = path
        with needing("parquet"):
            import pyarrow.parquet as parquet
        try:
            self._file = parquet.ParquetFile(path)
            made = (self._file.schema_arrow.metadata or {}).get(MADE_OF.encode(), b"null")
            self.made = Made(json.loads(made))
            with path.open("rb") as raw:
                self._groups = read_row_groups(raw, path)
            if self._file.schema_arrow.names != ["tokens", "vectors"]:
                raise InputError(f"{path}: its columns are not tokens and vectors")
        except InputError:
            raise
        except Exception as error:  # Arrow's errors have many types
            raise InputError(f"{path} is not a whole Parquet file of vectors ({brief(error)})") from None
        self._ends = [*itertools.accumulate(group.rows for group in self._groups)]
        self._group: tuple[int, Any] = (-1, None)

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _row(self, number: int, column: str) -> Any:
        """A value of Arrow."""
        group = bisect.bisect_right(self._ends, number)
        if self._group[0] != group:
            try:
                with self.path.open("rb") as raw:
                    check_pages(raw, self._groups[group], self.path)
                self._group = group, self._file.read_row_group(group)
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"{self.path} cannot be read ({brief(error)})") from None
        return self._group[1].column(column)[number - (self._ends[group - 1] if group else 0)]

    def _read(self, number: int) -> np.ndarray:
        from pyarrow.types import is_fixed_size_list

        values = self._row(number, "vectors")
        try:
            values = values.values
            while is_fixed_size_list(values.type):
                values = values.flatten()
            numbers = np.asarray(values.to_numpy(zero_copy_only=False), self.made.dtype)
            positions = numbers.reshape(-1, *self.made.shape)
        except Exception:  # of another type than the metadata says
            positions = None
        if positions is None or (self.made.pool and len(positions) != 1):
            raise InputError(f"{self.path}: sentence {number} has not the vectors that the file's metadata says")
        return self.made.of_sentence(positions)

    def _tokens(self, number: int) -> list[str]:
        try:
            tokens = self._row(number, "tokens").as_py()
        except UnicodeDecodeError:
            tokens = None
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise InputError(f"{self.path}: the text of sentence {number} is no list of tokens")
        return tokens


class Shards(Embeddings):
    """What several processes wrote: block b of the text is in shard b modulo their number."""

    def __init__(self, path: Path):
        self.path = path
        manifest = read_manifest(path)
        self.shards = []
        blocks, count = np.array(manifest["blocks"], np.int64), manifest["shards"]
        for number, name in enumerate(shard_names(count, manifest["suffix"])):
            if not (path / name).exists():
                raise InputError(f"{path} lacks {name} of {count} shards; embed with --shard {number}/{count}, too")
            self.shards.append(read_embeddings(path / name))
            if len(self.shards[-1]) != blocks[number::count].sum():
                raise InputError(f"{path / name} has not the sentences that {MANIFEST} says")
        self._starts = np.cumsum(np.concatenate([[0], blocks]))
        # Sentences of the same shard that come before each block.
        self._before = np.zeros(len(blocks), np.int64)
        for number in range(count):
            own = blocks[number::count]
            self._before[number::count] = np.cumsum(own) - own

    def close(self) -> None:
        for shard in self.shards:
            shard.close()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, number: int) -> tuple[Embeddings, int]:
        block = int(np.searchsorted(self._starts, number, "right")) - 1
        return self.shards[block % len(self.shards)], int(self._before[block] + number - self._starts[block])

    def _read(self, number: int) -> np.ndarray:
        shard, place = self._place(number)
        return shard[place]

    def _tokens(self, number: int) -> list[str]:
        shard, place = self._place(number)
        return shard.tokens(place)


def shard_names(count: int, suffix: str) -> list[str]:
    """The names of shards in their folder."""
    return [f"shard-{number}-of-{count}{suffix}" for number in range(count)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """How shards make up a text: "shards" their number, "suffix", "blocks" the sentences of each block, "key"."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        blocks, count, suffix = manifest["blocks"], manifest["shards"], manifest["suffix"]
        right = isinstance(count, int) and 0 < count < 2**20 and suffix in ("", *HDF5_SUFFIXES, PARQUET_SUFFIX)
        right = right and all(isinstance(block, int) and 0 <= block < 2**40 for block in blocks)
        if manifest["format"] == FORMAT and right:
            return manifest
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    raise InputError(f"{folder / MANIFEST} is no manifest of shards that embed wrote")
