"""The softmax's table, divided among the devices: where each word is, and how a step's rows come and go.

V words, P size of the LSTMs' output, n devices, each of which has the v places of its part. `rows`: rows of sentences
on all devices, which stay as many for as long as there is the table.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from elmo_jax import parallel
from elmo_jax.parallel import AXIS

# What the places without a word hold: no probability, no gradient.
NO_WORD = {"weight": 0.0, "bias": -1e30}

# Axis of the devices in each part of the parameters: they share the biLM.
PARAMETER_AXES = {"bilm": None, "softmax": 0}

Numbers = TypeVar("Numbers", np.ndarray, jax.Array)
Carry = TypeVar("Carry")


def table_size(vocabulary_size: int, rows: int) -> int:
    """Places of all devices together: V rounded up to a multiple of `rows`, so that n devices can divide them."""
    return -(-vocabulary_size // rows) * rows


def _bits(rows: int) -> int:
    """The table has 2^bits stretches of equal length."""
    return min((rows & -rows).bit_length() - 1, 12)


def _reversed(numbers: Numbers, bits: int) -> Numbers:
    """The lowest bits of numbers in reverse."""
    return sum((numbers >> bit & 1) << (bits - 1 - bit) for bit in range(bits)) + 0 * numbers


def places_of(words: Numbers, rows: int, size: int) -> Numbers:
    """Words int32 [..] → their places in the table of all devices; one to one from [0, size) to [0, size).

    Words are numbered by frequency. They are dealt, one after the other, to stretches of the table that lie as far
    apart as can be, so that however many devices divide it, each has as many frequent words as any other. (Where
    `rows` is odd there is one stretch, and the first device has the most frequent words: slower, and right.)
    """
    bits = _bits(rows)
    return _reversed(words, bits) * (size >> bits) + (words >> bits)


def words_at(places: np.ndarray, rows: int, size: int) -> np.ndarray:
    """The inverse of `places_of`; words from V up are none."""
    stretch, number = np.divmod(places, size >> _bits(rows))
    return (number << _bits(rows)) + _reversed(stretch, _bits(rows))


def in_places(array: np.ndarray, rows: int, fill: float, places: range | None = None) -> np.ndarray:
    """An array [V, ..] in order of words → [places, ..], all or these, with `fill` where there is no word."""
    size = table_size(len(array), rows)
    words = words_at(np.asarray(range(size) if places is None else places, np.int32), rows, size)
    found = array[np.minimum(words, len(array) - 1)]
    found[words >= len(array)] = fill
    return found


def place(softmax: Any, rows: int, fill: Any = NO_WORD) -> Any:
    """Arrays [V, ..] that all processes have → [devices, v, ..], each device's part on that device.

    `fill`: what places without a word hold, a number or a tree of numbers.
    """

    def divide(array, fill):
        own = parallel.own_rows(table_size(len(array), rows))
        return parallel.shard(in_places(np.asarray(array), rows, fill, own), given=True)

    return jax.tree.map(divide, softmax, jax.tree.broadcast(fill, softmax))


def to_host(table: Any, vocabulary_size: int, rows: int) -> Any:
    """The inverse of `place` on every process; every process calls it."""
    places = places_of(np.arange(vocabulary_size, dtype=np.int32), rows, table_size(vocabulary_size, rows))
    return jax.tree.map(lambda array: parallel.gather_parts(array)[places], table)


def is_word(table: dict[str, jax.Array]) -> jax.Array:
    """Which places of a device's part have a word, bool [v]."""
    return table["bias"] != NO_WORD["bias"]


