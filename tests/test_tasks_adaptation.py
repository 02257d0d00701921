"""Adaptation to a domain: perplexity before and after, and the model that is kept."""

import json

import numpy as np
import pytest
from conftest import SMALL
from planted import Planted, of_words

import elmo_jax
from elmo_jax import InputError, pretraining
from elmo_jax.tasks import adaptation
from elmo_jax.tasks.evaluate import Options
from elmo_jax.tasks.systems import ElmoSystem
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import ModelFolder, write_model

WORDS = ["<S>", "</S>", "<UNK>", *(f"w{number}" for number in range(30))]


def lines(count, words, seed):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words, generator.integers(2, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(elmo):
    """Random parameters, and a softmax to which all words are equally probable."""
    softmax = {
        "weight": np.zeros((len(WORDS), SMALL.projection_dim), np.float32),
        "bias": np.zeros(len(WORDS), np.float32),
    }
    return ModelFolder(SMALL, elmo.parameters, Vocabulary(WORDS), softmax)


@pytest.fixture(scope="module")
def place(model, tmp_path_factory):
    """A folder with the model, and with texts: in-domain text has only four of the words."""
    folder = tmp_path_factory.mktemp("adaptation")
    write_model(folder / "model", model)
    (folder / "texts").mkdir()
    texts = {"train": lines(60, WORDS[3:7], 0), "heldout": lines(12, WORDS[3:7], 1), "general": lines(9, WORDS[3:], 2)}
    for name, of_text in texts.items():
        (folder / "texts" / f"{name}.txt").write_text("\n".join([*of_text, ""]) + "\n")
    return folder


@pytest.fixture(scope="module")
def system(place):
    return ElmoSystem("a model", elmo_jax.load(place / "model"))


def test_texts(place):
    texts = adaptation.read_texts(str(place / "texts"))
    every = [line.split() for line in (place / "texts" / "train.txt").read_text().splitlines()[:60]]
    assert texts.chosen_by == every[::10]
    assert texts.train == [sentence for number, sentence in enumerate(every) if number % 10]
    assert {name: len(sentences) for name, sentences in texts.measured.items()} == {"heldout": 12, "general": 9}
    few = adaptation.read_texts(str(place / "texts"), 5)
    assert (few.train, few.chosen_by) == (every[1:5], every[:1])
    assert len(few.measured["heldout"]) == 5


def test_perplexity_before_and_after(place, model, system, monkeypatch, tmp_path):
    """With a model in the place of the adapted one that knows the words' frequencies and no more."""
    bias = np.full(len(WORDS), -20, np.float32)
    bias[[0, 1, *range(3, 7)]] = 0

    def adapt(texts, source, words, folder):
        assert words == len(WORDS)
        write_model(folder, model._replace(softmax=model.softmax | {"bias": bias}))

    monkeypatch.setattr(adaptation, "adapt", adapt)
    monkeypatch.setattr("elmo_jax.tasks.report.RESAMPLES", 50)
    static = Planted(of_words({}, 3))
    (piece,) = adaptation.pieces(str(place / "texts"), [static, system], Options(output=str(tmp_path)))
    figures = piece.figures()
    keys = [(figure.system, figure.data) for figure in figures]
    data = ("texts, heldout", "texts, general")
    assert keys == [(name, text) for name in ("a model", "a model, adapted") for text in data]
    assert [figure.value for figure in figures[:3]] == pytest.approx([33, 33, 6], rel=1e-5)
    assert figures[3].value > 1e4
    assert figures[3].low < figures[3].value < figures[3].high
    assert figures[0].over == "12 sentences (bootstrap), 0.0% <UNK>"
    assert figures[0].details == {"steps": 0, "unknown": 0}
    kept = figures[2].details["model"]
    assert kept.startswith("adapted/texts-a_model-")
    general = [line.split() for line in (place / "texts" / "general.txt").read_text().splitlines()[:9]]
    others = np.concatenate([np.isin([*sentence, "</S>"], WORDS[7:]) for sentence in general])
    assert figures[3].value == pytest.approx(6 * np.exp(20 * others.mean()), rel=1e-4)
    assert elmo_jax.load(tmp_path / kept).dim == system.elmo.dim
    json.dumps([figure._asdict() for figure in figures] + [piece.decides], allow_nan=False)


@pytest.mark.slow
def test_a_model_is_adapted(place, system, monkeypatch, tmp_path, capsys):
    """Of in-domain text it knows more afterwards. Stopped before it had kept the model, it goes on."""
    run = pretraining.run

    def stopped(arguments):
        run(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(adaptation, "MEASURED_EVERY", 20)
    pieces = lambda: adaptation.pieces(str(place / "texts"), [system], Options(output=str(tmp_path)))
    (piece,) = pieces()
    with monkeypatch.context() as patched:
        patched.setattr(adaptation, "STEPS", 20)
        patched.setattr(pretraining, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            piece.figures()
    monkeypatch.setattr(adaptation, "STEPS", 40)
    capsys.readouterr()
    figures = piece.figures()
    said = capsys.readouterr()
    assert "steps 20 to 40" in said.err
    assert not said.out
    before, after = figures[0].value, figures[2].value
    assert before == pytest.approx(33, rel=1e-4)
    assert after < 15
    (kept,) = (tmp_path / "adapted").iterdir()
    assert figures[2].details["model"] == f"adapted/{kept.name}"
    assert {file.name for file in kept.iterdir()} == {"options.json", "weights.hdf5", "softmax.hdf5", "vocab.txt"}
    monkeypatch.setattr(pretraining, "run", stopped)  # what is kept is not made again
    assert [figure.value for figure in piece.figures()] == [figure.value for figure in figures]


def test_bad_input(place, system, tmp_path):
    texts, options = str(place / "texts"), Options(output=str(tmp_path))
    for systems, message in (
        ([Planted(of_words({}, 3))], "trains models that were given by --model; there is none"),
        ([ElmoSystem("in no place", system.elmo.with_parameters(system.elmo.parameters))], "there is none"),
    ):
        with pytest.raises(InputError, match=message):
            adaptation.pieces(texts, systems, options)
    with pytest.raises(InputError, match="folder of the output"):
        adaptation.pieces(texts, [system], Options())
    with pytest.raises(InputError, match=r"is no folder; adaptation takes one with train.txt"):
        adaptation.read_texts(str(place / "texts" / "train.txt"))
    (tmp_path / "train.txt").write_text("one sentence\n")
    with pytest.raises(InputError, match=r"has no file heldout.txt"):
        adaptation.read_texts(str(tmp_path))
    (tmp_path / "heldout.txt").write_text("one sentence\n")
    with pytest.raises(InputError, match=r"train.txt has 1 sentence"):
        adaptation.read_texts(str(tmp_path))


def test_a_model_without_a_softmax(place, model, tmp_path):
    write_model(tmp_path / "model", model._replace(softmax=None))
    system = ElmoSystem("bare", elmo_jax.load(tmp_path / "model"))
    with pytest.raises(InputError, match=r"bare has no softmax.hdf5"):
        adaptation.pieces(str(place / "texts"), [system], Options(output=str(tmp_path)))
