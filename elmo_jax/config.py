"""Every setting with its default and its source; `options.json` in and out."""

import dataclasses
import functools
import json
import math
import runpy
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from elmo_jax.errors import InputError, brief
from elmo_jax.files import as_path, read_json

Precision = Literal["float32", "bfloat16"]

# The named configs: in the package where it is installed, beside it in a checkout.
CONFIGS = Path(__file__).parent / "configs"
CONFIGS = CONFIGS if CONFIGS.is_dir() else Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class ModelConfig:
    """The bidirectional language model. The defaults are the published "original" model."""

    input: Literal["characters", "words"] = "characters"
    """What a word is to the model: its characters (a char CNN), or its number in the vocabulary (a table)."""
    character_dim: int = 16
    """Size of a character's embedding."""
    filters: tuple[tuple[int, int], ...] = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
    """Convolutions of the char CNN: width in characters and number of filters of each."""
    activation: Literal["relu", "tanh"] = "relu"
    """Non-linearity after the maximum over character positions."""
    highway_layers: int = 2
    """Highway layers between the convolutions and the projection."""
    max_characters: int = 50
    """Characters (UTF-8 bytes) of a word that are read, begin and end of word included."""
    cell_dim: int = 4096
    """Size of an LSTM's cell."""
    projection_dim: int = 512
    """Size of an LSTM's output and of a word vector; embeddings are twice as wide."""
    layers: int = 2
    """LSTM layers in each direction."""
    cell_clip: float | None = 3.0
    """The cell is clipped to plus and minus this; None clips nothing."""
    projection_clip: float | None = 3.0
    """The projected output is clipped to plus and minus this; None clips nothing."""
    skip_connections: bool = True
    """Add each layer's input to its output, from the second layer up."""

    @property
    def filter_dim(self) -> int:
        """Number of filters of all widths, F."""
        return sum(count for _, count in self.filters)

    @property
    def widest_filter(self) -> int:
        return max(width for width, _ in self.filters)


@dataclass(frozen=True)
class DataConfig:
    """The text: one sentence a line, tokens separated by spaces, UTF-8, plain or .gz."""

    train: tuple[str, ...] = ()
    """Files, globs or tfds:DATASET/SPLIT to train on; "builtin" is the English text that every Python carries."""
    heldout: tuple[str, ...] = ()
    """The same, to measure perplexity on. None: none, or the held-out tenth of the built-in text."""
    vocab: str | None = None
    """Vocabulary, a word a line, most frequent first, with <S>, </S> and <UNK>. None: counted from the text."""
    shuffle: bool = True
    """Draw the sentences of each epoch in a random order, a function of the seed and the epoch."""


@dataclass(frozen=True)
class TrainConfig:
    """The training run. The defaults are those of the published models (bilm-tf `bin/train_elmo.py`)."""

    steps: int = 1_000_840
    """Steps in all. The published models: 10 epochs of 768,648,884 tokens at 3 x 128 x 20 a step."""
    epochs: float | None = None
    """Passes over the training text, in place of steps."""
    batch_size: int = 128
    """Rows per device; a row is an endless stream of sentences."""
    window: int = 20
    """Positions of each row in a step: gradients reach back this far, the LSTM state further."""
    learning_rate: float = 0.2
    """Learning rate of Adagrad (accumulators start at 1, no epsilon)."""
    clip_norm: float = 10.0
    """Global norm to which the gradient (of the loss times the window) is clipped."""
    dropout: float = 0.1
    """Dropout on every LSTM layer's input and before the softmax."""
    softmax: Literal["sampled", "full"] = "sampled"
    """Training loss: sampled softmax over random negatives, or over the whole vocabulary, divided among the devices."""
    negatives: int = 8192
    """Unique log-uniform negatives of each direction in a step (sampled softmax)."""
    precision: Precision = "float32"
    """Inputs of the matrix products; they are summed in float32 and parameters stay float32 either way."""
    seed: int = 0
    """Decides initial parameters, order of sentences, negatives and dropout."""
    checkpoint_every: int = 1250
    """Steps between checkpoints. The first come sooner, after 16 steps and at every doubling; the last step has one."""
    eval_every: int = 10_000
    """Steps between measurements of held-out perplexity. The first come sooner, before the first step, after 16 and at
    every doubling; the last step has one."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    profile: bool = False
    """Write a trace of the third to fifth step of this command to WORKDIR/profile, for TensorBoard and Perfetto."""


@dataclass(frozen=True)
class Config:
    """A training run's settings."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


