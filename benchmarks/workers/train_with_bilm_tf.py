"""Worker: training by bilm-tf, the original, on a TensorFlow of today. Argument: JSON of `benchmarks.training`.

bilm-tf was written for TensorFlow 1.2; `tensorflow.compat.v1` stands in for it. Its graph, optimiser and batches are
used as they are; the loop is that of its `train` without summaries.
"""

import json
import os
import random
import sys
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow
import tensorflow.compat.v1 as tf
from serve import peak_memory, serve, timed
from tensorflow.python.ops import init_ops

tf.nn.rnn_cell.LSTMCell  # noqa: B018 (must be looked up before TensorFlow 2's behaviour is off)
tf.disable_v2_behavior()
init_ops.glorot_uniform_initializer = tf.glorot_uniform_initializer
sys.modules["tensorflow"] = tf

asked = json.loads(sys.argv[1])
sys.path.insert(0, asked["clone"])
from bilm.data import BidirectionalLMDataset, UnicodeCharsVocabulary  # noqa: E402
from bilm.training import LanguageModel, _get_feed_dict_from_X, clip_grads  # noqa: E402

options, rows, window = asked["options"], asked["rows"], asked["window"]
random.seed(asked["seed"])
tf.set_random_seed(asked["seed"])
vocabulary = UnicodeCharsVocabulary(asked["vocab"], options["char_cnn"]["max_characters_per_token"])
batches = BidirectionalLMDataset(asked["text"], vocabulary, test=False, shuffle_on_load=True).iter_batches(rows, window)

step_number = tf.train.get_or_create_global_step()
optimiser = tf.train.AdagradOptimizer(learning_rate=options["learning_rate"], initial_accumulator_value=1.0)
with tf.variable_scope("lm"):
    model = LanguageModel(options, True)
gradients = optimiser.compute_gradients(
    model.total_loss * window, aggregation_method=tf.AggregationMethod.EXPERIMENTAL_TREE
)
gradients, _ = clip_grads(gradients, options, False, step_number)
update = optimiser.apply_gradients(gradients, global_step=step_number)
saver = tf.train.Saver()
session = tf.Session()
session.run(tf.global_variables_initializer())
characters = np.zeros([rows, window, options["char_cnn"]["max_characters_per_token"]], np.int32)
empty = {model.tokens_characters: characters, model.tokens_characters_reverse: characters}
state = session.run(model.init_lstm_state, empty)
losses = []


def step():
    global state
    feed = dict(zip(model.init_lstm_state, state, strict=True))
    feed.update(_get_feed_dict_from_X(next(batches), 0, rows, model, True, True))
    _, loss, *state = session.run([update, model.total_loss, *model.final_lstm_state], feed)
    losses.append(float(loss))


def run(steps):
    """Seconds of each of so many steps, and their losses."""
    return {"seconds": [timed(step) for _ in range(steps)], "losses": losses[-steps:]}


def save(folder):
    """What bilm-tf's `train` leaves behind: options.json and a checkpoint."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "options.json").write_text(json.dumps(options))
    return saver.save(session, os.path.join(folder, "model.ckpt"), global_step=step_number)


serve({"run": run, "save": save, "memory": peak_memory, "about": lambda: {"tensorflow": tensorflow.__version__}})
