"""The forms of programs for TPUs and GPUs, compiled for CPU: they compute what the CPU's form computes."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import SENTENCES, SMALL, TOLERANCE, place_on, relative_error, take_form, write_random_model
from test_training import ROWS, VOCABULARY, WINDOW, config, corpus, initial_parameters, train

import elmo_jax
from elmo_jax import compilation, engine, parallel, training, word_vectors
from elmo_jax.char_cnn import char_cnn_shapes, character_cnn
from elmo_jax.model import state_after, zero_state
from elmo_jax.products import FORMS, compiled_for, form, platform, product
from elmo_jax.streams import Batch, LanguageModelStream, word_encoder

OTHERS = [name for name in FORMS if name != "cpu"]


def losses_and_gradients(config, devices):
    """Of a window: losses, gradients and the LSTM state that it leaves, and the program's text."""
    text = corpus()
    encode = word_encoder(text, config.model)
    batch = next(LanguageModelStream(text, ROWS, WINDOW, encode, devices=devices))
    parameters = jax.tree.map(np.asarray, initial_parameters(config.model))
    negatives = training.draw_negatives(config, len(VOCABULARY), 1) if config.train.softmax == "sampled" else None
    lstm_state = jax.tree.map(lambda leaf: leaf.reshape(devices, -1, leaf.shape[-1]), zero_state(config.model, ROWS))
    row_ids = np.arange(ROWS, dtype=np.int32).reshape(devices, -1)

    def gradients(state, lstm_state, batch, row_ids):
        inputs, exchange = training.loss_inputs(state, lstm_state, batch, row_ids, negatives)
        rows = exchange.fetch(state.parameters["softmax"])
        found, losses, lstm_state = training.loss_gradients(config, state.parameters | {"softmax": rows}, inputs)
        return found["bilm"], jax.tree.leaves(found["softmax"]), losses, lstm_state

    state = place_on(devices, training.init_state(parameters), ROWS)
    program = parallel.parallel(gradients, (training.STATE_AXES, 0, 0, 0), (None, 0, None, 0))
    arguments = state, lstm_state, batch, row_ids
    return jax.tree.map(np.asarray, program(*arguments)), program.lower(*arguments).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"dropout": 0.3}, {"highway_layers": 2}),
        ({"softmax": "full"}, {"activation": "tanh", "cell_clip": 0.3, "projection_clip": 0.2}),
        ({}, {"cell_dim": 7, "skip_connections": False}),
    ],
    ids=["sampled, dropout", "full, tanh, clipped", "not projected"],
)
def test_forms_agree_in_training(monkeypatch, name, options, changes):
    """Values and gradients of the loss: in float32 to 1e-5, in bfloat16 as near to float32 as the CPU's form is."""
    devices = 2 if options.get("softmax") != "full" else 1
    chosen = config(**options)
    chosen = dataclasses.replace(chosen, model=dataclasses.replace(SMALL, **changes))
    rounded = dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, precision="bfloat16"))
    (exact, text), (near, near_text) = losses_and_gradients(chosen, devices), losses_and_gradients(rounded, devices)
    take_form(monkeypatch, name)
    (found, other_text), (other_near, bits_text) = (losses_and_gradients(one, devices) for one in (chosen, rounded))
    assert text != other_text
    # The CPU alone keeps bfloat16 as its bits; characters are uint16 in all of them.
    assert near_text.count("xui16>") > text.count("xui16>")
    assert "xbf16>" in bits_text
    assert bits_text.count("bitcast_convert") < near_text.count("bitcast_convert")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert relative_error(one, other) < TOLERANCE
    errors = [
        np.array([relative_error(one, other) for one, other in zip(*map(jax.tree.leaves, pair), strict=True)])
        for pair in ((other_near, exact), (near, exact))
    ]
    assert (errors[0] < np.maximum(2 * errors[1], 0.01)).all(), errors


