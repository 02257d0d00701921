"""The optimisers against Optax on whole arrays, their learning rates, and runs that go on with them.

(That a run with Adam goes on bit for bit is tested in test_events.py, too.)
"""

import math
import subprocess
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import SMALL, TOLERANCE, dying_at, metrics, place_on, relative_error, same_file, to_host, write_project
from etils import epath
from test_processes import distributed, finish, numbers, start
from test_training import ROWS, VOCABULARY, config, dense_run
from test_training import train as train_steps

import train
from elmo_jax import optimizers, parallel, softmax_table, training
from elmo_jax.config import Config, OptimizerName, TrainConfig, check, from_json, to_json
from elmo_jax.errors import InputError
from elmo_jax.optimizers import learning_rate, optimizer_of
from elmo_jax.workdir import Begun, Workdir

SIZE = len(VOCABULARY)
# The settings of runs in version 0.2.0.
OLD_FIELDS = {
    "steps",
    "epochs",
    "batch_size",
    "window",
    "learning_rate",
    "clip_norm",
    "dropout",
    "softmax",
    "negatives",
}
OLD_FIELDS |= {"precision", "reduce_precision", "eval_precision", "seed", "checkpoint_every", "eval_every", "log_every"}
OLD_FIELDS |= {"profile"}
TOUCHED = 6

is_matrix = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
CASES = {
    "adagrad": ({}, optax.adagrad(0.2, initial_accumulator_value=1.0, eps=0.0)),
    "sgd": ({"optimizer": "sgd"}, optax.sgd(0.2)),
    "momentum": ({"optimizer": "sgd", "momentum": 0.7}, optax.sgd(0.2, 0.7)),
    "adam": ({"optimizer": "adam", "learning_rate": 0.02, "beta2": 0.9}, optax.adam(0.02, 0.9, 0.9)),
    "adamw": (
        {"optimizer": "adamw", "learning_rate": 0.02, "weight_decay": 0.3, "epsilon": 0.1, "beta1": 0.8},
        optax.adamw(0.02, 0.8, eps=0.1, weight_decay=0.3, mask=is_matrix),
    ),
    "adafactor": ({"optimizer": "adafactor", "learning_rate": 0.05}, optax.adafactor(0.05)),
    "factored": (
        {"optimizer": "adafactor", "learning_rate": 0.05},
        optax.adafactor(0.05, min_dim_size_to_factor=4),
    ),
}


def random_parameters(seed=0):
    """A few arrays of one, two and three axes, and a table."""
    generator = np.random.default_rng(seed)
    normal = lambda *shape: generator.normal(size=shape).astype(np.float32)
    bilm = {"words": {"kernel": normal(3, 5, 9)}, "forward_0": {"kernel": normal(14, 8), "bias": normal(8)}}
    return {"bilm": bilm, "softmax": {"weight": normal(SIZE, 7), "bias": normal(SIZE)}}


