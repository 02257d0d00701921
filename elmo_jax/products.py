"""Products of matrices: how operands are rounded, kept and transposed; no other file knows what a compiler likes."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from elmo_jax.config import Precision


def packed(x: jax.Array, precision: Precision) -> jax.Array:
    """float32 x in `precision`, to keep: bfloat16 as its bits, uint16.

    XLA:CPU converts whole stacked arrays of bfloat16 where a scan reads or writes a slice of them.
    """
    if precision == "float32":
        return x
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)  # to the nearest, of two the even
    return (bits >> 16).astype(jnp.uint16)


def unpacked(x: jax.Array) -> jax.Array:
    """What `packed` made → float32."""
    if x.dtype == jnp.float32:
        return x
    return lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def as_operand(x: jax.Array) -> jax.Array:
    """What `packed` made → float32 or bfloat16, to multiply."""
    return x if x.dtype == jnp.float32 else lax.bitcast_convert_type(x, jnp.bfloat16)


def product(x: jax.Array, y: jax.Array, precision: Precision) -> jax.Array:
    """x [.., K] · y [K, N] → [.., N], of inputs rounded to `precision`, summed in float32."""
    x, y = x.astype(precision), y.astype(precision)
    exact = lax.Precision.HIGHEST if precision == "float32" else lax.Precision.DEFAULT
    return jnp.matmul(x, y, precision=exact, preferred_element_type=jnp.float32)


def transposed(x: jax.Array) -> jax.Array:
    """x [.., K] → [K, N], N all other axes in one, as an array of its own.

    XLA:CPU would fold a transposition into the product that reads it, at half the speed in bfloat16; it does not if
    the axes that are joined were apart. Nor must it be fused with what makes x, into a strided loop.
    """
    x = lax.optimization_barrier(x.reshape(-1, x.shape[-1]))
    halves = x.reshape(2 - len(x) % 2, -1, x.shape[-1])
    return lax.optimization_barrier(halves.transpose(2, 0, 1).reshape(x.shape[-1], -1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, weight: jax.Array, precision: Precision) -> jax.Array:
    """`product` whose gradients are products of the same precision (autodiff would mix bfloat16 with float32)."""
    return product(x, weight, precision)


def _matmul_forward(x, weight, precision):
    return product(x, weight, precision), (x, weight)


def _matmul_backward(precision, saved, gradient):
    x, weight = saved
    of_weight = product(transposed(x.astype(precision)), gradient.reshape(-1, gradient.shape[-1]), precision)
    of_x = product(gradient, transposed(weight.astype(precision)), precision)
    return of_x.astype(x.dtype), of_weight.astype(weight.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)
