"""Where sentences come from: text files, standard input, the built-in text; and a corpus held as numbers."""

import contextlib
import functools
import glob
import gzip
import heapq
import itertools
import operator
import re
import shutil
import sys
import tempfile
import warnings
import weakref
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from tqdm import tqdm

from elmo_jax.config import DataConfig
from elmo_jax.errors import InputError, brief
from elmo_jax.files import as_path, matching
from elmo_jax.vocabulary import (
    BEGIN_SENTENCE,
    BEGIN_SENTENCE_CHARACTER,
    BEGIN_WORD,
    END_SENTENCE,
    END_SENTENCE_CHARACTER,
    END_WORD,
    PADDING,
    Vocabulary,
)

BUILTIN = "builtin"
TFDS = "tfds:"
HELDOUT_EVERY = 10


def find_files(patterns: Sequence[str], option: str) -> list[epath.Path]:
    """Files that match the globs, sorted within each; `option` says in errors where the patterns came from."""
    files = []
    for pattern in patterns:
        matches = matching(pattern)
        if not matches:
            problem = f"no file matches {pattern}" if glob.has_magic(pattern) else f"there is no file {pattern}"
            if as_path(pattern).is_dir():
                problem = f"{pattern} is a folder"
            raise InputError(f"{option}: {problem}; give text files, plain or .gz, with a sentence a line")
        files += matches
    return files


def read_files(files: Sequence[epath.Path], progress: str | None = None) -> Iterator[list[str]]:
    """Tokens of every line of the files, in order; a blank line gives an empty list.

    `progress` is the label of a progress bar over the bytes.
    """
    total = None if any(file.suffix == ".gz" for file in files) else sum(file.stat().length for file in files)
    with tqdm(total=total, desc=progress, unit="B", unit_scale=True, disable=progress is None, leave=False) as bar:
        for file in files:
            with file.open("rb") as raw, gzip.open(raw) if file.suffix == ".gz" else raw as stream:
                try:
                    yield from read_lines(stream, str(file), bar)
                except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                    raise InputError(f"{file} is not a whole gzip file ({error}); compress it again") from None


def read_lines(lines: Iterable[bytes], source: str, bar: tqdm | None = None) -> Iterator[list[str]]:
    """Tokens of every line: only a line feed ends a line, any Unicode white space separates tokens (as in bilm-tf)."""
    warned = False
    for number, line in enumerate(lines, start=1):
        try:
            tokens = line.decode("utf-8-sig" if number == 1 else "utf-8").split()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{source}, line {number}, is not UTF-8 ({error.reason} at byte {error.start + 1}); "
                "convert the file, for instance with iconv"
            ) from None
        if not warned and (BEGIN_SENTENCE in tokens or END_SENTENCE in tokens):
            warned = True
            message = f"{source}, line {number}, has {BEGIN_SENTENCE} or {END_SENTENCE} as a token; sentence boundaries"
            warnings.warn(f"{message} are added by the reader, and those in the text are kept as well", stacklevel=2)
        yield tokens
        if bar is not None:
            bar.update(len(line))


def builtin_sentences() -> Iterator[list[str]]:
    """English sentences that every Python carries: the prose of its language reference, without code and grammar."""
    from pydoc_data.topics import topics

    token = re.compile(r"\w+(?:[.'’-]\w+)*|[^\w\s]")
    for topic in sorted(topics):
        for paragraph in topics[topic].split("\n\n"):
            text = re.sub(r"^([*•-]|\d+\.|\[\d+\])\s+", "", " ".join(paragraph.split())).replace("**", "")
            is_prose = len(text.split()) > 4 and text[-1] in ".:" and text[0].isalnum() | (text[0] in "\"'“*")
            if not is_prose or any(mark in text for mark in ("::=", ">>>", "====", "----", "****", " = ")):
                continue
            for sentence in re.split(r"(?<=[.:?!]) (?=[\"A-Z])", re.sub(r"\*(\w[^*]*)\*", r"\1", text)):
                yield token.findall(sentence)