# No model has more, and larger ones would take minutes to compile or to refuse.
MOST_LAYERS, MOST_FILTERS, MOST_CHARACTERS, MOST_PARAMETERS = 100, 100, 10_000, 10**11
LARGEST = 2**31 - 1


def parameter_count(model: ModelConfig) -> int:
    """Parameters of the biLM, without a table of words."""
    filters, projection, cell = model.filter_dim, model.projection_dim, model.cell_dim
    lstm = 2 * projection * 4 * cell + 4 * cell + cell * projection
    convolutions = sum(width * count for width, count in model.filters) * model.character_dim + filters
    highway = 2 * model.highway_layers * (filters + 1) * filters
    characters = 261 * model.character_dim + convolutions + highway + (filters + 1) * projection
    return 2 * model.layers * lstm + (characters if model.input == "characters" else 0)


def _check_sizes(model: ModelConfig) -> None:
    """Raises InputError for models that could never run."""
    for name, value, most in (
        ("layers", model.layers, MOST_LAYERS),
        ("highway_layers", model.highway_layers, MOST_LAYERS),
        ("max_characters", model.max_characters, MOST_CHARACTERS),
        ("filters (how many pairs)", len(model.filters), MOST_FILTERS),
    ):
        if value > most:
            raise InputError(f"model.{name} is {brief(value, 30)}; it can be {most} at most")
    if parameter_count(model) > MOST_PARAMETERS:
        raise InputError(
            f"the model would have more than {MOST_PARAMETERS:,} parameters; give a smaller cell_dim, projection_dim, "
            "character_dim or fewer filters"
        )


def check(config: Config) -> None:
    """Raises InputError naming the first field whose value makes no sense."""
    positive = {
        "model": ("character_dim", "max_characters", "cell_dim", "projection_dim", "layers"),
        "train": ("steps", "batch_size", "window", "learning_rate", "clip_norm", "negatives"),
    }
    positive["train"] += ("checkpoint_every", "eval_every", "log_every")
    positive["train"] += () if config.train.epochs is None else ("epochs",)
    for section, names in positive.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            if not value > 0:
                raise InputError(f"{section}.{name} is {brief(value, 30)}; it must be greater than 0")
            if name != "clip_norm" and value > LARGEST:
                raise InputError(f"{section}.{name} is {brief(value, 30)}; it can be {LARGEST} at most")
    model, train = config.model, config.train
    for name, clip in (("cell_clip", model.cell_clip), ("projection_clip", model.projection_clip)):
        if clip is not None and not 0 < clip <= 1e38:
            raise InputError(
                f"model.{name} is {clip}; it must be greater than 0 and less than 1e38, or None to clip nothing"
            )
    if not 0 <= train.dropout < 1:
        raise InputError(f"train.dropout is {train.dropout}; it must be at least 0 and less than 1")
    if not 0 <= train.seed < 2**32:
        raise InputError(f"train.seed is {train.seed}; it must be a number from 0 to 4294967295")
    if model.highway_layers < 0:
        raise InputError(f"model.highway_layers is {brief(model.highway_layers, 30)}; it must be 0 or more")
    if not model.filters or any(width < 1 or count < 1 for width, count in model.filters):
        raise InputError(f"model.filters is {brief(model.filters)}; give pairs of a width and a number, all 1 or more")
    _check_sizes(model)
    if model.input == "characters" and model.max_characters < max(3, model.widest_filter):
        raise InputError(
            f"model.max_characters is {model.max_characters}; it must be at least 3 (begin and end of word and a "
            f"character) and at least the widest filter ({brief(model.widest_filter, 30)})"
        )
    if model.projection_dim > model.cell_dim:
        raise InputError(
            f"model.projection_dim is {model.projection_dim}; it can be model.cell_dim ({model.cell_dim}) at most"
        )


