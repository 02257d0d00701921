"""What the fuzzer runs: readers of files, each from a folder in which an input has changed one file."""

import contextlib
import gzip
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from etils import epath

from elmo_jax import bundles
from elmo_jax.arrays import Unwritable, keep_arrays
from elmo_jax.checkpoint import Checkpoints
from elmo_jax.config import from_json, from_options, load_config, read_options, to_json, to_options
from elmo_jax.dump import nearest
from elmo_jax.embeddings import read_embeddings
from elmo_jax.errors import InputError
from elmo_jax.folders import read_folder
from elmo_jax.mix import Mix
from elmo_jax.pickles import open_torch
from elmo_jax.sources import read_input
from elmo_jax.tasks import formats
from elmo_jax.tasks.systems import TextVectors
from elmo_jax.vocabulary import Alphabet, Vocabulary
from elmo_jax.weights import read_weights
from fuzz.seeds import CACHED, CANARY, KEY, TINY, checkpoint

# What the first byte of an input says beside the number of the file.
CHANGES, UNCHECKED, FILES = 128, 64, 64
# Bytes of one change: where, what kind, a value.
PLACE, CHANGE = 3, 6
# Bytes of a file that are not added to, so that reading it takes no time.
LONGEST = 1 << 16


class Finding(Exception):
    """A reader did what it must not do."""


def changed(data: bytes, files: Sequence[bytes]) -> tuple[int, bytes]:
    """The number of a file and its new content: the input itself, or changes of what is there."""
    first = data[0] if data else 0
    number = first % FILES % len(files)
    if not first & CHANGES:
        return number, data[1:]
    content = bytearray(files[number])
    for start in range(1, len(data) - CHANGE + 1, CHANGE):
        place = int.from_bytes(data[start : start + PLACE], "little") % (len(content) + 1)
        kind, value = data[start + PLACE] % 8, data[start + PLACE + 1 : start + CHANGE]
        if kind < 3:  # one byte or two, or eight, in their place
            size = (1, 2, 8)[kind]
            content[place : place + size] = (value * 4)[: min(size, len(content) - place)]
        elif kind < 5:
            content[place : place + 8] = (b"\0" if kind == 3 else b"\xff") * min(8, len(content) - place)
        elif kind == 5:
            del content[place : place + value[0]]
        elif kind == 6:
            content[place:place] = value
        elif len(content) < LONGEST:
            content[place:place] = content[place : place + int.from_bytes(value, "little")]
    return number, bytes(content)


class Anything:
    """Equal to everything, and has everything in it."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __contains__(self, other: object) -> bool:
        return True


def right(*_: object) -> Anything:
    """A checksum."""
    return Anything()


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Checksums are right whatever they are, so that changes come to what reads the content."""
    with (
        mock.patch.object(zipfile.ZipExtFile, "_update_crc", right),
        mock.patch.object(tarfile, "calc_chksums", right),
        mock.patch.object(bundles, "masked", right),
    ):
        yield


def finite(arrays: Any) -> None:
    """Arrays that were read must be finite, and not from a file beside the one that was read."""
    for array in arrays.values():
        if isinstance(array, dict):
            finite(array)
        elif array.dtype != np.float32 or not np.isfinite(array).all() or (array == np.float32(CANARY)).any():
            raise Finding(f"{array.dtype} {array.shape} has numbers that must not be read")


def vocabulary(folder: Path) -> None:
    words = Vocabulary.load(folder / "vocab.txt")
    words.ids(["the", *words.words[:10]])


def alphabets(folder: Path) -> None:
    alphabet = Alphabet.load(folder / "characters.txt")
    (folder / "characters.txt").write_bytes(alphabet.to_bytes())
    if Alphabet.load(folder / "characters.txt").characters != alphabet.characters:
        raise Finding("an alphabet is another one when it is written and read")


def options(folder: Path) -> None:
    if (folder / "config.json").exists():
        config = load_config(str(folder / "config.json"))
        same = from_json(json.loads(json.dumps(to_json(config)))) == config
    else:
        model = read_options(folder / "options.json")
        same = from_options(to_options(model), "written") == model
    if not same:
        raise Finding("options are others when they are written and read")


def weights(folder: Path) -> None:
    for file in sorted(folder.glob("weights.*")):
        finite(read_weights(file, TINY))


def model(folder: Path) -> None:
    finite(read_folder(folder, with_softmax=True).parameters)


def archives(folder: Path) -> None:
    if (folder / "model.tar").exists():
        with gzip.open(folder / "model.tar.gz", "wb", 1) as file:
            file.write((folder / "model.tar").read_bytes())
    path = next(folder / name for name in ("model.zip", "model.tar.gz") if (folder / name).exists())
    finite(read_folder(path).parameters)


def pickles(folder: Path) -> None:
    with open_torch(folder / "weights.th") as file:
        for name in file:
            try:
                finite({name: file.floats(name)})
            except InputError:
                continue


def text(folder: Path) -> None:
    (file,) = folder.iterdir()
    column = "1" if file.suffix == ".conll" else None
    lines = read_input([os.fspath(file)], column=column)
    places, found = [], []
    for tokens in lines:
        if any(token.split() != [token] for token in tokens):
            raise Finding(f"{tokens!r} are no tokens")
        found.append(tokens)
        if len(found) % 3 == 1 and file.suffix != ".conll":
            places.append((len(found), lines.place()))
    for count, place in places[-1:]:
        if list(read_input([os.fspath(file)], column=column, begin=place)) != found[count:]:
            raise Finding("text is another one when it is read from a place")


