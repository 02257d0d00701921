"""Data parallelism over devices: the only file that knows pmap."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"


def device_count() -> int:
    """Devices among which rows are divided."""
    return jax.local_device_count()


def parallel(function: Callable, in_axes: tuple, out_axes: tuple, donate: tuple[int, ...] = ()) -> Callable:
    """Runs `function` on every device, with collectives over AXIS.

    An axis of 0 means that the argument or result has a leading device axis, None that all devices share it. A
    result under None must have been made equal (psum, pmean) by `function`: nothing checks that.
    """
    return jax.pmap(function, axis_name=AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate)


def _place(tree: Any, spec: P) -> Any:
    sharding = NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), spec)
    # A copy, because a step that donates the result would delete an array of the caller's that shares its buffer.
    return jax.device_put(jax.tree.map(lambda array: np.array(array), tree), sharding)


def replicate(tree: Any) -> Any:
    """Every array on every device."""
    return _place(tree, P())


def shard(tree: Any) -> Any:
    """Arrays [rows, ..] → [devices, rows / devices, ..], each device's part on that device."""
    devices = device_count()
    return _place(jax.tree.map(lambda array: np.reshape(array, (devices, -1, *array.shape[1:])), tree), P(AXIS))


def gather(tree: Any) -> Any:
    """The inverse of `shard`: NumPy arrays [rows, ..]."""
    return jax.tree.map(lambda array: np.asarray(array).reshape(-1, *array.shape[2:]), tree)


def fetch(tree: Any) -> Any:
    """Arrays that all devices share → NumPy."""
    return jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), tree)
