import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib

import h5py
import numpy as np
import pytest
from conftest import ROOT, SMALL, fails, script_environment, write_random_model

import elmo_jax
from elmo_jax import commands, outputs, read_embeddings
from elmo_jax.arrays import DESCRIPTION
from elmo_jax.dump import write_hdf5
from elmo_jax.embeddings import MANIFEST, OFFSETS
from elmo_jax.errors import InputError
from elmo_jax.outputs import Shard, Target, Writer, in_bytes
from elmo_jax.sources import read_input

GENERATOR = np.random.default_rng(0)
WORDS = ["a/b", "ünïcode", "🐈", '"quoted"', "\\", "$", *(f"w{number}" for number in range(30))]
TEXT = [" ".join(GENERATOR.choice(WORDS, GENERATOR.integers(0, 12))) for _ in range(60)]
TEXT[7] = TEXT[3] = "the same sentence"
TEXT[11] = TEXT[40] = ""
OUTPUTS = ["vectors", "vectors.hdf5", "vectors.parquet"]
KILLS = 20


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A block has 50 tokens and ends of sentences; some are appended at a time, some read back."""
    monkeypatch.setattr(outputs, "BLOCK_WINDOWS", 0)
    monkeypatch.setattr(outputs, "SMALLEST_BLOCK", 50)
    monkeypatch.setattr(outputs, "APPENDED", 20)
    monkeypatch.setattr(outputs, "READ_BACK", 7)
    monkeypatch.setattr(outputs, "GROUP_SENTENCES", 9)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    return path


def writer(elmo, text, output, options=(), **more):
    shard = more.get("shard")
    target = Target.of(output, shard)
    target.check()
    return Writer(elmo, lambda **where: read_input([str(text)], **where), target, dict(options), **more)


def content(path):
    """Every byte of a file or folder."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {file.relative_to(path.parent): file.read_bytes() for file in files if file.is_file()}


@pytest.fixture(scope="module")
def expected(elmo):
    return lambda **options: elmo.embed(TEXT, **options)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": "all", "boundaries": True},
        {"pool": "mean", "state": "carry"},
        {"layers": "all", "pool": "max", "batch_size": 3},
        {"layers": "mix", "mix": elmo_jax.Mix([1, 2, 3], 0.5, True)},
    ],
)
def test_every_format_gives_the_vectors_back(elmo, text, tmp_path, expected, name, options):
    for dtype in ("float32", "float16"):
        print(writer(elmo, text, tmp_path / name, options, dtype=dtype).write())
        with read_embeddings(tmp_path / name) as found:
            assert len(found) == len(TEXT)
            for number, (vectors, own) in enumerate(zip(found, expected(**options), strict=True)):
                assert vectors.dtype == dtype
                assert vectors.shape == own.shape
                assert np.allclose(vectors, own, atol=1e-6 if dtype == "float32" else 2e-3)
                assert found.tokens(number) == TEXT[number].split()
            assert (found[-1] == found[len(TEXT) - 1]).all()
            with pytest.raises(IndexError, match=f"no sentence {len(TEXT)} among {len(TEXT)}, the first of which is 0"):
                found[len(TEXT)]
            assert repr(found).endswith(f"({len(TEXT)} sentences, '{tmp_path / name}')")
            with pytest.raises(TypeError, match="one sentence at a time"):
                found[2:3]
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", name}


@pytest.mark.parametrize("suffix", ["", ".hdf5", ".parquet"])
def test_shards_are_the_whole(elmo, text, tmp_path, suffix):
    """Bit for bit, in order, from text that is read once too; one that lacks is named."""
    writer(elmo, text, tmp_path / f"whole{suffix}").write()
    folder = tmp_path / f"parts{suffix}"
    for number in (2, 0, 1):
        if number == 1:
            with pytest.raises(InputError, match=r"lacks shard-1-of-3.* --shard 1/3"):
                read_embeddings(folder)
        writer(elmo, text, folder, shard=Shard(number, 3)).write()
    with read_embeddings(folder) as parts, read_embeddings(tmp_path / f"whole{suffix}") as whole:
        assert min(map(len, parts.shards)) > 5
        assert len(parts) == len(whole)
        for number, (one, other) in enumerate(zip(parts, whole, strict=True)):
            assert one.dtype == other.dtype
            assert (one == other).all()
            assert parts.tokens(number) == whole.tokens(number)
    text.write_text("another text\n")
    with pytest.raises(InputError, match="is of other shards"):
        writer(elmo, text, folder, shard=Shard(0, 3)).write()


