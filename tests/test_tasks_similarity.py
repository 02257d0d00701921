"""Contextual similarity, on vectors whose contextuality is planted."""

import functools
import json
import zlib

import numpy as np
import pytest
from planted import Planted

from elmo_jax import InputError
from elmo_jax.tasks import similarity
from elmo_jax.tasks.evaluate import Options
from elmo_jax.tasks.systems import ElmoSystem

WIDTH = 2000


def text_of(folder, count=60, words=12, seed=0):
    """Sentences of 6 different words out of so many, a sentence a line."""
    generator = np.random.default_rng(seed)
    lines = [" ".join(generator.permutation([f"w{n}" for n in range(words)])[:6]) for _ in range(count)]
    path = folder / "text.txt"
    path.write_text("\n".join([*lines, lines[0], "alone", "", "w0 once"]) + "\n")
    return str(path)


@functools.cache
def direction(*what):
    """A unit vector that the names decide; those of different names are nearly at right angles."""
    return np.random.default_rng(zlib.crc32(" ".join(what).encode())).choice([-1, 1], WIDTH) / np.sqrt(WIDTH)


def planted_vector(tokens, position):
    """Unit vectors of a token in three layers, of which the cosines are known, nearly.

    The first is the word's alone; in the second, 0.6 of its square is the word's and 0.4 the sentence's; in the third
    0.5 is the same for all tokens (anisotropy), 0.3 the word's, 0.2 the occurrence's.
    """
    word, sentence, occurrence = direction(tokens[position]), direction(*tokens), direction(*tokens, str(position))
    narrow = np.sqrt(0.5) * direction("all") + np.sqrt(0.3) * word + np.sqrt(0.2) * occurrence
    return np.stack([word, np.sqrt(0.6) * word + np.sqrt(0.4) * sentence, narrow])


def test_self_similarity_is_the_mean_cosine_of_pairs():
    vectors = np.random.default_rng(0).normal(size=(6, 5))
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = directions @ directions.T
    assert similarity.self_similarity(vectors) == pytest.approx(cosines[np.triu_indices(6, 1)].mean())
    assert similarity.self_similarity(np.ones((3, 4))) == pytest.approx(1)


def test_explained_variance_is_that_of_the_first_singular_value():
    for shape in ((6, 11), (11, 6)):
        vectors = np.random.default_rng(1).normal(size=shape)
        sizes = np.linalg.svd(vectors, compute_uv=False) ** 2
        assert similarity.explained_variance(vectors) == pytest.approx(sizes[0] / sizes.sum())


def test_sentence_similarity_is_with_the_mean():
    vectors = np.random.default_rng(2).normal(size=(4, 5))
    mean = vectors.mean(0)
    cosines = [vector @ mean / np.linalg.norm(vector) / np.linalg.norm(mean) for vector in vectors]
    assert similarity.sentence_similarity(vectors) == pytest.approx(np.mean(cosines))


def test_sentences_are_drawn_whatever_their_order():
    lines = [[f"w{n}", "and", f"w{n % 7}"] for n in range(200)] + [["alone"], []]
    drawn = similarity.drawn(lines, 20)
    assert len(drawn) == 20
    assert all(len(sentence) == 3 for sentence in drawn)
    again = similarity.drawn([*reversed(lines), *lines], 20)
    assert sorted(again) == sorted(drawn)
    assert similarity.drawn(lines, 500) == lines[:200]


def test_what_is_looked_at(monkeypatch):
    sentences = [["a", "b", "a"], ["b", "c"], ["a", "c"], ["b", "d"], ["a", "b"], ["a", "e"], ["f", "b", "a"]]
    looked_at = similarity.sample(sentences, "text")
    assert looked_at.words == ["a", "b"]
    assert looked_at.occurrences[0].tolist() == [0, 5, 9, 11, 15]
    assert looked_at.occurrences[1].tolist() == [1, 3, 7, 10, 14]
    sentence_of = np.repeat(np.arange(7), [3, 2, 2, 2, 2, 2, 3])
    assert (sentence_of[looked_at.pairs[:, 0]] != sentence_of[looked_at.pairs[:, 1]]).all()
    assert len(set(looked_at.pairs.ravel().tolist())) == looked_at.pairs.size
    monkeypatch.setattr(similarity, "OCCURRENCES", 3)
    monkeypatch.setattr(similarity, "WORDS", 1)
    few = similarity.sample(sentences, "text")
    assert [len(rows) for rows in few.occurrences] == [3]
    assert few.words[0] in "ab"


