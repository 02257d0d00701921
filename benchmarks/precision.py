"""How far bfloat16 vectors are from float32 ones, layer by layer, on real text.

python -m benchmarks.precision --text TEXT [--model runs/demo]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro

import elmo_jax
from benchmarks import tables
from benchmarks.embedding import write_random_model
from benchmarks.systems import RESULTS, ROOT, command, machine, save
from elmo_jax.config import load_config
from elmo_jax.errors import exit_on_bad_input
from elmo_jax.sources import read_input


def benchmark(
    text: str, model: Path | None = None, config: str = "original", sentences: int = 200, output: Path | None = None
) -> None:
    """Embeds sentences in both precisions and compares every layer.

    Args:
        text: Text file, a sentence a line.
        model: Model folder; by default random weights of the config.
        config: Size of the model with random weights, a file in configs/ or a path.
        sentences: Only the first so many of the text.
        output: JSON file to write; by default results/precision-NAME.json beside this module.
    """
    chosen = [tokens for tokens in read_input([text]) if tokens][:sentences]
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            write_random_model(Path(folder) / "model", load_config(config, ROOT / "configs").model)
        elmo = elmo_jax.load(model or Path(folder) / "model")
    exact, rounded = (
        np.concatenate(elmo.embed(chosen, layers="all", precision=precision), 1)
        for precision in ("float32", "bfloat16")
    )
    difference = rounded - exact
    name = config if model is None else model.resolve().name
    result = {
        "benchmark": "precision",
        "command": command("precision"),
        "machine": machine(),
        "model": f"{config}, random weights" if model is None else str(model),
        "tokens": exact.shape[1],
        "relative_norm": [float(np.linalg.norm(d) / np.linalg.norm(e)) for d, e in zip(difference, exact, strict=True)],
        "relative_largest": [float(np.abs(d).max() / np.abs(e).max()) for d, e in zip(difference, exact, strict=True)],
    }
    save(output or RESULTS / f"precision-{name}.json", result)
    print(tables.precision(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