def test_a_folder_of_parquet_shards_is_a_dataset(elmo, text, tmp_path):
    """Of Arrow, and of what builds on it; the columns are what they are said to be."""
    dataset = pytest.importorskip("pyarrow.dataset")
    for number in range(2):
        writer(elmo, text, tmp_path / "v.parquet", {"pool": "max"}, shard=Shard(number, 2), dtype="float16").write()
    table = dataset.dataset(tmp_path / "v.parquet", format="parquet").to_table()
    assert str(table.schema.field("vectors").type) == "fixed_size_list<element: halffloat>[14]"
    assert str(table.schema.field("tokens").type) == "list<element: string>"
    assert len(table) == len(TEXT)


class Stopped(Exception):
    pass


def stop_after(monkeypatch, saves):
    """Whatever saves stops after so many."""
    done, save = [], outputs.GrowingArrays.save

    def counted(growing, about):
        save(growing, about)
        done.append(about)
        if len(done) > saves:
            raise Stopped

    monkeypatch.setattr(outputs.GrowingArrays, "save", counted)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("shard", [None, Shard(1, 2)])
def test_what_is_stopped_goes_on(elmo, text, tmp_path, monkeypatch, name, shard):
    path = tmp_path / name
    writer(elmo, text, path, shard=shard).write()
    whole = content(path)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    runs = 0
    while True:
        with monkeypatch.context() as patched:
            stop_after(patched, 1 if runs else 3)
            try:
                assert writer(elmo, text, path, shard=shard).write().startswith("wrote")
                break
            except Stopped:
                runs += 1
                (partial,) = tmp_path.rglob("*.partial")
                with (partial / "vectors").open("ab") as file:  # what had not been saved
                    file.write(b"rest")
    assert runs >= 3
    assert content(path) == whole
    assert "is there and whole" in writer(elmo, text, path, shard=shard).write()
    assert content(path) == whole


