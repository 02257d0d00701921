"""Senses by probes and neighbours on planted vectors, against scikit-learn, and what is refused."""

import json

import numpy as np
import pytest
from planted import Planted
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from elmo_jax import InputError
from elmo_jax.tasks import word_sense
from elmo_jax.tasks.evaluate import Options
from elmo_jax.tasks.systems import MIX

SENSES = ("money", "river", "river")


def write_words(folder, counts):
    """Occurrences of words whose next token tells the sense: every third time money, else river."""
    folder.mkdir()
    for word, count in counts.items():
        generator, lines = np.random.default_rng(len(word)), []
        for number in range(count):
            sense = SENSES[number % 3]
            tokens = [str(number), *["a"] * generator.integers(0, 4), word, sense, "."]
            occurrence = {"id": f"{word}{number}", "word": word, "index": len(tokens) - 3, "sense": sense}
            lines.append(json.dumps(occurrence | {"tokens": tokens}))
        (folder / f"{word}.jsonl").write_text("\n".join(lines))
    return folder


def next_word(tokens, position):
    """The first layer has the word's vector, the second its neighbour's, with some noise."""
    after = tokens[position + 1] if position + 1 < len(tokens) else "."
    noise = np.random.default_rng(len(tokens)).normal(size=4) / 5
    return np.stack([np.arange(1.0, 5), np.eye(4)[["money", "river"].index(after) if after in SENSES else 2] + noise])


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("senses") / "words", {"bank": 45, "shore": 45})


@pytest.fixture(scope="module")
def figures(words):
    system = Planted(next_word)
    pieces = word_sense.pieces(str(words), [system], Options())
    assert system.calls == []
    assert [piece.name for piece in pieces] == ["word sense: planted", "word sense: most frequent sense"]
    return [figure for piece in pieces for figure in piece.figures()]


def test_each_word_and_all_have_a_figure(figures):
    found = {(figure.data, figure.vectors, figure.metric) for figure in figures if figure.system == "planted"}
    lines = [(layer, word_sense.LINEAR) for layer in ("first", "second", MIX)]
    lines += [(layer, word_sense.NEIGHBOUR) for layer in ("first", "second")]
    assert found == {(data, *line) for data in ("bank", "shore", word_sense.ALL) for line in lines}
    assert all(figure.low <= figure.value <= figure.high for figure in figures)
    assert all(json.loads(json.dumps(figure.details)) == figure.details for figure in figures)


def test_the_layer_that_knows_tells_senses(figures):
    values = {(figure.vectors, figure.metric): figure for figure in figures if figure.data == "bank"}
    for metric in (word_sense.LINEAR, word_sense.NEIGHBOUR):
        assert values["second", metric].value > 0.95
    assert values["first", word_sense.LINEAR].value == pytest.approx(2 / 3)
    mix = values[MIX, word_sense.LINEAR]
    assert mix.value > 0.95
    assert len(mix.details["mix"]) == len(mix.details["folds"]) == 5
    assert mix.details["senses"] == {"money": 15, "river": 30}
    assert np.mean(mix.details["folds"]) == pytest.approx(mix.value)
    assert mix.over == "45 occurrences (bootstrap)"


def test_static_vectors_are_all_the_nearest(figures):
    """Among 12 occurrences of money and 24 of river one is right of a third or of two."""
    values = {figure.data: figure for figure in figures if figure[3:5] == ("first", word_sense.NEIGHBOUR)}
    assert values["bank"].value == pytest.approx((1 / 3) ** 2 + (2 / 3) ** 2)


def test_the_mean_over_words(figures):
    for figure in (figure for figure in figures if figure.data == word_sense.ALL):
        of_words = [other.value for other in figures if other[2:5] == figure[2:5] and other.data != word_sense.ALL]
        assert figure.value == pytest.approx(np.mean(of_words))
        assert figure.details["values"] == of_words


def test_the_most_frequent_sense(figures):
    values = {figure.data: figure.value for figure in figures if figure.system == word_sense.MOST_FREQUENT}
    assert values == pytest.approx({"bank": 2 / 3, "shore": 2 / 3, word_sense.ALL: 2 / 3})


def test_neighbours_are_scikit_learns(monkeypatch):
    monkeypatch.setattr(word_sense, "TOGETHER", 7)
    generator = np.random.default_rng(0)
    senses = generator.integers(0, 3, 60)
    vectors = (generator.normal(size=(60, 5)) + np.eye(3, 5)[senses]).astype(np.float32)
    word = word_sense.Word("bank", [], np.zeros(60, int), senses, ["a", "b", "c"], np.arange(60) % 5)
    right = word_sense.neighbour(word, vectors).right
    for fold in range(5):
        others = word.folds != fold
        nearest = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(vectors[others], senses[others])
        expected = accuracy_score(senses[~others], nearest.predict(vectors[~others]))
        assert right[~others].mean() == pytest.approx(expected)


def test_folds_have_the_senses_in_like_parts():
    senses = np.array([0] * 20 + [1] * 10 + [2] * 3)
    folds = word_sense.folds_of(senses, [[str(number)] for number in range(33)])
    assert (np.bincount(folds[:20]) == 4).all()
    assert (np.bincount(folds[20:30]) == 2).all()
    assert np.bincount(folds).max() - np.bincount(folds).min() <= 1


def test_a_repeated_sentence_is_in_one_fold(tmp_path):
    senses, sentences = np.arange(40) % 2, [[str(number % 16)] for number in range(40)]
    folds = word_sense.folds_of(senses, sentences)
    assert set(folds.tolist()) == set(range(5))
    assert len(set(zip(np.arange(40) % 16, folds, strict=True))) == 16

    occurrence = {"word": "bank", "index": 0, "tokens": ["bank", "."]}
    lines = [json.dumps(occurrence | {"id": str(number), "sense": str(number % 2)}) for number in range(12)]
    (tmp_path / "bank.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match="12 occurrences of 2 senses in 1 different sentences, 6 of the most"):
        word_sense.pieces(str(tmp_path / "bank.jsonl"), [], Options())


def test_too_few_occurrences_are_refused(tmp_path):
    folder = write_words(tmp_path / "words", {"bank": 45, "shore": 6})
    with pytest.raises(InputError, match="of 2 senses in 6 different sentences, 4 of the most frequent sense; 5 folds"):
        word_sense.pieces(str(folder), [], Options())
    with pytest.raises(InputError, match="bank has 1 occurrences of 1 senses"):
        word_sense.pieces(str(folder), [], Options(limit=1))
