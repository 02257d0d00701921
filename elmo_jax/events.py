"""A run's event file for TensorBoard: tensorboard/ in its workdir."""

import html
import os
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from elmo_jax.errors import InputError, needing
from elmo_jax.files import is_remote, writing
from elmo_jax.streams import Batch
from elmo_jax.vocabulary import Vocabulary

# TensorBoard takes every file whose name has "tfevents" for one of events. All commands of a run write to this one.
NAME = "events.out.tfevents.0.elmo_jax"
# Words of held-out text that are shown with their losses, in each direction.
SAMPLED = 100


class Events:
    """Numbers and texts by step, in the order of steps, appended to one file; nothing at all unless `wanted`.

    A record is, little-endian: the length of its data in 8 bytes, a checksum of these, the data (an Event in protocol
    buffers), a checksum of that (TensorFlow's record format).
    """

    def __init__(self, workdir: epath.Path, wanted: bool):
        self.file, self.wanted = workdir / "tensorboard" / NAME, wanted
        self._waiting: list[bytes] = []

    def keep(self, step: int) -> None:
        """Drops the events of steps after `step`, which the run is about to repeat, and what a kill has left of one."""
        if self.file.exists():
            data = self.file.read_bytes()
            kept = max((end for end, of in _records(data) if of <= step), default=0)
            if kept < len(data):
                with writing(self.file) as partial:
                    partial.write_bytes(data[:kept])

    def add(self, step: int, values: dict[str, float]) -> None:
        """Adds numbers of a step by their names; "a/b" is b in the group a."""
        if self.wanted:
            with needing("train"):
                from tensorboardX.proto.summary_pb2 import Summary
            of_each = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._add(step, Summary(value=of_each))

    def add_text(self, step: int, name: str, text: str) -> None:
        """Adds a text in Markdown."""
        if self.wanted:
            with needing("train"):
                from tensorboardX.summary import text as text_summary
            self._add(step, text_summary(name, text))

    def _add(self, step: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        if not self._waiting and not self.file.exists():
            self._waiting.append(_record(Event(wall_time=time.time(), file_version="brain.Event:2"), masked_crc32c))
        self._waiting.append(_record(Event(wall_time=time.time(), step=step, summary=summary), masked_crc32c))
        if not is_remote(self.file):
            self._append(sync=False)

    def flush(self) -> None:
        """Writes what is waiting (object stores cannot append), to last even if the machine stops."""
        if not self.wanted:
            return
        if not is_remote(self.file):
            self._append(sync=True)
        elif self._waiting:
            before = self.file.read_bytes() if self.file.exists() else b""
            with writing(self.file) as partial:
                partial.write_bytes(before + b"".join(self._waiting))
            self._waiting = []

    def _append(self, sync: bool) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "ab") as file:
                file.write(b"".join(self._waiting))
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.file} ({error})") from None
        self._waiting = []


def _record(event: Any, checksum: Any) -> bytes:
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", checksum(length)) + data + struct.pack("<I", checksum(data))


def _records(data: bytes) -> Iterator[tuple[int, int]]:
    """Of each whole record the place where it ends and the step of its event."""
    with needing("train"):
        from tensorboardX.proto.event_pb2 import Event
    end = 0
    while end + 12 <= len(data):
        begin, (length,) = end + 12, struct.unpack_from("<Q", data, end)
        end = begin + length + 4
        if end > len(data):
            return
        yield end, Event.FromString(data[begin : begin + length]).step


class WordLosses:
    """The first words of a text that each direction predicts in the first row, with their losses."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self._words: tuple[list[str], list[str]] = ([], [])

    def take(self, batch: Batch, losses: Any) -> None:
        """Of a window, losses [devices, 2, T, b] in nats a token."""
        if len(self._words[0]) >= SAMPLED:
            return
        mask, of_row = batch.mask[0, 0], np.asarray(losses)[0, :, :, 0]
        for words, targets, values in zip(self._words, batch.targets[0, :, 0], of_row, strict=True):
            for target, loss in zip(targets[mask], values[mask], strict=True):
                words.append(f"{html.escape(self.vocabulary.words[target])} `{loss:.1f}`")

    def text(self) -> str:
        """Them in Markdown, in the order in which they are read; begins anew."""
        forward, backward = (" ".join(words[:SAMPLED]) for words in self._words)
        self._words = ([], [])
        return f"Forward: {forward}\n\nBackward: {backward}"
