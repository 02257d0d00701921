"""Archives: unpacked without trust; golden ones as AllenNLP and simple_elmo read them (tests/data/make_*.py)."""

import gzip
import io
import json
import shutil
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import ROOT, SMALL, TOLERANCE, fails, relative_error, write_random_model

import elmo_jax
from elmo_jax import archives
from elmo_jax.archives import unpacked
from elmo_jax.commands import main
from elmo_jax.errors import InputError
from elmo_jax.folders import model_files, read_folder

DATA, NLPL = ROOT / "tests/data/allennlp", ROOT / "tests/data/simple_elmo"
OPTIONS = DATA / "options.json"


def write_zip(path: Path, members: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def members_of(path: Path) -> dict[str, bytes]:
    """What is in a .tar.gz, without folders."""
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive if info.isfile()}


@pytest.mark.parametrize(
    ("name", "options"), [pytest.param("classifier", None, marks=pytest.mark.slow), ("two_mixes", OPTIONS)]
)
def test_allennlp_computes_the_same(name, options):
    """The mixes of archives that AllenNLP wrote, with and without layer norm, LSTM state zero."""
    expected = np.load(DATA / "vectors.npz")
    elmo = elmo_jax.load(DATA / f"{name}.tar.gz", options=options)
    assert len(elmo.mixes) == (1 if name == "classifier" else 2)
    for number, sentence in enumerate(expected["sentences"].tolist()):
        for mix, vectors in zip(elmo.mixes, expected[f"{name}_{number}"], strict=True):
            # AllenNLP normalises layers with the boundaries and takes those away afterwards.
            found = elmo.embed([sentence], layers="mix", mix=mix, state="zero", boundaries=True)[0][1:-1]
            assert relative_error(found, vectors) < TOLERANCE
    if elmo.mix is not None:
        assert (elmo.embed([sentence], layers="mix")[0] == elmo.embed([sentence], layers="mix", mix=elmo.mix)[0]).all()
    else:
        with pytest.raises(InputError, match=r"the model has 2: give mix=elmo.mixes\[0\]"):
            elmo.embed([sentence], layers="mix")


def test_the_command_line_takes_archives_and_mixes(tmp_path, capsys):
    (tmp_path / "text").write_text("the cat sat\n")
    (tmp_path / "mix.json").write_text('{"weights": [1, 2, 3], "gamma": 0.5}')
    two, one = DATA / "two_mixes.tar.gz", DATA / "classifier.tar.gz"
    embed = ["embed", "--input", tmp_path / "text", "--layers", "mix", "--output", tmp_path / "vectors.hdf5", "--model"]
    for model, more, mix in (
        (one, [], elmo_jax.load(one).mix),
        (two, ["--options", OPTIONS, "--mix", tmp_path / "mix.json"], elmo_jax.Mix([1, 2, 3], 0.5)),
    ):
        main(list(map(str, [*embed, model, *more])))
        expected = elmo_jax.load(model, options=more[1] if more else None).embed(["the cat sat"], layers="mix", mix=mix)
        with h5py.File(tmp_path / "vectors.hdf5") as file:
            assert relative_error(file["0"][()], expected[0]) < TOLERANCE
        (tmp_path / "vectors.hdf5").unlink()
    fails(main, [*embed, two, "--options", OPTIONS], "the model has 2: give mix=", capsys)
    fails(main, [*embed, one, "--mix_weights", 1, 2, 3, "--mix", tmp_path / "mix.json"], "exclude each other", capsys)


def test_where_allennlps_options_come_from(tmp_path):
    """In the archive under any name, in fta/ as before AllenNLP 1.0, published ones by their address, or given."""
    members = members_of(DATA / "classifier.tar.gz")
    options = members.pop("options.json")
    right = read_folder(DATA / "classifier.tar.gz")

    def reads(config=members["config.json"], given=None, **more):
        path = write_tar(tmp_path / "model.tar.gz", members | {"config.json": config} | more)
        return read_folder(path, options=given)

    key = "fta/model.text_field_embedder.token_embedders.elmo.options_file"
    assert reads(**{key: options}).model == reads(given=OPTIONS).model == right.model
    with pytest.raises(InputError, match=r"its config.json names options.json.*options=OPTIONS") as error:
        reads()
    assert str(error.value).startswith(f"{tmp_path / 'model.tar.gz'} does not tell")
    with pytest.raises(InputError, match="there are 2 that differ"):
        reads(**{key: options, "options.json": options.replace(b"tanh", b"relu")})
    address = b"https://allennlp.s3.amazonaws.com/models/elmo/2x1024_128_2048cnn_1xhighway/options.json"
    published = members["config.json"].replace(b"options.json", address)
    assert reads(published).model.activation == "relu"
    assert reads(published).model.layers == 2
    assert reads(published.replace(b'"options_file"', b'"x"')).model.activation == "relu"  # the default
    with pytest.raises(InputError, match="does not tell"):
        reads(published.replace(b"https://allennlp", b"https://example"))
    with pytest.raises(InputError, match="cell_dim is 12 in the options and 11 in the weights"):
        reads(**{"options.json": options.replace(b'"dim": 11', b'"dim": 12')})
    with pytest.raises(InputError, match="do_layer_norm true in one place and false in another"):
        reads(b'{"a": [{"do_layer_norm": true}, {"do_layer_norm": false}]}', OPTIONS)
    with pytest.raises(InputError, match=r"one options\.json too many"):
        read_folder(write_random_model(tmp_path / "model", SMALL), options=OPTIONS)


