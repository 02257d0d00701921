"""A run's folder: one run at a time, what a damaged file says, and that a history is never dropped."""

import gc
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, fails, metrics, same_file, script_environment, write_project
from etils import epath

import train
from elmo_jax.config import differences, load_config
from elmo_jax.errors import InputError
from elmo_jax.workdir import Workdir

# TensorStore calls back into the event loop of a read that has failed already.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A run of 4 of 6 steps."""
    folder = write_project(tmp_path_factory.mktemp("project"), softmax="full")
    train.main([str(folder / "mine.py"), "--workdir", str(folder / "run"), "--train.steps", "4"])
    return folder


@pytest.fixture
def run(project, tmp_path):
    """A copy of that run, to damage and to go on with."""
    shutil.copytree(project / "run", tmp_path / "run")
    return tmp_path / "run"


def command(project, run, *options):
    return [str(project / "mine.py"), "--workdir", str(run), *options]


def test_one_run_at_a_time(tmp_path):
    first, second = (Workdir(epath.Path(tmp_path / "run")) for _ in range(2))
    with first.locked():
        with pytest.raises(InputError, match=f"process {os.getpid()} on .* is training in"), second.locked():
            pass
        (tmp_path / "run" / "config.json").write_text("{}")
    with second.locked():
        assert (tmp_path / "run" / "lock").exists()
    assert os.listdir(tmp_path / "run") == ["config.json"]


def test_a_folder_that_stays_empty_is_taken_away(tmp_path):
    with Workdir(epath.Path(tmp_path / "a" / "b")).locked():
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())


