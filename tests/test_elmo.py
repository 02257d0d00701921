"""load() and Elmo as users have them: what is accepted, what is refused, and how."""

import collections
import copy
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from conftest import ROOT, SENTENCES, TOLERANCE, script_environment
from test_engine import largest_error

import elmo_jax
import elmo_jax.elmo
from elmo_jax import Mix, engine
from elmo_jax.errors import InputError
from elmo_jax.vocabulary import Vocabulary


def test_layers(elmo):
    layers = elmo.embed(SENTENCES, layers="all")
    assert [array.shape for array in layers] == [(3, len(sentence), 14) for sentence in SENTENCES]
    assert {array.dtype for array in layers} == {np.dtype(np.float32)}
    assert elmo.dim == 14
    assert largest_error(elmo.embed(SENTENCES), [array.mean(0) for array in layers]) < 1e-6
    assert largest_error(elmo.embed(SENTENCES, layers="top"), [array[-1] for array in layers]) < 1e-6
    assert all((array[0, :, :7] == array[0, :, 7:]).all() for array in layers)
    weights = np.array([1.0, -2.0, 0.5])
    share = np.exp(weights) / np.exp(weights).sum()
    mixed = elmo.embed(SENTENCES, layers="mix", mix=Mix(weights, 1.7))
    assert largest_error(mixed, [1.7 * np.tensordot(share, array, 1) for array in layers]) < 1e-6


@pytest.mark.parametrize("boundaries", [False, True])
def test_mix_with_layer_norm(elmo, boundaries):
    sentences = [SENTENCES[0], SENTENCES[-1]]
    layers = elmo.embed(sentences, layers="all", boundaries=boundaries)
    normal = [(a - a.mean((1, 2), keepdims=True)) / a.std((1, 2), keepdims=True) for a in layers]
    found = elmo.embed(sentences, layers="mix", mix=Mix([0, 0, 0], layer_norm=True), boundaries=boundaries)
    assert largest_error(found, [array.mean(0) for array in normal]) < TOLERANCE


def test_strings_are_split_at_spaces(elmo):
    assert largest_error(elmo.embed(["the cat  sat"]), elmo.embed([["the", "cat", "sat"]])) == 0


def test_no_sentences(elmo):
    assert elmo.embed([]) == []


def test_mix_takes_weights_alone(elmo):
    expected = elmo.embed(SENTENCES, layers="mix", mix=Mix([1.0, -2.0, 0.5]))
    for weights in ([1.0, -2.0, 0.5], (1.0, -2.0, 0.5), np.array([1.0, -2.0, 0.5])):
        assert largest_error(elmo.embed(SENTENCES, layers="mix", mix=weights), expected) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": "topmost"}, "layers is 'topmost'; it must be one of 'average', 'top', 'all', 'mix'"),
        ({"layers": ["top"]}, r"layers is \['top'\]"),
        ({"state": "hot"}, "state is 'hot'"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": True}, "batch_size is True; it must be a whole number from 1 up"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"batch_size": "8"}, "batch_size is '8'"),
        ({"boundaries": "no"}, "boundaries is 'no'; it must be True or False"),
        ({"boundaries": None}, "boundaries is None"),
        ({"layers": "mix"}, "go together"),
        ({"mix": [1.0, 2.0, 3.0]}, "go together"),
        ({"layers": "mix", "mix": Mix([1, 2])}, r"weights of shape \(2,\).* needs 3 weights"),
        ({"layers": "mix", "mix": Mix(3.0)}, r"weights of shape \(\)"),
        ({"layers": "mix", "mix": Mix("abc")}, "weights of mix: 'abc'; only finite numbers"),
        ({"layers": "mix", "mix": Mix([1, [2], 3])}, "only finite numbers"),
        ({"layers": "mix", "mix": [1, float("nan"), 2]}, "weights of mix: .*nan.*; only finite numbers"),
        ({"layers": "mix", "mix": Mix([1, 2, float("inf")])}, "weights of mix: .*inf"),
        ({"layers": "mix", "mix": Mix([1, 2, 3], float("nan"))}, "gamma of mix: nan"),
        ({"layers": "mix", "mix": Mix([1, 2, 3], 1e39)}, "gamma of mix: 1e.39"),
        ({"layers": "mix", "mix": Mix([1, 2, 3], "1")}, "gamma of mix: '1'"),
        ({"layers": "mix", "mix": Mix([1, 2, 3], [1.0])}, r"gamma of shape \(1,\)"),
        ({"layers": "mix", "mix": Mix([1, 2, 3], layer_norm="yes")}, "layer_norm of mix is 'yes'"),
        ({"layers": "mix", "mix": list(range(100_000))}, r"weights of shape \(100000,\)"),
    ],
)
def test_bad_arguments(elmo, arguments, message):
    """Refused at once, before a sentence is read, in a message of bounded length."""
    with pytest.raises(InputError, match=message) as error:
        elmo.embed_iter(SENTENCES, **arguments)
    assert len(str(error.value)) < 300


