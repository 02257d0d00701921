"""The README's code blocks run as they are printed, in order, in one shell, on a copy of what is committed."""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import ROOT, SMALL, script_environment, write_random_model
from test_published import OPTIONS, WEIGHTS, Server

from elmo_jax import pretraining, published, read_embeddings

# What the gcloud commands would do elsewhere: their last argument is run by a shell there.
GCLOUD = """#!/bin/bash
printf '%s\\n' "$@" | grep -q -- '--zone=us-west4-a' || exit 3
for argument; do
    if [[ $argument == --command=* ]]; then printf '%s\\n---\\n' "${argument#--command=}" >> "$COMMANDS"; fi
done
"""


def blocks():
    """(language, code) of every block of the README."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_every_block_runs(tmp_path):
    """`make test` is what runs this test, so it is left out; gcloud is a stand-in that keeps what it is given.

    The published model comes from a server on this machine.
    """
    model, server = write_random_model(tmp_path / "model", SMALL), Server()
    server.files = {OPTIONS: (model / "options.json").read_bytes(), WEIGHTS: (model / "weights.hdf5").read_bytes()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / "clone" / name)  # as old as they are: nothing to install
    (tmp_path / "clone" / ".venv").symlink_to(ROOT / ".venv")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gcloud").write_text(GCLOUD)
    (tmp_path / "bin" / "gcloud").chmod(0o755)
    script = ["set -eo pipefail"]
    for language, code in blocks():
        assert language in ("", "python")
        code = "\n".join(line for line in code.splitlines() if not line.startswith("make test"))
        script.append(f"python - <<'PYTHON'\n{code}\nPYTHON" if language else code)
    environment = script_environment() | {
        "PATH": f"{tmp_path / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "ZONE": "us-west4-a",
        "BUCKET": "bucket",
        "REPOSITORY": "https://example.org/elmo_jax.git",
        "COMMANDS": str(tmp_path / "commands"),
        "PYTHONWARNINGS": "error",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        published.MIRROR: server.address,
    }
    environment.pop("VIRTUAL_ENV", None)
    done = subprocess.run(
        ["bash"], cwd=tmp_path / "clone", input="\n".join(script), env=environment, capture_output=True, text=True
    )
    server.close()
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("demo/model/weights.hdf5", "vectors.hdf5", "mine/model/weights.hdf5", "best/weights.hdf5"):
        assert (tmp_path / "clone" / "runs" / name).exists()
    with read_embeddings(tmp_path / "clone" / "runs" / "sentences.parquet") as vectors:
        assert all(np.isfinite(vector).all() and vector.shape == (2 * SMALL.projection_dim,) for vector in vectors)
        assert len(vectors) == len((ROOT / "configs" / "demo_sentences.txt").read_text().splitlines())
    assert "[with]" in done.stdout
    assert re.search(r"perplexity \d", done.stdout)
    install, train = (tmp_path / "commands").read_text().split("---\n")[:2]
    assert "pip install '.[tpu,gcs]'" in install
    arguments = re.search(r"elmo-jax train (.*)", train.replace("\\\n", " "), re.DOTALL)[1].replace("'", "").split()
    parsed = pretraining.parse(arguments)
    assert parsed.workdir == "gs://bucket/original"
    assert parsed.config.data.train == ("gs://bucket/text/train-*",)
    assert parsed.config.train.precision == "bfloat16"
    assert os.path.exists(ROOT / "configs" / "original.py")


def test_links_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "docs/ray.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), (page, target)
