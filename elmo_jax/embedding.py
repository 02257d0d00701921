"""load() and Elmo: sentences → vectors; the HDF5 writer."""

import functools
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import h5py
import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from elmo_jax.config import ModelConfig, Precision
from elmo_jax.errors import InputError
from elmo_jax.files import writing
from elmo_jax.model import BiLM, State, zero_state
from elmo_jax.parallel import device_count, parallel, replicate, shard
from elmo_jax.streams import Batch, Segment, SentenceStream, character_width
from elmo_jax.vocabulary import BEGIN_SENTENCE, END_SENTENCE, Vocabulary, character_ids
from elmo_jax.weights import ModelFolder, read_folder, read_model

Sentence = Sequence[str] | str
Layers = Literal["average", "top", "all", "mix"]
StateMode = Literal["warm", "zero", "carry"]

# Positions of a window, and rows on each device for little to much text: a fixed set of shapes, so of compilations.
WINDOW = 32
ROWS = (1, 8, 64, 256)
# Windows that short sentences may be read ahead of the oldest one not read whole: bounds what waits for it.
AHEAD = 16
# Windows that the device may be behind the host.
IN_FLIGHT = 3


class Mix(NamedTuple):
    """A scalar mix, γ · Σ softmax(weights)_l · h_l.

    With `layer_norm`, each layer is first normalised by one mean and variance over all values of the sentence that
    are returned: what bilm-tf computes for a batch of that one sentence, or AllenNLP if boundaries are kept.
    """

    weights: Sequence[float]
    gamma: float = 1.0
    layer_norm: bool = False


def load(
    model: str | Path | None = None,
    *,
    options: str | Path | None = None,
    weights: str | Path | None = None,
    vocab: str | Path | None = None,
) -> "Elmo":
    """Loads a model folder, a training workdir, or the two published files (`options=..., weights=...`)."""
    if model is not None and (options, weights, vocab) == (None, None, None):
        return Elmo(read_folder(epath.Path(model)))
    if model is None and options is not None and weights is not None:
        return Elmo(read_model(epath.Path(options), epath.Path(weights), vocab and epath.Path(vocab)))
    raise InputError("load() takes a folder, or options= and weights= (and for models without characters vocab=)")


def embedding_step(
    model: ModelConfig,
    precision: Precision,
    parameters: dict[str, Any],
    state: State,
    batch: Batch,
    start: State,
    layer_weights: jax.Array | None,
) -> tuple[jax.Array, State]:
    """One window on one device: activations [2, L + 1, b, T, P], or their weighted sum [2, 1, b, T, P], and the state.

    A mix is linear, so it is taken here, before anything is copied to the host; layer_weights [L + 1].
    """
    vocabulary_size = len(parameters["words"]["embedding"])
    bilm = BiLM(model, vocabulary_size, precision)
    inputs = batch.words, batch.count, batch.forward, batch.backward, state, batch.reset, start
    activations, state = bilm.apply({"params": parameters}, *inputs)
    if layer_weights is not None:
        activations = (activations * layer_weights[None, :, None, None, None]).sum(1, keepdims=True)
    return activations, state


