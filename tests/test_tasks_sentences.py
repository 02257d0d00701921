"""Labels of sentences on planted vectors, parts of files, and fine-tuning."""

import json

import numpy as np
import pytest
from planted import Planted
from sklearn.metrics import accuracy_score

from elmo_jax import InputError
from elmo_jax.tasks import probes, sentences
from elmo_jax.tasks.evaluate import Options
from elmo_jax.tasks.formats import Labelled, read_labelled
from elmo_jax.tasks.probes import FINE_TUNED
from elmo_jax.tasks.systems import MIX, ElmoSystem

WORDS = {"good": ["fine", "great", "warm"], "bad": ["poor", "cold", "dull"]}


def labelled(count, seed, good=0.5):
    """Three words that tell the label, or nothing, and at least one that does."""
    generator, records = np.random.default_rng(seed), []
    for _ in range(count):
        label = "good" if generator.random() < good else "bad"
        tokens = [generator.choice(WORDS[label]), *generator.choice(["the", "a", "of"], 2)]
        records.append(Labelled(label, [str(token) for token in generator.permutation(tokens)]))
    return records


def write(path, records):
    path.write_text("".join(f"{label}\t{' '.join(tokens)}\n" for label, tokens in records))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels") / "polarity"
    folder.mkdir()
    for seed, (part, count) in enumerate({"train": 90, "dev": 20, "test": 40}.items()):
        write(folder / f"{part}.tsv", labelled(count, seed, good=0.4))
    return folder


def polarity(tokens, position):
    """The second layer tells what a word says, the first nothing."""
    kind = [tokens[position] in WORDS[label] for label in WORDS]
    return np.stack([np.ones(3), np.array([*kind, not any(kind)], float)])


@pytest.fixture(scope="module")
def figures(files):
    system = Planted(polarity)
    pieces = sentences.sentiment(str(files), [system], Options(seeds=2))
    assert system.calls == []
    assert [piece.name.partition(", ")[2] for piece in pieces] == ["planted", sentences.MOST_FREQUENT]
    return [figure for piece in pieces for figure in piece.figures()]


def test_classifiers_learn_from_the_layer_that_knows(figures):
    first, second, mix, most = figures
    assert [figure.vectors for figure in figures] == ["first", "second", MIX, "none"]
    assert {(*figure[:2], figure.metric) for figure in figures} == {("sentiment", "polarity", "accuracy")}
    assert first.value < 0.8
    assert second.value > 0.95
    assert mix.value > 0.95
    assert mix.over == "2 seeds"
    assert mix.details["sentences"] == {"learned": 90, "chosen by": 20, "test": 40}
    assert [sum(shares) for shares in mix.details["mix"]] == pytest.approx([1, 1])
    assert np.mean(mix.details["values"]) == pytest.approx(mix.value)
    assert most.over == "40 sentences (bootstrap)"
    assert all(json.loads(json.dumps(figure.details)) == figure.details for figure in figures)


def test_the_most_frequent_label_is_that_of_what_is_learned(files, figures):
    file = read_labelled(files)
    labels = [record.label for record in file.train]
    most = max(set(labels), key=labels.count)
    gold = [record.label for record in file.test]
    assert figures[-1].value == pytest.approx(accuracy_score(gold, [most] * len(gold)))


def test_a_file_alone_is_divided(tmp_path):
    write(tmp_path / "all.tsv", labelled(50, 0))
    prepared = sentences.Prepared.of("sentiment", read_labelled(tmp_path / "all.tsv"), None)
    assert [len(part) for part in (prepared.learned, prepared.chosen, prepared.test)] == [36, 4, 10]
    assert sorted([*prepared.learned, *prepared.chosen, *prepared.test]) == list(range(50))
    again = sentences.Prepared.of("sentiment", read_labelled(tmp_path / "all.tsv"), None)
    assert (again.test == prepared.test).all()


def test_the_first_of_each_part(files):
    file = read_labelled(files)
    prepared = sentences.Prepared.of("sentiment", file, 15)
    assert prepared.tokens == [it.tokens for it in (*file.train[:15], *file.dev[:15], *file.test[:15])]
    assert [len(part) for part in (prepared.learned, prepared.chosen, prepared.test)] == [15, 15, 15]
    with pytest.raises(InputError, match="polarity has 1 sentences to learn of, of 1 labels; two labels are needed"):
        sentences.Prepared.of("sentiment", file, 1)


def test_a_sentence_is_the_largest_and_the_mean_of_its_tokens():
    hidden = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    mask = np.arange(4) < np.array([[4], [2], [0]])
    found = np.asarray(probes.pooled(hidden, mask))
    np.testing.assert_array_equal(found[1, :5], hidden[1, :2].max(0))
    np.testing.assert_allclose(found[:2, 5:], [hidden[0].mean(0), hidden[1, :2].mean(0)], rtol=1e-6)
    assert not found[2].any()


def test_rows_without_a_sentence_count_nothing():
    outputs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels, real = np.array([0, 2, 1, 0, 0], np.int32), np.array([True, True, True, False, False])
    found = sentences.cross_entropy(outputs, labels, real)
    logs = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
    assert float(found) == pytest.approx(-logs[range(3), labels[:3]].mean(), rel=1e-5)


def test_pieces_are_told_apart(files, elmo):
    systems = [Planted(polarity), ElmoSystem("small", elmo)]
    one = sentences.sentiment(str(files), systems, Options(seeds=2, fine_tune=True))
    assert [piece.name.partition("polarity, ")[2] for piece in one] == [
        "planted",
        "small",
        "small, fine-tuned, seed 0",
        "small, fine-tuned, seed 1",
        sentences.MOST_FREQUENT,
    ]
    more = sentences.sentiment(str(files), systems, Options(seeds=3, limit=30))
    other = sentences.question_type(str(files), systems, Options(seeds=2))
    every = [json.dumps(piece.decides, sort_keys=True) for piece in [*one, *more, *other]]
    assert len(set(every)) == len(every)


@pytest.mark.slow
def test_fine_tuned(files, elmo, monkeypatch):
    monkeypatch.setattr(sentences, "FINE_TUNING_EPOCHS", 2)
    pieces = sentences.sentiment(str(files), [ElmoSystem("small", elmo)], Options(seeds=1, fine_tune=True))
    (figure,) = pieces[1].figures()
    assert (figure.system, figure.vectors, figure.over) == ("small", FINE_TUNED, "1 seed")
    assert figure.details["seeds"] == [0]
    assert figure.value > 0.7
    (again,) = pieces[1].figures()
    assert again.value == figure.value
