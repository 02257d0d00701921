"""Question answering in its smallest form: which sentence of a paragraph answers the question (files of SQuAD).

The sentences are ranked by the cosine of their pooled vectors with that of the question; nothing is learned.
"""

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from elmo_jax.errors import InputError, needing
from elmo_jax.tasks.cosines import layers_of, pooled, unit, with_average
from elmo_jax.tasks.evaluate import Options, Piece
from elmo_jax.tasks.formats import Questions, read_questions
from elmo_jax.tasks.report import Figure, bootstrap
from elmo_jax.tasks.systems import System

# Where a sentence may end: marks of its end with the quotes and brackets that close behind them, and white space; the
# marks of Chinese and Japanese need none, nor does the end of a line.
END = re.compile(r"(?<![.!?…])(?P<mark>[.!?…]+)[\"'”’»)\]]*(?P<space>\s+)|[。！？]+[”’」』）]*\s*|\n\s*")
# What is before a full stop that ends no sentence: a single letter (an initial), letters with full stops, a title.
ABBREVIATION = re.compile(r"(?:^|[^\w.])(?:[^\W\d_](?:\.[^\W\d_])*|Mr|Mrs|Ms|Dr|Prof|St|Gen|Sen|Rep|vs|No)$")
LONGEST_ABBREVIATION = 20
# Marks that are part of a token, between characters that are such.
INSIDE = dict.fromkeys("-'’.", str.isalnum) | dict.fromkeys(",:", str.isdigit)
DIGITS = 6  # of cosines: those that differ by less are the same


