"""Arrays that are made once, in files of a folder, and mapped into memory from then on."""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

FORMAT = 1
PART, PIECE = 2**26, 2**20  # bytes that a checksum covers, and that are read at a time for it
DESCRIPTION = "description.json"


class Unusable(Exception):
    """A folder does not hold the arrays that are wanted; the message says why, nothing where there is none."""


class Unwritable(Exception):
    """A folder cannot be written."""


class Kept(NamedTuple):
    """Arrays by name, the checksums of each one's parts, and what their maker says about them, for JSON."""

    arrays: dict[str, np.ndarray]
    checksums: dict[str, list[int]]
    about: dict[str, Any]


def checksums(array: np.ndarray) -> list[int]:
    """CRC-32 of every 64 MiB of an array, by a few threads."""
    data = memoryview(array).cast("B")
    parts = [data[begin : begin + PART] for begin in range(0, len(data), PART)]
    with ThreadPoolExecutor(4) as threads:  # zlib works without Python's lock
        return list(threads.map(zlib.crc32, parts))


def checksums_of_file(file: Path) -> list[int]:
    """The same of a file, which is read and not mapped: mapped pages would count as this process' memory."""

    def checksum(begin: int) -> int:
        found, left = 0, PART
        with file.open("rb", buffering=0) as opened:
            opened.seek(begin)
            while piece := opened.read(min(left, PIECE)):
                found, left = zlib.crc32(piece, found), left - len(piece)
        return found

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(checksum, range(0, file.stat().st_size, PART)))


def read_description(folder: Path, key: Any) -> dict[str, Any]:
    """What the arrays in a folder are; `key` is what they must have been made of."""
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
        if description["format"] != FORMAT:
            raise Unusable("was written by another version")
        if description["key"] != key:
            raise Unusable("is of other files, or these have changed")
        if "about" not in description:
            raise KeyError
    except FileNotFoundError:
        raise Unusable(f"has no {DESCRIPTION}" if folder.exists() else "") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise Unusable(f"has a {DESCRIPTION} that cannot be read") from None
    return description


def read_arrays(folder: Path, dtypes: Mapping[str, type], key: Any) -> Kept:
    """The arrays in a folder, mapped into memory; every byte is checked."""
    description = read_description(folder, key)
    arrays, sums = {}, {}
    for name, dtype in dtypes.items():
        try:
            size, sums[name] = description["arrays"][name]
            arrays[name] = np.asarray(np.memmap(folder / name, dtype, "r"))
            right = len(arrays[name]) == size and checksums_of_file(folder / name) == sums[name]
        except (OSError, ValueError, TypeError, KeyError):  # not there, empty, not of whole numbers
            right = False
        if not right:
            raise Unusable(f"is damaged: {name} is not what was written")
    return Kept(arrays, sums, description["about"])


@contextlib.contextmanager
def writes(folder: Path) -> Iterator[None]:
    """Errors of files inside are those of writing."""
    try:
        yield
    except OSError as error:
        raise Unwritable(
            f"{folder} cannot be written ({error.strerror or error}); give another folder for the cache"
        ) from error


class GrowingArrays:
    """Arrays that are being made, in FOLDER.partial. What has been appended stays there after `save`.

    `about` is what was saved last, None at the beginning; `sizes` the numbers in each array.
    """

    def __init__(self, folder: Path, dtypes: Mapping[str, type], key: Any):
        self.target, self.dtypes, self.key = folder, dtypes, key
        self.folder = folder.with_name(f"{folder.name}.partial")
        self.about: dict[str, Any] | None = None
        self.sizes, self.checksums = dict.fromkeys(dtypes, 0), {name: [] for name in dtypes}
        with contextlib.suppress(Unusable, OSError, ValueError, TypeError, KeyError):
            saved = read_description(self.folder, key)
            sizes, sums = ({name: saved["arrays"][name][i] for name in dtypes} for i in (0, 1))
            if all((self.folder / name).stat().st_size >= self.bytes(name, sizes[name]) for name in dtypes):
                self.about, self.sizes, self.checksums = saved["about"], sizes, sums
        with writes(folder), contextlib.ExitStack() as opened:
            if self.about is None:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
            mode = "wb" if self.about is None else "r+b"
            self.files = {name: opened.enter_context((self.folder / name).open(mode)) for name in dtypes}
            for name, file in self.files.items():
                file.truncate(self.bytes(name, self.sizes[name]))  # what was appended after the last `save`
                file.seek(0, os.SEEK_END)
            self.opened = opened.pop_all()

    def bytes(self, name: str, size: int) -> int:
        return size * np.dtype(self.dtypes[name]).itemsize

    def saved(self, name: str) -> np.ndarray:
        """An array as it was when this was begun."""
        return np.fromfile(self.folder / name, self.dtypes[name])

    def append(self, more: Mapping[str, np.ndarray]) -> None:
        """Appends to each array."""
        for name, array in more.items():
            data, sums = memoryview(array.astype(self.dtypes[name], copy=False).tobytes()), self.checksums[name]
            with writes(self.target):
                self.files[name].write(data)
            written = self.bytes(name, self.sizes[name])
            while data:
                room = PART - written % PART
                if room == PART:
                    sums.append(0)
                sums[-1] = zlib.crc32(data[:room], sums[-1])
                written, data = written + len(data[:room]), data[room:]
            self.sizes[name] += len(array)

    def save(self, about: dict[str, Any]) -> None:
        """Makes sure that this state, about which `about` says more, is found again whatever happens."""
        arrays = {name: [self.sizes[name], self.checksums[name]] for name in self.dtypes}
        description = {"format": FORMAT, "key": self.key, "arrays": arrays, "about": about}
        with writes(self.target):
            for file in self.files.values():
                file.flush()
                os.fsync(file.fileno())
            new = self.folder / f"{DESCRIPTION}.new"
            with new.open("w") as file:
                json.dump(description, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.folder / DESCRIPTION)

    def finish(self) -> None:
        """Puts the arrays in their place; who has mapped those that were there keeps them."""
        with writes(self.target):
            self.opened.close()
            if self.target.exists():
                shutil.rmtree(self.target)
            os.replace(self.folder, self.target)

    def __enter__(self) -> "GrowingArrays":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # of what could not be written and is tried once more
            self.opened.close()


def keep_arrays(folder: Path, dtypes: Mapping[str, type], key: Any, make: Callable[[GrowingArrays], None]) -> Kept:
    """The arrays in a folder; where it has none made of `key`, `make` appends them, and saves them in the end.

    `make` goes on from what was saved when it was stopped. Of several processes one makes them, the others wait.
    Unwritable where the folder cannot be written.
    """
    with contextlib.suppress(Unusable):
        return read_arrays(folder, dtypes, key)
    with writes(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{folder}.lock")
        try:
            held = lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"another process is making {folder}: this one waits for it")
            held = lock.acquire()
    with held:
        try:
            return read_arrays(folder, dtypes, key)
        except Unusable as reason:
            if str(reason):
                print(f"{folder} {reason}; it is made again")
        with GrowingArrays(folder, dtypes, key) as growing:
            make(growing)
            growing.finish()
        try:
            return read_arrays(folder, dtypes, key)
        except Unusable as reason:
            raise Unwritable(f"{folder} does not keep what is written to it: it {reason}") from None
