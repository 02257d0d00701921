"""Training against the original: replays the recorded batches of bilm-tf runs."""

import functools
import itertools
import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, TOLERANCE, place_on, relative_error, to_host

from elmo_jax import softmax_table, training
from elmo_jax.bundles import tree_of, variable_names
from elmo_jax.config import Config, TrainConfig, from_options
from elmo_jax.corpus import Corpus, sentences
from elmo_jax.evaluation import evaluator
from elmo_jax.losses import SampledWords, full_softmax_loss, sampled_softmax_loss
from elmo_jax.model import zero_state
from elmo_jax.parallel import fetch, parallel
from elmo_jax.streams import LanguageModelStream, Layout, make_batch, word_encoder
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import named_weights, write_arrays

TRACES = sorted(path.parent for path in GOLDEN.glob("training/*/trace.npz"))
needs_golden = pytest.mark.skipif(not TRACES, reason=f"no training traces under {GOLDEN} (set ELMO_GOLDEN)")


def read_tree(file, model):
    """Arrays by TensorFlow's variable names → a tree like the parameters."""
    arrays = dict(np.load(file))
    assert set(arrays) == set(variable_names(model))
    return tree_of(model, arrays)


def worst(actual, expected):
    """The largest relative error of any array of a tree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    return max(map(relative_error, jax.tree.leaves(actual), jax.tree.leaves(expected)))


def recorded_batch(trace, step, devices):
    """A step's batch of the trace; every distinct row of character ids is a word type."""
    inputs, ids, targets = (
        np.stack([trace[name][step], trace[f"{name}_reverse"][step]])
        for name in (characters(trace), "token_ids", "next_token_id")
    )
    spellings, numbers = np.unique(inputs.reshape(ids.size, -1), axis=0, return_inverse=True)
    if characters(trace) == "token_ids":
        encode = spellings[:, 0].astype(np.int32).__getitem__
    else:
        encode = spellings.astype(np.uint16).__getitem__
    unused = np.zeros(ids.shape[1:], bool)
    numbers, targets = numbers.reshape(ids.shape).astype(np.int32), targets.astype(np.int32)
    return make_batch(numbers, targets, unused, unused, devices, encode)


def characters(trace):
    """What the recorded model reads: characters, or words by number."""
    return "tokens_characters" if "tokens_characters" in trace else "token_ids"


@needs_golden
@pytest.mark.parametrize("folder", TRACES, ids=lambda folder: folder.name)
def test_replay(folder, tmp_path):
    options = json.loads((folder / "options.json").read_text())
    model = from_options(options, "options.json")
    assert (options["sample_softmax"], options["dropout"]) == (False, 0.0)
    config = Config(
        model,
        train=TrainConfig(
            batch_size=options["batch_size"],
            window=options["unroll_steps"],
            learning_rate=options["learning_rate"],
            clip_norm=options["all_clip_norm_val"],
            dropout=0.0,
            softmax="full",
        ),
    )
    trace = np.load(folder / "trace.npz")
    rows = trace["token_ids"].shape[1]
    devices = rows // options["batch_size"]
    step = training.step_on_devices(config, donate=False)
    initial = training.init_state(read_tree(folder / "initial.npz", model))
    size = len(initial.parameters["softmax"]["bias"])
    state = place_on(devices, initial, rows)
    lstm_state = jax.tree.map(lambda leaf: leaf.reshape(devices, -1, leaf.shape[-1]), zero_state(model, rows))
    row_ids = np.arange(rows, dtype=np.int32).reshape(devices, -1)

    def first_gradients(state, lstm_state, batch, row_ids):
        inputs, _ = training.loss_inputs(state, lstm_state, batch, row_ids, None)
        gradients = training.loss_gradients(config, state.parameters, inputs)[0]
        return gradients["bilm"], gradients["softmax"]["weight"], gradients["softmax"]["bias"]

    first = state, lstm_state, recorded_batch(trace, 0, devices), row_ids
    bilm, *softmax = parallel(first_gradients, (training.STATE_AXES, 0, 0, 0), (None, 0, 0))(*first)
    softmax = softmax_table.to_host(dict(zip(("weight", "bias"), softmax, strict=True)), size, rows)
    gradients = {"bilm": fetch(bilm), "softmax": softmax}
    assert worst(gradients, read_tree(folder / "gradients_step0.npz", model)) < TOLERANCE

    losses, norms, per_direction = [], [], []
    for number in range(len(trace["loss"])):
        state, lstm_state, metrics = step(state, lstm_state, recorded_batch(trace, number, devices), row_ids, None)
        metrics = fetch(metrics)
        losses.append(metrics.loss)
        norms.append(metrics.gradient_norm)
        per_direction.append(metrics.losses)
    assert relative_error(losses, trace["loss"]) < TOLERANCE
    assert relative_error(norms, trace["gradient_norm"]) < TOLERANCE
    assert relative_error(per_direction, trace["loss_per_direction"].mean(1)) < TOLERANCE

    state = to_host(devices, state, size, rows)
    assert worst(state.parameters, read_tree(folder / "final.npz", model)) < TOLERANCE
    assert worst(state.accumulators, read_tree(folder / "final_adagrad_accumulator.npz", model)) < TOLERANCE
    final = np.load(folder / "final_lstm_state.npz")
    for direction, layers in zip(("forward", "backward"), lstm_state, strict=True):
        for layer, arrays in enumerate(layers):
            for name, array in arrays._asdict().items():
                parts = [final[f"device{d}/{direction}/layer{layer}/{name}"] for d in range(devices)]
                assert relative_error(array, np.stack(parts)) < TOLERANCE

    write_arrays(tmp_path / "weights.hdf5", named_weights(state.parameters["bilm"], model))
    assert_same_weights(tmp_path / "weights.hdf5", folder / "dumped_weights.hdf5")


