"""Checkpoints of a training run by Orbax: the newest and the best are kept, damaged ones are never used."""

import json
import logging
import os
import shutil
import sys
import threading
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from elmo_jax import parallel
from elmo_jax.errors import InputError
from elmo_jax.files import is_remote

# Seconds that a process whose run has failed waits for the checkpoint that it is writing with others.
LAST_WRITE = 5


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    step          steps done
    shared_state  NumPy tree that all devices share
    row_state     NumPy tree of arrays [this process' rows, ..]
    progress      values for JSON
    """

    step: int
    shared_state: Any
    row_state: Any
    progress: dict[str, Any]


class NewestAndBest:
    """Orbax's policy of what to keep: the newest two checkpoints, and the one of the step that is called the best."""

    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = sorted(checkpoint.step for checkpoint in checkpoints)[-2:]
        return [checkpoint.step in (*newest, self.best_step) for checkpoint in checkpoints]


class Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not stop at damaged metrics that older versions of this project gave it."""

    def metrics(self, step: int) -> None:
        return None


class Checkpoints:
    """The checkpoints in a folder, written in the background: the newest two and that of `kept.best_step`.

    Orbax checks the form of its files, not the values in them: checksums of every array, and of the JSON that holds
    them, are saved and compared. Used as a context, it waits for what is being written.
    """

    def __init__(self, folder: epath.Path, read_only: bool = False):
        # Orbax logs every file, and traces of what we report; of the tasks that it leaves behind when a file is damaged
        # asyncio would tell, with a trace, whenever they are collected: within ast.parse, Python 3.11 fails of that.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder = folder if is_remote(folder) else epath.Path(os.path.abspath(folder))
        self.kept = NewestAndBest()
        writing = {"preservation_policy": self.kept, "cleanup_tmp_directories": True}
        options = ocp.CheckpointManagerOptions(read_only=True) if read_only else ocp.CheckpointManagerOptions(**writing)
        self.manager = Manager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        # The error that ends the run is the one to report; where it is the loss of the others, writing never ends.
        closing = threading.Thread(target=self._close_quietly, daemon=True)
        closing.start()
        closing.join(LAST_WRITE if parallel.has_peers() else None)

    def save(self, checkpoint: Checkpoint) -> None:
        """Saves a checkpoint; every process calls it. Values that are not finite are refused."""
        step, shared_state, row_state, progress = checkpoint
        arrays = jax.tree.leaves((shared_state, row_state))
        if not parallel.all_agree(all(np.isfinite(array).all() for array in arrays)):
            raise InputError(f"after step {step} some parameters are not finite; no checkpoint was written")
        needed = sum(array.nbytes for array in arrays)
        free = needed if is_remote(self.folder) else shutil.disk_usage(self.folder).free
        if not parallel.all_agree(free >= needed):
            raise InputError(
                f"cannot write a checkpoint of {needed:,} bytes to {self.folder}: the disk has {free:,} left. "
                "Make room; the same command goes on from the last checkpoint"
            )
        row_checksums = [crc for of_process in parallel.gather_values(_row_checksums(row_state)) for crc in of_process]
        progress = progress | {"step": step, "shared_crc32": _checksums(shared_state), "rows_crc32": row_checksums}
        args = ocp.args.Composite(
            shared=ocp.args.StandardSave(shared_state),
            rows=ocp.args.StandardSave(parallel.join_rows(row_state)),
            progress=ocp.args.JsonSave(progress | {"crc32": _checksum(progress)}),
        )
        try:
            self.manager.save(step, args=args, force=True)
        except Exception as error:  # Orbax raises what its storage raises: ValueError, OSError, RuntimeError, ...
            raise self._failed(error) from None

    def restore(self, like: Checkpoint, rows: int) -> Checkpoint | None:
        """The newest checkpoint that is whole, None if there are none at all; every process calls it.

        `like` has arrays (or their shapes) of the right shapes, its rows may be any; `rows` are those of all
        processes. Newer ones that are damaged are reported and moved to the folder `damaged` beside the checkpoints,
        but only once one that is whole has been found; a file that cannot be read is no damage, and an error.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self.manager.all_steps(), reverse=True):
            checkpoint, problem = self._try(step, like, rows)
            if parallel.all_agree(checkpoint is not None):
                self._set_aside(damaged)
                _check_shapes(checkpoint, like)
                return checkpoint
            damaged[step] = problem or "another process cannot use it"
        if damaged:
            reasons = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
            raise InputError(
                f"every checkpoint in {self.folder} is damaged ({reasons}). Nothing was moved: bring back a copy of "
                "the folder, or give another --workdir for a new run"
            )
        return None

    def read(self, step: int, like: Checkpoint, rows: int) -> Checkpoint:
        """The checkpoint of one step."""
        if step not in self.manager.all_steps():
            steps = ", ".join(map(str, sorted(self.manager.all_steps()))) or "none"
            raise InputError(f"{self.folder} has no checkpoint of step {step}; it has {steps}")
        checkpoint, problem = self._try(step, like, rows)
        if checkpoint is None:
            raise InputError(f"the checkpoint of step {step} in {self.folder} is damaged ({problem})")
        _check_shapes(checkpoint, like)
        return checkpoint

    def _try(self, step: int, like: Checkpoint, rows: int) -> tuple[Checkpoint | None, str | None]:
        """A checkpoint, or why it is damaged: all its files can be read, and twice they made no sense."""
        problem = unreadable = None
        for _ in range(2):
            try:
                checkpoint = self._read(step, like, rows)
                break
            except InputError:
                raise
            except Exception as error:  # damage shows as almost any exception: ValueError, KeyError, OSError, ...
                checkpoint, problem = None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                unreadable = _unreadable(self.folder / str(step))
        if not parallel.all_agree(checkpoint is not None or unreadable is None):
            raise InputError(
                f"cannot read the checkpoint of step {step} ({unreadable or 'on another process'}); "
                "nothing was moved: start the same command again when it can be read"
            )
        return checkpoint, problem

    def _read(self, step: int, like: Checkpoint, rows: int) -> Checkpoint:
        """Reads without waiting for other processes, one of which may fail; so each compares its own rows alone."""
        progress = json.loads((self.folder / str(step) / "progress" / "metadata").read_text())
        if progress.pop("crc32") != _checksum(progress) or progress["step"] != step:
            raise ValueError("the checksum of its progress differs")
        if len(progress["rows_crc32"]) != rows:
            raise InputError(
                f"the checkpoint of step {step} has {len(progress['rows_crc32'])} rows, the run's config.json says "
                f"{rows}; put back the config.json that the run began with"
            )
        empty = lambda array: np.empty(array.shape, array.dtype)
        args = ocp.args.Composite(
            shared=ocp.args.StandardRestore(jax.tree.map(empty, like.shared_state)),
            rows=ocp.args.StandardRestore(parallel.joined_shapes(like.row_state, rows)),
        )
        restored = _reader().restore(self.folder / str(step), args=args)
        shared_state, row_state = restored["shared"], parallel.take_own_rows(restored["rows"])
        saved = progress["shared_crc32"]
        wrong = [name for name, crc in _checksums(shared_state).items() if saved.get(name) != crc]
        if wrong or len(saved) != len(jax.tree.leaves(like.shared_state)):
            raise ValueError(f"the checksums of {', '.join(wrong)} differ")
        if [progress["rows_crc32"][row] for row in parallel.own_rows(rows)] != _row_checksums(row_state):
            raise ValueError("the checksums of its rows differ")
        return Checkpoint(step, shared_state, row_state, progress)

    def _set_aside(self, damaged: dict[int, str]) -> None:
        if parallel.is_first_process():
            for step, problem in damaged.items():
                folder = self.folder.parent / "damaged"
                folder.mkdir(exist_ok=True)
                target = next(folder / f"{step}.{n}" for n in range(1000) if not (folder / f"{step}.{n}").exists())
                print(f"the checkpoint of step {step} is damaged ({problem}); moving it to {target}", flush=True)
                (self.folder / str(step)).rename(target)
        if damaged:
            parallel.barrier("set aside")
            self.manager.reload()

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        return sorted(self.manager.all_steps())

    def close(self) -> None:
        """Waits until everything is written."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # as in save
            raise self._failed(error) from None
        finally:
            self.manager.close()

    def _close_quietly(self) -> None:
        try:
            self.close()
        except InputError as error:
            print(f"\nerror: {error}", file=sys.stderr, flush=True)

    def _failed(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:300]
        return InputError(f"cannot write a checkpoint to {self.folder} ({type(error).__name__}: {reason})")


def _reader() -> ocp.Checkpointer:
    """Reads checkpoints as if this process were alone."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process {jax.process_index()}",
    )
    handler = ocp.CompositeCheckpointHandler("shared", "rows")
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _unreadable(folder: epath.Path) -> str | None:
    """Why a file in a folder cannot be read; None if all can."""
    try:
        for path in folder.iterdir():
            if path.is_dir() and (reason := _unreadable(path)) is not None:
                return reason
            if not path.is_dir():
                path.read_bytes()
    except OSError as error:
        return str(error)
    return None


