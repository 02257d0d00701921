"""Pretrains a biLM: `python train.py CONFIG --workdir DIR [--section.field VALUE ...]`.

The same command goes on with a run that was stopped.
"""

import contextlib
import dataclasses
import functools
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from etils import epath
from tqdm import tqdm

from elmo_jax import parallel, training
from elmo_jax.checkpoint import Checkpoint, Checkpoints
from elmo_jax.config import Config, check, load_config
from elmo_jax.corpus import BUILTIN, Corpus, WordCounts, sentences
from elmo_jax.errors import InputError, exit_on_bad_input
from elmo_jax.evaluation import evaluator
from elmo_jax.model import zero_state
from elmo_jax.modules import init_bilm, init_softmax
from elmo_jax.streams import LanguageModelStream, prefetch, word_table
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import ModelFolder, read_folder, write_folder
from elmo_jax.workdir import Workdir

CONFIGS = Path(__file__).parent / "configs"
TERMINATED = 128 + signal.SIGTERM  # exit code of a run that saved and ended because it was told to


@dataclass(frozen=True)
class Arguments:
    """Pretrains a bidirectional language model; goes on with the run in the workdir if there is one."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """tiny, small, medium or original, or a path: a Python file with `config = Config(...)`, or a run's config.json.
    Its values are the defaults below."""
    workdir: str
    """Folder of the run (may be gs://...): config.json, metrics.jsonl, checkpoints/, and in the end model/."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    distributed: parallel.DistributedConfig
    init: str | None = None
    """Model folder (or workdir) to start from instead of random weights. The model is then that folder's; so is the
    vocabulary, unless data.vocab is given, and with the same vocabulary the softmax."""


def parse(argv: list[str]) -> Arguments:
    """Command line → arguments; the config that it names gives the defaults."""
    named = argv[0] if argv and not argv[0].startswith("-") else None
    default = Config() if named is None else load_config(named, CONFIGS)
    read = functools.partial(tyro.cli, Arguments, args=argv, use_underscores=True)
    blank = Arguments(tyro.MISSING, tyro.MISSING, default, parallel.DistributedConfig())
    arguments = read(default=blank)
    if arguments.name != named:
        arguments = read(default=dataclasses.replace(blank, config=load_config(arguments.name, CONFIGS)))
    return arguments


def read_text(config: Config, known: Vocabulary | None) -> tuple[Corpus, Corpus | None]:
    """The training and the held-out text; the vocabulary is data.vocab, else `known`, else counted."""
    if not config.data.train:
        raise InputError("data.train is not given; give --data.train FILE_OR_GLOB, or builtin for the built-in text")
    progress = functools.partial(sentences, config.data.train, "--data.train")
    if config.data.vocab is not None:
        vocabulary = Vocabulary.load(epath.Path(config.data.vocab))
    else:
        vocabulary = known or Vocabulary.from_counts(WordCounts(progress(progress="counting words")))
    if config.train.softmax == "sampled" and config.train.negatives >= len(vocabulary):
        raise InputError(
            f"train.negatives is {config.train.negatives}, the vocabulary has {len(vocabulary)} words; "
            "give fewer negatives, or --train.softmax full"
        )
    heldout = config.data.heldout or (config.data.train if config.data.train == (BUILTIN,) else ())
    if heldout:
        text = sentences(heldout, "--data.heldout", heldout=True, progress="reading")
        heldout = Corpus(text, vocabulary, " ".join(heldout))
    return Corpus(progress(progress="reading"), vocabulary, " ".join(config.data.train)), heldout or None


def initial_parameters(config: Config, vocabulary: Vocabulary, init: ModelFolder | None) -> dict[str, Any]:
    """Random parameters, or those of the folder to start from."""
    keys = jax.random.split(jax.random.key(config.train.seed))
    kept = init is not None and init.vocabulary is not None and init.vocabulary.words == vocabulary.words
    if init is not None and config.model.input == "words" and not kept:
        raise InputError("--init is a model without characters: give no data.vocab, its own vocabulary must be kept")
    if init is not None and not (kept and init.softmax):
        missing = "has another vocabulary" if not kept else "has no softmax.hdf5"
        print(f"--init {missing}: the softmax starts from random weights")
    return {
        "bilm": init_bilm(keys[0], config.model, len(vocabulary)) if init is None else init.parameters,
        "softmax": init.softmax
        if kept and init.softmax
        else init_softmax(keys[1], config.model, len(vocabulary)),
    }


def run(arguments: Arguments) -> None:
    config, train = arguments.config, arguments.config.train
    init = None if arguments.init is None else read_folder(epath.Path(arguments.init), with_softmax=True)
    if init is not None:
        config = dataclasses.replace(config, model=init.model)
    check(config)
    first_process, devices = parallel.is_first_process(), parallel.global_device_count()
    workdir = Workdir(epath.Path(arguments.workdir), writes=first_process)
    rows = workdir.check(config, devices)
    known = init and init.vocabulary
    if workdir.converted():
        known = Vocabulary.load(workdir.model / "vocab.txt")
    corpus, heldout = read_text(config, known)
    vocabulary = corpus.vocabulary
    parameters = initial_parameters(config, vocabulary, init)
    parallel.barrier("checked")  # before the first process creates what all have looked at
    workdir.create(config, rows, corpus.fingerprint() | {"init": arguments.init})
    parallel.barrier("created")

    # State: new, or the newest checkpoint's
    checkpoints = Checkpoints(workdir.checkpoints)
    own = parallel.own_rows(rows)
    start = Checkpoint(0, training.init_state(parameters), zero_state(config.model, len(own)), {"position": None})
    restored = checkpoints.restore(start, rows)
    if restored is None and workdir.model.exists():
        raise InputError(f"{workdir.path} holds a finished model but no checkpoints; give another --workdir")
    start = restored or start
    workdir.keep_metrics(restored and restored.step)
    state, lstm_state = training.place(config, start.shared), parallel.shard(start.rows)
    first, position = start.step, start.progress["position"]
    del parameters, start, restored, init

    read_rows = functools.partial(LanguageModelStream, window=train.window, devices=parallel.device_count(), own=own)
    stream = read_rows(
        corpus,
        rows,
        encode=word_table(corpus, config.model).__getitem__,
        shuffle=config.data.shuffle,
        seed=train.seed,
        position=position,
    )
    train_step = training.step_on_devices(config)
    evaluate = evaluator(config.model, split=training.is_split(config))
    row_numbers = np.array(own, np.int32).reshape(parallel.device_count(), -1)
    tokens = rows * train.window  # predictions of each direction in a step
    size = sum(array.size for array in jax.tree.leaves(state.parameters["bilm"]))
    say = tqdm.write if first_process else lambda _: None
    say(
        f"{size:,} parameters and a softmax over {len(vocabulary):,} words; {corpus.tokens:,} tokens to predict, "
        f"{corpus.tokens / tokens:,.1f} steps an epoch; {rows} rows on {devices} {jax.default_backend()} device(s); "
        f"steps {first:,} to {train.steps:,}"
    )
    if first > train.steps:
        raise InputError(f"the run in {workdir.path} has done {first} steps; train.steps is {train.steps}, give more")

    def measure_heldout(step: int) -> float:
        batches = read_rows(heldout, rows, encode=heldout_words.__getitem__, passes=1)
        windows = math.ceil(heldout.tokens / tokens)
        shown = tqdm(batches, "held-out", windows, unit=" windows", delay=2, leave=False, disable=not first_process)
        result = evaluate(state.parameters, shown)
        workdir.log(
            step=step,
            heldout_perplexity=result.both,
            heldout_perplexity_forward=result.forward,
            heldout_perplexity_backward=result.backward,
        )
        say(f"step {step:,}: held-out perplexity {result.both:.2f}")
        return result.both

    def report(step: int, sentence: int, metrics: training.Metrics) -> None:
        """Reads a step's metrics, stops the run if they are not finite, and logs them now and then."""
        nonlocal clock, since
        loss, norm = metrics.loss, float(metrics.gradient_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            newest = checkpoints.newest()
            raise InputError(
                f"step {step} has loss {loss} and gradient norm {norm}; its batch ends at sentence {sentence:,} "
                f"(counted over all epochs). The last good checkpoint is "
                f"{'none' if newest is None else f'that of step {newest}'}. Go on from there with a repaired text, or "
                "begin again in a new --workdir with a smaller train.learning_rate or train.clip_norm"
            )
        bar.update(step - bar.n)
        if step % train.log_every == 0 or step == train.steps:
            speed = (step - since) * tokens / (time.perf_counter() - clock)
            clock, since = time.perf_counter(), step
            perplexity = math.exp(min(loss, 700.0))
            workdir.log(
                step=step,
                loss=loss,
                perplexity=perplexity,
                gradient_norm=norm,
                tokens_per_second=speed,
                epoch=step * tokens / corpus.tokens,
            )
            bar.set_postfix(loss=f"{loss:.3f}", perplexity=f"{perplexity:.1f}", tokens_per_s=f"{speed:,.0f}")

    def read_inputs():
        """Of each step its batch, its negatives, and where the text goes on after it."""
        for step in range(first + 1, train.steps + 1):
            sampled = train.softmax == "sampled"
            negatives = training.draw_negatives(config, len(vocabulary), step) if sampled else None
            yield next(stream), negatives, stream.position()

    # Training
    if heldout is not None:
        heldout_words = word_table(heldout, config.model)
        if first == 0 or workdir.converted():
            measure_heldout(first)
    bar = tqdm(
        total=train.steps, initial=first, desc="training", unit=" steps", dynamic_ncols=True, disable=not first_process
    )
    clock, since, unread = time.perf_counter(), first, None
    inputs = prefetch(read_inputs())
    profiler = Profiler(workdir, range(first + 3, train.steps + 1)[: 3 if train.profile and first_process else 0], say)
    with Termination() as told_to_end, contextlib.closing(inputs):
        for step in range(first + 1, train.steps + 1):
            profiler.begin(step)
            batch, negatives, position = next(inputs)
            with jax.profiler.StepTraceAnnotation("train_step", step_num=step):
                state, lstm_state, metrics = train_step(state, lstm_state, batch, row_numbers, negatives)
            if unread is not None:  # metrics of the step before, read while the device works on this one
                report(*unread)
            unread = step, position["sentence"], metrics
            profiler.end(step, metrics)
            ends = told_to_end(step)
            evaluates = heldout is not None and (step % train.eval_every == 0 or step == train.steps)
            if ends or evaluates or step % train.checkpoint_every == 0 or step == train.steps:
                report(*unread)
                unread, paused = None, time.perf_counter()
                perplexity = measure_heldout(step) if evaluates else None
                workdir.flush()
                shared, own_state = training.whole(config, state, len(vocabulary)), parallel.gather(lstm_state)
                checkpoints.save(Checkpoint(step, shared, own_state, {"position": position}), perplexity)
                clock += time.perf_counter() - paused
            if ends:
                checkpoints.close()
                bar.close()
                say(f"told to end: saved step {step:,}; the same command goes on from there")
                raise SystemExit(TERMINATED)
    bar.close()
    checkpoints.close()
    workdir.flush()
    trained = training.whole(config, state, len(vocabulary)).parameters
    if first_process:
        write_folder(workdir.model, config.model, trained, vocabulary)
        say(f"wrote {workdir.model}")
    parallel.barrier("done")


@dataclass
class Profiler:
    """Traces some steps with JAX's profiler."""

    workdir: Workdir
    steps: range
    say: Callable[[str], None]

    def begin(self, step: int) -> None:
        """Called before each step."""
        if step in self.steps[:1]:
            self.folder = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self.folder.name)

    def end(self, step: int, result: Any) -> None:
        """Called after each step with what it computes."""
        if step in self.steps[-1:]:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self.workdir.keep_profile(Path(self.folder.name))
            self.folder.cleanup()
            self.say(f"traced steps {self.steps[0]:,} to {step:,} into {self.workdir.profile}")


class Termination:
    """Whether the run has been told to end, by SIGTERM or by the preemption of any of its processes."""

    def __enter__(self):
        self.told = False
        if not parallel.is_distributed():  # JAX watches for the signal where processes have joined
            self.before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "told", True))
        return lambda step: parallel.stop_requested(step) if parallel.is_distributed() else self.told

    def __exit__(self, *_):
        if not parallel.is_distributed():
            signal.signal(signal.SIGTERM, self.before)


@exit_on_bad_input
def main(argv: list[str]) -> None:
    arguments = parse(argv)
    parallel.keep_compiled()
    parallel.initialize(arguments.distributed)
    try:
        run(arguments)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not parallel.is_distributed():
            raise
        # The others are gone or at fault; a regular exit would wait for them.
        reason = " ".join(str(error).split())[:300]
        if not isinstance(error, InputError):
            reason = f"lost the other processes ({reason}); start the same command on all hosts to go on"
        print(f"\nerror: {reason}", file=sys.stderr, flush=True)
        os._exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
