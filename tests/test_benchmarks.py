"""Benchmarks count operations rightly, their tables are those of their results, and they run."""

import json
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import ROOT, SMALL, script_environment

from benchmarks import operations, recipes, systems, tables, training
from elmo_jax.char_cnn import spelled_vectors
from elmo_jax.config import ModelConfig, check, load_config
from elmo_jax.model import Reading, read_window, zero_state
from elmo_jax.modules import init_bilm
from elmo_jax.pretraining import parse


def products(jaxpr) -> int:
    """Multiplications and additions of all matrix products, those of a scan as often as it goes round."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((inner, _), _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * int(np.prod([left[axis] for axis in inner]))
        times = equation.params.get("length", 1)
        for inside in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            if hasattr(inside, "jaxpr"):
                total += times * products(getattr(inside.jaxpr, "jaxpr", inside.jaxpr))
    return total


@pytest.mark.parametrize("model", [SMALL, ModelConfig()])
def test_operations_are_those_of_the_program(model):
    parameters = jax.eval_shape(lambda: init_bilm(jax.random.key(0), model))
    characters = np.zeros((1, model.max_characters), np.int32)
    spell = lambda parameters: spelled_vectors(parameters, characters, model, "float32")
    assert products(jax.make_jaxpr(spell)(parameters["words"]).jaxpr) == operations.of_word(model, model.max_characters)
    rows, window = 3, 5
    numbers = np.zeros((rows, window), np.int32)
    vectors = np.zeros((1, model.projection_dim), np.float32)

    def read(parameters):
        return read_window(model, parameters, vectors, Reading(numbers, numbers), zero_state(model, rows))

    assert products(jax.make_jaxpr(read)(parameters).jaxpr) == rows * window * operations.of_lstms(model)


def test_a_text_takes_each_token_and_each_distinct_word():
    sentences = [["a", "bc", "a"], ["bc"]]
    expected = 4 * operations.of_lstms(SMALL) + operations.of_word(SMALL, 3) + operations.of_word(SMALL, 4)
    assert operations.of_text(SMALL, sentences) == expected


@pytest.mark.parametrize(
    "name", ["README.md", "benchmarks/README.md", "benchmarks/SCALING.md", "docs/training.md", "docs/results.md"]
)
def test_tables_are_those_of_the_results(name):
    text = (ROOT / name).read_text()
    assert tables.PLACES.search(text)
    assert tables.update(text) == text


def test_estimates_of_memory_hold_for_what_was_measured():
    measured = 0
    for path in systems.RESULTS.glob("training-*.json"):
        result = json.loads(path.read_text())
        config = load_config(result["config"])
        train = replace(config.train, batch_size=result["rows"], window=result["window"])
        for row in result["systems"]:
            candidate = training.Candidate(row["system"], row["precision"], row["vocabulary_size"])
            needed = training.needed_memory(candidate, config.model, train)
            assert row["peak_memory_bytes"] <= needed <= 1.25 * row["peak_memory_bytes"], (path.name, candidate)
            measured += 1
    assert measured >= 8


def test_systems_that_do_not_fit_run_one_at_a_time(capsys):
    both = [training.Candidate("elmo_jax", precision, 793_471) for precision in ("float32", "bfloat16")]
    peer = training.Candidate("bilm-tf", "float32", 793_471)
    gib = 2**30
    for candidates, config, available, together in (
        ([*both, peer], "original", 23 * gib, False),
        ([*both, peer], "original", 64 * gib, True),
        ([both[0], peer], "original", 32 * gib, True),
        (both, "original", 16 * gib, False),
        (both, "small", 23 * gib, True),
    ):
        planned = training.plan(candidates, load_config(config), available)
        assert planned["together"] == together
        assert planned["reason"] in capsys.readouterr().out
    assert systems.available_memory() > gib
    assert training.visits(3, 5, together=True) == [([0, 1, 2], 5)]
    apart = training.visits(3, 5, together=False)
    assert apart == [([0], 3), ([1], 3), ([2], 3), ([2], 2), ([1], 2), ([0], 2)]
    assert training.visits(2, 1, together=False) == [([0], 1), ([1], 1)]


class Fake:
    """A system without a process, that notes who is started and who is closed."""

    events: list[str]

    def __init__(self, name, precision, *_):
        self.name, self.precision = name, precision
        self.events.append(f"start {name} {precision}")

    def ask(self, request, steps=1, **_):
        run = {"seconds": [1.0] * steps, "waited": [0.0] * steps, "losses": [2.0] * steps}
        answers = {"run": run if self.name == "elmo_jax" else 1e9, "about": {}, "memory": 3, "words": [[5, 7]]}
        return (answers | {"input_speed": 11.0, "split": {"forward": 0.25, "backward": 0.75}})[request]

    def close(self):
        self.events.append(f"close {self.name} {self.precision}")


@pytest.mark.parametrize("together", [True, False])
def test_training_starts_what_fits(tmp_path, monkeypatch, together):
    (tmp_path / "text.txt").write_text("a text of few words\n")
    monkeypatch.setattr(Fake, "events", [], raising=False)
    monkeypatch.setattr(training, "System", Fake)
    monkeypatch.setattr(training, "available_memory", lambda: 2**40 if together else 2**30)
    sizes = {"vocabulary_sizes": (50,), "rows": 4, "repeats": 2, "output": tmp_path / "result.json"}
    training.benchmark(str(tmp_path / "text.txt"), config="tiny", **sizes)
    started = [event for event in Fake.events if "elmo_jax" in event]
    precisions = "float32", "bfloat16"
    one, other = ([f"{what} elmo_jax {precision}" for what in ("start", "close")] for precision in precisions)
    assert started == ([one[0], other[0], other[1], one[1]] if together else [*one, *other, *other, *one])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["memory"]["together"] == together
    assert ("one system at a time" in tables.training(result)) != together
    assert [row["precision"] for row in result["systems"]] == ["float32", "bfloat16"]


BENCHMARKS = {
    "embedding": "--repeats 1",
    "embedder": "--rows 4 --repeats 1",
    "text_length": "--tokens 500 --repeats 1",
    "output": "--repeats 1 --formats flat hdf5 parquet",
    "precision": "",
    "training": "--vocabulary_sizes 2000 --repeats 1",
    "curves": "--rows 4 --steps 10",
    "versions": f"--other {ROOT} --precisions float32 --vocabulary_size 2000 --rows 4 --steps 1 --repeats 2",
    "scaling": "--vocabulary_size 20000 --devices 1",
    "pod": "--hosts 2 --devices_per_host 2 --vocabulary_size 2000 --steps 1 --tokens 5000",
    "recipes": f"--heldout {ROOT}/configs/demo_sentences.txt --rows 2 --steps 4 --recipes published adam-0.001-cosine "
    "--folder {folder}",
    "checkpoints": f"--heldout {ROOT}/configs/demo_sentences.txt --vocabulary_size 2000 --steps 4",
}


@pytest.fixture
def text(tmp_path):
    lines = (ROOT / "configs" / "demo_sentences.txt").read_text() * 100
    (tmp_path / "text.txt").write_text(lines + " ".join(f"word-{number}" for number in range(600)))
    return tmp_path / "text.txt"


@pytest.mark.slow
@pytest.mark.parametrize("module", BENCHMARKS)
def test_benchmarks_run(tmp_path, text, module):
    """On a tiny model, without peers."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--text", text, "--config", "tiny"]
    command += ["--output", tmp_path / "result.json", *BENCHMARKS[module].format(folder=tmp_path).split()]
    done = subprocess.run(command, cwd=ROOT, env=script_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "result.json").read_text())["benchmark"] == module
    assert "| --- |" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_such_as_training_takes(name):
    command = ["small", "--workdir", "run", "--train.steps", "2000", *recipes.options_of(name, 2000)]
    config = parse(command).config
    check(config)
    published = replace(load_config("small").train, steps=2000)
    assert (config.train == published) == (name == "published")