def test_numbers_of_numpy(elmo):
    found = elmo.embed(SENTENCES, batch_size=np.int64(2), boundaries=np.bool_(True))
    assert largest_error(found, elmo.embed(SENTENCES, batch_size=2, boundaries=True)) == 0


class Table:
    """What data frames of any library have in common."""

    def __init__(self, **columns):
        self.values, self.columns = columns, list(columns)

    def __iter__(self):  # as pandas
        return iter(self.columns)


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ("a str", r"a str, 'a str'.*embed\(\[text\]\)"),
        (None, r"given None: give a list of sentences; embed\("),
        (3, "given a int, 3"),
        (b"it rained", "a bytes, b'it rained'"),
        ({"it": "rained"}, r"embed\(list\(sentences.values\(\)\)\)"),
        (collections.OrderedDict(a="b"), "a OrderedDict"),
        ({"it rained", "all day"}, r"a set has no order; embed\(sorted\(sentences\)\)"),
        (Table(text=["it rained"], label=[1]), r'a Table: .*embed\(list\(table\["NAME OF THE COLUMN OF TEXT"\]\)\)'),
        ([{"text": "it rained"}], r'a dict.*embed\(\[row\["NAME OF THE FIELD OF TEXT"\] for row in rows\]\)'),
        ([["a", 3]], "got a list, .*3"),
        ([None], "got None"),
        ([b"it rained"], "got a bytes"),
        ([{"it", "rained"}], "got a set"),
        (["it rained", float("nan")], "got a float, nan"),
        ([["w"] * 100_000 + [3]], "got a list"),
    ],
)
def test_bad_sentences(elmo, sentences, message):
    with pytest.raises(InputError, match=message) as error:
        elmo.embed(sentences)
    assert len(str(error.value)) < 300
    if isinstance(sentences, (list, str)):
        return
    with pytest.raises(InputError, match="embed_iter"):
        elmo.embed_iter(sentences)


def test_good_sentences(elmo):
    """Columns of data frames (here: things with an index that iterate over str), arrays, tuples, generators, lines."""

    class Column(list):
        index, dtype, name = range(2), "object", "text"

    texts = ["it rained", "all the day"]
    expected = elmo.embed([["it", "rained"], ["all", "the", "day"]])
    for sentences in (
        texts,
        Column(texts),
        np.array(texts),
        np.array(texts, object),
        (tuple(text.split()) for text in texts),
        [np.array(text.split()) for text in texts],
        dict.fromkeys(texts).keys(),
    ):
        assert largest_error(elmo.embed(sentences), expected) == 0
    assert largest_error(list(elmo.embed_iter(f"{text}\n" for text in texts)), expected) == 0