def load_config(name: str, folder: Path = CONFIGS) -> Config:
    """Reads `config = Config(...)` from a Python file (a path, or a name in `folder`), or a run's config.json."""
    path = as_path(name)
    if path.suffix not in (".py", ".json"):
        path = folder / f"{name}.py"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.py")))
        raise InputError(f"no config {name!r}; give one of {known}, or a path to a .py file or a run's config.json")
    if path.suffix == ".json":
        return from_json(read_json(path), str(path))
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:
        raise InputError(f"{path} does not run: {type(error).__name__}: {brief(error)}") from error
    if not isinstance(config, Config):
        raise InputError(f"{path} must define `config = Config(...)`; it has {type(config).__name__}")
    try:
        return from_json(to_json(config), str(path))  # checks the types
    except TypeError as error:
        raise InputError(f"{path} has a value that is no plain number, text or tuple ({brief(error)})") from None


def differences(before: Config, now: Config) -> list[str]:
    """Fields that differ, as `section.field is 1, was 2`."""
    return [
        f"{section.name}.{field.name} is {new}, was {old}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(getattr(now, section.name))
        if (new := getattr(getattr(now, section.name), field.name))
        != (old := getattr(getattr(before, section.name), field.name))
    ]


def to_json(config: Config) -> dict[str, Any]:
    """The config as plain lists, dicts, numbers and strings."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def typed(value: Any, kind: Any, name: str) -> Any:
    """A value out of JSON as the type of a field: lists as tuples, objects as dataclasses; `name` is for errors."""
    choices, origin = get_args(kind), get_origin(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        kinds = get_type_hints(kind)
        if unknown := [key for key in value if key not in kinds]:
            raise InputError(f"{name} has {brief(unknown[0], 80)!r}, which is no field of it")
        return kind(**{key: typed(part, kinds[key], f"{name}.{key}") for key, part in value.items()})
    if origin is types.UnionType:  # of None and a type
        return None if value is None else typed(value, choices[0], name)
    if origin is tuple and isinstance(value, list):
        each = choices[:1] * len(value) if choices[-1] is ... else choices
        if len(each) == len(value):
            return tuple(typed(part, choice, name) for part, choice in zip(value, each, strict=True))
    if (origin is Literal and value in choices) or type(value) is kind:
        return value
    if kind is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    wanted = str(kind).replace("typing.", "") if origin else kind.__name__
    raise InputError(f"{name} is {brief(repr(value), 80)}; it must be {wanted}")


def from_json(values: Any, source: str = "the config") -> Config:
    """The inverse of `to_json`; what config.json says of the run beside it is left out. `source` is for errors."""
    sections = get_type_hints(Config)
    if not isinstance(values, dict) or not all(isinstance(values.get(section), dict) for section in sections):
        raise InputError(f"{source} is not the config of a run; it has the objects {', '.join(sections)}")
    try:
        return Config(**{section: typed(values[section], kind, section) for section, kind in sections.items()})
    except InputError as error:
        raise InputError(f"{source} is not the config of a run: {error}") from None


def to_options(model: ModelConfig, vocabulary_size: int | None = None) -> dict[str, Any]:
    """The model as bilm-tf's and AllenNLP's options.json (n_characters is 262: both ask for it at inference)."""
    options: dict[str, Any] = {
        "bidirectional": True,
        "lstm": {
            "dim": model.cell_dim,
            "projection_dim": model.projection_dim,
            "n_layers": model.layers,
            "cell_clip": model.cell_clip,
            "proj_clip": model.projection_clip,
            "use_skip_connections": model.skip_connections,
        },
    }
    if model.input == "characters":
        options["char_cnn"] = {
            "activation": model.activation,
            "embedding": {"dim": model.character_dim},
            "filters": [list(pair) for pair in model.filters],
            "n_highway": model.highway_layers,
            "n_characters": 262,
            "max_characters_per_token": model.max_characters,
        }
    if vocabulary_size is not None:
        options["n_tokens_vocab"] = vocabulary_size
    return options


def _option(options: dict[str, Any], source: str, path: str, kinds: tuple[type, ...], *default: Any) -> Any:
    """The value at `a.b` of options, of one of these types; without a default it must be there."""
    value: Any = options
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            if default:
                return default[0]
            raise InputError(f"{source} lacks {path}; a bilm-tf options.json has it")
        value = value[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise InputError(f"{source} has {path} {brief(repr(value), 80)}; it must be {names}")
    return value


def _character_options(get: Callable[..., Any], source: str) -> dict[str, Any]:
    """The char CNN's part of `from_options`."""
    filters, activation = get("char_cnn.filters", (list,)), get("char_cnn.activation", (str,))
    characters = get("char_cnn.n_characters", (int,), 262)
    if not all(isinstance(pair, list) and [type(number) for number in pair] == [int, int] for pair in filters):
        raise InputError(f"{source} has char_cnn.filters {brief(filters)}; it must be a list of [width, number]")
    if characters not in (261, 262):
        raise InputError(f"{source} has char_cnn.n_characters {brief(characters, 30)}; it is 261 or 262")
    if activation not in ("relu", "tanh"):
        raise InputError(f"{source} has char_cnn.activation {brief(repr(activation), 80)}; relu and tanh are accepted")
    return {
        "input": "characters",
        "activation": activation,
        "character_dim": get("char_cnn.embedding.dim", (int,)),
        "filters": tuple((width, number) for width, number in filters),
        "highway_layers": get("char_cnn.n_highway", (int, type(None)), 0) or 0,
        "max_characters": get("char_cnn.max_characters_per_token", (int,)),
    }


