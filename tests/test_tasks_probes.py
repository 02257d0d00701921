"""Linear probes against scikit-learn, standardising, training of heads, and what becomes of fine-tuned figures."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from planted import Planted
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from elmo_jax.tasks import probes
from elmo_jax.tasks.report import Figure

CLASSES, LAYERS, WIDTH, COUNT = 3, 2, 5, 90


@pytest.fixture(scope="module")
def planted():
    """Features of which the second layer tells the label, and the first, much larger, nothing; five folds."""
    generator = np.random.default_rng(0)
    labels = np.arange(COUNT) % CLASSES
    features = generator.normal(size=(COUNT, LAYERS, WIDTH)).astype(np.float32)
    features[:, 1] += 1.5 * np.eye(CLASSES, WIDTH)[labels]
    features *= np.array([100, 0.01], np.float32)[None, :, None]
    features += np.float32(7)
    return features, labels, generator.permutation(COUNT) % 5


@pytest.fixture(scope="module")
def probed(planted):
    return probes.probe(*planted)


def test_on_one_layer_it_is_scikit_learns(planted):
    features, labels, folds = planted
    one, training = features[:, [1]], folds != 0
    every = np.arange(5)[:, None] != folds
    solved = probes._solve(one, labels.astype(np.int32), every, np.full(5, 0.01, np.float32), CLASSES)
    mean, scale = one[training, 0].mean(0), one[training, 0].std(0)
    reference = LogisticRegression(C=1 / (0.01 * training.sum()), tol=1e-8, max_iter=1000)
    reference.fit((one[training, 0] - mean) / scale, labels[training])
    expected = reference.predict_proba((one[:, 0] - mean) / scale)
    np.testing.assert_allclose(np.exp(solved.logs[0]), expected, atol=0.01)
    assert expected.std() > 0.2


def test_the_layer_that_knows_gets_the_weight(planted, probed):
    _, labels, folds = planted
    assert probed.labels.shape == (5, COUNT)
    assert (probed.labels[folds, np.arange(COUNT)] == labels).mean() > 0.7
    assert probed.mixes.shape == (5, LAYERS)
    np.testing.assert_allclose(probed.mixes.sum(1), 1, rtol=1e-5)
    assert (probed.mixes[:, 1] > 0.6).all()


def test_what_is_tested_is_not_learned(planted, probed):
    """Other labels and vectors in fold 0 change nothing of the probe that is tested there."""
    features, labels, folds = planted
    others = features.copy(), labels.copy()
    others[0][folds == 0] += 5
    others[1][folds == 0] = 0
    again = probes.probe(*others, folds)
    assert again.strengths[0] == probed.strengths[0]
    np.testing.assert_allclose(again.mixes[0], probed.mixes[0], atol=0.01)
    assert (again.labels[0] == probed.labels[0])[folds != 0].all()
    assert (again.labels[1:] != probed.labels[1:]).any()


def test_the_strength_is_chosen_on_the_next_fold(planted):
    """The one with which scikit-learn's, of folds 2 to 4, makes the labels of fold 1 most probable."""
    features, labels, folds = planted
    found = probes.probe(features[:, [1]], labels, folds)
    learned, chosen = folds >= 2, folds == 1
    standard = (features[:, 1] - features[learned, 1].mean(0)) / features[learned, 1].std(0)
    losses = []
    for strength in probes.STRENGTHS:
        reference = LogisticRegression(C=1 / (strength * learned.sum()), max_iter=1000)
        reference.fit(standard[learned], labels[learned])
        losses.append(log_loss(labels[chosen], reference.predict_proba(standard[chosen])))
    assert found.strengths[0] == np.float32(probes.STRENGTHS[np.argmin(losses)])
    assert len(set(np.round(losses, 4))) == len(losses)


def test_a_mix_of_layers_that_vary_alike_varies_as_they_do():
    layers = np.random.default_rng(0).normal(size=(4000, 3))
    mixed = layers @ np.asarray(probes.of_unit_variance(jnp.array([0.5, -0.3, 0.1])))
    assert abs(mixed.std() - 1) < 0.05


def test_standardising_is_of_the_rows_that_are_learned(monkeypatch):
    monkeypatch.setattr(probes, "ROWS_OF_STATISTICS", 4)
    values = np.random.default_rng(0).normal(3, 2, size=(30, 2, 5)).astype(np.float32)
    values[:, 1, 4] = 6
    rows = np.arange(0, 30, 3)
    standard = probes.Standard.of(values, rows)
    np.testing.assert_allclose(standard.mean, values[rows].mean(0), rtol=1e-5)
    expected = values[rows].std(0)
    expected[1, 4] = 1
    np.testing.assert_allclose(standard.scale, expected, rtol=1e-5)
    np.testing.assert_allclose(standard.applied(values)[rows].mean(0), np.zeros((2, 5)), atol=1e-5)


