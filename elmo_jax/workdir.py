"""A training run's folder: config.json, metrics.jsonl, checkpoints/, model/, profile/."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from etils import epath

from elmo_jax.config import Config, from_json, to_json
from elmo_jax.errors import InputError
from elmo_jax.files import is_remote, writing

# Fields that a run may change when it goes on: they do not touch what a step computes. The number of rows is fixed
# when a run starts (it is `rows` in config.json), so batch_size may follow the number of devices.
FREE = {f"train.{name}" for name in ("steps", "batch_size", "checkpoint_every", "eval_every", "log_every", "profile")}


class Workdir:
    """The folder of a run. Only the first process writes to it (`writes`)."""

    def __init__(self, path: epath.Path, writes: bool = True):
        self.path, self.writes = path, writes
        self.config = path / "config.json"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.profile = path / "profile"
        self.metrics = path / "metrics.jsonl"
        self._unwritten: list[str] = []

    def check(self, config: Config, devices: int) -> int:
        """Rows of the run on all devices: those of a new run, or of the one that is here, if its config agrees."""
        try:
            if not self.config.exists():
                if self.path.exists() and any(self.path.iterdir()):
                    raise InputError(f"{self.path} holds files but no config.json; give a new folder, or that of a run")
                return config.train.batch_size * devices
            saved = json.loads(self.config.read_text())
            rows, before = saved["rows"], from_json(saved)
        except (OSError, ImportError) as error:
            raise InputError(f"cannot read {self.path} ({error}); give another --workdir") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.config} is not the config of a run ({error!r}); give another --workdir") from None
        changes = [change for change in differences(before, config) if change.split()[0] not in FREE]
        if not before.data.train:  # a converted run: the first command that goes on with it says on what text
            changes = [change for change in changes if not change.startswith("data.")]
        if changes:
            raise InputError(
                f"{self.path} holds a run with another config: {'; '.join(changes)}. "
                "Give the same options to go on with it, or another --workdir for a new run"
            )
        if rows % devices:
            raise InputError(
                f"the run in {self.path} has {rows} rows, which cannot be divided by {devices} devices; "
                f"go on with it on a number of devices that divides {rows}"
            )
        return rows

    def create(self, config: Config, rows: int, text: dict[str, Any] | None) -> None:
        """Writes config.json; the text and the vocabulary must be those that the run began with, if it has begun."""
        if self.config.exists():
            before = json.loads(self.config.read_text()).get("text")
            if before not in (None, text):
                raise InputError(
                    f"the text or the vocabulary is not that of the run in {self.path}: "
                    f"{text}, was {before}. Give the same text to go on, or another --workdir for a new run"
                )
        if self.writes:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot write to {self.path} ({error}); give another --workdir") from None
            self._write(self.config, json.dumps({"rows": rows, "text": text} | to_json(config), indent=1) + "\n")

    def converted(self) -> bool:
        """Whether this is a converted model that has not been trained here."""
        return self.model.exists() and not self.metrics.exists()

    def keep_metrics(self, step: int | None) -> None:
        """Drops the lines of steps after `step`, which the run is about to repeat (None: all lines)."""
        if self.writes and self.metrics.exists():
            kept = []
            for line in self.metrics.read_text().splitlines(keepends=True):
                try:
                    whole = json.loads(line)["step"] <= (-1 if step is None else step)
                except (ValueError, KeyError, TypeError):
                    whole = False  # the run was killed while it wrote this line
                if whole and line.endswith("\n"):
                    kept.append(line)
            self._write(self.metrics, "".join(kept))

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


def differences(before: Config, now: Config) -> list[str]:
    """Fields that differ, as `section.field is 1, was 2`."""
    return [
        f"{section.name}.{field.name} is {new}, was {old}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(getattr(now, section.name))
        if (new := getattr(getattr(now, section.name), field.name))
        != (old := getattr(getattr(before, section.name), field.name))
    ]
