"""Worker: the machine's peak, large matrix products in JAX. Argument: precision."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from serve import serve, timed

from elmo_jax.products import product

(precision,) = sys.argv[1:]
SHAPES = ((256, 1024, 16384), (2048, 1024, 16384), (4096, 4096, 4096))


multiply = jax.jit(lambda x, y: product(x, y, precision))


def run():
    """Multiplications and additions per second of inputs in the precision, summed in float32; the best of SHAPES."""
    best = 0.0
    for rows, inner, columns in SHAPES:
        x, y = jnp.ones((rows, inner), precision), jnp.ones((inner, columns), precision)
        once = lambda x=x, y=y: multiply(x, y).block_until_ready()
        once()
        times = [timed(once) for _ in range(5)]
        best = max(best, 2 * rows * inner * columns / float(np.median(times)))
    return best


serve({"run": run})
