"""The table of words' vectors: what is in it, and that no interruption spoils it."""

import itertools
import linecache
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from conftest import ROOT, SMALL, script_environment

import elmo_jax
from elmo_jax import word_vectors
from elmo_jax.word_vectors import SpelledVectors

PLACES = 64


@pytest.fixture
def elmo(folder, monkeypatch):
    """A model with places for so few words that calls take them from one another."""
    monkeypatch.setattr(word_vectors, "REMEMBERED_WORDS", 1)
    return elmo_jax.load(folder)


def table_of(elmo, capacity):
    table = SpelledVectors(SMALL, elmo._folder.parameters["words"], elmo._engine.devices)
    table.look_up([], capacity)
    return table


def vectors(table, words):
    values, places = table.look_up(words, 1)
    return np.asarray(values)[places]


def same(one, other):
    return len(one) == len(other) and all((a == b).all() for a, b in zip(one, other, strict=True))


def test_a_word_has_the_same_vector_in_any_company(elmo):
    """Bit for bit, whatever other words are new with it, and after it has been forgotten."""
    words = [f"{'x' * (number % 11)}{number}" for number in range(400)]
    together = vectors(table_of(elmo, 512), words)
    few = table_of(elmo, PLACES)
    for word, expected in zip(words, together, strict=True):
        assert (vectors(few, [word])[0] == expected).all()
    assert (vectors(few, words[:PLACES]) == together[:PLACES]).all()
    assert len(few.place) + len(few.free) == PLACES


def test_words_used_last_are_kept(elmo):
    table = table_of(elmo, 16)
    table.look_up(["kept", *(f"old{number}" for number in range(14))], 1)
    place = table.place["kept"]
    table.look_up(["kept"], 1)
    table.look_up([f"new{number}" for number in range(15)], 1)
    assert table.look_up(["kept"], 1)[1] == place
    assert "old3" not in table.place
    assert len(table.place) == 16


def test_few_places_for_words_change_nothing(elmo, monkeypatch):
    """With places for fewer words than the text has, words are forgotten and spelled again."""
    sentences = [[f"w{number % 1000}" for number in range(first, first + 9)] for first in range(0, 4000, 7)]
    found = elmo.embed(sentences, batch_size=4)
    assert elmo._engine.words.capacity < 1000
    monkeypatch.setattr(word_vectors, "REMEMBERED_WORDS", 2000)
    assert same(elmo.__copy__().embed(sentences, batch_size=4), found)


def test_threads_share_a_model(elmo):
    sentences = [[f"{name}{number}" for number in range(9)] for name in "abcdefgh" for _ in range(40)]
    expected = elmo.embed(sentences, batch_size=8)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: elmo.embed(sentences, batch_size=8), range(4)))
    assert all(same(one, expected) for one in found)


def interrupt(function, file, moment, lock=None):
    """Calls `function`, with Ctrl-C before the line of that number of all that `file` executes; whether it came.

    Where the `lock` is held and the line that has taken it comes again, it is about to be released: no signal is
    taken there.
    """
    lines = itertools.count()

    def trace(frame, event, _):
        if not frame.f_code.co_filename.endswith(file):
            return None
        releasing = lock is not None and lock.locked() and "with self._lock" in line_of(frame)
        if event == "line" and not releasing and next(lines) == moment:
            raise KeyboardInterrupt
        return trace

    line_of = lambda frame: linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_ctrl_c_before_any_line_leaves_a_sound_table(elmo):
    """Before each line in turn, in calls that take places from words: the next call gives the right vectors."""
    table = table_of(elmo, PLACES)
    words = lambda number: [f"{'y' * (n % 7)}{number % 3}{n}" for n in range(PLACES)]
    expected = [vectors(table_of(elmo, PLACES), words(number)) for number in range(3)]
    for number in itertools.count():
        before = table.look_up(words(number)[:9] + words(number + 1)[:40], 1)
        assert len(before[1]) == 49
        came = interrupt(lambda: table.look_up(words(number + 2)[:50], 1), "word_vectors.py", number)  # noqa: B023
        if not came:
            break
        for later in (1, 2):
            assert (vectors(table, words(number + later)) == expected[(number + later) % 3]).all()
        assert len(table.place) + len(table.free) == PLACES
    assert number > 60  # lines


