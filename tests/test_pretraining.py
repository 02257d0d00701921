"""What training does beyond a plain run: starting from a model, going on, ending; compiling for other machines."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import (
    GOLDEN,
    ROOT,
    fails,
    free_port,
    metrics,
    relative_error,
    same_file,
    script_environment,
    write_project,
)

import train
from elmo_jax import __main__ as tools
from elmo_jax import lifecycle, pretraining, training
from elmo_jax.config import load_config
from elmo_jax.folders import read_folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A trained run, and another text of the same words and of others."""
    folder = write_project(tmp_path_factory.mktemp("project"), softmax="full")
    train.main([str(folder / "mine.py"), "--workdir", str(folder / "run")])
    words = [f"w{number}" for number in range(30, 60)]
    generator = np.random.default_rng(1)
    lines = [" ".join(generator.choice(words, generator.integers(1, 12))) for _ in range(60)]
    (folder / "other.txt").write_text("\n".join(lines))
    return folder


def heldout(workdir):
    return [line["heldout_perplexity"] for line in metrics(workdir) if "heldout_perplexity" in line]


def test_going_on_from_a_model_with_its_vocabulary(project, tmp_path, capsys):
    """The first perplexity is that of the model; training improves it; the result is a model folder again."""
    text = ["--data.train", str(project / "other.txt"), "--data.heldout", str(project / "other.txt")]
    command = [str(project / "mine.py"), "--workdir", str(tmp_path / "run"), "--init", str(project / "run")]
    train.main([*command, *text, "--train.steps", "30"])
    capsys.readouterr()
    tools.main(["perplexity", "--model", str(project / "run"), "--input", text[1], "--batch_size", "8"])
    before = float(capsys.readouterr().out.split()[1])
    measured = heldout(tmp_path / "run")
    assert relative_error(measured[0], before) < 1e-3
    assert measured[-1] < 0.9 * measured[0]
    folders = [read_folder(path, with_softmax=True) for path in (project / "run", tmp_path / "run")]
    assert folders[0].model == folders[1].model
    assert folders[0].vocabulary.words == folders[1].vocabulary.words
    assert folders[1].softmax["weight"].shape == folders[0].softmax["weight"].shape


@pytest.mark.slow
def test_going_on_from_a_model_with_another_vocabulary(project, tmp_path, capsys):
    """The softmax is fresh, with a message; the rest is the model's."""
    vocabulary = tmp_path / "vocab.txt"
    tools.main(["vocab", str(project / "other.txt"), "--output", str(vocabulary)])
    options = ["--data.train", project / "other.txt", "--data.vocab", vocabulary, "--init", project / "run"]
    options += ["--train.steps", "1", "--train.learning_rate", "1e-30"]
    train.main([str(project / "mine.py"), "--workdir", str(tmp_path / "run"), *map(str, options)])
    assert "--init has another vocabulary: the softmax starts from random weights" in capsys.readouterr().out
    old, new = (read_folder(path, with_softmax=True) for path in (project / "run", tmp_path / "run"))
    assert len(new.vocabulary) == 33
    assert new.softmax["weight"].shape == (33, 7)
    for module, arrays in old.parameters.items():
        for name, array in arrays.items():
            assert relative_error(new.parameters[module][name], array) < 1e-6


