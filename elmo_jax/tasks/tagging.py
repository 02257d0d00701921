"""Tags of tokens (chunks, named entities): a mix of layers → dropout → a linear map → a conditional random field.

B rows, T positions, C tags, S seeds, H heads, L layers, D width of a vector, M tokens of all sentences.

The linear-chain CRF (Lafferty et al. 2001) is written here: no library of JAX that is kept well has one.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from tqdm import tqdm

from elmo_jax.batches import Encoded
from elmo_jax.elmo import Elmo
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.tasks.evaluate import Options, Piece, pieces_of_systems
from elmo_jax.tasks.formats import OUTSIDE, Scheme, Tagged, TaggedParts, read_tagged
from elmo_jax.tasks.probes import (
    FEWEST_FINE_TUNING_STEPS,
    FINE_TUNED,
    FineTuned,
    Standard,
    Trained,
    development,
    dropped,
    heads_of,
    initial_heads,
    keys_of,
    names_of_heads,
    seeds_told,
    train,
)
from elmo_jax.tasks.report import Figure, over_seeds
from elmo_jax.tasks.systems import System, Vectors

Field = dict[str, jax.Array]  # a CRF's scores: "transitions" [C, C] from a tag to the next, "begin" [C], "end" [C]
TOKENS_OF_BATCH, SHORTEST = 2048, 16
OPTIMIZER, EPOCHS, PATIENCE = optax.adam(5e-3), 8, 2


def initial_field(classes: int, *before: int) -> Field:
    """A CRF to which all tags are the same, with more axes in front."""
    shapes = {"transitions": (classes, classes), "begin": (classes,), "end": (classes,)}
    return {name: jnp.zeros((*before, *shape)) for name, shape in shapes.items()}


def log_partition(field: Field, emissions: jax.Array, mask: jax.Array) -> jax.Array:
    """The logarithm of the sum over all tags of exp(path_score), [B]; emissions [B, T, C], mask [B, T].

    A step is a product of matrices: of scores less the largest, so that it is exp(0) at least.
    """
    transitions = field["transitions"]
    largest = jax.lax.stop_gradient(transitions.max())
    rates = jnp.exp(transitions - largest)

    def step(scores: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        emitted, real = at
        top = jax.lax.stop_gradient(scores.max(1, keepdims=True))
        following = jnp.log(jnp.exp(scores - top) @ rates) + top + largest + emitted
        return jnp.where(real[:, None], following, scores), None

    begin = field["begin"][None] + emissions[:, 0]
    scores, _ = jax.lax.scan(step, begin, (emissions[:, 1:].swapaxes(0, 1), mask[:, 1:].T))
    return jax.nn.logsumexp(scores + field["end"][None], axis=1)


def path_score(field: Field, emissions: jax.Array, tags: jax.Array, mask: jax.Array) -> jax.Array:
    """The score of tags [B, T] of sentences of one token or more, [B]: of emissions, transitions, begin and end."""
    emitted = jnp.take_along_axis(emissions, tags[:, :, None], 2)[:, :, 0]
    moves = field["transitions"][tags[:, :-1], tags[:, 1:]]
    last = jnp.take_along_axis(tags, jnp.maximum(mask.sum(1, keepdims=True) - 1, 0), 1)[:, 0]
    ends = field["begin"][tags[:, 0]] + field["end"][last]
    return jnp.where(mask, emitted, 0.0).sum(1) + jnp.where(mask[:, 1:], moves, 0.0).sum(1) + ends


def viterbi(field: Field, emissions: jax.Array, mask: jax.Array) -> jax.Array:
    """The tags of the greatest score, int32 [B, T]; behind the end of a sentence its last tag."""
    same = jnp.arange(emissions.shape[2])

    def step(scores: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        emitted, real = at
        moved = scores[:, :, None] + field["transitions"][None]
        before = jnp.where(real[:, None], moved.argmax(1), same[None])
        return jnp.where(real[:, None], moved.max(1) + emitted, scores), before

    begin = field["begin"][None] + emissions[:, 0]
    scores, before = jax.lax.scan(step, begin, (emissions[:, 1:].swapaxes(0, 1), mask[:, 1:].T))
    last = (scores + field["end"][None]).argmax(1)

    def back(tag: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
        tag = jnp.take_along_axis(places, tag[:, None], 1)[:, 0]
        return tag, tag

    _, tags = jax.lax.scan(back, last, before, reverse=True)
    return jnp.concatenate([tags.T, last[:, None]], 1).astype(jnp.int32)


def unlikelihood(field: Field, emissions: jax.Array, tags: jax.Array, mask: jax.Array) -> jax.Array:
    """Minus the log-likelihood of tags, for each token; rows without a token count nothing."""
    of_rows = log_partition(field, emissions, mask) - path_score(field, emissions, tags, mask)
    return jnp.where(mask[:, 0], of_rows, 0.0).sum() / jnp.maximum(mask.sum(), 1).astype(of_rows.dtype)


class Tagset(NamedTuple):
    """Tags by number, first the `classes` that are learned; whether each is inside a span, and goes on with the next.

    As conlleval and seqeval do, a span goes on from a tag to the next where both have its type and neither says that it
    ends there or begins there: so of IOB1, IOB2 and BIOES alike, and spans that begin with I are spans.
    """

    names: tuple[str, ...]
    classes: int
    scheme: Scheme
    inside: np.ndarray
    types: np.ndarray
    continues: np.ndarray

    @classmethod
    def of(cls, learned: Sequence[Tagged], others: Sequence[Tagged], scheme: Scheme) -> "Tagset":
        """The tags of sentences to learn of, and of others."""
        first, every = ({tag for sentence in part for tag in sentence.tags} for part in (learned, others))
        names = (*sorted(first), *sorted(every - first))
        inside = np.array([name != OUTSIDE for name in names])
        kinds = sorted({name[2:] for name in names})
        types = np.array([kinds.index(name[2:]) for name in names])
        goes, comes = (np.array([name[0] in letters for name in names]) for letters in ("BI", "IE"))
        continues = (types[:, None] == types) & np.outer(goes & inside, comes & inside)
        return cls(names, len(first), scheme, inside, types, continues)

    def numbers(self, sentences: Sequence[Tagged]) -> np.ndarray:
        """The tags of all tokens, int32 [M]."""
        places = {name: number for number, name in enumerate(self.names)}
        return np.array([places[tag] for sentence in sentences for tag in sentence.tags], np.int32)

    def spans(self, tags: np.ndarray, begins: np.ndarray) -> set[tuple[int, int, int]]:
        """First token, token behind the last, and type; tags [M], of sentences that begin at the tokens begins [N]."""
        breaks = np.ones(len(tags) + 1, bool)
        breaks[1:-1] = ~self.continues[tags[:-1], tags[1:]]
        breaks[begins] = True
        places = np.flatnonzero(breaks)
        first, behind = places[:-1], places[1:]
        real = self.inside[tags[first]]
        return set(
            zip(first[real].tolist(), behind[real].tolist(), self.types[tags[first[real]]].tolist(), strict=True)
        )


class Score(NamedTuple):
    """How good tags are: F1 of spans with precision and recall, or the accuracy of plain tags three times."""

    value: float
    precision: float
    recall: float


def score(tagset: Tagset, gold: np.ndarray, predicted: np.ndarray, begins: np.ndarray) -> Score:
    """Of tags [M]: micro-averaged over all spans, as conlleval and seqeval do; 0 where there are none."""
    if tagset.scheme == "plain":
        accuracy = float((gold == predicted).mean())
        return Score(accuracy, accuracy, accuracy)
    right, found = tagset.spans(gold, begins), tagset.spans(predicted, begins)
    both = len(right & found)
    precision, recall = both / max(len(found), 1), both / max(len(right), 1)
    return Score(2 * both / max(len(right) + len(found), 1), precision, recall)


class Shape(NamedTuple):
    """Sentences that go into batches of one shape, `rows` of `positions`."""

    rows: int
    positions: int
    sentences: np.ndarray


def shapes_of(lengths: np.ndarray, sentences: np.ndarray) -> list[Shape]:
    """Sentences by length, in batches of 16, 32, 64, .. positions and as many rows as make TOKENS_OF_BATCH."""
    shapes, shorter, positions = [], 0, SHORTEST
    while shorter < lengths[sentences].max():
        some = sentences[(shorter < lengths[sentences]) & (lengths[sentences] <= positions)]
        if len(some):
            shapes.append(Shape(max(1, TOKENS_OF_BATCH // positions), positions, some))
        shorter, positions = positions, 2 * positions
    return shapes


def shuffled(shapes: Sequence[Shape], seeds: Sequence[int], epoch: int) -> Iterator[tuple[Shape, np.ndarray]]:
    """Batches of an epoch, numbers of sentences int [S, rows], -1 where there is none: in an order for each seed.

    The shapes come in the same order for all seeds, which are in one program.
    """
    batches = []
    for number, shape in enumerate(shapes):
        count = -(-len(shape.sentences) // shape.rows)
        orders = [np.random.default_rng([seed, epoch, number]).permutation(shape.sentences) for seed in seeds]
        padded = np.pad(orders, ((0, 0), (0, count * shape.rows - len(shape.sentences))), constant_values=-1)
        batches += [(shape, part) for part in np.split(padded, count, axis=1)]
    for place in np.random.default_rng(epoch).permutation(len(batches)):
        yield batches[place]


def in_turn(shapes: Sequence[Shape]) -> Iterator[tuple[Shape, np.ndarray]]:
    """All sentences once, int [rows], -1 where there is none."""
    for shape in shapes:
        for begin in range(0, len(shape.sentences), shape.rows):
            part = shape.sentences[begin : begin + shape.rows]
            yield shape, np.pad(part, (0, shape.rows - len(part)), constant_values=-1)


class Sample(NamedTuple):
    """Some of the sentences whose M tokens stand one behind the other: sentence i is tokens begins[i] to begins[i + 1].

    `tokens` are the numbers of their tokens, `starts` where in these each sentence begins.
    """

    begins: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray
    shapes: list[Shape]

    @classmethod
    def of(cls, begins: np.ndarray, sentences: np.ndarray) -> "Sample":
        """Those whose numbers are given, in rising order."""
        lengths = np.diff(begins)
        tokens = np.flatnonzero(np.repeat(np.isin(np.arange(len(lengths)), sentences), lengths))
        return cls(begins, tokens, np.cumsum([0, *lengths[sentences[:-1]]]), shapes_of(lengths, sentences))

    def places(self, sentences: np.ndarray, positions: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the tokens in the rows of a batch, int [.., B, T], and which are real; sentences int [.., B]."""
        place, begins = np.arange(positions), self.begins[sentences]
        lengths = np.where(sentences < 0, 0, self.begins[sentences + 1] - begins)
        mask = place < lengths[..., None]
        return np.where(mask, begins[..., None] + place, 0), mask

    def predictions(self, decode: Callable[[np.ndarray, np.ndarray, np.ndarray], npt.ArrayLike]) -> np.ndarray:
        """Tags of all its tokens, int [.., m]; decode(sentences [B], tokens [B, T], mask [B, T]) → tags [.., B, T]."""
        predicted, order = [], []
        for shape, sentences in in_turn(self.shapes):
            tokens, mask = self.places(sentences, shape.positions)
            predicted.append(np.asarray(decode(sentences, tokens, mask))[..., mask])
            order.append(tokens[mask])
        return np.concatenate(predicted, -1)[..., np.argsort(np.concatenate(order))]