def datasets(file):
    arrays = {}
    file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def assert_same_weights(actual, expected):
    """Same names, shapes and dtypes; values within the tolerance."""
    with h5py.File(actual) as ours, h5py.File(expected) as theirs:
        ours, theirs = datasets(ours), datasets(theirs)
    # The dump of a model with one layer leaves out the name of the multi-layer cell, and no reader reads it so.
    theirs = {name.replace("/RNN/LSTMCell/", "/RNN/MultiRNNCell/Cell0/LSTMCell/"): a for name, a in theirs.items()}
    assert {name: (array.shape, array.dtype) for name, array in ours.items()} == {
        name: (array.shape, array.dtype) for name, array in theirs.items()
    }
    assert worst(ours, theirs) < TOLERANCE


@pytest.mark.skipif(not (GOLDEN / "sampled_softmax.npz").exists(), reason=f"no sampled_softmax.npz in {GOLDEN}")
def test_sampled_softmax(golden):
    data = np.load(golden / "sampled_softmax.npz")
    inputs = data["hidden"], data["softmax_W"], data["softmax_b"]
    targets, ids = data["labels"].astype(np.int32), data["sampled_ids"].astype(np.int32)
    counts = np.log(data["true_expected_count"]), np.log(data["sampled_expected_count"])
    words = SampledWords(targets, ids, *counts)

    def losses(hidden, weight, bias):
        rows = ({"weight": weight[some], "bias": bias[some]} for some in (targets, ids))
        return sampled_softmax_loss(hidden, *rows, words)

    inputs = tuple(map(jnp.asarray, inputs))
    assert relative_error(losses(*inputs), data["sampled_loss"]) < TOLERANCE
    gradients = jax.grad(lambda *inputs: losses(*inputs).mean(), argnums=(0, 1, 2))(*inputs)
    for gradient, name in zip(gradients, ("grad_hidden", "grad_W", "grad_b"), strict=True):
        assert relative_error(gradient, data[name]) < TOLERANCE
    assert relative_error(full_softmax_loss(*inputs, targets), data["full_loss"]) < TOLERANCE


EVALUATIONS = [folder for folder in TRACES if (folder / "evaluation.json").exists()]


@pytest.mark.skipif(not EVALUATIONS, reason=f"no evaluations under {GOLDEN}/training (set ELMO_GOLDEN)")
@pytest.mark.parametrize("folder", EVALUATIONS, ids=lambda folder: folder.name)
def test_perplexity(folder, monkeypatch):
    """The original's figure, on the tokens that it counts.

    A sentence goes to the row that is free first, and it stops when the first row runs dry.
    """
    model = from_options(json.loads((folder / "options.json").read_text()), "options.json")
    recorded = json.loads((folder / "evaluation.json").read_text())
    texts = sorted((folder.parent / "text").glob("*_vocab.txt"))
    size = len(np.load(folder / "final.npz")["softmax/b"])
    vocabulary_file = next((file for file in texts if len(Vocabulary.load(file)) == size), None)
    if vocabulary_file is None:
        pytest.skip(f"no text with a vocabulary of {size} words beside {folder}")
    vocabulary = Vocabulary.load(vocabulary_file)
    heldout = vocabulary_file.with_name(vocabulary_file.name.replace("_vocab", "_heldout"))
    text = Corpus(sentences([str(heldout)], "TEXT"), vocabulary)
    rows = recorded["test_batch_size"]
    parameters = place_on(1, training.init_state(read_tree(folder / "final.npz", model)), rows).parameters
    stream = LanguageModelStream(text, rows, 1, word_encoder(text, model))
    layout = Layout(rows, 1, enumerate(np.diff(text.starts) - 1))
    monkeypatch.setattr(stream, "segments", functools.partial(next, layout))
    windows = list(stream)
    evaluate = evaluator(model)
    counted = list(itertools.takewhile(lambda batch: batch.mask.all(), windows))
    assert relative_error(evaluate(parameters, counted).both, recorded["test_perplexity"]) < TOLERANCE
    assert sum(batch.mask.sum() for batch in windows) == text.tokens > rows * len(counted)
    assert np.isfinite(evaluate(parameters, windows).both)
