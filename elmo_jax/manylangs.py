"""ELMoForManyLangs' models, in and out: two JSON files, dictionaries of characters and words, PyTorch's weights.

What differs from bilm-tf's models: words are spelled in Unicode characters, and may have vectors of their own beside
(Che et al. 2018). What is called `<bos>`, `<eos>` and `<oov>` there is `<S>`, `</S>` and `<UNK>` here. `<bow>` and
`<eow>` change places: the package looks up each of them under the other's name.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from elmo_jax.char_cnn import HIGHWAY
from elmo_jax.config import Config, ModelConfig, check, to_json, typed
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.files import as_path, read_json, reading, unwritable, writing
from elmo_jax.model import DIRECTIONS
from elmo_jax.pickles import open_torch, write_torch
from elmo_jax.vocabulary import BEGIN_SENTENCE, CHARACTERS, END_SENTENCE, UNKNOWN, Alphabet, Vocabulary
from elmo_jax.weights import ModelFolder, misfits

# Our names of words and of characters → theirs.
WORD_NAMES = {BEGIN_SENTENCE: "<bos>", END_SENTENCE: "<eos>", UNKNOWN: "<oov>"}
CHARACTER_NAMES = WORD_NAMES | {"<PAD>": "<pad>", "<BOW>": "<eow>", "<EOW>": "<bow>"}
# What fills a batch there: here it is a word like any other.
PADDING_WORD = "<pad>"
# Place in the JSON file of the model → field of ModelConfig.
OPTIONS = {
    "encoder.dim": "cell_dim",
    "encoder.projection_dim": "projection_dim",
    "encoder.n_layers": "layers",
    "encoder.cell_clip": "cell_clip",
    "encoder.proj_clip": "projection_clip",
    "token_embedder.activation": "activation",
    "token_embedder.filters": "filters",
    "token_embedder.n_highway": "highway_layers",
    "token_embedder.char_dim": "character_dim",
    "token_embedder.word_dim": "word_dim",
    "token_embedder.max_characters_per_token": "max_characters",
}
# That file of the published models, where they lack it: the package has it, under two names.
PUBLISHED = ModelConfig(character_dim=50, word_dim=100)
PUBLISHED_NAMES = ("cnn_50_100_512_4096_sample.json", "cnn_0_100_512_4096_sample.json")
# A folder's files; those of words are only there, or only read, if words have vectors.
OPTIONS_FILE, CHARACTERS_FILE, WORDS_FILE = "config.json", "char.dic", "word.dic"
TOKENS, ENCODER = "token_embedder.pkl", "encoder.pkl"
# `<bos>` must fit between begin and end of word there, though it is a mark.
FEWEST_CHARACTERS = 7


def read_manylangs(folder: str | os.PathLike) -> ModelFolder:
    """Reads a model's folder: config.json and the file that it names, char.dic, word.dic, both .pkl.

    Words that a vocab.txt cannot hold (white space, or what is a mark here) are left out: they are read as <UNK>.
    """
    folder = as_path(folder)
    model, source = _read_options(folder)
    letters, words = _read_lexicon(folder / CHARACTERS_FILE, CHARACTER_NAMES.values()), {}
    if model.word_dim:
        words = _read_lexicon(folder / WORDS_FILE, (*WORD_NAMES.values(), PADDING_WORD))
    weights = {}
    for file, shapes in _shapes(model, len(letters), len(words)).items():
        with open_torch(folder / file) as tensors:
            unknown = [f"not known: {brief(name, 80)}" for name in tensors if name not in shapes]
            if problems := misfits(tensors, shapes) + unknown:
                raise InputError(f"it does not fit {source} and the dictionaries: {listed(problems)}")
            weights |= {name: tensors.floats(name) for name in shapes}
    parameters = _parameters(model, weights)
    alphabet, vocabulary = Alphabet.of([letter for letter in letters if len(letter) == 1]), None
    embedding = parameters["words"]["embedding"]
    parameters["words"]["embedding"] = _rows(embedding, letters, alphabet.characters, CHARACTER_NAMES)
    if model.word_dim:
        marks = {*WORD_NAMES, *WORD_NAMES.values(), ""}
        vocabulary = Vocabulary([*WORD_NAMES, *(word for word in words if word.strip() == word and word not in marks)])
        embedding = parameters["words"]["word_embedding"]
        parameters["words"]["word_embedding"] = _rows(embedding, words, vocabulary.words, WORD_NAMES)
    model = dataclasses.replace(model, alphabet=len(alphabet))
    return ModelFolder(model, parameters, vocabulary, None, alphabet=alphabet)


def write_manylangs(folder: str | os.PathLike, source: ModelFolder) -> None:
    """Writes the folder of a model with an alphabet; config.json, which makes it one, appears last.

    The words `<bos>`, `<eos>` and `<oov>`, which are marks there, are left out.
    """
    model, alphabet, vocabulary = source.model, source.alphabet, source.vocabulary
    refused = {
        "its words are spelled in bytes, or not at all": alphabet is None,
        "its LSTMs have no projection": model.projection_dim == model.cell_dim,
        "it has no skip connections": model.layers > 1 and not model.skip_connections,
        f"it reads fewer than {FEWEST_CHARACTERS} characters of a word": model.max_characters < FEWEST_CHARACTERS,
    }
    if reasons := [reason for reason, holds in refused.items() if holds]:
        raise InputError(f"ELMoForManyLangs cannot express this model: {' and '.join(reasons)}; take another format")
    words = source.parameters["words"]
    letters = {CHARACTER_NAMES.get(letter, letter): row for row, letter in enumerate(alphabet.characters) if letter}
    tables = {"embedding": words["embedding"][list(letters.values())]}
    lexicons = {CHARACTERS_FILE: list(letters)}
    if model.word_dim:
        table = np.concatenate([words["word_embedding"], np.zeros((1, model.word_dim), np.float32)])
        rows = {PADDING_WORD: len(table) - 1} | vocabulary.index
        rows = {WORD_NAMES.get(word, word): row for word, row in rows.items() if word not in WORD_NAMES.values()}
        tables["word_embedding"] = table[list(rows.values())]
        lexicons[WORDS_FILE] = list(rows)
    contents = {name: _lexicon(entries, name) for name, entries in lexicons.items()}
    options = f"cnn_{model.character_dim}_{model.word_dim}_{model.projection_dim}_{model.cell_dim}.json"
    contents[options] = json.dumps(_options(model), indent=1) + "\n"
    contents[OPTIONS_FILE] = json.dumps({"config_path": options}) + "\n"
    weights = _weights(model, source.parameters | {"words": words | tables})
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None
    with contextlib.ExitStack() as stack:
        names = OPTIONS_FILE, *(name for name in contents if name != OPTIONS_FILE), TOKENS, ENCODER
        partial = {name: stack.enter_context(writing(folder / name)) for name in names}
        for name, content in contents.items():
            partial[name].write_text(content, encoding="utf-8", newline="\n")
        for file, shapes in _shapes(model, len(letters), len(lexicons.get(WORDS_FILE, ()))).items():
            write_torch(partial[file], {name: weights[name] for name in shapes})


# Options


def _read_options(folder: Path) -> tuple[ModelConfig, str]:
    """The model, yet with an alphabet of any size, and the name of the file that describes it."""
    path = read_json(folder / OPTIONS_FILE).get("config_path")
    if not isinstance(path, str):
        raise InputError(f"{folder / OPTIONS_FILE} has no config_path, which names the JSON file of the model")
    name = path.replace("\\", "/").split("/")[-1]  # of a path on the machine where it was trained
    source = f"{folder / name}"
    if name and (folder / name).exists():
        options = read_json(folder / name)
    elif name in PUBLISHED_NAMES:
        options = _options(PUBLISHED)
    else:
        raise InputError(f"there is no file {brief(source)}, which config.json names; put it there")
    try:
        return _model(options), source
    except InputError as error:
        raise InputError(f"{source} describes no model that can be read: {error}") from None


def _model(options: dict[str, Any]) -> ModelConfig:
    def option(place: str) -> Any:
        value: Any = options
        for key in place.split("."):
            if not isinstance(value, dict) or key not in value:
                raise InputError(f"it lacks {place}")
            value = value[key]
        return value

    for place, name in (("encoder.name", "elmo"), ("token_embedder.name", "cnn")):
        if option(place) != name:
            raise InputError(f"{place} is {brief(repr(option(place)), 80)}; only {name!r} can be read")
    kinds, values = get_type_hints(ModelConfig), {}
    for place, field in OPTIONS.items():
        unclipped = field.endswith("_clip") and option(place) == 0
        values[field] = typed(None if unclipped else option(place), kinds[field], place)
    if values["character_dim"] == 0:
        raise InputError("token_embedder.char_dim is 0; only models that read characters can be read")
    if values["projection_dim"] == values["cell_dim"]:
        raise InputError("encoder.projection_dim is encoder.dim; a projection of that size cannot be expressed")
    model = ModelConfig(alphabet=CHARACTERS, **values)
    check(Config(model))
    return model


def _options(model: ModelConfig) -> dict[str, Any]:
    """The inverse of `_model`."""
    values = to_json(Config(model))["model"]
    options: dict[str, Any] = {"encoder": {"name": "elmo"}, "token_embedder": {"name": "cnn"}, "dropout": 0.1}
    for place, field in OPTIONS.items():
        group, key = place.split(".")
        options[group][key] = values[field]
    return options


# Dictionaries


def _parsed(text: str) -> Iterable[tuple[str, str]]:
    """Entries and their ids as the package reads them: a line without an entry is that of the ideographic space."""
    for line in text.splitlines():
        entry, *number = line.strip().split("\t")
        yield (entry, *number) if number else ("\u3000", entry)


def _read_lexicon(path: Path, needed: Iterable[str]) -> dict[str, int]:
    """A file of entries and ids, a row of a table each, in order of ids."""
    try:
        with reading(path) as file:
            entries = dict(_parsed(file.read_bytes().decode("utf-8")))
        lexicon = dict(sorted(((entry, int(number)) for entry, number in entries.items()), key=lambda item: item[1]))
    except OSError as error:
        raise InputError(f"cannot read {path} ({error})") from None
    except ValueError as error:  # not UTF-8, no number, more than two columns
        raise InputError(f"{path} has not an entry, a tab and a number on every line ({brief(error)})") from None
    if list(lexicon.values()) != list(range(len(lexicon))):
        raise InputError(f"{path} has {len(lexicon)} entries whose numbers are not 0, 1, 2, .. each once")
    if missing := [mark for mark in needed if mark not in lexicon]:
        raise InputError(f"{path} lacks {' '.join(missing)}, without which the model cannot read")
    return lexicon


def _lexicon(entries: list[str], name: str) -> str:
    """The content of such a file, if the package can read the entries."""
    text = "".join(f"{entry}\t{number}\n" for number, entry in enumerate(entries))
    found = [entry for entry, *_ in _parsed(text.encode("utf-8", "ignore").decode())]
    if found != entries:
        lost = next((entry for entry, other in zip(entries, found, strict=False) if entry != other), entries[-1])
        raise InputError(f"ELMoForManyLangs cannot express this model: its {name} cannot hold {brief(repr(lost), 40)}")
    return text


def _rows(
    table: np.ndarray, lexicon: Mapping[str, int], entries: Sequence[str], names: Mapping[str, str]
) -> np.ndarray:
    """The table's rows in the order of our entries; those that stand for nothing are zeros."""
    rows = np.zeros((len(entries), table.shape[1]), np.float32)
    used = [number for number, entry in enumerate(entries) if entry]
    rows[used] = table[[lexicon[names.get(entries[number], entries[number])] for number in used]]
    return rows


