"""Checkpoints of a training run by Orbax: the newest and the best are kept, damaged ones are never used."""

import json
import logging
import os
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax import lax

from elmo_jax import parallel
from elmo_jax.errors import InputError
from elmo_jax.files import is_remote

# Seconds that a process whose run has failed waits for the checkpoint that it is writing with others.
LAST_WRITE = 5


class Checkpoint(NamedTuple):
    """What a checkpoint holds: trees of arrays over the devices of all processes, as `parallel.join` makes them.

    step   steps done
    state  what the run has learned
    rows   arrays [all rows, ..]: where each row of the text stands
    """

    step: int
    state: Any
    rows: Any

    def arrays(self) -> dict[str, Any]:
        """All of them, by the names under which they are saved."""
        return {"state": self.state, "rows": self.rows}


class Written(NamedTuple):
    """A checkpoint that has been written: its step, and the seconds that it took beside the training."""

    step: int
    seconds: float


class NewestAndBest:
    """Orbax's policy of what to keep: the newest two checkpoints, and the one of the step that is called the best."""

    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = sorted(checkpoint.step for checkpoint in checkpoints)[-2:]
        return [checkpoint.step in (*newest, self.best_step) for checkpoint in checkpoints]


class Manager(ocp.CheckpointManager):
    """Orbax's manager, which asks neither for metrics nor for preemption: those are this project's own."""

    def metrics(self, step: int) -> None:
        """None: damaged ones, which older versions of this project gave it, do not stop a run."""

    def reached_preemption(self, step: int) -> bool:
        """False: only `Termination` asks, by its own numbers; told a step, JAX would agree on one that never comes."""
        return False


class Checkpoints:
    """The checkpoints in a folder, written in the background: the newest two and that of `best_step`.

    Orbax checks the form of its files, not the values in them: checksums of every array, which the devices compute
    from what they hold, and of the JSON that holds these are saved and compared. Used as a context, it waits for what
    is being written.
    """

    def __init__(self, folder: epath.Path, read_only: bool = False):
        # Orbax logs every file, and traces of what we report; of the tasks that it leaves behind when a file is damaged
        # asyncio would tell, with a trace, whenever they are collected: within ast.parse, Python 3.11 fails of that.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder = folder if is_remote(folder) else epath.Path(os.path.abspath(folder))
        self.best_step: int | None = None
        self._kept = NewestAndBest()
        if not read_only and parallel.is_first_process():
            self.folder.mkdir(parents=True, exist_ok=True)
        parallel.barrier("checkpoints")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else self._kept,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=False,
            enable_async_checkpointing=False,  # all of it is done in a thread of our own
            multiprocessing_options=_together(),
        )
        self.manager = Manager(self.folder, options=options)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Written] | None = None

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

    def compile(self, checkpoint: Checkpoint) -> None:
        """Compiles what the devices do in `save`, so that the run need not wait for that at the first checkpoint."""
        jax.block_until_ready(_check(checkpoint.arrays()))

    def save(self, checkpoint: Checkpoint) -> None:
        """Begins to save a checkpoint, when the one before is written; every process calls it.

        Until then its arrays must stay as they are. Values that are not finite, and what the disk cannot hold, are
        refused, as are all errors of writing, by the next call of any method.
        """
        self.wait()
        values = checkpoint.arrays()
        checked = _check(values)
        if parallel.has_peers():  # CPUs may run two programs at once, whose sums then meet those of the other processes
            jax.block_until_ready(checked)
        self._writing = self._thread.submit(self._write, checkpoint.step, values, checked, self.best_step)

    def _write(self, step: int, values: dict[str, Any], checked: dict[str, Any], best_step: int | None) -> Written:
        """Writes this process' share; run by the thread."""
        begun = time.perf_counter()
        self._kept.best_step = best_step
        described = _described(values, checked)
        if not all(bool(found.finite) for found in _leaves(checked)):
            raise InputError(f"after step {step} some parameters are not finite; no checkpoint was written")
        needed = sum(array.nbytes for array in jax.tree.leaves(values))
        free = needed if is_remote(self.folder) else shutil.disk_usage(self.folder).free
        if free < needed:
            raise InputError(
                f"cannot write a checkpoint of {needed:,} bytes to {self.folder}: the disk has {free:,} left. "
                "Make room; the same command goes on from the last checkpoint"
            )
        progress = {"step": step, "arrays": described}
        items = {name: ocp.args.StandardSave(tree) for name, tree in values.items()}
        items["progress"] = ocp.args.JsonSave(progress | {"crc32": _checksum(progress)})
        try:
            self.manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:  # Orbax raises what its storage raises: ValueError, OSError, RuntimeError, ...
            raise self._failed(error) from None
        return Written(step, time.perf_counter() - begun)

    def wait(self) -> Written | None:
        """Waits for the checkpoint that is being written, if one is, and raises its error."""
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def written(self) -> Written | None:
        """The checkpoint that has been written since the last call, if one has."""
        return self.wait() if self._writing is not None and self._writing.done() else None

    def restore(self, like: Checkpoint) -> Checkpoint | None:
        """The newest checkpoint that is whole, None if there are none at all; every process calls it.

        `like` has the shapes of the arrays and their places on this run's devices (`parallel.joined_shapes`). Newer
        ones that are damaged are reported and moved to the folder `damaged` beside the checkpoints, but only once one
        that is whole has been found; a file that cannot be read is no damage, and an error.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self.manager.all_steps(), reverse=True):
            checkpoint, problem = self._try(step, like)
            if checkpoint is not None:
                self._set_aside(damaged)
                return checkpoint
            damaged[step] = problem
        if damaged:
            reasons = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
            raise InputError(
                f"every checkpoint in {self.folder} is damaged ({reasons}). Nothing was moved: bring back a copy of "
                "the folder, or give another --workdir for a new run"
            )
        return None

    def read(self, step: int, like: Checkpoint) -> Checkpoint:
        """The checkpoint of one step."""
        if step not in self.manager.all_steps():
            steps = ", ".join(map(str, sorted(self.manager.all_steps()))) or "none"
            raise InputError(f"{self.folder} has no checkpoint of step {step}; it has {steps}")
        checkpoint, problem = self._try(step, like)
        if checkpoint is None:
            raise InputError(f"the checkpoint of step {step} in {self.folder} is damaged ({problem})")
        return checkpoint

    def _try(self, step: int, like: Checkpoint) -> tuple[Checkpoint | None, str]:
        """A checkpoint, or why it is damaged: all its files can be read, and twice they made no sense.

        Each process reads without waiting for the others; then all come to the same answer.
        """
        problem = ""
        for _ in range(2):
            unreadable = values = None
            try:
                progress, values = self._read(step, like)
            except InputError:
                raise
            except Exception as error:  # damage shows as almost any exception: ValueError, KeyError, OSError, ...
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                unreadable = _unreadable(self.folder / str(step))
            if not parallel.all_agree(unreadable is None):
                raise InputError(
                    f"cannot read the checkpoint of step {step} ({unreadable or 'on another process'}); "
                    "nothing was moved: start the same command again when it can be read"
                )
            if not parallel.all_agree(values is not None):
                problem = problem or "another process cannot use it"
                continue
            found = _described(values, _check(values))
            wrong = [name for name, description in progress["arrays"].items() if found[name] != description]
            if not wrong:
                return Checkpoint(step, **values), ""
            problem = f"the checksums of {', '.join(wrong)} differ"
        return None, problem

    def _read(self, step: int, like: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
        progress = json.loads((self.folder / str(step) / "progress" / "metadata").read_text())
        if progress.pop("crc32") != _checksum(progress) or progress["step"] != step:
            raise ValueError("the checksum of its progress differs")
        wanted = like.arrays()
        _check_shapes(step, progress["arrays"], wanted)
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()})
        restored = _reader().restore(self.folder / str(step), args=args)
        return progress, {name: restored[name] for name in wanted}

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
        self.wait()
        return sorted(self.manager.all_steps())

    def close(self) -> None:
        """Waits until everything is written."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self.manager.close()

    def _close_quietly(self) -> None:
        try:
            self.close()
        except InputError as error:
            print(f"\nerror: {error}", file=sys.stderr, flush=True)

    def _failed(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:300]
        return InputError(f"cannot write a checkpoint to {self.folder} ({type(error).__name__}: {reason})")


