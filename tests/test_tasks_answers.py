"""Which sentence answers a question: sentences, tokens, rankings, on vectors and files that are made up."""

import itertools
import json

import numpy as np
import pytest
from planted import Planted
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from elmo_jax import InputError
from elmo_jax.tasks import answers
from elmo_jax.tasks.evaluate import Options


def split(text):
    spans = answers.sentences_of(text)
    assert "".join(text[begin:end] for begin, end in spans) == text
    return [text[begin:end].strip() for begin, end in spans]


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rained.", "It rained again!", "Why?", "Nobody knows..."],
        ["Dr. Jekyll met J. K. Rowling in the U.S. capital.", "She left at 5.30 p.m. on May 3."],
        ['"Who is it?" she said.', "(Nobody.)", "“Well?”", "He left."],
        ["Smith vs. Jones ended 3.5 to 2.", "7 came.", "Then no. one left."],
        ["雨が降った。", "「また？」", "はい！", "終わり。"],
        ["¿Llueve?", "¡No!", "Sí.", "Éste no."],
        ["no end"],
        ["It is Mr.", "a line ends a sentence"],
    ],
)
def test_sentences(sentences):
    joined = "" if sentences[0] == "雨が降った。" else "\n" if "line" in sentences[-1] else " "
    assert split(joined.join(sentences)) == sentences
    assert split(f" {joined.join(sentences)} \n") == sentences


def test_tokens():
    text = "The U.S. didn't pay $3,141.59 (or 5 %) at 10:30 — “well-known” l’eau, क्षत्रिय; naïve_x."
    expected = "The U.S . didn't pay $ 3,141.59 ( or 5 % ) at 10:30 — “ well-known ” l’eau , क्षत्रिय ; naïve _ x ."
    assert answers.tokens_of(text) == expected.split()
    assert answers.tokens_of(" - 'a' ") == ["-", "'", "a", "'"]
    assert answers.tokens_of("") == []


def plain_score(similarities, right):
    """The mean over all orders of what is equal."""
    found = []
    for order in itertools.permutations(range(len(right))):
        if all(similarities[a] >= similarities[b] for a, b in itertools.pairwise(order)):
            first = next(place for place, sentence in enumerate(order, start=1) if right[sentence])
            found.append((first == 1, 1 / first))
    return tuple(np.mean(found, 0))


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_means_over_orders(seed):
    generator = np.random.default_rng(seed)
    similarities, right = generator.integers(0, 3, 6) / 2, np.arange(6) < generator.integers(1, 4)
    right = generator.permutation(right)
    assert answers.score(similarities, right) == pytest.approx(plain_score(similarities, right))


def test_the_reciprocal_rank_is_scikit_learns():
    """Of one right sentence its average precision is its reciprocal rank; ties aside, which it ranks last."""
    generator = np.random.default_rng(1)
    similarities, right = generator.normal(size=(20, 5)), np.eye(5, dtype=bool)[generator.integers(0, 5, 20)]
    found = [answers.score(*one).reciprocal_rank for one in zip(similarities, right, strict=True)]
    assert np.mean(found) == pytest.approx(label_ranking_average_precision_score(right, similarities))


CONTEXT = "The cat sat on the mat. A dog slept in the barn. It rained on the roof."


def squad(*paragraphs):
    """A file of SQuAD of contexts with questions and the texts that answer each."""
    made = []
    for number, (context, questions) in enumerate(paragraphs):
        qas = [
            {
                "id": f"{number}-{n}",
                "question": question,
                "answers": [{"text": text, "answer_start": context.index(text)} for text in texts],
                "is_impossible": not texts,
            }
            for n, (question, texts) in enumerate(questions)
        ]
        made.append({"context": context, "qas": qas})
    return {"version": "2.0", "data": [{"title": "a", "paragraphs": made}]}


def write(folder, *paragraphs):
    path = folder / "dev.json"
    path.write_text(json.dumps(squad(*paragraphs)))
    return str(path)


QUESTIONS = [
    ("Where did the cat sit?", ["mat"]),
    ("Where did the dog sleep?", ["barn", "in the barn"]),
    ("Where did the whale swim?", []),
    ("What did it do on the roof?", ["It rained", "mat"]),
]


