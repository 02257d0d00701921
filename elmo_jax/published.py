"""Published models by name: where they are, and how they come into the user's cache."""

import contextlib
import difflib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import filelock
from tqdm import tqdm

from elmo_jax.archives import unpacked
from elmo_jax.errors import InputError, brief, listed, needing
from elmo_jax.files import unwritable
from elmo_jax.folders import read_folder
from elmo_jax.weights import ModelFolder

MIRROR = "ELMO_JAX_MODELS"
HUB = "hf://"
# What of a repository of the Hub may belong to a model folder.
HUB_FILES = ["*.json", "*.hdf5", "*.safetensors", "*.txt", "*.th", "*.pkl", "*.dic"]
# What is repeated after a broken connection (after 1, 2, 3... seconds), and what a connection may take.
RETRIES, TIMEOUT = 4, (10, 60)
# Bytes that are read at a time, and that a broken connection may lose.
PIECE = 2**16
# Answers of a server that another attempt may change.
PASSING = (408, 425, 429)


class Published(NamedTuple):
    """A published model: what it is, the page that says so, its licence, and where its files are.

    urls      options.json and weights.hdf5, or one archive
    size      bytes of all files, where they are known
    hashes    of the files, where their publishers give them
    """

    what: str
    source: str
    licence: str
    urls: tuple[str, ...]
    size: int | None = None
    hashes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files in the cache."""
        return ("options.json", "weights.hdf5") if len(self.urls) == 2 else (self.urls[0].rpartition("/")[2],)


ALLENNLP = "https://s3-us-west-2.amazonaws.com/allennlp/models/elmo"
NLPL = "http://vectors.nlpl.eu/repository"
GERMAN = "https://github.com/t-systems-on-site-services-gmbh/german-elmo-model"
# Bytes of a weight file: 4 for each parameter.
ORIGINAL_SIZE = 4 * 93_600_848


def _english(name: str, what: str, parameters: int) -> Published:
    """A model of ELMo's authors, who impose no restrictions (github.com/allenai/allennlp/issues/1462)."""
    stem = f"{ALLENNLP}/{name}/elmo_{name}"
    urls = f"{stem}_options.json", f"{stem}_weights.hdf5"
    return Published(what, "https://allennlp.org/elmo", "no restrictions", urls, 4 * parameters)


def _contributed(what: str, options: str, weights: str, size: int | None = None) -> Published:
    """A model of the list of contributed ones there, which names no licences."""
    return Published(what, "https://allennlp.org/elmo", "not stated", (options, weights), size)


def _nlpl(version: int, number: int, what: str, size: int | None = None) -> Published:
    """A model in bilm-tf's format in the NLPL repository."""
    return Published(what, f"{NLPL}/", "CC BY 4.0", (f"{NLPL}/{version}/{number}.zip",), size)


def _many_languages(number: int, language: str) -> Published:
    """A model of ELMoForManyLangs, whose character CNN reads Unicode and words, in its own format."""
    what = f"{language}, ELMoForManyLangs, 20 million words"
    return Published(what, "https://github.com/HIT-SCIR/ELMoForManyLangs", "MIT", (f"{NLPL}/11/{number}.zip",))


# Numbers in the NLPL repository, which follow the languages' codes.
MANY_LANGUAGES = {
    136: "Arabic",
    137: "Bulgarian",
    138: "Catalan",
    139: "Czech",
    140: "Old Church Slavonic",
    141: "Danish",
    142: "German",
    143: "Greek",
    144: "English",
    145: "Spanish",
    146: "Estonian",
    147: "Basque",
    148: "Persian",
    149: "Finnish",
    150: "French",
    151: "Irish",
    152: "Galician",
    153: "Ancient Greek",
    154: "Hebrew",
    155: "Hindi",
    156: "Croatian",
    157: "Hungarian",
    158: "Indonesian",
    159: "Italian",
    160: "Japanese",
    161: "Korean",
    162: "Latin",
    163: "Latvian",
    164: "Dutch",
    165: "Norwegian Bokmål",
    166: "Norwegian Nynorsk",
    167: "Polish",
    168: "Portuguese",
    169: "Romanian",
    170: "Russian",
    171: "Slovak",
    172: "Slovene",
    173: "Swedish",
    174: "Turkish",
    175: "Uyghur",
    176: "Ukrainian",
    177: "Urdu",
    178: "Vietnamese",
    179: "Traditional Chinese",
}


def _name_of(language: str) -> str:
    return f"manylangs-{language.casefold().replace(' ', '-').replace('å', 'a')}"


