import dataclasses
import json
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, SMALL, TOLERANCE, place_on, relative_error, take_form, to_host

from benchmarks import operations
from elmo_jax import evaluation, softmax_table, training
from elmo_jax.config import Config, TrainConfig
from elmo_jax.corpus import Corpus
from elmo_jax.evaluation import evaluator
from elmo_jax.losses import SampledWords, full_softmax_loss, log_expected_count, sampled_softmax_loss
from elmo_jax.model import zero_state
from elmo_jax.modules import BiLM, init_bilm, init_softmax
from elmo_jax.optimizers import optimizer_of
from elmo_jax.parallel import device_count
from elmo_jax.streams import LanguageModelStream, word_encoder
from elmo_jax.vocabulary import Vocabulary

ROWS, WINDOW = 4, 5
VOCABULARY = Vocabulary(["<S>", "</S>", "<UNK>", *(f"w{number}" for number in range(40))])


def random_sentences(count, seed=0):
    generator = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(50)]  # ten of them are not in the vocabulary
    return [list(generator.choice(words, generator.integers(1, 12))) for _ in range(count)]


def corpus(count=60):
    return Corpus(random_sentences(count), VOCABULARY)


def config(**train):
    defaults = {"batch_size": 2, "window": WINDOW, "dropout": 0.0, "negatives": 9, "clip_norm": 0.5, "seed": 3}
    return Config(SMALL, train=TrainConfig(**defaults | train))


def initial_parameters(model=SMALL):
    softmax = init_softmax(jax.random.key(1), model, len(VOCABULARY))
    return {"bilm": jax.tree.map(lambda leaf: 2 * leaf, init_bilm(jax.random.key(0), model)), "softmax": softmax}


def train(config, devices, steps):
    """Losses of each step, the state (with its devices), and the LSTM state [rows, ..]."""
    text = corpus()
    encode = word_encoder(text, config.model)
    parts = devices * config.train.accumulate
    stream = LanguageModelStream(text, ROWS, WINDOW, encode, devices=parts, shuffle=True, seed=config.train.seed)
    step = training.step_on_devices(config, donate=False)
    optimizer = optimizer_of(config.train)
    state = place_on(devices, training.init_state(initial_parameters(config.model), optimizer), ROWS, optimizer)
    lstm_state = jax.tree.map(lambda leaf: leaf.reshape(devices, -1, leaf.shape[-1]), zero_state(config.model, ROWS))
    row_ids = np.arange(ROWS, dtype=np.int32).reshape(devices, -1)
    losses = []
    for number in range(1, steps + 1):
        sampled = config.train.softmax == "sampled"
        negatives = training.draw_negatives(config, len(VOCABULARY), number) if sampled else None
        state, lstm_state, metrics = step(state, lstm_state, next(stream), row_ids, negatives)
        losses.append(np.asarray(metrics.losses.addressable_data(0)))
    state = to_host(devices, state, len(VOCABULARY), ROWS)
    return np.array(losses), state, jax.tree.map(lambda leaf: np.asarray(leaf).reshape(ROWS, -1), lstm_state)


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        pytest.param({"dropout": 0.3, "recurrent_dropout": 0.2, "state_reset": 0.3}, 4, marks=pytest.mark.slow),
        ({"dropout": 0.3, "recurrent_dropout": 0.2}, 2),
        pytest.param({"softmax": "full"}, 4, marks=pytest.mark.slow),
    ],
)
def test_number_of_devices_does_not_matter(options, devices):
    losses, *states = train(config(**options), 1, 4)
    found_losses, *found_states = train(config(**options), devices, 4)
    assert relative_error(found_losses, losses) < TOLERANCE
    for found, expected in zip(jax.tree.leaves(found_states), jax.tree.leaves(states), strict=True):
        assert relative_error(found, expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "devices", "accumulate"),
    [
        ({"dropout": 0.3}, 1, 4),
        ({"softmax": "full"}, 2, 2),
        ({"optimizer": "adam", "learning_rate": 0.01}, 2, 2),
        ({"reduce_precision": "bfloat16"}, 1, 2),
    ],
)
def test_accumulated_microbatches_are_one_batch(options, devices, accumulate):
    """As many steps over the same rows of text: the same losses, parameters and LSTM states."""
    expected = train(config(**options), devices, 3)
    found = train(config(accumulate=accumulate, **options), devices, 3)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(one, other) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("softmax", ["sampled", "full"])
