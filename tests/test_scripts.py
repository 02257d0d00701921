"""The scripts end to end, and what they say of bad input."""

import ast
import collections
import gzip
import json
import subprocess
import sys

import h5py
import jax
import numpy as np
import pytest
from conftest import (
    ROOT,
    SENTENCES,
    SMALL,
    fails,
    metrics,
    random_weights,
    same_file,
    script_environment,
    write_project,
    write_random_model,
)

import elmo_jax
import embed
import train
from elmo_jax import __main__ as tools
from elmo_jax import pretraining, softmax_table
from elmo_jax.corpus import Corpus, sentences
from elmo_jax.evaluation import evaluator
from elmo_jax.folders import read_folder
from elmo_jax.model import start_state, zero_state
from elmo_jax.streams import LanguageModelStream, word_encoder
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import write_arrays


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with text, a config and a trained run."""
    folder = write_project(tmp_path_factory.mktemp("project"))
    train.main([str(folder / "mine.py"), "--workdir", str(folder / "run")])
    return folder


@pytest.mark.slow
def test_profile_is_a_trace_of_the_steps(project, tmp_path):
    command = [str(project / "mine.py"), "--workdir", str(tmp_path / "run"), "--train.steps", "4"]
    train.main([*command, "--train.profile"])
    (events,) = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")  # what Perfetto opens
    with gzip.open(events) as file:
        names = collections.Counter(event.get("name") for event in json.load(file)["traceEvents"])
    assert names["train_step"] == 2
    (planes,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")  # what TensorBoard opens
    assert planes.parts[-4:-2] == ("plugins", "profile")
    lines = [line for plane in jax.profiler.ProfileData.from_file(str(planes)).planes for line in plane.lines]
    assert any(event.name == "train_step" for line in lines for event in line.events)
    train.main(command)  # goes on without it


def test_a_run_leaves_what_is_promised(project):
    run = project / "run"
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "vocab.txt",
        "metrics.jsonl",
        "checkpoints",
        "model",
    }
    assert {path.name for path in (run / "model").iterdir()} == {
        "options.json", "weights.hdf5", "softmax.hdf5", "vocab.txt"
    }  # fmt: skip
    lines = metrics(run)
    heldout = [line["step"] for line in lines if "heldout_perplexity" in line]
    assert heldout == [0, 3, 6]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        if "heldout_perplexity" in line:
            both = np.sqrt(line["heldout_perplexity_forward"] * line["heldout_perplexity_backward"])
            assert abs(line["heldout_perplexity"] / both - 1) < 1e-9
        else:
            assert line["perplexity"] == np.exp(line["loss"])
            assert line["gradient_norm"] > 0
    vocabulary = Vocabulary.load(run / "model" / "vocab.txt")
    assert len(vocabulary) == 43


@pytest.mark.parametrize("stop", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_run_goes_on_bit_for_bit(project, tmp_path, stop):
    """Stopped after 1 step or 4, then the same command with all 6: the numbers of the run that was never stopped."""
    command = [str(project / "mine.py"), "--workdir", str(tmp_path)]
    train.main([*command, "--train.steps", str(stop)])
    train.main(command)
    assert same_file(tmp_path / "model" / "weights.hdf5", project / "run" / "model" / "weights.hdf5")
    assert same_file(tmp_path / "model" / "softmax.hdf5", project / "run" / "model" / "softmax.hdf5")
    without_extra_end = [m for m in metrics(tmp_path) if not ("heldout_perplexity" in m and m["step"] == stop)]
    assert without_extra_end == metrics(project / "run")


@pytest.mark.slow
def test_lines_after_the_checkpoint_are_written_again(project, tmp_path):
    command = [str(project / "mine.py"), "--workdir", str(tmp_path)]
    train.main([*command, "--train.steps", "3"])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    train.main(command)
    assert metrics(tmp_path) == metrics(project / "run")


def test_a_finished_run_stays_as_it_is(project, capsys):
    before = (project / "run" / "metrics.jsonl").read_bytes()
    train.main([str(project / "mine.py"), "--workdir", str(project / "run")])
    assert (project / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_config_may_stand_anywhere_and_paths_may_be_relative(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    train.main(["--workdir", tmp_path.name, "--train.steps", "1", str(project / "mine.py")])
    train.main(["--workdir", tmp_path.name, "--train.steps", "2", str(project / "mine.py")])
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == [1, 2]
    assert json.loads((tmp_path / "config.json").read_text())["train"]["window"] == 5


def test_fields_can_be_overridden(project, tmp_path):
    options = ["--model.filters", "1", "3", "2", "8", "--train.softmax", "full", "--train.precision", "bfloat16"]
    options += ["--train.steps", "1", "--model.no_skip_connections", "--data.no_shuffle", "--model.cell_clip", "None"]
    train.main([str(project / "mine.py"), "--workdir", str(tmp_path), *options])
    options = json.loads((tmp_path / "model" / "options.json").read_text())
    assert options["char_cnn"]["filters"] == [[1, 3], [2, 8]]
    assert options["lstm"]["use_skip_connections"] is False
    assert options["lstm"]["cell_clip"] is None


@pytest.mark.slow
def test_words_without_characters_train_and_embed(project, tmp_path):
    train.main([str(project / "mine.py"), "--workdir", str(tmp_path), "--model.input", "words", "--train.steps", "2"])
    elmo = elmo_jax.load(tmp_path)
    (known, unknown) = elmo.embed(["w1 w2", "w1 never-seen"], layers="all")
    assert (known[0, 0] == unknown[0, 0]).all()
    assert (known[0, 1] != unknown[0, 1]).any()


@pytest.mark.slow
def test_programs_are_compiled_once_for_all_runs(project, tmp_path):
    """embed.py leaves its programs in the user's cache folder, where the next process finds them."""
    (tmp_path / "text.txt").write_text("one sentence")
    command = ["embed.py", "--model", project / "run", "--input", tmp_path / "text.txt", "--output"]
    environment = script_environment() | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    entries = []
    for name in ("first.hdf5", "second.hdf5"):
        subprocess.run([sys.executable, *command, tmp_path / name], cwd=ROOT, env=environment, check=True)
        entries.append({path.name for path in (tmp_path / "cache" / "elmo_jax").glob("*-cache")})
    assert entries[0]
    assert entries[0] == entries[1]
    assert same_file(tmp_path / "first.hdf5", tmp_path / "second.hdf5")


