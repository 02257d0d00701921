"""Data parallelism over devices and processes: the only file that knows pmap."""

import contextlib
import functools
import os
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from elmo_jax.errors import InputError, brief, listed
from elmo_jax.products import compiled_for

AXIS = "data"


@dataclass(frozen=True)
class DistributedConfig:
    """Processes that train together, one a host. On Cloud TPU and on clusters that JAX knows, leave everything out."""

    coordinator_address: str | None = None
    """HOST:PORT of process 0, the same on all hosts."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    heartbeat_seconds: int = 100
    """A process that has not been heard of for so long is taken for dead, and the others stop."""


def initialize(config: DistributedConfig) -> None:
    """Joins the other processes, if there are any."""
    given = (config.coordinator_address, config.num_processes, config.process_id)
    if any(value is not None for value in given) and any(value is None for value in given):
        raise InputError(
            f"distributed has coordinator_address {given[0]}, num_processes {given[1]}, process_id {given[2]}; "
            "give all three, or none where JAX finds them by itself"
        )
    heartbeat = {"heartbeat_timeout_seconds": config.heartbeat_seconds}
    if given[0] is None:
        try:
            jax.distributed.initialize(**heartbeat)
        except ValueError:  # no cluster that JAX knows: a single process
            return
        except RuntimeError as error:
            if "must be called before" in str(error):  # a program that has used JAX already, alone
                return
            raise InputError(f"cannot join the other processes: {error}") from None
    else:
        try:
            jax.distributed.initialize(*given, **heartbeat)
        except (ValueError, RuntimeError) as error:
            raise InputError(f"cannot join the processes at {given[0]}: {error}") from None
    counts = multihost_utils.process_allgather(np.int32(jax.local_device_count()))
    if len(set(np.ravel(counts).tolist())) > 1:
        raise InputError(f"processes have {np.ravel(counts).tolist()} devices; all must have equally many")


def use_one_cpu() -> None:
    """Leaves all accelerators to others, as a command that only moves numbers can; not where JAX is in use already."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", 1)
        jax.config.update("jax_platforms", "cpu")


def is_first_process() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for all processes."""
    multihost_utils.sync_global_devices(name)


def all_agree(flag: bool) -> bool:
    """Whether `flag` is true on every process; every process calls it."""
    return bool(np.min(multihost_utils.process_allgather(np.int32(flag))))


def first_says(flag: bool) -> bool:
    """What the flag is on the first process, which alone knows what it has written; every process calls it."""
    return bool(gather_values([int(flag)])[0][0])


def gather_values(values: list[int]) -> list[list[int]]:
    """The values below 2³² that each process has, equally many on all; every process calls it."""
    gathered = multihost_utils.process_allgather(np.array(values, np.uint32))
    return np.reshape(gathered, (-1, len(values))).tolist()


def check_same(checksums: dict[str, int]) -> None:
    """Raises InputError, on all processes, where one has another checksum, or another elmo_jax, than the first."""
    for compared in ({"version of elmo_jax": code_checksum()}, checksums):  # which first says what is compared then
        everyones = gather_values(list(compared.values()))
        for number, name in enumerate(compared):
            others = [process for process, values in enumerate(everyones) if values[number] != everyones[0][number]]
            if others:
                hosts = gather_hosts()
                named = listed([f"process {process} (host {hosts[process]})" for process in others], ", ")
                raise InputError(
                    f"{named} {'has' if len(others) == 1 else 'have'} another {name} than process 0 (host {hosts[0]}); "
                    "start the same command, with the same files and the same software, on all hosts"
                )


def code_checksum() -> int:
    """CRC-32 of this package's Python files and their names."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return functools.reduce(lambda crc, file: zlib.crc32(file.name.encode() + file.read_bytes(), crc), files, 0)


def gather_hosts() -> list[str]:
    """The name of each process' host; every process calls it."""
    name = np.zeros(64, np.uint8)
    own = np.frombuffer(socket.gethostname().encode()[:64], np.uint8)
    name[: len(own)] = own
    everyones = np.reshape(multihost_utils.process_allgather(name), (-1, 64))
    return [bytes(host).rstrip(b"\0").decode("utf-8", "replace") for host in everyones]


def stop_requested(call: int) -> bool:
    """Whether a process has been told to end (SIGTERM, preemption): the same answer on all.

    All call it equally often, with 1, 2, 3, ..: once told, JAX says so at one of these numbers alone.
    """
    return multihost_utils.reached_preemption_sync_point(call)


def is_distributed() -> bool:
    """Whether `initialize` has joined this process to others (it may be the only one of its cluster)."""
    return jax.distributed.is_initialized()


def has_peers() -> bool:
    """Whether there are other processes."""
    return is_distributed() and jax.process_count() > 1


