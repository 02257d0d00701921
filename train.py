"""Pretrains a biLM: `python train.py CONFIG --workdir DIR [--section.field VALUE ...]`.

The same command goes on with a run that was stopped.
"""

import functools
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from tqdm import tqdm

from elmo_jax import training
from elmo_jax.checkpoint import Checkpoints
from elmo_jax.config import Config, check, load_config
from elmo_jax.corpus import BUILTIN, Corpus, count_words, sentences
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.evaluation import evaluator
from elmo_jax.model import init_bilm, zero_state
from elmo_jax.parallel import device_count, fetch, gather, parallel, replicate, shard
from elmo_jax.streams import LanguageModelStream, word_table
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import write_folder
from elmo_jax.workdir import Workdir

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Arguments:
    """Pretrains a bidirectional language model; goes on with the run in the workdir if there is one."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """tiny, small, medium or original, or a path to a Python file with `config = Config(...)`. Its values are the
    defaults below."""
    workdir: Path
    """Folder of the run: config.json, metrics.jsonl, checkpoints/, and in the end model/."""
    config: Annotated[Config, tyro.conf.arg(name="")]


def parse(argv: list[str]) -> Arguments:
    """Command line → arguments; the config that it names gives the defaults."""
    named = argv[0] if argv and not argv[0].startswith("-") else None
    default = Config() if named is None else load_config(named, CONFIGS)
    read = functools.partial(tyro.cli, Arguments, args=argv, use_underscores=True)
    arguments = read(default=Arguments(tyro.MISSING, tyro.MISSING, default))
    if arguments.name != named:
        arguments = read(default=Arguments(tyro.MISSING, tyro.MISSING, load_config(arguments.name, CONFIGS)))
    return arguments


@exit_on_bad_input
def main(argv: list[str]) -> None:
    arguments = parse(argv)
    config, train = arguments.config, arguments.config.train
    check(config)

    # Text
    if not config.data.train:
        raise InputError("data.train is not given; give --data.train FILE_OR_GLOB, or builtin for the built-in text")
    text = functools.partial(sentences, config.data.train, "--data.train")
    if config.data.vocab is not None:
        vocabulary = Vocabulary.load(Path(config.data.vocab))
    else:
        vocabulary = Vocabulary.from_counts(count_words(text(progress="counting words")))
    corpus = Corpus(text(progress="reading"), vocabulary, " ".join(config.data.train))
    heldout_files = config.data.heldout or (config.data.train if config.data.train == (BUILTIN,) else ())
    heldout = None
    if heldout_files:
        heldout_text = sentences(heldout_files, "--data.heldout", heldout=True, progress="reading")
        heldout = Corpus(heldout_text, vocabulary, " ".join(heldout_files))
    if train.softmax == "sampled" and train.negatives >= len(vocabulary):
        raise InputError(
            f"train.negatives is {train.negatives}, the vocabulary has {len(vocabulary)} words; "
            "give fewer negatives, or --train.softmax full"
        )

    # Run: rows of sentences, divided among devices
    devices = device_count()
    workdir = Workdir(arguments.workdir)
    rows = workdir.open(config, devices)
    checkpoints = Checkpoints(workdir.checkpoints)
    first = checkpoints.latest()
    workdir.keep_metrics(first)

    # State: new, or the checkpoint's
    keys = jax.random.split(jax.random.key(train.seed))
    parameters = {
        "bilm": init_bilm(keys[0], config.model, len(vocabulary)),
        "softmax": training.init_softmax(keys[1], config.model, len(vocabulary)),
    }
    arrays = {"state": training.init_state(parameters), "lstm": zero_state(config.model, rows)}
    position = None
    if first is not None:
        arrays, position = checkpoints.arrays(first, arrays), checkpoints.values(first)["position"]
    state, lstm_state = replicate(arrays["state"]), shard(arrays["lstm"])
    del arrays, parameters
    first = first or 0

    stream = LanguageModelStream(
        corpus,
        rows,
        train.window,
        word_table(corpus, config.model).__getitem__,
        devices=devices,
        shuffle=config.data.shuffle,
        seed=train.seed,
        position=position,
    )
    train_step = parallel(
        functools.partial(training.train_step, config), (None, 0, 0, 0, None), (None, 0, None), donate=(0, 1)
    )
    evaluate = evaluator(config.model)
    row_numbers = np.arange(rows, dtype=np.int32).reshape(devices, -1)
    tokens = rows * train.window  # predictions of each direction in a step
    size = sum(array.size for array in jax.tree.leaves(state.parameters["bilm"]))
    print(
        f"{size:,} parameters and a softmax over {len(vocabulary):,} words; {corpus.tokens:,} tokens to predict, "
        f"{corpus.tokens / tokens:.1f} steps an epoch; {rows} rows on {devices} {jax.default_backend()} device(s); "
        f"steps {first:,} to {train.steps:,}"
    )

    def measure_heldout(step: int) -> None:
        batches = LanguageModelStream(heldout, rows, train.window, heldout_table.__getitem__, devices=devices, passes=1)
        total = math.ceil(heldout.tokens / tokens)
        result = evaluate(state.parameters, tqdm(batches, "held-out", total, unit=" windows", delay=2, leave=False))
        workdir.log(
            step=step,
            heldout_perplexity=result.both,
            heldout_perplexity_forward=result.forward,
            heldout_perplexity_backward=result.backward,
        )
        tqdm.write(f"step {step:,}: held-out perplexity {result.both:.2f}")

    # Training
    if heldout is not None:
        heldout_table = word_table(heldout, config.model)
        if first == 0:
            measure_heldout(0)
    clock, since = time.perf_counter(), first
    unread = None  # metrics of the step before, read while the device works on the next
    bar = tqdm(total=train.steps, initial=first, desc="training", unit=" steps", dynamic_ncols=True)

    def report(step: int, metrics: training.Metrics) -> None:
        nonlocal clock, since
        loss = metrics.loss
        if not math.isfinite(loss):
            raise InputError(
                f"the loss of step {step} is {loss}; the newest checkpoint is of step {checkpoints.latest() or 0}. "
                "Start again with a smaller train.learning_rate or train.clip_norm"
            )
        bar.update(step - bar.n)
        if step % train.log_every == 0 or step == train.steps:
            speed = (step - since) * tokens / (time.perf_counter() - clock)
            clock, since = time.perf_counter(), step
            workdir.log(
                step=step,
                loss=loss,
                perplexity=math.exp(loss),
                gradient_norm=float(metrics.gradient_norm),
                tokens_per_second=speed,
                epoch=step * tokens / corpus.tokens,
            )
            bar.set_postfix(loss=f"{loss:.3f}", perplexity=f"{math.exp(loss):.1f}", tokens_per_s=f"{speed:,.0f}")

    for step in range(first + 1, train.steps + 1):
        batch = next(stream)
        negatives = training.draw_negatives(config, len(vocabulary), step) if train.softmax == "sampled" else None
        state, lstm_state, metrics = train_step(state, lstm_state, batch, row_numbers, negatives)
        if unread is not None:
            report(*unread)
        unread = step, metrics
        evaluates = heldout is not None and (step % train.eval_every == 0 or step == train.steps)
        saves = step % train.checkpoint_every == 0 or step == train.steps
        if evaluates or saves:
            report(*unread)
            unread = None
            paused = time.perf_counter()
            if evaluates:
                measure_heldout(step)
            if saves:
                arrays = {"state": fetch(state), "lstm": gather(lstm_state)}
                checkpoints.save(step, arrays, {"position": stream.position()})
            clock += time.perf_counter() - paused
    bar.close()
    checkpoints.close()

    write_folder(workdir.model, config.model, fetch(state.parameters), vocabulary)
    print(f"wrote {workdir.model}")


if __name__ == "__main__":
    main(sys.argv[1:])
