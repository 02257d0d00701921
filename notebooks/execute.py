"""Runs the notebooks and keeps them with their outputs: `python -m notebooks.execute` (`make notebook`)."""

import hashlib
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def executed(notebook: nbformat.NotebookNode, environment: dict[str, str]) -> nbformat.NotebookNode:
    """The notebook with the outputs of a new kernel, without what goes to stderr; its metadata tell its sources."""
    environment = environment | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False, resources=resources).execute(
        env=environment
    )
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata["sources"] = sources(notebook)
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of the kernel
    return notebook


def sources(notebook: nbformat.NotebookNode) -> str:
    """Checksum of all cells' sources."""
    return hashlib.sha256("\0".join(cell.source for cell in notebook.cells).encode()).hexdigest()


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """What each code cell printed, and its result as text."""
    return [
        "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(read(path), {**os.environ, "PYTHONPATH": str(FOLDER.parent)}), path)
