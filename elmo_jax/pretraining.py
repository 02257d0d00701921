"""Pretraining: `prepare` makes a Run, all that a run is before its next step; `train` is its loop."""

import contextlib
import dataclasses
import functools
import math
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from elmo_jax import parallel, training
from elmo_jax.checkpoint import Checkpoint, Checkpoints, Written
from elmo_jax.config import Config, check, check_trainable, differences, load_config, to_json
from elmo_jax.corpus import Corpus, read_corpora
from elmo_jax.errors import InputError
from elmo_jax.evaluation import evaluator
from elmo_jax.events import Events, WordLosses
from elmo_jax.files import as_path
from elmo_jax.lifecycle import Profiler, Termination, Told
from elmo_jax.model import State, zero_state
from elmo_jax.modules import init_bilm, init_softmax
from elmo_jax.optimizers import learning_rate, optimizer_of
from elmo_jax.published import read_any
from elmo_jax.softmax_table import table_size
from elmo_jax.streams import Batch, LanguageModelStream, prefetch, word_encoder
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import ModelFolder, read_model, write_folder
from elmo_jax.workdir import Begun, Workdir

# Checkpoints and measurements begin at this step, then come at every doubling until their regular distance is reached.
FIRST_DUE = 16
# Share of unknown tokens from which on people are told.
MANY_UNKNOWN = 0.15