def test_options_that_contradict_the_model_to_start_from_are_named(project, tmp_path, capsys):
    command = [project / "mine.py", "--workdir", tmp_path / "run", "--init", project / "run", "--model.cell_dim", "13"]
    fails(train.main, command, "model.cell_dim is 13, was 11 there; leave these options out", capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_starting_from_two_files(project, tmp_path, capsys):
    files = [str(project / "run" / "model" / name) for name in ("options.json", "weights.hdf5")]
    options = ["--train.steps", "1", "--train.learning_rate", "1e-30"]
    train.main([str(project / "mine.py"), "--workdir", str(tmp_path / "run"), *options, "--init", *files])
    assert "the softmax starts from random weights" in capsys.readouterr().out
    with h5py.File(tmp_path / "run" / "model" / "weights.hdf5") as new, h5py.File(files[1]) as old:
        assert relative_error(new["CNN_proj/W_proj"][()], old["CNN_proj/W_proj"][()]) < 1e-6
    too_many = [project / "mine.py", "--workdir", tmp_path / "new", "--init", *files, files[0]]
    fails(train.main, too_many, "--init has 3 paths", capsys)


def test_a_folder_without_softmax(project, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    for name in ("options.json", "weights.hdf5"):
        (tmp_path / "model" / name).write_bytes((project / "run" / "model" / name).read_bytes())
    options = ["--init", str(tmp_path / "model"), "--train.steps", "1"]
    train.main([str(project / "mine.py"), "--workdir", str(tmp_path / "run"), *options])
    assert "the softmax starts from random weights" in capsys.readouterr().out


def test_gs_paths_need_their_extra(capsys, project):
    """Without gcsfs, one line says what to install."""
    if any(importlib.util.find_spec(name) for name in ("gcsfs", "tensorflow")):
        pytest.skip("object stores can be read here")
    with pytest.raises(SystemExit) as end:
        train.main([str(project / "mine.py"), "--workdir", "gs://bucket/run"])
    assert end.value.code == 2
    assert "install gcsfs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["embed", "--model", "gs://bucket/model", "--input", "text.txt", "--output", "out.hdf5"],
        ["embed", "--model", "model", "--input", "gs://bucket/text", "--output", "out.hdf5"],
        ["vocab", "gs://bucket/text", "--output", "vocab.txt"],
        ["perplexity", "--model", "gs://bucket/model", "--input", "text.txt"],
        ["nearest", "gs://bucket/out.hdf5", "--word", "a"],
        ["convert", "gs://bucket/source", "gs://bucket/dest", "--vocab", "vocab.txt"],
        ["export", "gs://bucket/run"],
    ],
)
def test_object_stores_in_every_command(capsys, monkeypatch, project, tmp_path, command):
    """The path arrives as it was given: the store is asked for it, here in vain."""
    if any(importlib.util.find_spec(name) for name in ("gcsfs", "tensorflow")):
        pytest.skip("object stores can be read here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("w1 w2")
    (tmp_path / "model").symlink_to(project / "run" / "model")
    fails(tools.main, command, "install gcsfs", capsys)
    fails(tools.main, [word.replace("gs:", "https:") for word in command], "https://bucket", capsys)


def test_bad_input_of_perplexity(project, capsys):
    command = ["perplexity", "--model", project / "run", "--input", project / "other.txt"]
    fails(tools.main, [*command, "--window", "0"], "window is 0; it must be 1 or more", capsys)
    fails(tools.main, [*command, "--options", "o.json"], "give --model, or --options and --weights", capsys)
    files = {name: project / "run" / "model" / f"{name}.hdf5" for name in ("weights", "softmax")}
    options = [option for name, path in files.items() for option in (f"--{name}", path)]
    options += ["--options", project / "run" / "model" / "options.json", "--vocab", project / "run" / "vocab.txt"]
    tools.main([str(word) for word in [*command[:1], *command[3:], *options, "--batch_size", "4"]])
    by_files = capsys.readouterr().out
    tools.main([str(word) for word in [*command, "--batch_size", "4"]])
    assert by_files == capsys.readouterr().out


def test_distributed_options_go_together(capsys, project, tmp_path):
    with pytest.raises(SystemExit) as end:
        train.main([str(project / "mine.py"), "--workdir", str(tmp_path), "--distributed.process_id", "1"])
    assert end.value.code == 2
    assert "give all three, or none" in capsys.readouterr().err


def command(project, workdir, *options):
    return [str(project / "mine.py"), "--workdir", str(workdir), *map(str, options)]


def test_when_something_is_due():
    """After 16 steps, at every doubling, then regularly."""
    due, steps = [], 0
    while steps < 400:
        steps = pretraining.next_due(steps, 100)
        due.append(steps)
    assert due == [16, 32, 64, 100, 200, 300, 400]
    assert [pretraining.next_due(step, 3) for step in (0, 2, 3, 17)] == [3, 3, 6, 18]
    assert pretraining.next_due(16, 20) == 20


def test_epochs_in_place_of_steps(project, tmp_path):
    train.main(command(project, tmp_path, "--train.epochs", "0.4"))
    config = load_config(str(project / "mine.py"))
    tokens = sum(len(line.split()) + 1 for line in (project / "train.txt").read_text().splitlines() if line)
    steps = -(-0.4 * tokens // (8 * config.train.window))
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == list(range(1, int(steps) + 1))


def test_epochs_and_steps_exclude_each_other(project, tmp_path, capsys):
    both = ["--train.epochs", "2", "--train.steps", "9"]
    fails(train.main, command(project, tmp_path / "run", *both), "train.steps is 9 and train.epochs 2.0", capsys)
    train.main(command(project, tmp_path / "run", "--train.epochs", "0.1"))
    fewer = command(project, tmp_path / "run", "--train.epochs", "0.05")
    fails(train.main, fewer, "train.steps is 1 (train.epochs 0.05), give more", capsys)


@pytest.mark.slow
def test_a_run_that_began_from_a_model_goes_on_without_it(project, tmp_path, capsys):
    """Neither the place of the model nor --init itself is needed again; a model for a run without one is refused."""
    wide = ["--model.cell_dim", "13", "--train.steps", "1"]
    train.main(command(project, tmp_path / "wide", *wide))
    (tmp_path / "wide").rename(tmp_path / "model")
    train.main(command(project, tmp_path / "run", "--init", tmp_path / "model", "--train.steps", "1"))
    (tmp_path / "model").rename(tmp_path / "moved")
    train.main(command(project, tmp_path / "run", "--init", tmp_path / "moved", "--train.steps", "2"))
    train.main(command(project, tmp_path / "run", "--train.steps", "3"))
    assert load_config(str(tmp_path / "run" / "config.json")).model.cell_dim == 13
    fails(train.main, command(project, project / "run", "--init", tmp_path / "moved"), "leave --init out", capsys)


def test_unknown_words_are_told(project, tmp_path, capsys):
    """A text of which the vocabulary lacks much, and the share of it in perplexity."""
    options = ["--data.train", project / "other.txt", "--init", project / "run", "--train.steps", "1"]
    train.main(command(project, tmp_path / "run", *options))
    words = (project / "other.txt").read_text().split()
    share = sum(int(word[1:]) >= 40 for word in words) / len(words)
    assert f"{share:.1%} of the training text's tokens are not in the vocabulary" in capsys.readouterr().out
    tools.main(["perplexity", "--model", str(project / "run"), "--input", str(project / "other.txt")])
    assert f", {share:.1%} <UNK>, state carry" in capsys.readouterr().out


@pytest.mark.slow
def test_the_text_may_have_moved(project, tmp_path, capsys):
    train.main(command(project, tmp_path / "run", "--train.steps", "2"))
    for name in ("train", "heldout"):
        shutil.copy(project / f"{name}.txt", tmp_path / f"moved-{name}.txt")
    moved = ["--data.train", tmp_path / "moved-train.txt", "--data.heldout", tmp_path / "moved-heldout.txt"]
    train.main(command(project, tmp_path / "run", *moved))
    assert metrics(tmp_path / "run")[-1]["step"] == 6
    (tmp_path / "moved-heldout.txt").write_text("w1 w2")
    fails(train.main, command(project, tmp_path / "run", *moved, "--train.steps", 7), "data.heldout differs", capsys)


@pytest.mark.slow
def test_a_batch_size_that_contradicts_the_run_is_named(project, tmp_path, capsys):
    train.main(command(project, tmp_path, "--train.steps", "2"))
    fails(train.main, command(project, tmp_path, "--train.batch_size", "3"), "was 8 rows in all", capsys)
    train.main(command(project, tmp_path))


def test_another_vocabulary_than_the_run_began_with(project, tmp_path, capsys):
    train.main(command(project, tmp_path / "run", "--train.steps", "2"))
    words = (tmp_path / "run" / "vocab.txt").read_text().splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join(words[::-1]))
    options = ["--data.vocab", tmp_path / "vocab.txt"]
    fails(
        train.main, command(project, tmp_path / "run", *options), "not the vocabulary that the run began with", capsys
    )


def test_the_model_is_there_early_and_is_the_best(project, tmp_path, monkeypatch):
    """model/ is written at every best held-out perplexity: here the second measurement of three."""
    measured = iter([90.0, 50.0, 40.0, 45.0])
    monkeypatch.setattr(pretraining, "evaluator", lambda *_, **__: lambda *_: pretraining_perplexity(next(measured)))
    train.main(command(project, tmp_path / "run", "--train.eval_every", "2", "--train.checkpoint_every", "1"))
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"4", "5", "6"}
    for options, step in (([], 6), (["--best"], 4), (["--step", "5"], 5)):
        tools.main(["export", str(tmp_path / "run"), "--output", str(tmp_path / f"step{step}"), *options])
    weights = lambda folder: tmp_path / folder / "weights.hdf5"
    assert same_file(weights("step4"), weights("run/model"))
    assert not same_file(weights("step5"), weights("run/model"))
    assert not same_file(weights("step5"), weights("step6"))
    assert (tmp_path / "step6" / "vocab.txt").read_bytes() == (tmp_path / "run" / "vocab.txt").read_bytes()


