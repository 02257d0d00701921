"""Associations of sets of words, and debiasing, on vectors whose bias is known."""

import itertools
import json

import numpy as np
import pytest
from planted import Planted, of_words
from scipy import stats

from elmo_jax import InputError
from elmo_jax.tasks import bias
from elmo_jax.tasks.evaluate import Options
from elmo_jax.tasks.formats import read_word_sets

X, Y = ["rose", "lily", "iris", "aster", "daisy"], ["ant", "wasp", "gnat", "flea", "moth"]
A, B = ["love", "peace", "joy"], ["war", "filth", "pain"]
SETS = {
    "name": "flowers and insects",
    "targets": {"flowers": X, "insects": Y},
    "attributes": {"pleasant": A, "unpleasant": B},
    "templates": ["this is {word} .", "{word} is here"],
    "pairs": [["she", "he"], ["her", "his"], ["girl", "boy"]],
}


def write(folder, **changes):
    path = folder / "sets.json"
    path.write_text(json.dumps({name: value for name, value in (SETS | changes).items() if value is not None}))
    return str(path)


def plain_effect(first, second, attributes_a, attributes_b):
    """Equations (1) to (3) of Caliskan et al. 2017, a word at a time."""
    cosine = lambda u, v: u @ v / np.sqrt((u @ u) * (v @ v))
    s = lambda w: np.mean([cosine(w, a) for a in attributes_a]) - np.mean([cosine(w, b) for b in attributes_b])
    of_first, of_second = [s(w) for w in first], [s(w) for w in second]
    deviation = np.std([*of_first, *of_second], ddof=1)
    return (np.mean(of_first) - np.mean(of_second)) / deviation, of_first, of_second


def test_effect_size_is_that_of_the_paper():
    generator = np.random.default_rng(1)
    first, second, a, b = (generator.normal(size=(count, 1, 7)) for count in (5, 6, 3, 4))
    expected, *each = plain_effect(first[:, 0], second[:, 0], a[:, 0], b[:, 0])
    found = [bias.associations(words, a, b) for words in (first, second)]
    np.testing.assert_allclose(np.concatenate(found)[:, 0], np.concatenate(each), rtol=1e-12)
    assert bias.effect_size(*found) == pytest.approx(expected, rel=1e-12)
    interval = bias.effect_interval(*found)
    assert interval.low < interval.value == bias.effect_size(*found) < interval.high
    assert bias.effect_size(*found[::-1]) == pytest.approx(-expected)
    same = np.ones((3, 1))
    assert np.isnan([bias.effect_size(same, same), *bias.effect_interval(same, same)]).all()


def test_a_planted_effect_is_recovered():
    """Words in the plane of two attributes, at angles by which their associations are what is chosen."""
    planted = {"flowers": [0.9, 0.7, 0.8, 0.2], "insects": [0.1, -0.3, 0.4, -0.2]}
    angle = lambda s: np.arccos(s / np.sqrt(2)) - np.pi / 4  # cos(angle) - sin(angle) = s
    vectors = [[[[3 * np.cos(angle(s)), 3 * np.sin(angle(s))]] for s in values] for values in planted.values()]
    first, second = (bias.associations(np.array(words), np.eye(2)[:1, None], np.eye(2)[1:, None]) for words in vectors)
    np.testing.assert_allclose(first[:, 0], planted["flowers"])
    everything = np.concatenate(list(planted.values()))
    expected = (np.mean(planted["flowers"]) - np.mean(planted["insects"])) / np.std(everything, ddof=1)
    assert bias.effect_size(first, second) == pytest.approx(expected)
    assert bias.significance(first, second).p == 2 / 70  # one other division is as far apart


