"""Every setting with its default and its source; `options.json` in and out."""

import dataclasses
import json
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from etils import epath

from elmo_jax.errors import InputError

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
    """Steps between checkpoints; the last step always has one."""
    eval_every: int = 10_000
    """Steps between measurements of held-out perplexity; it is measured before the first and after the last as well."""
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


def check(config: Config) -> None:
    """Raises InputError naming the first field whose value makes no sense."""
    positive = {
        "model": ("character_dim", "max_characters", "cell_dim", "projection_dim", "layers"),
        "train": ("steps", "batch_size", "window", "learning_rate", "clip_norm", "negatives"),
    }
    positive["train"] += ("checkpoint_every", "eval_every", "log_every")
    for section, names in positive.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            if not value > 0:
                raise InputError(f"{section}.{name} is {value}; it must be greater than 0")
    model, train = config.model, config.train
    for name, clip in (("cell_clip", model.cell_clip), ("projection_clip", model.projection_clip)):
        if clip is not None and not clip > 0:
            raise InputError(f"model.{name} is {clip}; it must be greater than 0, or None to clip nothing")
    if not 0 <= train.dropout < 1:
        raise InputError(f"train.dropout is {train.dropout}; it must be at least 0 and less than 1")
    if not 0 <= train.seed < 2**32:
        raise InputError(f"train.seed is {train.seed}; it must be a number from 0 to 4294967295")
    if model.highway_layers < 0:
        raise InputError(f"model.highway_layers is {model.highway_layers}; it must be 0 or more")
    if not model.filters or any(width < 1 or count < 1 for width, count in model.filters):
        raise InputError(f"model.filters is {model.filters}; give pairs of a width and a number, all 1 or more")
    if model.input == "characters" and model.max_characters < max(3, model.widest_filter):
        raise InputError(
            f"model.max_characters is {model.max_characters}; it must be at least 3 (begin and end of word and a "
            f"character) and at least the widest filter ({model.widest_filter})"
        )
    if model.projection_dim > model.cell_dim:
        raise InputError(
            f"model.projection_dim is {model.projection_dim}; it can be model.cell_dim ({model.cell_dim}) at most"
        )


def load_config(name: str, folder: Path = CONFIGS) -> Config:
    """Reads `config = Config(...)` from a Python file (a path, or a name in `folder`), or a run's config.json."""
    path = epath.Path(name)
    if path.suffix not in (".py", ".json"):
        path = folder / f"{name}.py"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.py")))
        raise InputError(f"no config {name!r}; give one of {known}, or a path to a .py file or a run's config.json")
    if path.suffix == ".json":
        try:
            return from_json(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not the config of a run ({error!r})") from None
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:
        raise InputError(f"{path} does not run: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise InputError(f"{path} must define `config = Config(...)`; it has {type(config).__name__}")
    return config


def to_json(config: Config) -> dict[str, Any]:
    """The config as plain lists, dicts, numbers and strings."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(values: dict[str, Any]) -> Config:
    """The inverse of `to_json`."""
    model = dict(values["model"], filters=tuple((width, count) for width, count in values["model"]["filters"]))
    data = dict(values["data"], train=tuple(values["data"]["train"]), heldout=tuple(values["data"]["heldout"]))
    return Config(ModelConfig(**model), DataConfig(**data), TrainConfig(**values["train"]))


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


def from_options(options: dict[str, Any], source: str) -> ModelConfig:
    """Reads a published options.json, already parsed; `source` names it in errors.

    Without `char_cnn` the model reads words by number, as in bilm-tf. `n_characters` may be 261 (bilm-tf's training)
    or 262 (its inference): the same model.
    """

    def get(path: str, kinds: tuple[type, ...], *default: Any) -> Any:
        value: Any = options
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                if default:
                    return default[0]
                raise InputError(f"{source} lacks {path}; a bilm-tf options.json has it")
            value = value[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise InputError(f"{source} has {path} {value!r}; it must be {names}")
        return value

    get("lstm", (dict,))
    if not get("bidirectional", (bool,), True):
        raise InputError(f"{source} has bidirectional: false; only bidirectional models can be loaded")
    values: dict[str, Any] = {
        "cell_dim": get("lstm.dim", (int,)),
        "projection_dim": get("lstm.projection_dim", (int,)),
        "layers": get("lstm.n_layers", (int,), 1),
        "cell_clip": get("lstm.cell_clip", (int, float, type(None)), None),
        "projection_clip": get("lstm.proj_clip", (int, float, type(None)), None),
        "skip_connections": get("lstm.use_skip_connections", (bool,), False),
        "input": "words",
    }
    if "char_cnn" in options:
        filters = get("char_cnn.filters", (list,))
        if not all(isinstance(pair, list) and [type(number) for number in pair] == [int, int] for pair in filters):
            raise InputError(f"{source} has char_cnn.filters {filters}; it must be a list of [width, number]")
        values |= {
            "input": "characters",
            "activation": get("char_cnn.activation", (str,)),
            "character_dim": get("char_cnn.embedding.dim", (int,)),
            "filters": tuple((width, number) for width, number in filters),
            "highway_layers": get("char_cnn.n_highway", (int, type(None)), 0) or 0,
            "max_characters": get("char_cnn.max_characters_per_token", (int,)),
        }
        if get("char_cnn.n_characters", (int,), 262) not in (261, 262):
            raise InputError(
                f"{source} has char_cnn.n_characters {get('char_cnn.n_characters', (int,))}; it is 261 or 262"
            )
        if values["activation"] not in ("relu", "tanh"):
            raise InputError(f"{source} has char_cnn.activation {values['activation']!r}; relu and tanh are accepted")
    model = ModelConfig(**values)
    try:
        check(Config(model))
    except InputError as error:
        raise InputError(f"{source} describes no model: {error}") from None
    return model


def read_options(path: Path) -> ModelConfig:
    """Reads options.json."""
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no file {path}; a model has an options.json and a weights.hdf5") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}); give a bilm-tf options.json") from None
    if not isinstance(options, dict):
        raise InputError(f"{path} holds a JSON {type(options).__name__}; a bilm-tf options.json holds an object")
    return from_options(options, str(path))
