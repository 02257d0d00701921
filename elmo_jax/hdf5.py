"""HDF5 files: read without trust, written only where there is room."""

import contextlib
import errno
import io
import math
import os
import shutil
import zlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import IO

import h5py
import numpy as np
from h5py import h5d, h5f, h5fd, h5p, h5s, h5t, h5z

from elmo_jax.errors import InputError, brief
from elmo_jax.files import reading, unwritable, writing

FLOATS = (h5t.IEEE_F16LE, h5t.IEEE_F16BE, h5t.IEEE_F32LE, h5t.IEEE_F32BE, h5t.IEEE_F64LE, h5t.IEEE_F64BE)
# Deflated data comes to at most so many times its size (1032, by the format).
MOST_DEFLATED = 1040
# Bytes of memory that the metadata of a file may take which is written, however many datasets it has.
METADATA_CACHE = 1 << 22
# Bytes that are reserved beyond the data, for what HDF5 notes about them; its table of names grows by doubling.
SPARE, SPARE_PER_DATASET = 1 << 20, 32
# And for the index of an array that is compressed.
CHUNKED = 1 << 13


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Opens a file for reading; whatever h5py cannot read in it, it is an InputError."""
    with reading(path) as local, errors_of(path), h5py.File(local, "r") as file:
        yield file


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """What h5py cannot read inside is an InputError that names the file."""
    try:
        yield
    except MemoryError:
        raise
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # on damaged files h5py raises nearly everything
        raise InputError(f"{path} is not a whole HDF5 file ({brief(error)})") from error


def own_item(file: h5py.File, name: str) -> h5py.HLObject | None:
    """What the file itself has under a name, if anything; where a link leads is not its own."""
    for part in accumulate(name.split("/"), "{}/{}".format):
        link = file.get(part, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise InputError(f"{brief(part, 80)} is a link")
    return file[name]


def own_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose values lie in this file, written and as they are: nothing else that a crafted file may name.

    External or virtual storage would read other files, filters but gzip's may blow up, and what was never written
    would be zeros.
    """
    item = own_item(file, name)
    if item is None:
        raise InputError(f"it has no dataset {brief(name, 80)}")
    if not isinstance(item, h5py.Dataset):
        raise InputError(f"{brief(name, 80)} is no dataset")
    storage = item.id.get_create_plist()
    if storage.get_layout() not in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED) or storage.get_external_count():
        raise InputError(f"{brief(name, 80)} has its values in another file")
    filters = [storage.get_filter(number)[0] for number in range(storage.get_nfilters())]
    if filters not in ([], [h5z.FILTER_DEFLATE]):
        raise InputError(f"{brief(name, 80)} is filtered, and not by gzip alone; write it again (h5repack -f NONE)")
    shape = item.shape or ()
    size = math.prod(shape) * item.id.get_type().get_size()
    if item.chunks is None:
        stored = item.id.get_storage_size() >= size  # more where text is kept apart
    else:
        sides = list(zip(shape, item.chunks, strict=True))
        blocks = math.prod(-(-length // chunk) for length, chunk in sides)
        stored = item.id.get_num_chunks() == blocks and all(chunk <= length for length, chunk in sides)
    if not stored or size > file.id.get_filesize() * (MOST_DEFLATED if filters else 1):
        raise InputError(f"{brief(name, 80)} {shape} was never written whole")
    return item


def floating_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset of the file's own with floating numbers."""
    dataset = own_dataset(file, name)
    if not any(dataset.id.get_type() == kind for kind in FLOATS):
        raise InputError(f"{brief(name, 80)} has no floating numbers of 16, 32 or 64 bits")
    return dataset


def read_array(dataset: h5py.Dataset) -> np.ndarray:
    """The values of one of the file's own datasets; gzip's come to as many bytes as are declared, or not at all."""
    if dataset.compression is None:
        return dataset[()]
    array = np.empty(dataset.shape, dataset.dtype)
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    for number in range(dataset.id.get_num_chunks()):
        begin, _, _, stored = dataset.id.get_chunk_info(number)
        if stored > dataset.file.id.get_filesize():
            raise InputError(f"{brief(dataset.name, 80)} was never written whole")
        skipped, data = dataset.id.read_direct_chunk(begin)
        if not skipped:  # else it was written as it is
            inflate = zlib.decompressobj()
            try:
                data = inflate.decompress(data, size + 1)
            except zlib.error as error:
                raise InputError(f"{brief(dataset.name, 80)} is damaged ({error})") from None
        if len(data) != size:
            raise InputError(f"{brief(dataset.name, 80)} does not hold the bytes that it declares")
        places = tuple(slice(first, first + chunk) for first, chunk in zip(begin, dataset.chunks, strict=True))
        there = array[places]
        chunk = np.frombuffer(data, dataset.dtype).reshape(dataset.chunks)
        there[...] = chunk[tuple(map(slice, there.shape))]
    return array


def read_floats(dataset: h5py.Dataset) -> np.ndarray:
    """The values as float32; all must be finite."""
    return finite_floats(dataset.name, read_array(dataset))


def finite_floats(name: str, array: np.ndarray) -> np.ndarray:
    """An array of floating numbers as float32; all must be finite, or the error says which array it is."""
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"{brief(name, 80)} has values that are not finite (NaN or infinite)")
    return array


class HDF5Writer:
    """An HDF5 file of which every byte is reserved on the disk before HDF5 writes it.

    HDF5 crashes (a segmentation fault when the file is closed) if a write fails, so none may fail.
    """

    def __init__(self, path: Path, file: h5py.File, raw: io.FileIO):
        self.path, self.file, self.folder = path, file, Path(raw.name).parent
        self._raw, self._reserved, self._datasets = raw, 0, 0

    def reserve(self, size: int) -> None:
        """Takes room for `size` bytes more from the disk."""
        size += self.file.id.get_filesize() + SPARE + SPARE_PER_DATASET * self._datasets
        if size <= self._reserved:
            return
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._raw.fileno(), self._reserved, size + SPARE - self._reserved)
            elif shutil.disk_usage(self.folder).free < size + SPARE - self._reserved:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise unwritable(self.path, f"{error.strerror}: it takes {size:,} bytes at least") from None
        self._reserved = size + SPARE

    def add(self, name: str, array: np.ndarray, gzip: bool = False) -> h5py.Dataset:
        """Writes an array, compressed if `gzip` and there is anything in it."""
        self._datasets += 1
        compressed = {"compression": "gzip", "chunks": array.shape} if gzip and array.size else {}
        self.reserve(array.nbytes + (CHUNKED if compressed else 0))
        return self.file.create_dataset(name, data=array, **compressed)

    def add_text(self, name: str, text: IO[bytes]) -> None:
        """Writes a dataset [1] with the text of a file, past HDF5, which would want it all in memory."""
        self.reserve(size := text.tell())
        early = h5p.create(h5p.DATASET_CREATE)
        early.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5d.FILL_TIME_NEVER)
        early.set_obj_track_times(False)  # the same text makes the same file
        kind = h5t.py_create(np.dtype(f"S{size}"))
        dataset = h5d.create(self.file.id, name.encode(), kind, h5s.create_simple((1,)), early)
        text.seek(0)
        self._raw.seek(dataset.get_offset())
        shutil.copyfileobj(text, self._raw)


