"""Full and sampled softmax, in blocks over the vocabulary; the sampler of negatives.

N tokens, P size of the LSTMs' output, V vocabulary, S negatives. `d_x` is the gradient of the loss with respect to x.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elmo_jax.config import Precision
from elmo_jax.products import affine, product, rounded, transposed

# Logits that the full softmax holds at a time, of all tokens for a block of the vocabulary.
BLOCK = 2**24


def blocks(vocabulary_size: int, tokens: int) -> tuple[int, jax.Array, jax.Array]:
    """Size of a block, first word of each [n], and which of its words no earlier block has [n, block]."""
    size = min(max(BLOCK // tokens, 1), vocabulary_size)
    begins = np.arange(0, vocabulary_size, size)
    firsts = np.minimum(begins, vocabulary_size - size)  # the last block overlaps the one before
    return size, jnp.asarray(firsts), jnp.asarray(firsts[:, None] + np.arange(size) >= begins[:, None])


def block_logits(hidden, weight, bias, first, new, size, precision):
    """Logits [N, block] of the words from `first` on, minus infinity where a word is not `new`, and their weights."""
    block = lax.dynamic_slice_in_dim(weight, first, size)
    logits = product(hidden, block.T, precision) + lax.dynamic_slice_in_dim(bias, first, size)[None]
    return jnp.where(new[None], logits, -jnp.inf), block


@jax.named_scope("softmax")
def log_normaliser(hidden: jax.Array, weight: jax.Array, bias: jax.Array, precision: Precision) -> jax.Array:
    """log Σ_v exp(h·w_v + b_v): hidden [N, P], weight [V, P], bias [V] → [N]."""
    size, firsts, new = blocks(len(weight), len(hidden))

    def step(carry, block):
        largest, total = carry
        logits, _ = block_logits(hidden, weight, bias, *block, size, precision)
        new_largest = jnp.maximum(largest, logits.max(-1))
        total = total * jnp.exp(largest - new_largest) + jnp.exp(logits - new_largest[:, None]).sum(-1)
        return (new_largest, total), None

    initial = jnp.full(len(hidden), -jnp.inf), jnp.zeros(len(hidden))
    (largest, total), _ = lax.scan(step, initial, (firsts, new))
    return largest + jnp.log(total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def full_softmax_loss(
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    precision: Precision = "float32",
    axis: str | None = None,
) -> jax.Array:
    """-log p(target): hidden [N, P], weight [V, P], bias [V], targets int32 [N] → [N].

    Never holds [N, V]: forward and backward go over the vocabulary in blocks. With `axis` each of the n devices along
    it has its own part of the vocabulary, weight [V / n, P] and bias [V / n], and its own tokens: it scores the tokens
    of all by its words, so what devices exchange does not grow with V, and the gradients of weight and bias are those
    of the sum over the tokens of all.
    """
    return _full_forward(hidden, weight, bias, targets, precision, axis)[0]


@jax.named_scope("softmax")
def _full_forward(hidden, weight, bias, targets, precision, axis):
    everyones, first = hidden, 0
    if axis is not None:
        everyones, targets = (lax.all_gather(array, axis, tiled=True) for array in (hidden, targets))
        first = lax.axis_index(axis) * len(weight)
    normaliser = log_normaliser(everyones, weight, bias, precision)
    places = targets - first
    here = (places >= 0) & (places < len(weight))
    places = jnp.where(here, places, 0)
    as_multiplied = lambda array: rounded(array, precision).astype(jnp.float32)
    scores = (as_multiplied(everyones) * as_multiplied(weight[places])).sum(-1)
    target_logits = jnp.where(here, scores + bias[places], 0.0)
    if axis is not None:
        largest = lax.pmax(normaliser, axis)
        normaliser = largest + jnp.log(lax.psum(jnp.exp(normaliser - largest), axis))
        target_logits = lax.psum(target_logits, axis)
    loss = normaliser - target_logits
    if axis is not None:
        loss = lax.dynamic_slice_in_dim(loss, lax.axis_index(axis) * len(hidden), len(hidden))
    return loss, (everyones, weight, bias, places, here, normaliser)


@jax.named_scope("softmax")
def _full_backward(precision, axis, saved, d_loss):
    hidden, weight, bias, places, here, normaliser = saved
    if axis is not None:
        d_loss = lax.all_gather(d_loss, axis, tiled=True)
    size, firsts, new = blocks(len(weight), len(hidden))

    def step(carry, block):
        d_hidden, d_weight, d_bias = carry
        logits, block_weight = block_logits(hidden, weight, bias, *block, size, precision)
        d_logits = jnp.exp(logits - normaliser[:, None]) * d_loss[:, None]  # [N, block]
        first = block[0]
        add = lambda total, part: lax.dynamic_update_slice_in_dim(
            total, lax.dynamic_slice_in_dim(total, first, size) + part, first, 0
        )
        d_weight = add(d_weight, product(d_logits.T, hidden, precision))
        return (d_hidden + product(d_logits, block_weight, precision), d_weight, add(d_bias, d_logits.sum(0))), None

    d_targets = jnp.where(here, -d_loss, 0.0)
    d_hidden = d_targets[:, None] * weight[places]
    d_weight = jnp.zeros_like(weight).at[places].add(d_targets[:, None] * hidden)
    d_bias = jnp.zeros_like(bias).at[places].add(d_targets)
    (d_hidden, d_weight, d_bias), _ = lax.scan(step, (d_hidden, d_weight, d_bias), (firsts, new))
    if axis is not None:
        d_hidden = lax.psum_scatter(d_hidden, axis, tiled=True)
    return d_hidden, d_weight, d_bias, None


full_softmax_loss.defvjp(_full_forward, _full_backward)


def sample_negatives(vocabulary_size: int, count: int, key: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Draws words log-uniformly, P(v) = log((v + 2) / (v + 1)) / log(V + 1), until `count` different ones are there.

    Returns them, int32 [count], and the number of draws that it took (TensorFlow's log_uniform_candidate_sampler with
    unique=True). The result is a function of `key`. ValueError if the vocabulary has fewer words.
    """
    if count > vocabulary_size:
        raise ValueError(f"{count} different words of {vocabulary_size} cannot be drawn")
    generator = np.random.Generator(np.random.PCG64(key))
    first, size, parts = np.empty(vocabulary_size, np.int32), 2 * count, []
    while True:
        uniform = generator.random(size)
        uniform *= np.log(vocabulary_size + 1)
        parts.append(np.minimum(np.exp(uniform, out=uniform).astype(np.int32) - 1, np.int32(vocabulary_size - 1)))
        draws = np.concatenate(parts)
        numbers = np.arange(len(draws), dtype=np.int32)
        first[draws[::-1]] = numbers[::-1]  # of each word drawn the first draw: written last
        new = np.flatnonzero(first[draws] == numbers)[:count]
        if len(new) == count:
            return draws[new], int(new[-1]) + 1
        size = len(draws)


