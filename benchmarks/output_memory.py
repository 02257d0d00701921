"""Embeds few and many sentences into every format: once buffers are full, memory should not grow.

python -m benchmarks.output_memory
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tyro
from tqdm import tqdm

from benchmarks import tables
from benchmarks.embedding import write_random_model
from benchmarks.output import OUTPUTS
from benchmarks.systems import RESULTS, ROOT, command, machine, save
from elmo_jax.config import load_config
from elmo_jax.errors import exit_on_bad_input


def benchmark(
    config: str = "tiny",
    sentences: tuple[int, ...] = (10_000, 100_000, 1_000_000),
    output: Path = RESULTS / "output_memory.json",
) -> None:
    """Runs `elmo-jax embed` on sentences that all differ, a process for each format and number of them.

    Args:
        config: Size of the model, a file in configs/ or a path.
        sentences: How many, of four tokens each; two numbers or more.
        output: JSON file to write.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder) / "model", load_config(config, ROOT / "configs").model)
        for form, name in OUTPUTS.items():
            peaks = []
            for count in tqdm(sentences, form):
                text = Path(folder) / "text.txt"
                with text.open("w") as file:
                    file.writelines(f"number {i // 1000} and {i % 1000}\n" for i in range(count))
                embed = [sys.executable, "-m", "elmo_jax", "embed", "--model", f"{folder}/model", "--input", text]
                process = subprocess.Popen([*embed, "--output", f"{folder}/{count}-{name}"], cwd=ROOT)
                _, status, usage = os.wait4(process.pid, 0)
                if status:
                    raise SystemExit(f"embedding {count:,} sentences failed; what it said is above")
                peaks.append(usage.ru_maxrss * 1024)
            rows.append({"format": form, "peak_memory_bytes": peaks})
    result = {
        "benchmark": "output_memory",
        "command": command("output_memory"),
        "machine": machine(),
        "config": config,
        "sentences": list(sentences),
        "formats": rows,
    }
    save(output, result)
    print(tables.output_memory(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
