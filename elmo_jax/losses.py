"""Full and sampled softmax, in blocks over the vocabulary; the sampler of negatives."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elmo_jax.config import Precision
from elmo_jax.layers import matmul, product, transposed

# Words of the vocabulary whose logits are held at a time.
BLOCK = 8192


class Softmax(nn.Module):
    """Owns the output layer that both directions share: weight [V, P], bias [V] (bilm-tf training.py, _build_loss)."""

    vocabulary_size: int
    projection_dim: int

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        return {
            "weight": self.param(
                "weight", nn.initializers.normal(self.projection_dim**-0.5), (self.vocabulary_size, self.projection_dim)
            ),
            "bias": self.param("bias", nn.initializers.zeros, (self.vocabulary_size,)),
        }


def blocks(vocabulary_size: int) -> tuple[int, jax.Array, jax.Array]:
    """Size of a block, first word of each [n], and which of its words no earlier block has [n, block]."""
    size = min(BLOCK, vocabulary_size)
    begins = np.arange(0, vocabulary_size, size)
    firsts = np.minimum(begins, vocabulary_size - size)  # the last block overlaps the one before
    return size, jnp.asarray(firsts), jnp.asarray(firsts[:, None] + np.arange(size) >= begins[:, None])


def block_logits(hidden, weight, bias, first, new, size, precision):
    """Logits [N, block] of the words from `first` on, minus infinity where a word is not `new`."""
    rows = lax.dynamic_slice_in_dim(weight, first, size)
    logits = product(hidden, rows.T, precision) + lax.dynamic_slice_in_dim(bias, first, size)[None]
    return jnp.where(new[None], logits, -jnp.inf), rows


def log_normaliser(hidden: jax.Array, weight: jax.Array, bias: jax.Array, precision: Precision) -> jax.Array:
    """log Σ_v exp(h·w_v + b_v): hidden [N, P], weight [V, P], bias [V] → [N]."""
    size, firsts, new = blocks(len(weight))

    def step(carry, block):
        largest, total = carry
        logits, _ = block_logits(hidden, weight, bias, *block, size, precision)
        new_largest = jnp.maximum(largest, logits.max(-1))
        total = total * jnp.exp(largest - new_largest) + jnp.exp(logits - new_largest[:, None]).sum(-1)
        return (new_largest, total), None

    initial = jnp.full(len(hidden), -jnp.inf), jnp.zeros(len(hidden))
    (largest, total), _ = lax.scan(step, initial, (firsts, new))
    return largest + jnp.log(total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def full_softmax_loss(hidden, weight, bias, targets, precision: Precision = "float32") -> jax.Array:
    """-log p(target): hidden [N, P], weight [V, P], bias [V], targets int32 [N] → [N].

    Never holds [N, V]: forward and backward go over the vocabulary in blocks.
    """
    return _full_forward(hidden, weight, bias, targets, precision)[0]


def target_logits(hidden, weight, bias, targets, precision):
    """Logits [N] of the targets, of inputs rounded to `precision`."""
    rounded = hidden.astype(precision).astype(jnp.float32), weight[targets].astype(precision).astype(jnp.float32)
    return (rounded[0] * rounded[1]).sum(-1) + bias[targets]


def _full_forward(hidden, weight, bias, targets, precision):
    normaliser = log_normaliser(hidden, weight, bias, precision)
    loss = normaliser - target_logits(hidden, weight, bias, targets, precision)
    return loss, (hidden, weight, bias, targets, normaliser)


def _full_backward(precision, saved, gradient):
    hidden, weight, bias, targets, normaliser = saved
    size, firsts, new = blocks(len(weight))

    def step(carry, block):
        of_hidden, of_weight, of_bias = carry
        logits, rows = block_logits(hidden, weight, bias, *block, size, precision)
        delta = jnp.exp(logits - normaliser[:, None]) * gradient[:, None]  # [N, block]
        first = block[0]
        add = lambda total, part: lax.dynamic_update_slice_in_dim(
            total, lax.dynamic_slice_in_dim(total, first, size) + part, first, 0
        )
        of_weight = add(of_weight, product(delta.T, hidden, precision))
        return (of_hidden + product(delta, rows, precision), of_weight, add(of_bias, delta.sum(0))), None

    of_hidden = -gradient[:, None] * weight[targets]
    of_weight = jnp.zeros_like(weight).at[targets].add(-gradient[:, None] * hidden)
    of_bias = jnp.zeros_like(bias).at[targets].add(-gradient)
    gradients, _ = lax.scan(step, (of_hidden, of_weight, of_bias), (firsts, new))
    return *gradients, None


full_softmax_loss.defvjp(_full_forward, _full_backward)


def sample_negatives(vocabulary_size: int, count: int, key: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Draws words log-uniformly, P(v) = log((v + 2) / (v + 1)) / log(V + 1), until `count` different ones are there.

    Returns them, int32 [count], and the number of draws that it took (TensorFlow's log_uniform_candidate_sampler with
    unique=True). The result is a function of `key`.
    """
    generator = np.random.Generator(np.random.PCG64(key))
    first, size, parts = np.empty(vocabulary_size, np.int32), 2 * count, []
    while True:
        uniform = generator.random(size)
        uniform *= np.log(vocabulary_size + 1)
        parts.append(np.minimum(np.exp(uniform, out=uniform).astype(np.int32) - 1, np.int32(vocabulary_size - 1)))
        draws = parts[0] if len(parts) == 1 else np.concatenate(parts)
        numbers = np.arange(len(draws), dtype=np.int32)
        first[draws[::-1]] = numbers[::-1]  # of each word drawn the first draw: written last
        kept = np.flatnonzero(first[draws] == numbers)[:count]
        if len(kept) == count:
            return draws[kept], int(kept[-1]) + 1
        size = len(draws)


def log_expected_count(ids: jax.Array, draws: jax.Array, vocabulary_size: int) -> jax.Array:
    """Log of how often a word is expected among unique samples, log(1 - (1 - P(v))^draws): ids [N], draws [] → [N]."""
    probability = jnp.log1p(1 / (ids.astype(jnp.float32) + 1)) / np.float32(np.log(vocabulary_size + 1))
    return jnp.log(-jnp.expm1(draws.astype(jnp.float32) * jnp.log1p(-probability)))


def sampled_softmax_loss(
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    negatives: jax.Array,
    target_log_count: jax.Array,
    negative_log_count: jax.Array,
    precision: Precision = "float32",
) -> jax.Array:
    """-log p(target) among the target and the negatives, logits corrected by their log expected counts → [N].

    hidden [N, P]; weight [K, P], bias [K]: any rows of the softmax; targets int32 [N], negatives int32 [S]: which of
    these rows; log counts [N] and [S]. A negative that is the target itself is removed (TensorFlow's
    sampled_softmax_loss with remove_accidental_hits).
    """
    of_target = (hidden * weight[targets]).sum(-1) + bias[targets] - target_log_count
    of_negatives = (
        matmul(hidden, transposed(weight[negatives]), precision) + (bias[negatives] - negative_log_count)[None]
    )
    of_negatives = jnp.where(negatives[None] == targets[:, None], -jnp.inf, of_negatives)
    largest = lax.stop_gradient(jnp.maximum(of_target, of_negatives.max(-1)))
    total = jnp.exp(of_target - largest) + jnp.exp(of_negatives - largest[:, None]).sum(-1)
    return largest + jnp.log(total) - of_target