def test_a_carried_state_begins_again(elmo, text, tmp_path, monkeypatch, capsys, expected):
    with monkeypatch.context() as patched:
        patched.setattr(outputs, "write_hdf5", lambda *_: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            writer(elmo, text, tmp_path / "v.h5", {"state": "carry"}).write()
    writer(elmo, text, tmp_path / "v.h5", {"state": "carry"}).write()  # all was saved
    with monkeypatch.context() as patched:
        stop_after(patched, 0)
        with pytest.raises(Stopped):
            writer(elmo, text, tmp_path / "v", {"state": "carry"}).write()
    writer(elmo, text, tmp_path / "v", {"state": "carry"}).write()
    for name in ("v", "v.h5"):
        assert all(
            (one == other).all()
            for one, other in zip(read_embeddings(tmp_path / name), expected(state="carry"), strict=True)
        )
    with pytest.raises(InputError, match=r"carry .* exclude each other"):
        writer(elmo, text, tmp_path / "w", {"state": "carry"}, shard=Shard(0, 2))


def test_other_work_is_not_gone_on_with(elmo, text, tmp_path, monkeypatch, folder):
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(Stopped):
            writer(elmo, text, tmp_path / "v").write()
    before = content(tmp_path / "v.partial")
    other = elmo_jax.load(write_random_model(tmp_path / "other", SMALL, seed=5))
    for changed, message in (
        (lambda: writer(other, text, tmp_path / "v"), "differs: model"),
        (lambda: writer(elmo, text, tmp_path / "v", {"layers": "top"}), "differs: layers"),
        (lambda: writer(elmo, text, tmp_path / "v", {"pool": "mean"}), "differs: pool"),
        (lambda: writer(elmo, text, tmp_path / "v", dtype="float16"), "differs: dtype"),
    ):
        with pytest.raises(InputError, match=message) as error:
            changed().write()
        assert f"remove the folder {tmp_path / 'v.partial'}" in str(error.value)
    text.write_text("changed\n" + text.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match="differs: text"):
        writer(elmo, text, tmp_path / "v").write()
    assert content(tmp_path / "v.partial") == before
    for damaged in ("{", "[" * 100_000):
        (tmp_path / "v.partial" / DESCRIPTION).write_text(damaged)
        with pytest.raises(InputError, match="cannot be read; to begin again remove"):
            writer(elmo, text, tmp_path / "v").write()
    (tmp_path / "w.partial").mkdir()
    (tmp_path / "w.partial" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="holds something else"):
        writer(elmo, text, tmp_path / "w").write()
    with writer(elmo, text, tmp_path / "u")._locked(), pytest.raises(InputError, match="another process is writing"):
        writer(elmo, text, tmp_path / "u").write()


def test_text_that_is_read_once_is_compared(elmo, text, tmp_path, monkeypatch, expected):
    """As standard input is: it has no versions."""
    once = lambda lines: monkeypatch.setattr(outputs, "_of_text", lambda _: None) or text.write_text("\n".join(lines))
    once(TEXT)
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        with pytest.raises(Stopped):
            writer(elmo, text, tmp_path / "v").write()
    for changed in (["x", *TEXT[1:]], TEXT[:2]):
        once(changed)
        with pytest.raises(InputError, match=r"does not begin with the .* sentences that"):
            writer(elmo, text, tmp_path / "v").write()
    once([*TEXT, "and more"])  # what comes after may be new
    writer(elmo, text, tmp_path / "v").write()
    found = read_embeddings(tmp_path / "v")
    assert len(found) == len(TEXT) + 1
    assert all(np.allclose(found[n], own, atol=1e-6) for n, own in enumerate(expected()))


def test_sizes_are_foreseen(elmo, text, tmp_path, monkeypatch, capsys):
    """Within a fifth, where vectors outweigh what HDF5 and Parquet note; too small a disk is refused before work."""
    long = tmp_path / "long.txt"
    long.write_text("\n".join(f"some words of line {number} " * 10 for number in range(20)))
    for name in OUTPUTS:
        for more in ({}, {"dtype": "float16"}):
            made = writer(elmo, long, tmp_path / name, {"layers": "all"}, **more)
            flat, output = made.sizes(made._count())
            made.write()
            taken = sum(map(len, content(tmp_path / name).values()))
            assert abs(taken - (output or flat)) < 0.2 * taken, name
            assert f"will take about {in_bytes(output or flat)}" in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**4))
    with pytest.raises(InputError, match=r"10 kB free, and .* are needed; make room, or write less"):
        writer(elmo, text, tmp_path / "new.hdf5").write()
    assert not list(tmp_path.glob("new*"))
    assert [in_bytes(size) for size in (0, 999, 1000, 1_234_567, 5.5e9, 7e12)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "1.2 MB",
        "5.5 GB",
        "7.0 TB",
    ]


def test_a_full_disk_loses_nothing(elmo, text, tmp_path, monkeypatch):
    writer(elmo, text, tmp_path / "whole").write()
    append, appended = outputs.GrowingArrays.append, []

    def full(growing, more):
        appended.append(more)
        if len(appended) == 12:
            raise outputs.Unwritable from OSError(28, "No space left on device")
        append(growing, more)

    with monkeypatch.context() as patched:
        patched.setattr(outputs.GrowingArrays, "append", full)
        with pytest.raises(InputError, match=r"No space left.* what is done stays in .*v.partial"):
            writer(elmo, text, tmp_path / "v").write()
    writer(elmo, text, tmp_path / "v").write()
    assert [*content(tmp_path / "v").values()] == [*content(tmp_path / "whole").values()]


def test_vectors_that_float16_cannot_hold(elmo, text, tmp_path):
    mix = elmo_jax.Mix([1, 2, 3], 1e7)
    with pytest.raises(InputError, match="float16 cannot hold"):
        writer(elmo, text, tmp_path / "v", {"layers": "mix", "mix": mix}, dtype="float16").write()
    assert not list(tmp_path.glob("v*"))