def test_early_stopping(project, tmp_path, monkeypatch, capsys):
    """After two measurements without a new lowest, wherever the run has been stopped between; with more patience on."""
    perplexities = {0: 30.0, 2: 50.0, 4: 40.0, 6: 45.0, 8: 40.0, 10: 39.0, 12: 41.0}
    due = iter(perplexities.values())
    monkeypatch.setattr(pretraining, "evaluator", lambda *_, **__: lambda *_: pretraining_perplexity(next(due)))
    options = ["--train.eval_every", "2", "--train.patience", "2", "--train.steps", "12"]
    train.main(command(project, tmp_path / "run", *options[:-1], "6"))
    for _ in range(2):  # the second time nothing is left to do
        train.main(command(project, tmp_path / "run", *options))
        assert "ended after step 8: train.patience 2 measurements" in capsys.readouterr().out
    assert heldout(tmp_path / "run") == [30.0, 50.0, 40.0, 45.0, 40.0]
    assert metrics(tmp_path / "run")[-1]["step"] == 8
    assert {"4", "8"} <= {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    train.main(command(project, tmp_path / "run", *options, "--train.patience", "3"))
    assert heldout(tmp_path / "run") == list(perplexities.values())


def test_early_stopping_needs_held_out_text(project, tmp_path, capsys):
    options = ["--train.patience", "2", "--data.heldout"]
    fails(train.main, command(project, tmp_path / "run", *options), "there is no held-out text to measure", capsys)
    assert not (tmp_path / "run").exists()


def pretraining_perplexity(value):
    from elmo_jax.evaluation import Perplexity

    return Perplexity(value, value, value)


def test_bad_input_of_export(project, tmp_path, capsys):
    fails(tools.main, ["export", project / "run", "--output", project], "holds files but no model", capsys)
    fails(tools.main, ["export", tmp_path], "not the folder of a training run", capsys)
    fails(tools.main, ["export", project / "run", "--step", "4711"], "no checkpoint of step 4711; it has", capsys)
    fails(tools.main, ["export", project / "run", "--step", "6", "--best"], "exclude each other", capsys)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_saves_first(project, tmp_path, monkeypatch, number):
    """At a step where an evaluation is due: the checkpoint is written, the evaluation is made up for afterwards."""
    draw = training.draw_negatives

    def tell(config, size, step):
        if step == 3:
            os.kill(os.getpid(), number)
        return draw(config, size, step)

    sampled = write_project(tmp_path, eval_every=1)
    train.main(command(sampled, tmp_path / "alone"))
    with monkeypatch.context() as patch:
        patch.setattr(training, "draw_negatives", tell)
        with pytest.raises(SystemExit) as end:
            train.main(command(sampled, tmp_path / "run"))
    assert end.value.code == 128 + number
    lines = metrics(tmp_path / "run")
    assert "loss" in lines[-1]  # no measurement came between the step and its checkpoint
    train.main(command(sampled, tmp_path / "run"))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "alone")
    assert same_file(tmp_path / "run/model/weights.hdf5", tmp_path / "alone/model/weights.hdf5")


