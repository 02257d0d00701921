"""What is read from compiled programs adds up, by hand and of real compilers where they are installed."""

import json
import subprocess
import sys
from math import ceil

import pytest
from conftest import ROOT, script_environment

from benchmarks import compiled, operations, tables
from elmo_jax import softmax_table
from elmo_jax.config import load_config

TPU, GPU = ((ROOT / "tests" / f"compiled_{name}.txt").read_text() for name in ("tpu", "gpu"))
V5E = compiled.CHIPS["v5e"]


def sums(forward: int, backward: int, everything: int) -> dict[str, int]:
    return {"forward": forward, "backward": backward, "all": everything}


def test_cycles_of_a_tpu():
    """20 positions of an LSTM, 5 chunks of words: of each the longer branch of a conditional, 700 + 800 not 1000."""
    cycles = 270_000 + 20 * (41_000 + 22_000 + 300) + 9_000 + 5 * (1_500 + 5_000) + 700_000 + 6_000 + 40 + 800_000
    told, found = compiled.account(TPU, V5E, useful=V5E.multiply_adds * cycles, unknown_trips=5)
    assert told["cycles"] == cycles == 3_083_540
    assert told["share_of_peak"] == 0.5
    assert told["seconds"] == cycles / 1.5e9
    assert told["parts"] == {
        "char_cnn": sums(0, 5 * 6_500, 5 * 6_500),  # its weight gradients and the copies of its branches too
        "softmax": sums(9_000, 0, 9_000),
        "weight_gradients": sums(0, 700_000, 700_000),
        "lstm, products": sums(20 * 41_000, 0, 20 * 41_000),
        "lstm, rest": sums(20 * 22_300, 0, 20 * 22_300),  # with a copy in the loop that has no name
        "update": sums(0, 0, 800_000),
        "copies and filling": sums(6_000, 0, 276_000),
        "other": sums(0, 40, 40),
    }
    assert sum(part["all"] for part in told["parts"].values()) == cycles
    assert told["without_estimate"] == {"gather": 1}
    assert {operation.loops for operation in found} == {(), (20,), (5,)}
    # The all-gather runs beside others: it stands in three places, and is one.
    assert told["exchanged"] == {"all-gather": 8 * 2 * 2560 * 4, "all-reduce": 4 * (1024 * 16384 + 16384)}


def test_products_without_an_estimate():
    """A compiler that does not know says 2^63 - 1: the cycles are a lower bound, and no share of the peak is given."""
    told, _ = compiled.account(
        TPU.replace('"estimated_cycles":"41000"', f'"estimated_cycles":"{2**63 - 1}"'), V5E, 1, unknown_trips=5
    )
    assert told["cycles"] == 3_083_540 - 20 * 41_000
    assert told["without_estimate"]["product"] == 20
    row = told | {"useful_operations": 1}
    columns = tables.columns_of({"chip": V5E._asdict()}, row)
    assert columns["cycles"] == "over 2.26 M"
    assert columns["peak share"] == "not known"


def test_loops_whose_end_depends_on_data():
    told = [compiled.account(TPU, V5E, useful=1, unknown_trips=trips)[0]["cycles"] for trips in (5, 7)]
    assert told[1] - told[0] == 2 * (700 + 800 + 5_000)


def test_kernels_of_a_gpu():
    """20 positions whose loop's end is known; 3 chunks: a condition, and two kernels where the branch is taken."""
    told, _ = compiled.account(GPU, None, useful=1, unknown_trips=3)
    assert told["kernels"] == 1 + 20 * 3 + 3 * (1 + 2) + 1 + 1 + 2
    assert told["parts"] == {
        "char_cnn": sums(0, 9, 9),
        "lstm, products": sums(20, 0, 20),
        "lstm, rest": sums(40, 0, 40),
        "rows": sums(0, 0, 1),
        "update": sums(0, 0, 2),  # in a command buffer
        "copies and filling": sums(0, 0, 2),
    }
    assert told["kinds"] == {"fusion": 32, "custom-call": 20, "copy": 20, "async-start": 1, "sort": 1}
    assert told["waits_for_the_host"] == 3 + 3  # whether there is another chunk, and which branch


