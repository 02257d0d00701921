"""Products of matrices: how operands are rounded, kept and transposed, and what else differs by platform.

What a compiler likes stands here alone; other files ask for it by `form()`.

Operands are float32, already rounded, or packed. `d_x` is the gradient of the loss with respect to x.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax

from elmo_jax.config import Precision

# What a program may be compiled for: each has its own form below.
Platform = Literal["cpu", "gpu", "tpu"]
_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """What is traced inside takes the form for `platform`, as a device calls it; elsewhere that of JAX's default."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


class Form(NamedTuple):
    """How a platform's programs differ, beside the products below.

    chunk              distinct words that the char CNN takes at a time in training; None: all, of which the host then
                       leaves out what it can: a loop of unknown length would make a GPU wait for the host
    narrow_chunks      of a chunk only the columns are read that its longest word needs, each width a branch of its own
    merged_directions  both directions are read in one scan
    skips_positions    a position without words is skipped by a condition, not computed in vain; a GPU would wait for it
    rows               rows on each device for little to much text: a fixed set of shapes, so of compilations
    step_overhead      what a window of embedding costs beside its rows' work, counted in rows: it reads all weights
    new_words          words that embedding spells at a time on each device
    """

    chunk: int | None
    narrow_chunks: bool
    merged_directions: bool
    skips_positions: bool
    rows: tuple[int, ...]
    step_overhead: int
    new_words: int


# By `benchmarks.changes` on CPU, by the compiler's account (`benchmarks.compiled`) on TPU. On GPU, whose account has no
# times, rows, overhead and new words are guesses from the makers' figures.
FORMS: dict[Platform, Form] = {
    "cpu": Form(256, True, False, True, (1, 8, 64, 256), 16, 64),
    "gpu": Form(None, False, True, False, (8, 64, 256, 1024), 256, 512),
    "tpu": Form(256, False, False, True, (8, 64, 256), 16, 256),
}


def platform() -> Platform:
    """What the program that is being traced is compiled for; "gpu" of any name that is none of FORMS (cuda, rocm)."""
    name = _platform.get() or jax.default_backend()
    return cast(Platform, name) if name in FORMS else "gpu"


def form() -> Form:
    """That of the program that is being traced; outside of programs, of this process' devices."""
    return FORMS[platform()]


def packed(x: jax.Array, precision: Precision) -> jax.Array:
    """float32 x in `precision`, to keep until it is multiplied or unpacked.

    On CPU bfloat16 is kept as its bits, uint16: XLA:CPU converts whole stacked arrays of bfloat16 where a scan reads or
    writes a slice of them.
    """
    if precision != "bfloat16":
        return x
    x = x.astype(jnp.bfloat16)
    return lax.bitcast_convert_type(x, jnp.uint16) if platform() == "cpu" else x


def unpacked(x: jax.Array) -> jax.Array:
    """What `packed` made → float32."""
    if x.dtype != jnp.uint16:
        return x.astype(jnp.float32)
    return lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def rounded(x: jax.Array, precision: Precision) -> jax.Array:
    """An operand in the form in which products of `precision` read it: once, where many read it."""
    if x.dtype == jnp.uint16:
        return lax.bitcast_convert_type(x, jnp.bfloat16)
    return x.astype(jnp.bfloat16 if precision == "bfloat16" else jnp.float32)


def product(x: jax.Array, y: jax.Array, precision: Precision) -> jax.Array:
    """x [.., K] · y [K, N] → float32 [.., N], of inputs rounded to `precision`, summed in float32."""
    return _product(x, y, ((x.ndim - 1,), (0,)), precision)


def _product(x, y, axes, precision):
    """The product over these axes of x and of y."""
    passes = {"float32": lax.Precision.HIGHEST, "high": lax.Precision.HIGH, "bfloat16": lax.Precision.DEFAULT}
    x, y = rounded(x, precision), rounded(y, precision)
    return lax.dot_general(x, y, (axes, ((), ())), precision=passes[precision], preferred_element_type=jnp.float32)


def transposed(x: jax.Array, precision: Precision) -> jax.Array:
    """x [.., K] → [K, N] rounded to `precision`, N all other axes in one; on CPU as an array of its own.

    XLA:CPU would fold a transposition into the product that reads it, at half the speed in bfloat16; it does not if
    the axes that are joined were apart. Nor must it be fused with what makes x, into a strided loop.
    """
    x = rounded(x.reshape(-1, x.shape[-1]), precision)
    if platform() != "cpu":
        return x.T
    x = lax.optimization_barrier(x)
    halves = x.reshape(2 - len(x) % 2, -1, x.shape[-1])
    return lax.optimization_barrier(halves.transpose(2, 0, 1).reshape(x.shape[-1], -1))


def operand(weight: jax.Array, precision: Precision) -> jax.Array:
    """weight [K, N] prepared once for all products of a scan, which `applied` takes.

    On TPU it is `transposed`, which costs the products nothing: one array then serves the backward pass too.
    """
    return transposed(weight, precision) if platform() == "tpu" else rounded(weight, precision)


