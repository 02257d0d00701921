"""Scores of tokens: against the vectors and the softmax by NumPy, against perplexity, in bounded memory."""

import itertools
import json
import math
import re

import jax
import numpy as np
import pytest
from conftest import SMALL, fails, relative_error

from elmo_jax import __main__ as tools
from elmo_jax import evaluation, losses, scores
from elmo_jax.elmo import Elmo
from elmo_jax.model import zero_state
from elmo_jax.modules import init_bilm
from elmo_jax.parallel import device_count
from elmo_jax.streams import LanguageModelStream, word_encoder
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import ModelFolder, write_model

WORDS = ["<S>", "</S>", "<UNK>", "the", "river", "rose", "and", "it", "rained", ".", "bridge", "until", "away"]
LINES = [
    "the river rose .",
    "",
    "it rained and rained and it rained until the river rose and took the bridge away .",
    "it",
    "über the bridge",
    *(f"the river rose and {word} rained" for word in WORDS[3:]),
    "",
]


@pytest.fixture(scope="module")
def model():
    """Random, with words that are far from equally probable."""
    generator = np.random.default_rng(1)
    parameters = jax.tree.map(lambda array: 3 * np.asarray(array), init_bilm(jax.random.key(0), SMALL))
    weight = generator.normal(size=(len(WORDS), SMALL.projection_dim)).astype(np.float32)
    bias = generator.normal(size=len(WORDS)).astype(np.float32)
    return ModelFolder(SMALL, parameters, Vocabulary(WORDS), {"weight": weight, "bias": bias})


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("scored")
    write_model(path / "model", model)
    (path / "text.txt").write_text("".join(f"{line}\n" for line in LINES))
    return path


def logarithms(hidden, softmax):
    """log p of all words [.., V], in float64."""
    logits = np.float64(hidden) @ np.float64(softmax["weight"]).T + np.float64(softmax["bias"])
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("state", ["zero", pytest.param("warm", marks=pytest.mark.slow)])
def test_scores_are_those_of_the_vectors(model, monkeypatch, state):
    """What `Elmo.embed` gives of each place of a sentence, by the softmax, is what the next place is scored with."""
    monkeypatch.setattr(losses, "BLOCK", 5 * 3 * device_count())  # the vocabulary in several blocks
    sentences = [line.split() for line in LINES]
    found = list(scores.score(model, iter(sentences), state=state, top=4, batch_size=device_count(), window=3))
    vectors = Elmo(model, {}).embed(sentences, layers="top", state=state, boundaries=True)
    for sentence, score, of_sentence in zip(sentences, found, vectors, strict=True):
        assert score.tokens == sentence
        if not sentence:
            assert score is scores.NOTHING
            continue
        assert score.unknown == [n for n, word in enumerate(sentence) if word not in WORDS]
        ids = model.vocabulary.ids(["<S>", *sentence, "</S>"])
        halves = of_sentence[:-1, : SMALL.projection_dim], of_sentence[1:, SMALL.projection_dim :]
        forward, backward = (logarithms(half, model.softmax) for half in halves)
        backward = np.roll(backward, -1, 0)  # the place before the first is told last
        targets = ids[1:], np.roll(ids[:-1], -1)
        for of_all, words, given, top in zip((forward, backward), targets, score[2:4], score[4:], strict=True):
            assert given.dtype == np.float32
            assert relative_error(given, of_all[np.arange(len(words)), words]) < 1e-5
            best = np.argsort(-of_all, 1)[:, :4]
            assert [[word for word, _ in place] for place in top] == [[WORDS[n] for n in place] for place in best]
            expected = np.exp(np.take_along_axis(of_all, best, 1))
            assert relative_error([[value for _, value in place] for place in top], expected) < 1e-5


SLOW = pytest.mark.slow


@pytest.mark.parametrize("state", [pytest.param("carry", marks=SLOW), pytest.param("zero", marks=SLOW), "warm"])
def test_the_mean_is_that_of_perplexity(folder, tmp_path, capsys, state):
    options = ["--model", folder / "model", "--input", folder / "text.txt", "--state", state]
    options = [*map(str, options), "--batch_size", "4", "--window", "5"]
    tools.main(["perplexity", *options])
    expected = capsys.readouterr().out
    tools.main(["score", *options, "--output", str(tmp_path / "scores.jsonl")])
    printed = capsys.readouterr().out
    assert printed.startswith(f"wrote {tmp_path / 'scores.jsonl'}, 16 lines: perplexity ")
    numbers = lambda text: [float(number) for number in re.findall(r"\d+\.\d+", text)]
    assert np.allclose(numbers(printed), numbers(expected), rtol=1e-5)
    assert printed.endswith(expected[expected.index(" over ") :])
    records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [" ".join(record["tokens"]) for record in records] == LINES
    assert records[1] == {
        "tokens": [], "unknown": [], "forward": [], "backward": [], "both": [],
        "sums": {"forward": 0.0, "backward": 0.0, "both": 0.0},
    }  # fmt: skip
    for record in records:
        for name, total in record["sums"].items():
            assert abs(sum(record[name]) - total) < 1e-5
    # `perplexity` prints three digits: against all of them.
    read = scores.read_any(folder / "model", with_softmax=True)
    text = evaluation.Corpus(filter(None, map(str.split, LINES)), read.vocabulary)
    exact = evaluation.evaluator(SMALL)(*evaluation.prepared(read, text, state, 4, 5))
    for name, value in exact._asdict().items():
        mean = -np.mean(list(itertools.chain(*(record[name] for record in records))))
        assert abs(mean / math.log(value) - 1) < 1e-6


