"""What happens to a run from outside: signals, preemption, other processes that die; and a trace of some steps."""

import contextlib
import itertools
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax

from elmo_jax import parallel
from elmo_jax.errors import InputError
from elmo_jax.workdir import Workdir

Item = TypeVar("Item")
# What errors say when another process is gone: by its sockets, or by the service that watches over all of them.
LOST = ("gloo", "connection", "socket", "heartbeat", "coordination", "unavailable", "deadline_exceeded", "barrier")


class Told(Exception):
    """Raised within an evaluation when the run is told to end: what it trained is saved, so nothing is lost."""


class Termination:
    """Whether the run has been told to end: by Ctrl-C, by SIGTERM, or by the preemption of any of its processes.

    A second Ctrl-C stops at once.
    """

    signal: int | None = None
    _calls = itertools.count(1)  # of `requested`, in the life of the process: JAX takes only numbers that rise
    _agreed = False

    def __enter__(self) -> "Termination":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            # Where processes have joined JAX itself watches for SIGTERM and tells all of them.
            watched = (signal.SIGINT,) if parallel.is_distributed() else (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._tell) for number in watched}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _tell(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self.signal == signal.SIGINT:
                raise KeyboardInterrupt
            print("\nstopping after this step and its checkpoint; Ctrl-C once more stops at once", file=sys.stderr)
            if parallel.is_distributed():
                os.kill(os.getpid(), signal.SIGTERM)
        self.signal = number

    def requested(self) -> bool:
        """Whether to end now: the same answer on all processes, which must call it equally often."""
        if not parallel.is_distributed():
            return self.signal is not None
        self._agreed |= parallel.stop_requested(next(self._calls))
        return self._agreed

    def until_requested(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, equally many on all processes; raises Told, on all before the same item, if told to end."""
        for item in items:
            if self.requested():
                raise Told
            yield item

    @property
    def exit_code(self) -> int:
        """As shells have it, 128 + the signal."""
        return 128 + (self.signal or signal.SIGTERM)


class Profiler:
    """Traces some steps with JAX's profiler."""

    def __init__(self, workdir: Workdir, steps: range, say: Callable[[str], None]):
        self.workdir, self.steps, self.say = workdir, steps, say
        self._folder: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._stop(keep=False)

    def begin(self, step: int) -> None:
        """Called before each step."""
        if step in self.steps[:1]:
            self._folder = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._folder.name)

    def end(self, step: int, result: Any) -> None:
        """Called after each step with what it computes."""
        if self._folder is not None and step in self.steps[-1:]:
            jax.block_until_ready(result)
            self._stop(keep=True)
            self.say(f"traced steps {self.steps[0]:,} to {step:,} into {self.workdir.profile}")

    def _stop(self, keep: bool) -> None:
        folder, self._folder = self._folder, None
        jax.profiler.stop_trace()
        if keep:
            self.workdir.keep_profile(Path(folder.name))
        folder.cleanup()


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Where there are other processes an error ends this one at once, told as it is: a regular exit waits for them."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not parallel.has_peers():
            raise
        reason, code = " ".join(str(error).split())[:300], 2
        if isinstance(error, (InputError, OSError, ImportError)):
            message = f"error: {reason}"
        elif isinstance(error, KeyboardInterrupt):
            message, code = "interrupted", 130
        elif any(word in str(error).lower() for word in LOST):
            message = f"error: lost the other processes ({reason}); start the same command on all hosts to go on"
        else:
            traceback.print_exc()
            message, code = f"error: {type(error).__name__}: {reason}; the other processes will stop, too", 1
        print(f"\n{message}", file=sys.stderr, flush=True)
        os._exit(code)
