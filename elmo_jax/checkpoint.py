"""Checkpoints of a training run by Orbax: the newest and the best are kept, damaged ones are never used."""

import json
import logging
import os
import shutil
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from elmo_jax.errors import InputError
from elmo_jax.files import is_remote
from elmo_jax.parallel import (
    barrier,
    from_all,
    is_first_process,
    join_rows,
    joined_shapes,
    on_all,
    own_rows,
    row_checksums,
    take_own_rows,
)

METRIC = "heldout_perplexity"


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    step      steps done
    shared    NumPy tree that all devices share
    rows      NumPy tree of arrays [this process' rows, ..]
    progress  values for JSON
    """

    step: int
    shared: Any
    rows: Any
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints in a folder: the newest two, and the one with the lowest perplexity. Written in the background.

    Orbax checks the form of its files, not the values in them: checksums of every array, and of the JSON that holds
    them, are saved and compared.
    """

    def __init__(self, folder: epath.Path):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every file, and traces of what we report
        self.folder = folder if is_remote(folder) else epath.Path(os.path.abspath(folder))
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best]),
            best_fn=lambda metrics: metrics[METRIC],
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, checkpoint: Checkpoint, perplexity: float | None = None) -> None:
        """Saves a checkpoint; every process calls it. Values that are not finite are refused."""
        step, shared, rows, progress = checkpoint
        if not on_all(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((shared, rows)))):
            raise InputError(f"after step {step} some parameters are not finite; no checkpoint was written")
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((shared, rows)))
        free = needed if is_remote(self.folder) else shutil.disk_usage(self.folder).free
        if not on_all(free >= needed):
            raise InputError(
                f"cannot write a checkpoint of {needed:,} bytes to {self.folder}: the disk has {free:,} left. "
                "Make room; the same command goes on from the last checkpoint"
            )
        checksums = {"shared_crc32": _checksums(shared), "rows_crc32": from_all(row_checksums(rows))}
        progress = progress | {"step": step} | checksums
        args = ocp.args.Composite(
            shared=ocp.args.StandardSave(shared),
            rows=ocp.args.StandardSave(join_rows(rows)),
            progress=ocp.args.JsonSave(progress | {"crc32": _checksum(progress)}),
        )
        metrics = None if perplexity is None else {METRIC: perplexity}
        try:
            self.manager.save(step, args=args, metrics=metrics, force=True)
        except Exception as error:  # Orbax raises what its storage raises: ValueError, OSError, RuntimeError, ...
            raise self._failed(error) from None

    def restore(self, like: Checkpoint, rows: int) -> Checkpoint | None:
        """The newest checkpoint that is whole, None if there are none at all; every process calls it.

        `like` has arrays of the right shapes (its rows may be any); `rows` is the number of rows of all processes.
        Damaged checkpoints are reported and moved to the folder `damaged` beside the checkpoints.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                found, problem = self._read(step, like, rows), None
            except Exception as error:  # damage shows as almost any exception: json, ValueError, KeyError, OSError, ...
                found, problem = None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if on_all(found is not None):
                _check_shapes(found, like)
                return found
            if is_first_process():
                damaged = self.folder.parent / "damaged"
                damaged.mkdir(exist_ok=True)
                target = next(damaged / f"{step}.{n}" for n in range(1000) if not (damaged / f"{step}.{n}").exists())
                print(f"the checkpoint of step {step} is damaged ({problem}); moving it to {target}", flush=True)
                (self.folder / str(step)).rename(target)
            barrier(f"moved {step}")
            self.manager.reload()
        if steps:
            raise InputError(f"every checkpoint in {self.folder} is damaged ({len(steps)}); give another --workdir")
        return None

    def _read(self, step: int, like: Checkpoint, rows: int) -> Checkpoint:
        items = {
            "shared": ocp.args.StandardRestore(
                jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like.shared)
            ),
            "rows": ocp.args.StandardRestore(joined_shapes(like.rows, rows)),
            "progress": ocp.args.JsonRestore(),
        }
        restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        progress, shared = restored["progress"], restored["shared"]
        own = take_own_rows(restored["rows"])
        saved = progress.pop("crc32")
        if saved != _checksum(progress) or progress["step"] != step:
            raise ValueError("the checksum of its progress differs")
        wrong = [name for name, crc in _checksums(shared).items() if progress["shared_crc32"].get(name) != crc]
        if wrong or len(progress["shared_crc32"]) != len(jax.tree.leaves(like.shared)):
            raise ValueError(f"the checksums of {', '.join(wrong)} differ")
        # Each process compares its own rows: one that has failed above takes no part in talk among processes.
        if [progress["rows_crc32"][row] for row in own_rows(rows)] != row_checksums(own):
            raise ValueError("the checksums of its rows differ")
        return Checkpoint(step, shared, own, progress)

    def newest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self.manager.latest_step()

    def close(self) -> None:
        """Waits until everything is written."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # as in save
            raise self._failed(error) from None
        finally:
            self.manager.close()

    def _failed(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:300]
        return InputError(f"cannot write a checkpoint to {self.folder} ({type(error).__name__}: {reason})")


def _check_shapes(found: Checkpoint, like: Checkpoint) -> None:
    expected = jax.tree_util.tree_leaves_with_path(like.shared)
    for (path, leaf), array in zip(expected, jax.tree.leaves(found.shared), strict=True):
        if leaf.shape != array.shape:
            name = jax.tree_util.keystr(path)
            raise InputError(
                f"the checkpoint of step {found.step} has {name} {array.shape}, the model {leaf.shape}: "
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