def test_embed_writes_the_published_format(project, tmp_path, capsys):
    output = tmp_path / "vectors.hdf5"
    text = tmp_path / "text.txt.gz"
    with gzip.open(text, "wt", encoding="utf-8") as file:
        file.write("\n".join(" ".join(sentence) for sentence in [*SENTENCES, SENTENCES[0]]))
    run = str(project / "run")
    embed.main(["--model", run, "--input", str(text), "--output", str(output), "--layers", "all"])
    expected = elmo_jax.load(run).embed([*SENTENCES, SENTENCES[0]], layers="all")
    with h5py.File(output) as file:
        assert set(file) == {*map(str, range(7)), "sentence_to_index"}
        for number, array in enumerate(expected):
            assert (file[str(number)][()] == array).all()
        index = json.loads(file["sentence_to_index"][0])
    assert index[" ".join(SENTENCES[1])] == "1"
    assert index[" ".join(SENTENCES[0])] == "6"
    assert [path.name for path in tmp_path.iterdir() if "vectors" in path.name] == ["vectors.hdf5"]


def test_embed_options_reach_the_model(project, tmp_path):
    (tmp_path / "text.txt").write_text("w1 w2\nw3\n\n")
    options = ["--layers", "mix", "--mix_weights", "1", "2", "3", "--mix_gamma", "0.5", "--state", "carry"]
    options += ["--batch_size", "2", "--boundaries", "--precision", "bfloat16"]
    output = str(tmp_path / "out.hdf5")
    embed.main(["--model", str(project / "run"), "--input", str(tmp_path / "text.txt"), "--output", output, *options])
    expected = elmo_jax.load(project / "run").embed(
        ["w1 w2", "w3", ""],
        layers="mix",
        mix=elmo_jax.Mix([1, 2, 3], 0.5),
        state="carry",
        batch_size=2,
        boundaries=True,
        precision="bfloat16",
    )
    with h5py.File(output) as file:
        assert all((file[str(number)][()] == array).all() for number, array in enumerate(expected))