@pytest.mark.slow
def test_told_to_end_within_an_evaluation(project, tmp_path, monkeypatch):
    """The evaluation ends at once; what it would have measured is measured when the run goes on."""
    until_requested = lifecycle.Termination.until_requested
    calls = []

    def tell(termination, batches):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return until_requested(termination, batches)

    train.main(command(project, tmp_path / "alone"))
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle.Termination, "until_requested", tell)
        with pytest.raises(SystemExit) as end:
            train.main(command(project, tmp_path / "run"))
    assert end.value.code == 128 + signal.SIGTERM
    assert metrics(tmp_path / "run")[-1]["step"] == 3
    train.main(command(project, tmp_path / "run"))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "alone")


def test_a_second_interrupt_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with lifecycle.Termination() as termination:
        os.kill(os.getpid(), signal.SIGINT)
        assert termination.requested()
        assert termination.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_everything_is_closed_when_a_step_fails(project, tmp_path, monkeypatch):
    """A bug in a step: its own traceback, no trace left open, the checkpoint before whole."""
    step_on_devices = training.step_on_devices

    def failing(config):
        step = step_on_devices(config)
        steps = iter(range(3))

        def work(*inputs):
            if next(steps, None) is None:
                raise ZeroDivisionError("a bug")
            return step(*inputs)

        return work

    with monkeypatch.context() as patch:
        patch.setattr(training, "step_on_devices", failing)
        with pytest.raises(ZeroDivisionError, match="a bug"):
            train.main(command(project, tmp_path, "--train.profile"))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}
    assert not (tmp_path / "profile").exists()
    assert not (tmp_path / "lock").exists()
    train.main(command(project, tmp_path, "--train.profile"))  # a trace can begin again
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


