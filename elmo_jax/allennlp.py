"""Models that AllenNLP trained on top of ELMo: their biLM, fine-tuned or not, and their learned mixes of its layers."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elmo_jax.config import Config, ModelConfig, check, read_options
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.files import read_json
from elmo_jax.mix import Mix
from elmo_jax.pickles import TorchFile, open_torch

# The published options differ in sizes alone, which the weights tell; the first is what AllenNLP takes by default.
PUBLISHED = (
    "https://allennlp.s3.amazonaws.com/models/elmo/",
    "https://s3-us-west-2.amazonaws.com/allennlp/models/elmo/",
)
WORDS, LSTM = "_elmo_lstm._token_embedder.", "_elmo_lstm._elmo_lstm."
CHARACTERS = f"{WORDS}_char_embedding_weights"
SIZES = ("character_dim", "filters", "highway_layers", "cell_dim", "projection_dim", "layers")


class Trained(NamedTuple):
    """A biLM by the names of its arrays in weights.hdf5, and the mixes that were learned with it."""

    model: ModelConfig
    arrays: dict[str, np.ndarray]
    mixes: tuple[Mix, ...]


def read_allennlp(folder: Path, options: Path | None = None) -> Trained:
    """Reads an unpacked archive: config.json, weights.th, and options.json or fta/ if they lie in it.

    `options` stands in place of those.
    """
    found: dict[str, set] = {"options_file": set(), "do_layer_norm": set()}
    _settings(read_json(folder / "config.json"), found)
    known = _options(folder, found["options_file"], options)
    with open_torch(folder / "weights.th") as weights:
        prefixes = [name.removesuffix(CHARACTERS) for name in weights if name.endswith(CHARACTERS)]
        if len(prefixes) != 1:
            places = f": {listed([brief(prefix, 80) for prefix in prefixes], ', ')}" if prefixes else ""
            raise InputError(f"it holds {len(prefixes)} ELMo models{places}; one is expected")
        elmo = _Tensors(weights, prefixes[0])
        model = _model(elmo, known)
        arrays = dict(_arrays(elmo, model))
        if unknown := elmo.unread(f"{WORDS}", f"{LSTM}"):
            raise InputError(f"its ELMo has more than ELMo has: {listed([brief(name, 80) for name in unknown], ', ')}")
        counted = [n for n in range(len(weights)) if f"{elmo.prefix}scalar_mix_{n}.gamma" in weights]
        if counted and len(found["do_layer_norm"]) > 1:
            raise InputError(
                "config.json has do_layer_norm true in one place and false in another: which is its ELMo's?"
            )
        layer_norm = found["do_layer_norm"] == {True}
        mixes = tuple(_mix(elmo, f"scalar_mix_{n}", model.layers + 1, layer_norm) for n in counted)
    return Trained(model, arrays, mixes)


def _settings(values: Any, found: dict[str, set]) -> None:
    """Collects from a config, however deep, where ELMo's options are from and whether its mixes have a layer norm."""
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            if value.get("type") == "elmo_token_embedder":
                value = {"options_file": PUBLISHED[0]} | value
            for name in found:
                if isinstance(value.get(name), str | bool):
                    found[name].add(value[name])
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _options(folder: Path, named: set[str], options: Path | None) -> ModelConfig | None:
    """The model of the options given, or of those in the archive; None if they are among the published ones."""
    files = sorted({*folder.glob("fta/*options_file"), *folder.glob("*options.json")}) if options is None else [options]
    models = [read_options(file) for file in files]
    if models and all(model == models[0] for model in models):
        return models[0]
    if not models and named and all(name.startswith(PUBLISHED) for name in named):
        return None
    names = listed([brief(name, 80) for name in sorted(named)], ", ") or "none"
    where = f"there are {len(models)} that differ" if models else f"its config.json names {names}"
    raise InputError(
        f"{folder} does not tell the options of its ELMo ({where}), and the weights do not tell the activation and "
        "where values are clipped; give them too: load(ARCHIVE, options=OPTIONS)"
    )


class _Tensors:
    """AllenNLP's tensors of one ELMo; notes which were read."""

    def __init__(self, weights: TorchFile, prefix: str):
        self.weights, self.prefix, self._read = weights, prefix, set()

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        tensor = self.weights.get(self.prefix + name)
        if tensor is None or len(tensor.shape) != rank:
            received = "missing" if tensor is None else f"{tensor.shape}"
            raise InputError(f"{brief(self.prefix + name, 120)} is {received}; an ELMo has {rank} axes there")
        return tensor.shape

    def floats(self, name: str, *shape: int) -> np.ndarray:
        if (received := self.shape(name, len(shape))) != shape:
            raise InputError(f"{brief(self.prefix + name, 120)} is {received}, expected {shape}")
        self._read.add(self.prefix + name)
        return self.weights.floats(self.prefix + name)

    def count(self, name: str) -> int:
        """How many there are of a name with a number in it."""
        return next(n for n in range(len(self.weights) + 1) if self.prefix + name.format(n) not in self.weights)

    def unread(self, *starts: str) -> list[str]:
        starts = tuple(self.prefix + start for start in starts)
        return [name for name in self.weights if name.startswith(starts) and name not in self._read]


