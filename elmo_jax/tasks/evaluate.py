"""What tasks are made of: pieces, each kept when it is whole, so that a run that was stopped goes on."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from elmo_jax.tasks.report import Figure
from elmo_jax.tasks.systems import System


class Options(NamedTuple):
    """What all tasks take: how often what is learned is learned anew, the first examples only, fine-tuning beside it.

    `output` is the folder of the run, for models that a task makes.
    """

    seeds: int = 5
    limit: int | None = None
    fine_tune: bool = False
    output: str = ""


class Piece(NamedTuple):
    """A part of a task that is kept when it is done: what it is called, what decides its result, and making it.

    `name` is one line for the progress bar; `decides` is JSON that, with the project's version, names everything that
    the figures depend on: the task, digests of its data, systems' identities, the options that it reads.
    """

    name: str
    decides: dict[str, Any]
    figures: Callable[[], list[Figure]]


# A task: the path that it was given, systems and options → pieces. It reads and checks its whole file at once, so that
# bad input is told before anything is computed.
Task = Callable[[str, Sequence[System], Options], list[Piece]]