MODELS = {
    "small": _english("2x1024_128_2048cnn_1xhighway", "English, 1B Word, LSTMs of 1024, vectors of 256", 13_593_296),
    "medium": _english("2x2048_256_2048cnn_1xhighway", "English, 1B Word, LSTMs of 2048, vectors of 512", 28_027_728),
    "original": _english("2x4096_512_2048cnn_2xhighway", "English, 1B Word, the paper's: vectors of 1024", 93_600_848),
    "5.5b": _english("2x4096_512_2048cnn_2xhighway_5.5B", "English, Wikipedia and news, 5.5B words", 93_600_848),
    "pubmed": _contributed(
        "English, PubMed",
        f"{ALLENNLP}/contributed/pubmed/elmo_2x4096_512_2048cnn_2xhighway_options.json",
        f"{ALLENNLP}/contributed/pubmed/elmo_2x4096_512_2048cnn_2xhighway_weights_PubMed_only.hdf5",
        ORIGINAL_SIZE,
    ),
    "portuguese": _contributed(
        "Portuguese, Wikipedia",
        f"{ALLENNLP}/contributed/pt/wikipedia/options.json",
        f"{ALLENNLP}/contributed/pt/wikipedia/elmo_pt_weights.hdf5",
    ),
    "portuguese-brwac": _contributed(
        "Portuguese, brWaC",
        f"{ALLENNLP}/contributed/pt/brwac/options.json",
        f"{ALLENNLP}/contributed/pt/brwac/elmo_pt_weights_dgx1.hdf5",
    ),
    "japanese": _contributed(
        "Japanese, ExaWizards",
        "https://exawizardsallenlp.blob.core.windows.net/data/options.json",
        "https://exawizardsallenlp.blob.core.windows.net/data/weights.hdf5",
    ),
    "german": Published(
        "German, Wikipedia with its comments",
        GERMAN,
        "BSD-2-Clause",
        (f"{GERMAN}/releases/download/files_1/options.json", f"{GERMAN}/releases/download/files_1/weights.hdf5"),
        hashes=("sha1:04afb8bc77acf5e65633ced2efc1e91d05332e89", "sha1:9084adab3eefaed4f07da7331217fcb873417add"),
    ),
    **{
        name: Published(
            f"{name.title()}, Wikipedia and OPUS",
            "https://github.com/stefan-it/plur",
            "not stated",
            (
                f"https://schweter.eu/cloud/{code}-elmo/options.json",
                f"https://schweter.eu/cloud/{code}-elmo/weights.hdf5",
            ),
        )
        for name, code in (("basque", "eu"), ("tamil", "ta"))
    },
    "slovenian": Published(
        "Slovenian, EMBEDDIA",
        "https://www.clarin.si/repository/xmlui/handle/11356/1277",
        "not stated",
        ("https://www.clarin.si/repository/xmlui/bitstream/handle/11356/1277/slovenian-elmo.tar.gz",),
    ),
    "nlpl-195": _nlpl(11, 195, "Russian, national corpus and Wikipedia"),
    "nlpl-196": _nlpl(11, 196, "Russian lemmas, national corpus and Wikipedia"),
    "nlpl-199": _nlpl(20, 199, "Russian lemmas, Taiga, LSTMs of 2048"),
    "nlpl-201": _nlpl(20, 201, "German"),
    "nlpl-202": _nlpl(20, 202, "Swedish"),
    "nlpl-203": _nlpl(20, 203, "Latin"),
    "nlpl-209": _nlpl(20, 209, "English"),
    "nlpl-210": _nlpl(20, 210, "Norwegian lemmas, Wikipedia"),
    "nlpl-211": _nlpl(20, 211, "Norwegian, Wikipedia"),
    "nlpl-212": _nlpl(20, 212, "Russian lemmas, Araneum, LSTMs of 2048", 1_500_000_000),
    "nlpl-217": _nlpl(20, 217, "Norwegian, NorELMo30: Wikipedia and newspapers, 30,000 words"),
    "nlpl-218": _nlpl(20, 218, "Norwegian, NorELMo100: Wikipedia and newspapers, 100,000 words"),
    **{_name_of(language): _many_languages(number, language) for number, language in MANY_LANGUAGES.items()},
}


def local(source: str | os.PathLike) -> str | os.PathLike:
    """The path of a model: that of its copy, made if there is none yet, where a name is given; else what is given.

    A name is what `download` takes. A word that is neither a name nor a path is refused here, other paths where they
    are read.
    """
    if not isinstance(source, str) or not source:
        return source
    named = source.startswith(HUB) or source.casefold() in MODELS
    if not named and ("/" in source or os.sep in source or os.path.lexists(source)):
        return source
    if named and os.path.lexists(source):
        raise InputError(
            f"{source} is a published model, and a file or folder here; give ./{source} for what is here, or "
            f"{_folder(source.casefold())} for the published one (elmo-jax download {source} puts it there)"
        )
    return download(source)