def _model(elmo: _Tensors, options: ModelConfig | None) -> ModelConfig:
    """The model of the options, with the sizes that the tensors have: they must agree."""
    convolutions = [
        elmo.shape(f"{WORDS}char_conv_{n}.weight", 3) for n in range(elmo.count(f"{WORDS}char_conv_{{}}.weight"))
    ]
    projection, cell = elmo.shape(f"{LSTM}forward_layer_0.state_projection.weight", 2)
    model = dataclasses.replace(
        options or ModelConfig(),
        character_dim=elmo.shape(CHARACTERS, 2)[1],
        filters=tuple((width, filters) for filters, _, width in convolutions),
        highway_layers=elmo.count(f"{WORDS}_highways._layers.{{}}.weight"),
        cell_dim=cell,
        projection_dim=projection,
        layers=elmo.count(f"{LSTM}forward_layer_{{}}.state_projection.weight"),
    )
    wrong = [
        f"{name} is {getattr(options, name)} in the options and {getattr(model, name)} in the weights"
        for name in SIZES
        if options is not None and getattr(options, name) != getattr(model, name)
    ]
    if wrong or model.input != "characters":
        raise InputError(f"the options are not those of its ELMo: {listed(wrong) or 'they have no char_cnn'}")
    check(Config(model))
    if projection in (model.filter_dim, cell):
        raise InputError(f"its ELMo projects {projection} numbers to as many, which bilm-tf's models do not")
    return model


def _arrays(elmo: _Tensors, model: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """AllenNLP's tensors as bilm-tf names, turns and orders them."""
    filters, projection, cell = model.filter_dim, model.projection_dim, model.cell_dim
    yield "char_embed", elmo.floats(CHARACTERS, 262, model.character_dim)[1:]  # row 0 is its mask
    for n, (width, count) in enumerate(model.filters):
        kernel = elmo.floats(f"{WORDS}char_conv_{n}.weight", count, model.character_dim, width)
        yield f"CNN/W_cnn_{n}", kernel.transpose(2, 1, 0)[None]
        yield f"CNN/b_cnn_{n}", elmo.floats(f"{WORDS}char_conv_{n}.bias", count)
    for n in range(model.highway_layers):
        # Below the transform it keeps the carry gate with the other sign.
        kernel = elmo.floats(f"{WORDS}_highways._layers.{n}.weight", 2 * filters, filters).T
        bias = elmo.floats(f"{WORDS}_highways._layers.{n}.bias", 2 * filters)
        yield f"CNN_high_{n}/W_transform", kernel[:, :filters]
        yield f"CNN_high_{n}/b_transform", bias[:filters]
        yield f"CNN_high_{n}/W_carry", -kernel[:, filters:]
        yield f"CNN_high_{n}/b_carry", -bias[filters:]
    yield "CNN_proj/W_proj", elmo.floats(f"{WORDS}_projection.weight", projection, filters).T
    yield "CNN_proj/b_proj", elmo.floats(f"{WORDS}_projection.bias", projection)
    for number, direction in enumerate(("forward", "backward")):
        for layer in range(model.layers):
            theirs = f"{LSTM}{direction}_layer_{layer}."
            ours = f"RNN_{number}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            parts = [
                elmo.floats(f"{theirs}{part}_linearity.weight", 4 * cell, projection) for part in ("input", "state")
            ]
            bias = elmo.floats(f"{theirs}state_linearity.bias", 4 * cell)
            bias[cell : 2 * cell] -= 1  # the forget gate's 1 is stored
            yield f"{ours}/W_0", _gates(np.concatenate(parts, 1)).T
            yield f"{ours}/B", _gates(bias)
            yield f"{ours}/W_P_0", elmo.floats(f"{theirs}state_projection.weight", projection, cell).T


def _gates(array: np.ndarray) -> np.ndarray:
    """Blocks of rows in the order input, forget, memory, output → input, memory, forget, output."""
    return np.concatenate([np.split(array, 4)[n] for n in (0, 2, 1, 3)])


def _mix(elmo: _Tensors, name: str, layers: int, layer_norm: bool) -> Mix:
    weights = [elmo.floats(f"{name}.scalar_parameters.{n}", 1).item() for n in range(layers)]
    if unknown := elmo.unread(f"{name}.scalar_parameters."):
        raise InputError(f"its mix has more weights than its ELMo has layers: {listed(unknown, ', ')}")
    return Mix(weights, elmo.floats(f"{name}.gamma", 1).item(), layer_norm)
