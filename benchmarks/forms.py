"""Times the products of an LSTM step in the forms that they could be written in, to choose one by measurement.

python -m benchmarks.forms
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from tqdm import tqdm

from benchmarks import tables
from benchmarks.systems import RESULTS, command, machine, save
from elmo_jax.config import ModelConfig
from elmo_jax.errors import exit_on_bad_input
from elmo_jax.lstm import LSTMState, lstm
from elmo_jax.products import product, sigmoid, transposed

MODEL = ModelConfig()
SIZE, CELL = MODEL.projection_dim, MODEL.cell_dim


def scan(project, parameters, inputs, state, precision):
    """A layer whose z = [x; h] W + b is made by `project(at, hidden)` from what the scan hands it at each position."""

    def step(state, at):
        i, j, f, o = jnp.split(project(at, state.hidden) + parameters["bias"][None], 4, -1)
        cell = jnp.clip(sigmoid(f + 1) * state.cell + sigmoid(i) * jnp.tanh(j), -3, 3)
        hidden = jnp.clip(product(sigmoid(o) * jnp.tanh(cell), parameters["projection"], precision), -3, 3)
        return LSTMState(cell, hidden), hidden

    return lax.scan(step, state, inputs)


def joined(parameters, inputs, state, precision):
    """As in elmo_jax: one product of [x; h] in the scan."""
    return lstm(parameters, inputs, state, MODEL, precision)


def hoisted(parameters, inputs, state, precision):
    """x Wx of all positions before the scan."""
    of_x, of_h = jnp.split(parameters["kernel"], 2)
    return scan(
        lambda at, hidden: at + product(hidden, of_h, precision),
        parameters,
        product(inputs, of_x, precision),
        state,
        precision,
    )


def apart(parameters, inputs, state, precision):
    """Two products in the scan."""
    of_x, of_h = jnp.split(parameters["kernel"], 2)
    project = lambda at, hidden: product(at, of_x, precision) + product(hidden, of_h, precision)
    return scan(project, parameters, inputs, state, precision)


def speed(operations: int, function, *arguments) -> float:
    """Operations per second, the median of five calls."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - begin)
    return operations / float(np.median(seconds))


def benchmark(rows: tuple[int, ...] = (1, 8, 64, 128, 256, 512), output: Path = RESULTS / "forms.json") -> None:
    """Measures one layer of one direction of the original model, forwards, and the products of its backward pass.

    Args:
        rows: Numbers of rows.
        output: JSON file to write.
    """
    normal = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(0, 0.02, shape), jnp.float32)
    weights = {"kernel": normal(2 * SIZE, 4 * CELL), "bias": normal(4 * CELL), "projection": normal(CELL, SIZE)}
    forward, backward = [], []
    shown = tqdm(total=2 * (len(rows) * 3 + 4), desc="forms")
    for precision in ("float32", "bfloat16"):
        parameters = {name: array.astype(precision) if name != "bias" else array for name, array in weights.items()}
        for number in rows:
            window = max(8, min(32, 4096 // number))
            state = LSTMState(normal(number, CELL), normal(number, SIZE))
            arguments = parameters, normal(window, number, SIZE), state
            operations = 2 * number * window * (2 * SIZE * 4 * CELL + CELL * SIZE)
            for form in (joined, hoisted, apart):
                run = lambda *arguments, form=form, precision=precision: form(*arguments, precision)
                found = {"precision": precision, "rows": number, "form": form.__name__}
                forward.append(found | {"operations_per_second": speed(operations, run, *arguments)})
                shown.update()
        read, of_z = normal(20, 128, 2 * SIZE).astype(precision), normal(20 * 128, 4 * CELL).astype(precision)
        kernel = parameters["kernel"]
        operations = 2 * 2 * SIZE * 4 * CELL * 128
        for name, function, arguments, times in (
            ("z-gradient · Wᵀ, folded", lambda z, w: product(z, w.T, z.dtype), (of_z[:128], kernel), 1),
            (
                "z-gradient · Wᵀ, an array",
                lambda z, w: product(z, w, z.dtype),
                (of_z[:128], transposed(kernel, precision)),
                1,
            ),
            (
                "[x; h]ᵀ · z-gradient, folded",
                lambda x, z: product(x.reshape(len(z), -1).T, z, z.dtype),
                (read, of_z),
                20,
            ),
            (
                "[x; h]ᵀ · z-gradient, an array",
                lambda x, z: product(transposed(x, z.dtype), z, z.dtype),
                (read, of_z),
                20,
            ),
        ):
            found = {"precision": precision, "product": name}
            backward.append(found | {"operations_per_second": speed(times * operations, function, *arguments)})
            shown.update()
    shown.close()
    result = {
        "benchmark": "forms",
        "command": command("forms"),
        "machine": machine(),
        "forward": forward,
        "backward": backward,
    }
    save(output, result)
    print(tables.forms(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
