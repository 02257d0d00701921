"""Labels of sentences (sentiment, types of questions), of a mix of layers.

Each token's mix → a linear map → ReLU → the largest and the mean over tokens → dropout → a linear map to the labels.
N sentences, M tokens of all of them, B rows, T positions, C labels, S seeds, H heads, L layers, D width of a vector, U
hidden units.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from elmo_jax.batches import Encoded
from elmo_jax.elmo import Elmo
from elmo_jax.errors import InputError
from elmo_jax.tasks import tagging
from elmo_jax.tasks.evaluate import Options, Piece, pieces_of_systems
from elmo_jax.tasks.formats import Labelled, Parts, read_labelled
from elmo_jax.tasks.probes import (
    DROPOUT_OF_SENTENCES,
    FEWEST_FINE_TUNING_STEPS,
    FINE_TUNED,
    HIDDEN,
    FineTuned,
    Standard,
    development,
    dropped,
    initial_heads,
    keys_of,
    names_of_heads,
    pooled,
    seeds_told,
    train,
)
from elmo_jax.tasks.report import Figure, Interval, bootstrap, over_seeds
from elmo_jax.tasks.systems import System

OPTIMIZER, EPOCHS, PATIENCE = optax.adam(2e-3), 30, 8
FINE_TUNING_EPOCHS, FINE_TUNING_PATIENCE = 10, 2
MOST_FREQUENT = "most frequent label"


class Prepared(NamedTuple):
    """A file of labelled sentences to measure on: numbers of those to learn of, to choose by, and of the test."""

    task: str
    name: str
    digest: str
    tokens: list[list[str]]
    labels: np.ndarray
    names: list[str]
    learned: np.ndarray
    chosen: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, task: str, file: Parts[Labelled], limit: int | None) -> "Prepared":
        """The first sentences of each part; a fifth of those to learn of are the test where there is none, and a tenth
        of the rest are to choose by.
        """
        parts = [(part or [])[:limit] for part in (file.train, file.dev, file.test)]
        sentences = [sentence for part in parts for sentence in part]
        names = sorted({sentence.label for sentence in file.train})
        labels = np.array([names.index(sentence.label) for sentence in sentences], np.int32)
        learned, chosen, test = np.split(np.arange(len(sentences)), np.cumsum([len(part) for part in parts[:2]]))
        if not len(test):
            learned, test = held_out(learned, 0.2)
        if not len(chosen):
            learned, chosen = held_out(learned, 0.1)
        if len(set(labels[learned].tolist())) < 2:
            few = f"{len(learned)} sentences to learn of, of {len(set(labels[learned].tolist()))} labels"
            raise InputError(f"{file.name} has {few}; two labels are needed at least: give more sentences")
        return cls(task, file.name, file.digest, [it.tokens for it in sentences], labels, names, learned, chosen, test)

    def figure(
        self, system: str, vectors: str, values: Sequence[float], interval: Interval, over: str, details: dict[str, Any]
    ) -> Figure:
        """Accuracy, with what was found for each seed."""
        counts = {"learned": len(self.learned), "chosen by": len(self.chosen), "test": len(self.test)}
        details = {"values": list(values)} | details | {"sentences": counts, "labels": self.names}
        return Figure(self.task, self.name, system, vectors, "accuracy", *interval, over, details)


def held_out(sentences: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Sentences without a share of them, and that."""
    kept = development(len(sentences), share)
    return sentences[~kept], sentences[kept]


class Batch(NamedTuple):
    """Vectors of tokens [B, T, L, D], their statistics, which are real [B, T], and the labels of rows [B]."""

    vectors: np.ndarray
    standard: Standard
    mask: np.ndarray
    labels: np.ndarray