def leave() -> None:
    """Waits for all processes and parts from them, as the last thing.

    At exit JAX first closes the sockets, by which a slower process may still be receiving the last collective.
    """
    jax.distributed.shutdown()


def device_count() -> int:
    """Devices of this process, among which its rows are divided."""
    return jax.local_device_count()


def global_device_count() -> int:
    """Devices of all processes."""
    return jax.device_count()


def own_rows(rows: int) -> range:
    """Which of all rows this process reads."""
    each = rows // jax.process_count()
    return range(jax.process_index() * each, (jax.process_index() + 1) * each)


def parallel(
    function: Callable,
    in_axes: tuple,
    out_axes: tuple,
    donate: tuple[int, ...] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Callable:
    """Runs `function` on `devices`, or on all of all processes, with collectives over AXIS, in their platform's form.

    An axis of 0 means that the argument or result has a leading device axis, None that all devices share it. A
    result under None must have been made equal (psum, pmean) by `function`: nothing checks that. Axes of results
    are numbers, None or tuples (a dict fails in JAX 0.10 with several processes).
    """
    platform = (devices or jax.local_devices())[0].platform

    def in_form(*arguments):
        with compiled_for(platform):
            return function(*arguments)

    return jax.pmap(in_form, axis_name=AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate, devices=devices)


_used_by: int | None = None  # the process that has used JAX here


def check_process() -> None:
    """Raises InputError in a forked child of a process that has used JAX, where any computation would hang."""
    global _used_by
    if _used_by not in (None, os.getpid()):
        raise InputError(
            f"this is a fork of process {_used_by}, which has used JAX: computing here would hang. Start processes by "
            'spawn or forkserver (multiprocessing.get_context("spawn")), or load the model in the child alone'
        )
    _used_by = os.getpid()


def chosen_devices(devices: Sequence[jax.Device] | int | None) -> tuple[jax.Device, ...]:
    """Devices of this process: these, the first of them, so many, or all (None)."""
    if devices is None:
        return tuple(jax.local_devices())
    accepted = f"give some of jax.local_devices(), or a number of them from 1 to {device_count()}"
    if isinstance(devices, int | np.integer) and not isinstance(devices, bool):
        if not 1 <= devices <= device_count():
            raise InputError(f"devices is {devices}; {accepted}")
        return tuple(jax.local_devices()[:devices])
    if not isinstance(devices, Sequence) or not all(isinstance(device, jax.Device) for device in devices):
        raise InputError(f"devices is {brief(repr(devices), 80)}; {accepted}")
    named = brief(list(devices), 80)
    if not devices or len(set(devices)) < len(devices) or len({device.platform for device in devices}) > 1:
        raise InputError(f"devices is {named}; {accepted}, each once, all of one platform")
    if any(device.process_index != jax.process_index() for device in devices):
        raise InputError(f"devices is {named}, not all of them this process'; {accepted}")
    return tuple(devices)


def device_places(devices: Sequence[jax.Device]) -> list[tuple[str, int]]:
    """Of devices of this process their platform and their number among those of that platform, for other processes."""
    return [(device.platform, jax.local_devices(backend=device.platform).index(device)) for device in devices]


def devices_at(places: list[tuple[str, int]]) -> list[jax.Device]:
    """The inverse of `device_places`, in this process."""
    try:
        return [jax.local_devices(backend=platform)[number] for platform, number in places]
    except (RuntimeError, IndexError):
        wanted = ", ".join(f"{platform} {number}" for platform, number in places)
        raise InputError(
            f"the pickled model was loaded on the devices {wanted}, of which this process lacks some; "
            "load it here with elmo_jax.load"
        ) from None


@contextlib.contextmanager
def computing_on(devices: Sequence[jax.Device]) -> Iterator[None]:
    """What is computed inside, for devices but not by a program of all of them, is so on the first, in its form."""
    with jax.default_device(devices[0]), compiled_for(devices[0].platform):
        yield


def _place(tree: Any, spec: P, devices: Sequence[jax.Device] | None = None, given: bool = False) -> Any:
    check_process()
    sharding = NamedSharding(Mesh(np.array(devices or jax.local_devices()), (AXIS,)), spec)
    # A copy, because a step that donates the result would delete an array of the caller's that shares its buffer.
    return jax.device_put(tree if given else jax.tree.map(lambda array: np.array(array), tree), sharding)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Every array on every device, or on these."""
    return _place(tree, P(), devices)


def shard(tree: Any, devices: Sequence[jax.Device] | None = None, given: bool = False) -> Any:
    """This process' arrays [rows, ..] → [devices, rows / devices, ..], each device's part on that device.

    Arrays that are `given` are NumPy's, and nobody else's: they are not copied first.
    """
    count = len(devices or jax.local_devices())
    split = lambda array: np.reshape(array, (count, -1, *array.shape[1:]))
    return _place(jax.tree.map(split, tree), P(AXIS), devices, given)


def divided(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Arrays [rows, ..], whose rows devices divide among them; where their number does not allow it, all have all."""
    (rows,) = {len(array) for array in jax.tree.leaves(tree)}
    return _place(tree, P() if rows % len(devices) else P(AXIS), devices)


def gather_parts(array: jax.Array) -> np.ndarray:
    """[devices, n, ..] → NumPy [all devices of all processes · n, ..] on every process; every process calls it."""
    parts = multihost_utils.process_allgather(np.asarray(array), tiled=True)
    return np.reshape(parts, (-1, *array.shape[2:]))


def fetch(tree: Any) -> Any:
    """Arrays that all devices share → NumPy."""
    return jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), tree)