def from_options(options: dict[str, Any], source: str) -> ModelConfig:
    """Reads a published options.json, already parsed; `source` names it in errors.

    Without `char_cnn` the model reads words by number, as in bilm-tf. `n_characters` may be 261 (bilm-tf's training)
    or 262 (its inference): the same model.
    """
    get = functools.partial(_option, options, source)

    def clip(path: str) -> float | None:
        value = get(path, (int, float, type(None)), None)
        return math.inf if isinstance(value, int) and abs(value) > 2**1000 else value and float(value)

    get("lstm", (dict,))
    if not get("bidirectional", (bool,), True):
        raise InputError(f"{source} has bidirectional: false; only bidirectional models can be loaded")
    values: dict[str, Any] = {
        "cell_dim": get("lstm.dim", (int,)),
        "projection_dim": get("lstm.projection_dim", (int,)),
        "layers": get("lstm.n_layers", (int,), 1),
        "cell_clip": clip("lstm.cell_clip"),
        "projection_clip": clip("lstm.proj_clip"),
        "skip_connections": get("lstm.use_skip_connections", (bool,), False),
        "input": "words",
    }
    if "char_cnn" in options:
        values |= _character_options(get, source)
    try:
        model = ModelConfig(**values)
        check(Config(model))
    except InputError as error:
        raise InputError(f"{source} describes no model: {error}") from None
    return model


def read_options(path: Path) -> ModelConfig:
    """Reads options.json."""
    options = read_json(path)
    if not isinstance(options, dict):
        raise InputError(f"{path} holds a JSON {type(options).__name__}; a bilm-tf options.json holds an object")
    return from_options(options, str(path))