class Elmo:
    """A pretrained biLM that turns sentences into vectors. Made by `elmo_jax.load`.

    The result is a function of the sentences and the arguments alone: no state is kept between calls.
    """

    def __init__(self, folder: ModelFolder):
        self.model: ModelConfig = folder.model
        self.vocabulary: Vocabulary | None = folder.vocabulary
        self.parameters = replicate(folder.parameters)
        self._folder = folder
        self._step = functools.cache(
            lambda precision: parallel(
                functools.partial(embedding_step, self.model, precision),
                (None, 0, 0, None, None),
                (0, 0),
                donate=(1,),
            )
        )

    @property
    def dim(self) -> int:
        """Width of a vector, 2P: both directions."""
        return 2 * self.model.projection_dim

    @functools.cached_property
    def warm_state(self) -> State:
        """The state at the beginning of a sentence with state="warm"."""
        return warm_state(self._folder)

    def embed(self, sentences: Iterable[Sentence], **options) -> list[np.ndarray]:
        """Vectors of each sentence, float32 [T_i, 2P], or [L + 1, T_i, 2P] with layers="all".

        A sentence is a list of tokens or a str of tokens separated by spaces. Options are those of `embed_iter`.
        """
        sentences = sentences if isinstance(sentences, str) else list(sentences)
        vectors = self.embed_iter(sentences, **options)
        return list(tqdm(vectors, "embedding", len(sentences), unit=" sentences", delay=2, leave=False))

    def embed_iter(
        self,
        sentences: Iterable[Sentence],
        *,
        layers: Layers = "average",
        state: StateMode = "warm",
        precision: Precision = "float32",
        boundaries: bool = False,
        batch_size: int | None = None,
        mix: Mix | None = None,
    ) -> Iterator[np.ndarray]:
        """Vectors of each sentence of a stream, in order, in constant memory.

        layers      "average" of all layers, "top", "all", or "mix": the scalar mix given as `mix`
        state       the LSTM state at the beginning of a sentence: "warm" (a fixed state of the model), "zero", or
                    "carry" (what the row's sentence before left: bilm-tf's stateful behaviour, zero at first)
        precision   of the matrix products: "float32" or "bfloat16" (summed in float32)
        boundaries  keep the vectors of <S> and </S>: T_i is two longer
        batch_size  rows of sentences read at a time; by default few for little text, many for much. With "carry",
                    sentence i goes to row i modulo batch_size (by default one row: the text as it stands)
        """
        if isinstance(sentences, str):
            raise InputError("embed() and embed_iter() take several sentences; got one str: put it into a list")
        _check_choice("layers", layers, Layers)
        _check_choice("state", state, StateMode)
        _check_choice("precision", precision, Precision)
        if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
            raise InputError(f"batch_size is {batch_size}; it must be a whole number from 1 up, or None")
        if (mix is not None) != (layers == "mix"):
            raise InputError('layers="mix" and mix=Mix(weights, gamma, layer_norm) go together')
        if mix is not None and len(mix.weights) != self.model.layers + 1:
            needed = f"{self.model.layers + 1}: word vectors and {self.model.layers} LSTM layers"
            raise InputError(f"mix has {len(mix.weights)} weights; the model needs {needed}")
        return self._embed(map(_tokens, sentences), layers, state, precision, boundaries, batch_size, mix)

    def _embed(self, sentences, layers, state, precision, boundaries, batch_size, mix) -> Iterator[np.ndarray]:
        sentences, rows = _choose_rows(sentences, 1 if state == "carry" and batch_size is None else batch_size)
        devices = device_count()
        padded = -(-rows // devices) * devices  # rows that only fill up the last devices stay empty
        stream = SentenceStream(
            sentences,
            rows,
            WINDOW,
            self._encode,
            idle_rows=padded - rows,
            devices=devices,
            in_turn=state == "carry",
            ahead=AHEAD * rows * WINDOW,
        )
        start = self.warm_state if state == "warm" else zero_state(self.model)
        weights = self._layer_weights(layers, mix)
        lstm_state = shard(zero_state(self.model, padded))
        joiner = Joiner()
        in_flight: deque[tuple[jax.Array, list[Segment]]] = deque()
        finish = functools.partial(self._finish, layers=layers, boundaries=boundaries, mix=mix)
        for batch, segments in stream:
            if state == "carry":
                batch = batch._replace(reset=np.zeros_like(batch.reset))
            if self.model.input == "characters":
                width = character_width(batch.words, self.model.widest_filter)
                batch = batch._replace(words=batch.words[..., :width])
            activations, lstm_state = self._step(precision)(self.parameters, lstm_state, batch, start, weights)
            activations.copy_to_host_async()
            in_flight.append((activations, segments))
            if len(in_flight) == IN_FLIGHT:
                yield from map(finish, joiner.add(*in_flight.popleft()))
        while in_flight:
            yield from map(finish, joiner.add(*in_flight.popleft()))

    def _encode(self, words: list[str]) -> np.ndarray:
        """Words → what the model reads: character ids [U, C], or ids in the vocabulary [U]."""
        if self.model.input == "characters":
            return character_ids(words, self.model.max_characters)
        return self.vocabulary.ids(words)

    def _layer_weights(self, layers: Layers, mix: Mix | None) -> np.ndarray | None:
        if layers == "all" or (mix is not None and mix.layer_norm):
            return None
        if layers == "average":
            return np.full(self.model.layers + 1, 1 / (self.model.layers + 1), np.float32)
        if layers == "top":
            return np.eye(self.model.layers + 1, dtype=np.float32)[-1]
        return _mix_weights(mix)

    def _finish(self, vectors: np.ndarray, *, layers: Layers, boundaries: bool, mix: Mix | None) -> np.ndarray:
        """[L + 1 or 1, T + 2, 2P] → what the caller asked for."""
        vectors = vectors if boundaries else vectors[:, 1:-1]
        if mix is not None and mix.layer_norm and vectors.size:
            mean, variance = vectors.mean((1, 2), keepdims=True), vectors.var((1, 2), keepdims=True)
            normal = (vectors - mean) / np.sqrt(variance + 1e-12)
            vectors = np.tensordot(_mix_weights(mix), normal, 1)[None]
        return np.ascontiguousarray(vectors if layers == "all" else vectors[0])


class Joiner:
    """Puts the parts of sentences that windows hold back together, and the sentences back in order."""

    def __init__(self):
        self.begun: dict[int, list[np.ndarray]] = {}  # forward parts, backward parts
        self.done: dict[int, np.ndarray] = {}
        self.next = 0

    def add(self, activations: jax.Array, segments: list[Segment]) -> Iterator[np.ndarray]:
        """activations [n, 2, K, b, T, P] of a window → sentences [K, T_i + 2, 2P] that are complete, in order."""
        host = np.asarray(activations)
        by_row = [device[:, :, row] for device in host for row in range(host.shape[3])]  # B views [2, K, T, P]
        for segment in segments:
            stop = segment.start + segment.length
            part = by_row[segment.row][:, :, segment.start : stop]
            parts = self.begun.setdefault(segment.sentence, [])
            parts.append(part if segment.last else part.copy())  # a view would keep the whole window in memory
            if segment.last:
                forward, backward = np.concatenate(self.begun.pop(segment.sentence), 2)
                self.done[segment.sentence] = np.concatenate([forward, backward[:, ::-1]], -1)
        while self.next in self.done:
            yield self.done.pop(self.next)
            self.next += 1


def _mix_weights(mix: Mix) -> np.ndarray:
    """γ · softmax(weights), float32 [L + 1]."""
    powers = np.exp(np.asarray(mix.weights) - np.max(mix.weights))
    return (mix.gamma * powers / powers.sum()).astype(np.float32)


def _tokens(sentence: Sentence) -> list[str]:
    if isinstance(sentence, str):
        return sentence.split()
    if isinstance(sentence, Iterable):
        tokens = list(sentence)
        if all(isinstance(token, str) for token in tokens):
            return tokens
    raise InputError(f"a sentence is a str or a list of str; got {sentence!r}")


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, get_args(choices)))}")