# Weights


def _shapes(model: ModelConfig, letters: int, words: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the arrays in each file of weights."""
    filters, size, cell = model.filter_dim, model.projection_dim, model.cell_dim
    tokens: dict[str, tuple[int, ...]] = {"char_emb_layer.embedding.weight": (letters, model.character_dim)}
    if model.word_dim:
        tokens["word_emb_layer.embedding.weight"] = words, model.word_dim
    for number, (width, count) in enumerate(model.filters):
        tokens[f"convolutions.{number}.weight"] = count, model.character_dim, width
        tokens[f"convolutions.{number}.bias"] = (count,)
    for number in range(model.highway_layers):
        tokens[f"highways._layers.{number}.weight"] = 2 * filters, filters
        tokens[f"highways._layers.{number}.bias"] = (2 * filters,)
    tokens |= {"projection.weight": (size, model.word_dim + filters), "projection.bias": (size,)}
    encoder: dict[str, tuple[int, ...]] = {}
    for direction in DIRECTIONS:
        for layer in range(model.layers):
            name = f"{direction}_layer_{layer}"
            encoder[f"{name}.input_linearity.weight"] = encoder[f"{name}.state_linearity.weight"] = 4 * cell, size
            encoder[f"{name}.state_linearity.bias"] = (4 * cell,)
            encoder[f"{name}.state_projection.weight"] = size, cell
    return {TOKENS: tokens, ENCODER: encoder}


def _gates(array: np.ndarray) -> list[np.ndarray]:
    """Input and forget gate, input, output gate → input gate, input, forget and output gate; and back."""
    first, second, third, fourth = np.split(array, 4, -1)
    return [first, third, second, fourth]


def _parameters(model: ModelConfig, weights: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Our parameters of their weights; rows of tables stay in their order.

    Their highways' gates carry where ours transform. Their forget gates' bias contains the 1 that ours adds.
    """
    words = {"embedding": weights["char_emb_layer.embedding.weight"]}
    if model.word_dim:
        words["word_embedding"] = weights["word_emb_layer.embedding.weight"]
    for number in range(len(model.filters)):
        words[f"kernel_{number}"] = weights[f"convolutions.{number}.weight"].transpose(2, 1, 0)[None]
        words[f"bias_{number}"] = weights[f"convolutions.{number}.bias"]
    for number in range(model.highway_layers):
        transform, carry = np.split(weights[f"highways._layers.{number}.weight"].T, 2, -1)
        transform_bias, carry_bias = np.split(weights[f"highways._layers.{number}.bias"], 2)
        layer = transform, transform_bias, -carry, -carry_bias
        words |= {f"{name}_{number}": array for name, array in zip(HIGHWAY, layer, strict=True)}
    words |= {"projection_kernel": weights["projection.weight"].T, "projection_bias": weights["projection.bias"]}
    parameters = {"words": words}
    for direction in DIRECTIONS:
        for layer in range(model.layers):
            of_input, of_state, bias, projection = (
                weights[f"{direction}_layer_{layer}.{name}"]
                for name in (
                    "input_linearity.weight",
                    "state_linearity.weight",
                    "state_linearity.bias",
                    "state_projection.weight",
                )
            )
            i, j, f, o = _gates(bias)
            parameters[f"{direction}_{layer}"] = {
                "kernel": np.concatenate(_gates(np.concatenate([of_input.T, of_state.T])), -1),
                "bias": np.concatenate([i, j, f - 1, o]),
                "projection": projection.T,
            }
    return parameters


def _weights(model: ModelConfig, parameters: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The inverse of `_parameters`."""
    words = parameters["words"]
    weights = {"char_emb_layer.embedding.weight": words["embedding"]}
    if model.word_dim:
        weights["word_emb_layer.embedding.weight"] = words["word_embedding"]
    for number in range(len(model.filters)):
        weights[f"convolutions.{number}.weight"] = words[f"kernel_{number}"][0].transpose(2, 1, 0)
        weights[f"convolutions.{number}.bias"] = words[f"bias_{number}"]
    for number in range(model.highway_layers):
        transform, transform_bias, carry, carry_bias = (words[f"{name}_{number}"] for name in HIGHWAY)
        weights[f"highways._layers.{number}.weight"] = np.concatenate([transform, -carry], -1).T
        weights[f"highways._layers.{number}.bias"] = np.concatenate([transform_bias, -carry_bias])
    weights |= {"projection.weight": words["projection_kernel"].T, "projection.bias": words["projection_bias"]}
    for direction in DIRECTIONS:
        for layer in range(model.layers):
            name, lstm = f"{direction}_layer_{layer}", parameters[f"{direction}_{layer}"]
            of_input, of_state = np.split(np.concatenate(_gates(lstm["kernel"]), -1), 2)
            i, f, j, o = _gates(lstm["bias"])
            weights[f"{name}.input_linearity.weight"] = of_input.T
            weights[f"{name}.state_linearity.weight"] = of_state.T
            weights[f"{name}.state_linearity.bias"] = np.concatenate([i, f + 1, j, o])
            weights[f"{name}.state_projection.weight"] = lstm["projection"].T
    return weights
