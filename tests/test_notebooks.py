"""The notebooks run from top to bottom."""

import re

import nbformat
from conftest import ROOT, SMALL, script_environment, write_random_model
from nbclient import NotebookClient


def test_embedding(tmp_path):
    """It runs, and its second call compiles nothing."""
    notebook = nbformat.read(ROOT / "notebooks" / "embedding.ipynb", as_version=4)
    environment = script_environment() | {"ELMO_MODEL": str(write_random_model(tmp_path, SMALL))}
    environment |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(env=environment)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    first, second = re.findall(r"[\d,]+ tokens in .* s, (\d+) programs compiled", printed)
    assert int(first) > 0
    assert int(second) == 0
    assert re.search(r"\d+ of 10 right", printed)
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/png" in picture.data for picture in pictures)