class Batch(NamedTuple):
    """Vectors [.., B, T, L, D], their statistics, the mask [.., B, T], and tags where they are learned."""

    vectors: np.ndarray
    standard: Standard
    mask: np.ndarray
    tags: np.ndarray | None = None


def emissions_of(heads: dict[str, jax.Array], vectors: jax.Array) -> jax.Array:
    """What one seed's heads make of vectors [B, T, L, D]: [H, B, T, C]."""
    rows, positions, *one = vectors.shape
    return heads_of(heads, vectors.reshape(rows * positions, *one)).reshape(-1, rows, positions, heads["bias"].shape[1])


def heads_loss(parameters: Any, batch: Batch, step: jax.Array) -> jax.Array:
    """The sum of the losses of all seeds and heads, which learn each for itself."""

    def of_seed(heads: Any, field: Field, key: jax.Array, vectors: jax.Array, mask: jax.Array, tags: jax.Array) -> Any:
        emissions = emissions_of(heads, dropped(key, batch.standard.applied(vectors)))
        return jax.vmap(unlikelihood, (0, 0, None, None))(field, emissions, tags, mask).sum()

    keys = keys_of(len(batch.mask), step)
    return jax.vmap(of_seed)(
        parameters["heads"], parameters["field"], keys, batch.vectors, batch.mask, batch.tags
    ).sum()