def applied(x: jax.Array, weight: jax.Array, precision: Precision) -> jax.Array:
    """x [.., K] · weight, an `operand` → [.., N]."""
    return _product(x, weight, ((x.ndim - 1,), (1 if platform() == "tpu" else 0,)), precision)


@jax.named_scope("weight_gradients")
def weight_gradient(x: jax.Array, d_y: jax.Array, precision: Precision) -> jax.Array:
    """d_weight [K, N] where y = x · weight: x [.., K], d_y [.., N]. One product; CPU transposes the narrower."""
    if platform() != "cpu":
        return _product(x, d_y, (tuple(range(x.ndim - 1)),) * 2, precision)
    if d_y.shape[-1] < x.shape[-1]:
        return transposed(weight_gradient(d_y, x, precision), "float32")
    return product(transposed(x, precision), d_y.reshape(-1, d_y.shape[-1]), precision)


@jax.named_scope("weight_gradients")
def bias_gradient(d_y: jax.Array, precision: Precision) -> jax.Array:
    """d_bias [N] where y = x + bias: d_y [.., N] summed by a product, which reads packed numbers as they are.

    Of a single row XLA:TPU would make a sum of its own, which takes as long as d_weight.
    """
    d_y = d_y.reshape(-1, d_y.shape[-1])
    return product(jnp.ones((8 if platform() == "tpu" else 1, len(d_y))), d_y, precision)[0]


# A product whose result is split by columns. On TPU each part is a product of its own: what follows is then computed,
# and written where it is kept, as the product's result comes out; of a whole it would be read again. A block is what
# one product takes: as many columns as a part on TPU, all elsewhere.


def blocks(weight: jax.Array, count: int) -> list[jax.Array]:
    """weight [K, N], of `count` parts, in blocks [K, n] of columns."""
    return jnp.split(weight, count, 1) if platform() == "tpu" else [weight]


def parts(results: list[jax.Array], count: int) -> list[jax.Array]:
    """Results [.., n] of all blocks → `count` parts of their columns."""
    return results if len(results) == count else jnp.split(results[0], count, -1)


def joined_blocks(parts: list[jax.Array]) -> list[jax.Array]:
    """The inverse of `parts`."""
    return parts if platform() == "tpu" else [jnp.concatenate(parts, -1)]


def kept_parts(parts: list[jax.Array]) -> list[jax.Array]:
    """Parts as a scan keeps them: on GPU, where each is written by a kernel of its own, in one array."""
    return [jnp.concatenate(parts, -1)] if platform() == "gpu" else parts


def columns(results: list[jax.Array]) -> jax.Array:
    """[K, n] of all blocks → [K, N], each block written where it belongs as soon as it is there."""
    if len(results) == 1:
        return results[0]
    size = results[0].shape[1]
    whole = lax.empty((len(results[0]), len(results) * size), results[0].dtype)
    for number, block in enumerate(results):
        whole = lax.dynamic_update_slice(whole, block, (0, number * size))
    return whole


def paired(first, second):
    """A tree of the forward direction and one of the backward: both, or where directions are merged one, stacked."""
    if not form().merged_directions:
        return first, second
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), first, second)


def over_directions(function, *pairs) -> tuple[list, list]:
    """Calls `function` for both directions, each of whose arguments is `paired`.

    Returns both of its first results and both of its second. Where directions are merged it is called once, mapped
    over them, so that each kernel works for both.
    """
    if not form().merged_directions:
        first, second = (function(*arguments) for arguments in zip(*pairs, strict=True))
    else:
        results = jax.vmap(function)(*pairs)
        first, second = (jax.tree.map(lambda array, number=number: array[number], results) for number in (0, 1))
    return [first[0], second[0]], [first[1], second[1]]


def scan(step, carry, positions, reverse: bool = False):
    """`lax.scan`. On TPU its results go into arrays that are carried: XLA:TPU fills those of `lax.scan` with zeros."""
    if platform() != "tpu":
        return lax.scan(step, carry, positions, reverse=reverse)
    count = len(jax.tree.leaves(positions)[0])
    like = jax.eval_shape(step, carry, jax.tree.map(lambda array: array[0], positions))[1]
    stacks = jax.tree.map(lambda shape: lax.empty((count, *shape.shape), shape.dtype), like)

    def write(carry, position):
        (carry, stacks), (number, position) = carry, position
        carry, results = step(carry, position)
        put = lambda stack, result: lax.dynamic_update_index_in_dim(stack, result, number, 0)
        return (carry, jax.tree.map(put, stacks, results)), None

    return lax.scan(write, (carry, stacks), (jnp.arange(count), positions), reverse=reverse)[0]


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(x: jax.Array, weight: jax.Array, bias: jax.Array, precision: Precision) -> jax.Array:
    """`matmul` and a bias [N], whose gradient is a product too."""
    return product(x, weight, precision) + bias[None]


def _affine_forward(x, weight, bias, precision):
    return affine(x, weight, bias, precision), (x, weight)


def _affine_backward(precision, saved, d_y):
    return *_matmul_backward(precision, saved, d_y), bias_gradient(d_y, precision)


affine.defvjp(_affine_forward, _affine_backward)
