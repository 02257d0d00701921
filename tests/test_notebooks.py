"""The notebooks run from top to bottom, and are committed with what that gives."""

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
    environment = script_environment() | {"ELMO_MODEL": str(model), "PYTHONPATH": str(ROOT)}
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
def test_it_runs_with_any_model(tmp_path):
    """All cells print the same for other weights, but for the last, which judges them; a second call compiles none."""
    (path,) = COMMITTED
    before, now = run_again(path, write_random_model(tmp_path, load_config("tiny").model))
    assert now[:-1] == before[:-1]
    assert re.fullmatch(r"(?s).*tokens, [1-9]\d* programs compiled\n.*tokens, 0 programs compiled\n", now[-2])
    assert re.fullmatch(r"\d+ of 10 right\n", now[-1])


@pytest.mark.slow
def test_it_is_fresh(tmp_path):
    """With the demo's model it prints what is committed."""
    model = ROOT / "runs" / "demo"
    if not (model / "model").exists():
        model = tmp_path / "demo"
        command = [sys.executable, "train.py", "tiny", "--workdir", model]
        subprocess.run(command, cwd=ROOT, check=True, env=script_environment())
    before, now = run_again(COMMITTED[0], model)
    assert now == before