def sentences_of(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end, one behind the other; together they are the text.

    A sentence ends with a line, or with . ! ? and white space before what is no small letter. A full stop behind an
    initial, an abbreviation with full stops or a title ends none.
    """
    begins, first = [0], len(text) - len(text.lstrip())
    for match in END.finditer(text):
        begin, end = max(begins[-1], first), match.start()
        if match.end() == len(text) or end <= begin:  # nothing is before or behind
            continue
        if match["mark"] and "\n" not in match["space"]:
            before = text[max(begin, end - LONGEST_ABBREVIATION) : end]
            if (match["mark"] == "." and ABBREVIATION.search(before)) or text[match.end()].islower():
                continue
        begins.append(match.end())
    return list(zip(begins, [*begins[1:], len(text)], strict=True))


def tokens_of(text: str) -> list[str]:
    """Words and punctuation marks apart: each mark or symbol is a token, but those INSIDE a word or a number."""
    spaced = []
    for before, letter, after in zip(f" {text}", text, f"{text[1:]} ", strict=False):
        belongs = letter in INSIDE and INSIDE[letter](before) and INSIDE[letter](after)
        apart = unicodedata.category(letter)[0] in "PS" and not belongs
        spaced.append(f" {letter} " if apart else letter)
    return "".join(spaced).split()


class Ranked(NamedTuple):
    """A question and the sentences of its paragraph: numbers of both among all texts, and which sentences answer it."""

    question: int
    sentences: np.ndarray
    right: np.ndarray


class Texts(NamedTuple):
    """All different sentences and questions, each once, as tokens; what is asked of them; how many were left out."""

    tokens: list[list[str]]
    ranked: list[Ranked]
    alone: int


def prepare(questions: Questions, limit: int | None = None) -> Texts:
    """The first questions; those of paragraphs of one sentence, where there is nothing to choose, are left out.

    A sentence is right if one of the answers begins in it.
    """
    numbers: dict[tuple[str, ...], int] = {}

    def number(text: str) -> int:
        return numbers.setdefault(tuple(tokens_of(text)), len(numbers))

    ranked: list[Ranked] = []
    alone = 0
    for paragraph in questions.paragraphs:
        if limit is not None and len(ranked) >= limit:
            break
        spans = sentences_of(paragraph.context)
        if len(spans) < 2:
            alone += len(paragraph.questions)
            continue
        sentences = np.array([number(paragraph.context[begin:end]) for begin, end in spans])
        for question in paragraph.questions:
            right = [any(begin <= place < end for place, _ in question.answers) for begin, end in spans]
            ranked.append(Ranked(number(question.text), sentences, np.array(right)))
    if not ranked:
        raise InputError(
            f"{questions.name} has no paragraph of two sentences with a question; there is nothing to choose from"
        )
    return Texts(list(map(list, numbers)), ranked[:limit], alone)


class Score(NamedTuple):
    """Of a question: whether the first sentence of the ranking answers it, and 1 / rank of the first that does."""

    accuracy: float
    reciprocal_rank: float


def score(similarities: np.ndarray, right: np.ndarray) -> Score:
    """Of a ranking by similarity [n]; of sentences that are equally similar the mean over their orders."""
    best = similarities[right].max()
    above, tied = int((similarities > best).sum()), similarities == best
    count, answers = int(tied.sum()), int((tied & right).sum())
    # The first of the answers among the tied ones is the k-th in so many of their orders:
    shares = [
        math.comb(count - place, answers - 1) / math.comb(count, answers) for place in range(1, count - answers + 2)
    ]
    reciprocal = sum(share / (above + place) for place, share in enumerate(shares, start=1))
    return Score(answers / count if above == 0 else 0.0, reciprocal)


def pieces(path: str, systems: Sequence[System], options: Options) -> list[Piece]:
    """Of a file of SQuAD: every system, and a piece for tf-idf and chance."""
    questions = read_questions(path)
    texts = prepare(questions, options.limit)
    decides = {"task": "answers", "data": [questions.name, questions.digest], "limit": options.limit}

    def piece(name: str, identity: str, of: Callable[[], list[Figure]]) -> Piece:
        return Piece(f"answers: {questions.name}, {name}", decides | {"system": [name, identity]}, of)

    return [
        *(piece(it.name, it.identity, functools.partial(figures, questions, texts, it)) for it in systems),
        piece("tf-idf and chance", "tf-idf and chance", functools.partial(simple_figures, questions, texts)),
    ]


def figures(questions: Questions, texts: Texts, system: System) -> list[Figure]:
    """Rankings by the cosine of pooled vectors, of each layer."""
    vectors = unit(with_average(pooled(system, texts.tokens)))
    found = []
    for layer, name in enumerate(layers_of(system)):
        of_layer = vectors[:, layer]
        scores = [
            score(np.round(of_layer[of.sentences] @ of_layer[of.question], DIGITS), of.right) for of in texts.ranked
        ]
        found += lines(questions, texts, system.name, name, scores)
    return found


def simple_figures(questions: Questions, texts: Texts) -> list[Figure]:
    """What the words alone tell, by tf-idf of small letters over the file's texts, and what nothing tells."""
    with needing("tasks"):
        from sklearn.feature_extraction.text import TfidfVectorizer
    vectorizer = TfidfVectorizer(analyzer=lambda tokens: [token.lower() for token in tokens])
    vectors = vectorizer.fit_transform(texts.tokens)
    by_words = [
        score(np.round((vectors[of.sentences] @ vectors[of.question].T).toarray()[:, 0], DIGITS), of.right)
        for of in texts.ranked
    ]
    by_chance = [score(np.zeros(len(of.sentences)), of.right) for of in texts.ranked]
    return [
        *lines(questions, texts, "tf-idf", "words' counts", by_words),
        *lines(questions, texts, "chance", "none", by_chance),
    ]


def lines(questions: Questions, texts: Texts, system: str, vectors: str, scores: Sequence[Score]) -> list[Figure]:
    """Accuracy and mean reciprocal rank."""
    details = {
        "sentences of a paragraph": float(np.mean([len(of.sentences) for of in texts.ranked])),
        "left out, of one sentence": texts.alone,
        "left out, impossible": questions.impossible,
    }
    over = f"{len(scores):,} questions (bootstrap)"
    return [
        Figure("answers", questions.name, system, vectors, metric, *bootstrap([np.array(values)]), over, details)
        for metric, values in zip(("accuracy", "MRR"), zip(*scores, strict=True), strict=True)
    ]
