"""Models by name, from a server on this machine: downloaded once, whole or not at all."""

import contextlib
import gzip
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import h5py
import numpy as np
import pytest
from conftest import (
    ROOT,
    SMALL,
    TOLERANCE,
    fails,
    random_weights,
    relative_error,
    script_environment,
    write_random_model,
)

import elmo_jax
from elmo_jax import pretraining, published
from elmo_jax.__main__ import main
from elmo_jax.errors import InputError
from elmo_jax.folders import read_folder
from elmo_jax.weights import write_arrays

OPTIONS, WEIGHTS = (urlsplit(url).path for url in published.MODELS["small"].urls)


class Server:
    """Files by path; `sent` are the requests, as (path, Range).

    Of the weights, one answer after the other: `altered` is sent instead of them, and `cuts` says after how many bytes
    it breaks off.
    """

    def __init__(self, ranges: bool = True, tag: str = '"1"'):
        self.files: dict[str, bytes] = {}
        self.sent, self.cuts, self.altered, self.ranges, self.tag = [], [], [], ranges, tag
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.sent.append((request.path, wanted))
        body = self.files.get(request.path)
        if body is None:
            request.send_error(404)
            return
        if request.path == WEIGHTS and self.altered:
            body = self.altered.pop(0)
        begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if request.headers.get("If-Range") != self.tag:
            begin = 0
        if begin and begin >= len(body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(body)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if begin else 200)
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        request.send_header("Content-Length", str(len(body) - begin))
        request.send_header("ETag", self.tag)
        if body[:2] == b"\x1f\x8b" and request.path == OPTIONS:
            request.send_header("Content-Encoding", "gzip")
        request.end_headers()
        cut = self.cuts.pop(0) if request.path == WEIGHTS and self.cuts else len(body)
        request.wfile.write(body[begin : begin + cut])

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, bytes]:
    """The files of a model, by their names in the cache."""
    folder = write_random_model(tmp_path_factory.mktemp("model"), SMALL)
    return {name: (folder / name).read_bytes() for name in ("options.json", "weights.hdf5")}


@pytest.fixture
def server(model, tmp_path, monkeypatch):
    """A mirror that has the model `small`, and an empty cache; waiting takes no time."""
    server = Server()
    server.files = {OPTIONS: model["options.json"], WEIGHTS: model["weights.hdf5"]}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(published.MIRROR, server.address)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(published, "PIECE", 1000)
    monkeypatch.chdir(tmp_path)
    yield server
    server.close()


def kept(tmp_path) -> dict[str, bytes]:
    """Files of the model in the cache."""
    folder = tmp_path / "cache" / "elmo_jax" / "models" / "small"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left(tmp_path) -> set[str]:
    """What lies beside it, the lock apart."""
    return set(os.listdir(tmp_path / "cache" / "elmo_jax" / "models")) - {".small.lock"}


def test_downloaded_once_with_a_bar_and_then_without_the_network(server, model, tmp_path, capfd):
    folder = published.local("small")
    assert [path for path, _ in server.sent] == [OPTIONS, WEIGHTS]
    assert kept(tmp_path) == model
    assert left(tmp_path) == {"small"}
    shown = capfd.readouterr().err
    assert re.search(r"small: weights.hdf5: 100%\|.*B/s", shown)
    assert "licence: no restrictions" in shown
    server.close()
    assert published.local("Small") == folder
    assert capfd.readouterr().err == ""
    server.__init__()  # another, for the fixture to close


def test_a_copy_that_was_damaged_later(server, model, tmp_path, capsys):
    """The error says what mends it; a copy that is good is not downloaded again."""
    main(["download", "small"])
    main(["download", "small"])
    assert len(server.sent) == 2
    weights = published.local("small") / "weights.hdf5"
    weights.write_bytes(weights.read_bytes()[:20_000])
    with pytest.raises(InputError, match="if the copy of Small is damaged, elmo-jax download Small mends it"):
        elmo_jax.load("Small")
    capsys.readouterr()
    main(["download", "Small"])
    assert "small is damaged, and is downloaded again: " in capsys.readouterr().err
    assert kept(tmp_path) == model
    assert left(tmp_path) == {"small"}


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_goes_on_where_it_broke(server, model, tmp_path, ranges):
    server.ranges, server.cuts = ranges, [3000, 1000]
    published.local("small")
    asked = [part for path, part in server.sent if path == WEIGHTS]
    assert asked == [None, "bytes=3000-", f"bytes={4000 if ranges else 1000}-"]
    assert kept(tmp_path) == model


