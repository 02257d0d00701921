"""Worker: this project. Arguments: model folder, text, precision."""

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
from serve import peak_memory, sentences_of, serve, timed

import elmo_jax
from elmo_jax import engine
from elmo_jax.outputs import Target, Writer
from elmo_jax.sources import read_input

folder, text, precision = sys.argv[1:]
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: "backend_compile" in event and compiled.append(seconds)
)


def run(options=(), constants=()):
    """Embeds the text, a stream, and throws the vectors away; a new model each time, so that it knows no word.

    With other options of `embed_iter` or other constants of `elmo_jax.engine`, for this pass.
    """
    before = {name: getattr(engine, name) for name in dict(constants)}
    vars(engine).update(constants)
    try:
        return measure(dict(options))
    finally:
        vars(engine).update(before)


def measure(options):
    elmo = elmo_jax.load(folder)
    elmo._engine.layers(precision)  # weights are on the device before the clock starts, as the peers' are
    before = len(compiled)

    def read():
        with open(text, encoding="utf-8") as lines:
            for _ in elmo.embed_iter(lines, state="zero", precision=precision, **options):
                pass

    return {
        "seconds": timed(read),
        "compilations": len(compiled) - before,
        "compile_seconds": sum(compiled[before:]),
    }


def write(path, dtype):
    """Embeds the text into a file or folder, as `elmo-jax embed` does; a new model, as in `run`."""
    elmo, target = elmo_jax.load(folder), Target.of(path)
    elmo._engine.layers(precision)
    options, read = {"state": "zero", "precision": precision}, lambda **where: read_input([text], **where)
    seconds = timed(lambda: Writer(elmo, read, target, options, dtype).write())
    files = [target.path / name for name in os.listdir(path)] if target.path.is_dir() else [target.path]
    size = sum(file.stat().st_size for file in files)
    shutil.rmtree(path) if target.path.is_dir() else target.path.unlink()
    return {"seconds": seconds, "bytes": size}


def latency(warm_up, measured):
    """Seconds of each of the first `measured` sentences alone, after the last `warm_up` ones."""
    elmo, sentences = elmo_jax.load(folder), sentences_of(text)
    for sentence in sentences[-warm_up:]:
        elmo.embed([sentence], state="zero", precision=precision)
    before = len(compiled)
    one = lambda sentence: timed(lambda: elmo.embed([sentence], state="zero", precision=precision))
    return {"seconds": [one(sentence) for sentence in sentences[:measured]], "compilations": len(compiled) - before}


def vectors(count, path):
    found = elmo_jax.load(folder).embed(sentences_of(text)[:count], state="zero", precision=precision)
    np.save(path, np.concatenate(found))


def about():
    return {"elmo_jax": elmo_jax.__version__, "jax": jax.__version__, "device": jax.local_devices()[0].device_kind}


def memory():
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else peak_memory()


serve({"run": run, "write": write, "latency": latency, "vectors": vectors, "about": about, "memory": memory})
