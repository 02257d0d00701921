"""The fuzzer: it begins with valid files, and finds what it looks for. What it found are tests of what was wrong."""

import contextlib
import importlib.util
import json
import subprocess
import sys

import pytest
from conftest import ROOT, script_environment

from elmo_jax.errors import InputError
from fuzz.seeds import write_seeds
from fuzz.targets import CHANGES, TARGETS, UNCHECKED, Finding, Runner, Target, changed

# Seeds that are refused as they are: values in other files.
REFUSED = {"external", "linked"}


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


@pytest.fixture
def run(seeds, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)  # and what it was, afterwards
    return lambda name: Runner(name, seeds, tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_valid(run, name):
    runner = run(name)
    for number in range(0, len(runner.files), 1 if len(runner.files) < 30 else 10):
        root, content = runner.roots[number], runner.contents[number]
        for data in (bytes([number]) + content, bytes([number | CHANGES])):
            assert (runner.run(data) is not None) == (root.name in REFUSED)
        assert runner.within[number].read_bytes() == content


@pytest.mark.parametrize("name", ["hdf5", "bundles", "archives", "allennlp"])
def test_changes_come_to_the_reader(run, name):
    """Some of them are refused and some do not matter; unchecked, others are."""
    runner = run(name)
    number = max(range(len(runner.files)), key=lambda number: len(runner.contents[number]))
    outcomes = {
        runner.run(bytes([first | number]) + (97 * place).to_bytes(3, "little") + b"\0\x11\0") is None
        for first in (CHANGES, CHANGES | UNCHECKED)
        for place in range(30)
    }
    assert outcomes == {True, False}


def test_changes():
    files = [b"", b"abcdefghijklm"]
    change = lambda place, kind, value: bytes([CHANGES | 1]) + place.to_bytes(3, "little") + bytes([kind]) + value
    assert changed(b"", files) == (0, b"")
    assert changed(b"\1new", files) == (1, b"new")
    assert changed(b"\x80" + bytes(6), files) == (0, b"")
    for place, kind, value, content in (
        (1, 0, b"XY", b"aXcdefghijklm"),
        (15, 1, b"XY", b"aXYdefghijklm"),
        (12, 2, b"XY", b"abcdefghijklX"),
        (1, 3, b"XY", b"a\0\0\0\0\0\0\0\0jklm"),
        (6, 4, b"XY", b"abcdef\xff\xff\xff\xff\xff\xff\xff"),
        (1, 5, b"\2Y", b"adefghijklm"),
        (13, 6, b"XY", b"abcdefghijklmXY"),
        (0, 7, b"\2\0", b"ababcdefghijklm"),
    ):
        assert changed(change(place, kind, value), files) == (1, content)


def test_what_is_found(run, monkeypatch):
    """Errors of other kinds, temporary files that stay, numbers from other files."""
    runner = run("mixes")

    def reads(read):
        runner.target = Target(read)
        runner.run(b"\0{}")

    def leaves(folder):
        (runner.temporary / "file").write_text("")

    def refuses(folder):
        raise InputError("it is wrong" * 1000)

    with pytest.raises(ZeroDivisionError):
        reads(lambda folder: 1 / 0)
    with pytest.raises(Finding, match="an error of 11000 characters"):
        reads(refuses)
    with pytest.raises(Finding, match="was left among temporary files"):
        reads(leaves)


def test_what_is_watched(tmp_path):
    """Python's own files may be read, those of the folder written; nothing else, and nothing is run."""
    pytest.importorskip("atheris")
    from fuzz.worker import Watch

    (tmp_path / "inside").mkdir()
    watch = Watch(tmp_path / "inside", str(ROOT / "fuzz"))
    watch.watching = True
    (tmp_path / "inside/file").write_text("")
    (tmp_path / "inside/file").unlink()
    open(json.__file__).close()
    assert watch.seen == []
    with contextlib.suppress(OSError):
        (tmp_path / "inside/../file").write_text("")
    with contextlib.suppress(OSError):
        open("/etc/hostname").close()
    subprocess.run([sys.executable, "-c", ""])
    (tmp_path / "file").unlink()
    watch.watching = False
    assert [seen.split()[0] for seen in watch.seen][:3] == ["open", "open", "subprocess.Popen"]
    assert watch.seen[-1] == f"os.remove {tmp_path / 'file'}"


@pytest.mark.slow
def test_all_targets_for_a_minute(tmp_path):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (the extra fuzz)")
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", "fuzz", "--minutes", "1", "--results", str(results)]
    ended = subprocess.run(command, cwd=ROOT, env=script_environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = json.loads(results.read_text())["targets"]
    assert set(counts) == set(TARGETS)
    assert all(count["executions"] > 20 and not count["findings"] for count in counts.values())
