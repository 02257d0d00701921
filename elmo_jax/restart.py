"""Runs of bilm-tf → a workdir with a model folder and a checkpoint to go on from."""

from typing import Any

import numpy as np
from etils import epath

from elmo_jax.bundles import Bundle, read_variables, tree_of, variable_shapes
from elmo_jax.checkpoint import Checkpoints
from elmo_jax.config import Config, TrainConfig, from_options
from elmo_jax.errors import InputError
from elmo_jax.files import read_json
from elmo_jax.pretraining import Stand
from elmo_jax.training import TrainState
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import write_folder
from elmo_jax.workdir import Workdir


def train_config(options: dict[str, Any], source: str, step: int) -> TrainConfig:
    """The training settings in a bilm-tf options.json; what it lacks is bilm-tf's default."""
    default = TrainConfig()
    try:
        return TrainConfig(
            steps=max(step, 1),
            batch_size=int(options["batch_size"]),
            window=int(options["unroll_steps"]),
            learning_rate=float(options.get("learning_rate", default.learning_rate)),
            clip_norm=float(options.get("all_clip_norm_val", default.clip_norm)),
            dropout=float(options["dropout"]),
            softmax="sampled" if options.get("sample_softmax", True) else "full",
            negatives=int(options.get("n_negative_samples_batch", default.negatives)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source} is not the options.json of a bilm-tf training run ({error!r})") from None


def restart(source: epath.Path, dest: epath.Path, vocab: epath.Path, rows: int | None = None) -> None:
    """Writes `dest` as a training workdir: model/, and a checkpoint with Adagrad's accumulators and the step.

    bilm-tf saves neither the LSTM state nor the place in the data: the run goes on with state zero, from the first
    sentence of the text given then.
    """
    options_file = source / "options.json"
    options = read_json(options_file)
    if dest.exists():
        raise InputError(f"{dest} is there already; give a new folder")
    model, vocabulary = from_options(options, str(options_file)), Vocabulary.load(vocab)
    if options.get("n_tokens_vocab", len(vocabulary)) != len(vocabulary):
        raise InputError(f"{vocab} has {len(vocabulary)} words, {options_file} says {options['n_tokens_vocab']}")
    bundle, shapes = Bundle(source), variable_shapes(model, len(vocabulary))
    wanted = {f"{name}{slot}": shape for name, shape in shapes.items() for slot in ("", "/Adagrad")}
    arrays = read_variables(bundle, wanted, source)
    values, slots = ({name: arrays[f"{name}{slot}"] for name in shapes} for slot in ("", "/Adagrad"))
    step = int(bundle.array("global_step")) if "global_step" in bundle else 0
    config = Config(model, train=train_config(options, str(options_file), step))
    parameters = tree_of(model, values)
    rows = config.train.batch_size if rows is None else rows
    workdir = Workdir(dest)
    workdir.create(None, config, rows, vocabulary, None)
    write_folder(workdir.model, model, parameters, vocabulary)
    state = TrainState(np.array(step, np.int32), parameters, tree_of(model, slots))
    with Checkpoints(workdir.checkpoints) as checkpoints:
        checkpoints.save(Stand.beginning(config, state, rows).checkpoint())
