"""Labels of sentences on planted vectors, parts of files, and fine-tuning."""

import json

import numpy as np
import pytest
from planted import Planted
from sklearn.linear_model import LogisticRegression
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
    assert np.shape(mix.details["mix"]) == (2, 2)
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
    records = [Labelled(it.label, [*it.tokens, str(number)]) for number, it in enumerate(labelled(50, 0))]
    write(tmp_path / "all.tsv", records)
    prepared = sentences.Prepared.of("sentiment", read_labelled(tmp_path / "all.tsv"), None)
    assert [len(part) for part in (prepared.learned, prepared.chosen, prepared.test)] == [36, 4, 10]
    assert sorted([*prepared.learned, *prepared.chosen, *prepared.test]) == list(range(50))
    again = sentences.Prepared.of("sentiment", read_labelled(tmp_path / "all.tsv"), None)
    assert (again.test == prepared.test).all()


def test_a_file_alone_is_divided_with_repeated_sentences_in_one_part(tmp_path):
    write(tmp_path / "all.tsv", labelled(60, 0))
    prepared = sentences.Prepared.of("sentiment", read_labelled(tmp_path / "all.tsv"), None)
    parts = [prepared.learned, prepared.chosen, prepared.test]
    assert sorted(np.concatenate(parts)) == list(range(60))
    texts = [{tuple(prepared.tokens[number]) for number in part} for part in parts]
    assert all(texts)
    assert len(set.union(*texts)) == sum(map(len, texts)) < 60


def test_the_first_of_each_part(files):
    file = read_labelled(files)
    prepared = sentences.Prepared.of("sentiment", file, 15)
    assert prepared.tokens == [it.tokens for it in (*file.train[:15], *file.dev[:15], *file.test[:15])]
    assert [len(part) for part in (prepared.learned, prepared.chosen, prepared.test)] == [15, 15, 15]
    with pytest.raises(InputError, match="polarity has 1 sentences to learn of, of 1 labels; two labels are needed"):
        sentences.Prepared.of("sentiment", file, 1)


def test_a_seed_draws_nine_tenths_of_the_sentences():
    drawn = sentences.drawn(np.arange(10, 60), 3)
    assert drawn.shape == (3, 45)
    for of_seed in drawn:
        assert len(set(of_seed.tolist())) == 45
        assert set(of_seed.tolist()) <= set(range(10, 60))
    assert len({tuple(sorted(of_seed)) for of_seed in drawn.tolist()}) == 3
    assert sentences.drawn(np.array([3, 7]), 2).shape == (2, 2)


def test_a_classifier_is_logistic_regression_on_means(files):
    """scikit-learn's, of the same sentences and strength, gives the test's sentences the same labels."""
    system = Planted(lambda tokens, position: noise(tokens[position]))
    prepared = sentences.Prepared.of("sentiment", read_labelled(files), None)
    (first, *_) = sentences.frozen_figures(prepared, system, 2)
    means = np.stack([np.mean([noise(token)[0] for token in tokens], 0) for tokens in prepared.tokens])
    for seed, strength in enumerate(first.details["strengths"]):
        learned = np.concatenate([sentences.drawn(prepared.learned, 2)[seed], prepared.chosen])
        features = (means - means[learned].mean(0)) / means[learned].std(0)
        regression = LogisticRegression(C=1 / (len(learned) * strength), tol=1e-8, max_iter=1000)
        regression.fit(features[learned], prepared.labels[learned])
        expected = regression.score(features[prepared.test], prepared.labels[prepared.test])
        assert 0.5 < first.details["values"][seed] < 1
        assert first.details["values"][seed] == pytest.approx(expected)


def noise(token):
    """Vectors of a token, which tell labels by chance alone."""
    return np.random.default_rng([*token.encode()]).normal(size=(2, 2)).astype(np.float32)


def test_rows_without_a_sentence_count_nothing():
    outputs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels, real = np.array([0, 2, 1, 0, 0], np.int32), np.array([True, True, True, False, False])
    found = sentences.cross_entropy(outputs, labels, real)
    logs = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
    assert float(found) == pytest.approx(-logs[range(3), labels[:3]].mean(), rel=1e-5)


def test_fine_tuned_sentences_are_means_of_their_own_tokens(elmo):
    module = probes.FineTuned.of(elmo, 3, sentences=True)
    parameters = module.initial(elmo, 0)
    outputs = lambda *sentences: module.apply({"params": parameters}, elmo.encode(sentences), deterministic=True)
    short, long = ["warm"], ["a", "cold", "and", "dull", "one"]
    np.testing.assert_allclose(outputs(short, long)[:2], [outputs(short)[0], outputs(long)[0]], atol=1e-5)
    of_tokens = probes.FineTuned.of(elmo, 3).apply({"params": parameters}, elmo.encode([long]), deterministic=True)
    np.testing.assert_allclose(outputs(long)[0], of_tokens[0, :5].mean(0), atol=1e-5)


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