ALONE = """
import sys
import jax
from elmo_jax import commands, training
sys.path[:0] = ["tests"]
{patch}
commands.main(["train", {config!r}, "--workdir", {workdir!r}, "--distributed.coordinator_address", "localhost:{port}",
    "--distributed.num_processes", "1", "--distributed.process_id", "0"])
"""
BUG = """
def bug(*_, **__):
    raise ZeroDivisionError("a bug")
training.step_on_devices = lambda config: bug
"""


@pytest.mark.slow
def test_a_cluster_of_one_process_reports_errors_as_they_are(project, tmp_path):
    """As on a TPU VM with one host: a bug has its traceback, nothing is said of processes that were lost."""
    port = free_port()
    code = ALONE.format(patch=BUG, config=str(project / "mine.py"), workdir=str(tmp_path), port=port)
    environment = script_environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "ZeroDivisionError: a bug" in done.stderr
    assert "Traceback" in done.stderr
    assert "lost the other processes" not in done.stderr
    assert done.returncode == 1


LOWER = """
import functools, sys
import jax, numpy as np
from jax import export
sys.path[:0] = ["tests"]
from test_training import ROWS, WINDOW, config, corpus, initial_parameters
from conftest import SMALL
from elmo_jax import training
from elmo_jax.model import zero_state
from elmo_jax.streams import LanguageModelStream, word_encoder
assert jax.local_device_count() == 8
text, settings = corpus(), config(dropout=0.1, precision="bfloat16")
batch = next(LanguageModelStream(text, 16, WINDOW, word_encoder(text, SMALL), devices=8))
lstm_state = jax.tree.map(lambda leaf: leaf.reshape(8, 2, -1), zero_state(SMALL, 16))
state = training.place(training.init_state(initial_parameters()), 16)
inputs = state, lstm_state, batch, np.arange(16, dtype=np.int32).reshape(8, 2), training.draw_negatives(settings, 43, 1)
step = training.step_on_devices(settings, donate=False)
shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype), inputs)
for platform in ("tpu", "cuda"):
    lowered = export.export(jax.jit(lambda *inputs: step(*inputs)), platforms=[platform])(*shapes)
    print(platform, lowered.nr_devices, "all_reduce" in lowered.mlir_module())
"""


@pytest.mark.slow
def test_the_step_compiles_for_tpu_and_cuda():
    """As far as that goes without one: the step of 8 devices lowers for both."""
    environment = script_environment(8) | {"PYTHONPATH": str(ROOT), "ELMO_GOLDEN": "nowhere"}
    done = subprocess.run([sys.executable, "-c", LOWER], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["tpu 8 True", "cuda 8 True"]


@pytest.mark.slow
def test_fine_tuning_improves_perplexity_on_new_text(tmp_path):
    """The tiny model of the built-in text, taken on to English of other kinds."""
    english = GOLDEN.parent / "english"
    if not english.is_dir():
        pytest.skip(f"no text at {english}")
    run = lambda *options: subprocess.run(
        [sys.executable, "train.py", "tiny", *map(str, options)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env=script_environment(),
    )
    run("--workdir", tmp_path / "first", "--train.steps", 100)
    text = ["--data.train", english / "train-00000-of-00010.txt", "--data.heldout", english / "heldout.txt"]
    run("--workdir", tmp_path / "second", "--init", tmp_path / "first", *text, "--train.steps", 100)
    before, *_, after = heldout(tmp_path / "second")
    print(f"held-out perplexity {before:.1f} before, {after:.1f} after")
    assert after < 0.9 * before
    assert json.loads((tmp_path / "second" / "config.json").read_text())["text"]["init"] == str(tmp_path / "first")
