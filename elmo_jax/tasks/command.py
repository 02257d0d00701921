"""`elmo-jax evaluate`: which tasks there are, and a run of them."""

import json
import math
from collections.abc import Mapping, Sequence

from etils import epath
from tqdm import tqdm

import elmo_jax
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.files import as_path, unwritable, writing
from elmo_jax.tasks import adaptation, answers, bias, probes, ratings, sentences, similarity, tagging, word_sense
from elmo_jax.tasks.evaluate import Options, Piece, Task
from elmo_jax.tasks.formats import digest
from elmo_jax.tasks.report import Figure, table
from elmo_jax.tasks.systems import System, TextVectors, systems_of

# By the name that the command line takes; what each reads is in docs/evaluating.md.
TASKS: dict[str, Task] = {
    "word-sense": word_sense.pieces,
    "sentiment": sentences.sentiment,
    "question-type": sentences.question_type,
    "chunking": tagging.chunking,
    "entities": tagging.entities,
    "answers": answers.pieces,
    "similarity": similarity.pieces,
    "ratings": ratings.pieces,
    "bias": bias.pieces,
    "adaptation": adaptation.pieces,
}

# Fields of a figure that may be null in JSON.
NUMBERS = ("value", "low", "high")


def parse_tasks(specifications: Sequence[str]) -> list[tuple[str, str]]:
    """Names and paths of TASK=PATH, ...."""
    if not specifications:
        raise InputError(f"which tasks? Give TASK=PATH ..., TASK one of {', '.join(TASKS)}")
    chosen = []
    for specification in specifications:
        name, equals, path = specification.partition("=")
        if name not in TASKS or not equals or not path:
            raise InputError(
                f"{brief(specification)} is no task with its data; give TASK=PATH, TASK one of {', '.join(TASKS)}"
            )
        chosen.append((name, path))
    if len(set(chosen)) < len(chosen):
        raise InputError(f"{listed(list(specifications), ' ')} names a task with its data twice; give each once")
    return chosen


class Kept:
    """The pieces of a run in its folder: each in a file, written whole, named by what decides its figures."""

    def __init__(self, folder: epath.Path):
        self.folder = folder

    def path(self, piece: Piece) -> epath.Path:
        decides = json.dumps(piece.decides | {"version": elmo_jax.__version__}, sort_keys=True, allow_nan=False)
        return self.folder / f"{digest(decides.encode())}.json"

    def read(self, piece: Piece) -> list[Figure] | None:
        """The figures, or None if the piece is not there, or not whole."""
        try:
            values = json.loads(self.path(piece).read_text())
            return [_from_json(figure) for figure in values["figures"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, piece: Piece, figures: Sequence[Figure]) -> None:
        write_json(self.path(piece), {"piece": piece.name, "figures": [_to_json(figure) for figure in figures]})


def _to_json(figure: Figure) -> dict:
    """A figure that there is none of, or without an interval, has null for it."""
    values = figure._asdict()
    return values | {name: None if math.isnan(values[name]) else values[name] for name in NUMBERS}


def _from_json(values: Mapping) -> Figure:
    numbers = {name: math.nan if values[name] is None else values[name] for name in NUMBERS}
    return Figure(**(dict(values) | numbers))


def write_json(path: epath.Path, values: Mapping) -> None:
    """Writes a JSON file, whole or not at all."""
    with writing(path) as partial:
        partial.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")


def check_others(folder: epath.Path, asked: Mapping[str, Sequence[str]]) -> None:
    """Refuses to take out of a folder what another command measured and this one does not ask for."""
    try:
        before = json.loads((folder / "results.json").read_text())["asked"]
        left = [given for name in asked for given in before[name] if given not in asked[name]]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if left:
        raise InputError(
            f"{folder} has results of {listed(left, ', ')}, which would be lost; give that, too (what is done is not "
            "computed again), or another --output"
        )


def made(piece: Piece, systems: Sequence[System]) -> list[Figure]:
    """A piece's figures. Those of a file of word vectors tell how many tokens had none."""
    texts = [system for system in systems if isinstance(system, TextVectors)]
    before = [(text.tokens, text.unknown) for text in texts]
    figures = piece.figures()
    for text, (tokens, unknown) in zip(texts, before, strict=True):
        if text.tokens > tokens:
            about = {"tokens": text.tokens - tokens, "tokens without a vector": text.unknown - unknown}
            figures = [figure._replace(details=figure.details | about) for figure in figures]
    return figures


def evaluate(
    tasks: Sequence[str], models: Sequence[str], baselines: Sequence[str], debias: str | None, options: Options
) -> list[Figure]:
    """Runs tasks on models and baselines; writes results.json and results.md into `options.output`.

    With `debias`, a file of word sets with pairs, on each of them also without the direction of the pairs. Every file
    is read and checked before anything is computed. What is done is kept in pieces/, and taken from there.
    """
    chosen = parse_tasks(tasks)
    if not models:
        raise InputError("which models? Give --model MODEL ...")
    if options.seeds < 1 or (options.limit is not None and options.limit < 1):
        raise InputError(f"seeds is {options.seeds}, limit {options.limit}; both must be 1 or more")
    folder = as_path(options.output)
    if folder.exists() and not folder.is_dir():
        raise unwritable(folder, "it is a file")
    asked = {"tasks": list(tasks), "models": list(models), "baselines": list(baselines)}
    asked["debias"] = [debias] if debias is not None else []
    check_others(folder, asked)
    systems = systems_of(models, baselines)
    if debias is not None:
        systems = [*systems, *bias.debiased(systems, debias)]
    pieces = [piece for name, path in chosen for piece in TASKS[name](path, systems, options)]
    kept, found = Kept(folder / "pieces"), []
    with tqdm(desc="evaluating", total=len(pieces), unit=" pieces") as progress:
        for piece in pieces:
            progress.set_postfix_str(piece.name)
            figures = kept.read(piece)
            if figures is None:
                figures = made(piece, systems)
                kept.write(piece, figures)
            found += figures
            progress.update()
    found = probes.joined(found)
    taken = {name: value for name, value in options._asdict().items() if name != "output"}
    about = {"asked": asked | taken, "version": elmo_jax.__version__}
    write_json(folder / "results.json", about | {"figures": [_to_json(figure) for figure in found]})
    with writing(folder / "results.md") as partial:
        partial.write_text(table(found) + "\n")
    return found