def test_accumulating_takes_the_memory_of_a_microbatch(softmax):
    """Beside what the step itself holds: less than half of what as many rows take at once."""
    settings = {"batch_size": 8, "window": 20, "softmax": softmax, "negatives": 30}
    one, all_at_once, accumulated = (
        lowered_step(config(**settings | more), 1, 200).compile().memory_analysis().temp_size_in_bytes
        for more in ({}, {"batch_size": 64}, {"accumulate": 8})
    )
    print(f"temporary bytes: {one:,} of 8 rows, {all_at_once:,} of 64, {accumulated:,} of 8 times 8")
    assert all_at_once > 4 * one
    assert accumulated < 2 * one


@pytest.mark.slow
def test_number_of_rounds_does_not_matter(monkeypatch):
    """Of the exchange of the targets' rows: where there is little room in one, there are more of them."""
    losses, state, _ = train(config(dropout=0.3), 2, 4)
    monkeypatch.setattr(softmax_table, "room", lambda *_: 1)
    found_losses, found_state, _ = train(config(dropout=0.3), 2, 4)
    assert relative_error(found_losses, losses) < TOLERANCE
    for found, expected in zip(jax.tree.leaves(found_state), jax.tree.leaves(state), strict=True):
        assert relative_error(found, expected) < TOLERANCE


def dense_run(settings, optimizer, steps):
    """Losses [steps, 2] and parameters of steps by autodiff through whole tables, optax's clip and optimiser."""
    text, softmax = corpus(), settings.train.softmax
    stream = LanguageModelStream(text, ROWS, WINDOW, word_encoder(text, SMALL), shuffle=True, seed=3)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optimizer)
    parameters = initial_parameters()
    optimizer_state, lstm_state = optimizer.init(parameters), zero_state(SMALL, ROWS)

    @jax.jit
    def dense_step(parameters, optimizer_state, lstm_state, batch, negatives):
        def loss(parameters):
            inputs = batch.words[0], batch.count[0], batch.forward[0], batch.backward[0], lstm_state
            activations, state = BiLM(SMALL).apply({"params": parameters["bilm"]}, *inputs)
            weight, bias = parameters["softmax"]["weight"], parameters["softmax"]["bias"]
            losses = []
            for direction in (0, 1):
                hidden, targets = activations[direction, -1].reshape(-1, 7), batch.targets[0, direction].reshape(-1)
                if softmax == "full":
                    losses.append(full_softmax_loss(hidden, weight, bias, targets).mean())
                    continue
                ids, draws = negatives.ids[direction], negatives.draws[direction]
                counts = [log_expected_count(some, draws, len(VOCABULARY)) for some in (targets, ids)]
                rows = ({"weight": weight[some], "bias": bias[some]} for some in (targets, ids))
                losses.append(sampled_softmax_loss(hidden, *rows, SampledWords(targets, ids, *counts)).mean())
            return WINDOW * (losses[0] + losses[1]) / 2, (jnp.stack(losses), state)

        gradients, (losses, state) = jax.grad(loss, has_aux=True)(parameters)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, parameters)
        return optax.apply_updates(parameters, updates), optimizer_state, state, losses, optax.tree.norm(gradients)

    expected_losses = []
    for number in range(1, steps + 1):
        negatives = training.draw_negatives(settings, len(VOCABULARY), number)
        inputs = parameters, optimizer_state, lstm_state, next(stream), negatives
        with jax.numpy_dtype_promotion("standard"):  # which optax needs
            parameters, optimizer_state, lstm_state, losses, norm = dense_step(*inputs)
        assert norm > 0.5  # clipping is active
        expected_losses.append(losses)
    return np.array(expected_losses), parameters


@pytest.mark.parametrize("softmax", ["sampled", pytest.param("full", marks=pytest.mark.slow)])
def test_step_is_the_dense_update(softmax):
    """Against Adagrad of optax, written without any of our update."""
    settings = config(softmax=softmax)
    expected_losses, parameters = dense_run(settings, optax.adagrad(0.2, initial_accumulator_value=1.0, eps=0.0), 3)
    losses, state, _ = train(settings, 1, 3)
    assert relative_error(losses, expected_losses) < TOLERANCE
    for found, expected in zip(jax.tree.leaves(state.parameters), jax.tree.leaves(parameters), strict=True):
        assert relative_error(found, expected) < TOLERANCE


def test_rows_that_no_word_touches_stay_bit_identical():
    before = initial_parameters()["softmax"]
    _, state, _ = train(config(negatives=3), 2, 1)
    same = (np.asarray(state.parameters["softmax"]["weight"]) == np.asarray(before["weight"])).all(1)
    assert 0 < same.sum() < len(VOCABULARY)
    assert (np.asarray(state.accumulators["softmax"]["weight"])[same] == 1).all()


