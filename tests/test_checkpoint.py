import gc
import json
import math
import subprocess
import sys
import types

import conftest
import jax
import numpy as np
import pytest
from conftest import ROOT, metrics, same_file, script_environment, write_project
from etils import epath

import train
from elmo_jax import parallel, training
from elmo_jax.checkpoint import Checkpoint, Checkpoints, _check
from elmo_jax.errors import InputError

# TensorStore calls back into the event loop of a read or a write that has failed already.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def checkpoint(step, rows=8, broken=False):
    generator = np.random.default_rng(step)
    normal = lambda *shape: generator.normal(size=shape).astype(np.float32)
    shared = {"a": normal(2, 3), "b": (np.array(step, np.int32),)}
    shared["a"][0, 0] = np.inf if broken else 1.0
    state = parallel.replicate(shared) | {"c": parallel.shard(normal(16, 7))}
    state = parallel.join(state, {"a": None, "b": None, "c": 0})
    positions = np.arange(2 * rows, dtype=np.int32).reshape(rows, 2) + step
    return Checkpoint(
        step, state, {"lstm": parallel.join_rows(normal(rows, 5)), "position": parallel.join_rows(positions)}
    )


def assert_same(found, expected):
    assert found.step == expected.step
    for one, other in zip(jax.tree.leaves(found[1:]), jax.tree.leaves(expected[1:]), strict=True):
        assert one.dtype == other.dtype
        assert one.sharding == other.sharding
        assert (np.asarray(one) == np.asarray(other)).all()


@pytest.fixture(autouse=True)
def collected():
    """What a failed read has left behind is collected here, where the warning about it is passed over."""
    yield
    gc.collect()


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path / "checkpoints")


def test_newest_and_best_are_kept(folder):
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore(checkpoint(0)) is None
    for step in (1, 2, 3, 4, 5, 6):
        checkpoints.save(checkpoint(step))
        checkpoints.best_step = min(step, 2)
    checkpoints.close()
    checkpoints = Checkpoints(folder)
    assert {path.name for path in folder.iterdir()} == {"2", "5", "6"}
    assert checkpoints.steps() == [2, 5, 6]
    assert_same(checkpoints.restore(checkpoint(0)), checkpoint(6))
    checkpoints.close()


def test_saving_does_not_ask_whether_to_end(folder, monkeypatch):
    """Orbax would ask with the step, and JAX then agree to end at the next one: a number that is never asked."""
    asked = []
    monkeypatch.setattr(parallel.multihost_utils, "reached_preemption_sync_point", asked.append)
    save_two(folder)
    restore(folder)
    assert not asked


def save_two(folder):
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(checkpoint(step))
    checkpoints.close()


def restore(folder):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(checkpoint(0))
    finally:
        checkpoints.close()


