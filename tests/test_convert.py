"""bilm-tf's TensorFlow checkpoints. TensorFlow runs in a process of its own."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, TOLERANCE, metrics, place_on, relative_error, script_environment, to_host
from etils import epath

import elmo_jax
from elmo_jax import training
from elmo_jax.bundles import tree_of
from elmo_jax.config import load_config
from elmo_jax.corpus import Corpus, sentences
from elmo_jax.folders import read_folder
from elmo_jax.model import zero_state
from elmo_jax.parallel import fetch
from elmo_jax.streams import LanguageModelStream, word_encoder
from elmo_jax.vocabulary import Vocabulary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"),
]


def convert(*arguments):
    command = [sys.executable, "-m", "elmo_jax", "convert", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("trace", ["one_device", "two_devices"])
def test_one_more_step(golden, tmp_path, trace):
    """A step from the converted checkpoint is a step from the recorded final parameters and accumulators."""
    folder, texts = golden / "training" / trace, golden / "training" / "text"
    workdir = tmp_path / "run"
    done = convert(folder / "tf_checkpoint", workdir, "--vocab", texts / "a_vocab.txt", "--rows", 6)
    assert done.returncode == 0, done.stderr
    config = load_config(str(workdir / "config.json"), ROOT)
    model, vocabulary = config.model, Vocabulary.load(texts / "a_vocab.txt")

    parameters = tree_of(model, dict(np.load(folder / "final.npz")))
    accumulators = tree_of(model, dict(np.load(folder / "final_adagrad_accumulator.npz")))
    steps = json.loads((workdir / "config.json").read_text())["train"]["steps"]
    state = place_on(2, training.TrainState(np.int32(steps), parameters, accumulators), 6)
    corpus = Corpus(sentences([str(texts / "a_train.txt")], "TEXT"), vocabulary)
    encode = word_encoder(corpus, model)
    batch = next(LanguageModelStream(corpus, 6, config.train.window, encode, devices=2))
    step = training.step_on_devices(config, donate=False)
    lstm_state = jax.tree.map(lambda leaf: leaf.reshape(2, 3, -1), zero_state(model, 6))
    state, lstm_state, recorded = step(state, lstm_state, batch, np.arange(6, dtype=np.int32).reshape(2, 3), None)

    options = ["--data.train", texts / "a_train.txt", "--data.heldout", texts / "a_heldout.txt", "--data.no_shuffle"]
    command = [sys.executable, "train.py", workdir / "config.json", "--workdir", workdir, "--train.steps", steps + 1]
    subprocess.run(
        [*map(str, command + options), "--train.log_every", "1"], cwd=ROOT, check=True, env=script_environment(2)
    )
    found = read_folder(epath.Path(workdir), with_softmax=True)
    expected = to_host(2, state, len(vocabulary), 6).parameters
    for one, other in zip(
        jax.tree.leaves({"bilm": found.parameters, "softmax": found.softmax}), jax.tree.leaves(expected), strict=True
    ):
        assert relative_error(one, other) < TOLERANCE
    first, trained, last = metrics(workdir)
    assert (first["step"], trained["step"], last["step"]) == (steps, steps + 1, steps + 1)
    assert relative_error(trained["loss"], fetch(recorded).loss) < TOLERANCE


def test_the_converted_model_is_that_of_the_dump(golden, tmp_path):
    folder = golden / "training" / "one_device"
    convert(folder / "tf_checkpoint", tmp_path / "run", "--vocab", folder.parent / "text" / "a_vocab.txt")
    converted = elmo_jax.load(tmp_path / "run")
    dumped = elmo_jax.load(options=tmp_path / "run/model/options.json", weights=folder / "dumped_weights.hdf5")
    for one, other in zip(converted.embed(["a lobster ."]), dumped.embed(["a lobster ."]), strict=True):
        assert relative_error(one, other) < TOLERANCE


def test_bad_input(golden, tmp_path):
    folder, vocab = golden / "training" / "one_device", golden / "training" / "text" / "a_vocab.txt"
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("options.json", "checkpoint", "model.ckpt.index"):
        (tmp_path / "broken" / name).write_bytes((folder / "tf_checkpoint" / name).read_bytes())
    (tmp_path / "short.txt").write_text("<S>\n</S>\n<UNK>\n")
    for source, vocabulary, message in (
        (tmp_path / "empty", vocab, "there is no file"),
        (tmp_path / "broken", vocab, "has no whole TensorFlow checkpoint"),
        (folder / "tf_checkpoint", tmp_path / "short.txt", "has 3 words"),
    ):
        done = convert(source, tmp_path / "run", "--vocab", vocabulary)
        assert done.returncode == 2
        assert "error: " in done.stderr.splitlines()[-1]
        assert message in done.stderr.splitlines()[-1]
        assert not (tmp_path / "run").exists()
