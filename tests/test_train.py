"""What train.py does beyond a plain run: starting from a model, and compiling for machines that are not here."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import GOLDEN, ROOT, metrics, relative_error, script_environment, write_project

import train
from elmo_jax import __main__ as tools
from elmo_jax.weights import read_folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A trained run, and another text of the same words and of others."""
    folder = write_project(tmp_path_factory.mktemp("project"), softmax="full")
    train.main([str(folder / "mine.py"), "--workdir", str(folder / "run")])
    words = [f"w{number}" for number in range(30, 60)]
    generator = np.random.default_rng(1)
    lines = [" ".join(generator.choice(words, generator.integers(1, 12))) for _ in range(60)]
    (folder / "other.txt").write_text("\n".join(lines))
    return folder


def heldout(workdir):
    return [line["heldout_perplexity"] for line in metrics(workdir) if "heldout_perplexity" in line]


def test_going_on_from_a_model_with_its_vocabulary(project, tmp_path, capsys):
    """The first perplexity is that of the model; training improves it; the result is a model folder again."""
    text = ["--data.train", str(project / "other.txt"), "--data.heldout", str(project / "other.txt")]
    command = [str(project / "mine.py"), "--workdir", str(tmp_path / "run"), "--init", str(project / "run")]
    # The model is the folder's, whatever the config says.
    train.main([*command, *text, "--train.steps", "30", "--model.cell_dim", "13"])
    capsys.readouterr()
    tools.main(["perplexity", "--model", str(project / "run"), "--input", text[1], "--batch_size", "8"])
    before = float(capsys.readouterr().out.split()[1])
    measured = heldout(tmp_path / "run")
    assert relative_error(measured[0], before) < 1e-3
    assert measured[-1] < 0.9 * measured[0]
    folders = [read_folder(path, with_softmax=True) for path in (project / "run", tmp_path / "run")]
    assert folders[0].model == folders[1].model
    assert folders[0].vocabulary.words == folders[1].vocabulary.words
    assert folders[1].softmax["weight"].shape == folders[0].softmax["weight"].shape


def test_going_on_from_a_model_with_another_vocabulary(project, tmp_path, capsys):
    """The softmax is fresh, with a message; the rest is the model's."""
    vocabulary = tmp_path / "vocab.txt"
    tools.main(["vocab", str(project / "other.txt"), "--output", str(vocabulary)])
    options = ["--data.train", project / "other.txt", "--data.vocab", vocabulary, "--init", project / "run"]
    options += ["--train.steps", "1", "--train.learning_rate", "1e-30"]
    train.main([str(project / "mine.py"), "--workdir", str(tmp_path / "run"), *map(str, options)])
    assert "--init has another vocabulary: the softmax starts from random weights" in capsys.readouterr().out
    old, new = (read_folder(path, with_softmax=True) for path in (project / "run", tmp_path / "run"))
    assert len(new.vocabulary) == 33
    assert new.softmax["weight"].shape == (33, 7)
    for module, arrays in old.parameters.items():
        for name, array in arrays.items():
            assert relative_error(new.parameters[module][name], array) < 1e-6


def test_a_folder_without_softmax(project, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    for name in ("options.json", "weights.hdf5"):
        (tmp_path / "model" / name).write_bytes((project / "run" / "model" / name).read_bytes())
    options = ["--init", str(tmp_path / "model"), "--train.steps", "1"]
    train.main([str(project / "mine.py"), "--workdir", str(tmp_path / "run"), *options])
    assert "the softmax starts from random weights" in capsys.readouterr().out


def test_gs_paths_need_their_extra(capsys, project):
    """Without gcsfs, one line says what to install."""
    if any(importlib.util.find_spec(name) for name in ("gcsfs", "tensorflow")):
        pytest.skip("object stores can be read here")
    with pytest.raises(SystemExit) as end:
        train.main([str(project / "mine.py"), "--workdir", "gs://bucket/run"])
    assert end.value.code == 2
    assert "install gcsfs" in capsys.readouterr().err


def test_distributed_options_go_together(capsys, project, tmp_path):
    with pytest.raises(SystemExit) as end:
        train.main([str(project / "mine.py"), "--workdir", str(tmp_path), "--distributed.process_id", "1"])
    assert end.value.code == 2
    assert "give all three, or none" in capsys.readouterr().err


LOWER = """
import functools, sys
import jax, numpy as np
from jax import export
sys.path[:0] = ["tests"]
from test_training import ROWS, WINDOW, config, corpus, initial_parameters
from conftest import SMALL
from elmo_jax import training
from elmo_jax.model import zero_state
from elmo_jax.streams import LanguageModelStream, word_table
assert jax.local_device_count() == 8
text, settings = corpus(), config(dropout=0.1, precision="bfloat16")
batch = next(LanguageModelStream(text, 16, WINDOW, word_table(text, SMALL).__getitem__, devices=8))
lstm_state = jax.tree.map(lambda leaf: leaf.reshape(8, 2, -1), zero_state(SMALL, 16))
inputs = training.init_state(initial_parameters()), lstm_state, batch, np.arange(16, dtype=np.int32).reshape(8, 2)
inputs += training.draw_negatives(settings, 43, 1),
step = training.step_on_devices(settings, donate=False)
shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype), inputs)
for platform in ("tpu", "cuda"):
    lowered = export.export(jax.jit(lambda *inputs: step(*inputs)), platforms=[platform])(*shapes)
    print(platform, lowered.nr_devices, "all_reduce" in lowered.mlir_module())
"""


@pytest.mark.slow
def test_the_step_compiles_for_tpu_and_cuda():
    """As far as that goes without one: the step of 8 devices lowers for both."""
    environment = script_environment(8) | {"PYTHONPATH": str(ROOT), "ELMO_GOLDEN": "nowhere"}
    done = subprocess.run([sys.executable, "-c", LOWER], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["tpu 8 True", "cuda 8 True"]


@pytest.mark.slow
def test_fine_tuning_improves_perplexity_on_new_text(tmp_path):
    """The tiny model of the built-in text, taken on to English of other kinds."""
    english = GOLDEN.parent / "english"
    if not english.is_dir():
        pytest.skip(f"no text at {english}")
    run = lambda *options: subprocess.run(
        [sys.executable, "train.py", "tiny", *map(str, options)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env=script_environment(),
    )
    run("--workdir", tmp_path / "first", "--train.steps", 100)
    text = ["--data.train", english / "train-00000-of-00010.txt", "--data.heldout", english / "heldout.txt"]
    run("--workdir", tmp_path / "second", "--init", tmp_path / "first", *text, "--train.steps", 100)
    before, *_, after = heldout(tmp_path / "second")
    print(f"held-out perplexity {before:.1f} before, {after:.1f} after")
    assert after < 0.9 * before
    assert json.loads((tmp_path / "second" / "config.json").read_text())["text"]["init"] == str(tmp_path / "first")