def test_bad_options(elmo, folder, text, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.tex").write_text("")
    for output, options, message in (
        ("v.txt", [], "ends with .txt; give a name that ends with .hdf5 or .h5, with .parquet, or with no suffix"),
        ("v", ["--compression", "gzip"], "--compression is for .hdf5 and .parquet"),
        ("v.hdf5", ["--shard", "2/2"], "shard is '2/2'; give I/N"),
        ("v.hdf5", ["--shard", "x"], "shard is 'x'; give I/N"),
        ("v.hdf5", ["--pool", "mean", "--boundaries"], "exclude each other"),
        ("thesis", [], "it is there and holds no vectors"),
        ("text.txt/v", ["--shard", "0/2"], "cannot write"),
        ("gs://bucket/v", [], "copy them afterwards"),
    ):
        path = output if "://" in output else tmp_path / output
        fails(commands.main, ["embed", "--model", folder, "--input", text, "--output", path, *options], message, capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "thesis"}


def test_a_file_that_is_left_open(elmo, text, tmp_path):
    """At the end of the process it is closed without a word."""
    path = tmp_path / "v.hdf5"
    writer(elmo, text, path).write()
    program = f"from elmo_jax.embeddings import read_embeddings\nv = read_embeddings({str(path)!r})\nprint(v[0].shape)"
    done = subprocess.run([sys.executable, "-c", program], env=script_environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{elmo.embed(TEXT[:1])[0].shape}\n", "")


def test_a_shard_without_a_block(elmo, text, tmp_path, capsys):
    last = Shard(999, 1000)
    writer(elmo, text, tmp_path / "parts", shard=last).write()
    assert (
        "shards take turns at blocks of 50 tokens and ends of sentences; this one has none" in capsys.readouterr().out
    )


def test_an_old_output_is_replaced(elmo, text, tmp_path, capsys):
    for name in OUTPUTS:
        writer(elmo, text, tmp_path / name).write()
        assert "holds other vectors" not in capsys.readouterr().out
        writer(elmo, text, tmp_path / name, {"layers": "top"}).write()
        assert f"{tmp_path / name} holds other vectors, which will be replaced" in capsys.readouterr().out
        assert np.allclose(read_embeddings(tmp_path / name)[0], elmo.embed(TEXT[:1], layers="top")[0], atol=1e-6)
    (tmp_path / "empty").mkdir()
    writer(elmo, text, tmp_path / "empty").write()
    (tmp_path / "none.txt").write_text("")
    for name in OUTPUTS:
        writer(elmo, tmp_path / "none.txt", tmp_path / f"none-{name}").write()
        assert len(read_embeddings(tmp_path / f"none-{name}")) == 0


def test_compressed(elmo, text, tmp_path):
    """Read by h5py as ever, by this project without trust: what inflates to more than is declared is refused."""
    writer(elmo, text, tmp_path / "v.h5", compression="gzip").write()
    writer(elmo, text, tmp_path / "v").write()
    plain, found = read_embeddings(tmp_path / "v"), read_embeddings(tmp_path / "v.h5")
    with h5py.File(tmp_path / "v.h5") as file:
        for number, vectors in enumerate(plain):
            assert (file[str(number)][()] == vectors).all()
            assert (found[number] == vectors).all()
        assert file["0"].compression == "gzip"
    found.close()
    for change, message in (
        (lambda data: zlib.compress(bytes(10**6)), "does not hold the bytes that it declares"),
        (lambda data: zlib.compress(bytes(8)), "does not hold the bytes that it declares"),
        (lambda data: data[:-9], "does not hold the bytes that it declares|is damaged"),
        (lambda data: b"no gzip", "is damaged"),
    ):
        with h5py.File(tmp_path / "v.h5", "r+") as file:
            dataset = file["0"].id
            good = dataset.read_direct_chunk((0, 0))[1]
            dataset.write_direct_chunk((0, 0), change(good))
        with pytest.raises(InputError, match=message), read_embeddings(tmp_path / "v.h5") as found:
            found[0]
        with h5py.File(tmp_path / "v.h5", "r+") as file:
            file["0"].id.write_direct_chunk((0, 0), good)
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("0", (10**6, 10**5), "f4", chunks=(10**3, 10**5), compression="gzip")
        file.create_dataset("1", data=np.ones((3, 4), np.float32), compression="lzf")
    with read_embeddings(tmp_path / "bomb.h5") as found:
        with pytest.raises(InputError, match="was never written whole"):
            found[0]
        with pytest.raises(InputError, match="filtered, and not by gzip alone"):
            found[1]


def read_as_allennlp(path, sentence, number):
    """What AllenNLP's users of `allennlp elmo` do: by the line's number, or by the text of the sentence."""
    with h5py.File(path, "r") as file:
        index = json.loads(file.get("sentence_to_index")[0])
        return file.get(index[sentence])[...], file[str(number)][()]


def read_as_bilm_tf(path, number):
    """What bilm-tf's README does with `dump_bilm_embeddings`."""
    with h5py.File(path, "r") as file:
        return file[f"{number}"][...]


def test_readers_of_the_originals(elmo, text, tmp_path, expected):
    """Duplicates (the index has the last, the vectors are the same), blank lines, `/` in tokens."""
    writer(elmo, text, tmp_path / "v.hdf5", {"layers": "all"}).write()
    with h5py.File(tmp_path / "v.hdf5", "r") as file:
        assert set(file) == {*map(str, range(len(TEXT))), "sentence_to_index"}
        index = json.loads(file["sentence_to_index"][0])
        assert index == {" ".join(line.split()): str(number) for number, line in enumerate(TEXT)}
        assert all(isinstance(file[name], h5py.Dataset) and "/" not in name for name in file)
    assert any("a/b" in line for line in TEXT)
    for number, own in enumerate(expected(layers="all")):
        by_text, by_number = read_as_allennlp(tmp_path / "v.hdf5", " ".join(TEXT[number].split()), number)
        assert np.allclose(by_text, own, atol=1e-6)
        assert np.allclose(by_number, own, atol=1e-6)
        assert by_number.dtype == np.float32
        assert np.allclose(read_as_bilm_tf(tmp_path / "v.hdf5", number), own, atol=1e-6)
        assert by_number.shape == (3, len(TEXT[number].split()), elmo.dim)


def test_dumps_of_others(tmp_path):
    """AllenNLP keeps the last of equal sentences in its index, bilm-tf writes none."""
    with h5py.File(tmp_path / "v.hdf5", "w") as file:
        for number in range(2):
            file[str(number)] = np.full((2, 5), number, np.float32)
        file.create_dataset("sentence_to_index", (1,), dtype=h5py.string_dtype())[0] = json.dumps({"a cat": "1"})
    with read_embeddings(tmp_path / "v.hdf5") as found:
        assert [array[0, 0] for array in found] == [0, 1]
        assert found.tokens(1) == ["a", "cat"]
        with pytest.raises(InputError, match="has no sentence 0"):
            found.tokens(0)
    with h5py.File(tmp_path / "v.hdf5", "r+") as file:
        del file["sentence_to_index"], file["0"]
    with read_embeddings(tmp_path / "v.hdf5") as found:
        assert len(found) == 1
        with pytest.raises(InputError, match=r"v.hdf5: it has no dataset 0"):
            found[0]
        with pytest.raises(InputError, match="has no sentence_to_index"):
            found.tokens(0)


def changed(**values):
    return lambda description: description | values


def in_key(**values):
    return lambda description: description | {"key": description["key"] | values}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda description: [], "holds no vectors"),
        (changed(format=7), "another version"),
        (changed(about={"whole": False}), "not finished"),
        (changed(arrays={}), "holds no vectors"),
        (changed(key=[]), "not one of vectors"),
        (in_key(dtype="float64"), "not one of vectors"),
        (in_key(dtype=["float32"]), "not one of vectors"),
        (in_key(width=-14), "not one of vectors"),
        (in_key(width=2**40), "not one of vectors"),
        (in_key(width=13), "holds no vectors"),
        (in_key(dtype="float16"), "vectors has not the size"),
    ],
)
def test_crafted_folders(elmo, text, tmp_path, change, message):
    writer(elmo, text, tmp_path / "v").write()
    file = tmp_path / "v" / DESCRIPTION
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path / "v")


