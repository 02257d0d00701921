"""Trains on the same text with the same options by this project and by bilm-tf, in turn, in one run.

git clone https://github.com/allenai/bilm-tf
python -m benchmarks.training --text TEXT --peers bilm-tf --clone bilm-tf
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import operations, tables
from benchmarks.systems import ROOT, System, command, machine, python_of, result_path, save, spread
from elmo_jax.config import Precision, load_config, to_options
from elmo_jax.corpus import WordCounts, sentences
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.vocabulary import Vocabulary

STEPS = 3


def benchmark(
    text: str,
    config: str = "original",
    peers: tuple[str, ...] = (),
    clone: Path | None = None,
    precisions: tuple[Precision, ...] = ("float32", "bfloat16"),
    vocabulary_sizes: tuple[int, ...] = (793_471,),
    rows: int = 128,
    window: int = 20,
    repeats: int = 5,
    output: Path | None = None,
) -> None:
    """Measures seconds a step, where they go, memory, and the input pipeline alone.

    Args:
        text: Text file, a sentence a line.
        config: Size of the model, a file in configs/ or a path; its training settings are used too.
        peers: What to compare with: bilm-tf (`make peers` installs its TensorFlow).
        clone: Folder with bilm-tf's code.
        precisions: Precisions of this project.
        vocabulary_sizes: Sizes of the softmax: the text's words and made-up ones. Peers take the first.
        rows: Rows of sentences.
        window: Positions of each row in a step.
        repeats: Rounds; in each, every system does three steps, of which the first is not timed: while the others
            ran, memory that it had freed may have left the machine.
        output: JSON file to write; by default results/training-CONFIG-DEVICE.json beside this module.
    """
    if "bilm-tf" in peers and not (clone and (clone / "bilm").is_dir()):
        raise InputError(f"--clone is {clone}; give a folder with bilm-tf's code (its folder bilm/)")
    chosen = load_config(config, ROOT / "configs")
    model, train = chosen.model, chosen.train
    options = to_options(model, vocabulary_sizes[0]) | {
        "dropout": train.dropout,
        "all_clip_norm_val": train.clip_norm,
        "learning_rate": train.learning_rate,
        "n_negative_samples_batch": train.negatives,
        "batch_size": rows,
        "unroll_steps": window,
        "sample_softmax": True,
    }
    options["char_cnn"] |= {"n_characters": 261}  # as bilm-tf trains; 262 is for inference
    known = Vocabulary.from_counts(WordCounts(sentences((text,), "--text")))
    with tempfile.TemporaryDirectory() as folder:
        systems, sizes = [], []

        def add(name: str, precision: Precision, size: int) -> None:
            path = Path(folder) / f"{size}.txt"
            made_up = (f"made-up-{number}" for number in range(size - len(known)))
            path.write_text("".join(f"{word}\n" for word in [*known.words[:size], *made_up]), encoding="utf-8")
            asked = {"options": options | {"n_tokens_vocab": size}, "rows": rows, "window": window, "text": text}
            asked |= {"precision": precision, "vocab": str(path), "clone": str(clone)}
            script = f"train_with_{name.replace('-', '_')}.py"
            systems.append(System(name, precision, python_of(name), script, json.dumps(asked)))
            sizes.append(size)

        for precision in precisions:
            for size in vocabulary_sizes:
                add("elmo_jax", precision, size)
        for peer in peers:
            add(peer, "float32", vocabulary_sizes[0])
        products = {
            p: System("matrix product", p, python_of("elmo_jax"), "multiply_matrices.py", p) for p in precisions
        }
        first = [system.ask("run", steps=2) for system in systems]  # compiles
        answers, peaks = [[] for _ in systems], {precision: [] for precision in precisions}
        for _ in tqdm(range(repeats), "rounds"):
            for system, found in zip(systems, answers, strict=True):
                found.append(system.ask("run", steps=STEPS))
            for precision, product in products.items():
                peaks[precision].append(product.ask("run"))
        useful = None
        rows_of_table = []
        for system, size, begun, found in zip(systems, sizes, first, answers, strict=True):
            seconds = [second for answer in found for second in answer["seconds"][1:]]
            row = {
                "system": system.name,
                "precision": system.precision,
                "vocabulary_size": size,
                "versions": system.ask("about"),
                "seconds": spread(seconds),
                "tokens_per_second": spread([rows * window / time for time in seconds]),
                "peak_memory_bytes": system.ask("memory"),
                "first_losses": begun["losses"],
            }
            if system.name == "elmo_jax":
                words = system.ask("words")
                useful = operations.of_training_step(model, rows * window, words, train.negatives)
                peak = float(np.median(peaks[system.precision]))
                row |= {
                    "peak_operations_per_second": peak,
                    "share_of_peak": useful / float(np.median(seconds)) / peak,
                    "share_waiting_for_input": sum(sum(answer["waited"][1:]) for answer in found) / sum(seconds),
                    "input_tokens_per_second": system.ask("input_speed", steps=1000),
                    "compile_seconds": begun["seconds"][0] - float(np.median(seconds)),
                    "distinct_words": sum(count for _, count in words),
                    **system.ask("split", repeats=3),
                }
            rows_of_table.append(row)
        for system in (*systems, *products.values()):
            system.close()
    result = {
        "benchmark": "training",
        "command": command("training"),
        "machine": machine(),
        "config": config,
        "rows": rows,
        "window": window,
        "negatives": train.negatives,
        "useful_operations": useful,
        "repeats": repeats,
        "steps": STEPS - 1,
        "systems": rows_of_table,
    }
    save(output or result_path("training", config), result)
    print(tables.training(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
