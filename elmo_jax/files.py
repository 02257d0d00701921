"""Files on disk or in an object store (gs://...): written whole or not at all."""

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from elmo_jax.errors import InputError


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path names an object store rather than the disk."""
    return "://" in os.fspath(path)


def matching(pattern: str) -> list[epath.Path]:
    """Files that match a glob, sorted; folders are left out."""
    if not is_remote(pattern):
        return [epath.Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(name)]
    path = epath.Path(pattern)
    while glob.has_magic(os.fspath(path)):
        path = path.parent
    inside = pattern[len(os.fspath(path)) :].lstrip("/")
    found = path.glob(inside) if inside else [path] if path.exists() else []
    return sorted(found, key=os.fspath)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[Path]:
    """A local path to write to; what is there in the end appears at `path` at once, and nothing after an error."""
    try:
        if is_remote(path):
            with tempfile.TemporaryDirectory() as folder:
                partial = Path(folder) / "file"
                yield partial
                epath.Path(path).write_bytes(partial.read_bytes())
        else:
            partial = Path(f"{os.fspath(path)}.partial")
            try:
                yield partial
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {os.fspath(path)} ({error}); give a path that can be written") from error


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[Path]:
    """A local path with the content of the file at `path`."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "file"
        with epath.Path(path).open("rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield copy
