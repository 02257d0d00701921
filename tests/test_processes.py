"""Training by several processes, and runs that are killed: as users have them, in processes of their own."""

import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TOLERANCE, free_port, metrics, relative_error, same_file, script_environment, write_project

pytestmark = pytest.mark.slow
# Seconds after which a process that is not heard of is taken for dead.
HEARTBEAT = 20


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


def distributed(project, workdir, processes, devices, *options, each=None, code=None, compiled=None):
    """Processes that train together, with options that all have and perhaps some of their own."""
    address = f"localhost:{free_port()}"
    joined = lambda number: (
        *("--distributed.coordinator_address", address, "--distributed.num_processes", processes),
        *("--distributed.process_id", number, "--distributed.heartbeat_seconds", HEARTBEAT),
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
            compiled=compiled,
        )
        for n in range(processes)
    ]


def ended(processes, since):
    """What processes that must fail have printed; they end within the heartbeat time of a moment."""
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert since is None or time.monotonic() - since < HEARTBEAT
    assert all(process.returncode != 0 for process in processes), outputs
    return outputs


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


@pytest.mark.parametrize("count", [2, 4])
def test_a_dead_process_stops_the_others(tmp_path, count):
    """The survivors end with an error within the heartbeat time; the same command goes on."""
    project = write_project(tmp_path, steps=10_000, checkpoint_every=5, eval_every=10_000)
    *survivors, victim = distributed(project, tmp_path / "run", count, 1)
    wait_for(lambda: len(numbers(tmp_path / "run", "loss")) > 10, (*survivors, victim))
    victim.kill()
    for output in ended(survivors, time.monotonic()):
        assert "lost the other processes" in output
    victim.communicate()
    done = numbers(tmp_path / "run", "loss")
    for process in distributed(project, tmp_path / "run", count, 1, "--train.steps", len(done) + 20):
        finish(process)
    assert len(numbers(tmp_path / "run", "loss")) == len(done) + 20


def test_the_death_of_the_first_process_stops_the_others(tmp_path):
    """JAX's service, by which processes watch over each other, dies with it; so does what waits for that."""
    project = write_project(tmp_path, steps=10_000, checkpoint_every=5, eval_every=10_000)
    victim, survivor = distributed(project, tmp_path / "run", 2, 1)
    wait_for(lambda: len(numbers(tmp_path / "run", "loss")) > 10, (victim, survivor))
    victim.kill()
    (output,) = ended([survivor], time.monotonic())
    assert "lost the other processes" in output or "the leader task was preempted/died" in output
    victim.communicate()


DIFFERENT = """
import sys
import jax
from elmo_jax import commands, parallel
if {number} == 1:
    {change}
commands.main(["train", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("options", "change", "name"),
    [
        (["--data.train", "{folder}/other.txt"], None, "text"),
        (["--train.learning_rate", "0.3"], None, "config"),
        ([], "jax.__version__ = '0.0.1'", "JAX"),
        ([], "parallel.code_checksum = lambda: 5", "version of elmo_jax"),
    ],
)
def test_hosts_that_disagree_are_told(tmp_path, options, change, name):
    """Every process ends with the reason, and no run is begun; the same folder takes a right one."""
    project, workdir = write_project(tmp_path), tmp_path / "run"
    (tmp_path / "other.txt").write_text("w1 w2 w3\nw4\n")
    (tmp_path / "vocab.txt").write_text("\n".join(["<S>", "</S>", "<UNK>", *(f"w{n}" for n in range(40))]))
    vocab = ["--data.vocab", tmp_path / "vocab.txt"]
    options = [option.format(folder=tmp_path) for option in options]
    code = change and DIFFERENT.replace("{change}", change)
    processes = distributed(project, workdir, 2, 1, *vocab, each=[[], options], code=code)
    host = socket.gethostname()
    for process in processes:
        output = finish(process, 2)
        assert f"process 1 (host {host}) has another {name} than process 0 (host {host})" in output
    assert {path.name for path in workdir.iterdir()} <= {"errors"}
    for process in distributed(project, workdir, 2, 1, *vocab, "--train.steps", 1):
        finish(process)
    assert not (workdir / "errors").exists()


DAMAGED = """
import sys
from elmo_jax import checkpoint, commands, parallel
read = checkpoint.Checkpoints._read
calls = iter(range(2))
def damaged(checkpoints, step, like):  # twice; then it reads the checkpoint before
    progress, values = read(checkpoints, step, like)
    if next(calls, None) is not None:
        {damage}
    return progress, values
