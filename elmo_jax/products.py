"""Products of matrices: how operands are rounded, kept and transposed. No other file knows what a compiler likes.

Operands are float32, already rounded, or packed. `d_x` is the gradient of the loss with respect to x.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from elmo_jax.config import Precision

# What a program may be compiled for: each has its own form below.
Platform = Literal["cpu", "gpu", "tpu"]
_platform: contextvars.ContextVar[Platform | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """What is traced inside takes the form for `platform`, as a device calls it; elsewhere that of JAX's default."""
    token = _platform.set("gpu" if platform in ("cuda", "rocm") else platform)
    try:
        yield
    finally:
        _platform.reset(token)


def platform() -> Platform:
    """What the program that is being traced is compiled for."""
    return _platform.get() or jax.default_backend()


def packed(x: jax.Array, precision: Precision) -> jax.Array:
    """float32 x in `precision`, to keep until it is multiplied or unpacked.

    bfloat16 is kept as its bits, uint16: XLA:CPU converts whole stacked arrays of bfloat16 where a scan reads or
    writes a slice of them.
    """
    return x if precision == "float32" else lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def unpacked(x: jax.Array) -> jax.Array:
    """What `packed` made → float32."""
    if x.dtype == jnp.float32:
        return x
    return lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def rounded(x: jax.Array, precision: Precision) -> jax.Array:
    """An operand in the form in which products of `precision` read it: once, where many read it."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x.astype(precision)


def product(x: jax.Array, y: jax.Array, precision: Precision) -> jax.Array:
    """x [.., K] · y [K, N] → float32 [.., N], of inputs rounded to `precision`, summed in float32."""
    exact = lax.Precision.HIGHEST if precision == "float32" else lax.Precision.DEFAULT
    x, y = rounded(x, precision), rounded(y, precision)
    return jnp.matmul(x, y, precision=exact, preferred_element_type=jnp.float32)


def transposed(x: jax.Array, precision: Precision) -> jax.Array:
    """x [.., K] → [K, N] rounded to `precision`, N all other axes in one, as an array of its own.

    XLA:CPU would fold a transposition into the product that reads it, at half the speed in bfloat16; it does not if
    the axes that are joined were apart. Nor must it be fused with what makes x, into a strided loop.
    """
    x = lax.optimization_barrier(rounded(x.reshape(-1, x.shape[-1]), precision))
    halves = x.reshape(2 - len(x) % 2, -1, x.shape[-1])
    return lax.optimization_barrier(halves.transpose(2, 0, 1).reshape(x.shape[-1], -1))


@jax.named_scope("weight_gradients")
def weight_gradient(x: jax.Array, d_y: jax.Array, precision: Precision) -> jax.Array:
    """d_weight [K, N] where y = x · weight: x [.., K], d_y [.., N]. One product; the narrower operand is transposed."""
    if d_y.shape[-1] < x.shape[-1]:
        return transposed(weight_gradient(d_y, x, precision), "float32")
    return product(transposed(x, precision), d_y.reshape(-1, d_y.shape[-1]), precision)


@jax.named_scope("weight_gradients")
def bias_gradient(d_y: jax.Array, precision: Precision) -> jax.Array:
    """d_bias [N] where y = x + bias: d_y [.., N] summed by a product, which reads packed numbers as they are."""
    d_y = d_y.reshape(-1, d_y.shape[-1])
    return product(jnp.ones((1, len(d_y))), d_y, precision)[0]


def sigmoid(x: jax.Array) -> jax.Array:
    """σ(x) by tanh, which costs less than exp on CPU."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, weight: jax.Array, precision: Precision) -> jax.Array:
    """`product` whose gradients are products of the same precision (autodiff would mix bfloat16 with float32)."""
    return product(x, weight, precision)


def _matmul_forward(x, weight, precision):
    return product(x, weight, precision), (x, weight)


def _matmul_backward(precision, saved, d_y):
    x, weight = saved
    d_x = product(d_y, transposed(weight, precision), precision)
    return d_x.astype(x.dtype), weight_gradient(x, d_y, precision).astype(weight.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)
