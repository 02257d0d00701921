"""`elmo-jax evaluate`: pieces are kept, bad input is told before anything is computed."""

import json
import math

import pytest
from conftest import fails

from elmo_jax import commands
from elmo_jax.tasks import command
from elmo_jax.tasks.report import Figure

LINES = [
    {"id": f"{number}", "word": "bank", "index": 1, "sense": sense, "tokens": f"the bank {context} {number}".split()}
    for number, (sense, context) in enumerate([("river", "of the water"), ("money", "has my account")] * 10)
]
SETS = {
    "name": "numbers",
    "targets": {"small": ["one", "two"], "large": ["million", "billion"]},
    "attributes": {"few": ["little", "few"], "many": ["much", "many"]},
    "pairs": [["one", "million"], ["few", "many"]],
}


@pytest.fixture
def data(tmp_path):
    """Files of two tasks."""
    (tmp_path / "bank.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (tmp_path / "sets.json").write_text(json.dumps(SETS))
    return tmp_path


def arguments(data, folder, *more):
    tasks = [f"word-sense={data}/bank.jsonl", f"bias={data}/sets.json"]
    return [*tasks, "--model", str(folder), "--output", str(data / "out"), "--seeds", "2", *more]


def run(*given):
    commands.main(["evaluate", *given])


def test_what_is_done_is_kept(data, folder, capsys, monkeypatch):
    """Stopped in the second piece, the same command computes that one alone, and gives what it gives at once."""
    run(*arguments(data, folder))
    expected, out = (data / "out" / "results.json").read_text(), capsys.readouterr().out
    pieces = list((data / "out" / "pieces").iterdir())
    assert len(pieces) == 3  # the senses, the most frequent one, the word sets
    figures = json.loads(expected)["figures"]
    assert {figure["task"] for figure in figures} == {"word sense", "bias"}
    assert len(out.strip().splitlines()) == len(figures) + 2
    assert (data / "out" / "results.md").read_text() == out
    pieces[0].unlink()
    pieces[1].write_text(pieces[1].read_text()[:-30])  # as if it had been cut
    computed = []
    write = command.Kept.write
    monkeypatch.setattr(command.Kept, "write", lambda *all: (computed.append(all[1].name), write(*all)))
    run(*arguments(data, folder))
    assert len(computed) == 2
    assert (data / "out" / "results.json").read_text() == expected


def test_results_of_other_tasks_stay(data, folder, capsys):
    """Fewer tasks into the same folder are refused; more go on with what is done."""
    few = ["bias=" + str(data / "sets.json"), "--model", str(folder), "--output", str(data / "out")]
    run(*few)
    run(*arguments(data, folder))
    before = (data / "out" / "results.json").read_text()
    assert json.loads(before)["asked"]["tasks"] == [f"word-sense={data}/bank.jsonl", f"bias={data}/sets.json"]
    fails(
        commands.main, ["evaluate", *few], f"has results of word-sense={data}/bank.jsonl, which would be lost", capsys
    )
    assert (data / "out" / "results.json").read_text() == before


def test_words_that_have_no_vector_are_counted(data, folder, capsys):
    words = ["the", "bank", "one", "million", "few", "many", "billion", "little", "much"]
    (data / "few.vec").write_text("".join(f"{word} {number} 1\n" for number, word in enumerate(words)))
    run(*arguments(data, folder, "--baselines", f"vectors:{data}/few.vec"))
    figures = json.loads((data / "out" / "results.json").read_text())["figures"]
    (found,) = (
        one for one in figures if (one["task"], one["system"]) == ("word sense", "few") and "linear" in one["metric"]
    )
    tokens = [token for line in LINES for token in line["tokens"]]
    assert found["details"]["tokens"] == len(tokens)
    assert found["details"]["tokens without a vector"] == sum(token not in ("the", "bank") for token in tokens)
    assert all("tokens" not in one["details"] for one in figures if one["system"] == folder.name)


@pytest.mark.slow
def test_other_options_or_data_are_other_pieces(data, folder, capsys):
    run(*arguments(data, folder))
    before = set((data / "out" / "pieces").iterdir())
    run(*arguments(data, folder, "--limit", "12"))
    (data / "bank.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES[2:]))
    run(*arguments(data, folder))
    assert len(set((data / "out" / "pieces").iterdir()) - before) >= 4


def test_baselines_and_debiased_systems_are_measured(data, folder, capsys):
    more = ["--baselines", "untrained", "--debias", str(data / "sets.json")]
    run(*arguments(data, folder, *more))
    figures = json.loads((data / "out" / "results.json").read_text())["figures"]
    systems = {figure["system"] for figure in figures if figure["task"] == "word sense"}
    assert len(systems) == 5  # the model, the untrained one, both without a direction, the most frequent sense


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "which tasks? Give TASK=PATH"),
        (["word-sense"], "word-sense is no task with its data"),
        (["taste=a.json"], "taste=a.json is no task with its data; give TASK=PATH, TASK one of word-sense"),
        (["bias=a.json", "bias=a.json"], "names a task with its data twice"),
        (["bias=nothing.json"], "nothing.json"),
    ],
)
def test_bad_tasks(folder, tmp_path, capsys, tasks, message):
    out = tmp_path / "out"
    fails(commands.main, ["evaluate", *tasks, "--model", folder, "--output", out], message, capsys)
    assert not out.exists()


def test_bad_options(data, folder, capsys):
    fails(commands.main, ["evaluate", *arguments(data, folder, "--limit", "0")], "limit 0; both must be 1", capsys)
    fails(commands.main, ["evaluate", *arguments(data, folder, "--baselines", "bert")], "'bert' is not known", capsys)
    (data / "out").write_text("")
    fails(commands.main, ["evaluate", *arguments(data, folder)], "it is a file", capsys)


def test_figures_that_there_are_none_of_are_null(tmp_path):
    figure = Figure("bias", "a", "b", "words", "d", math.nan, math.nan, 0.5, "1 set", {})
    values = command._to_json(figure)
    assert json.loads(json.dumps(values, allow_nan=False))["value"] is None
    again = command._from_json(values)
    assert math.isnan(again.value)
    assert again.high == 0.5