def test_vocab(project, tmp_path, capsys):
    output = tmp_path / "vocab.txt"
    tools.main(["vocab", str(project / "train.txt"), str(project / "heldout.txt"), "--output", str(output)])
    assert len(Vocabulary.load(output)) == 43
    assert "cover 100.00% of" in capsys.readouterr().out
    tools.main(["vocab", str(project / "*.txt"), "--output", str(output), "--max-size", "10"])
    assert len(Vocabulary.load(output)) == 10


@pytest.mark.parametrize("state", ["carry", "zero", "warm"])
def test_perplexity(project, capsys, state):
    arguments = ["perplexity", "--model", str(project / "run"), "--input", str(project / "heldout.txt")]
    tools.main([*arguments, "--state", state, "--batch_size", "8", "--window", "5"])
    words = capsys.readouterr().out.split()
    assert words[-1] == state
    folder = read_folder(project / "run", with_softmax=True)
    text = Corpus(sentences([str(project / "heldout.txt")], "TEXT"), folder.vocabulary)
    encode = word_encoder(text, folder.model)
    parameters = {"bilm": folder.parameters, "softmax": softmax_table.place(folder.softmax, 8)}
    starts = {"carry": None, "zero": zero_state(folder.model), "warm": start_state(*folder[:3], "warm")}
    evaluate = evaluator(folder.model)
    expected = {
        name: evaluate(parameters, LanguageModelStream(text, 8, 5, encode, devices=4, once=True), start).both
        for name, start in starts.items()
    }
    errors = {name: abs(float(words[1]) - value) for name, value in expected.items()}
    assert min(errors, key=errors.get) == state
    assert errors[state] < 1e-3
    measured = [line["heldout_perplexity"] for line in metrics(project / "run") if "heldout_perplexity" in line]
    assert abs(expected["carry"] / measured[-1] - 1) < 1e-5