def test_a_file_that_the_server_has_changed_meanwhile_is_begun_again(server, model, tmp_path):
    server.cuts = [3000]
    server.altered = [bytes(len(model["weights.hdf5"]))]
    answer, tags = server.answer, iter(['"1"', '"1"', '"2"'])
    server.answer = lambda request: (setattr(server, "tag", next(tags)), answer(request))
    published.local("small")
    assert len(server.sent) == 3
    assert kept(tmp_path) == model


def test_what_a_server_compresses_unasked(server, model, tmp_path):
    server.files[OPTIONS] = gzip.compress(model["options.json"])
    published.local("small")
    assert kept(tmp_path) == model


@pytest.mark.parametrize("mirror", ["/data/mirror", "file:///data", "http://"])
def test_a_mirror_that_is_none(server, mirror, monkeypatch):
    monkeypatch.setenv(published.MIRROR, mirror)
    with pytest.raises(InputError, match=r"ELMO_JAX_MODELS is .*; it must be an http:// or https:// address"):
        published.local("small")


def test_a_command_that_was_stopped_goes_on(server, model, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "RETRIES", 0)
    server.cuts = [5000]
    with pytest.raises(InputError, match=r"cannot download http.*weights.hdf5 .*goes on where it stopped"):
        published.local("small")
    assert left(tmp_path) == {".small.partial"}
    published.local("small")
    assert server.sent[2:] == [(WEIGHTS, "bytes=5000-")]
    assert kept(tmp_path) == model
    assert left(tmp_path) == {"small"}


def test_a_part_that_is_whole_is_not_downloaded_again(server, model, tmp_path):
    folder = tmp_path / "cache" / "elmo_jax" / "models" / ".small.partial"
    folder.mkdir(parents=True)
    (folder / "weights.hdf5.part").write_bytes(model["weights.hdf5"])
    (folder / "weights.hdf5.part.version").write_text('"1"')
    published.local("small")
    assert server.sent[1:] == [(WEIGHTS, f"bytes={len(model['weights.hdf5'])}-")]
    assert kept(tmp_path) == model