def gradients_of(step, devices):
    """Random gradients of a step: of the biLM, of some places of each device's part, and of all words."""
    generator = np.random.default_rng(step)
    normal = lambda *shape: generator.normal(size=shape).astype(np.float32)
    parameters = random_parameters(100 + step)
    bilm = parameters["bilm"]
    words = np.sort(generator.permutation(SIZE)[:TOUCHED])
    size = softmax_table.table_size(SIZE, ROWS)
    places = softmax_table.places_of(words.astype(np.int32), ROWS, size)
    whole = {name: np.zeros(leaf.shape, np.float32) for name, leaf in parameters["softmax"].items()}
    ids = np.full((devices, TOUCHED), size, np.int32) + np.arange(TOUCHED, dtype=np.int32)
    parts = {name: np.zeros((devices, TOUCHED, *leaf.shape[1:]), np.float32) for name, leaf in whole.items()}
    filled = [0] * devices
    for place, word in sorted(zip(places.tolist(), words.tolist(), strict=True)):
        device = place * devices // size
        ids[device, filled[device]] = place - device * (size // devices)
        for name, leaf in whole.items():
            leaf[word] = parts[name][device, filled[device]] = normal(*leaf.shape[1:])
        filled[device] += 1
    return bilm, ids, parts, {"bilm": bilm, "softmax": whole}


def updated(settings, devices, steps):
    """The state after so many updates along `gradients_of`, on so many devices."""
    optimizer = optimizer_of(settings.train)

    def one(state, bilm, ids, gradients):
        update = training.Update(settings, state.step, learning_rate(settings, state.step), jnp.float32(1))
        of = update.of_places if optimizer.by_place else update.of_all
        trees = of(state, bilm, softmax_table.WholePart(), softmax_table.Touched(ids, gradients), None)
        return state.step + 1, *(tree[part] for tree in trees for part in ("bilm", "softmax"))

    program = parallel.parallel(one, (training.STATE_AXES, None, 0, 0), (None, None, 0, None, 0))
    state = place_on(devices, training.init_state(random_parameters(), optimizer), ROWS, optimizer)
    for step in range(steps):
        bilm, ids, gradients, _ = gradients_of(step, devices)
        number, *parts = program(state, bilm, ids, gradients)
        trees = (dict(zip(("bilm", "softmax"), some, strict=True)) for some in (parts[:2], parts[2:]))
        state = training.TrainState(number, *trees)
    return to_host(devices, state, SIZE, ROWS)


@pytest.mark.parametrize("name", CASES)
def test_updates_are_those_of_optax(monkeypatch, name):
    """Three of them, on one device and on four that divide the table, against the whole arrays."""
    options, reference = CASES[name]
    if name == "factored":
        monkeypatch.setattr(optimizers, "FACTORED_FROM", 4)
    settings = config(**options)

    @jax.jit
    def updated_whole(parameters, gradients):
        state = reference.init(parameters)
        for some in gradients:
            updates, state = reference.update(some, state, parameters)
            parameters = optax.apply_updates(parameters, updates)
        return parameters

    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        parameters = updated_whole(random_parameters(), [gradients_of(step, 1)[-1] for step in range(3)])
    alone, divided = (updated(settings, devices, 3) for devices in (1, 4))
    for found in (alone, divided):
        for one, expected in zip(jax.tree.leaves(found.parameters), jax.tree.leaves(parameters), strict=True):
            assert relative_error(one, expected) < 1e-6
    for one, expected in zip(jax.tree.leaves(divided.accumulators), jax.tree.leaves(alone.accumulators), strict=True):
        assert relative_error(one, expected) < 1e-6


def test_the_names_in_the_config_are_those_of_the_table():
    assert {*typing.get_args(OptimizerName), "sgd with momentum"} == set(optimizers.OPTIMIZERS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "softmax"), [*((name, "sampled") for name in CASES), ("adam", "full")])
def test_steps_are_the_dense_update(monkeypatch, name, softmax):
    """Two whole steps on four devices: autodiff through whole tables, Optax's clip and optimiser.

    (Of gradients near zero, whose rounding differs, Adam makes steps as long as of others.)
    """
    if name == "factored":
        monkeypatch.setattr(optimizers, "FACTORED_FROM", 4)
    options, reference = CASES[name]
    settings = config(softmax=softmax, **options)
    expected_losses, expected = dense_run(settings, reference, 2)
    losses, state, _ = train_steps(settings, 4, 2)
    assert relative_error(losses, expected_losses) < TOLERANCE
    for found, wanted in zip(jax.tree.leaves(state.parameters), jax.tree.leaves(expected), strict=True):
        assert relative_error(found, wanted) < TOLERANCE


def rates(steps, **options):
    settings = Config(SMALL, train=TrainConfig(learning_rate=0.05, **options))
    check(settings)
    return np.array([learning_rate(settings, jnp.int32(step)) for step in range(steps)])


