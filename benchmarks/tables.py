"""Prints results as tables and keeps those in Markdown files up to date.

    python -m benchmarks.tables README.md benchmarks/README.md

Between `<!-- table NAME.json -->` and `<!-- end -->` the table of results/NAME.json is written.
"""

import json
import re
import sys
from pathlib import Path

from benchmarks.systems import RESULTS

PLACES = re.compile(r"(<!-- table (\S+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {"elmo_jax": "**this project**", "allennlp": "AllenNLP", "torch": "PyTorch, nn.LSTM", "bilm-tf": "bilm-tf"}
GIB = 2**30


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def about(result: dict) -> str:
    """A line that says what was measured where."""
    machine = result["machine"]
    return f"{machine['device']}; JAX {machine['jax']}, Python {machine['python']}; {machine['date']}"


def embedding(result: dict) -> str:
    """The table of `benchmarks.embedding`."""
    heads = [
        "system",
        "precision",
        "tokens/s (min – max)",
        "ratio",
        "one sentence",
        "memory",
        "peak share",
        "compiling",
    ]
    heads.append("difference")
    base = next((row for row in result["systems"] if row["system"] == "allennlp"), result["systems"][0])
    rows = []
    for row in result["systems"]:
        speed, ours = row["tokens_per_second"], "share_of_peak" in row
        rows.append(
            [
                NAMES[row["system"]],
                row["precision"],
                f"{speed['median']:,.0f} ({speed['min']:,.0f} – {speed['max']:,.0f})",
                f"{speed['median'] / base['tokens_per_second']['median']:.2f}",
                f"{1000 * row['latency_seconds']['median']:,.1f} ms",
                f"{row['peak_memory_bytes'] / GIB:.2f} GiB",
                f"{row['share_of_peak']:.0%}" if ours else "",
                f"{row['compile_seconds']:.1f} s, {row['compilations']} programs" if ours else "",
                f"{row['relative_difference']:.1e}",
            ]
        )
    note = (
        f"Config {result['config']}, {result['sentences']:,} sentences, {result['tokens']:,} tokens, "
        f"{result['distinct_words']:,} distinct words, {result['repeats']} rounds. {about(result)}.\n"
    )
    return markdown(heads, rows) + "\n" + note


def text_length(result: dict) -> str:
    """The table of `benchmarks.text_length`."""
    heads, rows = ["tokens", "tokens/s (min – max)", "ratio", "peak memory", "ratio", "programs compiled"], []
    base = result["lengths"][0]
    for row in result["lengths"]:
        speed, memory = row["tokens_per_second"], row["peak_memory_bytes"]
        rows.append(
            [
                f"{row['tokens']:,}",
                f"{speed['median']:,.0f} ({speed['min']:,.0f} – {speed['max']:,.0f})",
                f"{speed['median'] / base['tokens_per_second']['median']:.3f}",
                f"{memory / GIB:.2f} GiB",
                f"{memory / base['peak_memory_bytes']:.3f}",
                f"{row['compilations']}",
            ]
        )
    note = f"Config {result['config']}, {result['precision']}, {result['repeats']} rounds. {about(result)}.\n"
    return markdown(heads, rows) + "\n" + note


def precision(result: dict) -> str:
    """The table of `benchmarks.precision`."""
    heads, rows = ["layer", "relative error (norm)", "relative error (largest)"], []
    for layer, errors in enumerate(zip(result["relative_norm"], result["relative_largest"], strict=True)):
        rows.append([f"{layer}{' (word vectors)' if layer == 0 else ''}", *(f"{error:.1e}" for error in errors)])
    note = f"Model: {result['model']}; {result['tokens']:,} tokens. {about(result)}.\n"
    return markdown(heads, rows) + "\n" + note


def training(result: dict) -> str:
    """The table of `benchmarks.training`."""
    heads = ["system", "precision", "vocabulary", "seconds a step (min – max)", "tokens/s", "ratio", "memory"]
    heads += ["peak share", "forward", "backward", "update", "waiting for input"]
    base = next((row for row in result["systems"] if row["system"] == "bilm-tf"), result["systems"][0])
    rows = []
    for row in result["systems"]:
        seconds, ours = row["seconds"], "share_of_peak" in row
        whole = seconds["median"]
        parts = [""] * 5
        if ours:
            split = row["forward"], row["backward"] - row["forward"], max(whole - row["backward"], 0)
            parts = [f"{row['share_of_peak']:.0%}", *(f"{part / whole:.0%}" for part in split)]
            parts.append(f"{row['share_waiting_for_input']:.2%}")
        rows.append(
            [
                NAMES[row["system"]],
                row["precision"],
                f"{row['vocabulary_size']:,}",
                f"{whole:.2f} ({seconds['min']:.2f} – {seconds['max']:.2f})",
                f"{row['tokens_per_second']['median']:,.0f}",
                f"{base['seconds']['median'] / whole:.2f}",
                f"{row['peak_memory_bytes'] / GIB:.1f} GiB",
                *parts,
            ]
        )
    speeds = [row["input_tokens_per_second"] for row in result["systems"] if "input_tokens_per_second" in row]
    note = (
        f"Config {result['config']}, {result['rows']} rows of {result['window']} positions, {result['negatives']} "
        f"negatives, {result['repeats']} rounds of one step. Input pipeline alone: {min(speeds):,.0f} tokens/s. "
        f"{about(result)}.\n"
    )
    return markdown(heads, rows) + "\n" + note


def forms(result: dict) -> str:
    """The tables of `benchmarks.forms`, in billions of operations a second."""
    names = list(dict.fromkeys(row["form"] for row in result["forward"]))
    lines: dict[tuple, list[str]] = {}
    for row in result["forward"]:
        line = lines.setdefault((row["precision"], row["rows"]), [row["precision"], str(row["rows"])])
        line.append(f"{row['operations_per_second'] / 1e9:,.0f}")
    products: dict[str, list[str]] = {}
    for row in result["backward"]:
        line = products.setdefault(row["product"], [row["product"]])
        line.append(f"{row['operations_per_second'] / 1e9:,.0f}")
    forward = markdown(["precision", "rows", *names], list(lines.values()))
    backward = markdown(["product of the backward pass", "float32", "bfloat16"], list(products.values()))
    return f"{forward}\n{backward}\nBillions of operations a second. {about(result)}.\n"


def changes(result: dict) -> str:
    """The table of `benchmarks.changes`."""
    base, rows = result["changes"][0]["tokens_per_second"]["median"], []
    for row in result["changes"]:
        speed = row["tokens_per_second"]
        median = speed["median"]
        rows.append(
            [row["change"], f"{median:,.0f} ({speed['min']:,.0f} – {speed['max']:,.0f})", f"{median / base:.2f}"]
        )
    note = (
        f"Config {result['config']}, {result['precision']}, {result['tokens']:,} tokens, {result['distinct_words']:,} "
        f"distinct words, {result['repeats']} rounds. {about(result)}.\n"
    )
    return markdown(["change", "tokens/s (min – max)", "ratio"], rows) + "\n" + note


TABLES = {table.__name__: table for table in (embedding, text_length, precision, training, forms, changes)}


def table(path: Path) -> str:
    """The table of a result file."""
    result = json.loads(path.read_text())
    return TABLES[result["benchmark"]](result)


def update(text: str) -> str:
    """A Markdown text with its tables written anew."""
    return PLACES.sub(lambda place: place[1] + table(RESULTS / place[2]) + place[3], text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(update(Path(name).read_text()))
