"""TensorFlow checkpoints of bilm-tf → a workdir with a model folder and a checkpoint to go on from."""

from typing import Any

import numpy as np
from etils import epath

from elmo_jax.checkpoint import Checkpoints
from elmo_jax.config import Config, ModelConfig, TrainConfig, from_options
from elmo_jax.errors import InputError, listed
from elmo_jax.files import read_json
from elmo_jax.pretraining import Stand
from elmo_jax.training import TrainState
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import misfits, weight_names, weight_shapes, write_folder
from elmo_jax.workdir import Workdir


def variable_names(model: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Name of every variable in bilm-tf's checkpoints (without `lm/`) → path in {"bilm", "softmax"} parameters."""
    names: dict[str, tuple[str, ...]] = {}
    for name, path in weight_names(model).items():
        variable = name
        if name.startswith("RNN_"):
            variable = name.replace("/RNN/MultiRNNCell/Cell", "/rnn/multi_rnn_cell/cell_")
            variable = variable.replace("LSTMCell/W_0", "lstm_cell/kernel").replace("LSTMCell/B", "lstm_cell/bias")
            variable = variable.replace("LSTMCell/W_P_0", "lstm_cell/projection/kernel")
            if model.layers == 1:
                variable = variable.replace("multi_rnn_cell/cell_0/", "")
        names[variable] = ("bilm", *path)
    return names | {"softmax/W": ("softmax", "weight"), "softmax/b": ("softmax", "bias")}


def tree_of(model: ModelConfig, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Arrays by variable name → a tree like the parameters."""
    tree: dict[str, Any] = {}
    for name, (group, *modules, leaf) in variable_names(model).items():
        node = tree.setdefault(group, {})
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = arrays[name]
    return tree


def variable_shapes(model: ModelConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Shape of every variable."""
    softmax = {"softmax/W": (vocabulary_size, model.projection_dim), "softmax/b": (vocabulary_size,)}
    shapes = weight_shapes(model, vocabulary_size)
    return dict(zip(variable_names(model), [*shapes.values(), *softmax.values()], strict=True))


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


def read_tensorflow(folder: epath.Path, shapes: dict[str, tuple[int, ...]]) -> tuple[dict, dict, int]:
    """Variables and their Adagrad accumulators by name, and the global step, of the newest checkpoint in a folder."""
    try:
        import tensorflow as tf
    except ImportError:
        message = "reading TensorFlow checkpoints needs TensorFlow: pip install tensorflow-cpu"
        raise InputError(message) from None
    try:
        reader = tf.train.load_checkpoint(str(folder))
        arrays = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    except Exception as error:  # TensorFlow reports damage as ValueError, OpError, RuntimeError or DataLossError
        raise InputError(f"{folder} has no whole TensorFlow checkpoint ({error})") from None
    wanted = {f"lm/{name}{slot}": shape for name, shape in shapes.items() for slot in ("", "/Adagrad")}
    problems = misfits(arrays, wanted)
    if problems:
        raise InputError(f"the checkpoint in {folder} does not fit its options.json: {listed(problems)}")
    values, slots = ({name: arrays[f"lm/{name}{slot}"] for name in shapes} for slot in ("", "/Adagrad"))
    return values, slots, int(arrays.get("global_step", 0))


def convert(source: epath.Path, dest: epath.Path, vocab: epath.Path, rows: int | None = None) -> None:
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
    values, slots, step = read_tensorflow(source, variable_shapes(model, len(vocabulary)))
    config = Config(model, train=train_config(options, str(options_file), step))
    parameters = tree_of(model, values)
    rows = config.train.batch_size if rows is None else rows
    workdir = Workdir(dest)
    workdir.create(None, config, rows, vocabulary, None)
    write_folder(workdir.model, model, parameters, vocabulary)
    state = TrainState(np.array(step, np.int32), parameters, tree_of(model, slots))
    with Checkpoints(workdir.checkpoints) as checkpoints:
        checkpoints.save(Stand.beginning(model, state, rows).checkpoint())
