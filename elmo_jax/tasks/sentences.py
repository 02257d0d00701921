"""Labels of sentences (sentiment, types of questions), by logistic regression on the mean of their vectors.

As SentEval does (Conneau and Kiela 2018); here the layers' mix is learned, too. N sentences, B rows, C labels, S seeds.
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
from elmo_jax.tasks.cosines import pooled
from elmo_jax.tasks.evaluate import Options, Piece, pieces_of_systems
from elmo_jax.tasks.formats import Labelled, Parts, read_labelled
from elmo_jax.tasks.probes import (
    FEWEST_FINE_TUNING_STEPS,
    FINE_TUNED,
    FineTuned,
    development,
    names_of_heads,
    regression,
    seeds_told,
    train,
)
from elmo_jax.tasks.report import Figure, Interval, bootstrap, over_seeds
from elmo_jax.tasks.systems import MIX, System

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
            learned, test = held_out(sentences, learned, 0.2)
        if not len(chosen):
            learned, chosen = held_out(sentences, learned, 0.1)
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


def held_out(sentences: Sequence[Labelled], some: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Some of the sentences, by number, without a share of them, and that, with all that repeat one of it."""
    texts = [tuple(sentences[number].tokens) for number in some]
    chosen = {texts[number] for number in np.flatnonzero(development(len(some), share))}
    kept = np.array([text in chosen for text in texts], bool)
    return some[~kept], some[kept]


def cross_entropy(outputs: jax.Array, labels: jax.Array, real: jax.Array) -> jax.Array:
    """The mean over rows that have a sentence; outputs [B, C]."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return jnp.where(real, losses, 0.0).sum() / jnp.maximum(real.sum(), 1).astype(losses.dtype)


def drawn(sentences: np.ndarray, seeds: int) -> np.ndarray:
    """Nine tenths of the sentences, drawn anew by each seed, numbers int [S, n]."""
    count = max(2, round(0.9 * len(sentences)))
    return np.stack([np.random.default_rng(seed).permutation(sentences)[:count] for seed in range(seeds)])


def frozen_figures(prepared: Prepared, system: System, seeds: int) -> list[Figure]:
    """Logistic regression on the mean of each sentence's vectors, of each layer and of the mix.

    A seed decides which nine tenths of the sentences are learned of; all are chosen by the same ones.
    """
    vectors, labels = pooled(system, prepared.tokens), prepared.labels
    learned, chosen = np.zeros((2, seeds, len(labels)), bool)
    chosen[:, prepared.chosen] = True
    np.put_along_axis(learned, drawn(prepared.learned, seeds), True, 1)
    figures = []
    for head, name in enumerate(names_of_heads(system)):
        features = vectors if name == MIX else vectors[:, [head]]
        found = regression(features, labels, learned | chosen, chosen)
        right = (found.labels == labels)[:, prepared.test].mean(1).tolist()
        details = {"strengths": found.strengths.tolist()} | ({"mix": found.mixes.tolist()} if name == MIX else {})
        figures.append(prepared.figure(system.name, name, right, over_seeds(right), seeds_told(seeds), details))
    return figures


def fine_tuned_figures(prepared: Prepared, system: System, elmo: Elmo, seed: int) -> list[Figure]:
    """A classifier trained together with the biLM, from one seed."""
    module, labels = FineTuned.of(elmo, len(prepared.names), sentences=True), prepared.labels
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
