"""What is learned on vectors: logistic regression in full batch, and heads in minibatches, each on layers and mixes.

N examples, L layers, D width of a vector, C classes, K splits into training and test, S seeds, H heads.

The layers are standardised first, each dimension by its mean and scale in the training part: otherwise a layer of small
numbers (an untrained model's) would learn slowly and be punished more, and weights of a mix could not be compared.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from tqdm import tqdm

from elmo_jax.batches import Encoded
from elmo_jax.elmo import Elmo
from elmo_jax.embedder import ElmoEmbedder, layer_rates
from elmo_jax.tasks.report import Figure, over_seeds
from elmo_jax.tasks.systems import MIX, System

# Of logistic regression: strengths of L2 that are tried in turn, and when it ends: iterations, trials of each, and what
# an iteration must gain of the mean log-likelihood.
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3)
MOST_ITERATIONS, MOST_TRIALS, TOLERANCE = 150, 10, 2e-5
# Of heads on tokens and of fine-tuning, dropout of what the biLM gives (Peters et al. 2018, section 3.3).
DROPOUT = 0.5
# Of few examples as many passes are an epoch as make so many steps; fine-tuning's are dear.
FEWEST_STEPS, FEWEST_FINE_TUNING_STEPS = 50, 10
FINE_TUNING_RATE, FINE_TUNING_SHARE = 2e-3, 0.1
ROWS_OF_STATISTICS, SMALLEST_SCALE = 8192, 1e-6
FINE_TUNED = "fine-tuned"


class Standard(NamedTuple):
    """Mean and scale [L, D] of each dimension of each layer; the scale of a constant is 1."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, rows: np.ndarray) -> "Standard":
        """Of some rows, numbers [m], of values [M, L, D]; a part at a time, so that nothing of their size is made."""
        parts = np.array_split(rows, -(-len(rows) // ROWS_OF_STATISTICS))
        mean = sum(values[part].sum(0, dtype=np.float64) for part in parts) / len(rows)
        variance = sum(np.square(values[part] - mean).sum(0) for part in parts) / len(rows)
        scale = np.where(variance > SMALLEST_SCALE**2, np.sqrt(variance), 1)
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def applied(self, vectors: jax.Array) -> jax.Array:
        """Vectors [.., L, D] with mean 0 and variance 1 in those rows."""
        ones = (1,) * (vectors.ndim - 2)
        return (vectors - self.mean.reshape(*ones, *self.mean.shape)) / self.scale.reshape(*ones, *self.scale.shape)


class Probed(NamedTuple):
    """What K probes say: labels [K, N] of all examples, weights of the layers [K, L], the strengths of L2 [K]."""

    labels: np.ndarray
    mixes: np.ndarray
    strengths: np.ndarray


def probe(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> Probed:
    """Linear probes on a mix of the layers of `features` float32 [N, L, D], one for each fold.

    labels int [N] from 0 up; folds int [N] from 0 to K - 1, K ≥ 3. Probe k learns of all folds but k; the strength of
    L2 is chosen on fold k + 1.
    """
    count = int(folds.max()) + 1
    learned = np.arange(count)[:, None] != folds
    chosen = (np.arange(count)[:, None] + 1) % count == folds
    return regression(features, labels, learned, chosen)


def regression(features: np.ndarray, labels: np.ndarray, learned: np.ndarray, chosen: np.ndarray) -> Probed:
    """Linear probes on a mix of the layers of `features` float32 [N, L, D], which learn of the examples `learned`.

    labels int [N] from 0 up; learned, chosen bool [K, N]. Multinomial logistic regression with L2 on
    γ · Σ softmax(mix)_l · layer_l, both learned together by L-BFGS on all examples at once; γ is not learned, which
    would undo the L2, but follows from the mix (`of_unit_variance`). The strength of L2 is what gave the examples
    `chosen` the greatest likelihood by a probe that had not learned of them. On one layer it is scikit-learn's
    LogisticRegression with C = 1 / (examples · strength).
    """
    count, classes = len(learned), int(labels.max()) + 1
    values, targets = jnp.asarray(features), jnp.asarray(labels.astype(np.int32))
    picked = np.full(count, STRENGTHS[0], np.float32)
    best = np.full(count, -np.inf)
    for strength in STRENGTHS:  # from strong to weak, which converge slowly
        logs = _solve(values, targets, learned & ~chosen, np.full(count, strength, np.float32), classes).logs
        likelihoods = np.take_along_axis(np.asarray(logs), labels[None, :, None], -1)[..., 0]
        likelihoods = np.where(chosen, likelihoods, 0).sum(1)
        better = likelihoods > best
        picked, best = np.where(better, np.float32(strength), picked), np.maximum(likelihoods, best)
        if not better.any():
            break
    solved = _solve(values, targets, learned, picked, classes)
    return Probed(np.asarray(solved.logs).argmax(-1), np.asarray(solved.mixes), picked)


def of_unit_variance(mix: jax.Array) -> jax.Array:
    """γ · softmax(mix), γ such that layers of variance 1 that know nothing of each other give a mix of variance 1.

    Otherwise L2 would choose one layer, because a mean of several varies less.
    """
    shares = jax.nn.softmax(mix)
    return shares / jnp.linalg.norm(shares)


class _Solved(NamedTuple):
    """Logarithms of probabilities [P, N, C] and mixes [P, L] of P problems."""

    logs: jax.Array
    mixes: jax.Array


@functools.partial(jax.jit, static_argnames="classes")
def _solve(features: jax.Array, labels: jax.Array, examples: jax.Array, strengths: jax.Array, classes: int) -> _Solved:
    """Logistic regressions on examples bool [P, N] of the features [N, L, D], side by side.

    Standardising is done to the weights, so that all problems read the same features.
    """
    number, layers, width = features.shape
    flat = features.reshape(number, layers * width)
    flat = flat - flat.mean(0, keepdims=True)
    right = jax.nn.one_hot(labels, classes)
    every = jnp.asarray(examples, jnp.float32)
    every = every / every.sum(1, keepdims=True)
    means = every @ flat
    scales = jnp.sqrt(jnp.maximum(every @ (flat * flat) - means * means, 0.0))
    scales = jnp.where(scales > SMALLEST_SCALE, scales, 1.0)

    def solve(part: jax.Array, mean: jax.Array, scale: jax.Array, strength: jax.Array) -> tuple[jax.Array, jax.Array]:
        def logs(parameters: dict[str, jax.Array]) -> jax.Array:
            weight = of_unit_variance(parameters["mix"])[:, None, None] * parameters["weight"][None]
            weight = weight.reshape(layers * width, classes) / scale[:, None]
            return jax.nn.log_softmax(flat @ weight + (parameters["bias"] - mean @ weight)[None])

        def loss(parameters: dict[str, jax.Array]) -> jax.Array:
            likelihood = jnp.vdot(part[:, None] * right, logs(parameters))
            return 0.5 * strength * jnp.square(parameters["weight"]).sum() - likelihood

        optimizer = optax.lbfgs(linesearch=optax.scale_by_zoom_linesearch(MOST_TRIALS, initial_guess_strategy="one"))
        start = {"mix": jnp.zeros(layers), "weight": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}

        def step(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
            parameters, state, _, before = carry
            value, gradient = optax.value_and_grad_from_state(loss)(parameters, state=state)
            options = {"value": value, "grad": gradient, "value_fn": loss}
            with jax.numpy_dtype_promotion("standard"):  # which optax needs
                updates, state = optimizer.update(gradient, state, parameters, **options)
            return optax.apply_updates(parameters, updates), state, before, value

        def going(carry: tuple[Any, Any, Any, Any]) -> jax.Array:
            _, state, before, value = carry
            return (optax.tree.get(state, "count") < MOST_ITERATIONS) & (before - value > TOLERANCE)

        far = jnp.float32(np.inf), jnp.float32(1e9)
        parameters, *_ = jax.lax.while_loop(going, step, (start, optimizer.init(start), *far))
        return logs(parameters), jax.nn.softmax(parameters["mix"])

    return _Solved(*jax.vmap(solve)(every, means, scales, strengths))


def initial_heads(seeds: int, layers: int, width: int, classes: int) -> dict[str, jax.Array]:
    """Linear maps to `classes` of each layer and, where there are several, of a mix of them, the last head: [S, H, ..].

    Every head has a mix and a γ, which only the last one reads.
    """
    heads = layers + (layers > 1)
    return {
        "mix": jnp.zeros((seeds, heads, layers)),
        "gamma": jnp.ones((seeds, heads)),
        "weight": jnp.zeros((seeds, heads, width, classes)),
        "bias": jnp.zeros((seeds, heads, classes)),
    }


def names_of_heads(system: System) -> tuple[str, ...]:
    """Of the heads on a system's vectors: its layers, and the mix of several."""
    return (*system.layers, MIX) if len(system.layers) > 1 else system.layers


def heads_of(parameters: dict[str, jax.Array], vectors: jax.Array) -> jax.Array:
    """What the heads of one seed make of vectors [N, L, D]: [H, N, C].

    A layer is multiplied once for its own head and for the mix's, which is then a sum of few numbers.
    """
    layers, weight, bias = vectors.shape[1], parameters["weight"], parameters["bias"][:, None]
    classes = weight.shape[-1]
    if layers == 1:
        return (vectors[:, 0] @ weight[0])[None] + bias
    shares = parameters["gamma"][-1] * jax.nn.softmax(parameters["mix"][-1])
    products = [vectors[:, layer] @ jnp.concatenate([weight[layer], weight[-1]], 1) for layer in range(layers)]
    mixed = sum(share * product[:, classes:] for share, product in zip(shares, products, strict=True))
    return jnp.stack([*(product[:, :classes] for product in products), mixed]) + bias


def dropped(key: jax.Array, vectors: jax.Array) -> jax.Array:
    """Vectors [B, .., D] with DROPOUT: the same dimensions of all layers and tokens of an example (Gal and Ghahramani).

    So it is that of a mix of the layers, too.
    """
    kept = jax.random.bernoulli(key, 1 - DROPOUT, (len(vectors), *(1,) * (vectors.ndim - 2), vectors.shape[-1]))
    return jnp.where(kept, vectors / (1 - DROPOUT), 0.0)


def keys_of(seeds: int, step: jax.Array) -> jax.Array:
    """Keys of random numbers in a step, one for each seed, [S]."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(jnp.arange(seeds))


class Trained(NamedTuple):
    """The parameters that were best on the development part, their scores there, and after which epoch."""

    parameters: Any
    scores: np.ndarray
    epochs: np.ndarray

    def told(self, head: int | None = None) -> dict[str, Any]:
        """For the details of a figure: of one head all seeds, and the weights if it has a mix; or of all one score."""
        which = np.s_[:, head] if head is not None else np.s_[None]
        told = {"development": self.scores[which].tolist(), "epochs": self.epochs[which].tolist()}
        if head is None:
            return told
        heads = jax.tree.map(np.asarray, self.parameters["heads"])
        if 1 < heads["mix"].shape[2] == head:
            told["mix"] = np.asarray(jax.nn.softmax(heads["mix"][:, head])).tolist()
            told["gamma"] = heads["gamma"][:, head].tolist()
        return told


def train(
    parameters: Any,
    loss: Callable[[Any, Any, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    batches: Callable[[int], Iterable[Any]],
    score: Callable[[Any], npt.ArrayLike],
    *,
    epochs: int,
    patience: int,
    what: str,
    fewest_steps: int = FEWEST_STEPS,
) -> Trained:
    """Minibatches, for at most so many epochs, until nothing has got better on the development part for `patience`.

    loss(parameters, batch, number of the step) is differentiated. It and the optimiser are static: given again for
    arrays of the same shapes, they are not compiled again. batches(number of the pass) gives those of all examples; an
    epoch is one pass, or of few examples as many as make `fewest_steps`. score(parameters) is one number, or [S, H]
    where all parameters have these axes in front: each seed and head keeps its own best.
    """
    state, step, passes = optimizer.init(parameters), 0, 0
    best, scores, reached = parameters, np.array(-np.inf), np.array(0)
    with tqdm(total=epochs, desc=what, unit=" epochs", delay=2, leave=False) as bar:
        for epoch in range(1, epochs + 1):
            enough = step + fewest_steps
            while passes < epoch or step < enough:
                for batch in batches(passes):
                    parameters, state = _update(loss, optimizer, parameters, state, batch, np.int32(step))
                    step += 1
                passes += 1
            now = np.asarray(score(parameters), np.float64)
            better = now > scores
            best, scores = _chosen(better, parameters, best), np.where(better, now, scores)
            reached = np.where(better, epoch, reached)
            bar.update()
            if epoch - reached.max() >= patience:
                break
    return Trained(best, scores, reached)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _update(loss: Any, optimizer: Any, parameters: Any, state: Any, batch: Any, step: Any) -> tuple[Any, Any]:
    gradient = jax.grad(loss)(parameters, batch, step)
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        updates, state = optimizer.update(gradient, state, parameters)
    return optax.apply_updates(parameters, updates), state


def _chosen(better: np.ndarray, new: Any, old: Any) -> Any:
    """Leaf by leaf the new where they are better."""

    def choose(one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(better.shape + (1,) * (one.ndim - better.ndim)), one, other)

    return jax.tree.map(choose, new, old)


def development(count: int, share: float = 0.1) -> np.ndarray:
    """Which of so many examples are kept to choose by where no part is for it, bool [N]; for all seeds the same."""
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(0).permutation(count)[: max(1, round(share * count))]] = True
    return chosen


def seeds_told(seeds: int) -> str:
    """What an interval is over."""
    return f"{seeds} seeds" if seeds > 1 else "1 seed"


def joined(figures: Sequence[Figure]) -> list[Figure]:
    """Those of fine-tuned models, which are made a seed at a time, become one, where the first of them stands."""
    groups: dict[tuple[Any, ...], list[Figure]] = {}
    for number, figure in enumerate(figures):
        groups.setdefault((figure[:5], figure.vectors == FINE_TUNED or number), []).append(figure)
    return [_joined(group) if group[0].vectors == FINE_TUNED else group[0] for group in groups.values()]


def _joined(figures: Sequence[Figure]) -> Figure:
    """One of all seeds, with the lists of details one behind the other."""
    details = dict(figures[0].details)
    for name in [name for name in details if isinstance(details[name], list)]:
        details[name] = [value for figure in figures for value in figure.details[name]]
    interval = over_seeds([figure.value for figure in figures])
    return figures[0]._replace(**interval._asdict(), over=seeds_told(len(figures)), details=details)


class FineTuned(nn.Module):
    """The biLM, trained with the rest → a mix of its layers → dropout → a linear map of each token to `classes`.

    With `sentences` a linear map of the mean over each sentence's tokens.
    """

    embedder: ElmoEmbedder
    classes: int
    sentences: bool = False

    @nn.compact
    def __call__(self, encoded: Encoded, *, deterministic: bool) -> jax.Array:
        """What `Elmo.encode` made → [B, T, C], of sentences [B, C]."""
        (vectors,), mask = self.embedder(encoded, deterministic=deterministic)
        if self.sentences:
            counts = jnp.maximum(mask.sum(1, keepdims=True), 1).astype(vectors.dtype)
            vectors = jnp.where(mask[:, :, None], vectors, 0.0).sum(1) / counts
        return nn.Dense(self.classes)(vectors)

    @classmethod
    def of(cls, elmo: Elmo, classes: int, *, sentences: bool = False) -> "FineTuned":
        """That of a loaded model."""
        return cls(ElmoEmbedder.of(elmo, frozen=False, dropout=DROPOUT), classes, sentences)

    def initial(self, elmo: Elmo, seed: int) -> Any:
        """The parameters of the loaded model, and those of the head from a seed."""
        return self.init(jax.random.key(seed), elmo.encode([[]]), deterministic=True)["params"]

    def dropping(self, parameters: Any, encoded: Encoded, seed: int, step: jax.Array) -> jax.Array:
        """What it gives with dropout, whose random numbers are those of a step."""
        key = jax.random.fold_in(jax.random.key(seed), step)
        return self.apply({"params": parameters}, encoded, deterministic=False, rngs={"dropout": key})

    def optimizer(self) -> optax.GradientTransformation:
        """Adam, whose steps are smaller in the biLM than in the head."""
        groups = ["words", *(f"lstm_{layer}" for layer in range(self.embedder.model.layers))]
        rates = layer_rates(dict.fromkeys(groups, FINE_TUNING_SHARE))
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(FINE_TUNING_RATE), rates)