def test_dropout_by_row():
    key, row_ids = jax.random.key(0), jnp.arange(6)
    x = jnp.ones((50, 6, 70))
    dropped = training.dropout_by_row(key, row_ids, 0.3)(2, x)
    kept = np.asarray(dropped) != 0
    assert abs(kept.mean() - 0.7) < 0.02  # 21,000 draws: standard error 0.003
    assert relative_error(dropped[kept], np.full(kept.sum(), 1 / 0.7)) < 1e-6
    assert (kept[0] != kept[1]).any()  # fresh at every position
    own = training.dropout_by_row(key, row_ids[4:], 0.3)(2, x[:, 4:])
    assert (own == dropped[:, 4:]).all()
    assert (training.dropout_by_row(key, row_ids, 0.3)(3, x) != dropped).any()


def test_reset_states():
    """Of some rows, whichever device has them; the others' stay."""
    key, row_ids = jax.random.key(3), jnp.arange(70)
    state = jnp.ones((70, 4)), jnp.full((70, 2), 2.0)
    found = training.reset_by_row(key, row_ids, 0.3, state)
    kept = np.asarray(found[0][:, 0] == 1)
    assert 0.5 < kept.mean() < 0.9
    for leaf, before in zip(found, state, strict=True):
        assert (leaf == np.where(kept[:, None], before, 0)).all()
    part = training.reset_by_row(key, row_ids[40:], 0.3, (state[0][40:], state[1][40:]))
    assert (part[0] == found[0][40:]).all()


@pytest.mark.slow
def test_steps_with_reset_states():
    """The first step begins from zero anyhow, the second does not unless all rows are reset."""
    (reset, *_), (carried, *_) = train(config(state_reset=1.0), 1, 2), train(config(), 1, 2)
    assert (reset[0] == carried[0]).all()
    assert (reset[1] != carried[1]).all()


def test_recurrent_dropout():
    key, row_ids = jax.random.key(0), jnp.arange(60)
    mask = training.recurrent_masks_by_row(key, row_ids, 0.3, 70)(2)
    kept = np.asarray(mask) != 0
    assert abs(kept.mean() - 0.7) < 0.03  # 4,200 draws: standard error 0.007
    assert relative_error(mask[kept], np.full(kept.sum(), 1 / 0.7)) < 1e-6
    assert (kept[0] != kept[1]).any()
    assert (training.recurrent_masks_by_row(key, row_ids[40:], 0.3, 70)(2) == mask[40:]).all()
    assert (training.recurrent_masks_by_row(key, row_ids, 0.3, 70)(3) != mask).any()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF], ids=hex)
@pytest.mark.parametrize("platform", ["cpu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpu", "tpu"))])
def test_a_nan_of_any_bits_does_not_get_lost(monkeypatch, bits, platform):
    """In any parameter it must reach the loss or the norm, by which a run is stopped; GPUs make NaNs of these bits."""
    take_form(monkeypatch, platform)
    settings = dataclasses.replace(
        config(precision="bfloat16"), model=dataclasses.replace(SMALL, skip_connections=False)
    )
    text, step = corpus(), training.step_on_devices(settings, donate=False)
    batch = next(LanguageModelStream(text, ROWS, WINDOW, word_encoder(text, SMALL)))
    lstm_state = jax.tree.map(lambda leaf: leaf[None], zero_state(SMALL, ROWS))
    inputs = lstm_state, batch, np.arange(ROWS, dtype=np.int32)[None], training.draw_negatives(settings, 43, 1)
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, initial_parameters(settings.model)))
    for number, leaf in enumerate([None, *leaves]):
        broken = list(leaves)
        if leaf is not None:
            broken[number - 1] = np.full(leaf.shape, bits, np.uint32).view(np.float32)
        state = place_on(1, training.init_state(jax.tree.unflatten(structure, broken)), ROWS)
        _, _, metrics = step(state, *inputs)
        assert np.isfinite(metrics.loss + float(metrics.gradient_norm)) == (leaf is None)


@pytest.mark.slow
@pytest.mark.parametrize("width", [17, 20])
def test_wide_filters_are_trained(width):
    """Programs are compiled for 16 columns of characters too where no filter is wider than that."""
    wide = dataclasses.replace(SMALL, filters=((1, 4), (width, 6)), max_characters=30, layers=1)
    before = initial_parameters(wide)["bilm"]["words"]
    losses, state, _ = train(dataclasses.replace(config(), model=wide), 1, 1)
    assert np.isfinite(losses).all()
    assert (np.asarray(state.parameters["bilm"]["words"]["kernel_1"]) != before["kernel_1"]).any()