def _choose_rows(sentences: Iterator[list[str]], batch_size: int | None) -> tuple[Iterator[list[str]], int]:
    """The sentences, and how many rows to lay them in: looks ahead until there is enough text for the most rows."""
    if batch_size is not None:
        return sentences, batch_size
    choices = [rows * device_count() for rows in ROWS]
    windows = 4  # at least so many for each row: then little is lost at the end, where rows are not equally long
    ahead, positions = [], 0
    for tokens in sentences:
        ahead.append(tokens)
        positions += len(tokens) + 2
        if positions >= choices[-1] * WINDOW * windows:
            break
    return chain(ahead, sentences), max(
        rows for rows in choices if rows == choices[0] or positions >= rows * WINDOW * windows
    )


def warm_state(folder: ModelFolder) -> State:
    """A fixed state for the beginning of every sentence: what the end of a short sentence leaves.

    cell [D], hidden [P] of every direction and layer, as NumPy. In training no sentence began with a zero state.
    """
    model = folder.model
    words = [BEGIN_SENTENCE, *WARM_SENTENCE, END_SENTENCE]
    if model.input == "characters":
        encoded = character_ids(words, model.max_characters)
    else:
        encoded = folder.vocabulary.ids(words)
    forward = np.arange(len(words) - 1)[None]
    bilm = BiLM(model, len(folder.parameters["words"]["embedding"]))
    inputs = encoded, np.int32(len(words)), forward, len(words) - 1 - forward, zero_state(model, 1)
    _, state = jax.jit(bilm.apply)({"params": folder.parameters}, *inputs)
    return jax.tree.map(lambda array: np.asarray(array)[0], state)


WARM_SENTENCE = (".",)


def write_hdf5(path: Path, sentences: Iterable[list[str]], vectors: Iterable[np.ndarray]) -> None:
    """Writes vectors in the format of bilm-tf's and AllenNLP's dumps; the file appears only when it is whole.

    Dataset "i" holds the vectors of sentence i, and `sentence_to_index` [1] JSON from each sentence to its (last) i.
    """
    index = {}
    with writing(path) as partial, h5py.File(partial, "w") as file:
        for number, (tokens, array) in enumerate(zip(sentences, vectors, strict=True)):
            file.create_dataset(str(number), data=array)
            index[" ".join(tokens)] = str(number)
        file.create_dataset("sentence_to_index", (1,), dtype=h5py.string_dtype())
        file["sentence_to_index"][0] = json.dumps(index)