HOLD = """
import sys, time
from etils import epath
from elmo_jax.workdir import Workdir
with Workdir(epath.Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_dead_run_is_none(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match="is training in"), Workdir(epath.Path(tmp_path / "run")).locked():
        pass
    process.kill()
    process.communicate()
    with Workdir(epath.Path(tmp_path / "run")).locked():
        pass


@pytest.mark.slow
def test_two_commands_started_at_once(project, tmp_path):
    """In pairs: one trains to its end, the other says why it does not; no line is written twice."""
    for number in range(4):
        options = command(project, tmp_path / f"run{number}", "--train.steps", "300", "--train.eval_every", "300")
        start = lambda options=options: subprocess.Popen(
            [sys.executable, "train.py", *options],
            cwd=ROOT,
            env=script_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        errors = {process.returncode: error for process in [start(), start()] if (error := process.communicate()[1])}
        assert set(errors) == {0, 2}
        assert "is training in" in errors[2].splitlines()[-1]
        assert [line["step"] for line in metrics(tmp_path / f"run{number}") if "loss" in line] == list(range(1, 301))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('"8"', "has rows '8'"),
        ("null", "has rows 'None'"),
        ("8.0", "has rows '8.0'"),
        ("true", "has rows 'True'"),
        ("1000000000000", "has rows '1000000000000'"),
        ("-8", "has rows '-8'"),
        ("16", "another number of rows? Put back the config.json"),
        ("[" * 100_000 + "]" * 100_000, "config.json"),
        ("9" * 5000, "config.json"),
    ],
)
def test_wrong_rows_in_config_json(project, run, capsys, rows, message):
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"rows": 8', f'"rows": {rows}'))
    before = sorted(path for path in run.rglob("*"))
    fails(train.main, command(project, run), message, capsys)
    assert sorted(path for path in run.rglob("*")) == before
    (run / "config.json").write_text(text)
    train.main(command(project, run))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": None}, "a run of an earlier elmo_jax"),
        ({"format": 3}, "a run of another elmo_jax (format 3)"),
        ({"format": ["x" * 10**6]}, "a run of another elmo_jax (format ['xxx"),
    ],
)
def test_a_run_of_another_version_is_refused(project, run, tmp_path, capsys, changes, message):
    """Nothing of it is touched; a new run can begin from its model."""
    saved = json.loads((run / "config.json").read_text()) | changes
    saved = {name: value for name, value in saved.items() if value is not None}
    (run / "config.json").write_text(json.dumps(saved))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    printed = fails(train.main, command(project, run), message, capsys)
    assert f"--init {run} and another --workdir" in printed
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    if changes == {"format": None}:
        train.main([*command(project, tmp_path / "new"), "--init", str(run), "--train.steps", "1"])
        assert metrics(tmp_path / "new")[-1]["step"] == 1


def test_fields_that_config_json_lacks_have_their_defaults(project, run):
    """As in a run that began before there was such a field."""
    saved = json.loads((run / "config.json").read_text())
    del saved["train"]["profile"], saved["model"]["activation"], saved["data"]["shuffle"]
    (run / "config.json").write_text(json.dumps(saved))
    begun = Workdir(epath.Path(run)).begun()
    assert differences(begun.config, load_config(str(project / "mine.py"))) == ["train.steps is 6, was 4"]


def test_damaged_metrics_lines_are_passed_over(project, run):
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(b'\xff\xfe{"step"\n[1, 2]\n{"step": "4"}\n' + b"[" * 100_000 + b"\n" + whole)
    train.main(command(project, run))
    assert [line["step"] for line in metrics(run) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def flip(run, step):
    (data,) = (run / "checkpoints" / str(step) / "state" / "d").glob("*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def test_a_history_never_begins_anew(project, run, capsys, caplog):
    """Every checkpoint is damaged: an error, the same error at the next try, and all is as it was; no other noise."""
    for step in (3, 4):
        flip(run, step)
    contents = lambda: {
        path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "config.json"
    }
    before = contents()
    for _ in range(2):
        fails(train.main, command(project, run), "every checkpoint in", capsys)
        assert contents() == before
    gc.collect()
    assert [record.name for record in caplog.records] == []


@pytest.mark.parametrize("left", [["model"], ["damaged"], ["metrics.jsonl"]])
def test_a_history_without_checkpoints_is_refused(project, run, capsys, left):
    shutil.rmtree(run / "checkpoints")
    (run / "damaged" / "4.0").mkdir(parents=True)
    for name in {"model", "damaged", "metrics.jsonl"} - set(left):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if left == ["metrics.jsonl"]:
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "loss": 1.0}\n')
    before = sorted(run.rglob("*"))
    fails(train.main, command(project, run), "but no checkpoints; bring back checkpoints/", capsys)
    assert [path for path in sorted(run.rglob("*")) if path.name != "checkpoints"] == before


def test_a_read_that_fails_is_no_damage(project, run, capsys, monkeypatch):
    """While files cannot be read nothing is moved or dropped; when they can, the run goes on."""
    from elmo_jax import checkpoint

    reader = checkpoint._reader
    unreadable = monkeypatch.context()
    with unreadable as patch:

        class Failing:
            def restore(self, *_, **__):
                raise ValueError("PERMISSION_DENIED")

        patch.setattr(checkpoint, "_reader", Failing)
        patch.setattr(checkpoint, "_unreadable", lambda folder: f"{folder}: Input/output error")
        before = sorted(run.rglob("*"))
        fails(train.main, command(project, run), "cannot read the checkpoint of step 4", capsys)
        assert sorted(run.rglob("*")) == before
    failures = iter([OSError("for a moment")])

    def once():
        for error in failures:
            raise error
        return reader()

    monkeypatch.setattr(checkpoint, "_reader", once)
    train.main(command(project, run))
    assert not (run / "damaged").exists()
    assert [line["step"] for line in metrics(run) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_read_is_told(tmp_path, monkeypatch):
    from elmo_jax.checkpoint import _unreadable

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    assert _unreadable(epath.Path(tmp_path)) is None
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "link")
    assert "link" in _unreadable(epath.Path(tmp_path))


def test_damaged_metrics_of_a_checkpoint_do_not_matter(project, run):
    """Older versions wrote held-out perplexity into checkpoints; nothing reads it."""
    for step in (3, 4):
        folder = run / "checkpoints" / str(step) / "metrics"
        folder.mkdir()
        (folder / "metrics").write_bytes(b'{"heldout_perplexity": \xff')
    train.main(command(project, run))
    assert metrics(run)[-1]["step"] == 6


def test_a_converted_run_goes_on_after_it_was_stopped(project, tmp_path):
    """As a converted run is: no text in config.json, a vocabulary in model/; words that are not in it stay <UNK>."""
    run = tmp_path / "run"
    shutil.copytree(project / "run", run)
    saved = json.loads((run / "config.json").read_text())
    saved |= {"text": None, "data": saved["data"] | {"train": [], "heldout": []}}
    (run / "config.json").write_text(json.dumps(saved))
    (run / "vocab.txt").unlink()
    (run / "metrics.jsonl").unlink()
    (project / "new.txt").write_text((project / "train.txt").read_text() + "some new words w1\n" * 5)
    options = command(project, run, "--data.train", str(project / "new.txt"))
    train.main([*options, "--train.steps", "5"])
    train.main(options)
    assert [line["step"] for line in metrics(run) if "loss" in line] == [5, 6]
    assert len((run / "vocab.txt").read_text().splitlines()) == 43


@pytest.mark.slow
def test_an_early_end_changes_nothing(project, run, tmp_path):
    """Step 4 was measured as the last; the model in the end is that of a run that went on at once."""
    train.main(command(project, tmp_path / "alone"))
    train.main(command(project, run))
    for name in ("weights.hdf5", "softmax.hdf5"):
        assert same_file(run / "model" / name, tmp_path / "alone" / "model" / name)
    assert np.isfinite([line["loss"] for line in metrics(run) if "loss" in line]).all()
