"""Training by several processes, and runs that are killed: as users have them, in processes of their own."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TOLERANCE, free_port, metrics, relative_error, same_file, script_environment, write_project

pytestmark = pytest.mark.slow


def start(project, workdir, *options, devices=1, compiled=None, code=None, **more):
    """Starts train.py, or some code in its place, in a process of its own."""
    environment = script_environment(devices)
    if compiled is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    script = ["train.py"] if code is None else ["-c", code]
    command = [sys.executable, *script, str(project / "mine.py"), "--workdir", str(workdir), *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes, **more)


def finish(process, code=0):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == code, output
    return output


def distributed(project, workdir, processes, devices, *options, each=None, code=None):
    """Processes that train together, with options that all have and perhaps some of their own."""
    address = f"localhost:{free_port()}"
    joined = lambda number: (
        *("--distributed.coordinator_address", address, "--distributed.num_processes", processes),
        *("--distributed.process_id", number, "--distributed.heartbeat_seconds", 10),
    )
    return [
        start(
            project,
            workdir,
            *joined(n),
            *options,
            *(each[n] if each else ()),
            devices=devices,
            code=code and code.format(number=n),
        )
        for n in range(processes)
    ]


def numbers(workdir, name):
    return [line[name] for line in metrics(workdir) if name in line]


@pytest.mark.parametrize("softmax", ["sampled", "full"])
def test_processes_and_devices_do_not_matter(tmp_path, softmax):
    """2 processes × 2 devices, 1 × 4, and 2 × 2 gone on with as 1 × 4 and as 1 × 1: the same losses."""
    project = write_project(tmp_path, softmax=softmax)
    alone = start(project, tmp_path / "alone", devices=4)
    finish(alone)
    names = ("loss", "gradient_norm", "heldout_perplexity", "heldout_perplexity_forward")

    def assert_same(workdir):
        for name in names:
            assert relative_error(numbers(workdir, name), numbers(tmp_path / "alone", name)) < TOLERANCE

    for process in distributed(project, tmp_path / "together", 2, 2):
        finish(process)
    assert_same(tmp_path / "together")
    assert {path.name for path in (tmp_path / "together" / "model").iterdir()} == {
        "options.json", "weights.hdf5", "softmax.hdf5", "vocab.txt"
    }  # fmt: skip
    for process in distributed(project, tmp_path / "later4", 2, 2, "--train.steps", 3):
        finish(process)
    subprocess.run(["cp", "-r", tmp_path / "later4", tmp_path / "later1"], check=True)
    finish(start(project, tmp_path / "later4", devices=4))
    finish(start(project, tmp_path / "later1", devices=1))
    assert_same(tmp_path / "later4")
    assert_same(tmp_path / "later1")


def test_a_dead_process_stops_the_others(tmp_path):
    """The survivor ends with an error within the heartbeat time; the same command goes on."""
    project = write_project(tmp_path, steps=10_000, checkpoint_every=5, eval_every=10_000)
    survivor, victim = distributed(project, tmp_path / "run", 2, 1)
    wait_for(lambda: len(numbers(tmp_path / "run", "loss")) > 10, (survivor, victim))
    victim.kill()
    killed = time.monotonic()
    victim.communicate()
    output = survivor.communicate(timeout=60)[0]
    assert time.monotonic() - killed < 30
    assert survivor.returncode != 0
    assert "error: lost the other processes" in output
    done = numbers(tmp_path / "run", "loss")
    for process in distributed(project, tmp_path / "run", 2, 1, "--train.steps", len(done) + 20):
        finish(process)
    assert len(numbers(tmp_path / "run", "loss")) == len(done) + 20


def test_hosts_that_disagree_are_told(tmp_path):
    """Another text, another config: every process ends with the reason, and nothing is left."""
    project = write_project(tmp_path)
    (tmp_path / "other.txt").write_text("w1 w2 w3\nw4\n")
    vocab = ["--data.vocab", tmp_path / "vocab.txt"]
    (tmp_path / "vocab.txt").write_text("\n".join(["<S>", "</S>", "<UNK>", *(f"w{n}" for n in range(40))]))
    for number, (options, reason) in enumerate(
        (
            ([*vocab, "--data.train", tmp_path / "other.txt"], "another text"),
            ([*vocab, "--train.learning_rate", "0.3"], "another config"),
        )
    ):
        workdir = tmp_path / f"run{number}"
        processes = distributed(project, workdir, 2, 1, each=[vocab, options])
        outputs = [finish(process, 2) for process in processes]
        assert all(f"process 1 has {reason} than process 0" in output for output in outputs), outputs
        assert not workdir.exists()


DAMAGED = """
import sys
from elmo_jax import checkpoint, commands, parallel
take_own_rows = parallel.take_own_rows
if {number} == 1:  # what it reads is not what it wrote, twice; then it reads the checkpoint before
    calls = iter(range(2))
    def damaged(tree):
        return take_own_rows(tree) if next(calls, None) is None else [leaf + 1 for leaf in tree[0][0]]
    parallel.take_own_rows = damaged