def test_heads_are_of_layers_and_of_their_mix():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(4, LAYERS, WIDTH)).astype(np.float32)
    heads = {
        "mix": np.float32([[9, 9], [9, 9], [0, 1]]),
        "gamma": np.float32([5, 5, 2]),
        "weight": generator.normal(size=(LAYERS + 1, WIDTH, CLASSES)).astype(np.float32),
        "bias": generator.normal(size=(LAYERS + 1, CLASSES)).astype(np.float32),
    }
    found = jax.jit(probes.heads_of)(heads, vectors)
    shares = 2 * np.exp([0, 1]) / np.exp([0, 1]).sum()
    inputs = np.stack([*vectors.swapaxes(0, 1), np.einsum("l,nld->nd", shares, vectors)])
    np.testing.assert_allclose(found, inputs @ heads["weight"] + heads["bias"][:, None], rtol=1e-4, atol=1e-5)
    one = {name: array[:1] for name, array in heads.items()}
    (alone,) = jax.jit(probes.heads_of)(one, vectors[:, :1])
    np.testing.assert_allclose(alone, vectors[:, 0] @ one["weight"][0] + one["bias"], rtol=1e-4, atol=1e-5)


def test_heads_begin_with_zeros():
    heads = probes.initial_heads(3, LAYERS, WIDTH, CLASSES)
    assert heads["weight"].shape == (3, LAYERS + 1, WIDTH, CLASSES)
    assert not heads["weight"].any()


def test_one_layer_has_one_head():
    heads = jax.eval_shape(lambda: probes.initial_heads(2, 1, WIDTH, CLASSES))
    assert heads["weight"].shape == (2, 1, WIDTH, CLASSES)
    assert probes.names_of_heads(Planted(None, layers=["words"])) == ("words",)
    assert probes.names_of_heads(Planted(None, layers=["words", "LSTM 1"])) == ("words", "LSTM 1", "mix")


def test_dropout_is_of_dimensions_of_an_example():
    dropped = np.asarray(probes.dropped(jax.random.key(0), jnp.ones((3, 7, 2, 40))))
    assert set(np.unique(dropped)) == {0, 2}
    assert (dropped == dropped[:, :1, :1]).all()
    assert (dropped[0] != dropped[1]).any()


def walk(parameters, batch, step):
    return -batch * parameters["place"].sum()


def test_training_keeps_what_was_best_of_each():
    """Places go up by 1 an epoch; the first is best at 2, the second at the end, and then all stop."""
    parameters = {"place": jnp.zeros((2, 1))}
    best = np.array([[2.0], [5.0]])
    score = lambda parameters: -np.abs(np.asarray(parameters["place"]) - best)
    options = {"epochs": 20, "patience": 3, "what": "a test", "fewest_steps": 1}
    trained = probes.train(parameters, walk, optax.sgd(1.0), lambda _: [np.float32(1)], score, **options)
    np.testing.assert_allclose(trained.parameters["place"], best)
    assert trained.epochs.tolist() == [[2], [5]]
    short = probes.train(parameters, walk, optax.sgd(1.0), lambda _: [np.float32(1)], score, **options | {"epochs": 3})
    np.testing.assert_allclose(short.parameters["place"], [[2], [3]])
    passes = []
    batches = lambda number: passes.append(number) or [np.float32(1)] * 2
    probes.train(parameters, walk, optax.sgd(1.0), batches, score, **options | {"epochs": 2, "fewest_steps": 3})
    assert passes == [0, 1, 2, 3]


def test_seeds_of_fine_tuned_models_become_one_figure():
    def figure(vectors, value, seed):
        details = {"values": [value], "seeds": [seed], "scheme": "IOB2"}
        return Figure("chunking", "mine", "small", vectors, "F1", value, math.nan, math.nan, "1 seed", details)

    tuned = [figure(probes.FINE_TUNED, value, seed) for seed, value in enumerate((0.8, 0.9))]
    figures = [figure("mix", 0.7, 0), *tuned, figure("words", 0.1, 0)]
    first, joined, last = probes.joined(figures)
    assert (first, last) == (figures[0], figures[3])
    assert joined.value == pytest.approx(0.85)
    assert joined.low < 0.8
    assert joined.over == "2 seeds"
    assert joined.details == {"values": [0.8, 0.9], "seeds": [0, 1], "scheme": "IOB2"}
