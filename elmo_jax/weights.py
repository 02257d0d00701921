"""bilm-tf's HDF5 weight files, in and out through one table of names."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from elmo_jax.char_cnn import HIGHWAY
from elmo_jax.config import ModelConfig, read_options, to_options
from elmo_jax.errors import InputError
from elmo_jax.files import reading, writing
from elmo_jax.model import parameter_shapes
from elmo_jax.vocabulary import Vocabulary

# Name in the file → path in the parameters. Arrays are the same on both sides: shapes, order of gates, and the forget
# gate's 1, which is added when the model runs, not stored.
Names = dict[str, tuple[str, str]]
SOFTMAX_NAMES = {"softmax/W": "weight", "softmax/b": "bias"}


def weight_names(model: ModelConfig) -> Names:
    """The table for a model: what bilm-tf's dump_weights writes and AllenNLP reads."""
    names: Names = {}
    if model.input == "words":
        names["embedding"] = "words", "embedding"
    else:
        names["char_embed"] = "words", "embedding"
        for number in range(len(model.filters)):
            names[f"CNN/W_cnn_{number}"] = "words", f"kernel_{number}"
            names[f"CNN/b_cnn_{number}"] = "words", f"bias_{number}"
        for number in range(model.highway_layers):
            for name, ours in zip(("W_transform", "b_transform", "W_carry", "b_carry"), HIGHWAY, strict=True):
                names[f"CNN_high_{number}/{name}"] = "words", f"{ours}_{number}"
        if model.filter_dim != model.projection_dim:
            names["CNN_proj/W_proj"] = "words", "projection_kernel"
            names["CNN_proj/b_proj"] = "words", "projection_bias"
    for number, direction in enumerate(("forward", "backward")):
        for layer in range(model.layers):
            prefix = f"RNN_{number}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            names[f"{prefix}/W_0"] = f"{direction}_{layer}", "kernel"
            names[f"{prefix}/B"] = f"{direction}_{layer}", "bias"
            if model.projection_dim != model.cell_dim:
                names[f"{prefix}/W_P_0"] = f"{direction}_{layer}", "projection"
    return names


def weight_shapes(model: ModelConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Shape of every array in a model's weight file."""
    shapes = parameter_shapes(model, vocabulary_size)
    return {name: shapes[module][array] for name, (module, array) in weight_names(model).items()}


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Opens a file for reading."""
    if not path.exists() or path.is_dir():
        raise InputError(f"there is no file {path}")
    with reading(path) as local:
        try:
            file = h5py.File(local, "r")
        except OSError as error:
            raise InputError(f"{path} is not a whole HDF5 file ({error})") from None
        with file:
            yield file


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    # bilm-tf's dump of a model with one layer leaves out the name of the multi-layer cell.
    return {name.replace("/RNN/LSTMCell/", "/RNN/MultiRNNCell/Cell0/LSTMCell/"): item for name, item in found.items()}


def misfits(found: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Which of the expected arrays are missing or misshapen, one phrase each."""
    problems = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in found]
    for name, shape in shapes.items():
        if name in found and found[name].shape != shape:
            problems.append(f"{name} is {found[name].shape}, expected {shape}")
    return problems