def result_of(text: str, chip: compiled.Chip | None) -> dict:
    """A result whose programs are all one stored text."""
    told = {"rows": 3, "window": 7, "argument_bytes": 2**30, "temporary_bytes": 2**29, "code_bytes": 5}
    told |= {"compile_seconds": 11.0, "words_of_chunk": 256, "words_of_call": 2}
    config = load_config("tiny", ROOT / "configs")
    names = ("training step", "embedding", "new words")
    works = {name: compiled.work_of(name, config, told, None, 0.2) for name in names}
    programs = [compiled.describe(name, told, text, work, chip, top=0) for name, work in works.items()]
    machine = {"device": "8 x TPU", "compiler": "libtpu 1", "jax": "2", "python": "3", "date": "today"}
    about = {"config": "tiny", "precision": "bfloat16", "vocabulary_size": 13, "machine": machine, "name": "v5e:2x4"}
    return about | {"benchmark": "compiled", "chip": chip and chip._asdict(), "programs": programs}


def test_work_of_programs():
    step, embedding, new = result_of(TPU, V5E)["programs"]
    config = load_config("tiny", ROOT / "configs")
    words = ceil(2 * 3 * 7 / 4)
    assert step["words"] == words == 11
    assert step["useful_operations"] == operations.of_training_step(config.model, 21, [(10, words)], 512)
    assert embedding["useful_operations"] == 21 * operations.of_lstms(config.model)
    assert new["useful_operations"] == 2 * operations.of_word(config.model, 10)
    assert new["calls"] == ceil(0.2 * 21 / 2) == 3


def test_tables():
    first, note, second, unit = tables.compiled(result_of(TPU, V5E)).split("\n\n")
    assert "| training step, 3 x 7, 11 words | 3.06 M | 2.04 ms |" in first  # one chunk
    assert "| 1.00 GiB | 0.50 GiB | 0.0 MB | 67.3 MB | 11 s |" in first
    assert f"| a window with 3 x 2 new words | {3.05104 + 3 * 3.05754:.2f} M |" in first  # embedding spells none
    assert "| lstm, products | 0.82 |  | 0.82 | 0.82 | 0.82 |" in second
    assert "| in all | 1.28 | 0.71 | 3.06 | 3.05 | 3.06 |" in second
    assert all("By the compiler's account, not measured" in text for text in (note, unit))
    first, note, second, unit = tables.compiled(result_of(GPU, None)).split("\n\n")
    assert "| training step, 3 x 7, 11 words | 68 | 2 |" in first
    assert "| a window with 3 x 2 new words | 269 |" in first
    assert "| lstm, rest | 40 |  | 40 | 40 | 40 |" in second
    assert all("By the compiler's account, not measured" in text for text in (note, unit))


def test_dearest_operations():
    _, found = compiled.account(TPU, V5E, useful=1, unknown_trips=5)
    lines = tables.dearest("step", found, 2).splitlines()
    assert lines[2].startswith("| 820,000 | 20 | lstm, products | forward | 20 | fusion | (u16[128,4096]")
    assert lines[3].startswith("| 800,000 | 1 | update |  |  | fusion | f32[1024,16384]")
    assert len(lines) == 4


IMPOSSIBLE = "v9:2x2", "v5e", "v5e:1x1", "v5e:7x3", "v5e:1000x1000", "v4:2x2", "v5p:2x2x17", "v6e:0x2", "v5e:2x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --topology, as v5e:2x4, or --gpu h200"),
        *((["--topology", name], f"--topology is {name}; give the chips of whole hosts") for name in IMPOSSIBLE),
        (["--topology", "v5e:2x4"], "run `make compilers`"),
        (["--gpu", "h200"], "run `make compilers`"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiled, "COMPILERS", tmp_path)
    with pytest.raises(SystemExit) as end:
        compiled.main(arguments)
    printed = capsys.readouterr().err.strip()
    assert end.value.code == 2
    assert printed.startswith("error: ")
    assert message in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(("scope", "counted"), [("", [3, 5]), (f"{operations.HARDLY_EVER}/while/body/", [3])])
