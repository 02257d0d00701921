import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time goes into compiling small programs: half of it without LLVM's optimisations. XLA's own stay, and
# what runs the scripts as processes (`script_environment`) runs them as users do.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
import ast
import contextlib
import gc
import json
import socket
import sys
import tempfile
from pathlib import Path

# The texts that tests read are not kept among the user's own.
cache = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = cache.name

ROOT = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get("ELMO_GOLDEN", ROOT.parent / "shared/data/golden"))


if sys.version_info < (3, 12):
    parse = ast.parse

    def parse_at_once(*arguments, **options):
        """Without collecting garbage: a thread that parses meanwhile, for a trace, has Python 3.11 miscount depths."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return parse(*arguments, **options)
        finally:
            if collects:
                gc.enable()

    ast.parse = parse_at_once


def devices_of(trace: Path) -> int:
    """Devices that a recorded training run had."""
    import numpy as np

    options = json.loads((trace.parent / "options.json").read_text())
    return np.load(trace)["token_ids"].shape[1] // options["batch_size"]


os.environ["JAX_NUM_CPU_DEVICES"] = str(max([4, *map(devices_of, GOLDEN.glob("training/*/trace.npz"))]))

import h5py
import jax
import numpy as np
import pytest

import elmo_jax
from elmo_jax import parallel, pretraining, softmax_table, training
from elmo_jax.config import ModelConfig, to_options
from elmo_jax.optimizers import ADAGRAD
from elmo_jax.products import compiled_for
from elmo_jax.weights import weight_shapes, write_arrays

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same program.
compiled = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def script_environment(devices: int = 1) -> dict[str, str]:
    """Environment for a script in a process of its own."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_COMPILATION_CACHE_DIR": compiled.name}
    flags = environment.pop("XLA_FLAGS").replace("--xla_backend_optimization_level=0", "").strip()
    return environment | ({"XLA_FLAGS": flags} if flags else {})


# Largest absolute difference, relative to the largest value.
TOLERANCE = 1e-5

# All sizes differ, so that nothing transposed can pass.
SMALL = ModelConfig(
    character_dim=3,
    filters=((1, 4), (2, 6), (3, 9)),
    max_characters=12,
    cell_dim=11,
    projection_dim=7,
    highway_layers=1,
)
SENTENCES = [
    line.split()
    for line in (
        "the cat sat on the mat",
        "über naïve 猫 🐈 cats",
        "incomprehensibilities antidisestablishmentarianism a",
        "",
        "one",
        "it rained and rained and it rained until the river rose over its banks and took the bridge away .",
    )
]


def relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    largest = np.abs(expected).max(initial=0)
    return float(np.abs(actual - expected).max(initial=0) / (largest or 1))


