"""The built-in text, counted words, and a corpus held as numbers."""

import contextlib
import hashlib
import heapq
import itertools
import json
import operator
import os
import re
import shutil
import tempfile
import weakref
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from elmo_jax.arrays import GrowingArrays, Kept, Unwritable, checksums, keep_arrays
from elmo_jax.config import DataConfig
from elmo_jax.errors import InputError, brief
from elmo_jax.files import as_path, is_remote
from elmo_jax.sources import BY_NAME, STANDARD_INPUT, TFDS, Lines, Place, Source, TextForm, find_sources
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
HELDOUT_EVERY = 10

# The arrays of a Corpus.
ARRAYS = {"types": np.int32, "starts": np.int64, "spellings": np.uint8, "spelling_starts": np.int64}
SAVED_EVERY = 200_000  # sentences, while a cache is made


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


def sentences(
    patterns: Sequence[str],
    option: str,
    heldout: bool = False,
    progress: str | None = None,
    form: TextForm = BY_NAME,
) -> Iterator[list[str]]:
    """Sentences (lists of tokens, blank lines left out) of what `find_sources` finds, or of the built-in text.

    A fixed tenth of the built-in text, every tenth sentence, is held out.
    """
    if tuple(patterns) == (BUILTIN,):
        for number, tokens in enumerate(builtin_sentences()):
            if (number % HELDOUT_EVERY == 0) == heldout:
                yield tokens
        return
    yield from filter(None, Lines(find_sources(patterns, option, form), progress))


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


def count_words(patterns: Sequence[str], option: str, form: TextForm = BY_NAME) -> Vocabulary:
    """The vocabulary of all words of a text that is then read again."""
    if STANDARD_INPUT in patterns:
        raise InputError(f"{option} - can be read only once, not to count its words and again; give a vocabulary")
    return Vocabulary.from_counts(WordCounts(sentences(patterns, option, progress="counting words", form=form)))


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

    def __init__(self, vocabulary: Vocabulary, others: Iterable[str] = ()):
        super().__init__(vocabulary.index)
        self.repeated = len(vocabulary) - len(self)  # words that stand twice in the vocabulary
        for word in others:
            self[word]

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self) + self.repeated
        return number


