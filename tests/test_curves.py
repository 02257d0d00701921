"""Pictures of runs."""

import json
import struct

import numpy as np
import pytest
from conftest import fails

from elmo_jax import __main__ as tools
from elmo_jax import curves


def write_run(folder, steps=30, fall=0.5):
    """A folder with the metrics.jsonl of a run."""
    lines = [{"step": 0, "heldout_perplexity": 800.0}]
    for step in range(1, steps + 1):
        line = {"step": step, "loss": 3 + 4 * step**-fall, "gradient_norm": 5.0, "tokens_per_second": 900.0 + step}
        lines.append(line | {"perplexity": float(np.exp(line["loss"]))})
        if step % 10 == 0:
            lines.append({"step": step, "heldout_perplexity": 100 + 500 * step**-fall})
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_points():
    lines = [{"step": step, "loss": np.log(step)} for step in range(1, 6)] + [{"step": 6, "loss": None}]
    steps, values = curves.points(lines, "loss")
    assert steps.tolist() == [1, 2, 3, 4, 5]
    assert np.allclose(values, steps)
    many = [{"step": step, "gradient_norm": 2.0 * step} for step in range(1000)]
    steps, values = curves.points(many, "gradient_norm")
    assert len(steps) == curves.MOST_POINTS
    assert np.allclose(values, 2 * steps)
    assert [len(part) for part in curves.points(many, "loss")] == [0, 0]


def test_pictures(tmp_path, capsys):
    """1000 pixels wide; every run is named."""
    runs = [str(write_run(tmp_path / "runs" / name, fall=fall)) for name, fall in (("adagrad", 0.5), ("adam", 0.7))]
    tools.main(["curves", *runs, "--output", str(tmp_path / "runs.png")])
    assert "wrote" in capsys.readouterr().out
    png = (tmp_path / "runs.png").read_bytes()
    assert struct.unpack(">I", png[16:20]) == (1000,)
    tools.main(["curves", *runs, "--output", str(tmp_path / "runs.svg")])
    svg = (tmp_path / "runs.svg").read_text()
    assert "<!-- adam -->" in svg
    assert "<!-- held-out perplexity -->" in svg
    assert curves.COLOURS[1].lower() in svg


def test_labels():
    assert curves.labels(["runs/a", "runs/b"]) == ["a", "b"]
    assert curves.labels(["one/run", "two/run"]) == ["one/run", "two/run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--output", "runs.pdf"], "give a file that ends in .png or .svg"),
        (["--output", "runs.png"], "which runs?"),
        (["nowhere", "--output", "runs.png"], "nowhere has no metrics.jsonl with steps"),
        (["run", "--output", "run/metrics.jsonl/runs.png"], "run/metrics.jsonl/runs.png"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    fails(tools.main, ["curves", *arguments], message, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