def _folder(name: str) -> Path:
    """Where a published model is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "elmo_jax", "models", name)


def here(name: str) -> bool:
    """Whether a published model has been downloaded."""
    return _folder(name).is_dir()


def download(name: str, check: bool = False) -> str | os.PathLike:
    """The folder of a published model: from the network, checked, the first time; then without the network.

    The name may have small or capital letters; hf://OWNER/NAME[@REVISION] is a repository of the Hugging Face Hub. The
    folder appears when it is whole. What a download that was cut has brought is kept for the next attempt; what cannot
    be read as a model is thrown away and downloaded once more. Processes that want the same model wait for the first.
    With `check` a model that is there is read, and if it has been damaged since, downloaded again.
    """
    if name.startswith(HUB):
        return _from_hub(name)
    if name.casefold() not in MODELS:
        raise _unknown(name)
    name = name.casefold()
    folder, model = _folder(name), MODELS[name]
    if folder.is_dir() and not (check and _damaged(name, folder)):
        return folder
    partial, lock = (folder.with_name(f".{name}.{suffix}") for suffix in ("partial", "lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(lock, name):
            if not folder.is_dir():
                print(f"{name}: {model.what}; licence: {model.licence}; {model.source}", file=sys.stderr)
                os.rename(_whole(name, model, partial), folder)
                shutil.rmtree(partial)
    except OSError as error:
        raise unwritable(folder, error) from None
    return folder


def _damaged(name: str, folder: Path) -> bool:
    """Whether a model cannot be read; then it is put away."""
    try:
        read_folder(folder)
    except InputError as error:
        print(f"{name} is damaged, and is downloaded again: {error}", file=sys.stderr)
        shutil.rmtree(folder)
        return True
    return False


def read_any(
    source: str | os.PathLike, with_softmax: bool = False, options: str | os.PathLike | None = None
) -> ModelFolder:
    """Reads the model that is meant by a name or a path, as `read_folder` does."""
    path = local(source)
    try:
        return read_folder(path, with_softmax, options)
    except InputError as error:
        if path == source or source.startswith(HUB):
            raise
        raise InputError(f"{error}; if the copy of {source} is damaged, elmo-jax download {source} mends it") from None


def _unknown(name: str) -> InputError:
    wanted = name.casefold()
    close = difflib.get_close_matches(wanted, MODELS, 5) or [known for known in MODELS if wanted in known]
    return InputError(
        f"there is no folder {brief(name)} here, and no published model of this name; "
        + (f"near it are {listed(close, ', ')}; " if close else "")
        + "give a path, or a name of those that elmo-jax models lists"
    )


@contextlib.contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Holds a lock; says so where it must be waited for."""
    held = filelock.FileLock(lock)
    try:
        held.acquire(blocking=False)
    except filelock.Timeout:
        print(f"{name} is being downloaded by another process, which is waited for", file=sys.stderr)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _whole(name: str, model: Published, partial: Path) -> Path:
    """A folder in `partial` with the model as it is kept: an archive unpacked, other files as they are."""
    whole = partial / "whole"
    for last in (False, True):
        partial.mkdir(exist_ok=True)
        files = [_fetch(name, url, partial / file) for url, file in zip(model.urls, model.files, strict=True)]
        problem = _problem(model, files, whole)
        if problem is None:
            break
        shutil.rmtree(partial)
        if last:
            raise InputError(
                f"what {' and '.join(map(_address, model.urls))} brought, twice, is not the model {name}: {problem}. "
                f"Nothing of it is kept. {_by_hand(name, model)}"
            )
        print(f"{name} came altered, and is downloaded again: {problem}", file=sys.stderr)
    if len(files) == 2:
        whole.mkdir(exist_ok=True)
        for file in files:
            os.replace(file, whole / file.name)
    return whole


def _problem(model: Published, files: list[Path], whole: Path) -> str | None:
    """What is wrong with downloaded files: their known hashes, else names, shapes and values of what they hold.

    An archive is unpacked into `whole`.
    """
    import pooch

    for file, known in zip(files, model.hashes, strict=False):
        algorithm, _, expected = known.partition(":")
        found = pooch.file_hash(str(file), algorithm)
        if found != expected:
            return f"the {algorithm} of {file.name} is {found}, that of the published file {expected}"
    try:
        if len(files) == 2:
            read_folder(files[0].parent)
            return None
        if whole.exists():
            shutil.rmtree(whole)
        with unpacked(files[0]) as inside:
            shutil.copytree(inside, whole)
        read_folder(whole)
    except InputError as error:
        return str(error)
    return None