def test_simple_elmo_computes_the_same():
    """An archive as NLPL publishes them, LSTM state zero; of longer words both read the begin."""
    expected, elmo = np.load(NLPL / "vectors.npz"), elmo_jax.load(NLPL / "model.zip")
    assert elmo.vocabulary.words[3:] == ["the", "cat", "sat"]
    for number, sentence in enumerate(expected["sentences"].tolist()):
        found = elmo.embed([sentence], layers="all", state="zero")[0]
        assert relative_error(found, expected[f"all_{number}"]) < TOLERANCE
        assert relative_error(found.mean(0), expected[f"average_{number}"]) < TOLERANCE


@pytest.mark.slow
def test_a_zip_as_simple_elmo_has_it(tmp_path, folder):
    """NLPL's layout, and the same in a folder of its own."""
    members = {"meta.json": b"{}", "vocab.txt": b"<S>\n</S>\n<UNK>\nthe\n"}
    members |= {"options.json": (folder / "options.json").read_bytes()}
    members |= {"model.hdf5": (folder / "weights.hdf5").read_bytes()}
    path = write_zip(tmp_path / "210.zip", members)
    elmo, expected = elmo_jax.load(path), elmo_jax.load(folder)
    assert elmo.vocabulary.words == ["<S>", "</S>", "<UNK>", "the"]
    assert (elmo.embed(["the cat"])[0] == expected.embed(["the cat"])[0]).all()
    assert model_files(path) == [path]
    inside = write_zip(tmp_path / "inside.zip", {f"elmo/{name}": content for name, content in members.items()})
    assert read_folder(inside).model == SMALL
    (tmp_path / "unpacked").mkdir()
    shutil.unpack_archive(path, tmp_path / "unpacked")
    assert read_folder(tmp_path / "unpacked").model == SMALL
    del members["model.hdf5"]
    with pytest.raises(InputError, match=r"half.zip.weights.hdf5, and of other files") as error:
        read_folder(write_zip(tmp_path / "half.zip", members))
    assert "/tmp" not in str(error.value).replace(str(tmp_path), "")