def test_evaluation_is_exact_over_every_token():
    """Against a sum over the sentences of each row, one after the other in one window, by the whole softmax."""
    text, parameters = corpus(17), initial_parameters()
    rows = device_count()
    placed = training.place(training.init_state(parameters), rows).parameters
    encode = word_encoder(text, SMALL)
    batches = LanguageModelStream(text, rows, WINDOW, encode, devices=rows, once=True)
    found = evaluator(SMALL)(placed, batches)
    sums, tokens = np.zeros(2), 0
    for batch in LanguageModelStream(text, rows, 1000, encode, once=True):
        inputs = batch.words[0], batch.count[0], batch.forward[0], batch.backward[0], zero_state(SMALL, rows)
        activations, _ = jax.jit(BiLM(SMALL).apply)({"params": parameters["bilm"]}, *inputs)
        mask = batch.mask[0]
        tokens += mask.sum()
        for direction in (0, 1):
            hidden = np.asarray(activations[direction, -1][mask], np.float64)
            logits = hidden @ np.float64(parameters["softmax"]["weight"]).T + np.float64(parameters["softmax"]["bias"])
            targets = batch.targets[0, direction][mask]
            sums[direction] += (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(targets)), targets]).sum()
    assert tokens == text.tokens
    assert relative_error([found.forward, found.backward], np.exp(sums / tokens)) < TOLERANCE
    assert relative_error(found.both, np.exp(sums.sum() / 2 / tokens)) < TOLERANCE


@pytest.mark.slow
def test_evaluation_with_a_start_state_reads_sentences_one_by_one():
    text, rows = corpus(9), device_count()
    parameters = training.place(training.init_state(initial_parameters()), rows).parameters
    encode = word_encoder(text, SMALL)
    losses = []
    for sentence in random_sentences(9):
        one = Corpus([sentence], VOCABULARY)
        batches = LanguageModelStream(one, rows, 16, word_encoder(one, SMALL), devices=rows, once=True)
        losses.append(one.tokens * np.log(evaluator(SMALL)(parameters, batches).both))
    batches = LanguageModelStream(text, rows, WINDOW, encode, devices=rows, once=True)
    found = evaluator(SMALL)(parameters, batches, zero_state(SMALL))
    assert relative_error(np.log(found.both), sum(losses) / text.tokens) < TOLERANCE


def test_initial_values_are_those_of_bilm_tf():
    parameters = init_bilm(jax.random.key(0), SMALL)
    words, lstm = parameters["words"], parameters["forward_0"]
    assert 0.9 < np.abs(words["embedding"]).max() <= 1
    assert 0.04 < np.abs(words["kernel_2"]).max() <= 0.05
    assert (words["carry_bias_0"] == -2).all()
    assert (lstm["bias"] == 0).all()
    limit = np.sqrt(6 / (2 * 7 + 4 * 11))
    assert 0.9 * limit < np.abs(lstm["kernel"]).max() <= limit
    deviation = np.std(init_softmax(jax.random.key(1), SMALL, 5000)["weight"])
    assert relative_error(deviation, 7**-0.5) < 0.02


def lowered_step(config, devices, vocabulary_size):
    """The training step of so many devices, not yet compiled."""
    rows = devices * config.train.batch_size * config.train.accumulate
    places = softmax_table.table_size(vocabulary_size, rows) // devices

    def initial():
        softmax = init_softmax(jax.random.key(1), SMALL, places)
        softmax = jax.tree.map(lambda leaf: jnp.stack([leaf] * devices), softmax)
        return training.init_state({"bilm": init_bilm(jax.random.key(0), SMALL), "softmax": softmax})

    text = corpus()
    parts = devices * config.train.accumulate
    batch = next(LanguageModelStream(text, rows, config.train.window, word_encoder(text, SMALL), devices=parts))
    if config.train.accumulate > 1:
        batch = jax.tree.map(lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:]), batch)
    lstm_state = jax.tree.map(lambda leaf: leaf.reshape(devices, -1, leaf.shape[-1]), zero_state(SMALL, rows))
    row_ids = np.arange(rows, dtype=np.int32).reshape(devices, -1)
    negatives = training.draw_negatives(config, vocabulary_size, 1) if config.train.softmax == "sampled" else None
    step = training.step_on_devices(config, devices=jax.devices()[:devices])
    return step.lower(jax.eval_shape(initial), lstm_state, batch, row_ids, negatives)


def exchanged(*step):
    """Bytes of every collective's result in the compiled training step, by its name."""
    return operations.exchanged(lowered_step(*step).compile().as_text())


