"""Every setting with its default and its source; `options.json` in and out."""

import dataclasses
import functools
import json
import math
import runpy
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from elmo_jax.errors import InputError, brief
from elmo_jax.files import as_path, read_json

# Of matrix products: float32 is exact on every platform. "high" is less so where that is costly: on TPU three products
# of bfloat16 numbers instead of six (relative errors up to 2^-16 of an operand), on GPU TensorFloat-32 (2^-11); on CPU
# it is float32. "bfloat16" rounds operands to 8 bits (2^-9).
Precision = Literal["float32", "high", "bfloat16"]
# How gradients change parameters, and how the learning rate goes from step to step; see `optimizers`.
OptimizerName = Literal["adagrad", "adam", "adamw", "adafactor", "sgd"]
Schedule = Literal["constant", "linear", "cosine", "noam"]
# How text is written: a sentence a line, columns with a token a line (of shared tasks, of Universal Dependencies), JSON
# lines, Parquet.
TextFormat = Literal["lines", "conll", "conllu", "jsonl", "parquet"]

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
    alphabet: int | None = None
    """Of a model that reads the characters in its characters.txt, not bytes, their number: such a model comes from
    elmo-jax convert and can embed, but not be trained."""
    word_dim: int = 0
    """Size of the vector that such a model has of each word of its vocabulary beside its characters; 0: it has none."""

    @property
    def filter_dim(self) -> int:
        """Number of filters of all widths, F."""
        return sum(count for _, count in self.filters)

    @property
    def projects(self) -> bool:
        """Whether features of characters (and words) are projected to word vectors; else they are word vectors."""
        return self.alphabet is not None or self.filter_dim != self.projection_dim

    @property
    def widest_filter(self) -> int:
        return max(width for width, _ in self.filters)


@dataclass(frozen=True)
class DataConfig:
    """The text: UTF-8, a sentence a line, or CoNLL, JSON lines, Parquet; plain or .gz, .bz2, .xz, .zst."""

    train: tuple[str, ...] = ()
    """Files, globs or tfds:DATASET/SPLIT to train on; "builtin" is the English text that every Python carries, "-"
    standard input, of which nothing is kept."""
    heldout: tuple[str, ...] = ()
    """The same, to measure perplexity on. None: none, or the held-out tenth of the built-in text."""
    vocab: str | None = None
    """Vocabulary, a word a line, most frequent first, with <S>, </S> and <UNK>. None: counted from the text."""
    shuffle: bool = True
    """Draw the sentences of each epoch in a random order, a function of the seed and the epoch."""
    cache: str | None = None
    """Folder on this machine that keeps the numbers of the text, 4 bytes a token, for later starts. None:
    elmo_jax/text in $XDG_CACHE_HOME or ~/.cache."""
    text_format: TextFormat | None = None
    """Format of the text. None: what the end of each file's name says (.jsonl, .conllu, .parquet), else lines."""
    text_column: str | None = None
    """Field of JSON lines or column of Parquet, "tokens" by default: lists of tokens or text. Number of the column of
    CoNLL, from 1, or name of that of CoNLL-U, FORM by default."""


