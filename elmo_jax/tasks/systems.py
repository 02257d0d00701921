"""What is compared: models, and baselines that give each token vectors too.

N sentences, M tokens of all of them, L layers, D width of a vector.
"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from tqdm import tqdm

from elmo_jax.elmo import Elmo, load
from elmo_jax.errors import InputError, brief, needing
from elmo_jax.mix import LARGEST
from elmo_jax.outputs import fingerprint
from elmo_jax.tasks.formats import digest, source_of, stem

MIX = "mix"
ROWS = 32  # that a model of transformers reads at a time
DEFAULT_PIECES = 512  # of a model that does not tell how many it takes
SHOWN_EVERY = 4096  # lines, in the progress bar


class Vectors(NamedTuple):
    """Vectors of sentences, one behind the other: values float32 [M, L, D]; sentence i is those from begins[i]."""

    values: np.ndarray
    begins: np.ndarray

    def of(self, sentence: int) -> np.ndarray:
        """Of one sentence, [T, L, D]."""
        return self.values[self.begins[sentence] : self.begins[sentence + 1]]

    def pooled(self) -> np.ndarray:
        """The mean of each sentence's tokens, [N, L, D]; zeros of one without tokens."""
        counts = np.diff(self.begins)
        sums = np.zeros((len(counts), *self.values.shape[1:]), np.float32)
        some = counts > 0
        if some.any():
            sums[some] = np.add.reduceat(self.values, self.begins[:-1][some], axis=0)
        return sums / np.maximum(counts, 1)[:, None, None]


class System(Protocol):
    """What gives vectors: `name` stands in tables, `layers` are those of its vectors, `identity` tells it from others.

    `elmo` is the model, where it is one that can be fine-tuned.
    """

    name: str
    layers: tuple[str, ...]
    identity: str
    elmo: Elmo | None

    def embed(self, sentences: Sequence[Sequence[str]]) -> Vectors:
        """Vectors of sentences, each read by itself."""


def room(sentences: Sequence[Sequence[str]], layers: int, width: int) -> Vectors:
    """Zeros for the vectors of sentences."""
    begins = np.cumsum([0, *map(len, sentences)])
    return Vectors(np.zeros((begins[-1], layers, width), np.float32), begins)


class ElmoSystem:
    """A biLM: word vectors and what its LSTM layers make of them, each sentence read from the warm state."""

    def __init__(self, name: str, elmo: Elmo):
        self.name, self.elmo = name, elmo
        self.layers = ("words", *(f"LSTM {layer + 1}" for layer in range(elmo.model.layers)))
        self.identity = fingerprint(elmo)

    def embed(self, sentences: Sequence[Sequence[str]]) -> Vectors:
        """Vectors of sentences, each read by itself."""
        vectors = room(sentences, len(self.layers), self.elmo.dim)
        embedded = self.elmo.embed_iter(sentences, layers="all")
        for number, layers in enumerate(shown(embedded, self.name, len(sentences))):
            vectors.of(number)[:] = layers.swapaxes(0, 1)
        return vectors


def shown(sentences: Iterable[np.ndarray], name: str, count: int) -> Iterable[np.ndarray]:
    """What is embedded, with a progress bar."""
    return tqdm(sentences, f"embedding with {name}", count, unit=" sentences", delay=2, leave=False)


def untrained(elmo: Elmo, seed: int = 0) -> Elmo:
    """A model of the same shape with initial parameters: what the shape alone gives."""
    with needing("train"):
        from elmo_jax.modules import init_bilm
    parameters = init_bilm(jax.random.key(seed), elmo.model, len(elmo.vocabulary or ()))
    return elmo.with_parameters(jax.tree.map(np.asarray, parameters), mixes=())