def cross_entropy(outputs: jax.Array, labels: jax.Array, real: jax.Array) -> jax.Array:
    """The mean over rows that have a sentence; outputs [B, C]."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return jnp.where(real, losses, 0.0).sum() / jnp.maximum(real.sum(), 1).astype(losses.dtype)


def initial(seeds: int, layers: int, width: int, classes: int) -> dict[str, jax.Array]:
    """`initial_heads` to hidden units, which begin at random, and maps "label" of what they give to labels."""
    heads = initial_heads(seeds, layers, width, HIDDEN)
    shape = heads["weight"].shape[1:]
    random = [jax.random.normal(jax.random.key(seed), shape) * width**-0.5 for seed in range(seeds)]
    label = {
        "label": jnp.zeros((seeds, shape[0], 2 * HIDDEN, classes)),
        "label_bias": jnp.zeros((seeds, shape[0], classes)),
    }
    return heads | {"weight": jnp.stack(random)} | label


def outputs_of(heads: dict[str, jax.Array], vectors: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
    """What one seed's heads make of sentences, [H, B, C]; vectors [B, T, L, D], mask [B, T]; dropout with a key."""
    hidden = jax.nn.relu(tagging.emissions_of(heads, vectors))
    found = jax.vmap(pooled, (0, None))(hidden, mask)
    if key is not None:
        found = dropped(key, found.swapaxes(0, 1), DROPOUT_OF_SENTENCES).swapaxes(0, 1)
    return jnp.einsum("hbu,huc->hbc", found, heads["label"]) + heads["label_bias"][:, None]


def heads_loss(parameters: Any, batch: Batch, step: jax.Array) -> jax.Array:
    """The sum of the losses of all seeds and heads, which learn each for itself of the same sentences."""
    vectors, real = batch.standard.applied(batch.vectors), batch.mask[:, 0]

    def of_seed(heads: Any, key: jax.Array) -> jax.Array:
        outputs = outputs_of(heads, vectors, batch.mask, key)
        return jax.vmap(cross_entropy, (0, None, None))(outputs, batch.labels, real).sum()

    heads = parameters["heads"]
    return jax.vmap(of_seed)(heads, keys_of(len(heads["gamma"]), step)).sum()


@jax.jit
def _labels(parameters: Any, batch: Batch) -> jax.Array:
    """The labels that all seeds and heads give the rows of a batch, [S, H, B]."""
    vectors = batch.standard.applied(batch.vectors)
    return jax.vmap(lambda heads: outputs_of(heads, vectors, batch.mask, None))(parameters["heads"]).argmax(-1)


def frozen_figures(prepared: Prepared, system: System, seeds: int) -> list[Figure]:
    """Classifiers on each layer and on the mix, of all seeds, trained side by side."""
    vectors, labels = system.embed(prepared.tokens), prepared.labels
    learned, chosen, test = (
        tagging.Sample.of(vectors.begins, numbers) for numbers in (prepared.learned, prepared.chosen, prepared.test)
    )
    standard = Standard.of(vectors.values, learned.tokens)

    def batch_of(sample: tagging.Sample, shape: tagging.Shape, sentences: np.ndarray) -> Batch:
        tokens, mask = sample.places(sentences, shape.positions)
        return Batch(vectors.values[tokens], standard, mask, labels[sentences])

    def batches(epoch: int) -> Iterator[Batch]:
        for shape, (sentences,) in tagging.shuffled(learned.shapes, [0], epoch):
            yield batch_of(learned, shape, sentences)

    def accuracies(parameters: Any, sample: tagging.Sample) -> np.ndarray:
        right, count = 0, 0
        for shape, sentences in tagging.in_turn(sample.shapes):
            found = np.asarray(_labels(parameters, batch_of(sample, shape, sentences)))
            right = right + ((found == labels[sentences]) & (sentences >= 0)).sum(-1)
            count += (sentences >= 0).sum()
        return right / count

    parameters = {"heads": initial(seeds, *vectors.values.shape[1:], len(prepared.names))}
    value, what = lambda parameters: accuracies(parameters, chosen), f"{prepared.task}: {system.name}"
    trained = train(parameters, heads_loss, OPTIMIZER, batches, value, epochs=EPOCHS, patience=PATIENCE, what=what)
    found = accuracies(trained.parameters, test).T.tolist()
    return [
        prepared.figure(system.name, name, of_seeds, over_seeds(of_seeds), seeds_told(seeds), trained.told(head))
        for head, (name, of_seeds) in enumerate(zip(names_of_heads(system), found, strict=True))
    ]


