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
    if not remote:  # an object store has no folders
        with files.writing(tmp_path / "new" / "folders" / "file") as partial:
            partial.write_bytes(b"first")
        assert (tmp_path / "new" / "folders" / "file").read_bytes() == b"first"
    with pytest.raises(InputError, match="cannot write"), files.writing(path / "file") as partial:
        partial.write_bytes(b"")


def test_errors_of_what_is_read_meanwhile_are_not_those_of_writing(tmp_path):
    for error in (PermissionError(13, "Permission denied", "input.txt"), OSError(5, "Input/output error")):
        with pytest.raises(OSError, match=r"Permission|Input/output") as raised, files.writing(tmp_path / "file"):
            raise error
        assert raised.value is error
    with pytest.raises(InputError, match=r"cannot write .*file \(No space"), files.writing(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    with (
        pytest.raises(InputError, match=r"cannot write .*file \(Permission"),
        files.writing(tmp_path / "file") as partial,
    ):
        raise PermissionError(13, "Permission denied", str(partial))
    assert not os.listdir(tmp_path)


def test_two_writers_of_one_file(tmp_path):
    with files.writing(tmp_path / "file") as one, files.writing(tmp_path / "file") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one"  # which ended last
    assert os.listdir(tmp_path) == ["file"]


def test_files_of_users_are_left_alone(tmp_path):
    """Whatever lies beside the output, and whatever name it has, is not the temporary file."""
    (tmp_path / "file.partial").write_text("mine")
    (tmp_path / "other.partial").symlink_to(tmp_path / "precious")
    for name in ("file", "other"):
        with files.writing(tmp_path / name) as partial:
            assert partial.parent == tmp_path
            assert partial.name.startswith(".")
            partial.write_text("new")
    assert (tmp_path / "file.partial").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "file.partial", "other", "other.partial"]
    mask = os.umask(0o027)
    try:
        with files.writing(tmp_path / "file"):
            pass
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_link_as_output_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/file")
    with files.writing(tmp_path / "link") as partial:
        assert partial.parent == tmp_path / "elsewhere"
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_text() == "new"


def test_an_interrupt_leaves_nothing(tmp_path):
    def interrupted():
        with files.writing(tmp_path / "file") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not os.listdir(tmp_path)


def test_outputs_that_are_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("the cat")
    (tmp_path / "link").symlink_to("text")
    (tmp_path / "loop").symlink_to("loop")
    os.link(tmp_path / "text", tmp_path / "same")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    for path, message in (
        (tmp_path, "it is a folder"),
        (tmp_path / "pipe", "a device, a pipe or a socket"),
        ("/dev/null", "a device, a pipe or a socket"),
        (tmp_path / "text" / "no" / "file", "cannot write"),
        (tmp_path / "text" / "file", "cannot write"),
        (tmp_path / "loop", "cannot write"),
        (tmp_path / ("x" * 300), "cannot write"),
        *((tmp_path / name, "is the file .*/text, which is read") for name in ("text", "link", "same")),
        ("gs://bucket/text", "is the file gs://bucket/text, which is read"),
    ):
        with pytest.raises(InputError, match=message):
            files.check_output(path, None, tmp_path / "text", "gs://bucket/text", tmp_path / "not there")
    files.check_output(tmp_path / "link", tmp_path / "not there")
    files.check_output(tmp_path / "new" / "folders" / "file")
    files.check_output("gs://bucket/new")
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who may write anywhere
    for name in ("new", "new/folders/file"):
        with pytest.raises(InputError, match=f"{tmp_path} is no folder that can be written to"):
            files.check_output(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == before


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


@pytest.mark.slow
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