def test_words_of_one_sentence_bring_a_warning(elmo, monkeypatch):
    """One a process, where all sentences are a str of one word and there are several."""
    monkeypatch.setattr(elmo_jax.elmo, "_warned", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for right in (["The"], [["The"], ["river"]], ["The river", "."], ["The", ""], [], ["The", ["river"]]):
            elmo.embed(right)
    with pytest.warns(
        UserWarning, match=r"all 3 sentences are single words.*embed\(\[\[\"The\", \"river\", \".\"\]\]\)"
    ):
        found = elmo.embed(["The", "river", "."])
    assert largest_error(found, elmo.embed([["The"], ["river"], ["."]])) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elmo.embed(["The", "river", "."])


def read_until_first(elmo, length, **options):
    """How many sentences of so many words a stream has given when the first vectors come."""
    given = 0

    def stream():
        nonlocal given
        for _ in range(50_000):
            given += 1
            yield ["word"] * length

    next(elmo.embed_iter(stream(), **options))
    return given


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("length", [1, 7, 100])
def test_a_live_stream_is_read_little_ahead(elmo, batch_size, length):
    """No more than 128 tokens of each row, and a sentence, beyond the first sentence, as the documentation says."""
    assert "at most 128 tokens, and one sentence, beyond" in " ".join(elmo.embed_iter.__doc__.split())
    read_by_a_row = read_until_first(elmo, length, batch_size=batch_size) / batch_size * length
    assert read_by_a_row - length <= 128 + length


def test_a_stream_without_batch_size_is_read_far_ahead(elmo):
    """As documented: 32,768 tokens for each of the four devices."""
    assert engine.LOOK_AHEAD * engine.form().rows[-1] * engine.WINDOW == 32_768
    assert "32,768 tokens for each device" in " ".join(elmo.embed_iter.__doc__.split())
    assert 4 * 32_768 < read_until_first(elmo, 10) * 10 < 2 * 4 * 32_768


def test_load_takes_a_folder_or_files(folder, tmp_path, monkeypatch):
    options, weights = folder / "options.json", folder / "weights.hdf5"
    Vocabulary(["<S>", "</S>", "<UNK>"]).save(tmp_path / "vocab.txt")
    monkeypatch.chdir(folder.parent)
    expected = elmo_jax.load(str(folder)).embed(SENTENCES[:1])
    for elmo in (
        elmo_jax.load(folder.name),
        elmo_jax.load(options, weights),
        elmo_jax.load(str(options), str(weights), tmp_path / "vocab.txt"),
        elmo_jax.load(options=options, weights=weights, vocab=str(tmp_path / "vocab.txt")),
        elmo_jax.load(options, weights=weights),
    ):
        assert largest_error(elmo.embed(SENTENCES[:1]), expected) == 0


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        (
            (),
            {},
            r"was given nothing; it takes a name or folder, load\(MODEL\), or two files, load\(OPTIONS, WEIGHTS\)",
        ),
        ((), {"options": "o.json"}, "was given options; it takes"),
        ((), {"weights": "w.hdf5"}, "was given weights; it takes"),
        (("folder",), {"options": "o.json", "weights": "w.hdf5"}, "was given model, options, weights; it takes"),
        (("folder",), {"vocab": "v.txt"}, "was given model, vocab; it takes"),
        (("https://example.org/w.hdf5",), {}, "https://example.org/w.hdf5 is a URL that .*; download the file"),
        (("o.json", "HTTP://example.org/weights.hdf5"), {}, "download the file"),
        ((3,), {}, "load.. takes paths; model is 3"),
        (("",), {}, "load.. takes paths; model is ''"),
        ((["o.json", "w.hdf5"],), {}, r"load.. takes paths; model is \['o.json', 'w.hdf5'\]"),
        (("nowhere/at/all",), {}, "nowhere/at/all"),
        (("nowhere.json", "nowhere.hdf5"), {}, "nowhere.json"),
    ],
)
def test_bad_arguments_of_load(arguments, named, message):
    with pytest.raises(InputError, match=message):
        elmo_jax.load(*arguments, **named)


def test_a_model_tells_what_it_is(elmo, folder):
    assert repr(elmo) == f"Elmo(dim=14, layers=2, model='{folder}')"


def test_devices_do_not_matter(elmo, folder):
    """On one, on some, on all of them: the same vectors; what it holds lies there alone; copies lie there, too."""
    every, expected = jax.local_devices(), elmo.embed(SENTENCES)
    for devices, chosen in ((np.int64(1), every[:1]), ((every[3], every[1]), [every[3], every[1]])):
        one = elmo_jax.load(folder, devices=devices)
        for some in (one, copy.copy(one), pickle.loads(pickle.dumps(one))):
            assert largest_error(some.embed(SENTENCES), expected) < 1e-6
            assert some._engine.words.table.devices() == set(chosen)
    assert elmo._engine.words.table.devices() == set(every)