def fine_tuned_figures(prepared: Prepared, system: System, elmo: Elmo, seed: int) -> list[Figure]:
    """A classifier trained together with the biLM, from one seed."""
    module, labels = FineTuned.of(elmo, len(prepared.names), HIDDEN), prepared.labels
    lengths = np.array([len(tokens) for tokens in prepared.tokens])
    shapes = tagging.shapes_of(lengths, prepared.learned)

    def encoded(sentences: np.ndarray) -> Encoded:
        return elmo.encode([prepared.tokens[number] for number in sentences if number >= 0], rows=len(sentences))

    def batches(epoch: int) -> Iterator[tuple[Encoded, np.ndarray]]:
        for _, (sentences,) in tagging.shuffled(shapes, [seed], epoch):
            yield encoded(sentences), labels[sentences]

    def loss(parameters: Any, batch: tuple[Encoded, jax.Array], step: jax.Array) -> jax.Array:
        outputs = module.dropping(parameters, batch[0], seed, step)
        return cross_entropy(outputs, batch[1], jnp.asarray(batch[0].sentences))

    @jax.jit
    def decode(parameters: Any, rows: Encoded) -> jax.Array:
        return module.apply({"params": parameters}, rows, deterministic=True).argmax(-1)

    def accuracy(parameters: Any, sentences: np.ndarray) -> float:
        right = 0
        for _, part in tagging.in_turn(tagging.shapes_of(lengths, sentences)):
            right += int(((np.asarray(decode(parameters, encoded(part))) == labels[part]) & (part >= 0)).sum())
        return right / len(sentences)

    value, what = lambda parameters: accuracy(parameters, prepared.chosen), f"{prepared.task}: {system.name} fine-tuned"
    numbers = {"epochs": FINE_TUNING_EPOCHS, "patience": FINE_TUNING_PATIENCE, "fewest_steps": FEWEST_FINE_TUNING_STEPS}
    trained = train(module.initial(elmo, seed), loss, module.optimizer(), batches, value, what=what, **numbers)
    found = [accuracy(trained.parameters, prepared.test)]
    details = trained.told() | {"seeds": [seed]}
    return [prepared.figure(system.name, FINE_TUNED, found, over_seeds(found), seeds_told(1), details)]


def frequencies(prepared: Prepared) -> list[Figure]:
    """What no vectors are needed for."""
    right = prepared.labels[prepared.test] == np.bincount(prepared.labels[prepared.learned]).argmax()
    over = f"{len(right):,} sentences (bootstrap)"
    return [prepared.figure(MOST_FREQUENT, "none", [float(right.mean())], bootstrap([right]), over, {})]


def pieces(task: str, path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """Files of labelled sentences, and the most frequent label."""
    prepared = Prepared.of(task, read_labelled(path), options.limit)
    decides = {"task": task, "name": prepared.name, "data": prepared.digest, "limit": options.limit}
    learning = (functools.partial(of, prepared) for of in (frozen_figures, fine_tuned_figures))
    found = pieces_of_systems(f"{task}: {prepared.name}", decides, systems, options, *learning)
    most = functools.partial(frequencies, prepared)
    return [*found, Piece(f"{task}: {prepared.name}, {MOST_FREQUENT}", decides | {"system": MOST_FREQUENT}, most)]


def sentiment(path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """Labels of sentences, whatever they mean."""
    return pieces("sentiment", path, systems, options)


def question_type(path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """Types of questions, a sentence each."""
    return pieces("question type", path, systems, options)
