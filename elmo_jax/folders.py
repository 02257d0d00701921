"""Where a model is read from: folders of ours and of other families, archives."""

import os
from pathlib import Path

from elmo_jax.allennlp import read_allennlp
from elmo_jax.archives import is_archive, unpacked
from elmo_jax.bundles import read_checkpoint
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.files import as_path
from elmo_jax.manylangs import read_manylangs
from elmo_jax.mix import Mix
from elmo_jax.weights import ModelFolder, as_parameters, no_model, read_model

# The names that files of weights have: ours first, then those of NLPL's archives.
WEIGHTS = ("weights.hdf5", "weights.safetensors", "model.hdf5", "model.safetensors")
SOFTMAX = ("softmax.hdf5", "softmax.safetensors")
# What the folders of other families have: AllenNLP's, ELMoForManyLangs', bilm-tf's with checkpoints of TensorFlow.
FAMILIES = ("weights.th", "encoder.pkl", "checkpoint")


def read_folder(
    path: str | os.PathLike, with_softmax: bool = False, options: str | os.PathLike | None = None
) -> ModelFolder:
    """Reads a model folder, the model of a training workdir, an archive, or a folder of ELMoForManyLangs or bilm-tf.

    `options` is an options.json for an archive of AllenNLP that has none.
    """
    files = model_files(path)
    if as_path(path).is_dir():
        return _read_unpacked(as_path(path), with_softmax, options)
    with unpacked(files[0]) as folder:
        return _read_unpacked(folder, with_softmax, options)


def _read_unpacked(folder: Path, with_softmax: bool, options: str | os.PathLike | None) -> ModelFolder:
    family = _family(folder)
    if family == "weights.th":
        trained = read_allennlp(folder, None if options is None else as_path(options))
        parameters = as_parameters(trained.model, trained.arrays)
        return ModelFolder(trained.model, parameters, None, None, mixes=trained.mixes)
    if options is not None:
        raise InputError(f"{os.fspath(options)} is one options.json too many: the model has its own")
    if family == "encoder.pkl":
        return read_manylangs(folder)
    if family == "checkpoint":
        return read_checkpoint(folder, with_softmax)
    files = model_files(folder)
    read = read_model(*files[: 4 if with_softmax else 3])
    mixes = tuple(map(Mix.load, sorted(files[0].parent.glob("mix*.json"))))
    for mix in mixes:
        if len(mix.weights) != read.model.layers + 1:
            raise InputError(f"{folder} has a mix of {len(mix.weights)} layers, its model has {read.model.layers + 1}")
    return read._replace(mixes=mixes)


def model_files(path: str | os.PathLike) -> list[Path | None]:
    """The files that a model is read from: an archive, or in a folder options, weights, vocabulary and softmax.

    The last two are None where they are not there. A training workdir has its model in `model/`; the published files
    may have their names of old.
    """
    folder = as_path(path)
    if not folder.exists():
        raise no_model(folder, "no folder")
    if not folder.is_dir():
        if not is_archive(folder):
            raise no_model(folder, "no folder but a file, and no archive")
        return [folder]
    if _family(folder) is not None:
        return sorted(folder.iterdir())
    if not (folder / "options.json").exists() and (folder / "config.json").exists():
        folder /= "model"
        if not folder.is_dir():
            raise InputError(f"{path} is a training run that has no model/ yet; elmo-jax export writes one")
    options = _named(folder, ("options.json",)) or sorted(folder.glob("*options.json"))
    softmax = _named(folder, SOFTMAX)
    files = [_only(folder, "options.json", options), _only(folder, "weights.hdf5", _weights(folder))]
    return [
        *files,
        *(_named(folder, ("vocab.txt",)) or [None]),
        _only(folder, "softmax.hdf5", softmax) if softmax else None,
    ]


def _named(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [folder / name for name in names if (folder / name).exists()]


def _family(folder: Path) -> str | None:
    """The file by which a folder with a model in another form than ours is known."""
    if _weights(folder):
        return None
    marks = [file.name for file in _named(folder, FAMILIES)] or ["checkpoint" for _ in folder.glob("*.index")]
    return marks[0] if marks else None


def _weights(folder: Path) -> list[Path]:
    """Files of weights in a folder: that with a name of ours, or those named so at the end."""
    return _named(folder, WEIGHTS) or [file for end in WEIGHTS[:2] for file in sorted(folder.glob(f"*{end}"))]


def _only(folder: Path, name: str, files: list[Path]) -> Path:
    if len(files) != 1:
        names = listed([brief(file.name, 80) for file in files], ", ") or "none"
        raise InputError(
            f"no file {folder / name}, and of other files *{name} one is expected, there are: {names}. Give the "
            "folder that holds a model's options.json and weights.hdf5, or the folder of a run"
        )
    return files[0]