@dataclass(frozen=True)
class TrainConfig:
    """The training run. The defaults are those of the published models (bilm-tf `bin/train_elmo.py`)."""

    steps: int = 1_000_840
    """Steps in all. The published models: 10 epochs of 768,648,884 tokens at 3 x 128 x 20 a step."""
    epochs: float | None = None
    """Passes over the training text, in place of steps."""
    batch_size: int = 128
    """Rows per device that are read at a time; a row is an endless stream of sentences."""
    accumulate: int = 1
    """How many times batch_size rows a device reads, one after the other, before each update: the step is that of so
    many times the rows, in the memory of batch_size."""
    window: int = 20
    """Positions of each row in a step: gradients reach back this far, the LSTM state further."""
    optimizer: OptimizerName = "adagrad"
    """adagrad: as published (accumulators start at 1, no epsilon). The others are as in Optax; adam, adamw, adafactor
    and sgd with momentum change every row of the softmax in every step, not only those of the step's words."""
    learning_rate: float = 0.2
    """Learning rate; with schedule noam a factor of it. 0.2 is Adagrad's; Adam takes 0.001 or so, Adafactor 0.01."""
    schedule: Schedule = "constant"
    """The learning rate after warmup_steps: constant, falling to zero at decay_steps in a line or in half a cosine, or
    noam: projection_dim^-0.5 · min(n^-0.5, n · warmup_steps^-1.5) in step n."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from nearly zero, in a line."""
    decay_steps: int | None = None
    """Step at which the learning rate has fallen to zero, with schedule linear and cosine: train.steps, say."""
    momentum: float = 0.0
    """Of sgd: the share of its trace that each step keeps; 0: no trace."""
    beta1: float = 0.9
    """Of adam and adamw: decay of the mean of gradients."""
    beta2: float = 0.999
    """Of adam and adamw: decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """Of adam and adamw: added to the root of the mean square."""
    weight_decay: float = 0.01
    """Of adamw: share of each weight (biases excepted) that is taken off in a step, times the learning rate."""
    clip_norm: float = 10.0
    """Global norm to which the gradient (of the loss times the window) is clipped."""
    dropout: float = 0.1
    """Dropout on every LSTM layer's input and before the softmax."""
    recurrent_dropout: float = 0.0
    """Dropout on every LSTM's outputs, also as it reads them again, the same for all positions of a window, as in
    AllenNLP's LSTMs and ELMoForManyLangs' training; bilm-tf has none."""
    softmax: Literal["sampled", "full"] = "sampled"
    """Training loss: sampled softmax over random negatives, or over the whole vocabulary, divided among the devices."""
    negatives: int = 8192
    """Unique log-uniform negatives of each direction in a step (sampled softmax)."""
    precision: Precision = "float32"
    """Inputs of the matrix products, which are summed in float32; parameters stay float32. "high" lies between: three
    bfloat16 products instead of six on TPU, TensorFloat-32 on GPU, the same as float32 on CPU."""
    reduce_precision: Literal["float32", "bfloat16"] = "float32"
    """In which the devices' gradients are summed. "bfloat16" halves what they exchange: each number is rounded to 8
    bits (2^-9 of it) on every device and at every addition, which with n devices adds up to n · 2^-9 of the largest at
    worst. The gradients of the targets' rows of a sampled softmax stay float32."""
    eval_precision: Precision = "float32"
    """Inputs of the matrix products while held-out perplexity is measured, whatever precision says of training."""
    seed: int = 0
    """Decides initial parameters, order of sentences, negatives and dropout."""
    checkpoint_every: int = 1250
    """Steps between checkpoints. The first come sooner, after 16 steps and at every doubling; the last step has one."""
    eval_every: int = 10_000
    """Steps between measurements of held-out perplexity. The first come sooner, before the first step, after 16 and at
    every doubling; the last step has one."""
    state_reset: float = 0.0
    """Share of the rows whose LSTM state begins from zero in each step, as it does where the model is used; bilm-tf's
    run on for the whole training."""
    patience: int | None = None
    """End the run when so many measurements of held-out perplexity in turn have brought no new lowest. None: never."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    tensorboard: bool = False
    """Write the metrics, norms of each layer's gradients and parameters, and words with their losses to
    WORKDIR/tensorboard, for TensorBoard."""
    profile: bool = False
    """Write a trace of the third to fifth step of this command to WORKDIR/profile, for TensorBoard and Perfetto."""


@dataclass(frozen=True)
class Config:
    """A training run's settings."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


# Numbers, each with its least and its largest value. No model has more layers, and larger ones take minutes to compile.
LARGEST, SMALLEST = 2**31 - 1, math.ulp(0.0)  # what is above 0
BOUNDS = {
    "model.layers": (1, 100),
    "model.highway_layers": (0, 100),
    "model.max_characters": (1, 10_000),
    **dict.fromkeys(("model.character_dim", "model.cell_dim", "model.projection_dim"), (1, LARGEST)),
    **dict.fromkeys(("model.cell_clip", "model.projection_clip"), (SMALLEST, 1e38)),
    **dict.fromkeys(("train.steps", "train.batch_size", "train.window", "train.negatives"), (1, LARGEST)),
    **dict.fromkeys(("train.checkpoint_every", "train.eval_every", "train.log_every"), (1, LARGEST)),
    **dict.fromkeys(("train.accumulate", "train.decay_steps", "train.patience"), (1, LARGEST)),
    **dict.fromkeys(("train.momentum", "train.beta1", "train.beta2"), (0, math.nextafter(1, 0))),
    "train.warmup_steps": (0, LARGEST),
    "train.state_reset": (0, 1),
    "train.epsilon": (SMALLEST, 1e38),
    "train.weight_decay": (0, 1e38),
    "model.alphabet": (261, 2**21),
    "model.word_dim": (0, LARGEST),
    "train.epochs": (SMALLEST, LARGEST),
    "train.learning_rate": (SMALLEST, 1e38),
    "train.clip_norm": (SMALLEST, math.inf),
    **dict.fromkeys(("train.dropout", "train.recurrent_dropout"), (0, math.nextafter(1, 0))),
    "train.seed": (0, 2**32 - 1),
}
MOST_FILTERS, MOST_PARAMETERS = 100, 10**11
# Fields of TrainConfig that only some optimisers have.
OF_OPTIMIZERS: dict[str, tuple[OptimizerName, ...]] = {
    "momentum": ("sgd",),
    **dict.fromkeys(("beta1", "beta2", "epsilon"), ("adam", "adamw")),
    "weight_decay": ("adamw",),
}


