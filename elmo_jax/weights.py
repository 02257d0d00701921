"""bilm-tf's HDF5 weight files, in and out through one table of names."""

import json
import os
import zlib
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from elmo_jax.char_cnn import HIGHWAY
from elmo_jax.config import ModelConfig, read_options, to_options
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.files import as_path, unwritable, writing
from elmo_jax.hdf5 import HDF5Writer, floating_dataset, open_hdf5, own_item, read_floats, writing_hdf5
from elmo_jax.model import parameter_shapes
from elmo_jax.vocabulary import Vocabulary

# Name in the file → path in the parameters. Arrays are the same on both sides: shapes, order of gates, and the forget
# gate's 1, which is added when the model runs, not stored.
Names = dict[str, tuple[str, str]]
SOFTMAX_NAMES = {"softmax/W": "weight", "softmax/b": "bias"}
CHECKSUM = "crc32"


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


def misfits(arrays: Mapping[str, Any], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Which of the expected arrays are missing or misshapen, one phrase each."""
    wrong = {name: shape for name, shape in shapes.items() if name in arrays and arrays[name].shape != shape}
    return [
        *(f"missing: {name} {shape}" for name, shape in shapes.items() if name not in arrays),
        *(f"{name} is {arrays[name].shape}, expected {shape}" for name, shape in wrong.items()),
    ]


def _datasets(file: h5py.File, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, h5py.Dataset], list[str]]:
    """The datasets of the names in `shapes`, and what else is in the file or wrong with them."""
    # bilm-tf's dump of a model with one layer leaves out the name of the multi-layer cell.
    names = {name.replace("/RNN/MultiRNNCell/Cell0/", "/RNN/"): name for name in shapes}
    names |= {name: name for name in shapes}
    groups = {group for name in names for group in accumulate(name.split("/")[:-1], "{}/{}".format)}
    datasets, problems, wanted = {}, [], dict(shapes)
    for group in ("", *sorted(groups)):
        members = own_item(file, group) if group else file
        for member in members if isinstance(members, h5py.Group) else ():
            name = f"{group}/{member}".lstrip("/")
            if name in names:
                try:
                    datasets[names[name]] = floating_dataset(file, name)
                except InputError as error:
                    problems.append(str(error))
                    wanted.pop(names[name], None)
            elif name not in groups:
                problems.append(f"not known: {brief(name, 80)}")
    return datasets, misfits(datasets, wanted) + problems


def _checksum(dataset: h5py.Dataset, values: np.ndarray) -> int:
    """CRC-32 of a dataset's name and float32 values, in an attribute that bilm-tf and AllenNLP do not look at."""
    return zlib.crc32(np.ascontiguousarray(values, "<f4"), zlib.crc32(dataset.name.encode()))


def _stored_checksum(dataset: h5py.Dataset) -> int | None:
    if CHECKSUM not in dataset.attrs:
        return None
    attribute = dataset.attrs.get_id(CHECKSUM)
    # A number read from a crafted type or shape could be anything; -1 is no checksum.
    return int(dataset.attrs[CHECKSUM]) if (attribute.shape, attribute.dtype) == ((), np.uint32) else -1


def _read(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of a file, which must have just these names and shapes, and the right checksums or none."""
    with open_hdf5(path) as file:
        datasets, problems = _datasets(file, shapes)
        if problems:
            raise InputError(f"it does not fit the model of its options.json: {listed(problems)}")
        arrays = {name: read_floats(datasets[name]) for name in shapes}
        checksums = {name: _stored_checksum(datasets[name]) for name in shapes}
        if any(checksum is not None for checksum in checksums.values()):
            changed = [name for name in shapes if checksums[name] != _checksum(datasets[name], arrays[name])]
            if changed:
                raise InputError(
                    f"it is damaged: the checksum is not that of {listed(changed, ', ')}. Take another copy (if the "
                    f"weights were changed on purpose, delete the attribute {CHECKSUM} of all datasets)"
                )
    return arrays


def read_weights(path: Path, model: ModelConfig, vocabulary_size: int = 0) -> dict[str, Any]:
    """Parameters of the biLM from weights.hdf5; missing, unknown and misshapen arrays are reported together."""
    arrays = _read(path, weight_shapes(model, vocabulary_size))
    parameters: dict[str, Any] = {}
    for name, (module, array) in weight_names(model).items():
        parameters.setdefault(module, {})[array] = arrays[name]
    return parameters


class ModelFolder(NamedTuple):
    """What a model folder holds: options.json, weights.hdf5, and if there, vocab.txt and softmax.hdf5.

    The softmax is the output layer: weight [V, P], bias [V].
    """

    model: ModelConfig
    parameters: dict[str, Any]
    vocabulary: Vocabulary | None
    softmax: dict[str, np.ndarray] | None


def _no_model(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: {what}; give a folder with options.json and weights.hdf5, a training workdir, or the two files "
        "themselves. The published ones are to be downloaded first, the README says where they are"
    )


def model_files(path: str | os.PathLike) -> list[Path | None]:
    """Options, weights, vocabulary and softmax in a model folder, or `model/` of a training workdir, as far as there.

    The published files may have their names of old.
    """
    folder = as_path(path)
    if not folder.is_dir():
        raise _no_model(folder, "no folder but a file" if folder.exists() else "no folder")
    if not (folder / "options.json").exists() and (folder / "config.json").exists():
        folder /= "model"
        if not folder.is_dir():
            raise InputError(f"{path} is a training run that has no model/ yet; elmo-jax export writes one")

    def only(name: str) -> Path:
        files = [folder / name] if (folder / name).exists() else sorted(folder.glob(f"*{name}"))
        if len(files) != 1:
            names = listed([brief(file.name, 80) for file in files], ", ") or "none"
            raise InputError(
                f"no file {folder / name}, and of other files *{name} one is expected, there are: {names}. Give the "
                "folder that holds a model's options.json and weights.hdf5, or the folder of a run"
            )
        return files[0]

    others = [folder / name for name in ("vocab.txt", "softmax.hdf5")]
    return [only("options.json"), only("weights.hdf5"), *(file if file.exists() else None for file in others)]


def read_model(
    options: str | os.PathLike,
    weights: str | os.PathLike,
    vocab: str | os.PathLike | None = None,
    softmax: str | os.PathLike | None = None,
) -> ModelFolder:
    """Reads a model's files; models without characters need the vocabulary."""
    for file in map(as_path, (options, weights)):
        if not file.exists():
            raise _no_model(file, "no such file")
    model = read_options(as_path(options))
    vocabulary = None if vocab is None else Vocabulary.load(as_path(vocab))
    words = len(vocabulary or ())
    if model.input == "words" and not words:
        raise InputError(f"{options} has no char_cnn: the model reads words by number and needs its vocab.txt")
    parameters = read_weights(as_path(weights), model, words)
    if softmax is None:
        return ModelFolder(model, parameters, vocabulary, None)
    if not words:
        raise InputError(f"{softmax} needs the vocab.txt that says which word each of its rows stands for")
    arrays = _read(as_path(softmax), {"softmax/W": (words, model.projection_dim), "softmax/b": (words,)})
    return ModelFolder(model, parameters, vocabulary, {ours: arrays[name] for name, ours in SOFTMAX_NAMES.items()})


def read_folder(path: str | os.PathLike, with_softmax: bool = False) -> ModelFolder:
    """Reads a model folder or the model of a training workdir."""
    return read_model(*model_files(path)[: 4 if with_softmax else 3])


def write_folder(path: Path, model: ModelConfig, parameters: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Exports {"bilm", "softmax"} parameters as a model folder that bilm-tf and AllenNLP read as it is.

    The files appear together, when all are written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    with (
        writing(path / "options.json") as options,
        writing(path / "vocab.txt") as words,
        writing_hdf5(path / "weights.hdf5") as weights,
        writing_hdf5(path / "softmax.hdf5") as softmax,
    ):
        options.write_text(json.dumps(to_options(model, len(vocabulary)), indent=1) + "\n", encoding="utf-8")
        words.write_bytes(vocabulary.to_bytes())
        _add_arrays(weights, named_weights(parameters["bilm"], model))
        _add_arrays(softmax, {name: parameters["softmax"][ours] for name, ours in SOFTMAX_NAMES.items()})


def named_weights(parameters: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """The biLM's parameters under their names in weights.hdf5."""
    return {name: parameters[module][array] for name, (module, array) in weight_names(model).items()}


def _add_arrays(file: HDF5Writer, arrays: dict[str, Any]) -> None:
    file.reserve(sum(4 * array.size for array in arrays.values()))
    for name, array in arrays.items():
        values = np.asarray(array, np.float32)
        dataset = file.add(name, values)
        dataset.attrs[CHECKSUM] = np.uint32(_checksum(dataset, values))


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an HDF5 file of float32 arrays with their checksums; it appears only when it is whole."""
    with writing_hdf5(path) as file:
        _add_arrays(file, arrays)