def bag(tokens, position):
    """Vectors by letters of the word; the second layer knows nothing."""
    letters = np.zeros(27)
    for letter in tokens[position].lower():
        letters[min(max(ord(letter) - ord("a"), -1), 25)] += 1
    return np.stack([letters, np.zeros(27)])


def test_figures(tmp_path):
    path = write(tmp_path, (CONTEXT, QUESTIONS), ("Only one here.", [("What?", ["one"])]))
    of_system, simple = answers.pieces(path, [Planted(bag)], Options())
    figures = of_system.figures()
    assert [(figure.vectors, figure.metric) for figure in figures] == list(
        itertools.product(("first", "second", "average"), ("accuracy", "MRR"))
    )
    sentences = [answers.tokens_of(sentence) for sentence in split(CONTEXT)]
    mean = lambda tokens: np.mean([bag(tokens, n)[0] for n in range(len(tokens))], 0)
    right = [[True, False, False], [False, True, False], [True, False, True]]
    expected = []
    for (question, texts), of_question in zip([QUESTIONS[n] for n in (0, 1, 3)], right, strict=True):
        assert texts
        similarities = cosine_similarity([mean(answers.tokens_of(question))], [mean(tokens) for tokens in sentences])
        expected.append(plain_score(similarities[0], of_question))
    assert [figures[0].value, figures[1].value] == pytest.approx(np.mean(expected, 0))
    by_chance = [[1 / 3, 11 / 18], [1 / 3, 11 / 18], [2 / 3, 5 / 6]]
    assert [figures[2].value, figures[3].value] == pytest.approx(np.mean(by_chance, 0))
    assert figures[0].over == "3 questions (bootstrap)"
    assert figures[0][:3] == ("answers", "dev", "planted")
    left_out = {"left out, of one sentence": 1, "left out, impossible": 1}
    assert figures[0].details == {"sentences of a paragraph": 3} | left_out
    tfidf, chance = simple.figures()[:2], simple.figures()[2:]
    assert [figure.value for figure in chance] == pytest.approx(np.mean(by_chance, 0))
    vectorizer = TfidfVectorizer(token_pattern=r"\S+")
    questions = [answers.tokens_of(QUESTIONS[n][0]) for n in (0, 1, 3)]
    vectorizer.fit([" ".join(tokens) for tokens in (*sentences, *questions)])
    rows = lambda texts: vectorizer.transform([" ".join(tokens) for tokens in texts])
    scores = [
        plain_score(*both) for both in zip(cosine_similarity(rows(questions), rows(sentences)), right, strict=True)
    ]
    assert [figure.value for figure in tfidf] == pytest.approx(np.mean(scores, 0))
    assert {figure.system for figure in simple.figures()} == {"tf-idf", "chance"}
    json.dumps([figure._asdict() for figure in figures], allow_nan=False)


def test_each_text_is_embedded_once(tmp_path, monkeypatch):
    monkeypatch.setattr("elmo_jax.tasks.cosines.TOGETHER", 4)
    path = write(tmp_path, (CONTEXT, QUESTIONS), (CONTEXT, QUESTIONS[:1]))
    system = Planted(bag)
    pieces = answers.pieces(path, [system], Options())
    whole = pieces[0].figures()
    assert system.calls == [4, 2]
    monkeypatch.setattr("elmo_jax.tasks.cosines.TOGETHER", 100)
    assert answers.pieces(path, [Planted(bag)], Options())[0].figures() == whole
    assert whole[0].over == "4 questions (bootstrap)"


def test_the_first_questions(tmp_path):
    path = write(tmp_path, (CONTEXT, QUESTIONS), (CONTEXT, QUESTIONS[:1]))
    every, first = (answers.pieces(path, [Planted(bag)], Options(limit=limit))[0] for limit in (None, 2))
    assert first.decides != every.decides
    assert first.figures()[0].over == "2 questions (bootstrap)"


def test_nothing_to_choose_from(tmp_path):
    path = write(tmp_path, ("Only one here.", [("What?", ["one"])]))
    with pytest.raises(InputError, match="dev has no paragraph of two sentences with a question"):
        answers.pieces(path, [Planted(bag)], Options())
