"""Models from one form into another, and runs of bilm-tf to go on with."""

import dataclasses
import itertools
import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from conftest import ROOT, SMALL, TOLERANCE, fails, metrics, place_on, relative_error, script_environment, to_host
from etils import epath

import elmo_jax
from elmo_jax import training
from elmo_jax.bundles import tree_of
from elmo_jax.commands import main
from elmo_jax.config import load_config
from elmo_jax.corpus import Corpus, sentences
from elmo_jax.folders import read_folder
from elmo_jax.model import zero_state
from elmo_jax.modules import init_bilm
from elmo_jax.parallel import fetch
from elmo_jax.streams import LanguageModelStream, word_encoder
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import ModelFolder, write_folder, write_model


@pytest.fixture(scope="module", autouse=True)
def in_use():
    """All devices stay this process's, though the command would leave them to others."""
    jax.devices()


def convert(*arguments):
    main(["convert", *map(str, arguments)])


def go_on_with(run, workdir, *arguments):
    """Converts a run in a process of its own, where JAX has one device."""
    command = [sys.executable, "-m", "elmo_jax", "convert", run, workdir, "--vocab", *arguments]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("trace", ["one_device", "two_devices"])
def test_one_more_step(golden, tmp_path, trace):
    """A step from the converted checkpoint is a step from the recorded final parameters and accumulators."""
    folder, texts = golden / "training" / trace, golden / "training" / "text"
    workdir = tmp_path / "run"
    go_on_with(folder / "tf_checkpoint", workdir, texts / "a_vocab.txt", "--rows", 6)
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


@pytest.mark.slow
def test_the_converted_model_is_that_of_the_dump(golden, tmp_path):
    folder = golden / "training" / "one_device"
    go_on_with(folder / "tf_checkpoint", tmp_path / "run", folder.parent / "text" / "a_vocab.txt")
    converted = elmo_jax.load(tmp_path / "run")
    dumped = elmo_jax.load(options=tmp_path / "run/model/options.json", weights=folder / "dumped_weights.hdf5")
    for one, other in zip(converted.embed(["a lobster ."]), dumped.embed(["a lobster ."]), strict=True):
        assert relative_error(one, other) < TOLERANCE


def test_runs_that_cannot_be_gone_on_with(golden, tmp_path, capsys):
    folder, vocab = golden / "training" / "one_device", golden / "training" / "text" / "a_vocab.txt"
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("options.json", "checkpoint", "model.ckpt.index"):
        (tmp_path / "broken" / name).write_bytes((folder / "tf_checkpoint" / name).read_bytes())
    (tmp_path / "short.txt").write_text("<S>\n</S>\n<UNK>\n")
    for source, vocabulary, message in (
        (tmp_path / "empty", vocab, "there is no file"),
        (tmp_path / "broken", vocab, "there is no file"),
        (folder / "tf_checkpoint", tmp_path / "short.txt", "has 3 words"),
    ):
        fails(main, ["convert", source, tmp_path / "run", "--vocab", vocabulary], message, capsys)
        assert not (tmp_path / "run").exists()
    for more, message in (
        (["--rows", "2"], "give its --vocab too"),
        (["--format", "hdf5", "--vocab", vocab], "exclude"),
    ):
        fails(main, ["convert", folder / "tf_checkpoint", tmp_path / "run", *more], message, capsys)


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), one, other))


CONTENTS = {
    "hdf5": ["options.json", "softmax.hdf5", "vocab.txt", "weights.hdf5"],
    "safetensors": ["options.json", "softmax.safetensors", "vocab.txt", "weights.safetensors"],
    "nlpl": ["meta.json", "model.hdf5", "options.json", "vocab.txt"],
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A model with a softmax."""
    path = tmp_path_factory.mktemp("original") / "model"
    vocabulary = Vocabulary(["<S>", "</S>", "<UNK>", "the", "cat"])
    softmax = {"weight": np.ones((5, 7), np.float32), "bias": np.arange(5, dtype=np.float32)}
    write_folder(path, SMALL, {"bilm": init_bilm(jax.random.key(0), SMALL), "softmax": softmax}, vocabulary)
    return path


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(CONTENTS, 2)))
def test_from_one_form_to_another(original, tmp_path, capsys, first, second):
    """And back: the same bits, and the same files whenever it is written."""
    source = original
    for number, form in enumerate((first, second, first)):
        dest = tmp_path / f"{number}{'.zip' if form == 'nlpl' else ''}"
        convert(source, dest, *([] if form == "nlpl" else ["--format", form]))
        names = zipfile.ZipFile(dest).namelist() if form == "nlpl" else [file.name for file in dest.iterdir()]
        kept = [name for name in CONTENTS[form] if "softmax" not in name or "nlpl" not in (first, second)[:number]]
        assert sorted(names) == kept
        source = dest
    read, before = read_folder(source, with_softmax=True), read_folder(original)
    assert (read.model, read.vocabulary.words) == (before.model, before.vocabulary.words)
    assert same(read.parameters, before.parameters)
    assert (capsys.readouterr().out.count("which has no place for its softmax") == 1) == ("nlpl" in (first, second))
    if first == "nlpl":
        assert (tmp_path / "0.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_every_family_becomes_ours(golden, tmp_path):
    """Archives of AllenNLP with mixes, of NLPL, ELMoForManyLangs, checkpoints of TensorFlow: the same bits."""
    data = ROOT / "tests/data"
    languages = sorted(path for path in (data / "manylangs").iterdir() if path.is_dir())
    checkpoint = golden / "training/one_device/tf_checkpoint"
    sources = [data / "allennlp/classifier.tar.gz", data / "simple_elmo/model.zip", checkpoint, *languages[:1]]
    for number, source in enumerate(sources):
        dest = tmp_path / f"{number}"
        convert(source, dest, "--format", "safetensors" if number % 2 else "hdf5")
        one, other = read_folder(dest), read_folder(source)
        assert (one.model, one.mixes) == (other.model, other.mixes)
        assert (one.vocabulary and one.vocabulary.words) == (other.vocabulary and other.vocabulary.words)
        assert same(one.parameters, other.parameters)


def test_what_a_form_cannot_express(original, tmp_path, capsys):
    words = dataclasses.replace(SMALL, input="words")
    vocabulary = Vocabulary(["<S>", "</S>", "<UNK>"])
    write_model(tmp_path / "words", ModelFolder(words, init_bilm(jax.random.key(0), words, 3), vocabulary, None))
    languages = min(path for path in (ROOT / "tests/data/manylangs").iterdir() if path.is_dir())
    for source, form, message in (
        (tmp_path / "words", "nlpl", "it reads words by number; take another format"),
        (languages, "nlpl", "it has an alphabet of its own"),
        (original, "manylangs", "its words are spelled in bytes"),
        (tmp_path / "nowhere", "hdf5", "nowhere"),
    ):
        fails(main, ["convert", source, tmp_path / "dest", "--format", form], message, capsys)
        assert not (tmp_path / "dest").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for there in (tmp_path / "there", tmp_path / "there/file"):
        fails(main, ["convert", original, there], "is there already; give a new path", capsys)
    fails(main, ["convert", original, tmp_path / "m.safetensors"], "m.safetensors would be a folder", capsys)
