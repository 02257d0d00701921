import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_elmo
import pytest
from conftest import ROOT, SMALL, TOLERANCE, random_weights, relative_error, write_random_model

import elmo_jax
from elmo_jax.char_cnn import character_cnn, spelled_vectors
from elmo_jax.config import load_config, to_options
from elmo_jax.lstm import LSTMState, lstm, plain_lstm
from elmo_jax.model import scalar_mix, zero_state
from elmo_jax.modules import BiLM, ScalarMix, init_bilm
from elmo_jax.products import FORMS, compiled_for, matmul, packed, rounded, unpacked


def window(model=SMALL, rows=2, window=5, words=13, seed=0):
    """Random parameters and a window: parameters, (words, forward, backward, state)."""
    generator = np.random.default_rng(seed)
    parameters = jax.tree.map(lambda leaf: 2 * leaf, init_bilm(jax.random.key(seed), model))
    characters = generator.integers(0, 261, (words, model.max_characters)).astype(np.int32)
    forward, backward = generator.integers(0, words, (2, rows, window)).astype(np.int32)
    return {"params": parameters}, (characters, np.int32(words), forward, backward, zero_state(model, rows))


@pytest.mark.parametrize(("name", "count"), [("small", 13_593_296), ("medium", 28_027_728), ("original", 93_600_848)])
def test_parameter_counts(name, count):
    model = load_config(name, ROOT / "configs").model
    shapes = jax.eval_shape(lambda: init_bilm(jax.random.key(0), model))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_two_windows_are_one():
    parameters, (words, count, forward, backward, state) = window(window=6)
    apply = jax.jit(BiLM(SMALL).apply)
    whole, end = apply(parameters, words, count, forward, backward, state)
    first, state = apply(parameters, words, count, forward[:, :2], backward[:, :2], state)
    second, state = apply(parameters, words, count, forward[:, 2:], backward[:, 2:], state)
    assert relative_error(np.concatenate([first, second], 3), whole) < 1e-6
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(end), strict=True):
        assert relative_error(one, other) < 1e-6


def test_reset_starts_anew():
    parameters, (words, count, forward, backward, state) = window(window=6)
    apply = jax.jit(BiLM(SMALL).apply)
    start = jax.tree.map(lambda leaf: 0.3 * jnp.ones(leaf.shape), zero_state(SMALL))
    reset = np.zeros((2, 6), bool)
    reset[0, 2] = True
    found, _ = apply(parameters, words, count, forward, backward, state, reset=reset, start_state=start)
    carried, _ = apply(parameters, words, count, forward, backward, state)
    rows = jax.tree.map(lambda leaf: jnp.tile(leaf[None], (2, 1)), start)
    anew, _ = apply(parameters, words, count, forward[:, 2:], backward[:, 2:], rows)
    assert relative_error(found[:, :, 0, 2:], anew[:, :, 0]) < 1e-6
    assert relative_error(found[:, :, 0, :2], carried[:, :, 0, :2]) < 1e-6
    assert relative_error(found[:, :, 1], carried[:, :, 1]) < 1e-6
    assert relative_error(found[:, 1:, 0, 2:], carried[:, 1:, 0, 2:]) > 1e-2


UNCLIPPED = {"cell_clip": None, "projection_clip": None}