def test_p_counts_partitions(monkeypatch):
    generator = np.random.default_rng(3)
    first, second = generator.normal(0.5, 1, (5, 1)), generator.normal(size=(7, 1))
    every = np.concatenate([first, second])[:, 0]
    as_far = [
        sum(every[list(chosen)]) - sum(np.delete(every, chosen)) >= first.sum() - second.sum() - 1e-12
        for chosen in itertools.combinations(range(12), 5)
    ]
    exact = bias.significance(first, second)
    assert exact == (np.mean(as_far), np.mean(as_far), np.mean(as_far), 792, True)
    monkeypatch.setattr(bias, "MOST_PARTITIONS", 500)
    monkeypatch.setattr(bias, "DRAWN_TOGETHER", 100)
    drawn = [bias.significance(first, second, seed) for seed in range(40)]
    assert {(found.partitions, found.exact) for found in drawn} == {(500, False)}
    assert 35 <= sum(found.low < exact.p < found.high for found in drawn) < 40
    assert np.mean([found.p for found in drawn]) == pytest.approx(exact.p, abs=0.01)
    assert drawn[0] == bias.significance(first, second)
    apart = np.arange(20.0)[::-1, None]
    assert bias.significance(apart[:10], apart[10:]).p == 1 / 501


@pytest.mark.parametrize("sentences", [1, 4])
def test_shuffled_sets_are_significant_in_five_cases_of_a_hundred(sentences):
    """Sentences of a word have much in common; divided singly they would be significant far more often."""
    generator = np.random.default_rng(4)
    runs, ps = 600, []
    for _ in range(runs):
        words = generator.normal(size=(12, 1)) + 0.1 * generator.normal(size=(12, sentences))
        ps.append(bias.significance(words[:6], words[6:]).p)
    low, high = stats.binomtest(int(0.05 * runs), runs).proportion_ci(0.99)
    assert low <= np.mean(np.array(ps) < 0.05) <= high
    assert stats.kstest(ps, "uniform").pvalue > 0.01


def test_shuffled_sets_of_which_partitions_are_drawn(monkeypatch):
    monkeypatch.setattr(bias, "MOST_PARTITIONS", 400)
    monkeypatch.setattr(bias, "DRAWN_TOGETHER", 400)
    generator = np.random.default_rng(5)
    ps = np.array([bias.significance(*generator.normal(size=(2, 8, 1)), seed=seed).p for seed in range(600)])
    low, high = stats.binomtest(30, 600).proportion_ci(0.99)
    assert low <= np.mean(ps < 0.05) <= high


def planted_pairs(generator, width=9):
    """Pairs apart in a planted direction of each of two layers, and the directions."""
    planted = np.linalg.qr(generator.normal(size=(width, 2)))[0].T
    middle, noise = generator.normal(size=(6, 1, 2, width)), 0.05 * generator.normal(size=(6, 2, 2, width))
    return middle + np.array([1, -1])[None, :, None, None] * planted + noise, planted


def test_debiasing_removes_the_planted_direction():
    generator = np.random.default_rng(6)
    pairs, planted = planted_pairs(generator)
    found, shares = bias.directions(pairs)
    assert (np.abs((found * planted).sum(1)) > 0.99).all()
    assert (shares > 0.9).all()
    before = generator.normal(size=(50, 2, 9))
    after = before.copy()
    bias.project_out(after, found)
    along = np.einsum("mld,ld->ml", before, found)
    assert np.abs(np.einsum("mld,ld->ml", after, found)).max() < 1e-12
    assert np.abs(along).max() > 1
    np.testing.assert_allclose(before - after, along[:, :, None] * found)


def gendered(generator, width=12):
    """Vectors of words: flowers and "she" on one side of a direction, insects and "he" on the other."""
    direction = np.eye(width)[0]
    sides = {**dict.fromkeys([*X, *A, "she", "her", "girl"], 1), **dict.fromkeys([*Y, *B, "he", "his", "boy"], -1)}
    words = {word: generator.normal(size=width) * 0.5 + 2 * side * direction for word, side in sides.items()}
    for first, second in [*SETS["pairs"], *zip(X, Y, strict=True)]:  # the same but for the direction
        words[second] = words[first] - 4 * direction
    return words | {word: generator.normal(size=width) for word in ("this", "is", "here", ".")}


