"""Models in files: bilm-tf's HDF5 and safetensors, in and out through one table of names; archives are unpacked."""

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import safetensors.numpy

from elmo_jax.char_cnn import HIGHWAY
from elmo_jax.config import ALPHABET, ModelConfig, read_options, to_options
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.files import as_path, reading, unwritable, writing
from elmo_jax.hdf5 import HDF5Writer, finite_floats, floating_dataset, open_hdf5, own_item, read_floats, writing_hdf5
from elmo_jax.mix import Mix
from elmo_jax.model import parameter_shapes
from elmo_jax.vocabulary import Alphabet, Vocabulary

# Name in the file → path in the parameters. Arrays are the same on both sides: shapes, order of gates, and the forget
# gate's 1, which is added when the model runs, not stored.
Names = dict[str, tuple[str, str]]
SOFTMAX_NAMES = {"softmax/W": "weight", "softmax/b": "bias"}
CHECKSUM = "crc32"
Container = Literal["hdf5", "safetensors"]


def weight_names(model: ModelConfig) -> Names:
    """The table for a model: what bilm-tf's dump_weights writes and AllenNLP reads."""
    names: Names = {}
    if model.input == "words":
        names["embedding"] = "words", "embedding"
    else:
        # Under another name, for what reads bytes alone does not ask whether they are.
        names["char_embed" if model.alphabet is None else "character_embed"] = "words", "embedding"
        for number in range(len(model.filters)):
            names[f"CNN/W_cnn_{number}"] = "words", f"kernel_{number}"
            names[f"CNN/b_cnn_{number}"] = "words", f"bias_{number}"
        for number in range(model.highway_layers):
            for name, ours in zip(("W_transform", "b_transform", "W_carry", "b_carry"), HIGHWAY, strict=True):
                names[f"CNN_high_{number}/{name}"] = "words", f"{ours}_{number}"
        if model.word_dim:
            names["word_embed"] = "words", "word_embedding"
        if model.projects:
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
    """The arrays of a file, which must have just these names and shapes, in float32."""
    return (_read_safetensors if path.suffix == ".safetensors" else _read_hdf5)(path, shapes)


class _Stated(NamedTuple):
    """What the header of a safetensors file says of an array."""

    shape: tuple[int, ...]
    kind: str


def _read_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. The library compares what the header says with the size of the file."""
    with reading(path) as local:
        try:
            with safetensors.safe_open(local, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                stated = {name: _Stated(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
                problems = misfits(stated, shapes)
                problems += [f"not known: {brief(name, 80)}" for name in stated if name not in shapes]
                problems += [
                    f"{name} has numbers of type {brief(stated[name].kind, 20)}, none of BF16, F16, F32, F64"
                    for name in shapes
                    if name in stated and stated[name].kind not in ("BF16", "F16", "F32", "F64")
                ]
                if problems:
                    raise InputError(f"it does not fit the model of its options.json: {listed(problems)}")
                return {name: finite_floats(name, file.get_tensor(name)) for name in shapes}
        except MemoryError:
            raise
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except Exception as error:  # the library has errors of its own, and raises others
            raise InputError(f"{path} is not a whole safetensors file ({brief(error)})") from error


def _read_hdf5(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of an HDF5 file, which must have the right checksums or none."""
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
    """Parameters of the biLM from a file of weights; missing, unknown and misshapen arrays are reported together."""
    return as_parameters(model, _read(path, weight_shapes(model, vocabulary_size)))


