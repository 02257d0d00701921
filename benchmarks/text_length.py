"""Embeds a text and a ten times longer one: speed, memory and compilations should not depend on the length.

python -m benchmarks.text_length --text TEXT
"""

import sys
import tempfile
from pathlib import Path

import tyro
from tqdm import tqdm

from benchmarks import tables
from benchmarks.embedding import write_random_model
from benchmarks.systems import RESULTS, ROOT, System, command, machine, python_of, save, spread
from elmo_jax.config import Precision, load_config
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.sources import read_input


def benchmark(
    text: str,
    config: str = "small",
    precision: Precision = "float32",
    tokens: int = 50_000,
    repeats: int = 3,
    output: Path = RESULTS / "text_length.json",
) -> None:
    """Embeds about `tokens` tokens and ten times as many, each length in a process of its own, in turn.

    Args:
        text: Text file, a sentence a line; it must have ten times `tokens` tokens.
        config: Size of the model, a file in configs/ or a path.
        precision: Inputs of the matrix products.
        tokens: Tokens of the shorter text.
        repeats: Rounds.
        output: JSON file to write.
    """
    model = load_config(config, ROOT / "configs").model
    sentences = [sentence for sentence in read_input([text]) if sentence]
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder) / "model", model)
        systems, lengths = [], []
        for times in (1, 10):
            path, length = Path(folder) / f"{times}.txt", 0
            with open(path, "w", encoding="utf-8") as file:
                for sentence in sentences:
                    if length >= times * tokens:
                        break
                    length += len(sentence)
                    file.write(" ".join(sentence) + "\n")
            if length < times * tokens:
                raise InputError(
                    f"{text} has {length:,} tokens; {times * tokens:,} are needed: give more text or --tokens"
                )
            arguments = str(Path(folder) / "model"), str(path), precision
            systems.append(System("elmo_jax", precision, python_of("elmo_jax"), "embed_with_elmo_jax.py", *arguments))
            lengths.append(length)
        first = [system.ask("run") for system in systems]
        memory = [system.ask("memory") for system in systems]
        rounds = tqdm([system for _ in range(repeats) for system in systems], "rounds", unit=" passes")
        seconds = [system.ask("run")["seconds"] for system in rounds]
        for system in systems:
            system.close()
    rows = []
    for number, length in enumerate(lengths):
        speeds = [length / time for time in seconds[number :: len(lengths)]]
        row = {"tokens": length, "tokens_per_second": spread(speeds), "peak_memory_bytes": memory[number]}
        rows.append(row | {"compilations": first[number]["compilations"]})
    result = {
        "benchmark": "text_length",
        "command": command("text_length"),
        "machine": machine(),
        "config": config,
        "precision": precision,
        "repeats": repeats,
        "lengths": rows,
    }
    save(output, result)
    print(tables.text_length(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