def _check_shapes(checkpoint: Checkpoint, like: Checkpoint) -> None:
    expected = jax.tree_util.tree_leaves_with_path(like.shared_state)
    for (path, leaf), array in zip(expected, jax.tree.leaves(checkpoint.shared_state), strict=True):
        if leaf.shape != array.shape:
            name = jax.tree_util.keystr(path)
            raise InputError(
                f"the checkpoint of step {checkpoint.step} has {name} {array.shape}, the model {leaf.shape}: "
                "another vocabulary? Give the one that the run began with"
            )


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode("utf-8"))


def _checksums(tree: Any) -> dict[str, int]:
    """CRC-32 of every array, its type and its shape, by its path in the tree."""
    checksums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        described = zlib.crc32(f"{leaf.dtype} {leaf.shape}".encode())
        checksums[jax.tree_util.keystr(path)] = zlib.crc32(np.ascontiguousarray(leaf), described)
    return checksums


def _row_checksums(tree: Any) -> list[int]:
    """CRC-32 of each of this process' rows, given its NumPy arrays [rows, ..]."""
    leaves = jax.tree.leaves(tree)
    checksums = [0] * len(leaves[0])
    for leaf in leaves:
        checksums = [zlib.crc32(np.ascontiguousarray(row), crc) for row, crc in zip(leaf, checksums, strict=True)]
    return checksums
