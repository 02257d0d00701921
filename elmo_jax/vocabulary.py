"""Word → id, word → character ids; vocabularies and alphabets, and building a vocabulary from counts."""

import heapq
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from elmo_jax.errors import InputError, brief
from elmo_jax.files import writing

BEGIN_SENTENCE, END_SENTENCE, UNKNOWN = "<S>", "</S>", "<UNK>"
# Character ids: 0 to 255 are UTF-8 bytes, then five marks (bilm-tf data.py, UnicodeCharsVocabulary).
BEGIN_SENTENCE_CHARACTER, END_SENTENCE_CHARACTER, BEGIN_WORD, END_WORD, PADDING = range(256, 261)
CHARACTERS = 261
# The marks as lines of an alphabet.
MARKS = (BEGIN_SENTENCE, END_SENTENCE, "<BOW>", "<EOW>", "<PAD>")


def _lines(path: Path, what: str) -> list[str]:
    """The lines of a file; a byte order mark is read as nothing."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {what} file {path} ({error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); convert it first") from None
    return lines if lines[-1] else lines[:-1]


class Vocabulary:
    """Words and their ids. The order of the file is the order of the ids, by convention most frequent first.

    Quirks kept from bilm-tf: lines are stripped of white space, `!!!MAXTERMID` is skipped, a word that stands
    twice has the later id.
    """

    def __init__(self, words: Iterable[str], source: str = "the vocabulary"):
        self.words = [word for word in words if word != "!!!MAXTERMID"]
        self.index = {word: number for number, word in enumerate(self.words)}
        missing = [word for word in (BEGIN_SENTENCE, END_SENTENCE, UNKNOWN) if word not in self.index]
        if missing:
            raise InputError(
                f"{source} ({len(self.words)} words) lacks {' '.join(missing)}; "
                f"a vocabulary has {BEGIN_SENTENCE}, {END_SENTENCE} and {UNKNOWN}, each on a line of its own"
            )
        self.begin = self.index[BEGIN_SENTENCE]
        self.end = self.index[END_SENTENCE]
        self.unknown = self.index[UNKNOWN]

    def __len__(self) -> int:
        return len(self.words)

    def ids(self, words: Iterable[str]) -> np.ndarray:
        """Ids int32 [N] of N words; a word that is not in the vocabulary has the id of <UNK>."""
        return np.array([self.index.get(word, self.unknown) for word in words], np.int32)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Reads a file with a word a line; a byte order mark is read as nothing."""
        return cls((line.strip() for line in _lines(path, "the vocabulary")), str(path))

    def save(self, path: Path) -> None:
        """Writes a file that `load`, bilm-tf and AllenNLP read."""
        with writing(path) as partial:
            partial.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of such a file."""
        return "".join(word + "\n" for word in self.words).encode("utf-8")

    @classmethod
    def from_counts(
        cls, counts: Iterable[tuple[str, int]], max_size: int | None = None, min_count: int = 1
    ) -> "Vocabulary":
        """The special words, then the others by frequency (ties in alphabetical order), at most `max_size` in all."""
        specials = [BEGIN_SENTENCE, END_SENTENCE, UNKNOWN]
        frequent = ((-count, word) for word, count in counts if count >= min_count and word not in specials)
        most = sorted(frequent) if max_size is None else heapq.nsmallest(max_size - len(specials), frequent)
        return cls(specials + [word for _, word in most])


class Alphabet:
    """Characters (Unicode code points) and their ids, of a model that does not read bytes.

    An id has a place in `characters`: a character, `<UNK>` for all that are not there, or nothing. The marks have the
    ids that they have among bytes, 256 to 260. The file has a line for each; a character that is white space or
    cannot be printed is written as its number, U+3000.
    """

    def __init__(self, characters: Sequence[str], source: str = "the alphabet"):
        self.characters = list(characters)
        if tuple(self.characters[BEGIN_SENTENCE_CHARACTER:CHARACTERS]) != MARKS or UNKNOWN not in self.characters:
            marks = f"lines 257 to 261 are the marks {' '.join(MARKS)}, another one is {UNKNOWN}"
            raise InputError(f"{source} ({len(self.characters)} lines) is no alphabet: of one, {marks}")
        self.index: dict[str, int] = {}
        for number, letter in enumerate(self.characters):
            if letter in self.index or (len(letter) > 1 and letter not in (*MARKS, UNKNOWN)):
                what = "there before" if letter in self.index else "no character; one can be written as U+ its number"
                raise InputError(f"line {number + 1} of {source} is {brief(repr(letter), 40)}, which is {what}")
            if letter:
                self.index[letter] = number
        self.unknown = self.characters.index(UNKNOWN)

    def __len__(self) -> int:
        return len(self.characters)

    @classmethod
    def of(cls, letters: Sequence[str]) -> "Alphabet":
        """The alphabet of these characters, in their order."""
        first = [UNKNOWN, *letters[:255]]
        return cls([*first, *[""] * (256 - len(first)), *MARKS, *letters[255:]])

    @classmethod
    def load(cls, path: Path) -> "Alphabet":
        """Reads characters.txt."""
        return cls([_character(line.strip()) for line in _lines(path, "the alphabet")], str(path))

    def to_bytes(self) -> bytes:
        """The content of characters.txt."""
        plain = lambda letter: len(letter) != 1 or (letter.isprintable() and not letter.isspace())
        lines = [letter if plain(letter) else f"U+{ord(letter):04X}" for letter in self.characters]
        return "".join(line + "\n" for line in lines).encode("utf-8")


def _character(line: str) -> str:
    """What a line of characters.txt stands for."""
    number = re.fullmatch(r"U\+([0-9A-F]{4,6})", line)
    return line if number is None or int(number[1], 16) >= 0x110000 else chr(int(number[1], 16))


def words_read(words: Sequence[str], max_characters: int) -> list[str]:
    """Of each word what a model with an alphabet reads: as many characters as fit between begin and end of word."""
    return [word if word in (BEGIN_SENTENCE, END_SENTENCE) else word[: max_characters - 2] for word in words]


def character_ids(words: Sequence[str], max_characters: int, alphabet: Alphabet | None = None) -> np.ndarray:
    """Character ids uint16 [U, max_characters] of U words, as bilm-tf spells them in training; int32 of an alphabet's.

    A word is begin-of-word, its UTF-8 bytes (as many as fit, even if that cuts a character), end-of-word, padding.
    `<S>` and `</S>` are spelled with one mark of their own. At inference bilm-tf adds 1 to every id and puts a zero
    row before the character table, so that 0 can be its mask; without a mask both are left out, with the same result.
    """
    ids = np.full((len(words), max_characters), PADDING, np.uint16 if alphabet is None else np.int32)
    ids[:, 0] = BEGIN_WORD
    for row, word in zip(ids, words, strict=True):
        if word in (BEGIN_SENTENCE, END_SENTENCE):
            row[1] = BEGIN_SENTENCE_CHARACTER if word == BEGIN_SENTENCE else END_SENTENCE_CHARACTER
            row[2] = END_WORD
        elif alphabet is None:
            spelling = word.encode("utf-8", "ignore")[: max_characters - 2]
            row[1 : len(spelling) + 1] = np.frombuffer(spelling, np.uint8)
            row[len(spelling) + 1] = END_WORD
        else:
            letters = [alphabet.index.get(letter, alphabet.unknown) for letter in word[: max_characters - 2]]
            row[1 : len(letters) + 1] = letters
            row[len(letters) + 1] = END_WORD
    return ids


def character_widths(max_characters: int, widest_filter: int) -> tuple[int, ...]:
    """Numbers of columns of character ids that programs are compiled for: few, no filter is wider, the last are all."""
    return (*(width for width in (16, 24, 32) if widest_filter < width < max_characters), max_characters)
