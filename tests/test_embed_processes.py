"""Embedding in processes that jax.distributed has joined: each by itself."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SMALL, free_port, script_environment, write_random_model

pytestmark = pytest.mark.slow

EMBEDDING = """
import sys
import jax
import numpy as np
import elmo_jax
from elmo_jax import parallel
folder, output, address, processes, number = sys.argv[1:]
parallel.initialize(parallel.DistributedConfig(address, int(processes), int(number)))
elmo = elmo_jax.load(folder)
first, second = (elmo_jax.load(folder, devices=[device]) for device in jax.local_devices())
text = [[f"w{n % 50}" for n in range(length % 13)] for length in range((1, 400)[int(number)])]
vectors = [*elmo.embed(text), *first.embed(text[:7]), *second.embed(text[:5])]
vectors += [*elmo.embed(text[:3], batch_size=1), *elmo.embed(text[:20], state="carry", batch_size=5)]
others = [device for device in jax.devices() if device not in jax.local_devices()]
if others:
    try:
        elmo_jax.load(folder, devices=others)
    except elmo_jax.InputError as error:
        assert "not all of them this process'" in str(error)
    else:
        raise AssertionError
np.save(output, np.concatenate(vectors))
"""


def start(folder, output, processes, number, address):
    command = [sys.executable, "-c", EMBEDDING, folder, output, address, str(processes), str(number)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=script_environment(devices=2), **pipes)


def test_processes_wait_for_nobody(tmp_path):
    """Texts of one sentence and of 400, so of other numbers and shapes of windows: the vectors of a process alone."""
    folder = write_random_model(tmp_path / "model", SMALL)
    address = f"localhost:{free_port()}"
    together = [start(folder, tmp_path / f"together{number}.npy", 2, number, address) for number in range(2)]
    for process in together:
        output = process.communicate(timeout=200)[0]
        assert process.returncode == 0, output
    for number in range(2):
        alone = EMBEDDING.replace("parallel.initialize(", "(")
        command = [sys.executable, "-c", alone, folder, tmp_path / f"alone{number}.npy", address, "1", str(number)]
        subprocess.run(command, cwd=ROOT, env=script_environment(devices=2), check=True, timeout=200)
        found, expected = (np.load(tmp_path / f"{name}{number}.npy") for name in ("together", "alone"))
        assert (found == expected).all()
