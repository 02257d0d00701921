"""What the compilers of TPUs and GPUs say of the programs. No such machine is there: nothing runs, nothing is measured.

python -m benchmarks.compiled --topology v5e:2x4 --gpu h200
python -m benchmarks.compiled --topology v5e:16x16 --rows 128 --programs "training step"
"""

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import date
from itertools import chain
from math import ceil, prod
from pathlib import Path
from typing import Literal, NamedTuple

import tyro
from tqdm import tqdm

from benchmarks import operations, tables
from benchmarks.systems import RESULTS, ROOT, command, save
from elmo_jax.config import Config, Precision, load_config
from elmo_jax.errors import InputError, exit_on_bad_input

COMPILERS = ROOT / ".compilers"
VARIABLES = {
    "tpu": {"XLA_FLAGS": "", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
    "cuda": {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"},  # without a GPU XLA cannot choose the tiles of Triton
}
# English text: distinct words of a step for each position of both directions, characters of such a word (begin and
# end included), and which share of an embedding window's words has no vector yet.
DISTINCT_WORDS, WORD_LENGTH, NEW_WORDS = 0.25, 10, 0.2


class Chip(NamedTuple):
    """One device as JAX counts them: products of bfloat16 numbers that are added up in a cycle, cycles in a second.

    `axes` are those of a slice of many.
    """

    multiply_adds: int
    hertz: float
    axes: int


# By the makers' figures 275, 197, 459 and 918 TFLOP/s a chip; a v4 chip has two devices.
CHIPS = {
    "v4": Chip(4 * 128**2, 1.05e9, 3),
    "v5e": Chip(4 * 128**2, 1.5e9, 2),
    "v5p": Chip(8 * 128**2, 1.75e9, 3),
    "v6e": Chip(4 * 256**2, 1.75e9, 2),
}

# The code's `jax.named_scope`s: an operation belongs to the first of these that its name has.
SCOPES = ("char_cnn", "softmax", "weight_gradients", "lstm", "rows", "update")
WAYS = ("forward", "backward")
PARTS = (*SCOPES[:3], "lstm, products", "lstm, rest", *SCOPES[4:], "copies and filling", "other")

# Kinds of instructions: those that cost nothing, those that multiply matrices, those that only move numbers.
NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
PRODUCTS = {"dot", "convolution"}
MOVING = {"copy", "copy-start", "slice-start", "broadcast", "iota", "convert", "bitcast-convert", "reshape", "slice"}
MOVING |= {"transpose", "pad", "concatenate", "dynamic-slice", "dynamic-update-slice"}
# Kinds for which a TPU's compiler gives no estimate though they take their time. Nor does it for collectives.
WITHOUT_ESTIMATE = ("gather", "scatter", "sort", "reshape")
NOT_KNOWN = 2**63 - 1

PROGRAMS: tuple[Literal["training step", "embedding", "new words"], ...] = ("training step", "embedding", "new words")

COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")


class Operation(NamedTuple):
    """An instruction that is carried out `times` times, at `cost` each; `loops` are the trips of those around it.

    `part` is one of PARTS; `direction` one of WAYS, or "" where nothing is differentiated; `kinds` what it stands for,
    where it is a fusion several.
    """

    cost: int
    times: int
    part: str
    direction: str
    kind: str
    kinds: frozenset[str]
    shape: str
    op_name: str
    loops: tuple[int, ...]

    @property
    def total(self) -> int:
        return self.cost * self.times


def estimated_cycles(kind: str, line: str) -> int:
    """What a TPU's compiler takes an instruction to cost; 0 where it does not say (or says that it does not know)."""
    found = re.search(r'"estimated_cycles":"(\d+)"', line)
    return int(found[1]) if found and int(found[1]) != NOT_KNOWN else 0


def kernels(kind: str, line: str) -> int:
    """What an instruction is to a GPU: one kernel, copy or fill, or none; a product is taken to be one."""
    return int(kind not in NOTHING and not kind.endswith(("-done", "-update")))


def called(attribute: str, line: str) -> list[str]:
    """Names of the computations that an instruction calls as `attribute`."""
    found = re.findall(rf"\b(?:{attribute})=(\{{[^}}]*\}}|%?[\w.\-]+)", line)
    return re.findall(r"[\w.\-]+", ",".join(found))


class Program:
    """A compiled program's text. `unknown_trips`: how often loops go round whose end depends on data."""

    def __init__(self, text: str, cost: Callable[[str, str], int], unknown_trips: int):
        self.cost, self.unknown_trips = cost, unknown_trips
        self.computations: dict[str, list[str]] = {}
        for line in text.splitlines():
            if begin := COMPUTATION.match(line):
                lines = self.computations[begin[2]] = []
                if begin[1]:
                    self.entry = begin[2]
            elif INSTRUCTION.match(line):
                lines.append(line)

    def operations(self) -> list[Operation]:
        """All that is carried out; of a conditional the branch that costs most."""
        return self._operations(self.entry, (), "", "")

    def _operations(self, name: str, loops: tuple[int, ...], scope: str, direction: str) -> list[Operation]:
        """Those of a computation inside `loops`; what has no name of its own is named as what is around it."""
        found = []
        for line in self.computations[name]:
            _, shape, kind = INSTRUCTION.match(line).groups()
            op_name = (re.search(r'op_name="([^"]*)"', line) or ("", ""))[1]
            if kind in NOTHING or operations.HARDLY_EVER in op_name:
                continue
            around = scope_of(op_name) or scope, direction_of(op_name) or direction
            inside = functools.partial(self._operations, scope=around[0], direction=around[1])
            kinds = self._kinds(kind, line)
            about = part_of(around[0], kinds), around[1], kind, kinds, shape, op_name, loops
            if kind == "while":
                trips, known = self._trips(line), "known_trip_count" in line
                if not known:
                    found.append(Operation(0, trips * prod(loops), *about))
                for computation in called("body" if known else "condition|body", line):
                    found += inside(computation, (*loops, trips))
            elif kind == "conditional":
                found.append(Operation(0, prod(loops), *about))
                branches = called("branch_computations|true_computation|false_computation", line)
                found += max((inside(branch, loops) for branch in branches), key=total)
            elif kind == "call":
                found += inside(called("to_apply", line)[0], loops)
            else:
                found.append(Operation(self.cost(kind, line), prod(loops), *about))
        return found

    def _trips(self, line: str) -> int:
        """Trips of a loop: what the compiler says, or the constant that its condition compares with."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
            return int(known[1])
        *condition, root = self.computations[called("condition", line)[0]]
        for before in condition:
            limit = re.search(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", before)
            if limit and re.search(rf"[(%]{re.escape(limit[1])}[,)]", root):
                return int(limit[2])
        return self.unknown_trips

    def _kinds(self, kind: str, line: str) -> frozenset[str]:
        """Kinds of the instructions that an instruction stands for."""
        if re.search(r'custom_call_target="__(cublas|cudnn)', line):
            return frozenset({"dot"})
        inner = [inside for name in called("calls", line) for inside in self.computations[name]]
        kinds = (self._kinds(INSTRUCTION.match(inside)[3], inside) for inside in inner)
        return frozenset().union(*kinds) if inner else frozenset({kind})


def scope_of(op_name: str) -> str:
    """The scope that an operation's name has, or ""."""
    words = re.findall(r"\w+", op_name)
    return next((scope for scope in SCOPES if scope in words), "")


def part_of(scope: str, kinds: frozenset[str]) -> str:
    """One of PARTS."""
    if scope == "lstm":
        return "lstm, products" if PRODUCTS & kinds else "lstm, rest"
    return scope or ("copies and filling" if kinds <= MOVING | NOTHING else "other")


def direction_of(op_name: str) -> str:
    """Which way of differentiation an operation's name tells, or ""."""
    return "backward" if "transpose(jvp" in op_name else "forward" if "jvp(" in op_name else ""


def total(found: list[Operation]) -> int:
    return sum(operation.total for operation in found)


def by_part(found: list[Operation]) -> dict[str, dict[str, int]]:
    """Cost of each part that has any: {"forward": .., "backward": .., "all": ..}."""
    parts = {}
    for part in PARTS:
        own = [operation for operation in found if operation.part == part]
        if total(own):
            ways = {way: total([operation for operation in own if operation.direction == way]) for way in WAYS}
            parts[part] = ways | {"all": total(own)}
    return parts


def exchanged(program: Program) -> Counter[str]:
    """Bytes of every collective, once: on TPUs the fusions that run beside one repeat it, from its start to its end."""
    beside = lambda name, lines: name.startswith("async_collective") or any("AsyncCollectiveDone" in at for at in lines)
    own = [lines for name, lines in program.computations.items() if not beside(name, lines)]
    return operations.exchanged("\n".join(chain.from_iterable(own)))


def account(text: str, chip: Chip | None, useful: int, unknown_trips: int) -> tuple[dict, list[Operation]]:
    """What a program's text says: of a TPU's `chip` cycles, of a GPU (None) kernels; and all operations.

    `useful`: the multiplications and additions that cannot be left out, see `operations`.
    """
    program = Program(text, estimated_cycles if chip else kernels, unknown_trips)
    found = program.operations()
    told: dict = {"useful_operations": useful, "exchanged": exchanged(program), "parts": by_part(found)}
    if chip:
        missing: Counter[str] = Counter()
        for operation in found:
            if not operation.cost:
                missing.update({kind: operation.times for kind in WITHOUT_ESTIMATE if kind in operation.kinds})
                missing.update({"product": operation.times} if PRODUCTS & operation.kinds else {})
        cycles = total(found)
        share = useful / 2 / chip.multiply_adds / cycles
        told |= {"cycles": cycles, "seconds": cycles / chip.hertz, "share_of_peak": share}
        return told | {"without_estimate": missing}, found
    kinds: Counter[str] = Counter()
    for operation in found:
        kinds[operation.kind] += operation.total
    waits = sum(operation.times for operation in found if operation.kind in ("while", "conditional"))
    return told | {"kernels": total(found), "kinds": +kinds, "waits_for_the_host": waits}, found


def python_of(platform: str) -> Path:
    """The interpreter of the environment of a platform's compiler ("tpu", "cuda")."""
    python = COMPILERS / platform / "bin" / "python"
    if not python.exists():
        raise InputError(f"there is no {python}; run `make compilers`, which installs the compilers")
    return python


def ask(platform: str, **asked) -> tuple[dict, str]:
    """A worker's answer, in the environment of a platform's compiler, and the program's text."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"} | VARIABLES[platform]
    with tempfile.TemporaryDirectory() as name:
        text, answer = Path(name) / "text", Path(name) / "answer"
        worker = ROOT / "benchmarks" / "workers" / "compile_with_elmo_jax.py"
        started = [
            python_of(platform),
            "-W",
            "ignore",
            worker,
            json.dumps(asked | {"text": str(text), "answer": str(answer)}),
        ]
        done = subprocess.run(started, env=environment, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-4000:], file=sys.stderr)
            raise SystemExit(f"compiling the {asked['program']} failed; what the compiler said last is above")
        told = json.loads(answer.read_text(encoding="utf-8"))
        if "error" in told:
            raise InputError(f"{asked['machine']}: {told['error']}")
        return told, text.read_text(encoding="utf-8")


def distinct_words(positions: int, words: int | None) -> int:
    """Those of a training step of one device: `words`, or as many as are expected."""
    return words or ceil(DISTINCT_WORDS * 2 * positions)


def work_of(name: str, config: Config, told: dict, words: int | None, new_words: float) -> dict[str, int]:
    """What a program has to do: distinct words that it spells, useful operations, and how often it is called."""
    model, train, positions = config.model, config.train, told["rows"] * told["window"]
    if name == "training step":
        distinct = distinct_words(positions, words)
        useful = operations.of_training_step(model, positions, [(WORD_LENGTH, distinct)], train.negatives)
        return {"words": distinct, "useful_operations": useful, "calls": 1}
    if name == "embedding":
        return {"words": 0, "useful_operations": operations.of_lstms(model) * positions, "calls": 1}
    calls = ceil(new_words * positions / told["words_of_call"])
    useful = operations.of_word(model, WORD_LENGTH) * told["words_of_call"]
    return {"words": told["words_of_call"], "useful_operations": useful, "calls": calls}


def describe(name: str, told: dict, text: str, work: dict[str, int], chip: Chip | None, top: int) -> dict:
    """A line of the results; prints the `top` dearest operations."""
    trips = ceil(work["words"] / told["words_of_chunk"])
    accounted, found = account(text, chip, work["useful_operations"], trips)
    if top:
        tqdm.write(tables.dearest(f"{name}, {told['rows']} rows", found, top))
    kept = "rows", "window", "argument_bytes", "temporary_bytes", "code_bytes", "compile_seconds"
    return {"program": name} | {of: told[of] for of in kept} | work | accounted


def benchmark(
    topology: tuple[str, ...] = (),
    gpu: Literal["h200"] | None = None,
    config: str = "original",
    rows: tuple[int, ...] = (128, 512),
    vocabulary_size: int = 793_471,
    precision: Precision = "bfloat16",
    words: int | None = None,
    embedding_rows: int | None = None,
    new_words: float = NEW_WORDS,
    programs: tuple[Literal["training step", "embedding", "new words"], ...] = PROGRAMS,
    top: int = 0,
    output: Path = RESULTS,
) -> None:
    """Compiles the training step and the programs of embedding for machines that are not there, and reads the result.

    Of a TPU it tells the cycles that its compiler estimates, of a GPU the kernels that are launched, of both the
    memory. Nothing is run. `make compilers` installs the compilers.

    Args:
        topology: TPUs, as v5e:2x4: v5e and v6e from 2x2 to 16x16, v4 and v5p from 2x2x1.
        gpu: A GPU.
        config: Size of the model, a named config or a path.
        rows: Rows of sentences on each device; a training step is compiled for each number.
        vocabulary_size: Words of the softmax.
        precision: Inputs of the matrix products.
        words: Distinct words in a training step of one device. By default a quarter of the positions of both
            directions, as in English text: each direction reads every word once, and words repeat.
        embedding_rows: Rows of an embedding window; by default the most that the engine takes.
        new_words: Share of an embedding window's words that have no vector yet.
        programs: What to compile.
        top: Print so many of the dearest operations of each program, too.
        output: Folder of the JSON files, compiled-CONFIG-PRECISION-NAME.json.
    """
    machines = [*topology, *([gpu] if gpu else [])]
    if not machines:
        raise InputError("give --topology, as v5e:2x4, or --gpu h200")
    for name in topology:
        kind, _, shape = name.partition(":")
        sizes = [int(size) for size in shape.split("x")] if re.fullmatch(r"\d+(x\d+)*", shape) else []
        axes = CHIPS[kind].axes if kind in CHIPS else 0
        if len(sizes) != axes or min(sizes[:2]) < 2 or max(sizes) > 16 or any(size % 2 for size in sizes[:2]):
            raise InputError(
                f"--topology is {name}; give the chips of whole hosts, even numbers up to 16 along two axes (v5e:2x4, "
                "v6e:2x4) or three, of which the third may be 1 (v4:2x2x1, v5p:2x2x1)"
            )
    chosen = load_config(config, ROOT / "configs")
    if chosen.model.input != "characters" or chosen.train.softmax != "sampled":
        raise InputError(f"config {config} has no char CNN or no sampled softmax; only steps with both are described")
    platforms = {machine: "cuda" if machine == gpu else "tpu" for machine in machines}
    for platform in platforms.values():
        python_of(platform)  # says so at once where it is not there
    rows_of = lambda program: rows if program == "training step" else (embedding_rows,)
    cases = [(program, number) for program in programs for number in rows_of(program)]
    for machine, platform in platforms.items():
        chip, lines = CHIPS.get(machine.split(":")[0]), []
        for program, number in tqdm(cases, f"compiling for {machine}"):
            asked = {"program": program, "rows": number, "vocabulary_size": vocabulary_size, "precision": precision}
            asked["words"] = distinct_words((number or 1) * chosen.train.window, words)
            told, text = ask(platform, machine=machine, config=config, **asked)
            work = work_of(program, chosen, told, words, new_words)
            lines.append(describe(program, told, text, work, chip, top))
        about = {name: told[name] for name in ("compiler", "jax", "python")}
        about |= {"device": f"{told['devices']} x {told['device']}", "date": date.today().isoformat()}
        result = {
            "benchmark": "compiled",
            "command": command("compiled"),
            "machine": about,
            "name": machine,
            "config": config,
            "precision": precision,
            "vocabulary_size": vocabulary_size,
            "chip": chip and chip._asdict(),
            "programs": lines,
        }
        name = f"{machine.split(':')[0]}-{told['devices']}" if chip else machine
        save(output / f"compiled-{Path(config).stem}-{precision}-{name}.json", result)
        print(tables.compiled(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
