import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TOLERANCE, relative_error

from elmo_jax import losses
from elmo_jax.losses import SampledWords, full_softmax_loss, log_expected_count, sample_negatives, sampled_softmax_loss


def example(tokens=5, dim=7, vocabulary=23, seed=0):
    generator = np.random.default_rng(seed)
    hidden, weight, bias = (generator.normal(size=s) for s in ((tokens, dim), (vocabulary, dim), (vocabulary,)))
    targets = generator.integers(0, vocabulary, tokens).astype(np.int32)
    return (*(a.astype(np.float32) for a in (hidden, weight, bias)), targets)


def sampled(hidden, weight, bias, words):
    """The sampled softmax of whole tables."""
    rows = ({"weight": weight[ids], "bias": bias[ids]} for ids in (words.targets, words.negatives))
    return sampled_softmax_loss(hidden, *rows, words)


@pytest.mark.parametrize("block", [4, 8, 23, 100])
def test_full_softmax_in_blocks(block, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK", block)
    hidden, weight, bias, targets = example()
    scale = np.arange(1, 6, dtype=np.float32)

    def obvious(hidden, weight, bias):
        logits = jnp.matmul(hidden, weight.T, precision="highest") + bias[None]
        return jnp.sum(scale * -jax.nn.log_softmax(logits)[jnp.arange(5), targets])

    def ours(hidden, weight, bias):
        return jnp.sum(scale * full_softmax_loss(hidden, weight, bias, targets))

    expected = jax.value_and_grad(obvious, (0, 1, 2))(hidden, weight, bias)
    found = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(hidden, weight, bias)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(one, other) < TOLERANCE


def test_full_softmax_of_large_logits():
    hidden, weight, bias, targets = example()
    assert np.isfinite(full_softmax_loss(1000 * hidden, weight, bias, targets)).all()


def test_full_softmax_in_bfloat16_is_near():
    inputs = example()
    exact, rounded = full_softmax_loss(*inputs), full_softmax_loss(*inputs, "bfloat16")
    assert 1e-6 < relative_error(rounded, exact) < 0.02


def test_accidental_hits_count_nothing():
    hidden, weight, bias, targets = example()
    counts = np.zeros(5, np.float32), np.zeros(5, np.float32)
    negatives = targets[0] + np.zeros(5, np.int32)
    loss = sampled(hidden, weight, bias, SampledWords(targets, negatives, *counts))
    assert loss[0] == 0
    assert (np.asarray(loss)[targets != targets[0]] > 0).all()


def test_sampled_softmax_over_all_words_is_the_full_softmax():
    hidden, weight, bias, targets = example()
    everything = np.arange(23, dtype=np.int32)
    words = SampledWords(targets, everything, np.zeros(5, np.float32), np.zeros(23, np.float32))
    loss = sampled(hidden, weight, bias, words)
    assert relative_error(loss, full_softmax_loss(hidden, weight, bias, targets)) < TOLERANCE


def test_sampler_is_a_function_of_its_key():
    first, draws = sample_negatives(1000, 50, (7, 1))
    again, _ = sample_negatives(1000, 50, (7, 1))
    other, _ = sample_negatives(1000, 50, (7, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert len(set(first.tolist())) == 50
    assert draws >= 50
    assert first.min() >= 0
    assert first.max() < 1000
    with pytest.raises(ValueError, match="11 different words of 10"):
        sample_negatives(10, 11, (7, 1))


def inclusion_probabilities(probability, count):
    """Exact probability that each word is among the first `count` different words drawn."""
    included = np.zeros(len(probability))
    for drawn in itertools.permutations(range(len(probability)), count):
        chance, left = 1.0, 1.0
        for word in drawn:
            chance *= probability[word] / left
            left -= probability[word]
        included[list(drawn)] += chance
    return included


def test_sampler_is_unbiased():
    """Frequency of each word among the samples against its exact probability.

    20,000 samples; each of the 6 words may be off by 5.5 standard errors, so that a correct sampler fails with a
    probability of less than 6 · 4e-8 = 3e-7 (two-sided normal tail).
    """
    vocabulary, count, samples = 6, 3, 20_000
    probability = np.log((np.arange(6) + 2) / (np.arange(6) + 1)) / np.log(7)
    expected = inclusion_probabilities(probability, count)
    seen = np.zeros(vocabulary)
    for number in range(samples):
        seen[sample_negatives(vocabulary, count, (11, number))[0]] += 1
    error = np.sqrt(expected * (1 - expected) / samples)
    assert (np.abs(seen / samples - expected) < 5.5 * error).all()


def test_number_of_draws_is_that_of_a_drawing_one_by_one():
    """Words that fill the sample are new, all draws before it hold fewer: checked against a replay of the draws."""
    vocabulary, count, key = 30, 12, (5,)
    ids, draws = sample_negatives(vocabulary, count, key)
    generator = np.random.Generator(np.random.PCG64(key))
    found, number = [], 0
    while len(found) < count:
        for uniform in generator.random(1):
            word = int(np.exp(uniform * np.log(vocabulary + 1))) - 1
            number += 1
            if word not in found:
                found.append(word)
            if len(found) == count:
                break
    assert ids.tolist() == found
    assert draws == number


def test_expected_counts_of_the_original(golden):
    """The recorded counts are those of one number of draws."""
    data = np.load(golden / "sampled_softmax.npz")
    vocabulary = len(data["softmax_b"])
    ids = np.concatenate([data["labels"], data["sampled_ids"]]).astype(np.int32)
    counts = np.concatenate([data["true_expected_count"], data["sampled_expected_count"]])
    p = np.log1p(1 / (ids.astype(np.float64) + 1)) / np.log(vocabulary + 1)
    draws = np.log1p(-counts.astype(np.float64)) / np.log1p(-p)
    least_frequent = np.argsort(counts)[:20]
    draws = np.int32(round(np.median(draws[least_frequent])))
    assert relative_error(np.exp(log_expected_count(ids, draws, vocabulary)), counts) < TOLERANCE
