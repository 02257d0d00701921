"""The package as people install it: what the distributions hold, and a wheel in an empty environment."""

import os
import re
import statistics
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import h5py
import pytest
from conftest import ROOT, SMALL, script_environment, write_random_model

pytestmark = pytest.mark.slow
# Not needed to embed text.
TRAINING = ("flax", "optax", "orbax", "tensorflow_datasets")
LARGEST, SLOWEST = 600, 1.5  # MB of packages, seconds of `import elmo_jax`


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist and the wheel that `python -m build` makes."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, env=script_environment())
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_the_distributions_hold_code_configs_and_types(distributions):
    sdist, wheel = distributions
    version = re.search(r'__version__ = "(.*)"', (ROOT / "elmo_jax" / "__init__.py").read_text())[1]
    assert wheel.name == f"elmo_jax-{version}-py3-none-any.whl"
    folder = ROOT / "elmo_jax"
    code = {f"elmo_jax/{path.relative_to(folder)}" for path in folder.rglob("*.py")} | {"elmo_jax/explore.html"}
    configs = {path.name for path in (ROOT / "configs").iterdir() if path.is_file()}
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
        metadata = {Path(name).name: file.read(name).decode() for name in file.namelist() if ".dist-info/" in name}
    assert held == code | {"elmo_jax/py.typed"} | {f"elmo_jax/configs/{name}" for name in configs}
    assert "elmo-jax = elmo_jax.__main__:main" in metadata["entry_points.txt"]
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata["METADATA"], re.M)
    assert sorted(needed) == [
        "etils",
        "filelock",
        "h5py",
        "jax",
        "numpy",
        "pooch",
        "requests",
        "safetensors",
        "tqdm",
        "tyro",
    ]
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert code | {f"configs/{name}" for name in configs} | {"pyproject.toml", "README.md", "LICENSE"} <= names


class Environment:
    """An empty environment, whose programs run in a folder that is not the project's."""

    def __init__(self, folder: Path):
        self.bin, self.folder = folder / "environment" / "bin", folder
        venv.create(folder / "environment", with_pip=True)
        self.before = self.megabytes()

    def run(self, *command, check=True) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in script_environment().items() if name != "PYTHONPATH"}
        environment |= {"VIRTUAL_ENV": str(self.bin.parent), "PATH": f"{self.bin}{os.pathsep}{environment['PATH']}"}
        command = [self.bin / command[0], *command[1:]]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 or not check, done.stderr[-2000:]
        return done

    def python(self, code: str) -> str:
        return self.run("python", "-c", code).stdout.strip()

    def megabytes(self) -> float:
        """Size of all files but the bytecode that Python makes of them."""
        files = (path for path in self.bin.parent.rglob("*") if path.is_file() and not path.is_symlink())
        return sum(path.stat().st_size for path in files if path.suffix != ".pyc") / 1e6


def test_a_wheel_in_an_empty_environment(distributions, tmp_path):
    """Base for embedding, small and quick to import; what training needs is an extra, and one says which."""
    environment, wheel = Environment(tmp_path), distributions[1]
    environment.run("pip", "install", "--quiet", wheel)
    size = environment.megabytes() - environment.before
    looked_for = f"import importlib.util as u; print([n for n in {TRAINING} if u.find_spec(n)])"
    assert environment.python(looked_for) == "[]"
    timed = "import time; t = time.perf_counter(); import elmo_jax; print(time.perf_counter() - t)"
    environment.python(timed)  # the first start compiles bytecode
    seconds = statistics.median(float(environment.python(timed)) for _ in range(5))
    print(f"\nthe packages for embedding: {size:.0f} MB; import elmo_jax: {seconds:.2f} s")
    assert size <= LARGEST
    assert seconds <= SLOWEST

    where = environment.python("import elmo_jax.config; print(elmo_jax.config.CONFIGS)")
    assert Path(where).is_relative_to(environment.bin.parent)
    write_random_model(tmp_path / "model", SMALL)
    text = Path(where) / "demo_sentences.txt"
    embed = "elmo-jax", "embed", "--input", text, "--output"
    environment.run(*embed, "vectors.hdf5", "--model", "model")
    with h5py.File(tmp_path / "vectors.hdf5") as file:
        assert file["0"].shape == (len(text.read_text().splitlines()[0].split()), 2 * SMALL.projection_dim)
    shape = environment.python("import elmo_jax; print(elmo_jax.load('model').embed(['a river'])[0].shape)")
    assert shape == f"(2, {2 * SMALL.projection_dim})"
    train = "elmo-jax", "train", "tiny", "--workdir", "run", "--train.steps", "10"
    refused = environment.run(*train, check=False)
    assert refused.returncode == 2
    assert "pip install '.[train]'" in refused.stderr
    assert "Traceback" not in refused.stderr

    environment.run("pip", "install", "--quiet", f"{wheel}[train]")
    environment.run(*train)
    assert '"step": 10' in (tmp_path / "run" / "metrics.jsonl").read_text()
    environment.run(*embed, "own.hdf5", "--model", "run")
    with h5py.File(tmp_path / "own.hdf5") as file:
        assert file["0"].shape[1] == 128