def parameter_count(model: ModelConfig) -> int:
    """Parameters of the biLM, without a table of words."""
    filters, projection, cell = model.filter_dim, model.projection_dim, model.cell_dim
    lstm = 2 * projection * 4 * cell + 4 * cell + cell * projection
    convolutions = sum(width * count for width, count in model.filters) * model.character_dim + filters
    highway = 2 * model.highway_layers * (filters + 1) * filters
    features = filters + model.word_dim
    characters = (model.alphabet or 261) * model.character_dim + convolutions + highway + (features + 1) * projection
    return 2 * model.layers * lstm + (characters if model.input == "characters" else 0)


def check(config: Config) -> None:
    """Raises InputError naming the first field whose value makes no sense, or whose model could never run."""
    for name, (least, most) in BOUNDS.items():
        section, field_name = name.split(".")
        value = getattr(getattr(config, section), field_name)
        if value is not None and not least <= value <= most:
            raise InputError(f"{name} is {brief(value, 30)}; it must be a number from {least} to {most}")
    check_optimizer(config.train)
    model = config.model
    if not 1 <= len(model.filters) <= MOST_FILTERS or any(min(pair) < 1 for pair in model.filters):
        accepted = f"1 to {MOST_FILTERS} pairs of a width and a number, both 1 or more"
        raise InputError(f"model.filters is {brief(model.filters)}; give {accepted}")
    if parameter_count(model) > MOST_PARAMETERS:
        raise InputError(
            f"the model would have more than {MOST_PARAMETERS:,} parameters; give a smaller cell_dim, projection_dim, "
            "character_dim or fewer filters"
        )
    if model.input == "characters" and model.max_characters < max(3, model.widest_filter):
        raise InputError(
            f"model.max_characters is {model.max_characters}; it must be at least 3 (begin and end of word and a "
            f"character) and at least the widest filter ({brief(model.widest_filter, 30)})"
        )
    if model.word_dim and model.alphabet is None:
        raise InputError(f"model.word_dim is {model.word_dim}; only a model with model.alphabet has words beside it")
    if model.projection_dim > model.cell_dim:
        raise InputError(
            f"model.projection_dim is {model.projection_dim}; it can be model.cell_dim ({model.cell_dim}) at most"
        )


def check_optimizer(train: TrainConfig) -> None:
    """Raises InputError for what the optimiser or the schedule does not have, lacks, or cannot be meant."""
    for name, optimizers in OF_OPTIMIZERS.items():
        value, default = getattr(train, name), getattr(TrainConfig, name)
        if value != default and train.optimizer not in optimizers:
            raise InputError(
                f"train.{name} is {value}, which train.optimizer {train.optimizer} does not have, only "
                f"{' and '.join(optimizers)}; leave it out"
            )
    if train.optimizer not in ("adagrad", "sgd") and train.schedule != "noam" and train.learning_rate > 0.1:
        raise InputError(
            f"train.learning_rate is {train.learning_rate}, with train.optimizer {train.optimizer} it can be 0.1 at "
            f"most: give one, {0.01 if train.optimizer == 'adafactor' else 0.001} say"
        )
    decays = train.schedule in ("linear", "cosine")
    if decays != (train.decay_steps is not None):
        raise InputError(
            f"train.decay_steps is {train.decay_steps}; train.schedule {train.schedule} "
            + ("needs it: give the step at which the learning rate is zero" if decays else "has none: leave it out")
        )
    if train.decay_steps is not None and train.decay_steps <= train.warmup_steps:
        raise InputError(
            f"train.decay_steps is {train.decay_steps}; it must be more than train.warmup_steps ({train.warmup_steps})"
        )
    if train.schedule == "noam" and not train.warmup_steps:
        raise InputError("train.warmup_steps is 0; train.schedule noam needs some, 6000 say")