def test_a_flipped_byte_is_never_restored_silently(folder, tmp_path, capsys):
    """One byte of each file of the newest checkpoint in turn: the right values, or the checkpoint before."""
    save_two(folder)
    files = sorted(path for path in (tmp_path / "checkpoints" / "2").rglob("*") if path.is_file())
    assert len(files) > 8
    fell_back = []
    for file in files:
        content = file.read_bytes()
        if not content:
            continue
        name = file.relative_to(tmp_path)
        for place in {0, len(content) // 2, len(content) - 1}:
            flipped = bytearray(content)
            flipped[place] ^= 0xFF
            file.write_bytes(flipped)
            capsys.readouterr()
            found = restore(folder)
            if found.step == 1:
                assert_same(found, checkpoint(1))
                assert "the checkpoint of step 2 is damaged" in capsys.readouterr().out
                fell_back.append(name)
                (moved,) = (tmp_path / "damaged").iterdir()
                moved.rename(tmp_path / "checkpoints" / "2")
            else:
                assert_same(found, checkpoint(2))
        file.write_bytes(content)
    assert_same(restore(folder), checkpoint(2))
    assert len(set(fell_back)) >= 4


def test_a_half_written_checkpoint_is_never_chosen(folder, tmp_path):
    save_two(folder)
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
    assert_same(restore(folder), checkpoint(1))


def test_only_damaged_checkpoints(folder, tmp_path):
    save_two(folder)
    for step in ("1", "2"):
        for file in (tmp_path / "checkpoints" / step / "progress").iterdir():
            file.write_bytes(b"{}")
    for _ in range(2):
        with pytest.raises(InputError, match=r"every checkpoint in .* is damaged"):
            restore(folder)
    assert not (tmp_path / "damaged").exists()
    assert {path.name for path in folder.iterdir()} == {"1", "2"}


def test_values_that_are_not_finite_are_refused(folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save(checkpoint(1, broken=True))
    with pytest.raises(InputError, match="after step 1 some parameters are not finite"):
        checkpoints.close()
    assert restore(folder) is None


def test_checksums_do_not_depend_on_the_devices():
    """Of an array divided among the devices and of the same on each of them; another value, another order: others."""
    values = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    changed, swapped = values.copy(), values.copy()
    changed.view(np.uint32)[3, 5] ^= 1
    swapped[[0, 1]] = values[[1, 0]]
    sums = [int(_check(parallel.join_rows(array)).checksum) for array in (values, changed, swapped)]
    assert sums[0] == int(_check(parallel.join(parallel.replicate(values), None)).checksum)
    assert len(set(sums)) == 3


def test_a_checkpoint_of_other_shapes_is_refused(folder):
    save_two(folder)
    checkpoints = Checkpoints(folder)
    with pytest.raises(InputError, match=r"has \['rows'\]\['lstm'\] .* another number of rows"):
        checkpoints.restore(checkpoint(0, rows=16))
    checkpoints.close()


@pytest.fixture
def project(tmp_path):
    return write_project(tmp_path, softmax="full")


def fails(project, message, capsys, *options):
    command = [project / "mine.py", "--workdir", project / "run", *options]
    return conftest.fails(train.main, command, message, capsys)


def test_a_step_that_is_not_finite_ends_the_run(project, capsys, monkeypatch):
    """With step, place in the data and the last good checkpoint; nothing is written over; the run can go on."""
    original = training.Metrics
    train.main([str(project / "mine.py"), "--workdir", str(project / "run"), "--train.steps", "3"])
    before = {path: path.read_bytes() for path in (project / "run" / "checkpoints").rglob("*") if path.is_file()}
    lines = (project / "run" / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(training, "Metrics", lambda losses, norm, *more: original(losses, norm / 0.0, *more))
        message = fails(project, "step 4 has loss", capsys)
    assert "gradient norm inf" in message
    assert "its batch ends near sentence" in message
    assert "The last good checkpoint is that of step 3" in message
    assert {path: path.read_bytes() for path in before} == before
    assert (project / "run" / "metrics.jsonl").read_bytes() == lines
    train.main([str(project / "mine.py"), "--workdir", str(project / "run")])
    assert [line["step"] for line in metrics(project / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_divergence_does_not_reach_the_model(project, capsys):
    fails(project, "step 2 has loss", capsys, "--train.learning_rate", "1e38", "--train.steps", "2")
    assert not (project / "run" / "model").exists()
    for line in metrics(project / "run"):
        assert all(value is None or math.isfinite(value) for value in line.values())


def test_another_text_is_refused(project, capsys):
    train.main([str(project / "mine.py"), "--workdir", str(project / "run"), "--train.steps", "2"])
    text = (project / "train.txt").read_text()
    for change in (text.replace("w3 ", "v3 "), text + "one more\n", "\n".join(text.splitlines()[:30])):
        (project / "train.txt").write_text(change)
        fails(project, "the text or the vocabulary is not that of the run", capsys)
    (project / "train.txt").unlink()
    fails(project, "there is no file", capsys)
    (project / "train.txt").write_text(text)
    train.main([str(project / "mine.py"), "--workdir", str(project / "run")])


def test_a_model_without_checkpoints_is_not_overwritten(project, capsys):
    train.main([str(project / "mine.py"), "--workdir", str(project / "run")])
    (project / "run" / "checkpoints").rename(project / "elsewhere")
    before = (project / "run" / "metrics.jsonl").read_bytes()
    fails(project, "(to step 6) but no checkpoints", capsys, "--train.steps", "7")
    assert (project / "run" / "metrics.jsonl").read_bytes() == before


def test_fewer_steps_than_are_done(project, capsys):
    train.main([str(project / "mine.py"), "--workdir", str(project / "run")])
    fails(project, "has done 6 steps; train.steps is 3", capsys, "--train.steps", "3")


def test_damage_is_survived_bit_for_bit(project, capsys):
    """The newest checkpoint of a stopped run is damaged: the run goes on from the one before, to the same end."""
    train.main([str(project / "mine.py"), "--workdir", str(project / "whole")])
    train.main([str(project / "mine.py"), "--workdir", str(project / "run"), "--train.steps", "4"])
    (newest,) = (project / "run" / "checkpoints" / "4" / "state" / "d").glob("*")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    train.main([str(project / "mine.py"), "--workdir", str(project / "run")])
    assert "the checkpoint of step 4 is damaged" in capsys.readouterr().out
    assert same_file(project / "run" / "model" / "weights.hdf5", project / "whole" / "model" / "weights.hdf5")


@pytest.mark.slow
def test_a_full_disk(project, capsys, monkeypatch):
    train.main([str(project / "mine.py"), "--workdir", str(project / "run"), "--train.steps", "2"])
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=1000))
        fails(project, "the disk has 1,000 left", capsys)
    train.main([str(project / "mine.py"), "--workdir", str(project / "run")])
    assert [line["step"] for line in metrics(project / "run") if "loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_write_that_fails(project):
    """No file may grow beyond a limit, as on a disk that fills up: one clear error, the last checkpoint intact."""
    command = [sys.executable, "train.py", str(project / "mine.py"), "--workdir", str(project / "run")]
    whole = [*command[:-1], str(project / "whole")]
    subprocess.run(whole, cwd=ROOT, check=True, capture_output=True, env=script_environment())
    subprocess.run(
        [*command, "--train.steps", "2"], cwd=ROOT, check=True, capture_output=True, env=script_environment()
    )
    limited = ["bash", "-c", 'ulimit -f 3; exec "$@"', "bash", *command]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, env=script_environment())
    assert done.returncode == 2, done.stderr
    assert any(line.startswith("error: cannot write a checkpoint") for line in done.stderr.splitlines())
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=script_environment())
    assert same_file(project / "run" / "model" / "weights.hdf5", project / "whole" / "model" / "weights.hdf5")
    assert json.loads((project / "run" / "config.json").read_text())["train"]["steps"] == 6