@pytest.mark.parametrize("file", ["word_vectors.py", "engine.py", "streams.py", "elmo.py"])
def test_ctrl_c_in_a_call_leaves_the_model_sound(elmo, folder, file):
    """At moments all over a call, that of a lock's release apart: the next call gives the right vectors."""
    other, few = elmo_jax.load(folder), [["it", "is"], ["so"]]
    expected = other.embed(few, batch_size=4)
    moments = 0
    for moment in itertools.count(0, 7):
        sentences = [[f"{moment}a{n}" for n in range(40)], ["b", "c"]]
        if not interrupt(lambda: elmo.embed(sentences, batch_size=4), file, moment, elmo._engine._lock):  # noqa: B023
            break
        moments += 1
        assert not elmo._engine._lock.locked()
        assert same(elmo.embed(few, batch_size=4), expected)
        if moment % 3 == 0:
            assert same(elmo.embed(sentences, batch_size=4), other.embed(sentences, batch_size=4))
    assert moments >= 7


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, jax.errors.JaxRuntimeError])
def test_a_failure_after_donation(elmo, monkeypatch, error):
    """The table's buffer is gone when the program that was to write it fails."""
    sentences = [["some", "words"], ["more", "of", "them"]]
    expected = elmo.embed(sentences)
    program = word_vectors.spelling_program(SMALL, elmo._engine.devices)

    def failing(*arguments):
        program(*arguments)
        raise error("after donation")

    for number in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(word_vectors, "spelling_program", lambda *_: failing)
            with pytest.raises(error, match="after donation"):
                elmo.embed([[f"new{number}"]])
        assert same(elmo.embed(sentences), expected)


def test_a_failure_of_the_device_is_not_remembered(elmo):
    """Vectors that a device could not work out fail where they are fetched; the next call has them worked out anew."""
    sentences = [["some", "words"], ["more", "of", "them"]]
    expected = elmo.embed(sentences)
    elmo._engine.words.table.delete()
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        elmo.embed(sentences)
    assert same(elmo.embed(sentences), expected)


def test_threads_failures_and_abandoned_generators(elmo, monkeypatch):
    """Whoever gets vectors gets the right ones."""
    texts = [[[f"{name}{number}", "and", f"{number}"] for number in range(70)] for name in "abcd"]
    expected = [elmo.embed(text, batch_size=4) for text in texts]
    program, calls = word_vectors.spelling_program(SMALL, elmo._engine.devices), itertools.count()

    def sometimes_failing(*arguments):
        results = program(*arguments)
        if next(calls) % 5 == 4:
            raise MemoryError
        return results

    def work(number):
        vectors = elmo.embed_iter(texts[number % 4], batch_size=4)
        try:
            if number % 3 == 0:
                return next(vectors), expected[number % 4][0]
            return np.concatenate(list(vectors)), np.concatenate(expected[number % 4])
        except MemoryError:
            return None

    monkeypatch.setattr(word_vectors, "spelling_program", lambda *_: sometimes_failing)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(work, range(40)))
    assert sum(result is None for result in results) > 3
    assert sum(result is not None and (result[0] == result[1]).all() for result in results) > 3
    assert all(result is None or (result[0] == result[1]).all() for result in results)
    monkeypatch.setattr(word_vectors, "spelling_program", lambda *_: program)
    assert same(elmo.embed(texts[0], batch_size=4), expected[0])
    assert len(elmo._engine.words.place) + len(elmo._engine.words.free) == elmo._engine.words.capacity


INTERRUPTED = """
import random, signal, sys
import elmo_jax
signal.signal(signal.SIGALRM, signal.default_int_handler)
elmo = elmo_jax.load(sys.argv[1])
words = lambda number: [[f"{number}w{n}" for n in range(300)], ["it", "is"]]
expected, moments, interrupts = elmo.embed(words(0)), random.Random(0), 0
for number in range(1, 151):
    try:
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.0005, 0.03))
        for more in range(100):
            elmo.embed(words(1000 * number + more))
    except KeyboardInterrupt:
        interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    found = elmo.embed(words(0))
    assert all((one == other).all() for one, other in zip(found, expected, strict=True)), number
print(interrupts)
"""


@pytest.mark.slow
def test_150_interrupts(folder):
    """Real ones, at random moments."""
    command = [sys.executable, "-c", INTERRUPTED, folder]
    output = subprocess.run(command, cwd=ROOT, env=script_environment(), capture_output=True, text=True, timeout=300)
    assert output.returncode == 0, output.stderr
    assert int(output.stdout) > 140
