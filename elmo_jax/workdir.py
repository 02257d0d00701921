"""A training run's folder: config.json, metrics.jsonl, checkpoints/, model/."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from elmo_jax.config import Config, from_json, to_json
from elmo_jax.errors import InputError

# Fields that a run may change when it goes on: they do not touch what a step computes. The number of rows is fixed
# when a run starts (it is `rows` in config.json), so batch_size may follow the number of devices.
FREE = {"train.steps", "train.batch_size", "train.checkpoint_every", "train.eval_every", "train.log_every"}


class Workdir:
    """The folder of a run, created or gone on with."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.metrics = path / "metrics.jsonl"

    def open(self, config: Config, devices: int) -> int:
        """Creates the folder, or checks that the run in it has this config. Returns the run's rows on all devices."""
        file = self.path / "config.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                if any(self.path.iterdir()):
                    raise InputError(f"{self.path} holds files but no config.json; give a new folder, or that of a run")
                rows = config.train.batch_size * devices
                self._write(file, json.dumps({"rows": rows} | to_json(config), indent=1) + "\n")
                return rows
            saved = json.loads(file.read_text(encoding="utf-8"))
            rows, before = saved.pop("rows"), from_json(saved)
        except OSError as error:
            raise InputError(f"cannot write to {self.path} ({error}); give another --workdir") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is not the config of a run ({error!r}); give another --workdir") from None
        changes = [change for change in differences(before, config) if change.split()[0] not in FREE]
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

    def keep_metrics(self, step: int | None) -> None:
        """Drops the lines of steps after `step`, which the run is about to repeat (None: all lines)."""
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if step is not None and json.loads(line)["step"] <= step]
            self._write(self.metrics, "".join(kept))

    def log(self, **values: Any) -> None:
        """Adds a line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    @staticmethod
    def _write(file: Path, text: str) -> None:
        partial = file.with_name(file.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)


def differences(before: Config, now: Config) -> list[str]:
    """Fields that differ, as `section.field is 1, was 2`."""
    return [
        f"{section.name}.{field.name} is {new}, was {old}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(getattr(now, section.name))
        if (new := getattr(getattr(now, section.name), field.name))
        != (old := getattr(getattr(before, section.name), field.name))
    ]