def log_expected_count(ids: jax.Array, draws: jax.Array, vocabulary_size: int | jax.Array) -> jax.Array:
    """Log of how often a word is expected among unique samples, log(1 - (1 - P(v))^draws): ids [N], draws [] → [N]."""
    of_all = jnp.log(jnp.asarray(vocabulary_size, jnp.float32) + 1)
    probability = jnp.log1p(1 / (ids.astype(jnp.float32) + 1)) / of_all
    return jnp.log(-jnp.expm1(draws.astype(jnp.float32) * jnp.log1p(-probability)))


class SampledWords(NamedTuple):
    """The words of a sampled softmax.

    targets              int32 [N]
    negatives            int32 [S]
    target_log_counts    [N] see `log_expected_count`
    negative_log_counts  [S]
    """

    targets: jax.Array
    negatives: jax.Array
    target_log_counts: jax.Array
    negative_log_counts: jax.Array


@jax.named_scope("softmax")
def sampled_softmax_loss(
    hidden: jax.Array,
    targets: dict[str, jax.Array],
    negatives: dict[str, jax.Array],
    words: SampledWords,
    precision: Precision = "float32",
) -> jax.Array:
    """-log p(target) among the target and the negatives, logits corrected by their log expected counts → [N].

    hidden [N, P]; rows of the softmax {"weight" [N, P], "bias" [N]} of the targets, and [S, P], [S] of the negatives.
    A negative that is the target itself is removed (TensorFlow's sampled_softmax_loss with remove_accidental_hits).
    """
    target_logits = (hidden * targets["weight"]).sum(-1) + targets["bias"] - words.target_log_counts
    corrections = negatives["bias"] - words.negative_log_counts
    logits = affine(hidden, transposed(negatives["weight"], "float32"), corrections, precision)
    logits = jnp.where(words.negatives[None] == words.targets[:, None], -jnp.inf, logits)
    largest = lax.stop_gradient(jnp.maximum(target_logits, logits.max(-1)))
    total = jnp.exp(target_logits - largest) + jnp.exp(logits - largest[:, None]).sum(-1)
    return largest + jnp.log(total) - target_logits
