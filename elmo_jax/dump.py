"""Files of vectors in the format of bilm-tf's and AllenNLP's dumps, and the nearest contexts in them."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

from elmo_jax.errors import InputError, brief
from elmo_jax.hdf5 import floating_dataset, open_hdf5, own_dataset, own_item, read_floats, writing_hdf5
from elmo_jax.parquet_checks import MAGIC

INDEX = "sentence_to_index"
# What readers with NumPy 1 take as one string.
LARGEST_INDEX = 2**31 - 1
# Occurrences of a word that `nearest` looks at, and vectors that it compares with them at a time.
OCCURRENCES = 10
COMPARED = 4096


def write_hdf5(
    path: str | os.PathLike,
    sentences: Iterable[list[str]],
    vectors: Iterable[np.ndarray],
    gzip: bool = False,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Writes vectors as they come, in bounded memory; the file appears only when it is whole.

    Dataset "i" holds the vectors of sentence i, and `sentence_to_index` [1] JSON from each sentence to its i. A
    sentence that comes again stands in the JSON again: readers take the last.
    """
    with writing_hdf5(path) as file, tempfile.TemporaryFile(dir=file.folder) as index:
        file.file.attrs.update(attributes or {})
        for number, (tokens, array) in enumerate(zip(sentences, vectors, strict=True)):
            file.add(str(number), array, gzip)
            index.write(f'{", " if number else "{"}{json.dumps(" ".join(tokens))}: "{number}"'.encode())
            if index.tell() >= LARGEST_INDEX:
                raise InputError(f"the text for {path} is longer than 2 GB, too long for one file; embed it in parts")
        index.write(b"}" if index.tell() else b"{}")
        file.add_text(INDEX, index)


class Neighbour(NamedTuple):
    """A token whose vector is similar, in brackets in its context."""

    similarity: float
    context: str


class Occurrence(NamedTuple):
    """A token in its context, and by cosine what is nearest to it: the same word elsewhere, and other words."""

    context: str
    same_word: list[Neighbour]
    other_words: list[Neighbour]


class Token(NamedTuple):
    """A word and its place in a sentence."""

    word: str
    sentence: int
    place: int


def nearest(path: Path, word: str, neighbours: int = 3) -> list[Occurrence]:
    """For occurrences of a word in a dump, ten at most, the nearest of its other occurrences and the nearest words.

    The vectors are read once from end to end, so many at a time; of every other word its nearest occurrence counts.
    """
    if path.is_dir() or _is_parquet(path):
        raise InputError(f"{path} is no HDF5 file; embed the text into an output that ends with .hdf5, and look there")
    with open_hdf5(path) as file:
        # Of equal sentences the last, as other readers take it.
        sentences = [(text, name) for text, name in dict(read_index(file)).items() if text.split()]
        places = [
            Token(word, sentence, place)
            for sentence, (text, _) in enumerate(sentences)
            for place, token in enumerate(text.split())
            if token == word
        ]
        if not places:
            raise InputError(f"{brief(repr(word))} does not occur; give a word of the text, as it is written there")
        chosen = [places[n] for n in np.linspace(0, len(places) - 1, min(len(places), OCCURRENCES)).astype(int)]
        width = _vectors(file, *sentences[0]).shape[1]
        looked_at = _unit(np.stack([_vectors(file, *sentences[t.sentence], width)[t.place] for t in chosen]))
        # Of each occurrence, the best so far: similarity and token of the same word, and of other words by word.
        best: list[tuple[dict, dict]] = [({}, {}) for _ in chosen]
        for tokens, vectors in _blocks(file, sentences, width):
            similarities = _unit(vectors) @ looked_at.T
            same = np.array([token.word == word for token in tokens])
            for number, own in enumerate(chosen):
                for kind, candidates in enumerate((np.flatnonzero(same), np.flatnonzero(~same))):
                    _keep_best(best[number][kind], tokens, similarities[:, number], candidates, own, neighbours)

    def context(token: Token) -> str:
        words = sentences[token.sentence][0].split()
        left, right = words[max(0, token.place - 5) : token.place], words[token.place + 1 : token.place + 6]
        return " ".join([*left, f"[{token.word}]", *right])

    ordered = lambda ranked: [
        Neighbour(value, context(token)) for value, token in sorted(ranked.values(), reverse=True)
    ]
    return [Occurrence(context(token), *map(ordered, ranked)) for token, ranked in zip(chosen, best, strict=True)]


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _keep_best(
    ranked: dict, tokens: list[Token], similarities: np.ndarray, candidates: np.ndarray, own: Token, count: int
) -> None:
    """Puts candidates that are nearer than those ranked among them, one for each other word, `count` at most."""
    nearest_here: dict = {}
    for candidate in candidates[np.argsort(-similarities[candidates], kind="stable")].tolist():
        token = tokens[candidate]
        if token != own:
            key = token if token.word == own.word else token.word
            nearest_here.setdefault(key, (float(similarities[candidate]), token))
        if len(nearest_here) == count:
            break
    for key, neighbour in nearest_here.items():
        ranked[key] = max(ranked.get(key, neighbour), neighbour)
    for key in sorted(ranked, key=ranked.__getitem__, reverse=True)[count:]:
        del ranked[key]


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors / max(np.abs(vectors).max(), np.finfo(np.float32).tiny)  # so that no square overflows
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


