"""The one error that users see."""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

OOM = "RESOURCE_EXHAUSTED"


class InputError(ValueError):
    """Bad input: the message says what was received, what is accepted and what to do."""


def brief(value: object, limit: int = 200) -> str:
    """A value or an error on one line that can be printed, cut where it is long."""
    text = str(value)[: 4 * limit]
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def listed(phrases: Sequence[str], separator: str = "; ", limit: int = 10) -> str:
    """The first of many phrases and the number of the others."""
    more = [f"and {len(phrases) - limit} more"] if len(phrases) > limit else []
    return separator.join([*phrases[:limit], *more])


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Says which extra to install where a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        raise InputError(
            f"this needs the package {name}, which the extra {extra} brings: pip install '.[{extra}]' in the folder of "
            "the project"
        ) from None


def told(error: BaseException) -> str | None:
    """What a user is told of bad input, failing files, missing extras or too little memory; None: of a fault nothing.

    JAX's error of too little memory is a RuntimeError or ValueError, known by its text without importing JAX.
    """
    if isinstance(error, MemoryError) or (
        type(error).__name__.endswith(("RuntimeError", "ValueError")) and OOM in str(error)
    ):
        return (
            f"not enough memory: {brief(error) or 'the system gave no more'}; a smaller batch_size, window or model "
            "needs less (train.batch_size, train.window), and so does precision bfloat16"
        )
    return brief(error, 2000) if isinstance(error, (InputError, OSError, ImportError)) else None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt anew that came while a callback ran from which nothing can be raised.

    JAX has one that Python's garbage collection calls: Ctrl-C there would be told, and the work would go on.
    """
    before = sys.unraisablehook

    def again(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            main = threading.main_thread().ident
            threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()  # when the callback has ended
        else:
            before(unraisable)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def exit_on_bad_input(script: Callable[..., None]) -> Callable[..., None]:
    """Turns errors that users are `told` of into one line on stderr and exit code 2."""

    @functools.wraps(script)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            with interruptible():
                script(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # of `| head`, say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except Exception as error:
            message = told(error)
            if message is None:
                raise
            print(f"\nerror: {message}", file=sys.stderr)
            raise SystemExit(2) from None

    return wrapped