def distinct_ids(ids: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Distinct ids, ascending [K], and which of them each of ids [M] is; K is the lesser of M and `count`.

    All ids are below `count`. The places left over hold numbers from `count` up, all different, which gathers and
    scatters leave out.
    """
    ordered, places = lax.sort_key_val(ids, lax.iota(ids.dtype, len(ids)))
    ranks = jnp.cumsum(jnp.diff(ordered, prepend=ordered[:1]) > 0)  # jnp.unique takes TPUs' compiler twice as long
    spare = count + lax.iota(ids.dtype, min(len(ids), count))
    return spare.at[ranks].set(ordered), jnp.zeros_like(ids).at[places].set(ranks, unique_indices=True)


def room(wanted: int, devices: int, part: int) -> int:
    """Rows that a device can ask of another in a round, of so many that it may want in all.

    Somewhat more than an equal share. In 600 windows of English text, 128 rows of 20 positions, one of 256 devices had
    19 of the words that a device wanted at most, and there is room for 30; were words dealt by chance, one step in some
    ten millions would take a second round. A text whose words never repeat would take two.
    """
    share = wanted / devices
    return min(wanted, part, math.ceil(share) + 2 * math.ceil(math.sqrt(share)))


def swap(array: jax.Array) -> jax.Array:
    """[n, ..], an entry for each device → the entries that all devices have for this one."""
    return array if len(array) == 1 else lax.all_to_all(array, AXIS, 0, 0)


class Round(NamedTuple):
    """A round of the exchange, which is about the places [begin, end) of every device's part.

    begin, end  int32 []
    slots       int32 [n, room]: which of its wanted rows this device asks of each, from K up none
    asked       int32 [n, room]: which places of this device's part the others ask for, v: none
    """

    begin: jax.Array
    end: jax.Array
    slots: jax.Array
    asked: jax.Array


class Touched(NamedTuple):
    """Some places of a device's part and the gradients {"weight" [L, P], "bias" [L]} of their parameters.

    ids int32 [L] ascending, all different, from v up none, whose gradient is 0; None: the whole part.
    """

    ids: jax.Array | None
    gradients: dict[str, jax.Array]

    @jax.named_scope("rows")
    def select(self, table: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """These places of a table."""
        if self.ids is None:
            return table
        rows = jax.tree.map(lambda array: array.at[self.ids].get(mode="clip", indices_are_sorted=True), table)
        return lax.optimization_barrier(rows)  # XLA:GPU would read them while it writes, from a copy of the table

    @jax.named_scope("rows")
    def merge(self, table: dict[str, jax.Array], values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """A table with these values in these places; in place if the table is donated."""
        if self.ids is None:
            return values
        options = {"mode": "drop", "unique_indices": True, "indices_are_sorted": True}
        return jax.tree.map(lambda array, values: array.at[self.ids].set(values, **options), table, values)


class Exchange:
    """The rows that a step of one device reads, fetched from the devices that have them, and their gradients' way back.

    Devices ask each other for the rows of their own targets, with `room` for so many in a round. Where a device wants
    more of another than that, each round is about a stretch of every part that is short enough for all: rarely are
    there two, always enough. All devices need the negatives' rows.

    targets int32 [2, N] and negatives int32 [2, S]: places in the table of all devices.
    """

    def __init__(self, targets: jax.Array, negatives: jax.Array, part: int):
        self.part, self.devices, self.targets = part, lax.axis_size(AXIS), targets.shape
        self.negatives = negatives - lax.axis_index(AXIS) * part
        self.wanted, self.numbers = distinct_ids(targets.ravel(), part * self.devices)
        self.room = room(len(self.wanted), self.devices, part)
        self.is_one_round = self.room == min(len(self.wanted), part)
        self.shift: Any = part.bit_length()  # a round is about 2^shift places
        if not self.is_one_round:
            near, far = self.wanted[: -self.room], self.wanted[self.room :]
            crowded = (near // part == far // part) & (far < part * self.devices)
            apart = 31 - lax.clz((near % part) ^ (far % part))  # with a shift up to this they are in two rounds
            self.shift = lax.pmin(jnp.where(crowded, apart, self.shift).min(), AXIS)
        self.first = self.round(0)

    @jax.named_scope("rows")
    def round(self, number: int | jax.Array) -> Round:
        begin, end = (jnp.minimum(at << self.shift, self.part) for at in (number, number + 1))
        parts = lax.iota(jnp.int32, self.devices) * self.part
        find = functools.partial(jnp.searchsorted, self.wanted, method="compare_all")
        slots = find(parts + begin)[:, None] + lax.iota(jnp.int32, self.room)[None]
        none = lax.iota(jnp.int32, slots.size).reshape(slots.shape) + len(self.wanted)
        slots = jnp.where(slots < find(parts + end)[:, None], slots, none)
        ask = self.wanted.at[slots].get(mode="clip") - parts[:, None]
        return Round(begin, end, slots, swap(jnp.where(slots < len(self.wanted), ask, self.part)))

    def further(self, step: Callable[[Round, Carry], Carry], carry: Carry) -> Carry:
        """`step` carried out for every round after the first, of which there is hardly ever one."""
        if self.is_one_round:
            return carry
        rounds = ((self.part - 1) >> self.shift) + 1
        with jax.named_scope("further_rounds"):
            return lax.fori_loop(1, rounds, lambda number, carry: step(self.round(number), carry), carry)

    @jax.named_scope("rows")
    def fetch(self, table: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        """Of this device's part of the table → {"targets": .., "negatives": ..}, rows {"weight" [2, N, P], ..}."""

        def of_round(given: Round) -> dict[str, jax.Array]:
            order = lax.iota(jnp.int32, given.slots.size)
            answers = jnp.full_like(self.wanted, len(order)).at[given.slots.ravel()].set(order, mode="drop")

            def fetch(array):
                rows = swap(array.at[given.asked].get(mode="clip"))
                rows = rows.reshape(-1, *array.shape[1:])
                return rows.at[answers[self.numbers]].get(mode="fill", fill_value=0.0)

            return jax.tree.map(fetch, table)

        rows = of_round(self.first)
        rows = self.further(lambda given, rows: jax.tree.map(jnp.add, rows, of_round(given)), rows)

        def share(array):
            found = array.at[self._own_negatives(0, self.part)].get(mode="fill", fill_value=0.0)
            return lax.psum(found, AXIS)

        of_targets = jax.tree.map(lambda array: array.reshape(*self.targets, *array.shape[1:]), rows)
        return {"targets": of_targets, "negatives": jax.tree.map(share, table)}

    def _own_negatives(self, begin, end) -> jax.Array:
        """Which of this device's places the negatives have, v those that are not in [begin, end)."""
        return jnp.where((self.negatives >= begin) & (self.negatives < end), self.negatives, self.part)

    @jax.named_scope("rows")
    def give(self, gradients: dict[str, dict[str, jax.Array]]) -> Callable[[Round], Touched]:
        """Takes the gradients of what `fetch` returned, those of the negatives already the same on all devices.

        Returns what tells of a round which places of this device's part it is about, and their gradients: the sums of
        what all devices have given. All devices ask for it together.
        """

        def of_wanted(array):
            zeros = jnp.zeros((len(self.wanted), *array.shape[2:]))
            return zeros.at[self.numbers].add(array.reshape(-1, *array.shape[2:]))

        wanted = jax.tree.map(of_wanted, gradients["targets"])

        @jax.named_scope("rows")
        def touched(given: Round) -> Touched:
            own = self._own_negatives(given.begin, given.end).ravel()
            ids, numbers = distinct_ids(jnp.concatenate([given.asked.ravel(), own]), self.part + 1)
            of_asked, of_negatives = jnp.split(numbers, [given.asked.size])
            of_negatives = jnp.where(own < self.part, of_negatives, len(ids))

            def total(wanted, negatives):
                answers = swap(wanted.at[given.slots].get(mode="fill", fill_value=0.0))
                sums = jnp.zeros((len(ids), *wanted.shape[1:]))
                sums = sums.at[of_asked].add(answers.reshape(-1, *wanted.shape[1:]))
                return sums.at[of_negatives].add(negatives.reshape(-1, *wanted.shape[1:]), mode="drop")

            return Touched(ids, jax.tree.map(total, wanted, gradients["negatives"]))

        return touched


class WholePart:
    """What the full softmax has in place of an exchange: a device reads and changes its whole part of the table."""

    first = None

    def fetch(self, table: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return table

    def give(self, gradients: dict[str, jax.Array]) -> Callable[[None], Touched]:
        return lambda _: Touched(None, gradients)

    def further(self, step: Callable[[None, Carry], Carry], carry: Carry) -> Carry:
        return carry