commands.main(["train", *sys.argv[1:]])
"""


def test_a_damaged_shard_of_one_process(tmp_path):
    """Only the second process' own rows are damaged: both go on from the checkpoint before, none waits."""
    project = write_project(tmp_path)
    for process in distributed(project, tmp_path / "run", 2, 1, "--train.steps", 4):
        finish(process)
    outputs = [finish(process) for process in distributed(project, tmp_path / "run", 2, 1, code=DAMAGED)]
    assert "the checkpoint of step 4 is damaged (another process cannot use it)" in outputs[0]
    assert "steps 3 to 6" in outputs[0]
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]


BUG = """
import sys
from elmo_jax import commands, training
draw = training.draw_negatives
def bug(config, size, step):
    if step == 3:
        raise ZeroDivisionError("a bug")
    return draw(config, size, step)
if {number} == 1:
    training.draw_negatives = bug
commands.main(["train", *sys.argv[1:]])
"""


def test_a_bug_in_one_process_is_told_as_it_is(tmp_path):
    """Its own traceback there; the other says that it has lost it."""
    project = write_project(tmp_path, steps=10_000)
    processes = distributed(project, tmp_path / "run", 2, 1, code=BUG)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert processes[1].returncode == 1
    assert "Traceback" in outputs[1]
    assert "ZeroDivisionError: a bug" in outputs[1]
    assert "lost the other processes" not in outputs[1]
    assert processes[0].returncode != 0
    assert "ZeroDivisionError" not in outputs[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(tmp_path, number):
    """A run that is told to end ends with a checkpoint of its last step; the end is that of the run left alone."""
    project = write_project(tmp_path, steps=60, checkpoint_every=1000, eval_every=1000)
    finish(start(project, tmp_path / "alone"))
    process = start(project, tmp_path / "run", "--train.steps", 100_000)
    wait_for(lambda: len(numbers(tmp_path / "run", "loss")) > 3, [process])
    process.send_signal(number)
    output = finish(process, 128 + number)
    steps = len(numbers(tmp_path / "run", "loss"))
    assert f"saved step {steps:,}" in output
    if steps < 60:
        finish(start(project, tmp_path / "run"))
        assert same_file(tmp_path / "run" / "model" / "weights.hdf5", tmp_path / "alone" / "model" / "weights.hdf5")


def test_sigterm_to_one_process_saves_on_all(tmp_path):
    project = write_project(tmp_path, steps=100_000, checkpoint_every=100_000, eval_every=100_000)
    processes = distributed(project, tmp_path / "run", 2, 1)
    wait_for(lambda: len(numbers(tmp_path / "run", "loss")) > 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [finish(process, 128 + signal.SIGTERM) for process in processes]
    assert "told to end: saved step" in outputs[0]


def wait_for(condition, processes):
    """Waits until the condition holds; the processes must live."""
    until = time.monotonic() + 120
    while True:
        try:
            if condition():
                return
        except (FileNotFoundError, ValueError):  # not there yet, or a line half written
            pass
        assert time.monotonic() < until
        assert all(process.poll() is None for process in processes), processes[0].communicate()[0]
        time.sleep(0.01)


def test_ten_kills_change_nothing(tmp_path):
    """Killed, interrupted or told to end at random moments: what is left in the end is that of the run left alone."""
    project = write_project(tmp_path, steps=1500, checkpoint_every=10, eval_every=50, dropout=0.2)
    begin = lambda name: start(project, tmp_path / name, compiled=tmp_path / "compiled")
    finish(begin("alone"))
    moments = random.Random(0)
    for _ in range(10):
        done = len(numbers(tmp_path / "run", "loss")) if (tmp_path / "run").exists() else 0
        process = begin("run")
        wait_for(lambda done=done: len(numbers(tmp_path / "run", "loss")) > done, [process])
        time.sleep(moments.uniform(0, 0.8))
        number = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        process.send_signal(number)
        process.communicate()
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    finish(begin("run"))
    for name in ("weights.hdf5", "softmax.hdf5"):
        assert same_file(tmp_path / "run" / "model" / name, tmp_path / "alone" / "model" / name)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "alone")
    assert np.isfinite(numbers(tmp_path / "run", "loss")).all()