def _read(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of a file, which must have just these names and shapes."""
    with open_hdf5(path) as file:
        found = _datasets(file)
        problems = misfits(found, shapes)
        problems += [f"not known: {name} {item.shape}" for name, item in found.items() if name not in shapes]
        if problems:
            raise InputError(f"{path} does not fit the model of its options.json: {'; '.join(problems)}")
        return {name: found[name][()].astype(np.float32) for name in shapes}


def read_weights(path: Path, model: ModelConfig, vocabulary_size: int = 0) -> dict[str, Any]:
    """Parameters of the biLM from weights.hdf5; missing, unknown and misshapen arrays are reported together."""
    arrays = _read(path, weight_shapes(model, vocabulary_size))
    parameters: dict[str, Any] = {}
    for name, (module, array) in weight_names(model).items():
        parameters.setdefault(module, {})[array] = arrays[name]
    return parameters


def write_weights(path: Path, parameters: dict[str, Any], model: ModelConfig) -> None:
    """Writes weights.hdf5 as bilm-tf's dump_weights does."""
    write_arrays(path, {name: parameters[module][array] for name, (module, array) in weight_names(model).items()})


def read_softmax(path: Path, model: ModelConfig, vocabulary_size: int) -> dict[str, np.ndarray]:
    """The output layer from softmax.hdf5: weight [V, P], bias [V]."""
    shapes = {"softmax/W": (vocabulary_size, model.projection_dim), "softmax/b": (vocabulary_size,)}
    return {SOFTMAX_NAMES[name]: array for name, array in _read(path, shapes).items()}


def write_softmax(path: Path, softmax: dict[str, Any]) -> None:
    """Writes softmax.hdf5 (bilm-tf leaves the output layer in its checkpoint; the names are those it has there)."""
    write_arrays(path, {name: softmax[ours] for name, ours in SOFTMAX_NAMES.items()})


class ModelFolder(NamedTuple):
    """What a model folder holds: options.json, weights.hdf5, and if there, vocab.txt and softmax.hdf5."""

    model: ModelConfig
    parameters: dict[str, Any]
    vocabulary: Vocabulary | None
    softmax: dict[str, np.ndarray] | None


def find_model(path: Path) -> Path:
    """The model folder of a path: the folder itself, or `model/` in a training workdir."""
    if not path.is_dir():
        raise InputError(f"no folder {path}; give a model folder (options.json, weights.hdf5) or a training workdir")
    if not (path / "options.json").exists() and (path / "config.json").exists():
        if not (path / "model").is_dir():
            raise InputError(f"{path} is a training run that has no model/ yet; it is written when the run ends")
        return path / "model"
    return path


def read_model(options: Path, weights: Path, vocab: Path | None = None, softmax: Path | None = None) -> ModelFolder:
    """Reads a model's files; models without characters need the vocabulary."""
    model = read_options(options)
    vocabulary = None if vocab is None else Vocabulary.load(vocab)
    if model.input == "words" and vocabulary is None:
        raise InputError(f"{options} has no char_cnn: the model reads words by number and needs its vocab.txt")
    parameters = read_weights(weights, model, len(vocabulary or ()))
    if softmax is not None and vocabulary is None:
        raise InputError(f"{softmax} needs the vocab.txt that says which word each of its rows stands for")
    return ModelFolder(model, parameters, vocabulary, softmax and read_softmax(softmax, model, len(vocabulary or ())))


def read_folder(path: Path, with_softmax: bool = False) -> ModelFolder:
    """Reads a model folder or the model of a training workdir."""
    folder = find_model(path)
    vocab, softmax = folder / "vocab.txt", folder / "softmax.hdf5"
    return read_model(
        folder / "options.json",
        folder / "weights.hdf5",
        vocab if vocab.exists() else None,
        softmax if with_softmax and softmax.exists() else None,
    )


def write_folder(path: Path, model: ModelConfig, parameters: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Exports {"bilm", "softmax"} parameters as a model folder that bilm-tf and AllenNLP read as it is."""
    path.mkdir(parents=True, exist_ok=True)
    with writing(path / "options.json") as partial:
        partial.write_text(json.dumps(to_options(model, len(vocabulary)), indent=1) + "\n", encoding="utf-8")
    vocabulary.save(path / "vocab.txt")
    write_weights(path / "weights.hdf5", parameters["bilm"], model)
    write_softmax(path / "softmax.hdf5", parameters["softmax"])


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an HDF5 file of float32 arrays; it appears only when it is whole."""
    with writing(path) as partial, h5py.File(partial, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=np.asarray(array, np.float32))
