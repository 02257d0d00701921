"""load() and Elmo: sentences → vectors. What users touch; the work is done in engine.py."""

import functools
import os
import reprlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from elmo_jax.batches import Encoded, encode
from elmo_jax.config import ModelConfig, Precision
from elmo_jax.engine import Engine, Pool, Request, StateMode
from elmo_jax.errors import InputError
from elmo_jax.files import as_path, is_remote
from elmo_jax.mix import Mix
from elmo_jax.parallel import check_process, chosen_devices, device_places, devices_at
from elmo_jax.published import local, read_any
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import ModelFolder, checked_parameters, read_model, write_model

Sentence = Sequence[str] | str
Layers = Literal["average", "top", "all", "mix"]
Vectors = npt.NDArray[np.float32]
PathLike = str | os.PathLike[str]


def load(
    model: PathLike | None = None,
    weights: PathLike | None = None,
    vocab: PathLike | None = None,
    *,
    options: PathLike | None = None,
    compilation_cache: bool = True,
    devices: Sequence[jax.Device] | int | None = None,
) -> "Elmo":
    """Loads a model: `load("original")`, `load(folder)`, or `load("options.json", "weights.hdf5")`.

    A name is that of a published model (`elmo-jax models` lists them), which is downloaded into the user's cache if it
    is not there, or hf://OWNER/NAME[@REVISION]. A folder may be that of a training run or of ELMoForManyLangs. In its
    place may be an archive: a .zip of NLPL, or a .tar.gz of AllenNLP, whose learned mixes of layers are then in
    `mixes`; if it tells nothing of ELMo's options, load(ARCHIVE, options=OPTIONS).

    Models without characters need a `vocab`, which a folder holds. Programs that the model compiles are kept for the
    next process in ~/.cache/elmo_jax, or where JAX has been told to keep all programs; without `compilation_cache`
    (or with the environment's ELMO_JAX_COMPILATION_CACHE=0) they are not. JAX's settings stay as they are.

    The model embeds on all devices of this process, or on `devices`: some of them, or a number, the first ones. Models
    on different devices work side by side in threads.
    """
    check_process()
    chosen = chosen_devices(devices)
    given = {"model": model, "options": options, "weights": weights, "vocab": vocab}
    if model is not None and weights is vocab is None:
        given["model"] = local(model)
    paths = {name: _absolute(name, path) for name, path in given.items() if path is not None}
    if model is not None and paths.keys() <= {"model", "options"}:
        folder = read_any(model, options=paths.get("options"))
    elif paths.keys() - {"vocab"} in ({"model", "weights"}, {"options", "weights"}):
        folder = read_model(paths.get("model") or paths["options"], paths["weights"], paths.get("vocab"))
    else:
        raise InputError(
            f"load() was given {', '.join(paths) or 'nothing'}; it takes a name or folder, load(MODEL), or two files, "
            "load(OPTIONS, WEIGHTS), and for models without characters vocab=VOCABULARY"
        )
    return Elmo(folder, paths, compilation_cache, None if devices is None else chosen)


def _load_again(
    what: dict[str, str] | ModelFolder, compilation_cache: bool, places: list[tuple[str, int]] | None
) -> "Elmo":
    """What a pickled model becomes."""
    devices = None if places is None else devices_at(places)
    if isinstance(what, ModelFolder):
        return Elmo(what, {}, compilation_cache, None if devices is None else tuple(devices))
    return load(**what, compilation_cache=compilation_cache, devices=devices)


