"""Embeds the same text with and without writing the vectors to the disk, in turn, in one process.

python -m benchmarks.output --text TEXT
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import tables
from benchmarks.embedding import write_random_model
from benchmarks.systems import ROOT, System, command, machine, python_of, result_path, save, spread
from elmo_jax.config import Precision, load_config
from elmo_jax.errors import exit_on_bad_input
from elmo_jax.outputs import VectorType
from elmo_jax.sources import read_input

# Names of the outputs: the flat format first.
OUTPUTS = {"flat": "vectors", "hdf5": "vectors.hdf5", "parquet": "vectors.parquet"}


def benchmark(
    text: str,
    config: str = "small",
    formats: tuple[str, ...] = ("flat",),
    dtype: VectorType = "float16",
    precision: Precision = "float32",
    repeats: int = 3,
    sentences: int | None = None,
    folder: Path | None = None,
    output: Path | None = None,
) -> None:
    """Measures tokens per second of embedding alone, and of the whole way to the disk: counting the text, too.

    Args:
        text: Text file, a sentence a line.
        config: Size of the model, a file in configs/ or a path.
        formats: What is written: flat, hdf5, parquet.
        dtype: Numbers that are written.
        precision: Inputs of the matrix products.
        repeats: Rounds; in each, the text is embedded alone and into every format, in the opposite order every second
            time.
        sentences: Only the first so many of the text; by default all.
        folder: Where to write the vectors; by default among temporary files.
        output: JSON file to write; by default results/output-CONFIG-DEVICE.json beside this module.
    """
    chosen = [tokens for tokens in read_input([text]) if tokens][:sentences]
    tokens = sum(map(len, chosen))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        prepared = Path(place) / "text.txt"
        prepared.write_text("".join(" ".join(sentence) + "\n" for sentence in chosen), encoding="utf-8")
        write_random_model(Path(place) / "model", load_config(config, ROOT / "configs").model)
        arguments = str(Path(place) / "model"), str(prepared), precision
        system = System("elmo_jax", precision, python_of("elmo_jax"), "embed_with_elmo_jax.py", *arguments)

        def measure(form: str | None) -> dict:
            if form is None:
                return system.ask("run")
            return system.ask("write", path=str(Path(place) / OUTPUTS[form]), dtype=dtype)

        ways = [None, *formats]
        for way in ways:  # warms up
            measure(way)
        seconds: dict[str | None, list[float]] = {way: [] for way in ways}
        sizes: dict[str | None, int] = {}
        for number in tqdm(range(repeats), "rounds"):
            for way in ways[:: 1 - 2 * (number % 2)]:
                answer = measure(way)
                seconds[way].append(answer["seconds"])
                sizes[way] = answer.get("bytes", 0)
        system.close()
    rows = []
    for way in ways:
        ratios = [alone / own for alone, own in zip(seconds[None], seconds[way], strict=True)]
        rows.append(
            {
                "format": way,
                "tokens_per_second": spread([tokens / one for one in seconds[way]]),
                "of_embedding_alone": spread(ratios),
                "bytes": sizes[way],
                "bytes_per_second": float(np.median([sizes[way] / one for one in seconds[way]])),
            }
        )
    result = {
        "benchmark": "output",
        "command": command("output"),
        "machine": machine(),
        "config": config,
        "precision": precision,
        "dtype": dtype,
        "sentences": len(chosen),
        "tokens": tokens,
        "repeats": repeats,
        "formats": rows,
    }
    save(output or result_path("output", config), result)
    print(tables.output(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
