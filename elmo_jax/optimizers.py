"""The optimisers: what each keeps of every parameter, how gradients change parameters, how the learning rate goes.

Parameters and gradients are {"bilm": .., "softmax": {"weight" [v, P], "bias" [v]}}, of the softmax the places that a
device has or some of them. What an optimiser keeps of them, its accumulators, has the same two parts: what devices
share, and what is divided as the softmax's table is.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from elmo_jax.config import Config, TrainConfig
from elmo_jax.parallel import AXIS
from elmo_jax.softmax_table import is_word

# A matrix both of whose sides are as long as this has factored squares in Adafactor (Optax's default).
FACTORED_FROM = 128


class Optimizer(NamedTuple):
    """How one optimiser of TrainConfig.optimizer works.

    start      parameters → accumulators before the first step
    update     (train, step, learning rate, parameters, accumulators, gradients) → (parameters, accumulators), given the
               number of steps done, int32 []; runs over the mapped axis AXIS
    fill       what accumulators hold for places of the table without a word
    by_place   whether a place of the table whose gradient is 0 stays as it is, and so does what is kept of it: then
               `update` may be given only the places that a step touches, and is exactly the update of all
    """

    start: Callable[[dict[str, Any]], dict[str, Any]]
    update: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
    fill: float
    by_place: bool


def learning_rate(config: Config, step: jax.Array) -> float | jax.Array:
    """Learning rate of the update that comes after `step` others, int32 [].

    "noam" is that of "Attention is all you need" (section 5.3) and of AllenNLP's transformer language model:
    train.learning_rate · P^-0.5 · min(n^-0.5, n · warmup^-1.5) in update n.
    """
    train = config.train
    rate, warmup = train.learning_rate, train.warmup_steps
    if train.schedule == "constant" and not warmup:
        return rate
    done = step.astype(jnp.float32)
    if train.schedule == "noam":
        factor = rate * config.model.projection_dim**-0.5
        return factor * jnp.minimum(lax.rsqrt(done + 1), (done + 1) * warmup**-1.5)
    share = jnp.minimum(1.0, (done + 1) / max(warmup, 1))
    if train.decay_steps is not None:
        left = 1 - jnp.clip((done - warmup) / (train.decay_steps - warmup), 0, 1)
        share *= left if train.schedule == "linear" else (1 - jnp.cos(math.pi * left)) / 2
    return rate * share


def _move(rate: float | jax.Array, values: Any, updates: Any) -> Any:
    """Values after a step against `updates`."""
    return jax.tree.map(lambda value, update: value - rate * update, values, updates)


def _each_part(start: Callable, update: Callable) -> dict[str, Callable]:
    """Of an optimiser of single numbers, which works on any tree of them: the same on both parts."""

    def start_parts(parameters):
        return {part: start(values) for part, values in parameters.items()}

    def update_parts(train, step, rate, parameters, accumulators, gradients):
        updated = {
            part: update(train, step, rate, values, accumulators[part], gradients[part])
            for part, values in parameters.items()
        }
        return tuple({part: trees[number] for part, trees in updated.items()} for number in (0, 1))

    return {"start": start_parts, "update": update_parts}


def _filled(number: float, values: Any) -> Any:
    """Arrays like `values` that hold one number, which takes no more memory than it."""
    return jax.tree.map(lambda array: np.broadcast_to(np.float32(number), array.shape), values)


def _zeros(values: Any) -> Any:
    return _filled(0, values)


def _ones(values: Any) -> Any:
    return _filled(1, values)


def _adagrad(train, step, rate, values, sums, gradients):
    """Duchi et al. 2011, as TensorFlow has it: sums of squares start at 1, no epsilon (bilm-tf)."""
    updates, state = optax.scale_by_rss(eps=0.0).update(gradients, optax.ScaleByRssState(sums))
    return _move(rate, values, updates), state.sum_of_squares


def _sgd(train, step, rate, values, kept, gradients):
    return _move(rate, values, gradients), kept


def _momentum(train, step, rate, values, traces, gradients):
    """Every number goes on along its trace, whether it has a gradient or not."""
    updates, state = optax.trace(train.momentum).update(gradients, optax.TraceState(traces))
    return _move(rate, values, updates), state.trace


def _adam(train, step, rate, values, moments, gradients):
    """Kingma and Ba 2015; "adamw" (Loshchilov and Hutter 2019) lets what has more than one axis decay, no biases."""
    state = optax.ScaleByAdamState(step.astype(jnp.float32), moments["mean"], moments["square"])
    updates, state = optax.scale_by_adam(train.beta1, train.beta2, train.epsilon).update(gradients, state)
    if train.optimizer == "adamw":
        decayed = lambda update, value: update + train.weight_decay * value if value.ndim > 1 else update
        updates = jax.tree.map(decayed, updates, values)
    return _move(rate, values, updates), {"mean": state.mu, "square": state.nu}


def _longest_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The second longest axis and the longest, if both are long enough for factored squares."""
    order = sorted(range(len(shape)), key=shape.__getitem__)
    return (order[-2], order[-1]) if len(shape) > 1 and shape[order[-2]] >= FACTORED_FROM else None