def test_models_on_different_devices_at_once(folder):
    """A thread and a device each; every text has words of its own, so all spell and read at the same time."""
    texts = [[[f"{name}{number}", "and", f"{number}"] for number in range(90)] for name in "ab"]
    models = [elmo_jax.load(folder, devices=[device]) for device in jax.local_devices()[:2]]
    expected = [models[0].embed(text) for text in texts]
    models = list(map(copy.copy, models))  # which know no words yet
    with ThreadPoolExecutor(2) as threads:
        for _ in range(3):
            found = threads.map(lambda model, text: model.embed(text), models, texts)
            assert all(largest_error(*pair) == 0 for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (0, r"devices is 0; give some of jax.local_devices\(\), or a number of them from 1 to \d"),
        (1000, "devices is 1000; give some of"),
        (True, "devices is True"),
        (1.0, "devices is 1.0"),
        ("cpu", "devices is 'cpu'"),
        ([], r"devices is \[\]; .* each once"),
        ([0, 1], r"devices is \[0, 1\]"),
        (jax.local_devices()[0], r"devices is CpuDevice\(id=0\)"),
        (jax.local_devices()[:1] * 2, "each once, all of one platform"),
    ],
)
def test_bad_devices(folder, devices, message):
    with pytest.raises(InputError, match=message):
        elmo_jax.load(folder, devices=devices)


def test_a_pickled_model_whose_devices_are_not_there(folder, monkeypatch):
    pickled = pickle.dumps(elmo_jax.load(folder, devices=jax.local_devices()[2:4]))
    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices()[:3])
    with pytest.raises(InputError, match="loaded on the devices cpu 2, cpu 3, of which this process lacks some"):
        pickle.loads(pickled)


def test_pickled_as_what_it_was_loaded_from(elmo, folder, monkeypatch):
    """The paths, whole ones; copies share what was read."""
    expected = elmo.embed(SENTENCES)
    pickled = pickle.dumps(elmo)
    assert len(pickled) < 1000
    monkeypatch.chdir(folder.parent)
    relative = pickle.dumps(elmo_jax.load(folder.name, compilation_cache=False))
    monkeypatch.chdir(ROOT)
    files = elmo_jax.load(folder / "options.json", weights=folder / "weights.hdf5")
    for one in (pickle.loads(pickled), pickle.loads(relative), pickle.loads(pickle.dumps(files))):
        assert largest_error(one.embed(SENTENCES), expected) == 0
    assert not pickle.loads(relative)._compilation_cache
    for one in (copy.copy(elmo), copy.deepcopy(elmo), copy.deepcopy({"model": elmo})["model"]):
        assert one is not elmo
        assert one._folder is elmo._folder
        assert repr(one) == repr(elmo)
        assert largest_error(one.embed(SENTENCES), expected) == 0


SPAWNING = """
import concurrent.futures, multiprocessing, sys
import elmo_jax

def main():
    elmo = elmo_jax.load(sys.argv[1])
    texts = [["it rained"], ["all the day", "and night"]]
    expected = [elmo.embed(text, batch_size=1) for text in texts]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn) as pool:
        found = [pool.submit(elmo.embed, text, batch_size=1) for text in texts]  # pickles the model with its method
        found = [future.result(timeout=120) for future in found]
    for one, other in zip(found, expected, strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    print("equal")

if __name__ == "__main__":
    main()
"""

FORKING = """
import os, sys
import elmo_jax
elmo = elmo_jax.load(sys.argv[1])
begun = elmo.embed_iter([["it", "rained"] * 50] * 9, batch_size=1)
next(begun)
attempts = (lambda: elmo.embed(["it rained"]), lambda: next(begun), lambda: elmo_jax.load(sys.argv[1]))
child = os.fork()
if not child:
    for attempt in attempts:
        try:
            attempt()
        except elmo_jax.InputError as error:
            print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(len(elmo.embed(["it rained"])), flush=True)
"""


def script(source, folder, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(source)
    environment = script_environment() | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, path, folder], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )


@pytest.mark.slow
def test_spawned_processes_share_a_model(folder, tmp_path):
    done = script(SPAWNING, folder, tmp_path)
    assert done.stdout == "equal\n", done.stderr


def test_a_fork_is_told_at_once(folder, tmp_path):
    done = script(FORKING, folder, tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert all("fork" in line and "spawn" in line for line in lines[:3])
    assert lines[3] == "1"
