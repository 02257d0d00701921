import gc
import signal
import time

import jax
import numpy as np
import pytest
from conftest import SMALL

from elmo_jax.errors import InputError, brief, exit_on_bad_input, listed


def run(error, capsys) -> tuple[int | None, str]:
    """Exit code and stderr of a script that ends with an error."""

    @exit_on_bad_input
    def script():
        raise error

    with pytest.raises(SystemExit) as end:
        script()
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("bad\ninput"), "error: bad input"),
        (FileNotFoundError(2, "No such file", "text"), "error: [Errno 2] No such file: 'text'"),
        (MemoryError(), "error: not enough memory: the system gave no more; a smaller batch_size"),
        (InputError("x" * 10**6), "error: xxx"),
        (InputError("\x1b[31m of a file"), "error: [31m of a file"),
    ],
)
def test_one_line_and_exit_code_2(error, message, capsys):
    code, printed = run(error, capsys)
    assert code == 2
    assert printed.startswith(f"\n{message}")
    assert len(printed.strip().splitlines()) == 1
    assert len(printed) < 2100


def test_too_much_memory_is_named(capsys):
    """What NumPy and JAX raise themselves: both say how much they wanted."""
    jax_zeros = lambda: jax.numpy.zeros((2**50,), np.float32).block_until_ready()
    errors = []
    for wanted in (lambda: np.empty(2**60, np.uint8), jax_zeros):
        with pytest.raises((MemoryError, jax.errors.JaxRuntimeError)) as raised:
            wanted()
        errors.append(raised.value)
    for error, amount in zip(errors, ("1.00 EiB", "4503599627370496"), strict=True):
        code, printed = run(error, capsys)
        assert code == 2
        assert "error: not enough memory: " in printed
        assert amount in printed


def test_interrupts_and_faults_of_the_program(capsys):
    assert run(KeyboardInterrupt(), capsys) == (130, "interrupted\n")

    @exit_on_bad_input
    def script():
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        script()


def test_an_interrupt_is_not_lost_in_a_callback(capsys):
    """As in that which JAX has Python's garbage collection call: nothing that is raised there gets out."""

    def callback(phase, info):
        gc.callbacks.remove(callback)
        raise KeyboardInterrupt

    @exit_on_bad_input
    def script():
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(30)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        with pytest.raises(SystemExit) as end:
            script()
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_brief_and_listed():
    assert brief("a\n b\x00c") == "a b c"
    assert brief(SMALL, 20) == "ModelConfig(input='…"
    assert listed(["a", "b"]) == "a; b"
    assert listed(list("abcd"), ", ", 2) == "a, b, and 2 more"