def read_tfds(name: str, option: str, progress: str | None = None) -> Iterator[list[str]]:
    """Tokens of the field `text` of every record of `tfds:DATASET/SPLIT`, in order of storage, without TensorFlow.

    The dataset must be there in the format array_record (in $TFDS_DATA_DIR, by default ~/tensorflow_datasets).
    """
    dataset, _, split = name.removeprefix(TFDS).rpartition("/")
    if not dataset or not split:
        raise InputError(f"{option}: {name} is not tfds:DATASET/SPLIT; give for instance tfds:lm1b/train")
    import tensorflow_datasets as tfds

    try:
        source = tfds.data_source(dataset, split=split, download=False)
        if "text" not in source.dataset_info.features:
            raise ValueError(f"it has no field text, but {', '.join(source.dataset_info.features)}")
    except Exception as error:  # the library's errors have many types: not found, not prepared, wrong format, ...
        raise InputError(
            f"{option}: cannot read {name} ({type(error).__name__}: {brief(error)}); prepare it once with "
            f"tfds.builder({dataset!r}, file_format='array_record').download_and_prepare()"
        ) from None
    lines = (source[number]["text"] for number in range(len(source)))
    yield from read_lines(tqdm(lines, progress, len(source), disable=progress is None, leave=False), name)


def sentences(patterns: Sequence[str], option: str, heldout: bool = False, progress: str | None = None):
    """Sentences (lists of tokens, blank lines left out) of files, of `tfds:DATASET/SPLIT`, or of the built-in text.

    A fixed tenth of the built-in text, every tenth sentence, is held out.
    """
    if tuple(patterns) == (BUILTIN,):
        for number, tokens in enumerate(builtin_sentences()):
            if (number % HELDOUT_EVERY == 0) == heldout:
                yield tokens
        return
    for pattern in patterns:
        if pattern.startswith(TFDS):
            lines = read_tfds(pattern, option, progress)
        else:
            lines = read_files(find_files([pattern], option), progress)
        yield from (tokens for tokens in lines if tokens)


def read_input(name: str) -> Iterator[list[str]]:
    """Tokens of every line, blank ones too, of one file, or of standard input if the name is `-`."""
    if name == "-":
        if sys.stdin is None:
            raise InputError("--input - reads standard input, which is closed; give text to it, or a file")
        return read_lines(sys.stdin.buffer, "standard input")
    return read_files(find_files([glob.escape(name)], "--input"))


class WordCounts:
    """How often each word of a text occurs, exactly, in bounded memory.

    Iterating yields (word, count). No more than `held` words are held while counting: then they are written to a
    temporary file, sorted, and the files are merged in the end.
    """

    def __init__(self, text: Iterable[list[str]], held: int = 5_000_000):
        self.tokens = 0
        self._counts: Counter[str] = Counter()
        self._files: list[Path] = []
        self._folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._folder)
        for tokens in text:
            self.tokens += len(tokens)
            self._counts.update(tokens)
            if len(self._counts) > held:
                self._files.append(self._folder / str(len(self._files)))
                with self._files[-1].open("w", encoding="utf-8") as file:
                    file.writelines(f"{word}\t{count}\n" for word, count in sorted(self._counts.items()))
                self._counts.clear()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        parse = lambda line: (line[: line.index("\t")], int(line[line.index("\t") :]))
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(file.open(encoding="utf-8")) for file in self._files]
            merged = heapq.merge(sorted(self._counts.items()), *(map(parse, file) for file in files), key=first)
            for word, group in itertools.groupby(merged, key=first):
                yield word, sum(count for _, count in group)


first = operator.itemgetter(0)


# Spellings of the boundaries: bytes that UTF-8 never has. LETTERS turns the bytes of spellings into character ids.
BOUNDARIES = {BEGIN_SENTENCE: b"\xfe", END_SENTENCE: b"\xff"}
LETTERS = np.arange(256, dtype=np.uint16)
LETTERS[[0xFE, 0xFF]] = BEGIN_SENTENCE_CHARACTER, END_SENTENCE_CHARACTER


def spell(words: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 bytes of words, joined, uint8 [bytes], and how many each has, int64 [words]."""
    spelled = [BOUNDARIES.get(word) or word.encode("utf-8", "ignore") for word in words]
    return np.frombuffer(b"".join(spelled), np.uint8), np.fromiter(map(len, spelled), np.int64, len(spelled))


class Index(dict):
    """Word → type: a word that the vocabulary lacks has, from its first appearance on, the next type."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__(vocabulary.index)
        self.repeated = len(vocabulary) - len(self)  # words that stand twice in the vocabulary

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self) + self.repeated
        return number