@jax.jit
def _decode(parameters: Any, batch: Batch) -> jax.Array:
    """The tags that all seeds and heads give the rows [B, T] of a batch, [S, H, B, T]."""
    vectors = batch.standard.applied(batch.vectors)

    def of_seed(heads: Any, field: Field) -> jax.Array:
        return jax.vmap(viterbi, (0, 0, None))(field, emissions_of(heads, vectors), batch.mask)

    return jax.vmap(of_seed)(parameters["heads"], parameters["field"])


class Prepared(NamedTuple):
    """A file of tags to measure on: sentences to learn of and to choose by, their numbers, and those of the test."""

    task: str
    file: TaggedParts
    tagset: Tagset
    sentences: list[Tagged]
    learned: np.ndarray
    chosen: np.ndarray
    test: list[Tagged]

    @classmethod
    def of(cls, task: str, file: TaggedParts, limit: int | None) -> "Prepared":
        """The first sentences of each part; a tenth of those to learn of are to choose by where there are none."""
        train, test = file.train[:limit], file.test[:limit]
        if len(train) < 2:
            raise InputError(
                f"the train part of {file.name} has {len(train)} sentence to learn of; give two or more (are the blank "
                "lines between sentences missing?)"
            )
        sentences = train + (file.dev or [])[:limit]
        kept = development(len(train)) if file.dev is None else np.arange(len(sentences)) >= len(train)
        tagset = Tagset.of([sentences[number] for number in np.flatnonzero(~kept)], [*sentences, *test], file.scheme)
        if unseen := tagset.names[tagset.classes :]:
            which = listed([brief(repr(name)) for name in unseen], ", ")
            tqdm.write(f"{file.name}: {which} are not among the tags to learn of, and cannot be found", sys.stderr)
        return cls(task, file, tagset, sentences, np.flatnonzero(~kept), np.flatnonzero(kept), test)

    def figure(self, system: str, vectors: str, scores: Sequence[Score], over: str, details: dict[str, Any]) -> Figure:
        """The mean over seeds, with what was found for each."""
        metric = "accuracy" if self.tagset.scheme == "plain" else "F1"
        found = dict(zip(("values", "precisions", "recalls"), map(list, zip(*scores, strict=True)), strict=True))
        counts = {"learned": len(self.learned), "chosen by": len(self.chosen), "test": len(self.test)}
        about = {"sentences": counts, "scheme": self.file.scheme, "irregular tags": self.file.irregular}
        interval = over_seeds(found["values"])
        return Figure(self.task, self.file.name, system, vectors, metric, *interval, over, found | details | about)


