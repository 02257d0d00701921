"""Checkpoints of a training run: arrays and JSON, by Orbax."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers


class Checkpoints:
    """The checkpoints in a folder, of which the newest two are kept. Writing goes on in the background."""

    def __init__(self, folder: Path):
        newest = checkpoint_managers.LatestN(2)
        options = ocp.CheckpointManagerOptions(preservation_policy=newest, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, arrays: Any, values: dict[str, Any]) -> None:
        """Saves NumPy arrays (any tree) and values for JSON as the checkpoint of a step."""
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(values))
        self.manager.save(step, args=args, force=True)

    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self.manager.latest_step()

    def values(self, step: int) -> dict[str, Any]:
        """The JSON values of a checkpoint."""
        return self.manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())).progress

    def arrays(self, step: int, like: Any) -> Any:
        """The arrays of a checkpoint, as NumPy, in the tree of `like` (arrays or their shapes)."""
        shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), like)
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes))
        return jax.tree.map(np.asarray, self.manager.restore(step, args=args).arrays)

    def close(self) -> None:
        """Waits until everything is written."""
        self.manager.wait_until_finished()
        self.manager.close()