def test_crafted_arrays(elmo, text, tmp_path):
    writer(elmo, text, tmp_path / "v").write()
    for name, value in (("offsets", 2**62), ("offsets", -5), ("text_offsets", 2**40), ("text", 7)):
        dtype = OFFSETS[name]
        before = (tmp_path / "v" / name).read_bytes()
        array = np.frombuffer(before, dtype).copy()
        array[1] = value
        (tmp_path / "v" / name).write_bytes(array.tobytes())
        found = read_embeddings(tmp_path / "v")
        with pytest.raises(InputError, match="sentence 0"):
            found.tokens(0) if "text" in name else found[0]
        (tmp_path / "v" / name).write_bytes(before)
    (tmp_path / "v" / "text").write_bytes(b"[")
    with pytest.raises(InputError, match="text has not the size"):
        read_embeddings(tmp_path / "v")


def test_what_is_no_output(tmp_path, elmo, text):
    (tmp_path / "file").write_text("text")
    for name in ("mine.hdf5", "mine.parquet", "mine.H5"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(InputError, match=rf"{name} \(it is there and holds no vectors\)"):
            Target.of(tmp_path / name).check()
        assert (tmp_path / name).read_text() == "precious"
    (tmp_path / "v.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n and so on")
    (tmp_path / "v.parquet").write_bytes(b"PAR1 and so on")
    (tmp_path / "parts").mkdir()
    for name, message in (
        ("nothing", "there is no file or folder"),
        ("file", "neither HDF5 nor Parquet"),
        ("v.hdf5", "not a whole HDF5 file"),
        ("v.parquet", "not a whole Parquet file"),
        (".", "has neither a description.json nor a _manifest.json"),
    ):
        with pytest.raises(InputError, match=message):
            read_embeddings(tmp_path / name)
    good = {"format": 1, "shards": 1, "suffix": "", "blocks": [3], "key": {}}
    for wrong in (
        {"shards": 0},
        {"suffix": "/../x"},
        {"blocks": [-1]},
        {"blocks": [2**70]},
        {"blocks": 3},
        {"format": 0},
    ):
        (tmp_path / "parts" / MANIFEST).write_text(json.dumps(good | wrong))
        with pytest.raises(InputError, match="no manifest of shards"):
            read_embeddings(tmp_path / "parts")
    writer(elmo, text, tmp_path / "parts" / "shard-0-of-1").write()
    (tmp_path / "parts" / MANIFEST).write_text(json.dumps(good))
    with pytest.raises(InputError, match="has not the sentences that"):
        read_embeddings(tmp_path / "parts")


@pytest.mark.parametrize(
    ("tokens", "vectors"),
    [([[1]], [[[1.0, 2.0]]]), (["a"], [1.0]), ([None], [["b"]]), ([["a", None]], [[[[1.0]]]]), ([[b"\xff"]], [None])],
)
def test_parquet_of_other_types(tmp_path, tokens, vectors):
    """Whose metadata says that it is one of vectors."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    key = json.dumps({"dtype": "float32", "all layers": None, "width": 2, "pool": None})
    tables = arrow.table({"tokens": tokens, "vectors": vectors}).replace_schema_metadata({"elmo_jax": key})
    parquet.write_table(tables, tmp_path / "v.parquet")
    with read_embeddings(tmp_path / "v.parquet") as found:
        with pytest.raises(InputError, match="the text of sentence 0 is no list of tokens"):
            found.tokens(0)
        with pytest.raises(InputError, match="sentence 0 has not the vectors"):
            found[0]


def test_parquet_of_equal_numbers(tmp_path):
    """Of which a small file holds as many as it says."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    key = json.dumps({"dtype": "float32", "all layers": None, "width": 10**4, "pool": "mean"})
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(np.zeros(2 * 10**7, np.float32)), 10**4)
    table = arrow.table({"tokens": [["a"]] * len(vectors), "vectors": vectors})
    parquet.write_table(table.replace_schema_metadata({"elmo_jax": key}), tmp_path / "v.parquet")
    assert (tmp_path / "v.parquet").stat().st_size < 10**5
    with pytest.raises(InputError, match=r"v.parquet would take"):
        read_embeddings(tmp_path / "v.parquet")