def test_the_shipped_recipe_is_that_of_the_benchmark():
    result = json.loads((systems.RESULTS / "recipes-small-cpu.json").read_text())
    best = min(result["runs"], key=lambda run: run["heldout_perplexity"][str(result["steps"])])
    options = f"--train.steps {result['steps']} --train.batch_size {result['rows']} {best['options']}"
    benchmarked = parse(["small", "--workdir", "run", *options.split()]).config
    shipped = load_config("small_adam")
    same = {"checkpoint_every": 250, "eval_every": 250}
    assert shipped == replace(benchmarked, train=replace(benchmarked.train, **same))


@pytest.mark.slow
def test_memory_of_the_outputs_is_measured(tmp_path):
    """Of so few sentences it says nothing but that the command works; what 1,000,000 take is among the results."""
    command = [sys.executable, "-m", "benchmarks.output_memory", "--sentences", "20", "40"]
    command += ["--output", tmp_path / "result.json"]
    done = subprocess.run(command, cwd=ROOT, env=script_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "result.json").read_text())["formats"]
    assert [row["format"] for row in rows] == ["flat", "hdf5", "parquet"]
    assert all(2**26 < peak < 2**33 for row in rows for peak in row["peak_memory_bytes"])
    assert "| --- |" in done.stdout