def test_what_is_hardly_ever_carried_out_is_not_counted(scope, counted):
    text = f"""ENTRY %main (x: f32[2,3]) -> f32[2,5] {{
  %a = f32[2,3]{{1,0}} all-to-all(%x), metadata={{op_name="jit(step)/rows/all_to_all"}}
  %b = f32[2,5]{{1,0}} all-to-all(%y), metadata={{op_name="jit(step)/rows/{scope}all_to_all"}}
}}"""
    assert operations.exchanged(text) == {"all-to-all": 4 * 2 * sum(counted)}
    assert len(compiled.Program(text, compiled.kernels, 1).operations()) == len(counted)


def installed(platform: str):
    there = (compiled.COMPILERS / platform).exists()
    return pytest.mark.skipif(not there, reason=f"no compiler for {platform}; `make compilers` installs it")


WORDS = 500_000


def run(tmp_path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.compiled", *arguments, "--config", "tiny", "--rows", "4"]
    command += ["--vocabulary_size", str(WORDS), "--embedding_rows", "8", "--output", tmp_path]
    return subprocess.run(command, cwd=ROOT, env=script_environment(), capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "name", "unit"),
    [
        pytest.param("--topology v5e:2x4", "v5e-8", "cycles", marks=installed("tpu")),
        pytest.param("--gpu h200", "h200", "kernels", marks=installed("cuda")),
    ],
)
def test_real_compilers(machine, name, unit, tmp_path):
    done = run(tmp_path, *machine.split())
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / f"compiled-tiny-bfloat16-{name}.json").read_text())
    assert tables.compiled(result) in done.stdout
    for program in result["programs"]:
        assert sum(part["all"] for part in program["parts"].values()) == program[unit] > 0
    step = result["programs"][0]
    named = set(step["parts"]) - {"copies and filling", "other"}
    assert named == set(compiled.PARTS[:-2])
    config = load_config("tiny", ROOT / "configs")
    table = 4 * WORDS * config.model.projection_dim // (8 if name == "v5e-8" else 1)
    assert step["temporary_bytes"] < table  # which is not copied
    if name == "v5e-8":
        size, words, rows = config.model.projection_dim, 2 * config.train.negatives, 4 * 8
        room = softmax_table.room(2 * 4 * 20, 8, softmax_table.table_size(WORDS, rows) // 8)
        # The biLM's gradients, those of the negatives' rows, their biases; losses and the norm, the number of rounds.
        float32 = operations.parameters(config.model) + words * (size + 1) + words + 3 + 1
        # The negatives' rows, which a product rounds anyway, come as bfloat16.
        assert step["exchanged"]["all-reduce"] == 4 * float32 + 2 * words * size
        assert step["exchanged"]["all-to-all"] == 4 * 8 * room * (1 + 2 * (size + 1))
        assert set(step["exchanged"]) == {"all-reduce", "all-to-all"}


PRODUCT = """
import sys, jax
from jax.experimental import topologies
device = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices[0]
x = jax.ShapeDtypeStruct((4096, 4096), "bfloat16", sharding=jax.sharding.SingleDeviceSharding(device))
print(jax.jit(lambda x, y: x @ y).lower(x, x).compile().as_text())
"""


@pytest.mark.slow
@installed("tpu")
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
def test_a_product_of_known_size(topology):
    """Its estimate is near its multiplications at the chip's peak: the figures of CHIPS are what the compiler means."""
    environment = script_environment() | compiled.VARIABLES["tpu"]
    command = [compiled.python_of("tpu"), "-c", PRODUCT, topology]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    chip = compiled.CHIPS[topology.split(":")[0]]
    told, _ = compiled.account(done.stdout, chip, useful=2 * 4096**3, unknown_trips=1)
    assert 0.85 < told["share_of_peak"] < 1