def _all_devices() -> Mesh:
    devices = [device for process in range(jax.process_count()) for device in jax.local_devices(process_index=process)]
    return Mesh(np.array(devices), (AXIS,))


def _flatten(tree: Any, axes: Any) -> tuple[list[Any], tuple[int | None, ...], Any]:
    """Leaves of a tree, the axis of each (`axes` is a prefix of the tree, as for `parallel`), the tree's structure."""
    is_axis = lambda value: value is None
    leaves, structure = jax.tree.flatten(tree)
    return leaves, tuple(jax.tree.leaves(jax.tree.broadcast(axes, tree, is_axis), is_axis)), structure


def _sharding(mesh: Mesh, axis: int | None) -> NamedSharding:
    return NamedSharding(mesh, P() if axis is None else P(AXIS))


def _on(mesh: Mesh, array: jax.Array, axis: int | None) -> jax.Array:
    """The array that has the same parts on these devices of `mesh`, which holds its devices or some of them."""
    parts = {shard.device: shard.data for shard in array.addressable_shards}
    shape = array.shape if axis is None else (mesh.size, *array.shape[1:])
    own = [parts[device] for device in mesh.devices.flat if device in parts]
    return jax.make_array_from_single_device_arrays(shape, _sharding(mesh, axis), own)


@functools.partial(jax.jit, static_argnums=1, donate_argnums=2, keep_unused=True)
def _join(arrays: list[jax.Array], axes: tuple[int | None, ...], into: list[jax.Array] | None) -> list[jax.Array]:
    whole = lambda array, axis: array if axis is None else array.reshape(-1, *array.shape[2:])
    return [jnp.copy(whole(array, axis)) for array, axis in zip(arrays, axes, strict=True)]


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=0)
def _divide(arrays: list[jax.Array], axes: tuple[int | None, ...], devices: int) -> list[jax.Array]:
    part = lambda array, axis: array if axis is None else array.reshape(devices, -1, *array.shape[1:])
    return [part(array, axis) for array, axis in zip(arrays, axes, strict=True)]


def join(tree: Any, axes: Any, into: Any = None) -> Any:
    """A copy of what `parallel` takes and gives along these axes, as arrays over the devices of all processes.

    Shared arrays [..] stay so; those [devices, n, ..] become [all devices · n, ..]. `into` is an earlier result, whose
    memory is used: new memory takes a CPU ten times as long. Every process calls it.
    """
    leaves, axes, structure = _flatten(tree, axes)
    leaves = [_on(_all_devices(), leaf, axis) for leaf, axis in zip(leaves, axes, strict=True)]
    return jax.tree.unflatten(structure, _join(leaves, axes, None if into is None else jax.tree.leaves(into)))


def divide(tree: Any, axes: Any) -> Any:
    """The inverse of `join`; what goes in is used up. Every process calls it."""
    leaves, axes, structure = _flatten(tree, axes)
    local = Mesh(np.array(jax.local_devices()), (AXIS,))
    leaves = _divide(leaves, axes, global_device_count())
    return jax.tree.unflatten(structure, [_on(local, leaf, axis) for leaf, axis in zip(leaves, axes, strict=True)])


def joined_shapes(tree: Any, axes: Any) -> Any:
    """The shapes [..] of joined arrays with the places of their parts, for Orbax."""
    leaves, axes, structure = _flatten(tree, axes)
    mesh = _all_devices()
    describe = lambda leaf, axis: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(mesh, axis))
    return jax.tree.unflatten(structure, list(map(describe, leaves, axes)))


def join_rows(array: np.ndarray) -> jax.Array:
    """Every process' [rows, ..] → [all rows, ..], as `join` makes it."""
    return jax.make_array_from_process_local_data(_sharding(_all_devices(), 0), array)


def own_part(array: jax.Array) -> np.ndarray:
    """The inverse of `join_rows`."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
