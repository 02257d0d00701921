"""The notebooks run from top to bottom, and are committed with what that gives."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, script_environment, write_random_model

from elmo_jax.config import load_config
from notebooks import execute

COMMITTED = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run_again(path: Path, model: Path) -> tuple[list[str], list[str]]:
    """What the cells printed when the notebook was committed, and what they print now."""
    before, notebook = execute.read(path), execute.read(path)
    path_of_modules = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = script_environment() | {"ELMO_MODEL": str(model), "PYTHONPATH": path_of_modules}
    return execute.texts(before), execute.texts(execute.executed(notebook, environment))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_outputs_belong_to_the_sources(path):
    """Nobody changed a cell without `make notebook`; nothing that is of one machine or one moment is shown."""
    notebook = execute.read(path)
    assert notebook.metadata["sources"] == execute.sources(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert not re.search(r"/home|/root|/work|/tmp|\d{4}-\d\d-\d\d|\d:\d\d|\d ?m?s\b", " ".join(execute.texts(notebook)))


@pytest.mark.slow
def test_the_embedding_notebook_runs_with_any_model(tmp_path):
    """All cells print the same for other weights, but for the last, which judges them; a second call compiles none."""
    path = ROOT / "notebooks" / "embedding.ipynb"
    before, now = run_again(path, write_random_model(tmp_path, load_config("tiny").model))
    assert now[:-1] == before[:-1]
    assert re.sub(r"\d+", "N", now[-1]) == re.sub(r"\d+", "N", before[-1])
    assert re.fullmatch(r"(?s).*tokens, [1-9]\d* programs compiled\n.*tokens, 0 programs compiled\n", now[-2])


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The run of the demo's model."""
    model = ROOT / "runs" / "demo"
    if not (model / "model").exists():
        model = tmp_path_factory.mktemp("runs") / "demo"
        command = [sys.executable, "train.py", "tiny", "--workdir", model]
        subprocess.run(command, cwd=ROOT, check=True, env=script_environment())
    return model


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_it_is_fresh(path, demo):
    """With the demo's model it prints what is committed; numbers that were learned may differ a little by machine."""
    if path.stem == "pytorch":
        pytest.importorskip("torch")
    before, now = ("\n".join(printed) for printed in run_again(path, demo))
    number = r"\d+(?:\.\d+)?"
    assert re.sub(number, "N", now) == re.sub(number, "N", before)
    values = [[float(value) for value in re.findall(number, printed)] for printed in (now, before)]
    assert values[0] == pytest.approx(values[1], rel=0.05)