class Pairs(list):
    """An object of JSON with its names and values as they stand there, equal names too."""


def read_index(file: h5py.File) -> list[tuple[str, str]]:
    """Sentences and the names of their datasets, as often as they stand in the index."""
    if own_item(file, INDEX) is None:
        raise InputError(f"not a file that embed wrote: it has no {INDEX}")
    dataset = own_dataset(file, INDEX)
    if dataset.shape != (1,) or h5py.check_string_dtype(dataset.dtype) is None:
        raise InputError(f"{INDEX} is {dataset.dtype} {dataset.shape}; it must be one string (1,)")
    try:
        index = json.loads(dataset[0], object_pairs_hook=Pairs)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{INDEX} is not JSON ({brief(error)})") from None
    if not isinstance(index, Pairs) or not all(isinstance(name, str) for _, name in index):
        raise InputError(f"{INDEX} is not JSON from sentences to the names of datasets")
    return index


def _vectors(file: h5py.File, text: str, name: str, width: int | None = None) -> np.ndarray:
    """Vectors [tokens, 2P] of a sentence; the width is that of the others."""
    dataset = floating_dataset(file, name)
    if dataset.ndim != 2 or len(dataset) != len(text.split()) or not dataset.shape[1]:
        raise InputError(
            f"dataset {brief(name, 80)} is {dataset.shape}, not one vector for each of {len(text.split())} tokens; "
            "embed without --layers all, --boundaries and --pool"
        )
    if width not in (None, dataset.shape[1]):
        raise InputError(f"dataset {brief(name, 80)} has vectors of {dataset.shape[1]} numbers, others of {width}")
    return read_floats(dataset)


def _blocks(file: h5py.File, sentences: list[tuple[str, str]], width: int) -> Iterator[tuple[list[Token], np.ndarray]]:
    """All tokens of a file and their vectors [tokens, 2P], some thousands at a time."""
    tokens: list[Token] = []
    arrays: list[np.ndarray] = []
    for sentence, (text, name) in enumerate(tqdm(sentences, "nearest", unit=" sentences", delay=1, leave=False)):
        arrays.append(_vectors(file, text, name, width))
        tokens += [Token(word, sentence, place) for place, word in enumerate(text.split())]
        if len(tokens) >= COMPARED or sentence == len(sentences) - 1:
            yield tokens, np.concatenate(arrays)
            tokens, arrays = [], arrays[:0]