def _adafactor_start(parameters: dict[str, Any]) -> dict[str, Any]:
    """Of each array {"squares"}, or of a large one their means {"rows", "columns"} over its two longest axes.

    The means over all words of the softmax's table are with what devices share.
    """

    def start(value):
        if (axes := _longest_axes(value.shape)) is None:
            return {"squares": _zeros(value)}
        return {name: jnp.zeros_like(value.mean(axis)) for name, axis in zip(("columns", "rows"), axes, strict=True)}

    bilm = jax.tree.map(start, parameters["bilm"])
    table = {name: {"squares": _zeros(array)} for name, array in parameters["softmax"].items()}
    if (size := parameters["softmax"]["weight"].shape[1]) >= FACTORED_FROM:
        bilm |= {"softmax": {"rows": jnp.zeros(size)}}
        table |= {"weight": {"columns": jnp.zeros_like(parameters["softmax"]["bias"])}}
    return {"bilm": bilm, "softmax": table}


def _mean(array: jax.Array, axis: int | None) -> jax.Array:
    return array.mean(axis)


def _adafactor_array(decay, rate, value, kept, gradient, mean=_mean, axes=None):
    """Of one array its values and what is kept of it, after a step; `mean` over an axis, or None: over all of it."""
    squares = gradient**2 + 1e-30
    average = lambda before, now: decay * before + (1 - decay) * now
    if "squares" in kept:
        kept = {"squares": average(kept["squares"], squares)}
        change = gradient * lax.rsqrt(kept["squares"])
    else:
        second, longest = axes or _longest_axes(value.shape)
        rows, columns = average(kept["rows"], mean(squares, longest)), average(kept["columns"], mean(squares, second))
        kept = {"rows": rows, "columns": columns}
        of_rows = lax.rsqrt(rows / rows.mean(second - (second > longest), keepdims=True))
        change = gradient * jnp.expand_dims(of_rows, longest) * jnp.expand_dims(lax.rsqrt(columns), second)
    size = lambda array: jnp.sqrt(mean(array**2, None))
    change = change / jnp.maximum(1.0, size(change))
    return value - rate * jnp.maximum(size(value), 1e-3) * change, kept


def _adafactor(train, step, rate, parameters, accumulators, gradients):
    """Shazeer and Stern 2018, as Optax has it.

    Factored squares, changes clipped to a root mean square of 1 in each array, steps relative to the root mean square
    of its values. Means over the table are of all devices' words.
    """
    update = functools.partial(_adafactor_array, 1 - (step.astype(jnp.float32) + 1) ** -0.8, rate)
    table, gradient = parameters["softmax"], gradients["softmax"]
    words = is_word(table)
    count = lax.psum(words.sum(), AXIS).astype(jnp.float32)

    def over_words(array, axis):
        if axis == 1:
            return array.mean(1)
        of_words = jnp.where(jnp.expand_dims(words, tuple(range(1, array.ndim))), array, 0.0)
        mean = lax.psum(of_words.sum(0), AXIS) / count
        return mean if axis == 0 else mean.mean()

    def pairs(results):
        is_pair = lambda value: isinstance(value, tuple)
        return (jax.tree.map(lambda pair, n=n: pair[n], results, is_leaf=is_pair) for n in (0, 1))

    of_bilm, of_table = dict(accumulators["bilm"]), dict(accumulators["softmax"])
    shared = of_bilm.pop("softmax", {})
    of_table["weight"] = of_table["weight"] | shared
    bilm, of_bilm = pairs(jax.tree.map(update, parameters["bilm"], of_bilm, gradients["bilm"]))
    updated = {name: update(table[name], of_table[name], gradient[name], over_words, (1, 0)) for name in table}
    softmax, of_table = pairs(updated)
    if shared:
        of_bilm["softmax"] = {"rows": of_table["weight"].pop("rows")}
    return {"bilm": bilm, "softmax": softmax}, {"bilm": of_bilm, "softmax": of_table}


def _moments(values: Any) -> dict[str, Any]:
    return {"mean": _zeros(values), "square": _zeros(values)}


ADAGRAD = Optimizer(**_each_part(_ones, _adagrad), fill=1.0, by_place=True)
OPTIMIZERS: dict[str, Optimizer] = {
    "adagrad": ADAGRAD,
    "adam": Optimizer(**_each_part(_moments, _adam), fill=0.0, by_place=False),
    "adamw": Optimizer(**_each_part(_moments, _adam), fill=0.0, by_place=False),
    "adafactor": Optimizer(_adafactor_start, _adafactor, fill=0.0, by_place=False),
    "sgd": Optimizer(**_each_part(lambda _: {}, _sgd), fill=0.0, by_place=True),
    "sgd with momentum": Optimizer(**_each_part(_zeros, _momentum), fill=0.0, by_place=False),
}


def optimizer_of(train: TrainConfig) -> Optimizer:
    """The optimiser of a run."""
    return OPTIMIZERS["sgd with momentum" if train.momentum else train.optimizer]