@pytest.mark.parametrize("name", OTHERS)
def test_tanh_near_its_ends(name):
    """Where features are nearly 1, rounded ones would have no slope: gradients in bfloat16 as near as the CPU's."""
    model = dataclasses.replace(SMALL, activation="tanh")
    generator = np.random.default_rng(0)
    shapes = char_cnn_shapes(model)
    parameters = {key: generator.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    characters = generator.integers(0, 261, (20, model.max_characters)).astype(np.uint16)
    weights = generator.normal(size=(20, model.projection_dim)).astype(np.float32)

    def gradients(name, precision):
        vectors = lambda parameters: character_cnn(parameters, characters, np.int32(20), model, precision)
        with compiled_for(name):
            return jax.jit(jax.grad(lambda parameters: (weights * vectors(parameters)).sum()))(parameters)

    exact, near, found = gradients("cpu", "float32"), gradients("cpu", "bfloat16"), gradients(name, "bfloat16")
    for key in parameters:
        assert relative_error(found[key], exact[key]) < max(2 * relative_error(near[key], exact[key]), 0.01), key


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, {"state": "carry", "batch_size": 3}], ids=["warm", "carry"])
def test_forms_agree_in_embedding(tmp_path, monkeypatch, name, precision, options):
    folder = write_random_model(tmp_path / "model", SMALL)
    embed = lambda: np.concatenate(elmo_jax.load(folder).embed(SENTENCES, precision=precision, **options))
    expected = embed()
    take_form(monkeypatch, name)
    monkeypatch.setattr(compilation, "_compiled", set())
    caches = engine.embedding_program, word_vectors.spelling_program
    for cached in caches:
        cached.cache_clear()
    state_after.clear_cache()
    try:
        with compiled_for(name):
            assert relative_error(embed(), expected) < {"float32": TOLERANCE, "bfloat16": 0.01}[precision]
    finally:
        for cached in caches:
            cached.cache_clear()
        state_after.clear_cache()


@pytest.mark.parametrize("count", [1, 5, 6, 39, 40])
def test_words_that_are_not_there_are_left_out(count):
    """U = 40 words, so steps of 5: all that are there stay, in few sizes."""
    words = np.arange(2 * 40 * 3, dtype=np.uint16).reshape(2, 40, 3)
    batch = Batch(words, np.array([1, count], np.int32), *(None,) * 5)
    found = training.trimmed(batch)
    assert count <= found.words.shape[1] < count + 5
    assert found.words.shape[1] % 5 == 0
    assert (found.words == words[:, : found.words.shape[1]]).all()


@pytest.mark.slow
def test_trimmed_steps_are_the_same(monkeypatch):
    """Three steps in the form for GPUs, whose char CNN takes what words there are at once."""
    expected, state, _ = train(config(), 2, 3)
    take_form(monkeypatch, "gpu")
    with compiled_for("gpu"):
        found, other_state, _ = train(config(), 2, 3)
    assert relative_error(found, expected) < TOLERANCE
    for one, other in zip(jax.tree.leaves(other_state), jax.tree.leaves(state), strict=True):
        assert relative_error(one, other) < TOLERANCE


def test_high_precision():
    """On CPU that of float32; elsewhere it asks for fewer passes."""
    x, y = np.random.default_rng(0).normal(size=(2, 5, 5)).astype(np.float32)
    multiply = lambda precision: jax.jit(lambda x, y: product(x, y, precision))
    assert (multiply("high")(x, y) == multiply("float32")(x, y)).all()
    texts = {precision: multiply(precision).lower(x, y).as_text() for precision in ("float32", "high", "bfloat16")}
    assert [text.count("HIGHEST, HIGHEST") for text in texts.values()] == [1, 0, 0]
    assert [text.count("[HIGH, HIGH]") for text in texts.values()] == [0, 1, 0]


def test_programs_take_the_form_for_their_devices():
    assert (platform(), form()) == ("cpu", FORMS["cpu"])
    for device, name in (("cuda", "gpu"), ("rocm", "gpu"), ("tpu", "tpu")):
        with compiled_for(device):
            assert (platform(), form()) == (name, FORMS[name])
            with compiled_for("cpu"):
                assert platform() == "cpu"
            assert platform() == name