def tokens_of(sentences: Sequence[Tagged]) -> list[list[str]]:
    return [sentence.tokens for sentence in sentences]


def begins_of(sentences: Sequence[Tagged]) -> np.ndarray:
    """Where each begins among the tokens of all, and where the last ends, int [N + 1]."""
    return np.cumsum([0, *(len(sentence.tokens) for sentence in sentences)])


def measured(
    parameters: Any, standard: Standard, tagset: Tagset, vectors: Vectors, tags: np.ndarray, sample: Sample
) -> list[list[Score]]:
    """How good taggers of all seeds and heads are on some of the sentences that have these vectors and tags [M]."""
    decode = lambda _, tokens, mask: _decode(parameters, Batch(vectors.values[tokens], standard, mask))
    predicted, gold = sample.predictions(decode), tags[sample.tokens]
    return [[score(tagset, gold, of_head, sample.starts) for of_head in of_seed] for of_seed in predicted]


def learn(prepared: Prepared, system: System, seeds: int) -> tuple[Trained, Standard]:
    """Taggers on each layer of a system's vectors and on their mix, of all seeds, trained side by side."""
    tagset, tags = prepared.tagset, prepared.tagset.numbers(prepared.sentences)
    vectors = system.embed(tokens_of(prepared.sentences))
    learned, chosen = (Sample.of(vectors.begins, numbers) for numbers in (prepared.learned, prepared.chosen))
    standard = Standard.of(vectors.values, learned.tokens)

    def batches(epoch: int) -> Iterator[Batch]:
        for shape, sentences in shuffled(learned.shapes, range(seeds), epoch):
            tokens, mask = learned.places(sentences, shape.positions)
            yield Batch(vectors.values[tokens], standard, mask, tags[tokens])

    def values(parameters: Any) -> list[list[float]]:
        scores = measured(parameters, standard, tagset, vectors, tags, chosen)
        return [[of_head.value for of_head in of_seed] for of_seed in scores]

    _, layers, width = vectors.values.shape
    heads = initial_heads(seeds, layers, width, tagset.classes)
    parameters = {"heads": heads, "field": initial_field(tagset.classes, *heads["gamma"].shape)}
    what = f"{prepared.task}: {system.name}"
    trained = train(parameters, heads_loss, OPTIMIZER, batches, values, epochs=EPOCHS, patience=PATIENCE, what=what)
    return trained, standard