def test_figures_of_planted_vectors(tmp_path):
    system = Planted(planted_vector, ("static", "half", "narrow"))
    (piece,) = similarity.pieces(text_of(tmp_path), [system], Options())
    figures = piece.figures()
    found = {(figure.vectors, figure.metric): figure for figure in figures}
    assert len(found) == len(figures) == 4 * 7
    expected = {
        ("static", "self-similarity"): 1,
        ("half", "self-similarity"): 0.6,
        ("narrow", "self-similarity"): 0.8,
        ("narrow", "anisotropy"): 0.5 + 0.3 / 12,
        ("narrow", "self-similarity, adjusted"): 0.3 - 0.3 / 12,
        ("half", "anisotropy"): 0.6 / 12,
        ("static", "explained variance"): 1,
        ("half", "sentence similarity"): np.sqrt(0.4 + 0.6 / 6),
    }
    for key, value in expected.items():
        assert found[key].value == pytest.approx(value, abs=0.03), key
        assert found[key].low <= found[key].value <= found[key].high
    for layer in ("static", "half", "narrow", "average"):
        value = lambda metric, layer=layer: found[layer, metric].value
        for metric in ("self-similarity", "sentence similarity"):
            assert value(f"{metric}, adjusted") == pytest.approx(value(metric) - value("anisotropy"))
        assert value("explained variance, adjusted") < value("explained variance")
    figure = found["half", "self-similarity"]
    assert figure.over == "12 words (bootstrap)"
    assert figure.data == "text"
    assert figure.details["sentences"] == 61
    assert set(figure.details["highest"]) <= {f"w{n}" for n in range(12)}
    assert list(figure.details["lowest"].values()) == sorted(figure.details["lowest"].values())
    json.dumps([figure._asdict() for figure in figures], allow_nan=False)


def test_tokens_that_a_system_does_not_know_are_left_out(tmp_path):
    def of_words(*unknown):
        return lambda tokens, position: np.stack([direction(tokens[position]) * (tokens[position] not in unknown)])

    path = text_of(tmp_path)
    for unknown, count in (("w11", 11), ("once", 12)):
        (piece,) = similarity.pieces(path, [Planted(of_words(unknown), ["words"])], Options())
        found = {figure.metric: figure for figure in piece.figures()}
        assert found["self-similarity"].over == f"{count} words (bootstrap)"
        assert found["self-similarity"].value == pytest.approx(1)
        assert found["explained variance"].value == pytest.approx(1)
    (piece,) = similarity.pieces(path, [Planted(lambda *_: np.zeros((1, 3)), ["words"])], Options())
    assert all(np.isnan(figure.value) for figure in piece.figures())


def test_the_first_sentences_of_a_text(tmp_path):
    path = text_of(tmp_path)
    system = Planted(lambda tokens, position: direction(tokens[position])[None], ["words"])
    (of_all,), (of_first,) = (similarity.pieces(path, [system], Options(limit=limit)) for limit in (None, 40))
    assert of_all.decides != of_first.decides
    assert of_first.figures()[0].details["sentences"] == 40
    with pytest.raises(InputError, match="no word that stands in 5 different sentences, among the 3 of two tokens"):
        similarity.pieces(path, [system], Options(limit=3))


def test_a_model(elmo, tmp_path):
    (piece,) = similarity.pieces(text_of(tmp_path), [ElmoSystem("small", elmo)], Options())
    figures = {(figure.vectors, figure.metric): figure for figure in piece.figures()}
    assert {layer for layer, _ in figures} == {"words", "LSTM 1", "LSTM 2", "average"}
    assert figures["words", "self-similarity"].value == pytest.approx(1, abs=1e-6)
    assert figures["LSTM 1", "self-similarity"].value < 0.999
