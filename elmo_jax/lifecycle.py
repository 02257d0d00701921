"""What happens to a run from outside: signals, preemption, other processes that die; and a trace of some steps."""

import contextlib
import itertools
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
from etils import epath

from elmo_jax import parallel
from elmo_jax.errors import brief, told
from elmo_jax.files import as_path, is_remote, writing
from elmo_jax.workdir import Workdir

Item = TypeVar("Item")
# What JAX's runtime says when another process is gone: by its sockets, or by the service that watches over all of them.
LOST = {
    jax.errors.JaxRuntimeError: re.compile(
        r"\bGloo\b|heartbeat|coordination service|\bBarrier\b|Socket closed|Connection (closed|reset|refused)|"
        "remote process exited|^DEADLINE_EXCEEDED: "
    ),
    ValueError: re.compile(r"^[A-Z_]+: Gloo "),
}
# Seconds between two looks for what other processes say, on disk and in an object store, which is paid for each look;
# and those that a process which has lost others waits for it.
LOOK_EVERY, REASON_WAIT = {False: 2, True: 15}, 3
GO_ON = "start the same command on all hosts to go on"


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


class Reasons:
    """Why processes of a run have ended: files in a folder that all hosts see, from each that failed to all others.

    A process that waits for another in a collective is not told by JAX why it waits in vain, and on TPU and GPU not
    even that it does before a heartbeat is missed. Whatever fails here is passed over: the reason is a service.
    """

    def __init__(self, folder: epath.Path):
        self.folder, self.every = folder, LOOK_EVERY[is_remote(folder)]
        # Reasons of other commands on the same folder, which the lock may have refused, are not this one's.
        self._command = f"command {parallel.gather_values([secrets.randbits(32)])[0][0]}"
        self._over = 0.0  # when all end, in seconds since 1970
        self.ending = threading.Lock()  # of the thread that ends this process: one alone tells why

    def leave(self, reason: str) -> None:
        """Tells the others why this process ends, and when: once they have had time to look."""
        me, self._over = jax.process_index(), time.time() + self.every + 1
        with contextlib.suppress(Exception):
            self.folder.mkdir(parents=True, exist_ok=True)
            with writing(self.folder / f"process-{me}.txt") as partial:
                text = f"process {me} on {socket.gethostname()} has ended: {reason}\n{self._command}\n{self._over}\n"
                partial.write_text(text, encoding="utf-8")

    def found(self, seconds: float = 0) -> str | None:
        """What another process has left, waited for so long."""
        until = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Exception):
                for file in sorted(self.folder.glob("process-*.txt")):
                    reason, command, over = file.read_text(encoding="utf-8").splitlines()
                    if command == self._command:
                        self._over = min(float(over), time.time() + self.every + 1)
                        return reason
            if time.monotonic() >= until:
                return None
            time.sleep(0.5)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Ends this process when another has left a reason."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(self.every):
                if reason := self.found():
                    with self.ending:
                        self.end(f"error: {reason}; {GO_ON}", 2)

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def end(self, message: str, code: int) -> NoReturn:
        """Ends this process, at the same moment as the others end; a regular exit would wait for those that hang.

        When one ends, JAX may kill others before they have looked for the reason: when it is the first process, and on
        CPUs, where what the rest still send to each other does not fit together any more.
        """
        print(f"\n{message}", file=sys.stderr, flush=True)
        time.sleep(max(0.0, self._over - time.time()))
        os._exit(code)


def lost(error: BaseException | None) -> bool:
    """Whether an error is JAX's runtime missing another process, or was raised because of such a one."""
    while error is not None:
        if type(error) in LOST and LOST[type(error)].search(str(error)) and told(error) is None:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def ending_together(workdir: str) -> Iterator[None]:
    """Where there are other processes an error ends this one at once, and all others with the reason of the first."""
    if not parallel.has_peers():
        yield
        return
    folder = Workdir(as_path(workdir))
    if parallel.is_first_process():
        folder.forget_errors()
    reasons = Reasons(folder.errors)
    with reasons.watched():
        try:
            try:
                yield
            except SystemExit:  # told to end, as all were
                parallel.leave()
                raise
            parallel.leave()
        except (Exception, KeyboardInterrupt) as error:
            with reasons.ending:
                if lost(error):
                    if not (reason := reasons.found(REASON_WAIT)):
                        reasons.leave(reason := f"lost the other processes ({brief(error, 300)})")
                    reasons.end(f"error: {reason}; {GO_ON}", 2)
                if isinstance(error, KeyboardInterrupt):
                    reason, code = "interrupted", 130
                elif (reason := told(error)) is not None:
                    code = 2
                else:
                    traceback.print_exc()
                    reason, code = f"{type(error).__name__}: {brief(error, 300)}", 1
                reasons.leave(reason)
                reasons.end(f"error: {reason}; the other processes will stop, too", code)
