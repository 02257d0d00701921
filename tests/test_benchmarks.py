"""Benchmarks count operations rightly, their tables are those of their results, and they run."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, SMALL, script_environment

from benchmarks import operations, tables
from elmo_jax.char_cnn import spelled_vectors
from elmo_jax.config import ModelConfig
from elmo_jax.model import Reading, read_window, zero_state
from elmo_jax.modules import init_bilm


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


@pytest.mark.parametrize("name", ["README.md", "benchmarks/README.md", "benchmarks/SCALING.md"])
def test_tables_are_those_of_the_results(name):
    text = (ROOT / name).read_text()
    assert tables.PLACES.search(text)
    assert tables.update(text) == text


BENCHMARKS = {
    "embedding": "--repeats 1",
    "text_length": "--tokens 500 --repeats 1",
    "precision": "",
    "training": "--vocabulary_sizes 2000 --repeats 1",
    "curves": "--rows 4 --steps 10",
    "scaling": "--vocabulary_size 2000 --devices 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("module", BENCHMARKS)
def test_benchmarks_run(tmp_path, module):
    """On a tiny model, without peers."""
    lines = (ROOT / "configs" / "demo_sentences.txt").read_text() * 100
    (tmp_path / "text.txt").write_text(lines + " ".join(f"word-{number}" for number in range(600)))
    command = [sys.executable, "-m", f"benchmarks.{module}", "--text", tmp_path / "text.txt", "--config", "tiny"]
    command += ["--output", tmp_path / "result.json", *BENCHMARKS[module].split()]
    done = subprocess.run(command, cwd=ROOT, env=script_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "result.json").read_text())["benchmark"] == module
    assert "| --- |" in done.stdout