@pytest.mark.parametrize("mark", [b"SNOD", b"TREE", b"HEAP", b"FRHP", b"FHDB", b"BTHD", b"BTLF"])
def test_a_dump_whose_names_are_damaged(tmp_path, mark):
    """What HDF5 finds only when it looks for names: in files of its first format, and of those that are written."""
    if mark in (b"SNOD", b"TREE", b"HEAP"):
        with h5py.File(tmp_path / "v.hdf5", "w") as file:
            file["0"] = np.ones((1, 2), np.float32)
    else:
        write_hdf5(tmp_path / "v.hdf5", [["a"]] * 20, [np.ones((1, 2), np.float32)] * 20)
    content = (tmp_path / "v.hdf5").read_bytes()
    assert mark in content
    (tmp_path / "v.hdf5").write_bytes(content.replace(mark, b"none"))
    with pytest.raises(InputError, match=r"v.hdf5 is not a whole HDF5 file|v.hdf5: "):
        read_embeddings(tmp_path / "v.hdf5")[0]


SERVER = """
import os, sys
from elmo_jax import commands, outputs
outputs.BLOCK_WINDOWS, outputs.SMALLEST_BLOCK = 0, 300
said = []

def says(owner, name, word, when=lambda *_: True):
    method = getattr(owner, name)

    def told(*arguments):
        result = method(*arguments) if name == "save" else None
        if when(*arguments) and word not in said:
            said.append(word)
            print(word, flush=True)
        return method(*arguments) if name != "save" else result

    setattr(owner, name, told)

says(outputs.Writer, "write", "begins")
says(outputs.GrowingArrays, "save", "goes on", lambda growing, about: about["sentences"])
says(outputs.Writer, "_finish", "goes on")
for line in sys.stdin:
    if child := os.fork():  # before JAX has begun threads: every child begins its own
        print(child, flush=True)
        print("ended", os.waitpid(child, 0)[1], flush=True)
    else:
        commands.main(line.split())
        sys.stdout.flush()
        os._exit(0)
"""


