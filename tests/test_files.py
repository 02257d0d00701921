import os

import pytest
from conftest import metrics, same_file, write_project

import elmo_jax
import train
from elmo_jax import checkpoint, files, workdir
from elmo_jax.errors import InputError


@pytest.fixture
def as_object_store(monkeypatch):
    """Local paths, handled as those of an object store: no appending, no renaming, HDF5 by way of a local copy."""
    for module in (files, checkpoint, workdir):
        monkeypatch.setattr(module, "is_remote", lambda path: True)


def test_which_paths_are_remote():
    assert files.is_remote("gs://bucket/text")
    assert not files.is_remote("/data/text")


@pytest.mark.parametrize("remote", [False, True])
def test_files_appear_whole_or_not_at_all(tmp_path, remote, request):
    if remote:
        request.getfixturevalue("as_object_store")
    path = tmp_path / "file"
    with files.writing(path) as partial:
        partial.write_bytes(b"first")
        assert not path.exists()

    def fail():
        with files.writing(path) as partial:
            partial.write_bytes(b"second")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with files.reading(path) as local:
        assert local.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(InputError, match="cannot write"), files.writing(tmp_path / "no" / "file") as partial:
        partial.write_bytes(b"")


@pytest.mark.parametrize("remote", [False, True])
def test_matching(tmp_path, remote, request):
    if remote:
        request.getfixturevalue("as_object_store")
    for name in ("b.txt", "a.txt", "c.gz"):
        (tmp_path / name).write_text("")
    found = lambda pattern: [path.name for path in files.matching(f"{tmp_path}/{pattern}")]
    assert found("*.txt") == ["a.txt", "b.txt"]
    assert found("c.gz") == ["c.gz"]
    assert found("*.zip") == found("d.txt") == []


def test_a_run_in_an_object_store(tmp_path, as_object_store):
    project = write_project(tmp_path)
    command = [str(project / "mine.py"), "--workdir"]
    train.main([*command, str(project / "run"), "--train.steps", "3"])
    train.main([*command, str(project / "run")])
    train.main([*command, str(project / "whole")])
    steps = lambda run: [line for line in metrics(project / run) if "loss" in line]
    assert steps("run") == steps("whole")
    assert same_file(project / "run" / "model" / "weights.hdf5", project / "whole" / "model" / "weights.hdf5")
    assert elmo_jax.load(project / "run").embed(["w1 w2"])[0].shape == (2, 14)
