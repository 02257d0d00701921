"""Worker: training by this project. Argument: JSON of `benchmarks.training`."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
from serve import peak_memory, serve, timed

import elmo_jax
from benchmarks import operations
from elmo_jax import parallel, training
from elmo_jax.config import Config, TrainConfig, from_options
from elmo_jax.corpus import Corpus, sentences
from elmo_jax.model import zero_state
from elmo_jax.modules import init_bilm, init_softmax
from elmo_jax.streams import LanguageModelStream, prefetch, word_encoder
from elmo_jax.vocabulary import Vocabulary

asked = json.loads(sys.argv[1])
options = asked["options"]
model = from_options(options, "the options")
config = Config(
    model,
    train=TrainConfig(
        batch_size=asked["rows"],
        window=asked["window"],
        precision=asked["precision"],
        learning_rate=options["learning_rate"],
        clip_norm=options["all_clip_norm_val"],
        dropout=options["dropout"],
        negatives=options["n_negative_samples_batch"],
    ),
)
vocabulary = Vocabulary.load(Path(asked["vocab"]))
corpus = Corpus(sentences((asked["text"],), "text"), vocabulary)
encode = word_encoder(corpus, model)


def inputs():
    """Batches and negatives of step 1, 2, .."""
    stream = LanguageModelStream(corpus, asked["rows"], asked["window"], encode, shuffle=True)
    for step, batch in enumerate(stream, start=1):
        yield batch, training.draw_negatives(config, len(vocabulary), step)


keys = jax.random.split(jax.random.key(0))
softmax = init_softmax(keys[1], model, len(vocabulary))
state = training.place(training.init_state({"bilm": init_bilm(keys[0], model), "softmax": softmax}), asked["rows"])
del softmax
lstm_state = parallel.shard(zero_state(model, asked["rows"]))
row_ids = np.arange(asked["rows"], dtype=np.int32)[None]
ahead = prefetch(inputs())
step = training.step_on_devices(config)


def run(steps):
    """Of each of so many steps the seconds, how many of them the device waited for input, and the loss."""
    global state, lstm_state
    seconds, waited, losses = [], [], []
    for _ in range(steps):
        begin = time.perf_counter()
        batch, negatives = next(ahead)
        waited.append(time.perf_counter() - begin)
        state, lstm_state, metrics = step(state, lstm_state, batch, row_ids, negatives)
        losses.append(metrics.loss)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds, "waited": waited, "losses": losses}


def split(repeats):
    """Seconds of the forward pass alone, and of forward and backward pass."""
    batch, negatives = next(ahead)

    def arguments(state, *given):
        inputs, exchange = training.loss_inputs(state, *given)
        return config, state.parameters | {"softmax": exchange.fetch(state.parameters["softmax"])}, inputs

    forward = lambda *given: training.loss(*arguments(*given))[0]
    backward = lambda *given: training.loss_gradients(*arguments(*given))[0]
    found = {}
    for name, function in (("forward", forward), ("backward", backward)):
        program = parallel.parallel(function, (training.STATE_AXES, 0, 0, 0, None), 0)
        once = lambda program=program: jax.block_until_ready(program(state, lstm_state, batch, row_ids, negatives))
        once()
        found[name] = float(np.median([timed(once) for _ in range(repeats)]))
    return found


def input_speed(steps):
    """Tokens per second of the input pipeline alone, negatives included, on one core."""
    alone = inputs()
    next(alone)
    seconds = timed(lambda: [next(alone) for _ in range(steps)])
    return steps * asked["rows"] * asked["window"] / seconds


def memory():
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else peak_memory()


def words():
    """Distinct words of the first batch by their length in characters: [[length, how many], ..]."""
    return operations.words_of(next(inputs())[0])


def about():
    return {"elmo_jax": elmo_jax.__version__, "jax": jax.__version__, "device": jax.local_devices()[0].device_kind}


serve({"run": run, "split": split, "input_speed": input_speed, "memory": memory, "words": words, "about": about})
