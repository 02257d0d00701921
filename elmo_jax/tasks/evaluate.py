"""What tasks are made of: pieces, each kept when it is whole, so that a run that was stopped goes on."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from elmo_jax.elmo import Elmo
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


def pieces_of_systems(
    name: str,
    decides: dict[str, Any],
    systems: Sequence[System],
    options: Options,
    frozen: Callable[[System, int], list[Figure]],
    fine_tuned: Callable[[System, Elmo, int], list[Figure]],
) -> list[Piece]:
    """Of data of this name, a piece for each system, and of models that are fine-tuned one for each seed.

    `frozen` is given the number of seeds, `fine_tuned` one seed.
    """
    pieces = []
    for system in systems:
        about, shown = decides | {"system": [system.name, system.identity]}, f"{name}, {system.name}"
        pieces.append(Piece(shown, about | {"seeds": options.seeds}, functools.partial(frozen, system, options.seeds)))
        if options.fine_tune and system.elmo is not None:
            for seed in range(options.seeds):
                of = functools.partial(fine_tuned, system, system.elmo, seed)
                pieces.append(Piece(f"{shown}, fine-tuned, seed {seed}", about | {"fine-tuned": seed}, of))
    return pieces
