"""Compiled programs, kept from one process to the next in the user's cache folder."""

import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import filelock
import jax
from jax.experimental.compilation_cache import compilation_cache

# What the folder may hold; those used last stay.
MAX_BYTES = 2**30

_lock = threading.RLock()
_compiled: set[Hashable] = set()


def _settings() -> dict[str, Any]:
    """JAX's settings under which programs are kept; none where that is not wanted, or where JAX has been told where."""
    refused = os.environ.get("ELMO_JAX_COMPILATION_CACHE", "").lower() in ("0", "off")
    if refused or jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return {}
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elmo_jax"
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lockfile", timeout=10):
            # JAX cannot bound a folder with programs that have no time of use: interrupted writes, and version 0.1's.
            for program in folder.glob("*-cache"):
                if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                    program.unlink()
    except (OSError, RuntimeError):  # a home that is not there, full or read-only
        return {}
    return {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": MAX_BYTES,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }


def _apply(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    if settings:
        compilation_cache.reset_cache()  # else JAX stays with the folder, or with none, that it settled on before


def keep_compiled() -> None:
    """Keeps every program that this process compiles: for commands, whose process is their own."""
    _apply(_settings())


@contextlib.contextmanager
def keeping(wanted: bool = True) -> Iterator[None]:
    """Keeps the programs that are compiled inside; JAX's settings are afterwards what they were.

    They are the whole process': what another thread of the host application compiles meanwhile is kept too.
    """
    with _lock:
        settings = _settings() if wanted else {}
        before = {name: getattr(jax.config, name) for name in settings}
        try:
            _apply(settings)
            yield
        finally:
            _apply(before)


def run(program: Callable, shapes: Hashable, *arguments: Any, keep: bool) -> Any:
    """`program(*arguments)`; the first run with arguments of these `shapes`, which compiles it, is `keeping`."""
    if (program, shapes) in _compiled:
        return program(*arguments)
    with keeping(keep):
        results = program(*arguments)
    _compiled.add((program, shapes))
    return results