class TextVectors:
    """Vectors of words in a text file of word2vec or GloVe: a word and D numbers a line, with or without a first line.

    The first line of word2vec's files tells the number of lines and D. The file is streamed, once for each `embed` that
    has new words, and only vectors of words that were asked for are kept. A word that is not there has the vector of
    its small letters, or else zeros; how many tokens have those is told.
    """

    elmo: Elmo | None = None
    layers: tuple[str, ...] = ("words",)

    def __init__(self, path: str | os.PathLike[str]):
        self.source, self.name = source_of(path), stem(path)
        self.header, self.width, self.identity = self._checked()
        self.tokens = self.unknown = 0  # that it was asked for vectors of, and that it had none of
        self.found: dict[str, np.ndarray] = {}
        self.asked: set[str] = set()

    def embed(self, sentences: Sequence[Sequence[str]]) -> Vectors:
        """Vectors of sentences; of a word the same in all."""
        counts = Counter(token for tokens in sentences for token in tokens)
        self._look_up({form for token in counts for form in (token, token.lower())})
        unknown, numbers = 0, {}
        table = np.zeros((len(counts), self.width), np.float32)
        for number, (token, count) in enumerate(counts.items()):
            numbers[token] = number
            vector = self.found.get(token, self.found.get(token.lower()))
            if vector is None:
                unknown += count
            else:
                table[number] = vector
        vectors = room(sentences, 1, self.width)
        vectors.values[:, 0] = table[[numbers[token] for tokens in sentences for token in tokens]]
        self.tokens, self.unknown = self.tokens + counts.total(), self.unknown + unknown
        if unknown:
            tqdm.write(f"{self.name} has no vector of {unknown:,} of {counts.total():,} tokens: zeros", sys.stderr)
        return vectors

    def _rows(self, what: str) -> Iterator[tuple[int, bytes]]:
        """Lines and their numbers, with a progress bar."""
        with (
            self.source.lines(0) as (lines, done),
            tqdm(total=self.source.size, desc=what, unit="B", unit_scale=True, delay=2, leave=False) as bar,
        ):
            offset = 0
            for number, line in enumerate(lines, start=1):
                offset += len(line)
                if number % SHOWN_EVERY == 0:
                    bar.update(done(offset) - bar.n)
                yield number, line

    def _checked(self) -> tuple[bool, int, str]:
        """Whether the first line tells sizes, D, and a digest of the file, all of whose lines must have D numbers."""
        whole, count, width, header, rows = hashlib.sha256(), None, None, False, 0
        for number, line in self._rows(f"checking {self.name}"):
            whole.update(line)
            fields = line.split()
            if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                header, (count, width) = True, map(int, fields)
                continue
            if width is None:
                width = len(fields) - 1
                if width < 1 or not all(map(is_number, fields[1:])):
                    raise self._wrong(number, f"begins with {brief(repr(line[:80]))}")
            if fields:
                self._check_row(number, line, fields, width)
                rows += 1
        if not width or not rows:
            raise InputError(f"{self.source.name} has no vectors; give a word and its numbers a line")
        if header and rows != count:
            raise InputError(f"{self.source.name} tells of {count:,} vectors, but has {rows:,}; is it whole?")
        return header, width, digest(whole.digest())

    def _check_row(self, number: int, line: bytes, fields: Sequence[bytes], width: int) -> None:
        """A line must have a word and `width` numbers; a word that is empty or has spaces inside is no token's."""
        more = len(fields) - 1 - width
        if more > 0 and all(map(is_number, fields[1 : more + 1])):
            raise self._wrong(number, f"has {len(fields) - 1} numbers, not {width}")
        if more < -1 or (more == -1 and not line[:1].isspace()):
            raise self._wrong(number, f"has {len(fields) - 1} numbers, not {width}")

    def _wrong(self, number: int, what: str) -> InputError:
        return InputError(
            f"{self.source.name}, line {number}, {what}; give vectors as text: a word and as many numbers on every "
            "line, between spaces (a binary file of word2vec or fastText must be written as text first)"
        )

    def _look_up(self, words: set[str]) -> None:
        """Reads the vectors of words that were not asked for before; the first of a word counts."""
        new = {word.encode(errors="surrogatepass"): word for word in words - self.asked}
        if not new:
            return
        for number, line in self._rows(f"looking up words in {self.name}"):
            first = line.split(maxsplit=1)[:1]
            word = new.get(first[0]) if first and number > self.header else None
            if word is None or word in self.found or line[:1].isspace():
                continue
            fields = line.split()[1:]
            if len(fields) == self.width:  # else the word has spaces inside
                if not all(map(is_number, fields)):
                    raise self._wrong(number, f"has {brief(repr(min(fields, key=is_number)))}, which is no number")
                self.found[word] = np.array(list(map(float, fields)), np.float32)
        self.asked |= words