def check_trainable(model: ModelConfig) -> None:
    """Raises InputError for a model that can only embed."""
    if model.alphabet is not None:
        raise InputError(
            "the model reads characters of an alphabet of its own (characters.txt), as those of ELMoForManyLangs do: "
            "it can embed; to train or to measure perplexity, take a model that reads bytes"
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
        values = to_json(config) if isinstance(config, Config) else None
    except Exception as error:
        raise InputError(f"{path} does not run: {type(error).__name__}: {brief(error)}") from error
    if values is None:
        raise InputError(f"{path} must define `config = Config(...)`; it has {type(config).__name__}")
    return from_json(values, str(path))  # checks the types


def differences(before: Config, now: Config) -> list[str]:
    """Fields that differ, as `section.field is 1, was 2`."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    return [
        f"{section}.{name} is {value}, was {old[section][name]}"
        for section, fields in new.items()
        for name, value in fields.items()
        if value != old[section][name]
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
    if origin in (types.UnionType, Union):  # of None and a type
        return None if value is None else typed(value, choices[0], name)
    if origin is tuple and isinstance(value, list | tuple):
        each = choices[:1] * len(value) if choices[-1] is ... else choices
        if len(each) == len(value):
            return tuple(typed(part, choice, name) for part, choice in zip(value, each, strict=True))
    if (origin is Literal and value in choices) or type(value) is kind:
        return value
    if kind is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    accepted = " or ".join(map(repr, choices)) if origin is Literal else getattr(kind, "__name__", kind)
    raise InputError(f"{name} is {brief(repr(value), 80)}; it must be {kind if origin is tuple else accepted}")


def from_json(values: dict[str, Any], source: str = "the config") -> Config:
    """The inverse of `to_json`; what config.json says of the run beside it is left out. `source` is for errors."""
    try:
        kinds = get_type_hints(Config).items()
        return Config(**{section: typed(values.get(section), kind, section) for section, kind in kinds})
    except InputError as error:
        raise InputError(f"{source} is not the config of a run: {error}") from None


# Place in options.json → field of ModelConfig, and what holds where options.json says nothing, or null.
LSTM_OPTIONS = {
    "lstm.dim": "cell_dim",
    "lstm.projection_dim": "projection_dim",
    "lstm.n_layers": "layers",
    "lstm.cell_clip": "cell_clip",
    "lstm.proj_clip": "projection_clip",
    "lstm.use_skip_connections": "skip_connections",
}
CHARACTER_OPTIONS = {
    "char_cnn.activation": "activation",
    "char_cnn.embedding.dim": "character_dim",
    "char_cnn.filters": "filters",
    "char_cnn.n_highway": "highway_layers",
    "char_cnn.max_characters_per_token": "max_characters",
}
# Of models that read the characters in this file.
ALPHABET = "characters.txt"
ALPHABET_OPTIONS = {"char_cnn.n_characters": "alphabet", "word_embedding.dim": "word_dim"}
DEFAULTS = {
    "layers": 1,
    "cell_clip": None,
    "projection_clip": None,
    "skip_connections": False,
    "highway_layers": 0,
    "word_dim": 0,
}


def to_options(model: ModelConfig, vocabulary_size: int | None = None) -> dict[str, Any]:
    """The model as bilm-tf's and AllenNLP's options.json (n_characters is 262: both ask for it at inference).

    A model with an alphabet of its own, which they cannot read, has n_characters, the alphabet's file in `char_cnn`,
    and `word_embedding` if words have vectors.
    """
    options: dict[str, Any] = {"bidirectional": True, "lstm": {}}
    fields, values = LSTM_OPTIONS, to_json(Config(model))["model"]
    if model.input == "characters":
        fields = LSTM_OPTIONS | CHARACTER_OPTIONS
        options["char_cnn"] = {"n_characters": 262, "embedding": {}}
    if model.alphabet is not None:
        fields |= ALPHABET_OPTIONS
        options |= {"char_cnn": {"alphabet": ALPHABET, "embedding": {}}, "word_embedding": {}}
    for place, name in fields.items():
        *groups, key = place.split(".")
        functools.reduce(dict.__getitem__, groups, options)[key] = values[name]
    return options if vocabulary_size is None else options | {"n_tokens_vocab": vocabulary_size}


def from_options(options: dict[str, Any], source: str) -> ModelConfig:
    """Reads a published options.json, already parsed; `source` names it in errors.

    Without `char_cnn` the model reads words by number, as in bilm-tf. `n_characters` may be 261 (bilm-tf's training)
    or 262 (its inference): the same model. With `char_cnn.alphabet` it is the number of that file's characters.
    """

    def option(place: str, kind: Any, *default: Any) -> Any:
        value: Any = options
        for key in place.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and not default:
            raise InputError(f"it lacks {place}, which a bilm-tf options.json has")
        return default[0] if value is None else typed(value, kind, place)

    has_characters = "char_cnn" in options
    kinds = get_type_hints(ModelConfig)
    try:
        option("bidirectional", Literal[True], True)
        fields = LSTM_OPTIONS | (CHARACTER_OPTIONS if has_characters else {})
        if option("char_cnn.alphabet", Literal[ALPHABET], None) is None:
            option("char_cnn.n_characters", Literal[261, 262], 262)
        else:
            fields |= ALPHABET_OPTIONS
        values = {
            name: option(place, kinds[name], *([DEFAULTS[name]] if name in DEFAULTS else []))
            for place, name in fields.items()
        }
        model = ModelConfig(input="characters" if has_characters else "words", **values)
        check(Config(model))
    except InputError as error:
        raise InputError(f"{source} describes no model: {error}") from None
    return model


def read_options(path: Path) -> ModelConfig:
    """Reads options.json."""
    return from_options(read_json(path), str(path))
