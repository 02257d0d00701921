"""Valid files for the fuzzer to begin with, as small as can be, each family's in a folder of its own."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
from etils import epath

from elmo_jax import parallel
from elmo_jax.arrays import GrowingArrays, keep_arrays
from elmo_jax.bundles import variable_shapes
from elmo_jax.checkpoint import Checkpoint, Checkpoints
from elmo_jax.config import Config, ModelConfig, to_json, to_options
from elmo_jax.convert import write_as
from elmo_jax.dump import write_hdf5
from elmo_jax.embeddings import MANIFEST, OFFSETS, Made
from elmo_jax.mix import Mix
from elmo_jax.outputs import to_line, write_parquet
from elmo_jax.pickles import write_torch
from elmo_jax.vocabulary import Alphabet, Vocabulary
from elmo_jax.weights import ModelFolder, as_parameters, weight_shapes, write_model
from fuzz.bundle_writer import write_bundle

TINY = ModelConfig(
    character_dim=1, filters=((1, 2),), max_characters=3, cell_dim=2, projection_dim=1, highway_layers=1, layers=1
)
WORDS = Vocabulary(["<S>", "</S>", "<UNK>", "the", "cat", "猫"])
# ELMoForManyLangs' models have no fewer characters, and always skip connections.
LETTERS = Alphabet.of(list("abc"))
# What stands in a file beside those that are read, which some of them name.
CANARY = 0.7071
SENTENCES = [["the", "cat"], ["猫", "sat", "on", "the", "mat", "."], [], ["the"]]
CONLL = "1\tthe\t_\n2\tcat\t_\n\n# text = du le\n1-2\tdu\t_\n1\tde\t_\n2\tle\t_\n\n"
CACHED = {"types": np.arange(9, dtype=np.int32), "starts": np.arange(3, dtype=np.int64)}
KEY = ["text", 1]
DATA = Path(__file__).parent.parent / "tests/data"


def random_model(model: ModelConfig = TINY, **more) -> ModelFolder:
    generator = np.random.default_rng(0)
    shapes = weight_shapes(model, len(WORDS))
    arrays = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    softmax = {"weight": np.ones((len(WORDS), model.projection_dim), np.float32), "bias": np.ones(len(WORDS))}
    return ModelFolder(model, as_parameters(model, arrays), WORDS, None if more else softmax, **more)


def write_seeds(folder: Path) -> None:
    """For every target a folder of folders of files."""
    for make in (_texts, _weights, _archives, _others, _checkpoints, _bundles, _embeddings, _tasks):
        make(folder)


def _write(folder: Path, name: str, content: bytes | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _texts(folder: Path) -> None:
    _write(folder / "vocabulary/words", "vocab.txt", WORDS.to_bytes())
    _write(folder / "alphabets/characters", "characters.txt", LETTERS.to_bytes())
    _write(folder / "options/bytes", "options.json", json.dumps(to_options(TINY)))
    _write(folder / "options/alphabet", "options.json", json.dumps(to_options(_manylangs())))
    _write(folder / "options/run", "config.json", json.dumps(to_json(Config(TINY))))
    _write(folder / "mixes/mix", "mix.json", Mix([0.1, 0.7], 1.5).to_bytes())
    lines = "".join(" ".join(tokens) + "\n" for tokens in SENTENCES).encode()
    texts = {
        "a.txt": lines,
        "a.jsonl": "".join(json.dumps({"tokens": tokens}) + "\n" for tokens in SENTENCES),
        "a.conll": CONLL,
        "a.conllu": CONLL,
        "a.txt.gz": gzip.compress(lines, mtime=0),
        "a.txt.bz2": bz2.compress(lines),
        "a.txt.xz": lzma.compress(lines),
    }
    try:
        from backports import zstd
    except ModuleNotFoundError:
        from compression import zstd
    texts["a.txt.zst"] = zstd.compress(lines)
    for name, content in texts.items():
        _write(folder / "text" / name.removeprefix("a."), name, content)
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    for kind, column in (("lists", SENTENCES), ("texts", [" ".join(tokens) for tokens in SENTENCES])):
        target = folder / f"text/parquet_{kind}"
        target.mkdir()
        parquet.write_table(arrow.table({"tokens": column}), target / "a.parquet", compression="snappy")


def _tasks(folder: Path) -> None:
    occurrences = [
        {"id": sense, "word": "cat", "index": 1, "sense": sense, "tokens": ["the", "cat"]} for sense in ("pet", "猫")
    ]
    question = {"id": "q", "question": "?", "answers": [{"text": "猫", "answer_start": 4}]}
    paragraph = {"context": "the 猫 .", "qas": [question, {"id": "r", "is_impossible": True}]}
    sets = {
        "name": "n",
        "targets": {"X": ["a", "b"], "Y": ["c", "d"]},
        "attributes": {"A": ["e", "f"], "B": ["g", "h"]},
    }
    sets |= {"templates": ["This is {word} ."], "pairs": [["he", "she"]]}
    columns, labelled, wic = "the D B-NP\ncat N I-NP\n\n. P O\n", "0\tthe cat\n1\ta 猫\n", "cat\tN\t1-0\tthe cat\tcat"
    seeds = {
        "occurrences": {"cat.jsonl": "\n".join(map(json.dumps, occurrences))},
        "labelled": {"train.tsv": labelled, "test.tsv": labelled},
        "tagged": {"train.conll": columns, "test.conll": columns},
        "questions": {"a.json": json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}, indent=1)},
        "ratings-scws": {
            "ratings.txt": "".join(f"{n}\ta\tn\tb\tn\tthe <b> a </b>\t<b>b</b> .\t{n}.5\n" for n in (1, 2))
        },
        "ratings-usim": {"usim.tsv": "cat\t1\tthe cat\t0\tcat .\t4.5\ncat\t0\tcat\t0\tcat\t1\n"},
        "ratings-wic": {
            f"{part}.{what}.txt": wic if what == "data" else "T"
            for part in ("train", "dev")
            for what in ("data", "gold")
        },
        "word_sets": {"sets.json": json.dumps(sets, indent=1)},
        "vectors": {"vectors.txt": "3 2\nthe 1 -2\ncat .5 1e-3\n猫 0 0\n"},
    }
    for seed, files in seeds.items():
        for name, content in files.items():
            _write(folder / "tasks" / seed, name, content)


def _manylangs() -> ModelConfig:
    return ModelConfig(
        character_dim=1,
        filters=((1, 2),),
        max_characters=7,
        cell_dim=2,
        projection_dim=1,
        highway_layers=1,
        layers=1,
        activation="relu",
        skip_connections=True,
        alphabet=len(LETTERS),
        word_dim=1,
    )


def _weights(folder: Path) -> None:
    model = random_model()
    for kind in ("hdf5", "safetensors"):
        target = folder / kind / "ours"
        write_model(target, model, kind)
        for file in target.iterdir():
            if file.stem != "weights":
                file.unlink()
    arrays = {}
    with h5py.File(folder / "hdf5/ours/weights.hdf5") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    for kind in ("gzip", "external", "linked"):
        target = folder / "hdf5" / kind
        _write(target, "canary", np.full(300, CANARY, "<f4").tobytes())
        with h5py.File(target / "weights.hdf5", "w") as file:
            for name, array in arrays.items():
                if kind == "gzip":
                    file.create_dataset(name, data=array, compression="gzip", chunks=array.shape)
                elif kind == "external" and array.ndim == 1:
                    file.create_dataset(name, array.shape, "<f4", external=[("canary", 0, array.nbytes)])
                elif kind == "linked" and name == "char_embed":
                    file[name] = h5py.ExternalLink("other.hdf5", "/canary")
                else:
                    file[name] = array
    (folder / "hdf5/linked/canary").unlink()
    with h5py.File(folder / "hdf5/linked/other.hdf5", "w") as file:
        file["canary"] = np.full((261, 1), CANARY, np.float32)


def _archives(folder: Path) -> None:
    model = random_model()
    (folder / "archives/nlpl").mkdir(parents=True)
    write_as(model, folder / "archives/nlpl/model.zip", "nlpl")
    with zipfile.ZipFile(folder / "archives/nlpl/model.zip") as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    _write(folder / "archives/deflated", "model.zip", packed.getvalue())
    for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=kind) as archive:
            for name, member in members.items():
                info = tarfile.TarInfo(name if kind == tarfile.USTAR_FORMAT else f"{'folder/' * 20}{name}")
                info.size = len(member)
                archive.addfile(info, io.BytesIO(member))
        _write(folder / f"archives/tar_{kind}", "model.tar", content.getvalue())
    _write(folder / "archives/tar_gz", "model.tar.gz", gzip.compress(content.getvalue(), mtime=0))
    with tarfile.open(DATA / "allennlp/classifier.tar.gz") as archive:
        for info in archive:
            if info.isfile() and "/" not in info.name:
                _write(folder / "allennlp/classifier", info.name, archive.extractfile(info).read())


def _others(folder: Path) -> None:
    weights = folder / "allennlp/classifier/weights.th"
    _write(folder / "pickles/zip", "weights.th", weights.read_bytes())
    (folder / "pickles/legacy").mkdir()
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.ones(1, np.float32)}
    write_torch(folder / "pickles/legacy/weights.th", arrays)
    write_as(random_model(_manylangs(), alphabet=LETTERS), folder / "manylangs/ours", "manylangs")
    for file in (DATA / "manylangs/words_and_characters").iterdir():
        if file.suffix != ".npz":
            _write(folder / "manylangs/theirs", file.name, file.read_bytes())

    def make(growing: GrowingArrays) -> None:
        growing.append(CACHED)
        growing.save({"made": 1})

    dtypes = {name: array.dtype.type for name, array in CACHED.items()}
    (folder / "caches").mkdir()
    keep_arrays(folder / "caches/whole/cache", dtypes, KEY, make)
    with GrowingArrays(folder / "caches/begun/cache", dtypes, KEY) as growing:
        make(growing)
    for lock in (folder / "caches").rglob("*.lock"):
        lock.unlink()


def checkpoint(step: int) -> Checkpoint:
    state = parallel.join({"a": parallel.replicate(np.full((2, 3), step, np.float32))}, {"a": None})
    return Checkpoint(step, state, {"position": parallel.join_rows(np.full((8, 2), step, np.int32))})


def _checkpoints(folder: Path) -> None:
    """Of a run, two: what damages the newest leaves the other."""
    with Checkpoints(epath.Path(folder / "checkpoints/run/checkpoints")) as checkpoints:
        for step in (1, 2):
            checkpoints.save(checkpoint(step))


def _bundles(folder: Path) -> None:
    target = folder / "bundles/checkpoint"
    _write(target, "vocab.txt", WORDS.to_bytes())
    _write(target, "options.json", json.dumps(to_options(TINY)))
    _write(target, "checkpoint", 'model_checkpoint_path: "/data/model.ckpt"\n')
    shapes = variable_shapes(TINY, len(WORDS))
    write_bundle(target, {f"lm/{name}": np.ones(shape, np.float32) for name, shape in shapes.items()})


def _embeddings(folder: Path) -> None:
    target = folder / "embeddings"
    generator = np.random.default_rng(0)
    vectors = [generator.normal(size=(len(tokens), 2)).astype(np.float32) for tokens in SENTENCES]
    key = {"dtype": "float32", "all layers": None, "width": 2, "pool": None}
    for gzipped in (False, True):
        (target / f"hdf5_{gzipped}").mkdir(parents=True)
        write_hdf5(target / f"hdf5_{gzipped}/v.hdf5", SENTENCES, vectors, gzipped)
        (target / f"parquet_{gzipped}").mkdir()
        rows = [(to_line(tokens), array) for tokens, array in zip(SENTENCES, vectors, strict=True)]
        write_parquet(
            target / f"parquet_{gzipped}/v.parquet", rows, Made(key), json.dumps(key), "gzip" if gzipped else None
        )

    def flat(path: Path, number: slice) -> None:
        lines = [to_line(tokens) for tokens in SENTENCES[number]]
        own = vectors[number]
        with GrowingArrays(path, {"vectors": np.float32, **OFFSETS}, key) as growing:
            growing.append(
                {
                    "vectors": np.concatenate(own).reshape(-1),
                    "offsets": np.cumsum([0, *map(len, own)]),
                    "text": np.frombuffer(b"".join(lines), np.uint8),
                    "text_offsets": np.cumsum([0, *map(len, lines)]),
                    "blocks": np.array([2, 2]),
                }
            )
            growing.save({"whole": True})
            growing.finish()

    flat(target / "flat/v", slice(None))
    for number in range(2):
        flat(target / f"shards/v/shard-{number}-of-2", slice(2 * number, 2 * number + 2))
    manifest = {"format": 1, "shards": 2, "suffix": "", "blocks": [2, 2], "key": key}
    _write(target / "shards/v", MANIFEST, json.dumps(manifest))