def test_probabilities_of_all_words_sum_to_one(folder, tmp_path):
    output = tmp_path / "scores.jsonl"
    command = ["score", "--model", folder / "model", "--input", folder / "text.txt", "--output", output]
    tools.main([*map(str, command), "--batch_size", "4", "--window", "5", "--top", str(len(WORDS))])
    for record in map(json.loads, output.read_text().splitlines()):
        for direction in ("forward", "backward"):
            tops = record.get(f"{direction}_top", [])
            assert len(tops) == len(record[direction])
            for place, top in enumerate(tops):
                probabilities = dict(top)
                assert set(probabilities) == set(WORDS)
                assert abs(sum(probabilities.values()) - 1) < 1e-5
                assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
                boundary = "</S>" if direction == "forward" else "<S>"
                word = [*record["tokens"], boundary][place]
                word = word if word in WORDS else "<UNK>"
                assert abs(math.log(probabilities[word]) - record[direction][place]) < 1e-5


def test_memory_does_not_grow_with_the_vocabulary(model):
    """Programs for 793,471 words, compiled, not run: what they need beside the table is bounded by the block."""
    devices, rows, window, needed = device_count(), 32, 32, []
    text = evaluation.Corpus([["it", "rained"]] * rows, model.vocabulary)
    batch = next(LanguageModelStream(text, rows, window, word_encoder(text, SMALL), devices=devices, once=True))
    state = jax.tree.map(lambda leaf: leaf.reshape(devices, rows // devices, -1), zero_state(SMALL, rows))
    for words in (100_000, 793_471):
        part = -(-words // rows) * rows // devices
        shapes = {"weight": (devices, part, SMALL.projection_dim), "bias": (devices, part)}
        softmax = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
        read = evaluation.reader(SMALL, of_tokens=True, count=10)
        program = read.lower({"bilm": model.parameters, "softmax": softmax}, state, batch, None).compile()
        needed.append(program.memory_analysis().temp_size_in_bytes)
    assert needed[1] < 1.01 * needed[0]
    assert needed[1] < 4 * 4 * losses.BLOCK  # the logits of all words would be 3.2 GB


def test_a_score_that_is_stopped_leaves_nothing(tmp_path):
    def stopped():
        yield scores.NOTHING
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scores.write(stopped(), tmp_path / "scores.jsonl")
    assert not list(tmp_path.iterdir())


def test_bad_input(model, folder, tmp_path, capsys):
    write_model(tmp_path / "bare", model._replace(softmax=None))
    (tmp_path / "blank.txt").write_text("\n\n")
    command = ["score", "--model", folder / "model", "--input", folder / "text.txt", "--output"]
    output = tmp_path / "scores.jsonl"
    fails(tools.main, [*command, tmp_path / "scores.txt"], "give a file that ends in .jsonl", capsys)
    fails(tools.main, [*command, output, "--top", "14"], "top is 14; it must be from 0 to 13", capsys)
    fails(tools.main, [*command, output, "--top", "-1"], "top is -1", capsys)
    fails(tools.main, [*command, output, "--batch_size", "6"], "by 4 devices", capsys)
    fails(tools.main, [*command, output, "--window", "0"], "window is 0", capsys)
    fails(tools.main, [*command[:3], "--input", tmp_path / "no.txt", "--output", output], "there is no file", capsys)
    blank = [*command[:3], "--input", tmp_path / "blank.txt", "--output", output]
    fails(tools.main, blank, "the text has no sentences", capsys)
    bare = ["score", "--model", tmp_path / "bare", *command[3:], output]
    fails(tools.main, bare, "has no softmax.hdf5", capsys)
    for sentences in ("it rained", ["it rained"], [["it", 3]]):
        with pytest.raises(ValueError, match="score\\(\\) was given"):
            scores.score(model, sentences)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "blank.txt"]
