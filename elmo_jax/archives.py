"""Zip and tar files that models come in, unpacked without trust."""

import contextlib
import gzip
import io
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from tqdm import tqdm

from elmo_jax.errors import InputError, brief
from elmo_jax.files import reading

# Members, and how many times its own size an archive may unpack to; weights are hardly compressed at all. What is
# small either way is not measured.
MOST_MEMBERS, MOST_EXPANSION, SMALL = 10_000, 100, 1 << 20
# Bytes of a header in a tar file; a long name takes hundreds.
LONGEST_HEADER = 1 << 14
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def is_archive(path: Path) -> bool:
    """Whether a file begins as zip and gzip files do."""
    with reading(path) as local, local.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b"))


def _target(folder: Path, name: str) -> Path:
    """Where a member goes; its name must not lead out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or re.search(r"[\\\0]|^[A-Za-z]:", name):
        raise InputError(f"it has a member {brief(repr(name), 80)}, a name that could lead out of a folder")
    return folder.joinpath(*parts)


class _Room:
    """What an archive may still unpack to: a multiple of its own size, and what the disk has."""

    def __init__(self, size: int, folder: Path):
        self.limit = max(MOST_EXPANSION * size, SMALL)
        self.free = shutil.disk_usage(folder).free
        self.members = self.taken = 0

    def take(self, name: str, size: int) -> None:
        self.members, self.taken = self.members + 1, self.taken + size
        if self.members > MOST_MEMBERS:
            raise InputError(f"it has more than {MOST_MEMBERS:,} members; a model has some ten")
        if size < 0 or self.taken > self.limit:
            raise InputError(f"{brief(name, 80)} unpacks to more than {MOST_EXPANSION} times the size of the archive")
        if self.taken > self.free:
            raise InputError(
                f"it unpacks to {self.taken:,} bytes or more and {tempfile.gettempdir()} has {self.free:,} left; free "
                "some, or name a folder on a larger disk by the environment variable TMPDIR"
            )


def _write(source: IO[bytes], target: Path, size: int, bar: tqdm) -> None:
    """Unpacks a member, which must have the size that the archive says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        while size and (block := source.read(min(size, 1 << 20))):
            file.write(block)
            size -= len(block)
            bar.update(len(block))
    if size:
        raise InputError(f"{brief(target.name, 80)} is shorter than the archive says")


def _unpack_zip(file: BinaryIO, folder: Path, room: _Room, bar: tqdm) -> None:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            _target(folder, info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InputError(f"{brief(info.filename, 80)} is a link or a device, which no model needs")
            if info.compress_type not in COMPRESSIONS or info.flag_bits & 1:
                raise InputError(f"{brief(info.filename, 80)} is encrypted, or packed in an unusual way; zip it again")
            room.take(info.filename, info.file_size)
        for info in archive.infolist():
            if not info.is_dir():
                with archive.open(info) as member:
                    _write(member, _target(folder, info.filename), info.file_size, bar)


class _Headers(io.RawIOBase):
    """A file for tarfile, which reads headers at once, as long as they say they are, and goes forward only."""

    def __init__(self, file: BinaryIO, room: _Room):
        self._file, self._room = file, room

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise InputError(f"it has a header of {size:,} bytes")
        return self._file.read(size)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or place < self._file.tell() or place > self._room.limit:
            raise InputError("its members do not follow one another")
        return self._file.seek(place)


def _unpack_tar(file: BinaryIO, folder: Path, room: _Room, bar: tqdm) -> None:
    with gzip.open(file) as content, tarfile.TarFile(fileobj=_Headers(content, room)) as archive:
        for info in archive:
            room.take(info.name, info.size)
            target = _target(folder, info.name)
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise InputError(f"{brief(info.name, 80)} is a link or a device, which no model needs")
            content.seek(info.offset_data)
            _write(content, target, info.size, bar)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with what is in a .zip or .tar.gz file; where all is in one folder, that one.

    Refused are names that lead elsewhere, links, whatever is no file, and what unpacks to more than a hundred times
    its size or than the disk has room for. Errors of the body that name the folder name the archive instead.
    """
    with tempfile.TemporaryDirectory() as temporary, reading(path) as local, local.open("rb") as file:
        folder = Path(temporary)
        try:
            unpack = _unpack_tar if file.read(2) == b"\x1f\x8b" else _unpack_zip
            file.seek(0)
            size = local.stat().st_size
            with tqdm(desc=f"unpacking {local.name}", unit="B", unit_scale=True, delay=2, leave=False) as bar:
                unpack(file, folder, _Room(size, folder), bar)
        except MemoryError:
            raise
        except InputError as error:
            raise InputError(f"{os.fspath(path)}: {error}") from None
        except Exception as error:  # of damaged files zipfile, zlib and tarfile raise nearly everything
            raise InputError(f"{os.fspath(path)} is not a whole .zip or .tar.gz file ({brief(error)})") from error
        while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
            folder = inside[0]
        try:
            yield folder
        except InputError as error:
            raise InputError(str(error).replace(str(folder), os.fspath(path))) from None
