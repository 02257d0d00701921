"""What is taken for the loss of another process, and how processes tell each other why they end."""

import socket
import time

import pytest
from etils import epath
from jax.errors import JaxRuntimeError

from elmo_jax.errors import InputError
from elmo_jax.lifecycle import Reasons, lost
from elmo_jax.workdir import Workdir


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        (
            True,
            ValueError("UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:15794"),
        ),
        (True, JaxRuntimeError("UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer")),
        (
            True,
            JaxRuntimeError("INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat"),
        ),
        (True, JaxRuntimeError("UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task ...")),
        (True, JaxRuntimeError("INTERNAL: NCCL operation failed: remote process exited or there was a network error")),
        (False, JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate for Gloo 5 bytes")),
        (False, JaxRuntimeError("INTERNAL: a bug")),
        (False, JaxRuntimeError("UNAVAILABLE: TPU is in use by another program")),
        (False, ValueError("UNAVAILABLE: the connection to storage.googleapis.com was reset")),
        (False, ConnectionResetError("connection reset by peer")),
        (False, FileNotFoundError(2, "No such file or directory", "gloo.txt")),
        (False, InputError("the barrier option is Gloo; no connection")),
        (False, KeyError("heartbeat")),
        (False, KeyboardInterrupt()),
    ],
)
def test_what_is_taken_for_the_loss_of_others(expected, error):
    assert lost(error) == expected


def test_the_loss_that_led_to_an_error_counts():
    def wrapped(cause):
        try:
            try:
                raise cause
            except Exception:
                raise InputError("cannot write a checkpoint") from None
        except InputError as error:
            return error

    assert lost(wrapped(JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")))
    assert not lost(wrapped(OSError("the disk is full")))


def test_reasons_of_the_same_command_are_found(tmp_path):
    """Those of commands before it are taken away, those of others on the same folder passed over."""
    folder = epath.Path(tmp_path / "run" / "errors")
    before, other = Reasons(folder), Reasons(folder)
    before.leave("the text is missing")
    assert before.found() == f"process 0 on {socket.gethostname()} has ended: the text is missing"
    assert other.found() is None
    same = Reasons(folder)
    same._command = before._command
    assert same.found() == before.found()
    assert 0 < same._over - time.time() <= same.every + 1
    assert same._over == before._over  # all end together
    (folder / "notes.txt").write_text("mine")
    Workdir(folder.parent).forget_errors()
    assert Reasons(folder).found() is None
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "run").write_text("a file")
    reasons = Reasons(epath.Path(tmp_path / "run" / "errors"))
    reasons.leave("the text is missing")
    assert reasons.found() is None