@pytest.mark.parametrize(
    ("changes", "precision", "limit", "masked"),
    [
        ({}, "float32", 1e-5, False),
        ({"cell_clip": 0.3, "projection_clip": 0.2}, "float32", 1e-5, False),
        ({"cell_clip": 0.3, "projection_clip": 0.2}, "float32", 1e-5, True),
        (UNCLIPPED, "float32", 1e-5, False),
        ({"cell_dim": 7}, "float32", 1e-5, True),
        (UNCLIPPED, "bfloat16", 0.05, False),  # clipping turns rounding into steps
    ],
)
@pytest.mark.parametrize("platform", FORMS)
def test_lstm_is_its_definition(changes, precision, limit, masked, platform):
    """Values, and gradients of parameters, inputs, state and the state at resets; bfloat16 as near as its rounding."""
    model = dataclasses.replace(SMALL, **changes)
    generator = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
    rows, positions, size, cell = 3, 5, model.projection_dim, model.cell_dim
    parameters = {"kernel": normal(2 * size, 4 * cell), "bias": normal(4 * cell)}
    if cell != size:
        parameters["projection"] = normal(cell, size)
    inputs = normal(positions, rows, size)
    state, start = LSTMState(normal(rows, cell), normal(rows, size)), LSTMState(normal(cell), normal(size))
    reset = jnp.asarray(generator.random((positions, rows)) < 0.3)
    weights = normal(positions, rows, size), LSTMState(normal(rows, cell), normal(rows, size))
    mask = jnp.asarray(generator.random((rows, size)) < 0.7, jnp.float32) / 0.7 if masked else None

    def values_and_gradients(function):
        def weighted(parameters, inputs, state, start):
            results = function(parameters, inputs, state, start)
            pairs = zip(jax.tree.leaves(results), jax.tree.leaves(weights), strict=True)
            return sum(jnp.vdot(one, other) for one, other in pairs), results

        with compiled_for(platform):
            differentiate = jax.jit(jax.grad(weighted, (0, 1, 2, 3), has_aux=True))
            gradients, results = differentiate(parameters, inputs, state, start)
        return results, gradients

    fast = lambda p, x, state, start: lstm(p, x, state, model, precision, reset, start, None, mask)
    exact = values_and_gradients(lambda p, x, state, start: plain_lstm(p, x, state, model, reset, start, mask))
    found = values_and_gradients(fast)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert np.abs(other).max() > 0.01
        assert relative_error(one, other) < limit


@pytest.mark.parametrize("direction", [0, 1])
def test_causality(direction):
    """The language model at position t depends on what it has read, t included, and on nothing after."""
    positions = 5
    parameters, (_, count, _, _, state) = window(words=positions, window=positions, rows=1)
    table = jax.random.normal(jax.random.key(1), (positions, SMALL.projection_dim))
    model = dataclasses.replace(SMALL, input="words")
    read = np.arange(positions, dtype=np.int32)[None]  # forward rows read 0, 1, .., backward rows .., 1, 0

    def outputs(table):
        tree = {"params": parameters["params"] | {"words": {"embedding": table}}}
        activations, _ = BiLM(model, positions).apply(tree, read[0], count, read, read[:, ::-1], state)
        return activations[direction, -1, 0]  # [T, P] in reading order

    jacobian = jax.jit(jax.jacrev(outputs))(table)  # [T, P, words, P]
    influence = np.abs(jacobian).max((1, 3))  # [position, word]
    if direction == 1:
        influence = influence[::-1]  # by place in the sentence: the backward model reads the last word first
    for place in range(positions):
        visible = influence[place, : place + 1] if direction == 0 else influence[place, place:]
        hidden = influence[place, place + 1 :] if direction == 0 else influence[place, :place]
        assert (visible > 0).all()
        assert (hidden == 0).all()


def test_packed_numbers_are_rounded_as_by_astype():
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 100_000, np.uint32)
    bits[:50_000] = bits[:50_000] & 0xFFFF0000 | 0x8000  # half way between two
    x = bits.view(np.float32)
    nans = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001, 0x7FFF8000], np.uint32).view(np.float32)
    x = np.concatenate([x[~np.isnan(x)], nans, np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3.3e38, 1e-45])])
    expected = np.asarray(jnp.asarray(x).astype(jnp.bfloat16))
    kept = packed(jnp.asarray(x), "bfloat16")
    assert kept.dtype == jnp.uint16
    assert (np.asarray(rounded(kept, "bfloat16")).view(np.uint16) == expected.view(np.uint16)).all()
    assert np.array_equal(unpacked(kept), expected.astype(np.float32), equal_nan=True)
    assert np.isnan(unpacked(packed(jnp.asarray(nans), "bfloat16"))).all()
    assert packed(x, "float32") is x