def is_number(text: bytes) -> bool:
    """Whether a field of a text of vectors is a number that is finite in float32."""
    try:
        return abs(float(text)) <= LARGEST
    except ValueError:
        return False


class Transformers:
    """A model of the package transformers, as BERT and GPT: a word's vector is the mean of those of its pieces.

    Layers are the embeddings and every layer's hidden states. A sentence that is longer than what the model takes is
    read in parts; of a word that is longer alone, only its beginning. Words without pieces have zeros.
    """

    elmo: Elmo | None = None

    def __init__(self, name: str):
        with needing("transformers"):
            import torch
            import transformers
        self.torch = torch
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name, use_fast=True, add_prefix_space=True)
            self.model = transformers.AutoModel.from_pretrained(name).float().eval()
        except Exception as error:  # of many types: not found, no connection, not known, damaged
            raise InputError(
                f"cannot load {brief(name)} with transformers ({type(error).__name__}: {brief(error)}); give the name "
                "of a model of the Hugging Face Hub, or the folder of one and its tokenizer"
            ) from None
        config = self.model.config
        if not self.tokenizer.is_fast or config.is_encoder_decoder:
            what = "reads and writes (an encoder and a decoder)" if self.tokenizer.is_fast else "has no fast tokenizer"
            raise InputError(f"{brief(name)} {what}; give a model such as BERT or GPT with a fast tokenizer")
        self.name, self.width = stem(name), config.hidden_size
        self.layers = ("embeddings", *(f"layer {layer + 1}" for layer in range(config.num_hidden_layers)))
        self.most = self._most_pieces()
        parameters = hashlib.sha256()
        for key, values in sorted(self.model.state_dict().items()):
            parameters.update(f"{key}{tuple(values.shape)}".encode())
            parameters.update(values.contiguous().numpy().data)
        tokenizer = self.tokenizer.backend_tokenizer.to_str().encode()
        self.identity = digest(parameters.digest(), tokenizer, repr((config.model_type, self.layers)).encode())

    def _most_pieces(self) -> int:
        """How many pieces, special ones too, the model takes at once."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or DEFAULT_PIECES
        table = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        if getattr(table, "padding_idx", None) is not None:  # RoBERTa counts positions from behind that of padding
            positions -= table.padding_idx + 1
        return min(positions, self.tokenizer.model_max_length)

    def embed(self, sentences: Sequence[Sequence[str]]) -> Vectors:
        """Vectors of sentences, each read by itself."""
        vectors = room(sentences, len(self.layers), self.width)
        parts = [
            part for number, tokens in enumerate(sentences) for part in self._parts(vectors.begins[number], tokens)
        ]
        parts.sort(key=lambda part: len(part.pieces))
        batches = [parts[first : first + ROWS] for first in range(0, len(parts), ROWS)]
        for batch in tqdm(batches, f"embedding with {self.name}", unit=" batches", delay=2, leave=False):
            for part, states in zip(batch, self._states(batch), strict=True):
                for word in np.unique(part.words[part.words >= 0]):
                    vectors.values[part.begin + word] = states[:, : len(part.words)][:, part.words == word].mean(1)
        return vectors

    def _parts(self, begin: int, tokens: Sequence[str]) -> Iterator["Part"]:
        """A sentence in parts that the model takes, of whole words."""
        if not tokens:
            return
        options = {"is_split_into_words": True, "verbose": False}
        alone = self.tokenizer(list(tokens), add_special_tokens=False, **options)
        counts = Counter(alone.word_ids())
        room, first, used = self.most - self.tokenizer.num_special_tokens_to_add(), 0, 0
        for word in range(len(tokens) + 1):
            count = min(counts[word], room)
            if word == len(tokens) or used + count > room:
                read = self.tokenizer(list(tokens[first:word]), truncation=True, max_length=self.most, **options)
                words = np.array([-1 if number is None else number for number in read.word_ids()])
                yield Part(begin + first, read["input_ids"], words)
                first, used = word, 0
            used += count

    def _states(self, batch: Sequence["Part"]) -> np.ndarray:
        """Hidden states of the pieces of parts, [B, L, T, D]."""
        torch = self.torch
        shape = len(batch), max(len(part.pieces) for part in batch)
        pieces, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for row, part in enumerate(batch):
            pieces[row, : len(part.pieces)] = torch.tensor(part.pieces)
            mask[row, : len(part.pieces)] = 1
        with torch.no_grad():
            states = self.model(input_ids=pieces, attention_mask=mask, output_hidden_states=True).hidden_states
        return torch.stack(states, 1).numpy()


class Part(NamedTuple):
    """What a model of transformers reads at once: words from row `begin` on; which of them each piece is of, or -1."""

    begin: int
    pieces: list[int]
    words: np.ndarray


BASELINES = "untrained, vectors:FILE (text of word2vec or GloVe), hf:NAME (of the Hugging Face Hub, or a folder)"


def parse_system(spec: str, models: Sequence[ElmoSystem]) -> list[System]:
    """Baselines that a specification names; `untrained` is one for each shape of the models."""
    kind, _, name = spec.partition(":")
    if kind == "vectors":
        return [TextVectors(name)]
    if kind == "hf":
        return [Transformers(name)]
    shapes = {_shape(model.elmo): model for model in reversed(models)}
    alone = len(shapes) == 1
    return [
        ElmoSystem("untrained" if alone else f"untrained {model.name}", untrained(model.elmo))
        for model in reversed(shapes.values())
    ]


def _shape(elmo: Elmo) -> tuple[Any, ...]:
    """What an untrained model depends on."""
    reads_words = elmo.model.input == "words" or elmo.model.word_dim
    return elmo.model, elmo.vocabulary.to_bytes() if reads_words and elmo.vocabulary else b""


def systems_of(models: Sequence[str], baselines: Sequence[str] = ()) -> list[System]:
    """Models as `load` takes them, and baselines, each with a name of its own.

    `untrained`, `vectors:FILE` or `hf:NAME` are baselines.
    """
    for spec in baselines:
        kind, _, name = spec.partition(":")
        if spec != "untrained" and not (kind in ("vectors", "hf") and name):
            raise InputError(f"the baseline {brief(repr(spec))} is not known; there are {BASELINES}")
    if "untrained" in baselines and not models:
        raise InputError("untrained is a control of the models that are measured; give one with --model")
    names = Counter(map(stem, models))
    loaded = [ElmoSystem(stem(spec) if names[stem(spec)] == 1 else spec, load(spec)) for spec in models]
    systems = [*loaded, *(system for spec in baselines for system in parse_system(spec, loaded))]
    for number, system in enumerate(systems):
        for other in systems[:number]:
            if system.identity == other.identity:
                raise InputError(f"{other.name} and {system.name} are the same; give each model or baseline once")
            if system.name == other.name:
                raise InputError(f"two models or baselines are called {system.name}; rename the file of one")
    return systems