def altered_weights(tmp_path, model) -> dict[str, tuple[bytes, str]]:
    """Files in the place of weights.hdf5, and what is said of them."""
    arrays = random_weights(SMALL)
    arrays["CNN_proj/b_proj"][3] = np.nan
    write_arrays(tmp_path / "nan.hdf5", arrays)
    del arrays["CNN_proj/b_proj"]
    write_arrays(tmp_path / "missing.hdf5", arrays)
    whole = model["weights.hdf5"]
    return {
        "cut": (whole[: len(whole) // 2], "HDF5"),
        "page": (b"<html>Please log in</html>", "not a whole HDF5 file"),
        "nan": ((tmp_path / "nan.hdf5").read_bytes(), "CNN_proj/b_proj"),
        "missing": ((tmp_path / "missing.hdf5").read_bytes(), "missing: CNN_proj/b_proj"),
    }


@pytest.mark.parametrize("kind", ["cut", "page", "nan", "missing"])
def test_what_came_altered_is_refused_and_downloaded_again(server, model, tmp_path, kind, capfd):
    server.altered = [altered_weights(tmp_path, model)[kind][0]]
    published.local("small")
    assert "small came altered, and is downloaded again: " in capfd.readouterr().err
    assert [path for path, _ in server.sent] == [OPTIONS, WEIGHTS] * 2
    assert kept(tmp_path) == model


@pytest.mark.parametrize("kind", ["cut", "page", "nan", "missing"])
def test_what_comes_altered_twice_is_refused_and_nothing_kept(server, model, tmp_path, kind):
    body, message = altered_weights(tmp_path, model)[kind]
    server.altered = [body] * 2
    with pytest.raises(InputError, match=rf"is not the model small: .*{message}.*Nothing of it is kept. Put options"):
        published.local("small")
    assert left(tmp_path) == set()


def test_known_hashes_are_checked(server, model, tmp_path):
    """The model is a good one, but not the one that was published."""
    for url, name in zip(published.MODELS["german"].urls, model, strict=True):
        server.files[urlsplit(url).path] = model[name]
    with pytest.raises(InputError, match=r"not the model german: the sha1 of options.json is \w{40}, .* 04afb8"):
        published.local("german")
    assert len(server.sent) == 4


def test_what_is_not_there_is_asked_for_once(server, tmp_path):
    del server.files[WEIGHTS]
    with pytest.raises(InputError, match=r"weights.hdf5 \(404 Not Found\).* Put .*models/small yourself .*_MODELS the"):
        published.local("small")
    assert len(server.sent) == 2


def test_without_a_network(server, model, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setenv(published.MIRROR, "http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"cannot download http://127.0.0.1:1/allennlp.*options.json"):
        published.local("small")
    assert [seconds for seconds in waited if seconds >= 1] == [1, 2, 3, 4]
    folder = tmp_path / "cache" / "elmo_jax" / "models" / "small"  # by hand, as the error says
    folder.mkdir()
    for name, content in model.items():
        (folder / name).write_bytes(content)
    assert published.local("small") == folder


def test_a_disk_that_is_too_small_is_foreseen(server, tmp_path, monkeypatch):
    usage = published.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(published.shutil, "disk_usage", lambda _: usage._replace(free=2000))
    with pytest.raises(InputError, match=r"weights.hdf5 \(it takes [\d,]+ bytes more, and the disk has 2,000"):
        published.local("small")
    assert len(server.sent) == 2


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cannot write .*models/small"):
        published.local("small")


def test_who_comes_second_waits(server, model, tmp_path, capfd):
    began, go_on, answer = threading.Event(), threading.Event(), server.answer
    server.answer = lambda request: (began.set(), go_on.wait(10), answer(request))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(published.local, "small")
        assert began.wait(10)
        second = threads.submit(published.local, "small")
        with contextlib.suppress(TimeoutError):
            second.result(0.1)
        go_on.set()
        assert first.result() == second.result()
    assert len(server.sent) == 2
    assert "small is being downloaded by another process, which is waited for" in capfd.readouterr().err
    assert left(tmp_path) == {"small"}


def test_names_and_paths(server, tmp_path):
    for path in ("gs://bucket/small", "runs/small", "./small", Path("small"), Path("nowhere"), "https://example.org/x"):
        assert published.local(path) is path
    (tmp_path / "mine").mkdir()
    assert published.local("mine") == "mine"
    (tmp_path / "small").mkdir()
    with pytest.raises(InputError, match=r"a file or folder here; give ./small for what is here, or .*/models/small"):
        published.local("small")
    for wrong, near in (("smal", "near it are small"), ("arabic", "near it are manylangs-arabic"), ("qqq", "give a")):
        with pytest.raises(InputError, match=rf"no folder {wrong} here, and no published model of this name; {near}"):
            published.local(wrong)
    assert not server.sent


def test_the_table():
    paths = [urlsplit(url).path for model in published.MODELS.values() for url in model.urls]
    assert len(paths) == len(set(paths))  # a mirror holds them all
    for name, model in published.MODELS.items():
        assert re.fullmatch(r"[a-z0-9.-]+", name)
        assert len(model.urls) == 2 or re.search(r"\.(zip|tar\.gz)$", model.urls[0])
        assert all(re.match("https?://", address) for address in (*model.urls, model.source))
        assert len(model.hashes) in (0, len(model.urls))
        assert model.what
        assert model.licence
    assert sum(name.startswith("manylangs-") for name in published.MODELS) == 44
    assert {"small", "medium", "original", "5.5b", "pubmed", "portuguese", "nlpl-217"} <= published.MODELS.keys()


def test_a_hub_that_is_asked(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def answer(name, *, revision, allow_patterns):
        asked.append((name, revision))
        if name == "no/body":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such repository")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    assert published.local("hf://owner/name") == published.local("hf://owner/name@v1.0") == str(tmp_path)
    assert asked == [("owner/name", None), ("owner/name", "v1.0")]
    with pytest.raises(InputError, match=r"cannot get hf://no/body from the Hugging Face Hub \(no such repository"):
        published.local("hf://no/body")
    for wrong in ("hf://", "hf://name", "hf://owner/name/file", "hf://owner/name@"):
        with pytest.raises(InputError, match="is not of the form hf://OWNER/NAME"):
            published.local(wrong)


def archive(model, names, kind) -> bytes:
    """A .zip or .tar.gz file of a model's files, by their names in it."""
    body = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(body, "w") as file:
            for name, member in names.items():
                file.writestr(member, model[name])
        return body.getvalue()
    with tarfile.open(fileobj=body, mode="w:gz") as file:
        for name, member in names.items():
            info = tarfile.TarInfo(member)
            info.size = len(model[name])
            file.addfile(info, io.BytesIO(model[name]))
    return body.getvalue()


@pytest.mark.parametrize(
    ("name", "names", "kind"),
    [
        ("nlpl-217", {"options.json": "options.json", "weights.hdf5": "model.hdf5"}, "zip"),
        (
            "slovenian",
            {"options.json": "slovenian/options.json", "weights.hdf5": "slovenian/slovenian-elmo-weights.hdf5"},
            "tar",
        ),
    ],
)
def test_archives_are_kept_unpacked(server, model, tmp_path, name, names, kind):
    (url,) = published.MODELS[name].urls
    whole = archive(model, names, kind)
    server.files = {urlsplit(url).path: whole}
    folder = published.local(name)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        Path(member).name: model[file] for file, member in names.items()
    }
    assert left(tmp_path) == {name, f".{name}.lock"}
    assert read_folder(folder).model == SMALL
    shutil.rmtree(folder)
    server.files = {urlsplit(url).path: whole[:-100]}
    with pytest.raises(InputError, match=r"brought, twice, is not the model .* Put what it unpacks to into"):
        published.local(name)
    assert len(server.sent) == 3
    assert left(tmp_path) == {f".{name}.lock"}


def test_elmo_for_many_languages(server, tmp_path):
    """As its zips are: one folder with the files of its own software, here with random weights."""
    golden = ROOT / "tests" / "data" / "manylangs" / "words_and_characters"
    names = [path.name for path in golden.iterdir() if path.suffix != ".npz"]
    files = {name: (golden / name).read_bytes() for name in names}
    (url,) = published.MODELS["manylangs-norwegian-bokmal"].urls
    server.files = {urlsplit(url).path: archive(files, {name: name for name in names}, "zip")}
    sentences = json.loads((golden.parent / "sentences.json").read_text())[:3]
    found = elmo_jax.load("manylangs-norwegian-bokmal").embed(sentences, layers="all", state="zero")
    with np.load(golden / "vectors.npz") as expected:
        for number, vectors in enumerate(found):
            assert relative_error(vectors, expected[f"arr_{number}"]) < TOLERANCE
    assert {path.name for path in published.local("manylangs-norwegian-bokmal").iterdir()} == set(names)
    assert len(server.sent) == 1


def test_the_commands(server, model, tmp_path, capsys):
    """As a new user would: what is there, get one, embed with it; the model is not downloaded again."""
    main(["models"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(published.MODELS)
    assert re.fullmatch(r"  small +54 MB  no restrictions +English, 1B Word.*", lines[0])
    (tmp_path / "small").mkdir()  # does not matter here
    main(["download", "small"])
    assert Path(capsys.readouterr().out.strip()) == tmp_path / "cache" / "elmo_jax" / "models" / "small"
    (tmp_path / "small").rmdir()
    main(["models"])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("*")] == ["small"]
    (tmp_path / "text").write_text("it rained\n")
    main(["embed", "--model", "Small", "--input", "text", "--output", "vectors.hdf5"])
    with h5py.File("vectors.hdf5") as file:
        assert (file["0"][()] == elmo_jax.load("small").embed(["it rained"])[0]).all()
    assert len(server.sent) == 2
    fails(main, ["download", "smal"], "no published model of this name; near it are small", capsys)
    fails(main, ["embed", "--model", "orignal", "--input", "text", "--output", "v"], "near it are original", capsys)
    fails(main, ["perplexity", "--model", "small", "--input", "text"], "has no softmax", capsys)


def test_training_begins_from_a_model_by_name(server, model, tmp_path):
    command = ["tiny", "--workdir", "run", "--data.train", "text", "--init"]
    config, init = pretraining.choose_model(pretraining.parse([*command, "small"]), None)
    assert config.model == init.model == SMALL
    assert (init.parameters["words"]["embedding"] == random_weights(SMALL)["char_embed"]).all()
    with pytest.raises(InputError, match="no published model of this name; near it are small"):
        pretraining.choose_model(pretraining.parse([*command, "smal"]), None)


DOWNLOAD = """
import time
from elmo_jax import pretraining, published
time.sleep = lambda _: None
published.PIECE = 1000
print(published.local("small"))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_and_one_that_waits_for_it(server, model, tmp_path):
    """The lock of a dead process does not hold, and what it had downloaded is not downloaded again."""
    assert len(model["weights.hdf5"]) > 25_000  # more than the first process is given
    began, killed, answer = threading.Event(), threading.Event(), server.answer

    def answered(request):
        first = request.path == WEIGHTS and not began.is_set()
        server.cuts = [20_000] if first else []
        answer(request)
        if first:
            began.set()
            killed.wait(60)  # the connection stays open

    server.answer = answered
    command = [sys.executable, "-c", DOWNLOAD]
    environment = script_environment() | {"PYTHONPATH": str(ROOT)}
    run = lambda: subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    first = run()
    assert began.wait(60)
    second = run()
    assert "by another process" in second.stderr.readline()
    part = tmp_path / "cache" / "elmo_jax" / "models" / ".small.partial" / "weights.hdf5.part"
    while not part.exists() or part.stat().st_size < 10_000:
        threading.Event().wait(0.01)
    first.kill()
    first.communicate()
    killed.set()
    shown = second.communicate(timeout=60)[1]
    assert second.returncode == 0, shown
    ((path, asked),) = server.sent[2:]
    assert path == WEIGHTS
    assert int(asked.removeprefix("bytes=").rstrip("-")) >= 10_000
    assert kept(tmp_path) == model


@pytest.mark.slow
def test_the_hub_itself(server, model, tmp_path):
    """Its library against a server that answers as the Hub does, then without one, from its cache; then refused."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    files = {**model, "pytorch_model.bin": b"not wanted"}
    info = {"id": "owner/name", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
    tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": name} for name in files]
    answers = {
        "/api/models/owner/name/revision/v1": json.dumps(info).encode(),
        f"/api/models/owner/name/tree/{commit}": json.dumps(tree).encode(),
    } | {f"/owner/name/resolve/{commit}/{name}": content for name, content in files.items()}

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.sent.append(self.path)
            body = answers.get(urlsplit(self.path).path)
            self.send_response(404 if body is None else 200)
            for header, value in {
                "ETag": f'"{zlib.crc32(body or b"")}"',
                "X-Repo-Commit": commit,
                "X-Error-Code": "RepoNotFound",
                "Content-Type": "application/json",
                "Content-Length": str(len(body or b"")),
            }.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server.server.RequestHandlerClass = Hub
    environment = script_environment() | {
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(tmp_path / "hub"),
    }

    def asked(name, **variables):
        server.sent.clear()
        command = [sys.executable, "-m", "elmo_jax", "download", name]
        return subprocess.run(command, env=environment | variables, capture_output=True, text=True)

    for variables in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = asked("hf://owner/name@v1", **variables)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip())
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == model
        assert bool(server.sent) == (not variables)
    refused = asked("hf://owner/other")
    assert refused.returncode == 2
    assert "cannot get hf://owner/other from the Hugging Face Hub (" in refused.stderr
    assert "Traceback" not in refused.stderr