def test_figures(tmp_path):
    """The planted bias is found alone and in sentences, in every layer, and is gone without the direction."""
    words = gendered(np.random.default_rng(7))
    system = Planted(of_words(words, 12))
    (piece,) = bias.pieces(write(tmp_path), [system], Options())
    figures = piece.figures()
    assert system.calls == [16 + 6 + 2 * 16]
    keys = [(figure.system, figure.metric, figure.vectors) for figure in figures]
    names, tests, layers = ("planted", "planted, debiased"), ("WEAT d", "SEAT d"), ("first", "second", "average")
    assert keys == list(itertools.product(names, tests, layers))
    for figure in figures:
        assert figure.data == "flowers and insects"
        assert figure.details["unknown"] == []
        p = figure.details["p"]["p"]
        if figure.system == "planted":
            assert figure.value > 1.5
            assert figure.low > 0
            assert p < 0.01
        else:
            assert abs(figure.value) < 1e-3
            assert p > 0.4
            assert figure.details["explained by the direction"]["first"] == pytest.approx(1)
        assert f"p = {p:.2g}" in figure.over
    expected, *_ = plain_effect(*([words[word] for word in group] for group in (X, Y, A, B)))
    assert figures[0].value == pytest.approx(expected, rel=1e-5)
    sentences = [
        [
            np.mean([words[token] for token in template.replace("{word}", word).split()], 0)
            for template in SETS["templates"]
        ]
        for word in (*X, *Y, *A, *B)
    ]
    groups = np.split(np.array(sentences), [5, 10, 13])
    expected, *_ = plain_effect(*(group.reshape(-1, 12) for group in groups))
    assert figures[3].value == pytest.approx(expected, rel=1e-5)
    assert json.loads(json.dumps(figures[0]._asdict(), allow_nan=False)) == figures[0]._asdict()


def test_a_debiased_system_has_what_the_debiased_figures_have(tmp_path):
    path = write(tmp_path, templates=None)
    system = Planted(of_words(gendered(np.random.default_rng(8)), 12))
    (debiased,) = bias.debiased([system], path)
    assert debiased.name == "planted, debiased"
    assert debiased.layers == system.layers
    assert debiased.identity != system.identity
    assert debiased.elmo is None
    (piece,) = bias.pieces(path, [system, debiased], Options())
    values = lambda figures: [figure.value for figure in figures if figure.metric == "WEAT d"]
    (sets,) = read_word_sets(path)
    np.testing.assert_allclose(values(bias.figures(sets, debiased)), values(piece.figures())[3:], rtol=1e-4)
    other = write(tmp_path, pairs=[["he", "she"]])
    assert len(bias.pieces(other, [system, debiased], Options())) == 2
    vectors = debiased.embed([["she", "is", "here"], []])
    assert vectors.values.shape == (3, 2, 12)
    assert np.abs(np.einsum("mld,ld->ml", vectors.values, debiased.directions)).max() < 1e-5


def test_words_that_a_system_does_not_know_are_left_out(tmp_path):
    words = gendered(np.random.default_rng(9))
    few = {word: vector for word, vector in words.items() if word not in ("rose", "ant", "war", "his")}
    path = write(tmp_path)
    (piece,) = bias.pieces(path, [Planted(of_words(few, 12))], Options())
    figures = piece.figures()
    assert figures[0].details["unknown"] == ["rose", "ant", "war"]
    assert figures[0].details["words"] == [4, 4, 3, 2]
    expected, *_ = plain_effect(*([few[word] for word in group if word in few] for group in (X, Y, A, B)))
    assert figures[0].value == pytest.approx(expected, rel=1e-5)
    assert figures[3].over.startswith("8 words")
    none = {word: vector for word, vector in words.items() if word not in X[1:]}
    (piece,) = bias.pieces(path, [Planted(of_words(none, 12))], Options())
    assert all(np.isnan(figure.value) and "too few" in figure.over for figure in piece.figures())


def test_without_pairs_nothing_is_debiased(tmp_path):
    path = write(tmp_path, pairs=None, templates=None)
    system = Planted(of_words(gendered(np.random.default_rng(10)), 12), layers=("first", "second"))
    (piece,) = bias.pieces(path, [system], Options())
    assert [figure.vectors for figure in piece.figures()] == ["first", "second", "average"]
    with pytest.raises(InputError, match='has no "pairs"'):
        bias.debiased([system], path)
    with pytest.raises(InputError, match="knows both words of none of the pairs"):
        bias.debiased([Planted(of_words({}, 12))], write(tmp_path))[0].embed([["she"]])
    (tmp_path / "more.json").write_text(json.dumps(SETS))
    with pytest.raises(InputError, match="has 2 files of word sets"):
        bias.debiased([system], str(tmp_path))
