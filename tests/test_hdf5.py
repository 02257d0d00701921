import json
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import pytest
from conftest import ROOT

from elmo_jax.hdf5 import SPARE, writing_hdf5

ARRAYS = [np.random.default_rng(n).normal(size=(n % 17, n % 5 + 1)).astype(np.float32) for n in range(500)]


def test_files_are_what_h5py_writes_by_itself(tmp_path):
    text = b'{"a": "0"}' * 10_000
    with writing_hdf5(tmp_path / "ours") as file, tempfile.TemporaryFile() as stream:
        for number, array in enumerate(ARRAYS):
            file.add(f"group/{number}", array)
        stream.write(text)
        file.add_text("text", stream)
    with h5py.File(tmp_path / "plain", "w") as file:
        for number, array in enumerate(ARRAYS):
            file[f"group/{number}"] = array
        file["text"] = np.array([text])
    sizes = [(tmp_path / name).stat().st_size for name in ("ours", "plain")]
    assert sizes[0] <= sizes[1] + 1000
    assert (tmp_path / "ours").stat().st_blocks * 512 < sizes[0] + SPARE / 2  # nothing stays reserved
    with h5py.File(tmp_path / "ours") as file:
        assert len(file["group"]) == len(ARRAYS)
        assert all((file[f"group/{number}"][()] == array).all() for number, array in enumerate(ARRAYS))
        assert file["text"].shape == (1,)
        assert file["text"][0] == text


FULL = """
import json, os, resource, sys
from pathlib import Path
import numpy as np
from elmo_jax.config import ModelConfig
from elmo_jax.dump import write_hdf5
from elmo_jax.errors import exit_on_bad_input
from elmo_jax.model import parameter_shapes
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import write_folder

folder = Path(sys.argv[1])
model = ModelConfig(cell_dim=256, projection_dim=64, filters=((1, 32), (2, 32)))
ones = lambda shapes: {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
bilm = {module: ones(shapes) for module, shapes in parameter_shapes(model).items()}
parameters = {"bilm": bilm, "softmax": ones({"weight": (4, 64), "bias": (4,)})}
vocabulary = Vocabulary(["<S>", "</S>", "<UNK>", "a"])
vectors = np.ones((20, 128), np.float32)

def dump():
    write_hdf5(folder / "out.hdf5", ([f"w{n}"] * 20 for n in range(400)), (vectors for _ in range(400)))

def export():
    write_folder(folder / "model", model, parameters, vocabulary)

for script in (dump, export):
    for limit in json.loads(sys.argv[2]):
        end, stderr = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(stderr, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            exit_on_bad_input(script)()
            os._exit(0)
        os.close(stderr)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with os.fdopen(end) as printed:
            print(json.dumps([code, printed.read().strip()]))
"""


@pytest.mark.slow
def test_files_that_find_no_room(tmp_path):
    """Dumps and exports of some MB where files may have no more than so many bytes; HDF5 itself would crash."""
    limits = [1, 100, 1000, 10_000, 1_000_000, *range(1_500_000, 4_000_000, 340_000)]

    def run(limits):
        command = [sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path), json.dumps(limits)]
        lines = subprocess.check_output(command, cwd=ROOT, text=True, timeout=120).splitlines()
        return list(map(json.loads, lines)), sorted(path.name for path in tmp_path.rglob("*") if path.is_file())

    ends, left = run(limits)
    assert len(ends) == 26
    for code, printed in ends:
        assert code == 2
        assert printed.startswith(f"error: cannot write {tmp_path}/")
        assert "File too large" in printed
        assert len(printed.splitlines()) == 1
    assert left == []
    ends, left = run([10_000_000])
    assert ends == [[0, ""]] * 2
    assert left == ["options.json", "out.hdf5", "softmax.hdf5", "vocab.txt", "weights.hdf5"]