def random_weights(model: ModelConfig, vocabulary_size: int = 0, seed: int = 0, scale: float = 0.4):
    """Arrays of a weight file by name, normally distributed."""
    generator = np.random.default_rng(seed)
    shapes = weight_shapes(model, vocabulary_size)
    return {name: (scale * generator.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def write_random_model(folder: Path, model: ModelConfig, seed: int = 0) -> Path:
    """A model folder (without a vocabulary) with random weights."""
    folder.mkdir(exist_ok=True)
    (folder / "options.json").write_text(json.dumps(to_options(model)))
    write_arrays(folder / "weights.hdf5", random_weights(model, seed=seed))
    return folder


CONFIG = """
from elmo_jax import Config, DataConfig, ModelConfig, TrainConfig
config = Config(
    ModelConfig(
        character_dim=3, filters=((1, 4), (2, 6), (3, 9)), highway_layers=1, max_characters=12, cell_dim=11,
        projection_dim=7,
    ),
    DataConfig(train=({train!r},), heldout=({heldout!r},)),
    TrainConfig(**{settings!r}),
)
"""


def write_project(folder: Path, **train) -> Path:
    """Writes text (train.txt, heldout.txt) and a config of a few steps (mine.py) into a folder."""
    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in range(40)]
    lines = [" ".join(generator.choice(words, generator.integers(1, 12))) for _ in range(60)]
    (folder / "train.txt").write_text("\n".join(lines[:50]) + "\n\n")
    (folder / "heldout.txt").write_text("\n".join(lines[50:]))
    settings = {"steps": 6, "batch_size": 2, "window": 5, "negatives": 9, "checkpoint_every": 2, "eval_every": 3}
    settings |= {"log_every": 1, "seed": 5} | train
    files = {"train": str(folder / "train.txt"), "heldout": str(folder / "heldout.txt")}
    (folder / "mine.py").write_text(CONFIG.format(**files, settings=settings))
    return folder


@contextlib.contextmanager
def dying_at(monkeypatch, step: int):
    """A run that trains inside dies of a fault after a step: what it reported of it is not read."""
    add = pretraining.Reports.add

    def failing(reports, stand, metrics):
        add(reports, stand, metrics)
        if stand.step == step:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(pretraining.Reports, "add", failing)
        with pytest.raises(ZeroDivisionError):
            yield


def take_form(monkeypatch, name: str) -> None:
    """What is traced for this machine's devices takes the form for those of another platform."""
    monkeypatch.setattr(parallel, "compiled_for", lambda _: compiled_for(name))


def place_on(devices: int, state, rows: int, optimizer=ADAGRAD):
    """`training.place` for the first of the devices."""

    def split(array, fill):
        return softmax_table.in_places(np.asarray(array), rows, fill).reshape(devices, -1, *array.shape[1:])

    def divide(tree, fill):
        return tree | {"softmax": jax.tree.map(split, tree["softmax"], jax.tree.broadcast(fill, tree["softmax"]))}

    parameters, accumulators = divide(state.parameters, softmax_table.NO_WORD), state.accumulators
    return training.TrainState(state.step, parameters, divide(accumulators, optimizer.fill))


def to_host(devices: int, state, vocabulary_size: int, rows: int):
    """`training.to_host` of all of it; so many devices must have the same of what they share."""
    for leaf in jax.tree.leaves((state.parameters["bilm"], state.accumulators["bilm"])):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == devices
        assert all((shard == shards[0]).all() for shard in shards)
    trees = (training.to_host(tree, vocabulary_size, rows) for tree in state[1:])
    return training.TrainState(parallel.fetch(state.step), *trees)


def fails(main, arguments, message, capsys) -> str:
    """The script ends with exit code 2 and one line on stderr, which it returns, that has the message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2
    assert printed[-1].startswith("error: ")
    assert message in printed[-1]
    assert not any("Traceback" in line for line in printed)
    return printed[-1]


def free_port() -> int:
    """A port that processes can join at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def metrics(workdir):
    """Lines of metrics.jsonl without what was measured with a clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_second", None)
    return [line for line in lines if not any(name.endswith("_seconds") for name in line)]


def same_file(one, other):
    with h5py.File(one) as first, h5py.File(other) as second:
        names = []
        first.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert names
        return all((first[name][()] == second[name][()]).all() for name in names)


_compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **about: "jaxpr_to_mlir" in event and _compiled.append(about.get("fun_name", event))
)


@pytest.fixture
def compilations():
    """`with compilations() as names:` collects the names of the programs that are compiled."""

    @contextlib.contextmanager
    def collect():
        before, names = len(_compiled), []
        yield names
        names += _compiled[before:]

    return collect


MAPS = Path("/proc/self/maps")  # of Linux


@pytest.fixture(autouse=True)
def _few_maps():
    """A process may have 65,530 maps of memory, and a compiled program has dozens or hundreds: LLVM falls over then."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model folder with random weights of the shape SMALL."""
    return write_random_model(tmp_path_factory.mktemp("model"), SMALL)


@pytest.fixture(scope="module")
def elmo(folder):
    return elmo_jax.load(folder)


@pytest.fixture
def golden() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden outputs of the originals at {GOLDEN} (set ELMO_GOLDEN)")
    return GOLDEN