ESCAPES = ["../x", "/etc/x", "a/../../x", "C:/x", "a\\..\\x", ".."]


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("name", ESCAPES)
def test_no_member_leaves_its_folder(tmp_path, write, name):
    path = write(tmp_path / "archive", {"good": b"1", name: b"2"})
    with pytest.raises(InputError, match="a name that could lead out of a folder"), unpacked(path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["archive"]


def linked(kind):
    def change(info):
        info.type, info.linkname, info.size = kind, "/etc/hostname", 0

    return change


def header(**fields):
    def change(info):
        for name, value in fields.items():
            setattr(info, name, value)

    return change


CRAFTED_TAR = {
    "symbolic link": (linked(tarfile.SYMTYPE), "is a link or a device"),
    "hard link": (linked(tarfile.LNKTYPE), "is a link or a device"),
    "device": (linked(tarfile.CHRTYPE), "is a link or a device"),
    "pipe": (linked(tarfile.FIFOTYPE), "is a link or a device"),
    "sparse": (header(type=tarfile.GNUTYPE_SPARSE), "is not a whole|is a link or a device"),
    "larger than it is": (header(size=10**12), "more than 100 times"),
    "a little larger": (header(size=10**5), "is shorter than|is not a whole"),
    "header of a gigabyte": (header(type=tarfile.GNUTYPE_LONGNAME, size=10**9), "it has a header of 1,000,000,"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED_TAR)
def test_crafted_tar_files_are_refused(tmp_path, name):
    change, message = CRAFTED_TAR[name]
    info = tarfile.TarInfo("config.json")
    info.size = 4
    change(info)
    with gzip.open(tmp_path / "model.tar.gz", "wb") as file:
        file.write(info.tobuf() + b"abcd".ljust(512, b"\0"))
    with pytest.raises(InputError, match=message) as error, unpacked(tmp_path / "model.tar.gz"):
        pass
    assert str(tmp_path / "model.tar.gz") in str(error.value)


def test_a_tar_file_that_goes_back_is_refused(tmp_path):
    """A negative size leads some readers round and round."""
    info = tarfile.TarInfo("config.json")
    raw = bytearray(info.tobuf())
    raw[124:136] = b"\xff" * 10 + struct.pack(">h", -1024)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    with gzip.open(tmp_path / "model.tar.gz", "wb") as file:
        file.write(bytes(raw) * 3)
    message = r"more than 100 times|not a whole|follow one another"
    with pytest.raises(InputError, match=message), unpacked(tmp_path / "model.tar.gz"):
        pass


def patched(path: Path, offset: int, value: bytes) -> Path:
    """A zip file of one member with other bytes in the central directory's entry."""
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + offset
    content[place : place + len(value)] = value
    path.write_bytes(content)
    return path


CRAFTED_ZIP = {
    "link": (38, struct.pack("<I", 0o120777 << 16), "is a link or a device"),
    "device": (38, struct.pack("<I", 0o020666 << 16), "is a link or a device"),
    "encrypted": (8, b"\x01\x00", "is encrypted"),
    "unusual": (10, b"\x0e\x00", "packed in an unusual way"),
    "larger than it is": (24, struct.pack("<I", 10**9 * 4), "more than 100 times"),
    "a little larger": (24, struct.pack("<I", 10**5), "is shorter than|is not a whole"),
    "a little smaller": (24, struct.pack("<I", 10), "is not a whole"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED_ZIP)
def test_crafted_zip_files_are_refused(tmp_path, name):
    offset, value, message = CRAFTED_ZIP[name]
    path = write_zip(tmp_path / "model.zip", {"options.json": b"{}" * 50})
    with pytest.raises(InputError, match=message), unpacked(patched(path, offset, value)):
        pass


def test_bombs_are_refused(tmp_path, monkeypatch):
    """Two megabytes of zeros in 2 kB; many members; more than the disk has."""
    zeros = bytes(2 << 20)
    for path in (
        write_zip(tmp_path / "zeros.zip", {"model.hdf5": zeros}),
        write_tar(tmp_path / "zeros.tar.gz", {"weights.th": zeros}),
    ):
        with pytest.raises(InputError, match="unpacks to more than 100 times"), unpacked(path):
            pass
    monkeypatch.setattr(archives, "MOST_MEMBERS", 20)
    for write in (write_zip, write_tar):
        path = write(tmp_path / "many", {f"{number}": b"" for number in range(21)})
        with pytest.raises(InputError, match="more than 20 members"), unpacked(path):
            pass
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    path = write_zip(tmp_path / "full.zip", {"a": b"12345678901"})
    with pytest.raises(InputError, match=r"unpacks to 11 bytes or more and .* has 10 left; .* TMPDIR"), unpacked(path):
        pass


def test_a_zip_with_one_name_twice_is_refused(tmp_path):
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("options.json", "{}")
        archive.writestr("options.json", "[]")
    with pytest.raises(InputError, match=r"not a whole \.zip"), unpacked(tmp_path / "twice.zip"):
        pass


@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_damaged_archives(tmp_path, monkeypatch, count, folder):
    """Every damage is one error, or does not matter; nothing is left behind."""
    members = {"options.json": (folder / "options.json").read_bytes()}
    members |= {"model.hdf5": (folder / "weights.hdf5").read_bytes()}
    whole = {"zip": write_zip(tmp_path / "a.zip", members).read_bytes()}
    whole |= {"tar": (DATA / "classifier.tar.gz").read_bytes()}
    generator, errors = np.random.default_rng(0), []
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(archives.tempfile, "tempdir", str(temporary))
    for number in range(count):
        content = bytearray(whole["zip" if number % 2 else "tar"])
        for place in generator.integers(len(content), size=generator.integers(1, 4)):
            content[place] ^= 1 << int(generator.integers(8))
        if number % 7 == 0:
            del content[int(generator.integers(len(content))) :]
        (tmp_path / "damaged").write_bytes(content)
        try:
            read_folder(tmp_path / "damaged")
        except InputError as error:
            errors.append(str(error))
    assert len(errors) > count / 2
    assert max(map(len, errors)) < 2500
    assert not list(temporary.iterdir())


def test_mixes_in_files(tmp_path):
    mix = elmo_jax.Mix([0.1, -2.0, 3.5], 0.25, True)
    mix.save(tmp_path / "mix.json")
    assert elmo_jax.Mix.load(tmp_path / "mix.json") == mix
    (tmp_path / "mix.json").write_text('{"weights": [1, 2]}')
    assert elmo_jax.Mix.load(tmp_path / "mix.json") == elmo_jax.Mix([1.0, 2.0])


@pytest.mark.parametrize(
    "content",
    [
        {"weights": []},
        {"weights": [1, "2"]},
        {"weights": [1, True]},
        {"weights": [1, float("nan")]},
        {"weights": [1, 10**400]},
        {"weights": [1, 1e39]},
        {"weights": 1.0},
        {"gamma": 1.0},
        {"weights": [1.0], "gamma": None},
        {"weights": [1.0], "layer_norm": 1},
        {"weights": [1.0], "scale": 1.0},
    ],
)
def test_what_is_no_mix(tmp_path, content):
    (tmp_path / "mix.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"mix.json .*a mix is \{\"weights\": "):
        elmo_jax.Mix.load(tmp_path / "mix.json")