if {number} == 1:
    checkpoint.Checkpoints._read = damaged
commands.main(["train", *sys.argv[1:]])
"""
CHANGED = 'values["rows"]["position"] = parallel.join_rows(parallel.own_part(values["rows"]["position"]) + 1)'


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (CHANGED, "the checksums of ['rows']['position'] differ"),
        ('raise ValueError("no such chunk")', "another process cannot use it"),
    ],
)
def test_a_damaged_shard_of_one_process(tmp_path, damage, reason):
    """Only what the second process reads is damaged: both go on from the checkpoint before, none waits."""
    project = write_project(tmp_path)
    for process in distributed(project, tmp_path / "run", 2, 1, "--train.steps", 4):
        finish(process)
    code = DAMAGED.replace("{damage}", damage)
    outputs = [finish(process) for process in distributed(project, tmp_path / "run", 2, 1, code=code)]
    assert f"the checkpoint of step 4 is damaged ({reason})" in outputs[0]
    assert "steps 3 to 6" in outputs[0]
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]


FAILING = """
import sys
import jax
from elmo_jax import commands, training
draw = training.draw_negatives
def failing(config, size, step):
    if step == 3:
        raise {error}
    return draw(config, size, step)
if {number} == {failing}:
    training.draw_negatives = failing
commands.main(["train", *sys.argv[1:]])
"""
BUG = 'ZeroDivisionError("a bug")'
MEMORY = 'jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.")'


@pytest.mark.parametrize(
    ("count", "failing", "error", "code", "reason"),
    [
        (2, 1, BUG, 1, "ZeroDivisionError: a bug"),
        (2, 0, BUG, 1, "ZeroDivisionError: a bug"),
        (4, 2, BUG, 1, "ZeroDivisionError: a bug"),
        (2, 1, MEMORY, 2, "not enough memory: RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.; a smaller"),
        (2, 0, "FileNotFoundError(2, 'No such file', 'x')", 2, "[Errno 2] No such file: 'x'"),
    ],
)
def test_what_fails_in_one_process_is_told_by_all(tmp_path, count, failing, error, code, reason):
    """Its own error there, a bug with its trace; the others say whose it is and what; the next start goes on."""
    project = write_project(tmp_path, checkpoint_every=1, eval_every=10_000)
    injected = FAILING.replace("{error}", error).replace("{failing}", str(failing))
    processes = distributed(project, tmp_path / "run", count, 1, code=injected)
    outputs = ended(processes, None)
    own = outputs.pop(failing)
    assert processes[failing].returncode == code
    assert f"error: {reason}" in own
    assert ("Traceback" in own) == (error == BUG)
    for output in outputs:
        assert f"error: process {failing} on {socket.gethostname()} has ended: {reason}" in output
    assert not any("lost the other processes" in output for output in (own, *outputs))
    for process in distributed(project, tmp_path / "run", count, 1):
        finish(process)
    assert len(numbers(tmp_path / "run", "loss")) == 6
    assert not (tmp_path / "run" / "errors").exists()


def test_a_file_that_one_host_lacks(tmp_path):
    """While the other, which has it, is still reading: it is ended, too."""
    project = write_project(tmp_path)
    slow = """
import sys, time
from elmo_jax import commands, pretraining
read = pretraining.read_corpora
def slowly(*arguments):
    time.sleep(20 if {number} == 0 else 0)
    return read(*arguments)