def test_nearest(project, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("w1 w2 w3\nw4 w2 w3\nw7 w8 w2\n")
    output = str(tmp_path / "out.hdf5")
    embed.main(["--model", str(project / "run"), "--input", str(tmp_path / "text.txt"), "--output", output])
    capsys.readouterr()
    tools.main(["nearest", output, "--word", "w2", "--neighbours", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[::3] == ["w1 [w2] w3", "w4 [w2] w3", "w7 w8 [w2]"]
    assert lines[1].endswith("w4 [w2] w3")
    assert lines[4].endswith("w1 [w2] w3")
    for other in lines[2::3]:
        assert "[w2]" not in other


def test_bad_input_of_train(project, tmp_path, capsys):
    mine, new = project / "mine.py", tmp_path / "new"
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "vocab.txt").write_text("</S>\n<UNK>\nw1\n")
    (tmp_path / "file").write_text("")
    command = [mine, "--workdir", new]
    for options, message in (
        (["--data.train", tmp_path / "no.txt"], f"--data.train: there is no file {tmp_path / 'no.txt'}"),
        (["--data.train", tmp_path / "*.text"], f"--data.train: no file matches {tmp_path / '*.text'}"),
        (["--data.heldout", tmp_path / "no.txt"], "--data.heldout: there is no file"),
        (["--data.train", tmp_path / "empty.txt", "--data.vocab", project / "run/model/vocab.txt"], "has no sentences"),
        (["--data.train", tmp_path / "latin.txt"], "latin.txt, line 1, is not UTF-8"),
        (["--data.vocab", tmp_path / "vocab.txt"], "lacks <S>"),
        (["--data.vocab", tmp_path / "no.txt"], "cannot read the vocabulary file"),
        (["--train.negatives", "43"], "train.negatives is 43, the vocabulary has 43 words"),
        (["--train.dropout", "1"], "train.dropout is 1.0"),
        (["--workdir", tmp_path / "file" / "run"], "cannot write to"),
        (["--workdir", project], "holds files but no config.json"),
    ):
        fails(train.main, [*command, *options], message, capsys)
        assert not new.exists()
    fails(train.main, ["huge", "--workdir", new], "no config 'huge'", capsys)
    fails(train.main, ["small", "--workdir", new], "data.train is not given", capsys)


def test_a_workdir_whose_config_differs(project, capsys):
    before = {path: path.stat().st_mtime_ns for path in (project / "run").rglob("*")}
    command = [project / "mine.py", "--workdir", project / "run", "--train.window", "6", "--model.cell_dim", "12"]
    fails(train.main, command, "model.cell_dim is 12, was 11; train.window is 6, was 5", capsys)
    assert {path: path.stat().st_mtime_ns for path in (project / "run").rglob("*")} == before


def test_rows_that_devices_do_not_divide(project, capsys, monkeypatch):
    monkeypatch.setattr(pretraining.parallel, "global_device_count", lambda: 3)
    fails(
        train.main, [project / "mine.py", "--workdir", project / "run"], "8 rows, which cannot be divided by 3", capsys
    )


def test_unknown_and_ill_typed_fields_are_named(project, tmp_path, capsys):
    for option, value in (("--train.stepz", "3"), ("--train.steps", "many")):
        with pytest.raises(SystemExit) as end:
            train.main([str(project / "mine.py"), "--workdir", str(tmp_path / "new"), option, value])
        assert end.value.code == 2
        assert option in capsys.readouterr().err


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["tiny", "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for section in ("model", "data", "train"):
        for field in getattr(pretraining.Config(), section).__dataclass_fields__:
            assert f"--{section}.{field}" in shown
    assert "Rows per device" in shown


def test_bad_input_of_embed(project, tmp_path, capsys):
    model, text, output = tmp_path / "model", tmp_path / "text.txt", tmp_path / "out.hdf5"
    write_random_model(model, SMALL)
    text.write_text("some words\n")

    def embed_fails(message, model=model, input=text, output=output, options=()):
        fails(embed.main, ["--model", model, "--input", input, "--output", output, *options], message, capsys)
        assert not (tmp_path / "out.hdf5").exists()

    embed_fails("there is no file", input=tmp_path / "no.txt")
    embed_fails("cannot write", output=text / "out.hdf5")
    embed_fails("the output is -, but vectors are no text", output="-")
    embed_fails("no folder", model=tmp_path / "nothing")
    embed_fails("batch_size is 0", options=["--batch_size", "0"])
    embed_fails("go together", options=["--layers", "mix"])
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    embed_fails("latin.txt, line 2, is not UTF-8", input=tmp_path / "latin.txt")
    options = (model / "options.json").read_text()
    (model / "options.json").write_text(options.replace('"dim": 11', '"dim": 13'))
    embed_fails("weights.hdf5: it does not fit the model of its options.json: RNN_0/RNN")
    (model / "options.json").write_text(options.replace('"projection_dim": 7, ', ""))
    embed_fails("options.json describes no model: it lacks lstm.projection_dim")
    (model / "options.json").write_text(options[:-5])
    embed_fails("options.json is not JSON")
    (project / "run2").mkdir(exist_ok=True)
    (project / "run2" / "config.json").write_text("{}")
    embed_fails("has no model/ yet", model=project / "run2")


def test_an_output_that_was_there_survives_an_error(tmp_path, capsys):
    model = write_random_model(tmp_path / "model", SMALL)
    (tmp_path / "out.hdf5").write_bytes(b"precious")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    command = ["--model", model, "--input", tmp_path / "latin.txt", "--output", tmp_path / "out.hdf5"]
    fails(embed.main, command, "out.hdf5 (it is there and holds no vectors)", capsys)
    assert (tmp_path / "out.hdf5").read_bytes() == b"precious"
    (tmp_path / "out.hdf5").write_bytes(b"\x89HDF\r\n\x1a\nprecious")
    fails(embed.main, command, "is not UTF-8", capsys)
    assert (tmp_path / "out.hdf5").read_bytes() == b"\x89HDF\r\n\x1a\nprecious"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out.hdf5", "latin.txt"}


def test_bad_input_of_the_tools(project, tmp_path, capsys):
    model = write_random_model(tmp_path / "model", SMALL)
    heldout = project / "heldout.txt"
    fails(tools.main, ["perplexity", "--model", model, "--input", heldout], "has no softmax.hdf5", capsys)
    run = project / "run"
    fails(tools.main, ["perplexity", "--model", run, "--input", heldout, "--batch_size", "6"], "by 4 devices", capsys)
    fails(tools.main, ["nearest", tmp_path / "no.hdf5", "--word", "a"], "there is no file", capsys)
    fails(tools.main, ["vocab", tmp_path / "*.txt", "--output", tmp_path / "v.txt"], "no file matches", capsys)
    write_arrays(tmp_path / "vectors.hdf5", random_weights(SMALL))
    fails(tools.main, ["nearest", tmp_path / "vectors.hdf5", "--word", "a"], "not a file that embed wrote", capsys)


def test_the_scripts_as_processes(project, tmp_path):
    """Exit codes as the shell sees them; standard input."""
    environment = script_environment()
    command = [sys.executable, "embed.py", "--model", str(project / "run"), "--input", "-"]
    run = lambda *options, **more: subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, **more
    )
    done = run("--output", str(tmp_path / "out.hdf5"), input="w1 wü\n\n".encode())
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert [file[name].shape for name in ("0", "1")] == [(2, 14), (0, 14)]
    failed = run("--output", str(tmp_path / "out.hdf5"), input=b"w1\xff")
    assert failed.returncode == 2
    assert b"standard input, line 1, is not UTF-8" in failed.stderr
    assert b"Traceback" not in failed.stderr


ORDER = [
    "errors",
    "files",
    "arrays",
    "config",
    "vocabulary",
    "parquet_checks",
    "sources",
    "corpus",
    "streams",
    "products",
    "char_cnn",
    "lstm",
    "model",
    "hdf5",
    "mix",
    "pickles",
    "archives",
    "allennlp",
    "weights",
    "bundles",
    "manylangs",
    "folders",
    "convert",
    "published",
    "parallel",
    "compilation",
    "word_vectors",
    "batches",
    "engine",
    "elmo",
    "dump",
    "embeddings",
    "outputs",
    "dataset_column",
    "vectorizer",
    "losses",
    "softmax_table",
    "optimizers",
    "modules",
    "embedder",
    "training",
    "evaluation",
    "scores",
    "checkpoint",
    "workdir",
    "events",
    "curves",
    "lifecycle",
    "card",
    "pretraining",
    "restart",
    "tasks",  # a folder, whose files have an order of their own
    "pictures",
    "explore",
    "commands",
]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_structure():
    """Each file imports only from files above it; the text half knows no jax; pmap is in one file."""
    files = {path.stem: path for path in (ROOT / "elmo_jax").glob("*.py")}
    assert {*files, "tasks"} == {*ORDER, "__init__", "__main__"}
    for number, name in enumerate(ORDER):
        if name == "tasks":
            continue
        own = [module.split(".")[1] for module in imports(files[name]) if module.startswith("elmo_jax.")]
        assert set(own) <= set(ORDER[:number]), name
    for name in ORDER[: ORDER.index("streams") + 1]:
        assert not any(module.split(".")[0] in ("jax", "flax") for module in imports(files[name]))
    assert [name for name, path in files.items() if "jax.pmap" in path.read_text()] == ["parallel"]
    for name in ORDER[: ORDER.index("dump") + 1]:
        packages = {module.split(".")[0] for module in imports(files[name])}
        assert not packages & {"flax", "optax", "orbax"}, name