def as_parameters(model: ModelConfig, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays by their names in weights.hdf5 → the biLM's parameters."""
    parameters: dict[str, Any] = {}
    for name, (module, array) in weight_names(model).items():
        parameters.setdefault(module, {})[array] = np.ascontiguousarray(arrays[name])
    return parameters


def checked_parameters(model: ModelConfig, tree: Mapping[str, Any], vocabulary_size: int = 0) -> dict[str, Any]:
    """A tree of arrays as the biLM's parameters, in NumPy's float32; InputError where it is none of this model."""
    shapes, modules = parameter_shapes(model, vocabulary_size), dict(tree)
    flat = lambda tree: {f"{module}/{name}": array for module, arrays in tree.items() for name, array in arrays.items()}
    wrong = [module for module, arrays in modules.items() if not isinstance(arrays, Mapping)]
    expected, given = flat(shapes), {} if wrong else flat(modules)
    problems = [f"{module} is no group of parameters" for module in wrong]
    if not wrong:
        given = {name: np.array(array) for name, array in given.items()}
        problems = misfits(given, expected) + [
            f"not known: {brief(name, 80)}" for name in given if name not in expected
        ]
    if problems:
        raise InputError(f"the parameters do not fit the model: {listed(problems)}; give a tree like elmo.parameters")
    arrays = {name: finite_floats(name, given[name]) for name in expected}
    return {module: {name: arrays[f"{module}/{name}"] for name in names} for module, names in shapes.items()}


class ModelFolder(NamedTuple):
    """What a model folder holds: options.json, weights.hdf5, and if there, vocab.txt and softmax.hdf5.

    The softmax is the output layer: weight [V, P], bias [V]. The alphabet is in characters.txt, of models that read it.
    The mixes were learned with the model, in a task that it was used for.
    """

    model: ModelConfig
    parameters: dict[str, Any]
    vocabulary: Vocabulary | None
    softmax: dict[str, np.ndarray] | None
    alphabet: Alphabet | None = None
    mixes: tuple[Mix, ...] = ()


def no_model(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: {what}; give a folder with options.json and weights.hdf5, a training workdir, an archive (.zip of "
        "NLPL, .tar.gz of AllenNLP), the two files themselves, or the name of a published model (elmo-jax models lists "
        "them)"
    )


def read_model(
    options: str | os.PathLike,
    weights: str | os.PathLike,
    vocab: str | os.PathLike | None = None,
    softmax: str | os.PathLike | None = None,
) -> ModelFolder:
    """Reads a model's files; models that look up words need the vocabulary, an alphabet lies beside options.json."""
    for file in map(as_path, (options, weights)):
        if not file.exists():
            raise no_model(file, "no such file")
    model = read_options(as_path(options))
    vocabulary = None if vocab is None else Vocabulary.load(as_path(vocab))
    words = len(vocabulary or ())
    if (model.input == "words" or model.word_dim) and not words:
        has = "word_embedding" if model.word_dim else "no char_cnn"
        raise InputError(f"{options} has {has}: the model reads words by number and needs its vocab.txt")
    alphabet = None if model.alphabet is None else Alphabet.load(as_path(options).parent / ALPHABET)
    if alphabet is not None and len(alphabet) != model.alphabet:
        raise InputError(f"{ALPHABET} has {len(alphabet)} lines, {options} says n_characters is {model.alphabet}")
    parameters = read_weights(as_path(weights), model, words)
    if softmax is None:
        return ModelFolder(model, parameters, vocabulary, None, alphabet=alphabet)
    if not words:
        raise InputError(f"{softmax} needs the vocab.txt that says which word each of its rows stands for")
    arrays = _read(as_path(softmax), {"softmax/W": (words, model.projection_dim), "softmax/b": (words,)})
    output = {ours: arrays[name] for name, ours in SOFTMAX_NAMES.items()}
    return ModelFolder(model, parameters, vocabulary, output, alphabet=alphabet)


def write_folder(path: Path, model: ModelConfig, parameters: dict[str, Any], vocabulary: Vocabulary) -> None:
    """Exports {"bilm", "softmax"} parameters as a model folder."""
    write_model(path, ModelFolder(model, parameters["bilm"], vocabulary, parameters["softmax"]))


def write_model(path: Path, model: ModelFolder, container: Container = "hdf5") -> None:
    """Writes a model folder; with HDF5 files, bilm-tf and AllenNLP read it as it is.

    The files appear together, when all are written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    with contextlib.ExitStack() as files:
        add = lambda name: files.enter_context(writing(path / name))
        words = None if model.vocabulary is None else len(model.vocabulary)
        add("options.json").write_text(json.dumps(to_options(model.model, words), indent=1) + "\n", encoding="utf-8")
        if model.vocabulary is not None:
            add("vocab.txt").write_bytes(model.vocabulary.to_bytes())
        if model.alphabet is not None:
            add(ALPHABET).write_bytes(model.alphabet.to_bytes())
        for number, mix in enumerate(model.mixes):
            add("mix.json" if len(model.mixes) == 1 else f"mix-{number:03}.json").write_bytes(mix.to_bytes())
        arrays = {"weights": named_weights(model.parameters, model.model)}
        if model.softmax is not None:
            arrays["softmax"] = {name: model.softmax[ours] for name, ours in SOFTMAX_NAMES.items()}
        for name, named in arrays.items():
            if container == "hdf5":
                _add_arrays(files.enter_context(writing_hdf5(path / f"{name}.hdf5")), named)
            else:
                values = {name: np.ascontiguousarray(array, np.float32) for name, array in named.items()}
                add(f"{name}.safetensors").write_bytes(safetensors.numpy.save(values))


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
