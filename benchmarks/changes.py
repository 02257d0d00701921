"""What each device of the embedding engine is worth: the same text with one of them switched off, in turn.

python -m benchmarks.changes --text TEXT
"""

import sys
import tempfile
from pathlib import Path

import tyro
from tqdm import tqdm

from benchmarks import operations, tables
from benchmarks.embedding import write_random_model
from benchmarks.systems import RESULTS, ROOT, System, command, machine, python_of, save, spread
from elmo_jax.config import Precision, load_config
from elmo_jax.errors import exit_on_bad_input
from elmo_jax.sources import read_input

# Name, options of embed_iter, constants of elmo_jax.engine.
CHANGES = (
    ("as it is", {}, {}),
    ("256 rows, in the order of the text to its end", {"batch_size": 256}, {"SHORT_LOOK_AHEAD": 0}),
    ("256 rows", {"batch_size": 256}, {}),
    ("64 rows", {"batch_size": 64}, {}),
    ("512 rows", {"batch_size": 512}, {}),
    ("boundaries are read at each sentence", {"boundaries": True}, {}),
)


def benchmark(
    text: str,
    config: str = "original",
    precision: Precision = "bfloat16",
    sentences: int | None = None,
    repeats: int = 3,
    output: Path = RESULTS / "changes.json",
) -> None:
    """Embeds a text once a round with each of the changes.

    Args:
        text: Text file, a sentence a line.
        config: Size of the model, a file in configs/ or a path.
        precision: Inputs of the matrix products.
        sentences: Only the first so many of the text.
        repeats: Rounds.
        output: JSON file to write.
    """
    model = load_config(config, ROOT / "configs").model
    chosen = [tokens for tokens in read_input([text]) if tokens][:sentences]
    tokens = sum(map(len, chosen))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text("".join(" ".join(sentence) + "\n" for sentence in chosen), encoding="utf-8")
        write_random_model(Path(folder) / "model", model)
        arguments = str(Path(folder) / "model"), str(path), precision
        worker = System("elmo_jax", precision, python_of("elmo_jax"), "embed_with_elmo_jax.py", *arguments)
        requests = [{"options": options, "constants": constants} for _, options, constants in CHANGES]
        for request in requests:  # compiles
            worker.ask("run", **request)
        rounds = tqdm([request for _ in range(repeats) for request in requests], "rounds", unit=" passes")
        seconds = [worker.ask("run", **request)["seconds"] for request in rounds]
        worker.close()
    rows = [
        {"change": name, "tokens_per_second": spread([tokens / time for time in seconds[number :: len(CHANGES)]])}
        for number, (name, _, _) in enumerate(CHANGES)
    ]
    result = {
        "benchmark": "changes",
        "command": command("changes"),
        "machine": machine(),
        "config": config,
        "precision": precision,
        "tokens": tokens,
        "distinct_words": len({word for sentence in chosen for word in sentence}),
        "operations_of_a_position": operations.of_lstms(model),
        "repeats": repeats,
        "changes": rows,
    }
    save(output, result)
    print(tables.changes(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