pretraining.read_corpora = slowly
commands.main(["train", *sys.argv[1:]])
"""
    missing = ["--data.heldout", tmp_path / "missing.txt"]
    processes = distributed(project, tmp_path / "run", 2, 1, each=[[], missing], code=slow)
    outputs = [finish(process, 2) for process in processes]
    assert "missing.txt" in outputs[1]
    assert f"error: process 1 on {socket.gethostname()} has ended: " in outputs[0]
    assert "missing.txt" in outputs[0]


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


@pytest.mark.parametrize("checkpoint_every", [1, 100_000])
def test_sigterm_to_one_process_saves_on_all(tmp_path, checkpoint_every):
    """Be it while a checkpoint is being written."""
    project = write_project(tmp_path, steps=100_000, checkpoint_every=checkpoint_every, eval_every=100_000)
    processes = distributed(project, tmp_path / "run", 2, 1)
    wait_for(lambda: len(numbers(tmp_path / "run", "loss")) > 3, processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [finish(process, 128 + signal.SIGTERM) for process in processes]
    assert "told to end: saved step" in outputs[0]


def test_sigterm_within_an_evaluation(tmp_path):
    """It ends before its next window on all; the checkpoint before it stays, the run goes on with the evaluation."""
    project = write_project(tmp_path, steps=4, checkpoint_every=100, eval_every=2)
    slow = """
import sys, time
from elmo_jax import commands, lifecycle
until_requested = lifecycle.Termination.until_requested
calls = iter(range(1, 100))
def slowly(termination, items):
    if next(calls) == 2:  # the evaluation after step 2
        print("evaluating", flush=True)
        items = (time.sleep(1) or item for item in items for _ in range(200))
    return until_requested(termination, items)
lifecycle.Termination.until_requested = slowly
commands.main(["train", *sys.argv[1:]])
"""
    processes = distributed(project, tmp_path / "run", 2, 1, code=slow)
    wait_for(lambda: 2 in numbers(tmp_path / "run", "step"), processes)
    time.sleep(3)
    processes[1].send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    outputs = [finish(process, 128 + signal.SIGTERM) for process in processes]
    assert time.monotonic() - signalled < 20
    assert "told to end: saved step 2" in outputs[0]
    for process in distributed(project, tmp_path / "run", 2, 1):
        finish(process)
    assert [line["step"] for line in metrics(tmp_path / "run") if "heldout_perplexity" in line] == [0, 2, 4]


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


def prepare_tfds(folder, lines):
    """A dataset `lines`, with a split train, in the format that is read without TensorFlow."""
    import tensorflow_datasets as tfds

    class Lines(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": ((number, {"text": line}) for number, line in enumerate(lines))}

        def _generate_examples(self):
            raise NotImplementedError

    Lines(data_dir=str(folder), file_format="array_record").download_and_prepare()


@pytest.mark.parametrize(("source", "count", "kills"), [("files", 1, 10), ("tfds", 1, 3), ("files", 2, 5)])
def test_kills_change_nothing(tmp_path, monkeypatch, source, count, kills):
    """Killed, interrupted or told to end at random moments: what is left in the end is that of the run left alone."""
    project = write_project(tmp_path, steps=1500, checkpoint_every=10, eval_every=50, dropout=0.2)
    options = []
    if source == "tfds":
        prepare_tfds(tmp_path, (project / "train.txt").read_text().split("\n"))
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        options = ["--data.train", "tfds:lines/train"]

    def begin(name):
        if count == 1:
            return [start(project, tmp_path / name, *options, compiled=tmp_path / "compiled")]
        return distributed(project, tmp_path / name, count, 1, *options, compiled=tmp_path / "compiled")

    for process in begin("alone"):
        finish(process)
    moments = random.Random(0)
    for _ in range(kills):
        done = len(numbers(tmp_path / "run", "loss")) if (tmp_path / "run").exists() else 0
        processes = begin("run")
        wait_for(lambda done=done: len(numbers(tmp_path / "run", "loss")) > done, processes)
        time.sleep(moments.uniform(0, 0.8))
        number = moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        victim = moments.choice(processes)
        victim.send_signal(number)
        for process in processes:
            process.communicate()
        assert victim.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert all(process.returncode for process in processes)
    for process in begin("run"):
        finish(process)
    for name in ("weights.hdf5", "softmax.hdf5"):
        assert same_file(tmp_path / "run" / "model" / name, tmp_path / "alone" / "model" / name)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "alone")
    assert np.isfinite(numbers(tmp_path / "run", "loss")).all()