def mixes(folder: Path) -> None:
    mix = Mix.load(folder / "mix.json")
    mix.save(folder / "mix.json")
    if Mix.load(folder / "mix.json") != mix:
        raise Finding("a mix is another one when it is written and read")


def embeddings(folder: Path) -> None:
    (path,) = folder.iterdir()
    with read_embeddings(path) as vectors:
        for number in range(min(len(vectors), 20)):
            with contextlib.suppress(InputError):
                np.asarray(vectors[number]).sum()
            with contextlib.suppress(InputError):
                if not all(isinstance(token, str) for token in vectors.tokens(number)):
                    raise Finding("tokens are no text")
    if path.suffix == ".hdf5":
        nearest(path, "the")


def tasks(folder: Path) -> None:
    """The seed's name is that of its reader, or of a file of word vectors."""
    if folder.name == "vectors":
        with contextlib.redirect_stderr(io.StringIO()):
            finite({"values": TextVectors(folder / "vectors.txt").embed([["the", "Cat", "sat"]]).values})
        return
    files = sorted(folder.iterdir())
    read = formats.__dict__[f"read_{folder.name.partition('-')[0]}"]
    if read(folder if len(files) > 1 else files[0]) is None:
        raise Finding("nothing was read")


def caches(folder: Path) -> None:
    """What cannot be used is made again, the next time at the latest."""

    def make(growing: Any) -> None:
        if growing.about is None:
            growing.append(CACHED)
            growing.save({"made": 1})

    dtypes = {name: array.dtype.type for name, array in CACHED.items()}
    with contextlib.redirect_stdout(None):
        try:
            keep_arrays(folder / "cache", dtypes, KEY, make)
        except Unwritable:
            keep_arrays(folder / "cache", dtypes, KEY, make)


def checkpoints(folder: Path) -> None:
    """The newest, or if it is damaged the one before, is what was saved."""
    with Checkpoints(epath.Path(folder / "checkpoints")) as kept:
        found = kept.restore(checkpoint(0))
    if found is not None:
        for one, other in zip(jax.tree.leaves(found[1:]), jax.tree.leaves(checkpoint(found.step)[1:]), strict=True):
            if one.dtype != other.dtype or not np.array_equal(one, other):
                raise Finding(f"the checkpoint of step {found.step} is another one")


class Target(NamedTuple):
    """A reader, which is given a folder; whether the folder is made anew for every input."""

    read: Callable[[Path], None]
    writes: bool = False


TARGETS = {
    "vocabulary": Target(vocabulary),
    "alphabets": Target(alphabets),
    "options": Target(options),
    "hdf5": Target(weights),
    "safetensors": Target(weights),
    "archives": Target(archives, writes=True),
    "allennlp": Target(model),
    "pickles": Target(pickles),
    "bundles": Target(model),
    "manylangs": Target(model),
    "text": Target(text),
    "mixes": Target(mixes),
    "embeddings": Target(embeddings),
    "tasks": Target(tasks),
    "caches": Target(caches, writes=True),
    "checkpoints": Target(checkpoints, writes=True),
}


class Runner:
    """Runs inputs of a target in a folder. `seeds` has folders of valid files, those of `fuzz.seeds.write_seeds`."""

    def __init__(self, name: str, seeds: Path, folder: Path):
        self.target = TARGETS[name]
        self.temporary, self.folder = folder / "tmp", folder / "run"
        self.seeds = sorted((seeds / name).iterdir())
        self.files = [file for seed in self.seeds for file in sorted(seed.rglob("*")) if file.is_file()]
        self.contents = [file.read_bytes() for file in self.files]
        if len(self.files) > FILES:
            raise ValueError(f"{len(self.files)} files")
        self.temporary.mkdir()
        tempfile.tempdir = os.fspath(self.temporary)
        shutil.copytree(seeds / name, self.folder)
        self.within = [self.folder / file.relative_to(seeds / name) for file in self.files]
        self.roots = [self.folder / file.relative_to(seeds / name).parts[0] for file in self.files]

    def inputs(self) -> Iterator[bytes]:
        """Inputs of valid files: as they are, and to be changed."""
        for number, content in enumerate(self.contents):
            yield bytes([number]) + content
            yield bytes([number | CHANGES])
            yield bytes([number | CHANGES | UNCHECKED]) + bytes(CHANGE)

    def run(self, data: bytes) -> InputError | None:
        """Reads what an input makes of the files; InputError is what the reader may raise. Else a finding."""
        number, content = changed(data, self.contents)
        file, root = self.within[number], self.roots[number]
        file.write_bytes(content)
        checks = unchecked() if data and data[0] & UNCHECKED else contextlib.nullcontext()
        try:
            with checks:
                self.target.read(root)
        except InputError as error:
            if len(str(error)) > 5000:
                raise Finding(f"an error of {len(str(error))} characters") from None
            return error
        finally:
            if self.target.writes:
                shutil.rmtree(root)
                shutil.copytree(self.seeds[[seed.name for seed in self.seeds].index(root.name)], root)
            else:
                file.write_bytes(self.contents[number])
        if left := os.listdir(self.temporary):
            raise Finding(f"{left} was left among temporary files")
        return None
