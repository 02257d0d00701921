"""Pretraining: `prepare` makes a Run, all that a run is before its next step; `train` is its loop."""

import contextlib
import dataclasses
import functools
import math
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from elmo_jax import parallel, training
from elmo_jax.checkpoint import Checkpoint, Checkpoints
from elmo_jax.config import Config, ModelConfig, check, differences, load_config, to_json
from elmo_jax.corpus import Corpus, read_corpora
from elmo_jax.errors import InputError
from elmo_jax.evaluation import evaluator
from elmo_jax.files import as_path
from elmo_jax.lifecycle import Profiler, Termination, Told
from elmo_jax.model import State, zero_state
from elmo_jax.modules import init_bilm, init_softmax
from elmo_jax.streams import Batch, LanguageModelStream, StreamPosition, prefetch, word_table
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import ModelFolder, read_folder, read_model, write_folder
from elmo_jax.workdir import Begun, Workdir

# Checkpoints and measurements begin at this step, then come at every doubling until their regular distance is reached.
FIRST_DUE = 16
# Share of unknown tokens from which on people are told.
MANY_UNKNOWN = 0.15


@dataclass(frozen=True)
class Arguments:
    """Pretrains a bidirectional language model; goes on with the run in the workdir if there is one."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """tiny, small, medium or original, or a path: a Python file with `config = Config(...)`, or a run's config.json.
    Its values are the defaults below."""
    workdir: str
    """Folder of the run (may be gs://...): config.json, vocab.txt, metrics.jsonl, checkpoints/ and model/."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    distributed: parallel.DistributedConfig
    init: tuple[str, ...] = ()
    """Model to start from instead of random weights: a model folder or workdir, or the two files options.json and
    weights.hdf5. The model is then that one; so is the vocabulary, unless data.vocab is given, and with the same
    vocabulary the softmax."""


def parse(argv: list[str]) -> Arguments:
    """Command line → arguments; the config that it names gives the defaults."""
    named = argv[0] if argv and not argv[0].startswith("-") else None
    default = Config() if named is None else load_config(named)
    read = functools.partial(tyro.cli, Arguments, prog="elmo-jax train", args=argv, use_underscores=True)
    blank = Arguments(tyro.MISSING, tyro.MISSING, default, parallel.DistributedConfig())
    arguments = read(default=blank)
    if arguments.name != named:
        arguments = read(default=dataclasses.replace(blank, config=load_config(arguments.name)))
    return arguments


def next_due(step: int, every: int) -> int:
    """The first step after `step` at which something is due that regularly comes every so many steps."""
    early = FIRST_DUE if step < FIRST_DUE else 2 ** step.bit_length()
    return early if early < every else (step // every + 1) * every


@dataclass
class Run:
    """All that a run is: settings, texts, folder, and where it stands."""

    config: Config
    workdir: Workdir
    checkpoints: Checkpoints
    text: Corpus
    heldout: Corpus | None
    rows: int
    steps: int
    first: int  # steps done
    position: dict[str, Any] | None  # where the text goes on, None at its beginning
    state: training.TrainState
    lstm_state: State

    def __post_init__(self) -> None:
        self.own = parallel.own_rows(self.rows)
        self.row_ids = np.array(self.own, np.int32).reshape(parallel.device_count(), -1)
        self.tokens_per_step = self.rows * self.config.train.window  # predictions of each direction
        self.perplexities = self.workdir.heldout_perplexities()
        texts = [text for text in (self.text, self.heldout) if text is not None]
        self.spelling = {text: word_table(text, self.config.model) for text in texts}

    def stream(self, corpus: Corpus, **options: Any) -> LanguageModelStream:
        """Batches of a corpus for this process' devices."""
        options |= {"devices": parallel.device_count(), "own": self.own}
        encode = self.spelling[corpus].__getitem__
        return LanguageModelStream(corpus, self.rows, self.config.train.window, encode, **options)

    def inputs(self) -> Iterator[tuple[Batch, training.Negatives | None, StreamPosition]]:
        """Of each step its batch, its negatives, and where the text goes on after it; worked out ahead of need."""
        train = self.config.train
        stream = self.stream(self.text, shuffle=self.config.data.shuffle, seed=train.seed, position=self.position)

        def work() -> Iterator[Any]:
            for step in range(self.first + 1, self.steps + 1):
                negatives = None
                if train.softmax == "sampled":
                    negatives = training.draw_negatives(self.config, len(self.text.vocabulary), step)
                yield next(stream), negatives, stream.position()

        return prefetch(work())

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""
        return step in (self.steps, next_due(step - 1, self.config.train.checkpoint_every)) or self.measures(step)

    def measures(self, step: int) -> bool:
        """Whether held-out perplexity is due after a step."""
        return self.heldout is not None and (step == self.steps or self.is_regular(step))

    def is_regular(self, step: int) -> bool:
        """Whether held-out perplexity is due after a step even if it is not the last."""
        return step == next_due(step - 1, self.config.train.eval_every)

    def best(self) -> int | None:
        """The step of the lowest perplexity of those that are due wherever the run ends."""
        steps = [step for step in self.perplexities if 0 < step <= self.first and self.is_regular(step)]
        return min(steps, key=self.perplexities.__getitem__, default=None)

    def measures_first(self) -> bool:
        """Whether it is due before the next step: of a new run, or as the run was stopped before it was measured."""
        due = self.first == 0 or self.workdir.converted() or self.measures(self.first)
        return parallel.all_agree(self.heldout is not None and due and self.first not in self.perplexities)

    def profiled_steps(self) -> range:
        """The third to fifth step, if they are to be traced."""
        steps = range(self.first + 3, self.steps + 1)
        return steps[: 3 if self.config.train.profile and parallel.is_first_process() else 0]

    def save(self, step: int, state: training.TrainState, lstm_state: State, position: StreamPosition) -> None:
        """Saves a checkpoint."""
        self.workdir.flush()
        shared_state = training.to_host(self.config, state, len(self.text.vocabulary))
        progress = {"position": position.as_json()}
        self.checkpoints.save(Checkpoint(step, shared_state, parallel.gather(lstm_state), progress))

    def export(self, state: training.TrainState) -> None:
        """Writes model/; every process calls it."""
        self.write_model(training.to_host(self.config, state, len(self.text.vocabulary)).parameters)

    def write_model(self, parameters: dict[str, Any]) -> None:
        """Writes model/, given NumPy arrays."""
        if parallel.is_first_process():
            write_folder(self.workdir.model, self.config.model, parameters, self.text.vocabulary)


class Reports:
    """What a run says of itself: a progress bar, metrics.jsonl, held-out perplexity.

    The metrics of a step are read when the next one has been dispatched, while the device works on it.
    """

    def __init__(self, run: Run):
        self.run = run
        self.shown = parallel.is_first_process()
        self.say = tqdm.write if self.shown else lambda _: None
        self._evaluate = evaluator(run.config.model, split=training.is_split(run.config))
        self._unread: tuple[int, int, training.Metrics] | None = None

    def __enter__(self) -> "Reports":
        run = self.run
        size = sum(array.size for array in jax.tree.leaves(run.state.parameters["bilm"]))
        for name, text in (("training", run.text), ("held-out", run.heldout)):
            if text is not None and text.unknown > MANY_UNKNOWN:
                self.say(
                    f"{text.unknown:.1%} of the {name} text's tokens are not in the vocabulary: they are predicted as "
                    "<UNK>, and perplexity says little. Another --data.vocab, made by `elmo-jax vocab`, would have them"
                )
        self.say(
            f"reading {' '.join(run.config.data.train)}: {run.text.tokens:,} tokens to predict, "
            f"{run.text.tokens / run.tokens_per_step:,.1f} steps an epoch; {size:,} parameters and a softmax over "
            f"{len(run.text.vocabulary):,} words; {run.rows} rows on {parallel.global_device_count()} "
            f"{jax.default_backend()} device(s); steps {run.first:,} to {run.steps:,}"
        )
        self.bar = tqdm(
            total=run.steps,
            initial=run.first,
            desc="training",
            unit=" steps",
            dynamic_ncols=True,
            disable=not self.shown,
        )
        self.bar.set_postfix_str("compiling")
        self._clock, self._since = time.perf_counter(), run.first
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, step: int, sentence: int, metrics: training.Metrics) -> None:
        """Takes the metrics of a step, whose batch ends at a sentence, and reports those of the step before."""
        self.read()
        self._unread = step, sentence, metrics

    def read(self) -> None:
        """Reads the metrics taken last, stops the run if they are not finite, and logs them now and then."""
        if self._unread is None:
            return
        (step, sentence, metrics), self._unread = self._unread, None
        run, loss, norm = self.run, metrics.loss, float(metrics.gradient_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            newest = max(run.checkpoints.steps(), default=None)
            raise InputError(
                f"step {step} has loss {loss} and gradient norm {norm}; its batch ends at sentence {sentence:,} "
                f"(counted over all epochs). The last good checkpoint is "
                f"{'none' if newest is None else f'that of step {newest}'}. Go on from there with a repaired text, or "
                "begin again in a new --workdir with a smaller train.learning_rate or train.clip_norm"
            )
        self.bar.update(step - self.bar.n)
        if step % run.config.train.log_every == 0 or step == run.steps:
            speed = (step - self._since) * run.tokens_per_step / (time.perf_counter() - self._clock)
            self._clock, self._since = time.perf_counter(), step
            epoch, perplexity = step * run.tokens_per_step / run.text.tokens, math.exp(min(loss, 700.0))
            values = {"step": step, "loss": loss, "perplexity": perplexity, "gradient_norm": norm}
            run.workdir.log(**values, tokens_per_second=speed, epoch=epoch)
            shown = {"loss": f"{loss:.3f}", "perplexity": f"{perplexity:.1f}", "tokens_per_s": f"{speed:,.0f}"}
            self.bar.set_postfix(shown | self._next_due(step, speed))

    def _next_due(self, step: int, speed: float) -> dict[str, str]:
        """What comes next, a measurement or a checkpoint, and in what time."""
        train = self.run.config.train
        kinds = {"checkpoint": train.checkpoint_every}
        kinds |= {"held_out": train.eval_every} if self.run.heldout is not None else {}
        due, kind = min((min(next_due(step, every), self.run.steps), kind) for kind, every in kinds.items())
        seconds = (due - step) * self.run.tokens_per_step / speed
        return {f"{kind}_in": tqdm.format_interval(seconds)} if due > step else {}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        self.read()
        begun = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begun

    def measure(self, step: int, state: training.TrainState, termination: Termination) -> bool:
        """Measures held-out perplexity and exports the best model so far; False if the run was told to end."""
        run = self.run
        windows = math.ceil(run.heldout.tokens / run.tokens_per_step)
        batches = termination.until_requested(run.stream(run.heldout, passes=1))
        shown = tqdm(batches, "held-out", windows, unit=" windows", delay=2, leave=False, disable=not self.shown)
        try:
            result = self._evaluate(state.parameters, shown)
        except Told:
            return False
        self.say(f"step {step:,}: held-out perplexity {result.both:.2f}")
        best = run.perplexities.get(run.checkpoints.kept.best_step, math.inf)
        if step and result.both < best:
            run.export(state)
            if run.is_regular(step):
                run.checkpoints.kept.best_step = step
        run.perplexities[step] = result.both
        run.workdir.log(
            step=step,
            heldout_perplexity=result.both,
            heldout_perplexity_forward=result.forward,
            heldout_perplexity_backward=result.backward,
        )
        return True


def train(run: Run) -> None:
    """Trains to the last step, or until the run is told to end (SystemExit)."""
    train_step = training.step_on_devices(run.config)
    state, lstm_state, ended = run.state, run.lstm_state, False
    with contextlib.ExitStack() as stack:
        termination = stack.enter_context(Termination())
        reports = stack.enter_context(Reports(run))
        inputs = stack.enter_context(contextlib.closing(run.inputs()))
        profiler = stack.enter_context(Profiler(run.workdir, run.profiled_steps(), reports.say))
        if run.measures_first():
            with reports.paused():
                ended = not reports.measure(run.first, state, termination)
        step = run.first
        while step < run.steps and not ended:
            step += 1
            batch, negatives, position = next(inputs)
            profiler.begin(step)
            with jax.profiler.StepTraceAnnotation("train_step", step_num=step):
                state, lstm_state, metrics = train_step(state, lstm_state, batch, run.row_ids, negatives)
            reports.add(step, position.sentence, metrics)
            profiler.end(step, metrics)
            ended = termination.requested(step)
            if ended or run.saves(step):
                with reports.paused():
                    run.save(step, state, lstm_state, position)
                    if run.measures(step) and not ended:
                        ended = not reports.measure(step, state, termination)
    run.checkpoints.close()
    run.workdir.flush()
    if ended:
        done = f"saved step {step:,}" if step > run.first else f"it stands at step {step:,}"
        reports.say(f"told to end: {done}; the same command goes on from there")
        raise SystemExit(termination.exit_code)
    if run.heldout is None or not run.workdir.model.exists():
        run.export(state)
    reports.say(f"the model is in {run.workdir.model}")
    parallel.barrier("done")


def prepare(arguments: Arguments, resources: contextlib.ExitStack) -> Run:
    """A new run, or the one in the workdir where its newest checkpoint stands; all processes agree on it."""
    workdir = Workdir(as_path(arguments.workdir), writes=parallel.is_first_process())
    resources.enter_context(workdir.locked())
    begun = workdir.begun()
    config, init = choose_model(arguments, begun)
    check(config)
    rows = workdir.rows(begun, config, parallel.global_device_count())
    text, heldout = read_corpora(config.data, begun and begun.vocabulary, init and init.vocabulary)
    vocabulary = text.vocabulary
    if config.train.softmax == "sampled" and config.train.negatives >= len(vocabulary):
        raise InputError(
            f"train.negatives is {config.train.negatives}, the vocabulary has {len(vocabulary)} words; "
            "give fewer negatives, or --train.softmax full"
        )
    fingerprint = text.fingerprint() | {"init": begun.text.get("init") if begun else " ".join(arguments.init) or None}
    if heldout is not None:
        fingerprint |= {"heldout_crc32": heldout.fingerprint()["types_crc32"]}
    settings = to_json(config) | {"data": config.data.shuffle}  # of the text its content counts, not where it lies
    compared = {"config": settings, "text": fingerprint, "JAX": jax.__version__}
    parallel.check_same({name: zlib.crc32(repr(value).encode()) for name, value in compared.items()})
    workdir.create(begun, config, rows, vocabulary, fingerprint)
    parallel.barrier("created")
    checkpoints = resources.enter_context(Checkpoints(workdir.checkpoints))
    checkpoint = checkpoints.restore(checkpoint_shapes(config.model, len(vocabulary)), rows)
    if checkpoint is None:
        checkpoint = begin(config, workdir, vocabulary, init, len(parallel.own_rows(rows)))
    steps = config.train.steps
    if config.train.epochs is not None:
        steps = math.ceil(config.train.epochs * text.tokens / (rows * config.train.window))
    if checkpoint.step > steps:
        raise InputError(
            f"the run in {workdir.path} has done {checkpoint.step} steps; train.steps is {steps}"
            f"{'' if config.train.epochs is None else f' (train.epochs {config.train.epochs})'}, give more"
        )
    workdir.keep_metrics(checkpoint.step)
    parallel.barrier("restored")
    return Run(
        config,
        workdir,
        checkpoints,
        text,
        heldout,
        rows,
        steps,
        first=checkpoint.step,
        position=checkpoint.progress["position"],
        state=training.place(config, checkpoint.shared_state),
        lstm_state=parallel.shard(checkpoint.row_state),
    )


def choose_model(arguments: Arguments, begun: Begun | None) -> tuple[Config, ModelFolder | None]:
    """The config with the model of --init or of the run that began from one, and what --init holds if it is new."""
    config, init = arguments.config, None
    asked = {change.split()[0] for change in differences(load_config(arguments.name), config)}
    if config.train.epochs is not None and "train.steps" in asked:
        raise InputError(
            f"train.steps is {config.train.steps} and train.epochs {config.train.epochs}; give one of them "
            "(--train.epochs None takes back what the config says)"
        )
    if begun is not None and arguments.init and not begun.text.get("init"):
        raise InputError(f"the run in {arguments.workdir} did not begin from a model; leave --init out to go on")
    if not (arguments.init or (begun and begun.text.get("init"))):
        return config, None
    if len(arguments.init) > 2:
        raise InputError(f"--init has {len(arguments.init)} paths; give a folder, or options.json and weights.hdf5")
    if begun is None:
        paths = [as_path(path) for path in arguments.init]
        init = read_folder(*paths, with_softmax=True) if len(paths) == 1 else read_model(*paths)
    model = begun.config.model if begun is not None else init.model
    contrary = [change for change in differences(Config(model), config) if change.split()[0] in asked]
    contrary = [change for change in contrary if change.startswith("model.")]
    if contrary:
        raise InputError(f"the model of --init differs: {'; '.join(contrary)} there; leave these options out")
    return dataclasses.replace(config, model=model), init


def checkpoint_shapes(model: ModelConfig, vocabulary_size: int) -> Checkpoint:
    """Shapes and types of a checkpoint's arrays, of one row."""

    def make(key: jax.Array) -> training.TrainState:
        bilm, softmax = init_bilm(key, model, vocabulary_size), init_softmax(key, model, vocabulary_size)
        return training.init_state({"bilm": bilm, "softmax": softmax})

    return Checkpoint(0, jax.eval_shape(make, jax.random.key(0)), zero_state(model, 1), {})


def begin(
    config: Config, workdir: Workdir, vocabulary: Vocabulary, init: ModelFolder | None, own_rows: int
) -> Checkpoint:
    """Where a new run stands; a run that has been trained is never taken for one."""
    every = config.train.checkpoint_every
    workdir.check_new(first_saved=next_due(next_due(0, every), every))
    state = training.init_state(initial_parameters(config, vocabulary, init))
    return Checkpoint(0, state, zero_state(config.model, own_rows), {"position": None})


def restore_best(run: Run) -> None:
    """Keeps the best checkpoint, and puts it into model/ where the run, ending there, had put its last."""
    best = run.checkpoints.kept.best_step = run.best()
    early_end = run.perplexities.get(run.first, math.inf) if not run.is_regular(run.first) else math.inf
    if best in run.checkpoints.steps() and run.first < run.steps and early_end < run.perplexities[best]:
        like = checkpoint_shapes(run.config.model, len(run.text.vocabulary))
        run.write_model(run.checkpoints.read(best, like, run.rows).shared_state.parameters)


def initial_parameters(config: Config, vocabulary: Vocabulary, init: ModelFolder | None) -> dict[str, Any]:
    """Random parameters, or those of the model to start from."""
    keys = jax.random.split(jax.random.key(config.train.seed))
    same_words = init is not None and init.vocabulary is not None and init.vocabulary.words == vocabulary.words
    if init is not None and config.model.input == "words" and not same_words:
        raise InputError("--init is a model without characters: give no data.vocab, its own vocabulary must be kept")
    bilm = init_bilm(keys[0], config.model, len(vocabulary)) if init is None else init.parameters
    softmax = init.softmax if same_words else None
    if init is not None and softmax is None:
        lacks = "has no softmax.hdf5" if same_words else "has another vocabulary"
        print(f"--init {lacks}: the softmax starts from random weights")
    return {"bilm": bilm, "softmax": softmax or init_softmax(keys[1], config.model, len(vocabulary))}


def run(arguments: Arguments) -> None:
    """Trains as the arguments say."""
    with contextlib.ExitStack() as resources:
        prepared = prepare(arguments, resources)
        restore_best(prepared)
        train(prepared)
