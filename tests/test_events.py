"""The event file of a run: read by TensorBoard's format, without points that are lost or doubled."""

import json

import numpy as np
import pytest
from conftest import dying_at, metrics, same_file, write_project
from etils import epath
from tensorboardX.event_file_writer import EventFileWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

import train
from elmo_jax import events
from elmo_jax.events import NAME, Events


def points(folder):
    """Of every name the steps and values or texts of an event file, whose checksums must be right."""
    data, begin, found = (folder / "tensorboard" / NAME).read_bytes(), 0, {}
    while begin < len(data):
        length = int.from_bytes(data[begin : begin + 8], "little")
        event = data[begin + 12 : begin + 12 + length]
        for part, end in ((data[begin : begin + 8], begin + 8), (event, begin + 12 + length)):
            assert masked_crc32c(part) == int.from_bytes(data[end : end + 4], "little")
        begin += length + 16
        event = Event.FromString(event)
        assert event.wall_time > 1.7e9
        for value in event.summary.value:
            text = value.tensor.string_val
            found.setdefault(value.tag, []).append((event.step, text[0].decode() if text else value.simple_value))
    return found


def test_only_events_up_to_a_step_are_kept(tmp_path):
    """Those of later steps go, and what a kill has left of the last; written on, the file is as it would have been."""
    file = Events(epath.Path(tmp_path), True)
    for step in (2, 4, 6):
        file.add(step, {"loss": step / 2, "norm/words": 0.5})
    file.add_text(6, "words", "one")
    path = tmp_path / "tensorboard" / NAME
    path.write_bytes(path.read_bytes()[:-3])
    for step, kept in ((6, [2, 4, 6]), (5, [2, 4])):
        Events(epath.Path(tmp_path), True).keep(step)
        assert points(tmp_path) == {
            "loss": [(step, step / 2) for step in kept],
            "norm/words": [(step, 0.5) for step in kept],
        }
    file = Events(epath.Path(tmp_path), True)
    file.add(6, {"loss": 7.0})
    file.flush()
    assert [step for step, _ in points(tmp_path)["loss"]] == [2, 4, 6]


def test_records_are_those_of_other_writers(tmp_path):
    writer = EventFileWriter(str(tmp_path))
    writer.add_event(Event(step=3, wall_time=1.8e9))
    writer.close()
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    assert [(end, step) for end, step in events._records(data)][-1] == (len(data), 3)


def test_nothing_is_written_where_it_is_not_wanted(tmp_path):
    file = Events(epath.Path(tmp_path), False)
    file.add(1, {"loss": 1.0})
    file.add_text(1, "words", "one")
    file.flush()
    assert not list(tmp_path.iterdir())


def test_object_stores_are_written_when_a_checkpoint_is(tmp_path, monkeypatch):
    """They cannot append."""
    monkeypatch.setattr(events, "is_remote", lambda path: True)
    path = tmp_path / "tensorboard" / NAME
    path.parent.mkdir()
    file = Events(epath.Path(tmp_path), True)
    for step in (1, 2):
        file.add(step, {"loss": 0.5 * step})
        assert path.exists() == (step > 1)
        file.flush()
    assert points(tmp_path) == {"loss": [(1, 0.5), (2, 1.0)]}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A run with an event file, by Adam."""
    options = {"optimizer": "adam", "learning_rate": 0.01, "schedule": "linear", "decay_steps": 8, "tensorboard": True}
    folder = write_project(tmp_path_factory.mktemp("project"), **options)
    train.main([str(folder / "mine.py"), "--workdir", str(folder / "run")])
    return folder


def without_speed(found):
    return {name: values for name, values in found.items() if name != "tokens_per_second"}


def test_a_run_in_tensorboard(project):
    """All that metrics.jsonl has, norms that add up, and every word's loss."""
    rates = [line["learning_rate"] for line in metrics(project / "run") if "loss" in line]
    assert np.allclose(rates, 0.01 * (1 - np.arange(6) / 8))
    found = points(project / "run")
    for name in (
        "loss",
        "perplexity",
        "gradient_norm",
        "learning_rate",
        "heldout_perplexity",
        "heldout_perplexity_backward",
    ):
        expected = [(line["step"], line[name]) for line in metrics(project / "run") if name in line]
        assert [step for step, _ in found[name]] == [step for step, _ in expected]
        assert np.allclose([value for _, value in found[name]], [value for _, value in expected], rtol=1e-6)
    layers = ["words", "forward_0", "forward_1", "backward_0", "backward_1", "softmax"]
    of_step = lambda kind, number: [found[f"{kind}/{layer}"][number][1] for layer in layers]
    for number, (_, norm) in enumerate(found["gradient_norm"]):
        assert np.isclose(np.sqrt(np.sum(np.square(of_step("gradient_norm", number)))), norm, rtol=1e-5)
        assert min(of_step("parameter_norm", number)) > 0
    texts = found["heldout_word_losses/text_summary"]
    assert [step for step, _ in texts] == [0, 3, 6]
    forward, backward = texts[-1][1].split("\n\n")
    assert 4 < forward.count("`") == backward.count("`") <= 2 * events.SAMPLED
    assert "&lt;/S&gt;" in forward
    assert "&lt;S&gt;" in backward


@pytest.mark.slow
def test_going_on_the_points_are_those_of_one_run(project, tmp_path, monkeypatch):
    """Killed after step 5, when the newest checkpoint is that of step 4."""
    command = [str(project / "mine.py"), "--workdir", str(tmp_path)]
    with dying_at(monkeypatch, 6):
        train.main(command)
    assert max(step for step, _ in points(tmp_path)["loss"]) == 5
    train.main(command)
    assert without_speed(points(tmp_path)) == without_speed(points(project / "run"))
    assert metrics(tmp_path) == metrics(project / "run")
    for name in ("weights.hdf5", "softmax.hdf5"):
        assert same_file(tmp_path / "model" / name, project / "run" / "model" / name)


@pytest.mark.slow
def test_the_event_file_changes_nothing(project, tmp_path):
    """The same numbers with it and without; without it there is none, and what was undone is dropped all the same."""
    train.main([str(project / "mine.py"), "--workdir", str(tmp_path), "--train.no_tensorboard"])
    assert not (tmp_path / "tensorboard").exists()
    assert metrics(tmp_path) == metrics(project / "run")
    assert same_file(tmp_path / "model" / "weights.hdf5", project / "run" / "model" / "weights.hdf5")
    assert json.loads((tmp_path / "config.json").read_text())["train"]["tensorboard"] is False