@pytest.mark.parametrize("platform", FORMS)
def test_chunks_of_words_do_not_matter(platform):
    """Of two and a half chunks one and a few words are used: vectors and gradients as of one product over all."""
    chunk, generator = FORMS["cpu"].chunk, np.random.default_rng(0)
    cnn = {name: jnp.asarray(leaf) for name, leaf in window()[0]["params"]["words"].items()}
    characters = generator.integers(0, 261, (5 * chunk // 2, SMALL.max_characters)).astype(np.uint16)
    count, weights = np.int32(chunk + 9), generator.normal(size=(chunk + 9, 7)).astype(np.float32)

    def in_chunks(cnn):
        vectors = character_cnn(cnn, characters, count, SMALL, "float32")[:count]
        return (weights * vectors).sum(), vectors

    def at_once(cnn):
        vectors = spelled_vectors(cnn, characters[:count], SMALL, "float32")
        return (weights * vectors).sum(), vectors

    with compiled_for(platform):
        found = jax.jit(jax.grad(in_chunks, has_aux=True))(cnn)
    expected = jax.jit(jax.grad(at_once, has_aux=True))(cnn)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(one, other) < TOLERANCE


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("columns", [7, 4])  # more and fewer than x has: then its gradient is transposed instead of x
def test_gradients_of_matmul(precision, columns):
    x, weight = jax.random.normal(jax.random.key(0), (2, 3, 5)), jax.random.normal(jax.random.key(1), (5, columns))
    out, gradients = jax.vjp(lambda x, weight: matmul(x, weight, precision), x, weight)
    expected, expected_gradients = jax.vjp(lambda x, weight: jnp.matmul(x, weight, precision="highest"), x, weight)
    cotangent = jax.random.normal(jax.random.key(2), out.shape)
    bound = {"float32": 1e-6, "bfloat16": 1e-2}[precision]  # bfloat16 keeps 8 bits: 2^-9 is 2e-3, a few of them add up
    assert relative_error(out, expected) < bound
    for found, wanted in zip(gradients(cotangent), expected_gradients(cotangent), strict=True):
        assert relative_error(found, wanted) < bound
        assert found.dtype == jnp.float32


def test_bfloat16_is_near_float32_and_not_the_same():
    parameters, inputs = window()
    exact, _ = jax.jit(BiLM(SMALL).apply)(parameters, *inputs)
    rounded, state = jax.jit(BiLM(SMALL, precision="bfloat16").apply)(parameters, *inputs)
    assert 1e-5 < relative_error(rounded, exact) < 0.05
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32")}


def test_scalar_mix():
    activations = np.random.default_rng(0).normal(size=(3, 2, 5, 7)).astype(np.float32)
    mix = ScalarMix()
    parameters = mix.init(jax.random.key(0), activations)
    assert relative_error(mix.apply(parameters, activations), activations.mean(0)) < 1e-6
    weights = np.array([0.5, -1, 2], np.float32)
    share = np.exp(weights) / np.exp(weights).sum()
    expected = 1.5 * np.einsum("l,lbtp->btp", share, activations)
    assert relative_error(scalar_mix(activations, weights, np.float32(1.5)), expected) < 1e-6


def test_scalar_mix_with_layer_norm():
    activations = np.random.default_rng(0).normal(2, 3, size=(3, 2, 5, 7)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    normal = [(layer - layer[mask].mean()) / layer[mask].std() for layer in activations]
    found = scalar_mix(activations, np.zeros(3, np.float32), np.float32(1), True, mask)
    assert relative_error(found, np.mean(normal, 0)) < 1e-5


@pytest.mark.parametrize("width", [17, 20])
def test_wide_filters_embed(width, tmp_path):
    """Also from a warm state, for which the char CNN's scan reads a few words."""
    model = dataclasses.replace(SMALL, filters=((1, 4), (width, 6)), max_characters=30, layers=1)
    sentence = ["a", "incomprehensibilities", "🐈"]
    (found,) = elmo_jax.load(write_random_model(tmp_path, model)).embed([sentence], layers="all", boundaries=True)
    expected = numpy_elmo.embed(sentence, random_weights(model), to_options(model))
    assert relative_error(found[0], expected[0]) < TOLERANCE
    assert np.isfinite(found).all()