@dataclass(frozen=True)
class Arguments:
    """Pretrains a bidirectional language model; goes on with the run in the workdir if there is one."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """tiny, small, medium, original, small_adam, or a path: a Python file with `config = Config(...)`, or a run's
    config.json. Its values are the defaults below."""
    workdir: str
    """Folder of the run (may be gs://...): config.json, vocab.txt, metrics.jsonl, checkpoints/ and model/."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    distributed: parallel.DistributedConfig
    init: tuple[str, ...] = ()
    """Model to start from instead of random weights: the name of a published one, a model folder or workdir, or the two
    files options.json and weights.hdf5. The model is then that one; so is the vocabulary, unless data.vocab is given,
    and with the same vocabulary the softmax."""


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


class Stand(NamedTuple):
    """Where a run stands, on this process' devices: steps done, what it has learned, its rows' LSTM state and text."""

    step: int
    state: training.TrainState
    lstm_state: State
    position: np.ndarray

    def checkpoint(self, into: Checkpoint | None = None) -> Checkpoint:
        """A copy to save; into the memory of one that is not needed any more."""
        kept = None if into is None else (into.state, into.rows["lstm_state"])
        state, lstm_state = parallel.join((self.state, self.lstm_state), (training.STATE_AXES, 0), kept)
        return Checkpoint(self.step, state, {"lstm_state": lstm_state, "position": parallel.join_rows(self.position)})

    def parameters(self, vocabulary_size: int, rows: int) -> dict[str, Any]:
        """The parameters as NumPy arrays in order of words; every process calls it."""
        return training.to_host(self.state.parameters, vocabulary_size, rows)

    @classmethod
    def beginning(cls, config: Config, state: training.TrainState, rows: int) -> "Stand":
        """At the beginning of the text, with a state of whole arrays."""
        own = len(parallel.own_rows(rows))
        lstm_state = parallel.shard(zero_state(config.model, own))
        placed = training.place(state, rows, optimizer_of(config.train))
        return cls(int(state.step), placed, lstm_state, np.zeros((own, 2), np.int32))

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Stand":
        """The inverse; the checkpoint is used up."""
        joined = checkpoint.state, checkpoint.rows["lstm_state"]
        state, lstm_state = parallel.divide(joined, (training.STATE_AXES, 0))
        return cls(checkpoint.step, state, lstm_state, parallel.own_part(checkpoint.rows["position"]))


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
    stand: Stand
    measured: dict[int, float]  # every held-out perplexity by step, those that a damaged checkpoint has undone, too
    events: Events

    def __post_init__(self) -> None:
        self.own = parallel.own_rows(self.rows)
        self.row_ids = np.array(self.own, np.int32).reshape(parallel.device_count(), -1)
        self.tokens_per_step = self.rows * self.config.train.window  # predictions of each direction
        self.perplexities = {step: value for step, value in self.measured.items() if step <= self.stand.step}
        self._copy: Checkpoint | None = None

    def stream(self, corpus: Corpus, **options: Any) -> LanguageModelStream:
        """Batches of a corpus for this process' devices."""
        options = {"devices": parallel.device_count(), "own": self.own} | options
        encode = word_encoder(corpus, self.config.model)
        return LanguageModelStream(corpus, self.rows, self.config.train.window, encode, **options)

    def inputs(self) -> Iterator[tuple[Batch, training.Negatives | None, np.ndarray]]:
        """Of each step its batch, its negatives, and where the text goes on after it; worked out ahead of need."""
        train = self.config.train
        options = {"shuffle": self.config.data.shuffle, "seed": train.seed, "position": self.stand.position}
        options["devices"] = parallel.device_count() * train.accumulate
        stream = self.stream(self.text, **options)

        def work() -> Iterator[Any]:
            for step in range(self.stand.step + 1, self.steps + 1):
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

    def regular(self) -> list[int]:
        """The steps after which perplexity has been measured, of those at which it is due wherever the run ends."""
        return [step for step in self.perplexities if step > 0 and self.is_regular(step)]

    def best(self) -> int | None:
        """The one of them with the lowest perplexity."""
        return min(self.regular(), key=self.perplexities.__getitem__, default=None)

    def is_patient(self) -> bool:
        """Whether fewer than train.patience measurements in turn have brought no new lowest; every process calls it."""
        patience, best = self.config.train.patience, self.best()
        if patience is None:
            return True
        return parallel.all_agree(best is None or sum(step > best for step in self.regular()) < patience)

    def measures_first(self) -> bool:
        """Whether it is due before the next step: of a new run, or as the run was stopped before it was measured."""
        due = self.stand.step == 0 or self.workdir.converted() or self.measures(self.stand.step)
        return parallel.all_agree(self.heldout is not None and due and self.stand.step not in self.perplexities)

    def profiled_steps(self) -> range:
        """The third to fifth step, if they are to be traced."""
        steps = range(self.stand.step + 3, self.steps + 1)
        return steps[: 3 if self.config.train.profile and parallel.is_first_process() else 0]

    def copy(self, stand: Stand) -> Checkpoint:
        """A copy to save, on the devices: the next step uses up what it is given. The copy before is overwritten."""
        self.checkpoints.wait()
        self._copy = jax.block_until_ready(stand.checkpoint(into=self._copy))
        return self._copy

    def save(self, stand: Stand) -> None:
        """Begins to save a checkpoint."""
        self.workdir.flush()
        self.events.flush()
        self.checkpoints.save(self.copy(stand))

    def export(self, stand: Stand) -> None:
        """Writes model/; every process calls it."""
        parameters = stand.parameters(len(self.text.vocabulary), self.rows)
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
        self._word_losses, self._parameter_norms = WordLosses(run.text.vocabulary), training.parameter_norms()
        watch = self._word_losses.take if run.config.train.tensorboard else None
        self._evaluate = evaluator(run.config.model, run.config.train.eval_precision, watch)
        self._unread: tuple[int, np.ndarray, training.Metrics, jax.Array | None] | None = None

    def __enter__(self) -> "Reports":
        run = self.run
        size = sum(array.size for array in jax.tree.leaves(run.stand.state.parameters["bilm"]))
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
            f"{jax.default_backend()} device(s); steps {run.stand.step:,} to {run.steps:,}"
        )
        self.bar = tqdm(
            total=run.steps,
            initial=run.stand.step,
            desc="training",
            unit=" steps",
            dynamic_ncols=True,
            disable=not self.shown,
        )
        self.bar.set_postfix_str("compiling")
        self._clock, self._since = time.perf_counter(), run.stand.step
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, stand: Stand, metrics: training.Metrics) -> None:
        """Takes the metrics of the step that led here, and reports those of the step before."""
        self.read()
        norms = None
        if self.run.config.train.tensorboard and self._logs(stand.step):
            norms = self._parameter_norms(stand.state.parameters)  # now: the next step uses the parameters up
        self._unread = stand.step, stand.position, metrics, norms

    def _logs(self, step: int) -> bool:
        return step % self.run.config.train.log_every == 0 or step == self.run.steps

    def read(self) -> None:
        """Reads the metrics taken last, stops the run if they are not finite, and logs them now and then."""
        self._tell(self.run.checkpoints.written())
        if self._unread is None:
            return
        (step, position, metrics, norms), self._unread = self._unread, None
        run, loss, norm = self.run, metrics.loss, float(metrics.gradient_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            newest = max(run.checkpoints.steps(), default=None)
            sentence = int(position[:, 0].mean()) * run.rows
            raise InputError(
                f"step {step} has loss {loss} and gradient norm {norm}; its batch ends near sentence {sentence:,} "
                f"of the order in which they are read. The last good checkpoint is "
                f"{'none' if newest is None else f'that of step {newest}'}. Go on from there with a repaired text, or "
                "begin again in a new --workdir with a smaller train.learning_rate or train.clip_norm"
            )
        self.bar.update(step - self.bar.n)
        if self._logs(step):
            speed = (step - self._since) * run.tokens_per_step / (time.perf_counter() - self._clock)
            self._clock, self._since = time.perf_counter(), step
            epoch, perplexity = step * run.tokens_per_step / run.text.tokens, math.exp(min(loss, 700.0))
            values = {"step": step, "loss": loss, "perplexity": perplexity, "gradient_norm": norm}
            if run.config.train.schedule != "constant" or run.config.train.warmup_steps:
                values["learning_rate"] = float(learning_rate(run.config, jnp.int32(step - 1)))
            run.workdir.log(**values, tokens_per_second=speed, epoch=epoch)
            values |= {"tokens_per_second": speed, "epoch": epoch} | self._norms(metrics, norms)
            run.events.add(step, {name: value for name, value in values.items() if name != "step"})
            shown = {"loss": f"{loss:.3f}", "perplexity": f"{perplexity:.1f}", "tokens_per_s": f"{speed:,.0f}"}
            self.bar.set_postfix(shown | self._next_due(step, speed))

    def _norms(self, metrics: training.Metrics, of_parameters: jax.Array | None) -> dict[str, float]:
        """Of each layer, by the names that they have for TensorBoard."""
        if of_parameters is None:
            return {}
        layers = training.layers(self.run.stand.state.parameters)
        kinds = {"gradient_norm": metrics.layer_norms, "parameter_norm": of_parameters}
        return {
            f"{kind}/{layer}": float(norm)
            for kind, norms in kinds.items()
            for layer, norm in zip(layers, np.asarray(norms), strict=True)
        }

    def _next_due(self, step: int, speed: float) -> dict[str, str]:
        """What comes next, a measurement or a checkpoint, and in what time."""
        train = self.run.config.train
        kinds = {"checkpoint": train.checkpoint_every}
        kinds |= {"held_out": train.eval_every} if self.run.heldout is not None else {}
        due, kind = min((min(next_due(step, every), self.run.steps), kind) for kind, every in kinds.items())
        seconds = (due - step) * self.run.tokens_per_step / speed
        return {f"{kind}_in": tqdm.format_interval(seconds)} if due > step else {}

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Time in which the run waits for a checkpoint to be begun."""
        self.read()
        begun = time.perf_counter()
        yield
        self.run.workdir.log(step=step, checkpoint_seconds=time.perf_counter() - begun)

    def _tell(self, written: Written | None) -> None:
        if written is not None:
            self.run.workdir.log(step=written.step, checkpoint_written_seconds=written.seconds)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        self.read()
        begun = time.perf_counter()
        yield
        self._clock += time.perf_counter() - begun

    def finish(self) -> None:
        """Waits for what is still being written."""
        self.read()
        self._tell(self.run.checkpoints.wait())
        self.run.workdir.flush()
        self.run.events.flush()

    def measure(self, stand: Stand, termination: Termination) -> bool:
        """Measures held-out perplexity and exports the best model so far; False if the run was told to end."""
        run, step = self.run, stand.step
        stream = run.stream(run.heldout, once=True)
        options = {"total": stream.windows, "unit": " windows", "delay": 2, "leave": False, "disable": not self.shown}
        with contextlib.closing(prefetch(stream)) as ahead:
            shown = tqdm(termination.until_requested(ahead), "held-out", **options)
            try:
                result = self._evaluate(stand.state.parameters, shown)
            except Told:
                return False
        self.say(f"step {step:,}: held-out perplexity {result.both:.2f}")
        best = run.perplexities.get(run.checkpoints.best_step, math.inf)
        if step and result.both < best:
            run.export(stand)
            if run.is_regular(step):
                run.checkpoints.best_step = step
        run.perplexities[step] = result.both
        names = ("heldout_perplexity", "heldout_perplexity_forward", "heldout_perplexity_backward")
        values = dict(zip(names, (result.both, result.forward, result.backward), strict=True))
        run.workdir.log(step=step, **values)
        run.events.add(step, values)
        if run.config.train.tensorboard:
            run.events.add_text(step, "heldout_word_losses", self._word_losses.text())
        return True


def train(run: Run) -> None:
    """Trains to the last step, or until the run is told to end (SystemExit)."""
    train_step = training.step_on_devices(run.config)
    stand, ended = run.stand, False
    run.checkpoints.compile(run.copy(stand))  # takes its memory now: if that does not suffice, the run ends at once
    with contextlib.ExitStack() as stack:
        termination = stack.enter_context(Termination())
        reports = stack.enter_context(Reports(run))
        inputs = stack.enter_context(contextlib.closing(run.inputs()))
        profiler = stack.enter_context(Profiler(run.workdir, run.profiled_steps(), reports.say))
        if run.measures_first():
            with reports.paused():
                ended = not reports.measure(stand, termination)
        patient = run.is_patient()
        while stand.step < run.steps and patient and not ended:
            step = stand.step + 1
            batch, negatives, position = next(inputs)
            profiler.begin(step)
            with jax.profiler.StepTraceAnnotation("train_step", step_num=step):
                state, lstm_state, metrics = train_step(stand.state, stand.lstm_state, batch, run.row_ids, negatives)
            stand = Stand(step, state, lstm_state, position)
            reports.add(stand, metrics)
            profiler.end(step, metrics)
            ended = termination.requested()
            if ended or run.saves(step):
                with reports.saving(step):
                    run.save(stand)
            if run.measures(step) and not ended:
                with reports.paused():
                    ended = not reports.measure(stand, termination)
                patient = run.is_patient()
        reports.finish()
    if ended:
        done = "saved" if stand.step > run.stand.step else "it stands at"
        reports.say(f"told to end: {done} step {stand.step:,}; the same command goes on from there")
        raise SystemExit(termination.exit_code)
    if not patient:
        reports.say(
            f"ended after step {stand.step:,}: train.patience {run.config.train.patience} measurements of held-out "
            f"perplexity have brought none below that of step {run.best():,}"
        )
    if run.heldout is None or not parallel.first_says(run.workdir.model.exists()):
        run.export(stand)
    reports.say(f"the model is in {run.workdir.model}")
    parallel.barrier("done")


def prepare(arguments: Arguments, resources: contextlib.ExitStack) -> Run:
    """A new run, or the one in the workdir where its newest checkpoint stands; all processes agree on it."""
    workdir = Workdir(as_path(arguments.workdir), writes=parallel.is_first_process())
    resources.enter_context(workdir.locked())
    if not parallel.has_peers():  # else `ending_together` has done it, before any of them could leave a reason
        workdir.forget_errors()
    begun = workdir.begun()
    config, init = choose_model(arguments, begun)
    check(config)
    check_trainable(config.model)
    rows = workdir.rows(begun, config, parallel.global_device_count())
    text, heldout = read_corpora(config.data, begun and begun.vocabulary, init and init.vocabulary)
    vocabulary = text.vocabulary
    if config.train.softmax == "sampled" and config.train.negatives >= len(vocabulary):
        raise InputError(
            f"train.negatives is {config.train.negatives}, the vocabulary has {len(vocabulary)} words; "
            "give fewer negatives, or --train.softmax full"
        )
    if config.train.patience is not None and heldout is None:
        raise InputError(
            f"train.patience is {config.train.patience}, and there is no held-out text to measure; give data.heldout, "
            "or leave it out"
        )
    fingerprint = text.fingerprint() | {"init": begun.text.get("init") if begun else " ".join(arguments.init) or None}
    if heldout is not None:
        fingerprint |= {"heldout_crc32": heldout.fingerprint()["types_crc32"]}
    settings = to_json(config) | {"data": config.data.shuffle}  # of the text its content counts, not where it lies
    words = config.data.vocab and fingerprint["vocabulary_crc32"]  # where none is given it is the text that differs
    compared = {"JAX": jax.__version__, "config": settings, "vocabulary": words, "text": fingerprint}
    parallel.check_same({name: zlib.crc32(repr(value).encode()) for name, value in compared.items()})
    workdir.create(begun, config, rows, vocabulary, fingerprint)
    measured = workdir.heldout_perplexities()
    checkpoints = resources.enter_context(Checkpoints(workdir.checkpoints))
    checkpoint = checkpoints.restore(checkpoint_shapes(config, len(vocabulary), rows))
    stand = begin(config, workdir, vocabulary, init, rows) if checkpoint is None else Stand.of(checkpoint)
    steps = config.train.steps
    if config.train.epochs is not None:
        steps = math.ceil(config.train.epochs * text.tokens / (rows * config.train.window))
    if stand.step > steps:
        raise InputError(
            f"the run in {workdir.path} has done {stand.step} steps; train.steps is {steps}"
            f"{'' if config.train.epochs is None else f' (train.epochs {config.train.epochs})'}, give more"
        )
    workdir.keep_metrics(stand.step)
    events = Events(workdir.path, config.train.tensorboard and workdir.writes)
    if workdir.writes:
        events.keep(stand.step)
    parallel.barrier("restored")
    return Run(config, workdir, checkpoints, text, heldout, rows, steps, stand, measured, events)


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
        raise InputError(f"--init has {len(arguments.init)} paths; give a name, a folder, or the two files")
    if begun is None:
        one = len(arguments.init) == 1
        init = read_any(*arguments.init, with_softmax=True) if one else read_model(*arguments.init)
    model = begun.config.model if begun is not None else init.model
    contrary = [change for change in differences(Config(model), config) if change.split()[0] in asked]
    contrary = [change for change in contrary if change.startswith("model.")]
    if contrary:
        raise InputError(f"the model of --init differs: {'; '.join(contrary)} there; leave these options out")
    return dataclasses.replace(config, model=model), init


def checkpoint_shapes(config: Config, vocabulary_size: int, rows: int) -> Checkpoint:
    """Shapes of a checkpoint's arrays, and their places on the devices."""
    model = config.model

    def make(key: jax.Array) -> tuple[training.TrainState, dict[str, Any]]:
        bilm = init_bilm(key, model, vocabulary_size)
        softmax = init_softmax(key, model, table_size(vocabulary_size, rows))
        position = jnp.zeros((rows, 2), jnp.int32)
        state = training.init_state({"bilm": bilm, "softmax": softmax}, optimizer_of(config.train))
        return state, {"lstm_state": zero_state(model, rows), "position": position}

    shapes = jax.eval_shape(make, jax.random.key(0))
    return Checkpoint(0, *parallel.joined_shapes(shapes, (training.STATE_AXES, 0)))


def begin(config: Config, workdir: Workdir, vocabulary: Vocabulary, init: ModelFolder | None, rows: int) -> Stand:
    """Where a new run stands; a run that has been trained is never taken for one."""
    every = config.train.checkpoint_every
    workdir.check_new(first_saved=next_due(next_due(0, every), every))
    state = training.init_state(initial_parameters(config, vocabulary, init), optimizer_of(config.train))
    return Stand.beginning(config, state, rows)


def restore_best(run: Run) -> None:
    """Keeps the best checkpoint, and puts it into model/ where a model is that is not due if the run goes on."""
    best = run.checkpoints.best_step = run.best()
    steps = [step for step in run.measured if step > 0]
    exported = min(steps, key=run.measured.__getitem__, default=None)
    if best in run.checkpoints.steps() and run.stand.step < run.steps and exported != best:
        like = checkpoint_shapes(run.config, len(run.text.vocabulary), run.rows)
        run.export(Stand.of(run.checkpoints.read(best, like)))


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