def _absolute(name: str, path: PathLike) -> str:
    """A path that stays good in a process with another working directory."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise InputError(f"load() takes paths; {name} is {reprlib.repr(path)}")
    return os.fspath(as_path(path)) if is_remote(path) else os.path.abspath(path)


class Elmo:
    """A pretrained biLM that turns sentences into vectors. Made by `elmo_jax.load`.

    The result is a function of the sentences and the arguments alone: no state is kept between calls but the vectors
    of words. May be used by several threads. Copies share its files' contents; pickled, it is the paths that it was
    loaded from and the places of its devices, if it was given some, and is loaded from them again (with other
    parameters, it is those). Processes must be spawned: in a fork JAX cannot compute.
    """

    def __init__(
        self,
        folder: ModelFolder,
        source: Mapping[str, str],
        compilation_cache: bool = True,
        devices: tuple[jax.Device, ...] | None = None,
    ):
        self.model: ModelConfig = folder.model
        self.vocabulary: Vocabulary | None = folder.vocabulary
        self.mixes: tuple[Mix, ...] = folder.mixes
        self._source, self._compilation_cache = dict(source), compilation_cache
        self._folder, self._devices = folder, devices
        self._engine = Engine(folder, compilation_cache, chosen_devices(devices))

    @property
    def dim(self) -> int:
        """Width of a vector, 2P: both directions."""
        return 2 * self.model.projection_dim

    @property
    def mix(self) -> Mix | None:
        """The mix that was learned with the model, if there is just one."""
        return self.mixes[0] if len(self.mixes) == 1 else None

    @property
    def parameters(self) -> dict[str, Any]:
        """The biLM's parameters, NumPy arrays: {"words": {name: array}, "forward_0": .., "backward_0": .., ..}."""
        return {module: dict(arrays) for module, arrays in self._folder.parameters.items()}

    def with_parameters(self, parameters: Mapping[str, Any], mixes: Sequence[Mix] | None = None) -> "Elmo":
        """The same model with other parameters [a tree as `parameters`], after fine-tuning, say; `save` writes it.

        The mixes stay unless others are given.
        """
        arrays = checked_parameters(self.model, parameters, len(self.vocabulary or ()))
        given = self.mixes if mixes is None else tuple(mixes)
        for mix in given:
            self._layer_weights("mix", mix)
        folder = self._folder._replace(parameters=arrays, mixes=given)
        return Elmo(folder, {}, self._compilation_cache, self._devices)

    def save(self, folder: PathLike) -> None:
        """Writes a model folder that `load`, bilm-tf and AllenNLP read; without a softmax, so it has no perplexity."""
        path = as_path(folder)
        if (path / "checkpoints").exists():
            raise InputError(f"{path} is the folder of a training run; give another for the model")
        write_model(path, self._folder)

    def __repr__(self) -> str:
        source = [f"{name}={path!r}" for name, path in self._source.items()] or ["not saved"]
        return f"Elmo(dim={self.dim}, layers={self.model.layers}, {', '.join(source)})"

    def __reduce__(self) -> tuple[Any, ...]:
        places = None if self._devices is None else device_places(self._devices)
        what = self._source or self._folder
        return functools.partial(_load_again, what, self._compilation_cache, places), ()

    def __copy__(self) -> "Elmo":
        return Elmo(self._folder, self._source, self._compilation_cache, self._devices)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Elmo":
        return self.__copy__()

    def __sklearn_clone__(self) -> "Elmo":
        """Copies that scikit-learn makes of a transformer share the model: fitting changes nothing of it."""
        return self

    def embed(
        self,
        sentences: Iterable[Sentence],
        *,
        layers: Layers = "average",
        state: StateMode = "warm",
        precision: Precision = "float32",
        boundaries: bool | np.bool_ = False,
        batch_size: int | np.integer[Any] | None = None,
        mix: Mix | Sequence[float] | npt.NDArray[np.floating[Any]] | None = None,
        pool: Pool | None = None,
    ) -> list[Vectors]:
        """Vectors of each sentence, float32 [T_i, 2P], or [L + 1, T_i, 2P] with layers="all"; pooled without T_i.

        A sentence is a list of tokens or a str of tokens separated by spaces. Options are those of `embed_iter`.
        """
        check_process()
        _check_sentences(sentences, "embed")
        every = list(sentences)
        request = self._request(layers, state, precision, boundaries, batch_size, mix, pool)
        vectors = self._engine.embed(_tokens_of_each(every), request)
        return list(tqdm(vectors, "embedding", len(every), unit=" sentences", delay=2, leave=False))

    def embed_iter(
        self,
        sentences: Iterable[Sentence],
        *,
        layers: Layers = "average",
        state: StateMode = "warm",
        precision: Precision = "float32",
        boundaries: bool | np.bool_ = False,
        batch_size: int | np.integer[Any] | None = None,
        mix: Mix | Sequence[float] | npt.NDArray[np.floating[Any]] | None = None,
        pool: Pool | None = None,
    ) -> Iterator[Vectors]:
        """Vectors of each sentence of a stream, in order, in constant memory.

        layers      "average" of all layers, "top", "all", or "mix": the scalar mix given as `mix`, or that of the model
        state       the LSTM state at the beginning of a sentence: "warm" (a fixed state of the model), "zero", or
                    "carry" (what the row's sentence before left: bilm-tf's stateful behaviour, zero at first)
        precision   of the LSTMs' products: "float32", "high" (between them, faster on TPU and GPU) or "bfloat16", all
                    summed in float32. Word vectors are float32.
                    On CPU a single row, so one sentence alone, is always read in float32, which is faster there: with
                    "bfloat16" its vectors differ, by the rounding, from those it has among others
        boundaries  keep the vectors of <S> and </S>: T_i is two longer
        batch_size  rows of sentences read at a time; by default few for little text, many for much. With "carry",
                    sentence i goes to row i modulo batch_size (by default one row: the text as it stands)
        mix         a Mix, or the weights of its layers
        pool        one vector of each sentence, without T_i: the "mean" or, number by number, the "max" of its tokens'
                    vectors, without those of <S> and </S>; zeros for a sentence without tokens

        Of a stream, 32,768 tokens for each device are read before all else, to choose the rows, up to 256 on each;
        not with a batch_size. Then a sentence's vectors come when each row has read at most 128 tokens, and one
        sentence, beyond the place where it ends.
        """
        check_process()
        _check_sentences(sentences, "embed_iter")
        request = self._request(layers, state, precision, boundaries, batch_size, mix, pool)
        return self._engine.embed(_tokens_of_each(sentences), request)

    def encode(self, sentences: Iterable[Sentence], *, rows: int | np.integer[Any] | None = None) -> Encoded:
        """Sentences as the model reads them, for a pipeline of one's own: NumPy arrays for `ElmoEmbedder`.

        A pytree: the distinct words' characters [U, C], each position's word [B, T], the mask [B, T]; see `Encoded`.
        `rows` fills up a batch that has fewer sentences, the last of an epoch, say. T is 16, 32, 64, .., and U follows
        from B and T: a text in batches of one B has few shapes, so few programs are compiled. Nothing is computed by
        JAX.
        """
        return encode(self.model, self.vocabulary, self._folder.alphabet, *_batch_of(sentences, rows, "encode"))

    def batch(
        self,
        sentences: Iterable[Sentence],
        *,
        state: Literal["warm", "zero"] = "warm",
        precision: Precision = "float32",
        boundaries: bool | np.bool_ = False,
        rows: int | np.integer[Any] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Activations float32 [B, L + 1, T, 2P] on the devices, and the mask [B, T] of the tokens among them.

        The vectors of `embed(layers="all")`, zeros behind the end of a sentence; nothing is copied to the host. T is
        16, 32, 64, .., with `boundaries` two more; `rows` fills up a batch that has fewer sentences. Of a model on
        several devices each has its part of the rows, or all if they cannot be divided evenly: torch.from_dlpack takes
        arrays of one device, so load(..., devices=1). The other options are those of `embed_iter`.
        """
        check_process()
        _check_choices(state=(state, Literal["warm", "zero"]), precision=(precision, Precision))
        _check("boundaries", boundaries, isinstance(boundaries, bool | np.bool_), "True or False")
        every, rows = _batch_of(sentences, rows, "batch")
        return self._engine.batch(every, state, precision, bool(boundaries), rows)

    def _request(
        self, layers: Any, state: Any, precision: Any, boundaries: Any, batch_size: Any, mix: Any, pool: Any
    ) -> Request:
        """The arguments of a call, checked."""
        _check_choices(layers=(layers, Layers), state=(state, StateMode), precision=(precision, Precision))
        _check("boundaries", boundaries, isinstance(boundaries, bool | np.bool_), "True or False")
        _check_count("batch_size", batch_size)
        accepted = f"one of {', '.join(map(repr, get_args(Pool)))}, or None"
        _check("pool", pool, pool is None or (isinstance(pool, str) and pool in get_args(Pool)), accepted)
        if pool is not None and boundaries:
            raise InputError(f"pool={pool!r} is of the tokens alone; it and boundaries=True exclude each other")
        if mix is not None and layers != "mix":
            raise InputError('layers="mix" and mix=Mix(weights, gamma, layer_norm) go together')
        if layers == "mix" and mix is None and (mix := self.mix) is None:
            has = f"has {len(self.mixes)}: give mix=elmo.mixes[0], say" if self.mixes else "has none of its own"
            raise InputError(f'layers="mix" and mix=Mix(weights, gamma, layer_norm) go together; the model {has}')
        mix = mix if mix is None or isinstance(mix, Mix) else Mix(mix)
        weights, layer_norm = self._layer_weights(layers, mix), mix is not None and bool(mix.layer_norm)
        return Request(state, precision, bool(boundaries), batch_size and int(batch_size), weights, layer_norm, pool)

    def _layer_weights(self, layers: Layers, mix: Mix | None) -> npt.NDArray[np.float32] | None:
        """Weights of the sum over layers, float32 [L + 1]: of a mix γ · softmax(weights); None: no sum."""
        count = self.model.layers + 1
        if mix is None:
            average, top = np.full(count, 1 / count, np.float32), np.eye(count, dtype=np.float32)[-1]
            return {"average": average, "top": top, "all": None}[layers]
        _check("layer_norm of mix", mix.layer_norm, isinstance(mix.layer_norm, bool | np.bool_), "True or False")
        weights, gamma = _finite("weights of mix", mix.weights), _finite("gamma of mix", mix.gamma)
        if weights.shape != (count,) or gamma.ndim:
            received = f"weights of shape {weights.shape} and gamma of shape {gamma.shape}"
            needed = f"{count} weights (word vectors and {self.model.layers} LSTM layers) and one gamma"
            raise InputError(f"mix has {received}; the model needs {needed}")
        powers = np.exp(weights - weights.max())
        return (mix.gamma * powers / powers.sum()).astype(np.float32)


def _check(name: str, value: Any, right: bool, accepted: str) -> None:
    if not right:
        raise InputError(f"{name} is {reprlib.repr(value)}; it must be {accepted}")


def _check_choices(**chosen: tuple[Any, Any]) -> None:
    """Each name's value must be one of the strings of its Literal."""
    for name, (value, choices) in chosen.items():
        accepted = f"one of {', '.join(map(repr, get_args(choices)))}"
        _check(name, value, isinstance(value, str) and value in get_args(choices), accepted)


def _check_count(name: str, value: Any) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    _check(name, value, value is None or (whole and bool(value >= 1)), "a whole number from 1 up, or None")


def _batch_of(sentences: Any, rows: Any, method: str) -> tuple[list[list[str]], int | None]:
    """Sentences and number of rows of a batch, checked."""
    _check_sentences(sentences, method)
    _check_count("rows", rows)
    return list(_tokens_of_each(sentences)), rows and int(rows)


def _finite(name: str, values: Any) -> npt.NDArray[Any]:
    """Numbers that stay finite in float32, as an array."""
    try:
        array = np.asarray(values)
        if array.dtype.kind in "iuf" and (np.abs(array) <= np.finfo(np.float32).max).all():
            return array
    except (TypeError, ValueError):  # lists of unlike lengths
        pass
    raise InputError(f"{name}: {reprlib.repr(values)}; only finite numbers will do")


def _check_sentences(sentences: Any, method: str) -> None:
    """Raises InputError for what would be read as something else than the caller meant."""
    if isinstance(sentences, str):
        advice = f"several sentences are needed; for one str, {method}([text])"
    elif isinstance(sentences, Mapping):
        advice = f"a dict has no sentences; perhaps {method}(list(sentences.values()))"
    elif hasattr(sentences, "columns"):
        advice = f'a table has columns; {method}(list(table["NAME OF THE COLUMN OF TEXT"]))'
    elif isinstance(sentences, set | frozenset):
        advice = f"a set has no order; {method}(sorted(sentences))"
    elif isinstance(sentences, Iterable) and not isinstance(sentences, bytes | bytearray):
        return
    else:
        advice = f'give a list of sentences; {method}(["The river rose .", ["It", "rained", "."]])'
    raise InputError(f"{method}() was given {_described(sentences)}: {advice}")


def _described(value: Any) -> str:
    """None, or a type and (unless it is a table) a value, in few characters."""
    if value is None or hasattr(value, "columns"):
        return "None" if value is None else f"a {type(value).__name__}"
    return f"a {type(value).__name__}, {reprlib.repr(value)}"


_warned = False


def _tokens_of_each(sentences: Iterable[Sentence]) -> Iterator[list[str]]:
    """Sentences as lists of tokens; warns, once, if all were a str of a single word: perhaps they are one sentence."""
    global _warned
    count = words = 0
    for sentence in sentences:
        tokens = _tokens(sentence)
        count, words = count + 1, words + (isinstance(sentence, str) and len(tokens) == 1)
        yield tokens
    if 2 <= count == words and not _warned:
        _warned = True
        warnings.warn(
            f"all {count:,} sentences are single words, each read by itself; if they are the words of one sentence, "
            'put it into a list of sentences: embed([["The", "river", "."]])',
            stacklevel=2,
        )


def _tokens(sentence: Sentence) -> list[str]:
    if isinstance(sentence, str):
        return sentence.split()
    if isinstance(sentence, Iterable) and not isinstance(sentence, Mapping | set | frozenset | bytes | bytearray):
        tokens = list(sentence)
        if all(isinstance(token, str) for token in tokens):
            return tokens
    advice = ""
    if isinstance(sentence, Mapping):
        advice = ': perhaps embed([row["NAME OF THE FIELD OF TEXT"] for row in rows])'
    raise InputError(f"a sentence is a str or a list of str; got {_described(sentence)}{advice}")