@pytest.fixture
def run():
    """Runs a command in a process of its own, killed so many seconds after it `begins` to write or `goes on`.

    That is, when it has saved a block, or all are saved. Says whether it was killed, and the seconds from each moment.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, env=script_environment(), **pipes)

    def run(command, moment=None, seconds=0.0):
        print(command, file=server.stdin, flush=True)
        child, moments = int(server.stdout.readline()), {}
        while not (line := server.stdout.readline().strip()).startswith("ended"):
            assert line
            moments[line] = time.perf_counter()
            if line == moment:
                time.sleep(seconds)
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    os.kill(child, signal.SIGKILL)
        assert line in ("ended 0", f"ended {signal.SIGKILL:d}")
        return line != "ended 0", {moment: time.perf_counter() - at for moment, at in moments.items()}

    yield run
    server.stdin.close()
    server.wait()
    server.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_kills(folder, tmp_path, run, name):
    """Killed at random moments, a run ends with every byte of one that was left alone."""
    generator = np.random.default_rng(1)
    lines = [" ".join(generator.choice(WORDS, generator.integers(0, 30))) for _ in range(500)]
    (tmp_path / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    command, output = f"embed --model {folder} --input {tmp_path / 'text.txt'} --output ", tmp_path / "killed" / name
    for path in (tmp_path / "whole", tmp_path / "killed"):
        path.mkdir()
    for _ in range(2):  # the second time, nothing is compiled
        shutil.rmtree(tmp_path / "whole")
        (tmp_path / "whole").mkdir()
        killed, seconds = run(f"{command}{tmp_path / 'whole' / name}")
        assert not killed
    whole, chance, finished = content(tmp_path / "whole" / name), random.Random(2), 0
    kills = {"begins": 0, "goes on": 0}
    while sum(kills.values()) < KILLS or killed:
        moment = chance.choice(["begins", "goes on", "goes on"]) if sum(kills.values()) < KILLS else None
        longest = seconds["begins"] - seconds["goes on"] if moment == "begins" else 0.3 * seconds["goes on"]
        killed, _ = run(f"{command}{output}", moment, chance.uniform(0, longest))
        if killed:
            kills[moment] += 1
        else:
            assert content(output) == whole
            assert [path.name for path in output.parent.iterdir()] == [name]
            finished += 1
            shutil.rmtree(output) if output.is_dir() else output.unlink()
    print(f"kills {kills}, {finished} times whole; a run takes {seconds['begins']:.1f} seconds")
    assert finished > 1