def _together() -> ocp.options.MultiprocessingOptions:
    """All processes write; named, they wait for each other without the devices, which are busy with the next steps."""
    everyone = set(range(jax.process_count())) if parallel.has_peers() else None
    return ocp.options.MultiprocessingOptions(active_processes=everyone)


def _reader() -> ocp.Checkpointer:
    """Reads checkpoints as if this process were alone."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process {jax.process_index()}",
    )
    handler = ocp.CompositeCheckpointHandler("state", "rows")
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


class Checked(NamedTuple):
    """Of an array its checksum, uint32 [], and whether all its values are finite, bool []."""

    checksum: jax.Array
    finite: jax.Array


@jax.jit
def _check(tree: Any) -> Any:
    """`Checked` of every array of a tree, the same on any number of devices, which compute it from what they hold."""

    def check(array: jax.Array) -> Checked:
        finite = jnp.isfinite(array).all() if array.dtype == jnp.float32 else jnp.bool_(True)
        mixed = lax.bitcast_convert_type(array, jnp.uint32)
        place, stride = jnp.zeros(array.shape, jnp.uint32), 1
        for axis in reversed(range(array.ndim)):
            place += lax.broadcasted_iota(jnp.uint32, array.shape, axis) * np.uint32(stride % 2**32)
            stride *= array.shape[axis]
        mixed ^= place * np.uint32(0x9E3779B9)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3's: every bit moves half of all
            mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
        return Checked((mixed ^ (mixed >> np.uint32(16))).sum(dtype=jnp.uint32), finite)

    return jax.tree.map(check, tree)


def _leaves(checked: Any) -> list[Checked]:
    return jax.tree.leaves(checked, is_leaf=lambda value: isinstance(value, Checked))


def _described(tree: Any, checked: Any) -> dict[str, list[Any]]:
    """Type, shape and checksum of every array by its path in the tree, for JSON."""
    described = {}
    for (path, leaf), found in zip(jax.tree_util.tree_leaves_with_path(tree), _leaves(checked), strict=True):
        described[jax.tree_util.keystr(path)] = [str(leaf.dtype), list(leaf.shape), int(found.checksum)]
    return described


def _check_shapes(step: int, described: dict[str, list[Any]], wanted: Any) -> None:
    """Raises InputError where the arrays of a checkpoint are not those that are wanted."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        name = jax.tree_util.keystr(path)
        if described.get(name, [])[:2] != [str(leaf.dtype), list(leaf.shape)]:
            raise InputError(
                f"the checkpoint of step {step} has {name} {described.get(name)}, the run {leaf.dtype} {leaf.shape}: "
                "another vocabulary, or another number of rows? Put back the config.json that the run began with"
            )


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode("utf-8"))
