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
NAMES = {"elmo_jax": "**this project**", "allennlp": "AllenNLP", "torch": "PyTorch, nn.LSTM"}
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


TABLES = {"embedding": embedding, "text_length": text_length}


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