def test_learning_rates():
    assert (rates(3) == 0.05).all()
    assert np.allclose(rates(7, warmup_steps=4), 0.05 * np.array([0.25, 0.5, 0.75, 1, 1, 1, 1]))
    falling = rates(9, schedule="linear", warmup_steps=2, decay_steps=7)
    assert np.allclose(falling, 0.05 * np.array([0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0]), atol=1e-9)
    cosine = optax.cosine_decay_schedule(0.05, 6)
    assert np.allclose(rates(8, schedule="cosine", decay_steps=6), [cosine(step) for step in range(8)], atol=1e-9)
    noam = [0.05 * 7**-0.5 * min(n**-0.5, n * 5**-1.5) for n in range(1, 12)]
    assert np.allclose(rates(11, schedule="noam", warmup_steps=5), noam)
    assert math.isclose(max(noam), noam[4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.9}, "train.momentum is 0.9, which train.optimizer adagrad does not have, only sgd; leave"),
        ({"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 0.1}, "does not have, only adamw"),
        ({"optimizer": "sgd", "beta1": 0.5}, "does not have, only adam and adamw"),
        ({"optimizer": "adam"}, "train.learning_rate is 0.2, with train.optimizer adam it can be 0.1 at most"),
        ({"schedule": "cosine"}, "train.decay_steps is None; train.schedule cosine needs it"),
        ({"decay_steps": 10}, "train.decay_steps is 10; train.schedule constant has none"),
        ({"schedule": "linear", "decay_steps": 10, "warmup_steps": 10}, "must be more than train.warmup_steps (10)"),
        ({"schedule": "noam"}, "train.warmup_steps is 0; train.schedule noam needs some"),
        ({"optimizer": "sgd", "momentum": 1.0}, "train.momentum is 1.0"),
        ({"accumulate": 0}, "train.accumulate is 0"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InputError) as error:
        check(config(**options))
    assert message in str(error.value)


RUNS = {
    "adam": "--train.optimizer adam --train.learning_rate 0.01 --train.warmup_steps 3",
    "sgd": "--train.optimizer sgd --train.schedule linear --train.decay_steps 9",
    "momentum": "--train.optimizer sgd --train.momentum 0.5 --train.softmax full",
    "adamw": "--train.optimizer adamw --train.learning_rate 0.1 --train.schedule noam --train.warmup_steps 4 "
    "--train.accumulate 2 --train.batch_size 1",
    "adafactor": "--train.optimizer adafactor --train.learning_rate 0.01 --train.schedule cosine --train.decay_steps 9 "
    "--model.cell_dim 150 --model.projection_dim 130",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_bit_for_bit(project, tmp_path, monkeypatch, name):
    """Killed after step 5, it goes on from the checkpoint of step 4: the numbers of a run that was not."""
    run = lambda folder: train.main(
        [str(project / "mine.py"), "--workdir", str(tmp_path / folder), *RUNS[name].split()]
    )
    run("alone")
    with dying_at(monkeypatch, 5):
        run("killed")
    run("killed")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "alone")
    for file in ("weights.hdf5", "softmax.hdf5"):
        assert same_file(tmp_path / "killed" / "model" / file, tmp_path / "alone" / "model" / file)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_a_run_goes_on_on_another_number_of_devices(project, tmp_path, name):
    """Begun on four devices and gone on with on one, and on two processes: the same losses to rounding."""
    options = RUNS[name].split()
    finish(start(project, tmp_path / "alone", *options, devices=4))
    finish(start(project, tmp_path / "one", *options, "--train.steps", 3, devices=4))
    subprocess.run(["cp", "-r", tmp_path / "one", tmp_path / "two"], check=True)
    finish(start(project, tmp_path / "one", *options, devices=1))
    for process in distributed(project, tmp_path / "two", 2, 1, *options):
        finish(process)
    for folder in ("one", "two"):
        for field in ("loss", "gradient_norm", "heldout_perplexity"):
            found, expected = (numbers(tmp_path / name, field) for name in (folder, "alone"))
            assert relative_error(found, expected) < 10 * TOLERANCE


def test_another_optimizer_is_another_run():
    """A run goes on with the optimiser that it began with; those of older versions have Adagrad."""
    workdir, before = Workdir(epath.Path("run")), config()
    begun = Begun(before, 8, {}, None)
    assert workdir.rows(begun, config(patience=3, tensorboard=True, accumulate=2, batch_size=4), 1) == 8
    with pytest.raises(InputError, match=r"train.optimizer is sgd, was adagrad"):
        workdir.rows(begun, config(optimizer="sgd"), 1)
    with pytest.raises(InputError, match=r"train.accumulate is 3 on 1 devices, was 8 rows in all"):
        workdir.rows(begun, config(accumulate=3), 1)
    with pytest.raises(InputError, match=r"cannot be divided by 8 devices and 2 parts of each"):
        workdir.rows(Begun(config(accumulate=2), 8, {}, None), config(accumulate=2), 8)
    values = to_json(before)
    values["train"] = {name: value for name, value in values["train"].items() if name in OLD_FIELDS}
    assert from_json(values) == before