def _by_hand(name: str, model: Published) -> str:
    """What to do where a download does not work."""
    return (
        f"Put {'what it unpacks to' if len(model.urls) == 1 else ' and '.join(model.files)} into {_folder(name)} "
        f"yourself (see {model.source}), or give the environment's {MIRROR} the address of a mirror"
    )


def _address(url: str) -> str:
    """Where a published file is fetched: there, or with the same path from the mirror of the environment."""
    mirror = os.environ.get(MIRROR)
    if mirror and not re.match("https?://.", mirror):
        raise InputError(f"the environment's {MIRROR} is {brief(mirror)}; it must be an http:// or https:// address")
    return url if not mirror else mirror.rstrip("/") + urlsplit(url).path


class _Hopeless(Exception):
    """A download that fails the same way if it is repeated."""


def _fetch(name: str, url: str, file: Path) -> Path:
    """Downloads a file, unless it is there from before; a broken connection is tried again, from where it broke."""
    import pooch
    import requests

    def receive(address: str, target: str, _: object) -> None:
        part = file.with_name(f"{file.name}.part")
        try:
            _receive(address, part, f"{name}: {file.name}", 1 if file.suffix in (".json", ".hdf5") else 2)
        except requests.RequestException as error:
            print(f"{name}: {brief(error)}", file=sys.stderr)
            raise
        os.replace(part, target)

    address, logger = _address(url), pooch.get_logger()
    registry, urls, level = {file.name: None}, {file.name: address}, logger.level
    logger.setLevel("WARNING")
    try:
        fetcher = pooch.create(file.parent, "", registry=registry, urls=urls, retry_if_failed=RETRIES)
        fetcher.fetch(file.name, downloader=receive)
    except (_Hopeless, requests.RequestException) as error:
        raise InputError(
            f"cannot download {address} ({brief(error)}); the same command goes on where it stopped. "
            f"{_by_hand(name, MODELS[name])}"
        ) from None
    finally:
        logger.setLevel(level)
    return file


def _receive(address: str, part: Path, label: str, copies: int) -> None:
    """Downloads into `part` what it lacks; from the beginning, if the server has changed the file or gives no parts.

    The disk must have room for so many copies of the file.
    """
    import requests

    version = part.with_name(f"{part.name}.version")  # of the file that the server had at first
    done = part.stat().st_size if part.exists() and version.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": version.read_text()}
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+)", answer.headers.get("Content-Range", ""))
        if done and answer.status_code == 416 and span and int(span[2]) == done:
            return
        if answer.status_code == 416 or (answer.status_code == 206 and not (span and span[1] and int(span[1]) == done)):
            part.unlink(missing_ok=True)
            raise requests.ConnectionError("the server gave another part than was asked for")
        if 400 <= answer.status_code < 500 and answer.status_code not in PASSING:
            raise _Hopeless(f"{answer.status_code} {answer.reason}")
        answer.raise_for_status()
        if answer.status_code == 206:
            total = int(span[2])
        else:
            length, done = answer.headers.get("Content-Length", ""), 0
            plain = "Content-Encoding" not in answer.headers
            total = int(length) if plain and length.isdecimal() else None
            version.unlink(missing_ok=True)
            part.write_bytes(b"")
            strong = answer.headers.get("ETag", "W/")
            known = answer.headers.get("Last-Modified") if strong.startswith("W/") else strong
            if plain and known:
                version.write_text(known)
        free = shutil.disk_usage(part.parent).free
        if total is not None and copies * total - done > free:
            raise _Hopeless(f"it takes {copies * total - done:,} bytes more, and the disk has {free:,}; make room")
        with (
            part.open("ab") as file,
            tqdm(desc=label, total=total, initial=done, unit="B", unit_scale=True, unit_divisor=1000) as bar,
        ):
            for piece in answer.iter_content(PIECE):
                file.write(piece)
                bar.update(len(piece))
    if total is not None and part.stat().st_size != total:
        raise requests.ConnectionError(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")


def _from_hub(source: str) -> str:
    """The folder of a repository of the Hugging Face Hub in its own cache, which huggingface_hub keeps."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@(.+))?", source)
    if match is None:
        raise InputError(f"{brief(source)} is not of the form hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    with needing("hf"):
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    try:
        return huggingface_hub.snapshot_download(match[1], revision=match[2], allow_patterns=HUB_FILES)
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"cannot get {source} from the Hugging Face Hub ({brief(error)}); give the name of a repository with a "
            "model folder's files, and a revision that it has"
        ) from None
