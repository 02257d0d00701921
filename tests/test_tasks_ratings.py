"""Cosines against ratings, in the three forms of files."""

import json

import numpy as np
import pytest
from planted import Planted
from scipy import stats
from sklearn.metrics import accuracy_score

from elmo_jax import InputError
from elmo_jax.tasks import ratings
from elmo_jax.tasks.evaluate import Options
from elmo_jax.tasks.formats import InContext, Pair


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr("elmo_jax.tasks.report.RESAMPLES", 200)


def angles(tokens, position):
    """Vectors of tokens such as x30: their angle in degrees; in the second layer half of it, and of others zeros."""
    token = tokens[position]
    if not token.startswith("x"):
        return np.zeros((2, 2))
    angle = np.deg2rad(float(token[1:]))
    return np.array([[np.cos(angle), np.sin(angle)], [np.cos(angle / 2), np.sin(angle / 2)]])


def pairs_of(count, seed=0):
    """Pairs of words at random angles, which are rated, with noise, by how near they are."""
    generator = np.random.default_rng(seed)
    both = generator.integers(0, 90, (count, 2))
    return both, np.round(10 - np.abs(both[:, 0] - both[:, 1]) / 9 + generator.normal(0, 1, count), 2)


def test_similarities_of_words_in_context():
    pair = Pair("1", InContext(["the", "x0", "x60"], 1, 3), InContext(["x30"], 0, 1), 5.0)
    unknown = Pair("2", InContext(["the"], 0, 1), InContext(["x30"], 0, 1), 5.0)
    same = Pair("3", InContext(["x30"], 0, 1), InContext(["a", "x30"], 1, 2), 5.0)
    cosines, knows = ratings.similarities(Planted(angles), [pair, unknown, same])
    half = np.cos(np.deg2rad(15 - 15)), np.cos(np.deg2rad(30 - 30))
    np.testing.assert_allclose(cosines[0, :2], half, atol=1e-6)
    assert cosines.shape == (3, 3)
    assert cosines[1].tolist() == [0, 0, 0]
    assert cosines[2].tolist() == [1, 1, 1]
    assert knows.tolist() == [True, False, True]


def test_sentences_are_embedded_in_parts(monkeypatch):
    monkeypatch.setattr("elmo_jax.tasks.cosines.TOGETHER", 2)
    both, _ = pairs_of(5)
    pairs = [Pair("", InContext([f"x{a}"], 0, 1), InContext([f"x{b}"], 0, 1), 1.0) for a, b in both]
    system, static = Planted(angles), Planted(lambda *where: angles(*where)[:1], ["words"])
    cosines, _ = ratings.similarities(system, pairs)
    np.testing.assert_allclose(cosines[:, 0], np.cos(np.deg2rad(both[:, 0] - both[:, 1])), atol=1e-6)
    assert len(system.calls) == 3
    np.testing.assert_array_equal(ratings.similarities(static, pairs)[0], cosines[:, :1])
    assert len(static.calls) == 1


def write_usim(folder, count=40):
    both, rated = pairs_of(count)
    path = folder / "usim.tsv"
    path.write_text("".join(f"word\t1\tthe x{a}\t0\tx{b} is\t{r}\n" for (a, b), r in zip(both, rated, strict=True)))
    return str(path), both, rated


def test_correlation_is_scipys(tmp_path):
    path, both, rated = write_usim(tmp_path)
    (piece,) = ratings.pieces(path, [Planted(angles)], Options())
    figures = piece.figures()
    assert [figure.vectors for figure in figures] == ["first", "second", "average"]
    expected = stats.spearmanr(np.cos(np.deg2rad(both[:, 0] - both[:, 1])), rated).statistic
    assert figures[0].value == pytest.approx(expected, abs=1e-9)
    assert figures[0].value > 0.8
    assert figures[0].low < figures[0].value < figures[0].high
    assert figures[0][:5] == ("ratings", "usim", "planted", "first", "Spearman")
    assert figures[0].over == "40 pairs (bootstrap)"
    assert figures[0].details == {"unknown": 0}
    (piece,) = ratings.pieces(path, [Planted(angles)], Options(limit=10))
    assert piece.figures()[0].over == "10 pairs (bootstrap)"


def test_pairs_that_a_system_does_not_know_are_left_out(tmp_path):
    path, both, rated = write_usim(tmp_path)
    with open(path, "a") as file:
        file.write("word\t0\tx1\t0\tunknown\t1.0\n")
    (piece,) = ratings.pieces(path, [Planted(angles)], Options())
    expected = stats.spearmanr(-np.abs(both[:, 0] - both[:, 1]), rated).statistic
    assert piece.figures()[0].value == pytest.approx(expected, abs=1e-9)
    assert piece.figures()[0].over == "40 pairs (bootstrap)"
    assert piece.figures()[0].details == {"unknown": 1}
    (piece,) = ratings.pieces(path, [Planted(lambda *_: np.zeros((2, 2)))], Options())
    assert np.isnan(piece.figures()[0].value)
    assert piece.figures()[0].over.startswith("0 pairs")


