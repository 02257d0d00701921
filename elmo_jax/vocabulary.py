"""Word → id, word → character ids; building a vocabulary from counts."""

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from elmo_jax.errors import InputError
from elmo_jax.files import writing

BEGIN_SENTENCE, END_SENTENCE, UNKNOWN = "<S>", "</S>", "<UNK>"
# Character ids: 0 to 255 are UTF-8 bytes, then five marks (bilm-tf data.py, UnicodeCharsVocabulary).
BEGIN_SENTENCE_CHARACTER, END_SENTENCE_CHARACTER, BEGIN_WORD, END_WORD, PADDING = range(256, 261)
CHARACTERS = 261


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
        try:
            lines = path.read_bytes().decode("utf-8-sig").split("\n")
        except OSError as error:
            raise InputError(f"cannot read the vocabulary file {path} ({error})") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error}); convert it first") from None
        return cls((line.strip() for line in (lines if lines[-1] else lines[:-1])), str(path))

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


def character_ids(words: Sequence[str], max_characters: int) -> np.ndarray:
    """Character ids uint16 [U, max_characters] of U words, as bilm-tf spells them in training.

    A word is begin-of-word, its UTF-8 bytes (as many as fit, even if that cuts a character), end-of-word, padding.
    `<S>` and `</S>` are spelled with one mark of their own. At inference bilm-tf adds 1 to every id and puts a zero
    row before the character table, so that 0 can be its mask; without a mask both are left out, with the same result.
    """
    ids = np.full((len(words), max_characters), PADDING, np.uint16)
    ids[:, 0] = BEGIN_WORD
    for row, word in zip(ids, words, strict=True):
        if word in (BEGIN_SENTENCE, END_SENTENCE):
            row[1] = BEGIN_SENTENCE_CHARACTER if word == BEGIN_SENTENCE else END_SENTENCE_CHARACTER
            row[2] = END_WORD
        else:
            spelling = word.encode("utf-8", "ignore")[: max_characters - 2]
            row[1 : len(spelling) + 1] = np.frombuffer(spelling, np.uint8)
            row[len(spelling) + 1] = END_WORD
    return ids


def character_widths(max_characters: int, widest_filter: int) -> tuple[int, ...]:
    """Numbers of columns of character ids that programs are compiled for: few, no filter is wider, the last are all."""
    return (*(width for width in (16, 24, 32) if widest_filter < width < max_characters), max_characters)