@pytest.mark.slow
@pytest.mark.parametrize("softmax", ["sampled", "full"])
def test_communication_does_not_depend_on_the_vocabulary(softmax):
    """Each parameter's gradient is exchanged once; of the softmax only the rows that the step may touch, or none."""
    few, many = (exchanged(config(softmax=softmax), 2, size) for size in (1_000, 10_000))
    assert few == many
    parameters = jax.eval_shape(lambda: init_bilm(jax.random.key(0), SMALL))
    size = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    tokens, hidden = 2 * ROWS * WINDOW, SMALL.projection_dim  # of both directions
    if softmax == "sampled":  # negatives' rows and gradients; losses and the norm, the further rounds' number
        assert few["all-reduce"] == 4 * (size + 2 * 2 * 9 * (hidden + 1) + 3 + 1)
        asked = 2 * softmax_table.room(tokens // 2, 2, 10_000)
        assert few["all-to-all"] == 4 * asked * (1 + 2 * (hidden + 1))  # places, then rows there and gradients back
        assert set(few) == {"all-reduce", "all-to-all"}
    else:  # of every token: largest logit, normaliser, target's logit; a state and a target (all gradients are equal)
        assert few["all-reduce"] == 4 * (size + 3 * tokens + 2 + 1)
        assert few["all-gather"] == 4 * tokens * (hidden + 1)
        assert few["reduce-scatter"] == 4 * tokens * hidden // 2
        assert set(few) == {"all-reduce", "all-gather", "reduce-scatter"}


@pytest.mark.slow
def test_communication_hardly_depends_on_the_number_of_devices():
    """What devices exchange beside the biLM's gradients, of as many rows and negatives as the published models had."""
    settings = "test_training.config(batch_size=128, window=20, negatives=8192)"
    code = f"""import jax, json, test_training
jax.config.update("jax_num_cpu_devices", 256)
print(json.dumps([test_training.exchanged({settings}, devices, 793_471) for devices in (8, 256)]))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True)
    few, many = json.loads(done.stdout)
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: init_bilm(jax.random.key(0), SMALL))))
    assert set(few) == set(many) == {"all-reduce", "all-to-all"}
    assert few["all-reduce"] == many["all-reduce"] > 4 * size
    assert sum(many.values()) - 4 * size < 1.5 * (sum(few.values()) - 4 * size)


@pytest.mark.slow
def test_gradients_summed_in_bfloat16():
    before = initial_parameters()
    settings = [config(dropout=0.3, reduce_precision=kind) for kind in ("float32", "bfloat16")]
    expected, found = (train(one, 4, 1)[1].parameters for one in settings)
    changes = [jax.tree.leaves(jax.tree.map(np.subtract, after, before)) for after in (expected, found)]
    errors = [relative_error(one, other) for one, other in zip(*changes, strict=True)]
    assert 1e-4 < max(errors) < 4 * 2**-9
    text = lowered_step(settings[1], 2, 1000).as_text()
    reduced = re.findall(r"all_reduce.*?\}\) : \(.*?\) -> (.*?)\n", text, re.DOTALL)
    size = sum(leaf.size for leaf in jax.tree.leaves(before["bilm"])) + 2 * 9 * (SMALL.projection_dim + 1)
    shapes = re.findall(r"tensor<([\dx]*)xbf16>", " ".join(reduced))
    assert sum(math.prod(map(int, shape.split("x"))) for shape in shapes) == size


@pytest.mark.slow
def test_evaluation_in_pieces(monkeypatch):
    """Of the window's positions: as exact, and a device holds the outputs of fewer tokens of others."""
    text, rows = corpus(17), 4 * device_count()
    parameters = training.place(training.init_state(initial_parameters()), rows).parameters
    stream = LanguageModelStream(text, rows, 6, word_encoder(text, SMALL), devices=device_count(), once=True)
    batches = list(stream)
    lstm_state = jax.tree.map(lambda leaf: leaf.reshape(device_count(), 4, -1), zero_state(SMALL, rows))
    expected, gathered = evaluator(SMALL)(parameters, batches), []
    for tokens in (2**15, 2 * rows):
        monkeypatch.setattr(evaluation, "TOKENS_TOGETHER", tokens)
        evaluate = evaluator(SMALL)
        found = evaluate(parameters, batches)
        assert relative_error(found, expected) < TOLERANCE
        program = evaluate.lower(parameters, lstm_state, batches[0], None).compile()
        gathered.append(operations.exchanged(program.as_text())["all-gather"])
    assert gathered == [4 * 2 * tokens * (SMALL.projection_dim + 1) for tokens in (6 * rows, 2 * rows)]
    assert 1e-6 < relative_error(evaluator(SMALL, "bfloat16")(parameters, batches), expected) < 0.02
