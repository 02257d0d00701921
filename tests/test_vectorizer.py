"""ELMo in scikit-learn."""

import pickle

import numpy as np
import pytest
from conftest import SENTENCES

from elmo_jax import ElmoVectorizer, InputError, Mix

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

TEXTS = [" ".join(sentence) for sentence in SENTENCES]


def test_it_has_the_pooled_vectors_of_embed(elmo):
    mix = Mix([0.1, 0.2, 0.7])
    for options in ({}, {"pool": "max", "layers": "top"}, {"layers": "mix", "mix": mix}, {"state": "zero"}):
        vectorizer = ElmoVectorizer(elmo, **options)
        expected = elmo.embed(SENTENCES, **{"pool": "mean"} | options)
        for documents in (SENTENCES, TEXTS, np.array(TEXTS)):
            vectors = vectorizer.fit_transform(documents)
            assert vectors.dtype == np.float32
            np.testing.assert_array_equal(vectors, expected)
    every = ElmoVectorizer(elmo, layers="all").fit_transform(TEXTS)
    np.testing.assert_array_equal(every, [own.reshape(-1) for own in elmo.embed(TEXTS, layers="all", pool="mean")])
    assert ElmoVectorizer(elmo).fit_transform([]).shape == (0, elmo.dim)


def test_names_of_features(elmo):
    vectorizer = ElmoVectorizer(elmo).fit(TEXTS)
    names = vectorizer.get_feature_names_out()
    assert names[[0, -1]].tolist() == ["elmovectorizer0", f"elmovectorizer{elmo.dim - 1}"]
    assert len(ElmoVectorizer(elmo, layers="all").fit(TEXTS).get_feature_names_out()) == 3 * elmo.dim


def test_a_tokenizer(elmo):
    vectors = ElmoVectorizer(elmo, tokenizer=lambda text: text.split("-")).fit_transform(
        ["it-rained", ["it", "rained"]]
    )
    np.testing.assert_array_equal(vectors, elmo.embed([["it", "rained"]] * 2, pool="mean"))


def test_copies_share_a_model_and_pickles_load_it(elmo, folder):
    vectorizer = ElmoVectorizer(elmo).fit(TEXTS)
    assert clone(vectorizer).model is elmo
    assert clone(ElmoVectorizer(folder, pool="max")).get_params()["pool"] == "max"
    expected = vectorizer.transform(TEXTS)
    for copy in (pickle.loads(pickle.dumps(vectorizer)), ElmoVectorizer(folder).fit(TEXTS)):
        np.testing.assert_array_equal(copy.transform(TEXTS), expected)


def test_in_a_pipeline_and_a_search(elmo):
    """Documents that have a word of one kind are told from those of the other; the best pooling is found."""
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 40)
    kinds = (["rain", "river", "flood"], ["cat", "mat", "purr"])
    documents = [" ".join(generator.choice(kinds[label], 6)) for label in labels]
    pipeline = make_pipeline(ElmoVectorizer(elmo), LogisticRegression(max_iter=1000))
    grid = {"elmovectorizer__pool": ["mean", "max"], "elmovectorizer__layers": ["average", "top"]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(documents[:30], labels[:30])
    assert search.score(documents[30:], labels[30:]) >= 0.9
    assert search.best_estimator_[0].elmo_ is elmo


CHECKS = (
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_get_params_invariance",
    "check_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
)


@pytest.mark.parametrize("check", CHECKS)
def test_scikit_learns_checks(elmo, check):
    """Those that need no table of numbers, of which scikit-learn itself spares transformers of text."""
    getattr(estimator_checks, check)("ElmoVectorizer", ElmoVectorizer(elmo))


def test_bad_input(elmo):
    with pytest.raises(NotFittedError):
        ElmoVectorizer(elmo).transform(TEXTS)
    for options, message in (
        ({"pool": None}, "a document has one vector"),
        ({"state": "carry"}, "a document has one vector"),
        ({"pool": "sum"}, "pool is 'sum'"),
        ({"layers": "bottom"}, "layers is 'bottom'"),
        ({"tokenizer": "spacy"}, "tokenizer is 'spacy'; it must be a function"),
        ({"model": "no such model"}, "no such"),
    ):
        with pytest.raises(InputError, match=message):
            ElmoVectorizer(**{"model": elmo} | options).fit(TEXTS)
    fitted = ElmoVectorizer(elmo, tokenizer=str.split).fit(TEXTS)
    for documents in ("one document", [3.5], np.zeros((2, 3))):
        with pytest.raises(InputError, match=r"several sentences|a sentence is"):
            fitted.transform(documents)