def test_scws(tmp_path):
    both, rated = pairs_of(20)
    line = "{}\tword\tn\tother\tn\tthe <b> x{} </b> is .\t<b>x{}</b> too\t{}\t1\t2\t3\n"
    (tmp_path / "ratings.txt").write_text(
        "".join(line.format(n, a, b, r) for n, ((a, b), r) in enumerate(zip(both, rated, strict=True)))
    )
    (piece,) = ratings.pieces(str(tmp_path / "ratings.txt"), [Planted(angles)], Options())
    expected = stats.spearmanr(-np.abs(both[:, 0] - both[:, 1]), rated).statistic
    assert piece.figures()[0].value == pytest.approx(expected, abs=1e-9)


def test_vectors_that_are_all_the_same_have_no_correlation(tmp_path):
    path, *_ = write_usim(tmp_path)
    generator = np.random.default_rng(0)  # what only rounding makes differ
    same = Planted(lambda *_: np.ones((1, 3)) + 1e-7 * generator.normal(size=(1, 3)), ["words"])
    (piece,) = ratings.pieces(path, [same], Options())
    assert np.isnan(piece.figures()[0].value)
    assert piece.figures()[0].over == "40 pairs (all have the same cosine)"


def write_wic(folder, parts):
    folder.mkdir(exist_ok=True)
    for part, (both, same) in parts.items():
        rows = [f"word\tN\t1-0\tthe x{a}\tx{b} is\n" for a, b in both]
        (folder / f"{part}.data.txt").write_text("".join(rows))
        (folder / f"{part}.gold.txt").write_text("".join(f"{'FT'[int(it)]}\n" for it in same))
    return str(folder)


def wic_part(count, seed):
    """Pairs that have one sense, with some mistakes, if they are within 30 degrees."""
    generator = np.random.default_rng(seed)
    both = generator.integers(0, 90, (count, 2))
    return both, (np.abs(both[:, 0] - both[:, 1]) < 30) ^ (generator.random(count) < 0.1)


def test_wic(tmp_path):
    train, dev, test = wic_part(60, 0), wic_part(20, 1), wic_part(30, 2)
    path = write_wic(tmp_path / "wic", {"train": train, "dev": dev, "test": test})
    (piece,) = ratings.pieces(path, [Planted(angles)], Options())
    figures = piece.figures()
    cosine = lambda part: np.cos(np.deg2rad(part[0][:, 0] - part[0][:, 1]))
    threshold = figures[0].details["threshold"]
    predictions = cosine(test) >= threshold["cosine"]
    assert figures[0].value == accuracy_score(test[1], predictions) > 0.8
    assert np.cos(np.deg2rad(32)) < threshold["cosine"] < np.cos(np.deg2rad(28))
    learned = np.concatenate([cosine(train), cosine(dev)]) >= threshold["cosine"]
    assert threshold["accuracy"] == accuracy_score(np.concatenate([train[1], dev[1]]), learned)
    assert figures[0].details["same"] == test[1].mean()
    assert figures[0].over == "30 pairs of test (bootstrap)"
    json.dumps([figure._asdict() for figure in figures], allow_nan=False)
    without = write_wic(tmp_path / "without", {"train": train, "dev": dev})
    (piece,) = ratings.pieces(without, [Planted(angles)], Options())
    assert piece.figures()[0].over == "20 pairs of dev (bootstrap)"


@pytest.mark.parametrize("seed", range(4))
def test_the_best_threshold_is_that_of_trying_all(seed):
    generator = np.random.default_rng(seed)
    cosines, same = generator.integers(0, 9, 30) / 10, generator.random(30) < 0.6
    tried = [-2, *np.arange(0.05, 0.8, 0.1), 2]
    accuracies = [accuracy_score(same, cosines >= threshold) for threshold in tried]
    found = ratings.best_threshold(cosines, same)
    assert found.accuracy == pytest.approx(max(accuracies))
    assert accuracy_score(same, cosines >= found.cosine) == pytest.approx(found.accuracy)
    assert ratings.best_threshold(cosines, np.ones(30, bool)) == (-2, 1)
    assert ratings.best_threshold(cosines, np.zeros(30, bool)) == (2, 1)


def test_bad_files(tmp_path):
    path, *_ = write_usim(tmp_path)
    with open(path, "a") as file:
        file.write("word\t1\tthe x\n")
    with pytest.raises(InputError, match="line 41, has 3 columns"):
        ratings.pieces(path, [Planted(angles)], Options())
