"""Worker: the machine's peak, large matrix products in JAX. Argument: precision."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from serve import serve

(precision,) = sys.argv[1:]
SHAPES = ((256, 1024, 16384), (2048, 1024, 16384), (4096, 4096, 4096))


@jax.jit
def product(x, y):
    exact = jax.lax.Precision.HIGHEST if precision == "float32" else jax.lax.Precision.DEFAULT
    return jnp.matmul(x, y, precision=exact, preferred_element_type=jnp.float32)


def run():
    """Multiplications and additions per second of inputs in the precision, summed in float32; the best of SHAPES."""
    best = 0.0
    for rows, inner, columns in SHAPES:
        x, y = jnp.ones((rows, inner), precision), jnp.ones((inner, columns), precision)
        product(x, y).block_until_ready()
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            product(x, y).block_until_ready()
            times.append(time.perf_counter() - begin)
        best = max(best, 2 * rows * inner * columns / float(np.median(times)))
    return best


serve({"run": run})