def _empty() -> bytes:
    """An HDF5 file without anything, and without the time."""
    access, creation, image = h5p.create(h5p.FILE_ACCESS), h5p.create(h5p.FILE_CREATE), io.BytesIO()
    access.set_fileobj_driver(h5fd.fileobj_driver, image)
    access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V18)
    creation.set_obj_track_times(False)
    h5f.create(b"empty", h5f.ACC_TRUNC, creation, access).close()
    return image.getvalue()


@contextlib.contextmanager
def writing_hdf5(path: Path) -> Iterator[HDF5Writer]:
    """An HDF5 file that appears at `path` when it is whole.

    Of the format of HDF5 1.8 (2008), whose groups need not be in memory as a whole, as the first format's names are.
    """
    with writing(path) as partial:
        partial.write_bytes(_empty())  # so that opening it leaves nothing to write should there be no room for more
        with partial.open("r+b", buffering=0) as raw, h5py.File(partial, "r+", libver=("v108", "v108")) as file:
            cache = file.id.get_mdc_config()
            cache.set_initial_size, cache.initial_size = True, METADATA_CACHE
            cache.min_size = cache.max_size = METADATA_CACHE
            file.id.set_mdc_config(cache)
            yield HDF5Writer(path, file, raw)
            file.flush()
            size = file.id.get_filesize()
        os.truncate(partial, size)
