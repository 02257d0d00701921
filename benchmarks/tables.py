"""Prints results as tables and keeps those in Markdown files up to date.

    python -m benchmarks.tables README.md benchmarks/README.md benchmarks/SCALING.md

Between `<!-- table NAME.json -->` and `<!-- end -->` the table of results/NAME.json is written; `<!-- table NAME.json
PART ... -->` asks for a part of it, where its benchmark has parts.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

from benchmarks.systems import RESULTS

PLACES = re.compile(r"(<!-- table (\S+\.json)((?: \S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
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
                f"{1000 * row['latency_seconds']['median']:,.1f} ms" if row["latency_seconds"] else "as float32",
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


def output(result: dict) -> str:
    """The table of `benchmarks.output`."""
    heads, rows = ["what", "tokens/s (min – max)", "of embedding alone (min – max)", "written", "a second"], []
    for row in result["formats"]:
        speed, share = row["tokens_per_second"], row["of_embedding_alone"]
        written = row["format"] is not None
        rows.append(
            [
                f"into {row['format']}, {result['dtype']}" if written else "embedding alone",
                f"{speed['median']:,.0f} ({speed['min']:,.0f} – {speed['max']:,.0f})",
                f"{share['median']:.3f} ({share['min']:.3f} – {share['max']:.3f})",
                f"{row['bytes'] / 1e6:,.1f} MB" if written else "",
                f"{row['bytes_per_second'] / 1e6:,.1f} MB" if written else "",
            ]
        )
    note = (
        f"Config {result['config']}, {result['precision']}, {result['sentences']:,} sentences, {result['tokens']:,} "
        f"tokens, {result['repeats']} rounds. {about(result)}.\n"
    )
    return markdown(heads, rows) + "\n" + note


def output_memory(result: dict) -> str:
    """The table of `benchmarks.output_memory`."""
    heads = ["format", *(f"{count:,} sentences" for count in result["sentences"]), "last to the one before"]
    rows = []
    for row in result["formats"]:
        peaks = row["peak_memory_bytes"]
        rows.append([row["format"], *(f"{peak / 2**20:,.0f} MiB" for peak in peaks), f"{peaks[-1] / peaks[-2]:.3f}"])
    return markdown(heads, rows) + f"\nPeak memory of the process. Config {result['config']}. {about(result)}.\n"


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
    turns = "" if result.get("memory", {"together": True})["together"] else ", one system at a time"
    speeds = [row["input_tokens_per_second"] for row in result["systems"] if "input_tokens_per_second" in row]
    note = (
        f"Config {result['config']}, {result['rows']} rows of {result['window']} positions, {result['negatives']} "
        f"negatives, {result['repeats']} rounds of {result['steps']} steps{turns}. Input pipeline alone: "
        f"{min(speeds):,.0f} tokens/s. {about(result)}.\n"
    )
    return markdown(heads, rows) + "\n" + note


def curves(result: dict) -> str:
    """The table of `benchmarks.curves`: losses at some steps, and how far apart they are."""
    exact, rounded = (result["curves"][precision] for precision in ("float32", "bfloat16"))
    losses = exact["plain_loss"], exact["loss"], rounded["loss"]
    steps = len(exact["loss"])
    shown = [number for number in (1, 10, 30, 100, 300, 1000, 3000) if number < steps] + [steps]
    rows = [[f"{number:,}", *(f"{values[number - 1]:.5f}" for values in losses)] for number in shown]
    apart = [np.abs(np.divide(exact[f"plain_{name}"], exact[name]) - 1).max() for name in ("loss", "norm")]
    ends = [np.mean(run["loss"][-(steps // 10) :]) for run in (exact, rounded)]
    note = (
        f"Plain and float32 differ by {apart[0]:.1e} at most in the loss of a step, by {apart[1]:.1e} in the norm of "
        f"its gradient. Mean of the last {steps // 10} losses: float32 {ends[0]:.4f}, bfloat16 {ends[1]:.4f} "
        f"({ends[1] / ends[0] - 1:+.3%}). Config {result['config']}, {result['rows']} rows of {result['window']} "
        f"positions, {result['vocabulary_size']:,} words. {about(result)}.\n"
    )
    heads = ["step", "plain, of the same state", "float32", "bfloat16"]
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


def versions(result: dict) -> str:
    """The table of `benchmarks.versions`."""
    heads = ["what", "precision", "this", "the other", "other / this, pair by pair (min – max)", "processors' time"]
    rows = []
    for row in result["pairs"]:
        seconds = [f"{row[name]['median']:.3f} s" for name in ("seconds", "other_seconds")]
        spreads = row["ratio"], row["processor_ratio"]
        ratios = [f"{ratio['median']:.3f} ({ratio['min']:.3f} – {ratio['max']:.3f})" for ratio in spreads]
        rows.append([row["what"], row["precision"], *seconds, *ratios])
    note = (
        f"Medians of {result['repeats']} rounds; over 1: this is faster. This: {result['this']}, the other: "
        f"{result['other']}. Embedding {result['tokens']:,} tokens, a training step of {result['rows']} rows of "
        f"{result['window']} positions. Config {result['config']}. {about(result)}.\n"
    )
    return markdown(heads, rows) + "\n" + note


def scaling(result: dict) -> str:
    """The tables of `benchmarks.scaling`."""
    collectives = sorted({name for row in result["counted"] for name in row["exchanged"]})
    heads = ["vocabulary", "rows", "window", "devices", "precision", "distinct words", "operations"]
    heads += [*collectives, "state", "temporary"]
    rows = []
    for row in result["counted"]:
        sizes = [str(row[name]) for name in ("rows", "window", "devices", "precision")]
        exchanged = [f"{row['exchanged'].get(name, 0) / 1e6:,.1f} MB" for name in collectives]
        memory = [f"{row[name] / GIB:.2f} GiB" for name in ("state_bytes", "temporary_bytes")]
        counts = [f"{row['distinct_words']:,}", f"{row['operations'] / 1e12:.3f} T"]
        rows.append([f"{row['vocabulary_size']:,}", *sizes, *counts, *exchanged, *memory])
    text = markdown(heads, rows) + f"\nOf each device. Config {result['config']}. {about(result)}.\n\n"
    heads = ["machine", "device", "network", "input", "steps/s", "tokens/s", "ten epochs", "dollars"]
    rows, sums = [], []
    for row in result["predictions"]:
        parts = [row[f"{name}_seconds"] for name in ("device", "network", "input")]
        slow, fast = 1 / sum(parts), 1 / max(parts)
        hours = [result["run_tokens"] / (speed * row["tokens_per_step"]) / 3600 for speed in (fast, slow)]
        dollars = [time * row["devices"] * row["dollars_per_device_hour"] for time in hours]
        rows.append(
            [
                row["name"],
                *(f"{1000 * part:.1f} ms" for part in parts),
                f"{slow:.0f} – {fast:.0f}",
                f"{slow * row['tokens_per_step']:,.0f} – {fast * row['tokens_per_step']:,.0f}",
                f"{hours[0]:.2f} – {hours[1]:.2f} h",
                f"{dollars[0]:,.0f} – {dollars[1]:,.0f}",
            ]
        )
        exchanged = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in sorted(row["exchanged"].items()))
        sums.append(
            f"{row['name']}: device {row['cycles'] / 1e6:.2f} M cycles / {row['hertz'] / 1e6:,.0f} MHz "
            f"({row['share_of_peak']:.0%} of the peak); network {row['sent_bytes'] / 1e6:,.1f} MB / "
            f"{row['network_bytes_per_second'] / 1e9:.0f} GB/s ({exchanged}); "
            f"{row['dollars_per_device_hour']:.2f} dollars a device and hour\n"
        )
    note = f"Ten epochs are {result['run_tokens']:,} tokens.\n"
    return text + markdown(heads, rows) + f"\n{note}\n```\n{''.join(sums)}```\n"


def checkpoints(result: dict) -> str:
    """The table of `benchmarks.checkpoints`."""
    seconds = result["seconds"]
    rows = [
        [what, f"{found['median']:.2f} s", f"{found['min']:.2f} – {found['max']:.2f} s"]
        for what, found in seconds.items()
    ]
    note = (
        f"Config {result['config']}, {result['vocabulary_size']:,} words, {result['checkpoints']} checkpoints, one in "
        f"{result['every']} steps: the pause is {seconds['pause']['median'] / seconds['writing']['median']:.1%} of the "
        f"writing. {about(result)}.\n"
    )
    return markdown(["what", "seconds", "least – most"], rows) + "\n" + note


def pod(result: dict) -> str:
    """The tables of `benchmarks.pod`."""
    milliseconds = lambda found: (
        f"{1000 * found['median']:.1f} ms ({1000 * found['min']:.1f} – {1000 * found['max']:.1f})"
    )
    heads = ["hosts", "rows in all", "laying out", "words", "negatives", "in all", "tokens/s", "to the devices"]
    tokens, rows = result["devices_per_host"] * result["rows_per_device"] * result["window"], []
    for of in result["hosts"]:
        parts = [milliseconds(of[part]) for part in ("layout", "words", "negatives", "all")]
        speed, size = tokens / of["all"]["median"], of["bytes"]["median"]
        rows.append([str(of["hosts"]), f"{of['rows']:,}", *parts, f"{speed:,.0f}", f"{size / 1e6:.1f} MB"])
    alone, many = (of["all"]["median"] for of in result["hosts"])
    note = (
        f"Of each host for a step, on one core, median (least – most). Config {result['config']}, "
        f"{result['devices_per_host']} devices a host, {result['rows_per_device']} x {result['window']} on each, "
        f"{result['vocabulary_size']:,} words; {many / alone:.2f} times the work of a host alone. {about(result)}.\n"
    )
    text = f"{markdown(heads, rows)}\n{note}"
    if not result["starts"]:
        return text
    parts = list(next(iter(result["starts"].values()))["seconds"])
    heads, rows = ["start", *parts, "in all", "memory"], []
    for name, found in result["starts"].items():
        seconds = [found["seconds"][part] for part in parts]
        shown = [f"{second:.1f} s" for second in (*seconds, sum(seconds))]
        rows.append([name, *shown, f"{found['bytes'] / 1e9:.2f} GB"])
    found = result["starts"]["without the cache"]
    speed = found["tokens"] / found["seconds"]["text"]
    note = (
        f"Of one host of the pod, {found['tokens']:,} tokens, on one core: {speed:,.0f} tokens/s are turned into "
        "numbers. Memory is the process' own, that of mapped files is the system's.\n"
    )
    return f"{text}\n{markdown(heads, rows)}\n{note}"


def compiled(result: dict) -> str:
    """The tables of `benchmarks.compiled`: a line of each program, and the parts of all."""
    programs = result["programs"]
    heads = ["program", *columns_of(result, programs[0]), "arguments", "temporary", "code", "exchanged", "compiling"]
    rows = []
    for row in programs:
        memory = [f"{row[f'{name}_bytes'] / GIB:.2f} GiB" for name in ("argument", "temporary")]
        sizes = row["code_bytes"], sum(row["exchanged"].values())
        memory += [f"{size / 1e6:,.1f} MB" if size else "" for size in sizes]
        memory += [f"{row['compile_seconds']:.0f} s"]
        rows.append([program_name(row), *columns_of(result, row).values(), *memory])
    if programs[-1]["program"] != "training step":  # embedding, and its words without vectors
        window, new = programs[-2:]
        counts = ("cycles", "kernels", "waits_for_the_host", "useful_operations")
        whole = {of: window[of] + new["calls"] * new[of] for of in counts if of in window}
        whole["without_estimate"] = window.get("without_estimate", {}) | new.get("without_estimate", {})
        name = f"a window with {new['calls']} x {new['words']} new words"
        rows.append([name, *columns_of(result, whole).values(), *[""] * 5])
    note = (
        f"By the compiler's account, not measured: of each device. Config {result['config']}, {result['precision']}, "
        f"{result['vocabulary_size']:,} words. {result['machine']['compiler']}, {about(result)}.\n"
    )
    unit = "millions of cycles" if result["chip"] else "kernels"
    text = f"By the compiler's account, not measured: {unit} of each part.\n"
    return f"{markdown(heads, rows)}\n{note}\n{parts(result)}\n{text}"


def columns_of(result: dict, row: dict) -> dict[str, str]:
    """Columns of a program, by head."""
    useful = {"useful operations": f"{row['useful_operations'] / 1e12:.3f} T"}
    if chip := result["chip"]:
        seconds, products = row["cycles"] / chip["hertz"], row["cycles"] * chip["multiply_adds"]
        times = {"cycles": f"{row['cycles'] / 1e6:.2f} M", "time without exchange": f"{1000 * seconds:.2f} ms"}
        share = f"{row['useful_operations'] / 2 / products:.0%}"
        if row["without_estimate"].get("product"):
            times, share = {name: f"over {value}" for name, value in times.items()}, "not known"
        return times | useful | {"peak share": share}
    return {"kernels": f"{row['kernels']:,}", "waits for the host": f"{row['waits_for_the_host']:,}"} | useful


def program_name(row: dict) -> str:
    """What a program of `benchmarks.compiled` does."""
    shape = f"{row['rows']} x {row['window']}"
    step = f"training step, {shape}, {row['words']:,} words"
    return {"training step": step, "embedding": f"embedding, {shape}"}.get(row["program"], f"{row['words']} new words")


def parts(result: dict) -> str:
    """Cost of each part of the programs, where something is differentiated forward and backward, too."""
    heads, columns, programs = ["part"], [], result["programs"]
    for row in programs:
        name = f"{row['rows']} rows" if row["program"] == "training step" else row["program"]
        ways = ("forward", "backward", "all") if row["program"] == "training step" else ("all",)
        heads += [name if way == "all" else f"{name}, {way}" for way in ways]
        columns += [{part: costs[way] for part, costs in row["parts"].items()} for way in ways]
    number = lambda value: f"{value / 1e6:.2f}" if result["chip"] else f"{value:,}"
    names = dict.fromkeys(part for row in programs for part in row["parts"])
    rows = [[name, *(number(column[name]) if column.get(name) else "" for column in columns)] for name in names]
    rows.append(["in all", *(number(sum(column.values())) for column in columns)])
    return markdown(heads, rows)


def dearest(name: str, operations: list, top: int) -> str:
    """The operations that cost most, those of one name and shape together."""
    groups: dict[tuple, list[int]] = {}
    for operation in operations:
        key = operation.part, operation.direction, operation.loops, operation.kind, operation.shape, operation.op_name
        group = groups.setdefault(key, [0, 0])
        group[0], group[1] = group[0] + operation.total, group[1] + operation.times
    heads, rows = [f"{name}: cost", "times", "part", "direction", "loops", "kind", "shape", "operation"], []
    for key, (cost, times) in sorted(groups.items(), key=lambda item: -item[1][0])[:top]:
        part, direction, loops, kind, shape, op_name = key
        rows.append([f"{cost:,}", f"{times:,}", part, direction, "x".join(map(str, loops)), kind, shape, op_name])
    return markdown(heads, rows)


def recipes(result: dict) -> str:
    """The table of `benchmarks.recipes`: medians of all seeds, the lowest perplexity first."""
    steps = result["steps"]
    shown = [*(number * (steps // 4) for number in (1, 2, 3)), steps]
    heads = ["recipe", "options", *(f"after {step:,} steps" for step in shown), "of the published"]
    of_seeds = lambda name, step: [
        run["heldout_perplexity"][str(step)] for run in result["runs"] if run["recipe"] == name
    ]
    names = dict.fromkeys(run["recipe"] for run in result["runs"])
    at = lambda name, step: float(np.median(of_seeds(name, step)))
    short = lambda value, digits: f"{value:,.{digits}}" if value < 1e5 else f"{value:.1e}"
    base, rows = at(next(iter(names)), steps), []
    for name in sorted(names, key=lambda name: at(name, steps)):
        options = next(run["options"] for run in result["runs"] if run["recipe"] == name)
        perplexities = [short(at(name, step), "1f") for step in shown]
        options = f"`{options.replace('--train.', '')}`" if options else "as published"
        rows.append([name, options, *perplexities, short(at(name, steps) / base, "2f")])
    seeds = sorted({run["seed"] for run in result["runs"]})
    note = (
        f"Held-out perplexity. Config {result['config']}, {result['rows']} rows of {result['window']} positions, "
        f"{result['precision']}, seeds {', '.join(map(str, seeds))}. {about(result)}.\n"
    )
    return markdown(heads, rows) + "\n" + note


def quality(result: dict) -> str:
    """The table of `benchmarks.quality`: a line for each seed, then the means."""
    seeds = sorted({run["seed"] for run in result["runs"]})
    heads, rows = ["held-out perplexity (forward, backward)", "bilm-tf", "this project", "ratio"], []
    for seed in seeds:
        of_seed = {run["system"]: run["heldout_perplexity"] for run in result["runs"] if run["seed"] == seed}
        theirs, ours = of_seed["bilm-tf"], of_seed["elmo_jax"]
        cells = [f"{one['both']:.1f} ({one['forward']:.1f}, {one['backward']:.1f})" for one in (theirs, ours)]
        rows.append([f"seed {seed}", *cells, f"{ours['both'] / theirs['both']:.3f}"])
    mean = result["mean"]
    rows.append(["**mean**", f"{mean['bilm-tf']:.1f}", f"{mean['elmo_jax']:.1f}", f"{result['ratio']:.3f}"])
    note = (
        f"Config {result['config']}, {result['words']:,} words (full softmax), {result['rows']} rows of "
        f"{result['window']} positions, {result['steps']:,} steps. {about(result)}.\n"
    )
    return markdown(heads, rows) + "\n" + note


def knowledge(result: dict, evaluation: str | None = None, task: str | None = None) -> str:
    """Tables of `benchmarks.knowledge`: for each evaluation and task (or one, with hyphens for spaces) a line for each
    data, metric and system, a column for each vectors. And the perplexities, which are the evaluation "training".
    """
    found = []
    for name, figures in result["figures"].items():
        tasks = list(dict.fromkeys(figure["task"] for figure in figures))
        found += [
            (f"{name}, {of}", [figure for figure in figures if figure["task"] == of])
            for of in tasks
            if evaluation in (None, name) and task in (None, of.replace(" ", "-"))
        ]
    lines = [(f"**{title}**\n\n" if len(found) > 1 else "") + figures_of(figures) for title, figures in found]
    if evaluation in (None, "training"):
        measured = result["heldout_perplexity"]
        heads = ["step", *(f"{int(step):,}" for step in measured)]
        lines.append(markdown(heads, [["held-out perplexity", *(f"{value:,.1f}" for value in measured.values())]]))
        options = f"`{result['options']}`; {result['tokens_per_second']:,.0f} tokens/s at the end. {about(result)}.\n"
        lines.append(options)
    return "\n".join(lines)


def figures_of(figures: list[dict]) -> str:
    """Figures of one task: a line for each data, metric and system, a column for each vectors."""
    columns = list(dict.fromkeys(figure["vectors"] for figure in figures if figure["vectors"] != "none"))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for figure in figures:
        of = tuple(figure[name] for name in ("data", "metric", "system"))
        bounds = "" if figure["low"] is None else f" ({figure['low']:.3f} – {figure['high']:.3f})"
        value = "none" if figure["value"] is None else f"{figure['value']:.3f}{bounds}"
        rows.setdefault(of, {})[figure["vectors"]] = value
    cells = [[*of, *(found.get(column, found.get("none", "")) for column in columns)] for of, found in rows.items()]
    return markdown(["data", "metric", "system", *columns], cells)


def embedder(result: dict) -> str:
    """The table of `benchmarks.embedder`."""
    heads, rows = ["a step", "seconds (min – max)", "ratio (min – max)", "tokens/s", "temporary memory"], []
    for row in result["ways"]:
        seconds, ratio = row["seconds"], row["ratio"]
        rows.append(
            [
                row["way"],
                f"{seconds['median']:.3f} ({seconds['min']:.3f} – {seconds['max']:.3f})",
                f"{ratio['median']:.2f} ({ratio['min']:.2f} – {ratio['max']:.2f})",
                f"{result['tokens'] / seconds['median']:,.0f}",
                f"{row['temporary_bytes'] / 2**20:,.0f} MiB",
            ]
        )
    note = (
        f"Config {result['config']}, {result['precision']}, {result['parameters'] / 1e6:.1f} M parameters; "
        f"{result['rows']} rows of {result['positions']} positions, {result['tokens']:,} tokens, "
        f"{result['distinct_words']:,} distinct words; {result['repeats']} rounds, ratios within each. "
        f"{about(result)}.\n"
    )
    return markdown(heads, rows) + "\n" + note


TABLES = {
    table.__name__: table
    for table in (
        embedding,
        embedder,
        text_length,
        output,
        output_memory,
        precision,
        training,
        curves,
        forms,
        changes,
        versions,
        scaling,
        checkpoints,
        pod,
        recipes,
        quality,
        knowledge,
        compiled,
    )
}


def table(path: Path, parts: str = "") -> str:
    """The table of a result file, or of parts of it."""
    result = json.loads(path.read_text())
    return TABLES[result["benchmark"]](result, *parts.split())


def update(text: str) -> str:
    """A Markdown text with its tables written anew."""
    return PLACES.sub(lambda place: place[1] + table(RESULTS / place[2], place[3]) + place[4], text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(update(Path(name).read_text()))
