"""A model in one form → another: model folders, archives of NLPL, folders of ELMoForManyLangs."""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Literal

from elmo_jax.config import to_options
from elmo_jax.errors import InputError
from elmo_jax.files import writing
from elmo_jax.manylangs import write_manylangs
from elmo_jax.weights import ModelFolder, named_weights, write_arrays, write_model

Form = Literal["hdf5", "safetensors", "nlpl", "manylangs"]


def write_as(model: ModelFolder, dest: Path, form: Form) -> list[str]:
    """Writes a model in a form; what that form has no place for is returned, and what it cannot express refused.

    "hdf5" and "safetensors" are model folders, "nlpl" the .zip that simple_elmo reads, "manylangs" a folder of
    ELMoForManyLangs.
    """
    if dest.is_file() or (dest.is_dir() and any(dest.iterdir())):
        raise InputError(f"{dest} is there already; give a new path")
    if form != "nlpl" and dest.suffix in (".hdf5", ".h5", ".safetensors"):
        raise InputError(f"{dest} would be a folder, of options.json and weights; give a name for one")
    if form in ("hdf5", "safetensors"):
        write_model(dest, model, form)
        return []
    if form == "manylangs":
        write_manylangs(dest, model)
    else:
        _write_nlpl(dest, model)
    left = {"its softmax": model.softmax, "its learned mixes": model.mixes}
    return [what for what, there in left.items() if there]


def _write_nlpl(path: Path, source: ModelFolder) -> None:
    """Writes an archive as simple_elmo reads it; NLPL's are uncompressed in all but name, and so is this."""
    model, vocabulary = source.model, source.vocabulary
    refused = {
        "it reads words by number": model.input == "words",
        "it has an alphabet of its own, and NLPL's models read bytes": model.alphabet is not None,
    }
    if reasons := [reason for reason, holds in refused.items() if holds]:
        raise InputError(f"an archive of NLPL cannot express this model: {' and '.join(reasons)}; take another format")
    about = {"algorithm": {"name": "Embeddings from Language Models (ELMo)"}, "dimensions": 2 * model.projection_dim}
    files = {"options.json": to_options(model, vocabulary and len(vocabulary)), "meta.json": about}
    texts = {name: f"{json.dumps(values, indent=1)}\n".encode() for name, values in files.items()}
    if vocabulary is not None:
        texts["vocab.txt"] = vocabulary.to_bytes()
    with tempfile.TemporaryDirectory() as folder, writing(path) as partial:
        weights = Path(folder, "model.hdf5")
        write_arrays(weights, named_weights(source.parameters, model))
        with zipfile.ZipFile(partial, "w") as archive, weights.open("rb") as content:
            for name, text in texts.items():
                archive.writestr(_member(name), text)
            with archive.open(_member("model.hdf5"), "w", force_zip64=True) as member:
                while block := content.read(1 << 20):
                    member.write(block)


def _member(name: str) -> zipfile.ZipInfo:
    """A member without a time, so that the same model is the same file."""
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o644 << 16
    return info
