"""A training run's folder: config.json, vocab.txt, metrics.jsonl, checkpoints/, model/, profile/, errors/."""

import contextlib
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from elmo_jax.config import Config, differences, from_json, to_json
from elmo_jax.errors import InputError, brief
from elmo_jax.files import is_remote, read_json, writing
from elmo_jax.vocabulary import Vocabulary

# What config.json calls the way a run is kept: the order of its sentences, the layout of its checkpoints.
FORMAT = 2
# Fields that a run may change when it goes on: they do not touch what a step computes. The number of rows is fixed
# when a run starts (it is `rows` in config.json), so batch_size may follow the number of devices; of the text its
# content counts, not where it lies.
FREE = {
    *(f"train.{name}" for name in ("steps", "epochs", "batch_size", "accumulate", "patience")),
    *(f"train.{name}" for name in ("checkpoint_every", "eval_every", "log_every", "tensorboard", "profile")),
    *(f"data.{name}" for name in ("train", "heldout", "vocab", "cache", "text_format", "text_column")),
}
MOST_ROWS = 10**7
# What is in the fingerprints of a run's text, as people call it.
NAMES = {"sentences": "data.train", "types_crc32": "data.train", "heldout_crc32": "data.heldout"} | {
    "vocabulary_crc32": "the vocabulary"
}


class Begun(NamedTuple):
    """A run that has begun: its settings, its rows on all devices, what its text was, its vocabulary."""

    config: Config
    rows: int
    text: dict[str, Any]
    vocabulary: Vocabulary | None