def frozen_figures(prepared: Prepared, system: System, seeds: int) -> list[Figure]:
    """How good the taggers on each layer and on the mix are on the test's sentences."""
    trained, standard = learn(prepared, system, seeds)
    vectors, tags = system.embed(tokens_of(prepared.test)), prepared.tagset.numbers(prepared.test)
    sample = Sample.of(vectors.begins, np.arange(len(prepared.test)))
    scores = measured(trained.parameters, standard, prepared.tagset, vectors, tags, sample)
    return [
        prepared.figure(system.name, name, of_seeds, seeds_told(seeds), trained.told(head))
        for head, (name, of_seeds) in enumerate(zip(names_of_heads(system), zip(*scores, strict=True), strict=True))
    ]


def fine_tuned_figures(prepared: Prepared, system: System, elmo: Elmo, seed: int) -> list[Figure]:
    """A tagger trained together with the biLM, from one seed."""
    tagset, every = prepared.tagset, prepared.sentences
    tags, begins = tagset.numbers(every), begins_of(every)
    learned, chosen = (Sample.of(begins, numbers) for numbers in (prepared.learned, prepared.chosen))
    module = FineTuned.of(elmo, tagset.classes)

    def encoded(sentences: Sequence[Tagged], numbers: np.ndarray) -> Encoded:
        return elmo.encode([sentences[number].tokens for number in numbers if number >= 0], rows=len(numbers))

    def batches(epoch: int) -> Iterator[tuple[Encoded, np.ndarray]]:
        for shape, (numbers,) in shuffled(learned.shapes, [seed], epoch):
            yield encoded(every, numbers), tags[learned.places(numbers, shape.positions)[0]]

    def loss(parameters: Any, batch: tuple[Encoded, jax.Array], step: jax.Array) -> jax.Array:
        emissions = module.dropping(parameters["module"], batch[0], seed, step)
        return unlikelihood(parameters["field"], emissions, batch[1], jnp.asarray(batch[0].mask))

    @jax.jit
    def decode(parameters: Any, rows: Encoded) -> jax.Array:
        emissions = module.apply({"params": parameters["module"]}, rows, deterministic=True)
        return viterbi(parameters["field"], emissions, jnp.asarray(rows.mask))

    def score_of(parameters: Any, sentences: Sequence[Tagged], tags: np.ndarray, sample: Sample) -> Score:
        predicted = sample.predictions(lambda numbers, *_: decode(parameters, encoded(sentences, numbers)))
        return score(tagset, tags[sample.tokens], predicted, sample.starts)

    parameters = {"module": module.initial(elmo, seed), "field": initial_field(tagset.classes)}
    value = lambda parameters: score_of(parameters, every, tags, chosen).value
    what, optimizer = f"{prepared.task}: {system.name} fine-tuned", module.optimizer()
    numbers = {"epochs": EPOCHS, "patience": PATIENCE, "fewest_steps": FEWEST_FINE_TUNING_STEPS}
    trained = train(parameters, loss, optimizer, batches, value, what=what, **numbers)
    sample = Sample.of(begins_of(prepared.test), np.arange(len(prepared.test)))
    found = score_of(trained.parameters, prepared.test, tagset.numbers(prepared.test), sample)
    details = trained.told() | {"seeds": [seed]}
    return [prepared.figure(system.name, FINE_TUNED, [found], seeds_told(1), details)]


def pieces(task: str, file: TaggedParts, systems: Sequence[System], options: Options) -> list[Piece]:
    """Files in columns."""
    prepared = Prepared.of(task, file, options.limit)
    decides = {"task": task, "name": file.name, "data": file.digest, "limit": options.limit}
    learning = (functools.partial(of, prepared) for of in (frozen_figures, fine_tuned_figures))
    return pieces_of_systems(f"{task}: {file.name}", decides, systems, options, *learning)


def chunking(path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """Chunks, or any other spans or tags of tokens."""
    return pieces("chunking", read_tagged(path), systems, options)


def entities(path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """Named entities, which are spans."""
    file = read_tagged(path)
    if file.scheme == "plain":
        tag = file.train[0].tags[0]
        raise InputError(
            f"{path} has tags of single tokens, as {brief(tag)}; entities are spans, in IOB1, IOB2 or BIOES, as B-PER "
            "I-PER O; give chunking=PATH to measure how many tags are right"
        )
    return pieces("entities", file, systems, options)