class Tokenizer:
    """Turns sentences into what they add to the arrays of a Corpus; `unknown` counts tokens that are <UNK>.

    Goes on after arrays of some `sizes`, with the words up to there that the vocabulary lacks, `others`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        sizes: Mapping[str, int] | None = None,
        others: Iterable[str] = (),
        unknown: int = 0,
    ):
        self.vocabulary, self.index, self.unknown = vocabulary, Index(vocabulary, others), unknown
        self.sizes = dict(sizes or dict.fromkeys(ARRAYS, 0))

    def parts(self, text: Iterable[list[str]], source: str) -> Iterator[dict[str, np.ndarray]]:
        """Of every so many sentences what they add; `source` is for the error of a text that has none."""
        text = iter(text)
        while len((part := self.part(itertools.islice(text, SAVED_EVERY)))["types"]):
            self.unknown += int(np.count_nonzero(part["types"] >= len(self.vocabulary)))
            for name, added in part.items():
                self.sizes[name] += len(added)
            yield part
        if not self.sizes["types"]:
            raise InputError(f"{source} has no sentences; give text with a sentence a line, tokens separated by spaces")

    def part(self, text: Iterable[list[str]]) -> dict[str, np.ndarray]:
        vocabulary, index, sizes = self.vocabulary, self.index, self.sizes
        first = [] if sizes["starts"] else [0]
        types, starts = array("i"), array("q", first)
        for tokens in text:
            types.append(vocabulary.begin)
            types.extend(map(index.__getitem__, tokens))
            types.append(vocabulary.end)
            starts.append(sizes["types"] + len(types))
        spelled = max(sizes["spelling_starts"] - 1, 0)  # so many word types have been
        others = itertools.islice(index, max(spelled - index.repeated, len(vocabulary.index)), None)
        spellings, lengths = spell(itertools.chain(vocabulary.words[spelled:], others))
        return {
            "types": np.frombuffer(types, np.int32),
            "starts": np.frombuffer(starts, np.int64),
            "spellings": spellings,
            "spelling_starts": np.concatenate([np.array(first, np.int64), sizes["spellings"] + np.cumsum(lengths)]),
        }


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
        tokenizer, held = Tokenizer(vocabulary), {name: bytearray() for name in ARRAYS}
        for part in tokenizer.parts(text, source):
            for name, added in part.items():
                held[name] += added.tobytes()
        arrays = {name: np.frombuffer(held[name], dtype) for name, dtype in ARRAYS.items()}
        self._set(vocabulary, arrays, tokenizer.unknown)

    @classmethod
    def kept(cls, vocabulary: Vocabulary, kept: Kept) -> "Corpus":
        """A text whose arrays are in a cache."""
        corpus = cls.__new__(cls)
        corpus._set(vocabulary, kept.arrays, kept.about["unknown"], kept.checksums)
        return corpus

    def _set(self, vocabulary, arrays, unknown, sums=None) -> None:
        self.vocabulary, self._unknown, self._checksums = vocabulary, unknown, sums
        self.types, self.starts, self.spellings, self.spelling_starts = (arrays[name] for name in ARRAYS)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def fingerprint(self) -> dict[str, int]:
        """Tells this text, read with this vocabulary, from any other."""
        words = zlib.crc32(self.vocabulary.to_bytes())
        sums = self._checksums or {"types": checksums(self.types), "spellings": checksums(self.spellings)}
        text = zlib.crc32(np.array(sums["types"] + sums["spellings"], np.uint32))
        return {"sentences": len(self), "types_crc32": text, "vocabulary_crc32": words}

    @property
    def tokens(self) -> int:
        """Predictions of each direction in one pass: every token and one boundary a sentence."""
        return len(self.types) - len(self)

    @property
    def unknown(self) -> float:
        """Share of the tokens that the vocabulary lacks, which are <UNK> as targets."""
        return self._unknown / max(1, len(self.types) - 2 * len(self))

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
        joined = ids.reshape(-1)
        joined[ranges(first, lengths)] = LETTERS[self.spellings[ranges(starts, lengths)]]
        joined[first + lengths] = END_WORD
        return ids


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, .. (lengths[0] numbers), then starts[1], .., and so on."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def cache_folder(sources: Sequence[Source], words: str, cache: str | None) -> Path:
    """Where the arrays of a text are kept; `words` tells its vocabulary from others."""
    if cache is not None and is_remote(cache):
        raise InputError(
            f"data.cache is {cache}; give a folder on this machine, where a text can be mapped into memory"
        )
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise Unwritable(f"there is no home folder ({error}); give a folder for the cache") from None
    names = json.dumps([words, *(source.key for source in sources)])
    readable = re.sub(r"[^\w.-]+", "_", Path(sources[0].name).name)[:40]
    folder = user / "elmo_jax" / "text" if cache is None else Path(cache)
    return folder.absolute() / f"{readable}-{hashlib.sha256(names.encode()).hexdigest()[:16]}"


def cached(
    patterns: Sequence[str], option: str, vocabulary: Vocabulary, cache: str | None, form: TextForm = BY_NAME
) -> tuple[Corpus, Path]:
    """The text of files and data sets from its cache, and where that is; it is made where there is none.

    Begun again after an interruption, it goes on where it was. Unwritable where the cache cannot be written.
    """
    sources, words = find_sources(patterns, option, form), hashlib.sha256(vocabulary.to_bytes()).hexdigest()
    folder = cache_folder(sources, words, cache)

    def make(growing: GrowingArrays) -> None:
        about = growing.about or {"place": Place(), "unknown": 0}
        others: list[str] = []
        if growing.about is not None:
            ends = growing.saved("spelling_starts")[len(vocabulary) :]
            spellings = growing.saved("spellings").tobytes()
            others = [spellings[begin:end].decode() for begin, end in itertools.pairwise(ends)]
        print(f"reading {brief(' '.join(patterns))} into {folder}, for this and later starts")
        tokenizer = Tokenizer(vocabulary, growing.sizes, others, about["unknown"])
        lines = Lines(sources, "reading", Place(*about["place"]))
        for part in tokenizer.parts(filter(None, lines), " ".join(patterns)):
            growing.append(part)
            growing.save({"place": lines.place(), "unknown": tokenizer.unknown})

    key = {"words": words, "sources": [[source.key, *source.version()] for source in sources]}
    return Corpus.kept(vocabulary, keep_arrays(folder, ARRAYS, key, make)), folder


def read_text(
    patterns: Sequence[str],
    option: str,
    vocabulary: Vocabulary,
    cache: str | None = None,
    heldout: bool = False,
    form: TextForm = BY_NAME,
) -> Corpus:
    """A text, from its cache; the built-in text in memory, and others where there can be no cache."""
    if tuple(patterns) != (BUILTIN,):
        try:
            return cached(patterns, option, vocabulary, cache, form)[0]
        except Unwritable as error:
            print(f"{brief(' '.join(patterns))} is held in memory, and read again at the next start: {error}")
    return Corpus(sentences(patterns, option, heldout, "reading", form), vocabulary, " ".join(patterns))


def read_corpora(
    data: DataConfig, of_run: Vocabulary | None, of_init: Vocabulary | None = None
) -> tuple[Corpus, Corpus | None]:
    """The training and the held-out text.

    The vocabulary is that of the run that goes on; of a new run data.vocab, else that of the model that it starts
    from, else counted.
    """
    if not data.train:
        raise InputError("data.train is not given; give --data.train FILE_OR_GLOB, or builtin for the built-in text")
    form = TextForm(data.text_format, data.text_column)
    for patterns, option in ((data.train, "--data.train"), (data.heldout, "--data.heldout")):
        find_sources([name for name in patterns if name != BUILTIN and not name.startswith(TFDS)], option, form)
    given = None
    if data.vocab is not None and (of_run is None or as_path(data.vocab).exists()):
        given = Vocabulary.load(as_path(data.vocab))
    if of_run is not None and given is not None and given.words != of_run.words:
        raise InputError(f"{data.vocab} is not the vocabulary that the run began with; leave --data.vocab out to go on")
    vocabulary = of_run or given or of_init or count_words(data.train, "--data.train", form)
    held_out = data.heldout or (data.train if data.train == (BUILTIN,) else ())
    heldout = read_text(held_out, "--data.heldout", vocabulary, data.cache, True, form) if held_out else None
    return read_text(data.train, "--data.train", vocabulary, data.cache, form=form), heldout