class Workdir:
    """The folder of a run. Only the first process writes to it (`writes`)."""

    def __init__(self, path: epath.Path, writes: bool = True):
        self.path, self.writes = path, writes
        self.config = path / "config.json"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.profile = path / "profile"
        self.errors = path / "errors"
        self.metrics = path / "metrics.jsonl"
        self._unwritten: list[str] = []

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out of the folder as long as this one lives; not in object stores, which cannot lock.

        Makes the folder, and takes it away again if nothing has come into it.
        """
        if is_remote(self.path) or not self.writes:
            yield
            return
        lock = Path(self.path) / "lock"
        made = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(lock)
        except OSError as error:
            raise InputError(f"cannot write to {self.path} ({error}); give another --workdir") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            os.close(descriptor)
            with contextlib.suppress(OSError):  # it holds something
                for folder in made:
                    folder.rmdir()

    def begun(self) -> Begun | None:
        """The run that is here; None if this is a new folder."""
        try:
            if not self.config.exists():
                if self.path.exists() and any(file.name not in ("lock", "errors") for file in self.path.iterdir()):
                    raise InputError(f"{self.path} holds files but no config.json; give a new folder, or that of a run")
                return None
            saved = read_json(self.config)
            config, rows, text = from_json(saved, str(self.config)), saved.get("rows"), saved.get("text") or {}
            files = [file for file in (self.path / "vocab.txt", self.model / "vocab.txt") if file.exists()]
        except (OSError, ImportError) as error:
            raise InputError(f"cannot read {self.path} ({error}); give another --workdir") from None
        self._check_format(saved.get("format"))
        if type(rows) is not int or not 0 < rows <= MOST_ROWS or not isinstance(text, dict):
            raise InputError(f"{self.config} has rows {str(rows)[:30]!r}; it must be a number from 1 to {MOST_ROWS}")
        return Begun(config, rows, text, Vocabulary.load(files[0]) if files else None)

    def _check_format(self, saved: Any) -> None:
        """Raises InputError for a run that another version keeps in another way (0.1: no format)."""
        if saved != FORMAT:
            version = "an earlier elmo_jax" if saved is None else f"another elmo_jax (format {brief(saved, 30)})"
            raise InputError(
                f"{self.path} holds a run of {version}, whose sentences come in another order and whose checkpoints "
                "are written otherwise. Go on with the version that began it, or begin a new run from its model: "
                f"--init {self.path} and another --workdir"
            )

    def rows(self, begun: Begun | None, config: Config, devices: int) -> int:
        """Rows of the run on all devices: those of a new run, or of the one that has begun, if its config agrees."""
        train = config.train
        of_config = train.batch_size * train.accumulate * devices
        if begun is None:
            return of_config
        before, rows = begun.config, begun.rows
        changes = [change for change in differences(before, config) if change.split()[0] not in FREE]
        if not before.data.train:  # a converted run: the first command that goes on with it says on what text
            changes = [change for change in changes if not change.startswith("data.")]
        names = ("batch_size", "accumulate")
        changed = [name for name in names if getattr(train, name) != getattr(before.train, name)]
        if changed and of_config != rows:
            given = " and ".join(f"train.{name} is {getattr(train, name)}" for name in changed)
            changes.append(f"{given} on {devices} devices, was {rows} rows in all")
        if changes:
            raise InputError(
                f"{self.path} holds a run with another config: {'; '.join(changes)}. "
                "Give the same options to go on with it, or another --workdir for a new run"
            )
        if rows % (devices * train.accumulate):
            parts = f"{devices} devices" + (f" and {train.accumulate} parts of each" if train.accumulate > 1 else "")
            raise InputError(
                f"the run in {self.path} has {rows} rows, which cannot be divided by {parts}; "
                f"go on with it on a number of devices that divides {rows}"
            )
        return rows

    def create(
        self, begun: Begun | None, config: Config, rows: int, vocabulary: Vocabulary, text: dict[str, Any] | None
    ) -> None:
        """Writes config.json; the text and the vocabulary must be those that the run began with, if it has begun."""
        before = begun.text.items() if begun and text else ()
        others = {NAMES.get(name, name) for name, value in before if name != "init" and text.get(name) != value}
        if others:
            raise InputError(
                f"the text or the vocabulary is not that of the run in {self.path}: {', '.join(sorted(others))} "
                "differs, or is missing. Give what it began with to go on, or another --workdir for a new run"
            )
        if self.writes:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot write to {self.path} ({error}); give another --workdir") from None
            vocabulary.save(self.path / "vocab.txt")
            values = {"format": FORMAT, "rows": rows, "text": text}
            self._write(self.config, json.dumps(values | to_json(config), indent=1) + "\n")

    def forget_errors(self) -> None:
        """Removes what processes have said of their end: it was that of another command."""
        with contextlib.suppress(Exception):
            for file in self.errors.glob("process-*.txt"):
                file.unlink()
            self.errors.rmdir()

    def converted(self) -> bool:
        """Whether this is a converted model that has not been trained here."""
        return self.model.exists() and not self.metrics.exists()

    def check_new(self, first_saved: int) -> None:
        """Raises InputError if there was a checkpoint (one was due after `first_saved` steps), as now there is none."""
        damaged = self.path / "damaged"
        steps = [line["step"] for line in self.lines()]
        if self.model.exists() or (damaged.exists() and any(damaged.iterdir())) or max(steps, default=0) > first_saved:
            raise InputError(
                f"{self.path} holds a run that was trained (to step {max(steps, default=0)}) but no checkpoints; "
                "bring back checkpoints/, or give another --workdir for a new run"
            )

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines of metrics.jsonl; what a kill or damage has left of others is passed over."""
        if not self.metrics.exists():
            return []
        lines = []
        for text in self.metrics.read_bytes().split(b"\n")[:-1]:
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    lines.append(line)
        return lines

    def keep_metrics(self, step: int) -> None:
        """Drops the lines of steps after `step`, which the run is about to repeat."""
        if self.writes and self.metrics.exists():
            self._write(self.metrics, "".join(json.dumps(line) + "\n" for line in self.lines() if line["step"] <= step))

    def heldout_perplexities(self) -> dict[int, float]:
        """The measured perplexity of held-out text by step."""
        name = "heldout_perplexity"
        return {line["step"]: line[name] for line in self.lines() if isinstance(line.get(name), float)}

    def log(self, **values: Any) -> None:
        """Adds a line to metrics.jsonl; numbers that are not finite become null."""
        finite = lambda value: None if isinstance(value, float) and not math.isfinite(value) else value
        self._unwritten.append(json.dumps({name: finite(value) for name, value in values.items()}) + "\n")
        if not is_remote(self.path):
            self.flush()

    def flush(self) -> None:
        """Writes the lines that are waiting: object stores cannot append, there it is done at checkpoints."""
        if self.writes and self._unwritten:
            lines = "".join(self._unwritten)
            if is_remote(self.path):
                before = self.metrics.read_text() if self.metrics.exists() else ""
                self._write(self.metrics, before + lines)
            else:
                try:
                    with open(self.metrics, "a", encoding="utf-8") as file:
                        file.write(lines)
                        file.flush()
                        os.fsync(file.fileno())
                except OSError as error:
                    raise InputError(f"cannot write {self.metrics} ({error})") from None
        self._unwritten = []

    def keep_profile(self, folder: Path) -> None:
        """Copies a trace of JAX's profiler from a local folder."""
        for file in filter(Path.is_file, folder.rglob("*")):
            copy = self.profile / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with writing(copy) as partial:
                shutil.copyfile(file, partial)

    @staticmethod
    def _write(file: epath.Path, text: str) -> None:
        with writing(file) as partial:
            partial.write_text(text, encoding="utf-8")


def _lock(path: Path) -> int:
    """The descriptor that holds the lock until it is closed, or its process dies."""
    import fcntl  # not on Windows

    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 200).decode("utf-8", "replace") or "another process"
            os.close(lock)
            raise InputError(
                f"{owner} is training in {path.parent}; wait until it has ended, or give another --workdir"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
            os.truncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return lock
        os.close(lock)  # the run before has just taken its lock away