class Corpus:
    """A text held as word types: 4 bytes a token, whatever the length of its words.

    A type below V is a word's id in the vocabulary; from V up are the words that the vocabulary lacks, which keep
    their own spelling as input and are <UNK> as a target (bilm-tf's behaviour).

    `types` int32 [N]: the sentences one after the other, each with its <S> and </S>;
    `starts` int64 [S + 1]: where each of the S sentences starts in it;
    `spellings` uint8 [bytes]: the spellings of all word types, joined, as `spell` has them;
    `spelling_starts` int64 [types + 1]: where each starts in it.
    """

    def __init__(self, text: Iterable[list[str]], vocabulary: Vocabulary, source: str = "the text"):
        index = Index(vocabulary)
        types, starts = array("i"), array("q", [0])
        for tokens in text:
            types.append(vocabulary.begin)
            types.extend(map(index.__getitem__, tokens))
            types.append(vocabulary.end)
            starts.append(len(types))
        if len(starts) == 1:
            raise InputError(f"{source} has no sentences; give text with a sentence a line, tokens separated by spaces")
        self.vocabulary = vocabulary
        self.types = np.frombuffer(types, np.int32)
        self.starts = np.frombuffer(starts, np.int64)
        others = itertools.islice(index, len(vocabulary.index), None)
        self.spellings, lengths = spell(itertools.chain(vocabulary.words, others))
        self.spelling_starts = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def fingerprint(self) -> dict[str, int]:
        """Tells this text, read with this vocabulary, from any other."""
        words = zlib.crc32("\n".join(self.vocabulary.words).encode("utf-8"))
        return {"sentences": len(self), "types_crc32": zlib.crc32(self.types), "vocabulary_crc32": words}

    @property
    def tokens(self) -> int:
        """Predictions of each direction in one pass: every token and one boundary a sentence."""
        return len(self.types) - len(self)

    @property
    def unknown(self) -> float:
        """Share of the tokens that the vocabulary lacks, which are <UNK> as targets."""
        return np.count_nonzero(self.types >= len(self.vocabulary)) / max(1, len(self.types) - 2 * len(self))

    def targets(self, types: np.ndarray) -> np.ndarray:
        """Vocabulary ids of word types."""
        return np.where(types < len(self.vocabulary), types, np.int32(self.vocabulary.unknown))

    def characters(self, types: np.ndarray, max_characters: int) -> np.ndarray:
        """Character ids uint16 [n, max_characters] of n word types, those that `character_ids` gives their words."""
        starts = self.spelling_starts[types]
        lengths = np.minimum(self.spelling_starts[types + 1] - starts, max_characters - 2)
        first = np.arange(len(types)) * max_characters + 1  # where each spelling begins in `ids`
        ids = np.full((len(types), max_characters), PADDING, np.uint16)
        ids[:, 0] = BEGIN_WORD
        ids.flat[ranges(first, lengths)] = LETTERS[self.spellings[ranges(starts, lengths)]]
        ids.flat[first + lengths] = END_WORD
        return ids


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, .. (lengths[0] numbers), then starts[1], .., and so on."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def read_corpora(
    data: DataConfig, of_run: Vocabulary | None, of_init: Vocabulary | None = None
) -> tuple[Corpus, Corpus | None]:
    """The training and the held-out text.

    The vocabulary is that of the run that goes on; of a new run data.vocab, else that of the model that it starts
    from, else counted.
    """
    if not data.train:
        raise InputError("data.train is not given; give --data.train FILE_OR_GLOB, or builtin for the built-in text")
    for patterns, option in ((data.train, "--data.train"), (data.heldout, "--data.heldout")):
        find_files([name for name in patterns if name != BUILTIN and not name.startswith(TFDS)], option)
    train = functools.partial(sentences, data.train, "--data.train")
    given = None
    if data.vocab is not None and (of_run is None or as_path(data.vocab).exists()):
        given = Vocabulary.load(as_path(data.vocab))
    if of_run is not None and given is not None and given.words != of_run.words:
        raise InputError(f"{data.vocab} is not the vocabulary that the run began with; leave --data.vocab out to go on")
    vocabulary = of_run or given or of_init or Vocabulary.from_counts(WordCounts(train(progress="counting words")))
    held_out = data.heldout or (data.train if data.train == (BUILTIN,) else ())
    text = sentences(held_out, "--data.heldout", heldout=True, progress="reading")
    heldout = Corpus(text, vocabulary, " ".join(held_out)) if held_out else None
    return Corpus(train(progress="reading"), vocabulary, " ".join(data.train)), heldout
