"""Files on disk or in an object store (gs://...): written whole or not at all."""

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from elmo_jax.errors import InputError, brief

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"  # how an HDF5 file begins
# Errors that only a write can have.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path names an object store rather than the disk."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike) -> epath.Path:
    """A path on disk or in an object store."""
    try:
        return epath.Path(path)
    except KeyError:
        raise InputError(
            f"{brief(path)} is a URL that cannot be read here; download the file first and give its path, or that "
            "of an object store (gs://...), or the name of a published model (elmo-jax models lists them)"
        ) from None


def matching(pattern: str) -> list[epath.Path]:
    """Files that match a glob, sorted; folders are left out."""
    if not is_remote(pattern):
        return [epath.Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(name)]
    path = as_path(pattern)
    while glob.has_magic(os.fspath(path)):
        path = path.parent
    inside = pattern[len(os.fspath(path)) :].lstrip("/")
    files = path.glob(inside) if inside else [path] if path.exists() else []
    return sorted(files, key=os.fspath)


def unwritable(path: str | os.PathLike, reason: object) -> InputError:
    """The error of a path that cannot be written."""
    return InputError(f"cannot write {os.fspath(path)} ({reason}); give a path that can be written")


def check_output(path: str | os.PathLike, *inputs: str | os.PathLike | None) -> None:
    """Refuses, before any work, a path that cannot be written, or that is one of the files that are read."""
    name, target = os.fspath(path), os.path.realpath(path)
    for file in (os.fspath(file) for file in inputs if file is not None):
        if file == name or (os.path.exists(file) and os.path.exists(name) and os.path.samefile(file, name)):
            raise InputError(f"the output {name} is the file {file}, which is read; give another path")
    if is_remote(path):
        as_path(path)
        return
    try:
        regular = stat.S_ISREG(os.stat(target).st_mode)
    except FileNotFoundError:
        regular = True
    except OSError as error:
        raise unwritable(path, error) from None
    folder = os.path.dirname(target)
    while not os.path.lexists(folder):  # it will be made
        folder = os.path.dirname(folder)
    if not regular:
        raise unwritable(path, "it is a folder, a device, a pipe or a socket")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(path, f"{folder} is no folder that can be written to")


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
    """A local path to write to; what is there in the end appears at `path` at once, and nothing after an error.

    Of the errors in the body only those of writing become "cannot write": others may be those of what is read there.
    Where `path` is a link, the file that it points to is written.
    """
    check_output(path)
    remote, target = is_remote(path), Path(os.path.realpath(path))
    folder = tempfile.gettempdir() if remote else target.parent
    partial = Path(folder, f".{target.name[:50]}.{secrets.token_hex(8)}")
    complete = False
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if remote else 0o666))
        yield partial
        complete = True
        if remote:
            epath.Path(path).write_bytes(partial.read_bytes())
        else:
            os.replace(partial, target)
    except OSError as error:
        if complete or error.errno in DISK_FULL or error.filename in (partial, str(partial)):
            raise unwritable(path, error.strerror or error) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[Path]:
    """A local path with the content of a file; a pipe, which would be waited for, or a device is refused."""
    source = as_path(path)
    if not source.exists():
        raise InputError(f"there is no file {os.fspath(path)}")
    if not is_remote(path):
        if not os.path.isfile(path):
            raise InputError(f"{os.fspath(path)} is not a regular file")
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "file")
        with source.open("rb") as original, copy.open("wb") as target:
            shutil.copyfileobj(original, target)
        yield copy


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object that a JSON file holds; a byte order mark is read as nothing."""
    try:
        with reading(path) as file:
            content = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {os.fspath(path)} ({error})") from None
    if content.startswith(HDF5_MAGIC):
        raise InputError(f"{os.fspath(path)} is an HDF5 file, not JSON; is it in the place of options.json?")
    try:
        values = json.loads(content.decode("utf-8-sig"))
        if not isinstance(values, dict):
            raise ValueError(f"a {type(values).__name__}, not an object")
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, too deep, a number of too many digits
        raise InputError(f"{os.fspath(path)} is not JSON that can be read ({brief(error)})") from None
    return values
