"""Embeds the same text with the same random weights by this project and its peers, in turn, in one run.

python -m benchmarks.embedding --text TEXT --peers allennlp torch
"""

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import operations, tables
from benchmarks.systems import ROOT, System, command, machine, python_of, result_path, save, spread
from elmo_jax.config import ModelConfig, Precision, load_config, to_options
from elmo_jax.errors import exit_on_bad_input
from elmo_jax.modules import init_bilm
from elmo_jax.sources import read_input
from elmo_jax.weights import named_weights, write_arrays

# Sentences that are embedded alone, to measure latency, after others that warm the system up.
ALONE, WARM_UP = 50, 10
# Sentences whose vectors are compared.
COMPARED = 40
PEERS = {"allennlp": ("float32",), "torch": ("float32", "bfloat16")}


def benchmark(
    text: str,
    config: str = "original",
    peers: tuple[str, ...] = (),
    precisions: tuple[Precision, ...] = ("float32", "bfloat16"),
    repeats: int = 3,
    sentences: int | None = None,
    output: Path | None = None,
) -> None:
    """Measures tokens per second, latency of single sentences, memory and agreement.

    Args:
        text: Text file, a sentence a line.
        config: Size of the model, a file in configs/ or a path.
        peers: What to compare with: allennlp, torch (`make peers` installs them).
        precisions: Precisions of this project and of torch.
        repeats: Rounds; in each, every system embeds the whole text once.
        sentences: Only the first so many of the text; by default all.
        output: JSON file to write; by default results/embedding-CONFIG-DEVICE.json beside this module.
    """
    model = load_config(config, ROOT / "configs").model
    chosen = [tokens for tokens in read_input([text]) if tokens][:sentences]
    tokens, useful = sum(map(len, chosen)), operations.of_text(model, chosen)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "text.txt"
        prepared.write_text("".join(" ".join(sentence) + "\n" for sentence in chosen), encoding="utf-8")
        write_random_model(Path(folder) / "model", model)
        names = [("elmo_jax", precision) for precision in precisions]
        names += [(peer, precision) for peer in peers for precision in PEERS[peer] if precision in precisions]
        inputs = str(Path(folder) / "model"), str(prepared)
        systems = [
            System(name, precision, python_of(name), f"embed_with_{name}.py", *inputs, precision)
            for name, precision in names
        ]
        products = {
            p: System("matrix product", p, python_of("elmo_jax"), "multiply_matrices.py", p) for p in precisions
        }
        peaks = {precision: [] for precision in precisions}
        measured = [measure(system, Path(folder)) for system in systems]
        rounds = tqdm(total=repeats * len(systems), desc="rounds", unit=" passes")
        for _ in range(repeats):
            for system, results in zip(systems, measured, strict=True):
                answer = system.ask("run")
                results["seconds"].append(answer["seconds"])
                results["later_compilations"] += answer.get("compilations", 0)
                alone = system.ask("latency", warm_up=WARM_UP, measured=ALONE)
                results["latency"].append(float(np.median(alone["seconds"])))
                if system.name == "elmo_jax":
                    results["later_compilations"] += alone["compilations"]
                    peaks[system.precision].append(products[system.precision].ask("run"))
                rounds.update()
        rounds.close()
        rows = []
        for system, results in zip(systems, measured, strict=True):
            speeds = [tokens / seconds for seconds in results["seconds"]]
            row = {
                "system": system.name,
                "precision": system.precision,
                "versions": system.ask("about"),
                "tokens_per_second": spread(speeds),
                "latency_seconds": spread(results["latency"]),
                "peak_memory_bytes": system.ask("memory"),
                "relative_difference": results["difference"],
            }
            if system.name == "elmo_jax":
                peak = float(np.median(peaks[system.precision]))
                row |= {key: results[key] for key in ("compile_seconds", "compilations", "later_compilations")}
                row |= {"peak_operations_per_second": peak}
                row["share_of_peak"] = useful / float(np.median(results["seconds"])) / peak
            rows.append(row)
        for system in (*systems, *products.values()):
            system.close()
    result = {
        "benchmark": "embedding",
        "command": command("embedding"),
        "machine": machine(),
        "config": config,
        "sentences": len(chosen),
        "tokens": tokens,
        "distinct_words": len({word for sentence in chosen for word in sentence}),
        "useful_operations": useful,
        "repeats": repeats,
        "alone": ALONE,
        "systems": rows,
    }
    save(output or result_path("embedding", config), result)
    print(tables.embedding(result))


def measure(system: System, folder: Path) -> dict:
    """Warms a system up: what compiling takes, and its vectors of some sentences against the first system's."""
    first = system.ask("run") if system.name == "elmo_jax" else {}
    system.ask("latency", warm_up=2, measured=2)
    path = folder / f"{system.name}-{system.precision}.npy"
    system.ask("vectors", count=COMPARED, path=str(path))
    found, expected = np.load(path), np.load(max(folder.glob("elmo_jax-*.npy")))  # float32 rather than bfloat16
    return {
        "difference": float(np.abs(found - expected).max() / np.abs(expected).max()),
        "compilations": first.get("compilations"),
        "compile_seconds": first.get("compile_seconds"),
        "later_compilations": 0,
        "seconds": [],
        "latency": [],
    }


def write_random_model(folder: Path, model: ModelConfig) -> None:
    """A model folder in the published format, with the random weights that training starts from."""
    folder.mkdir()
    (folder / "options.json").write_text(json.dumps(to_options(model)))
    write_arrays(folder / "weights.hdf5", named_weights(init_bilm(jax.random.key(0), model), model))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
