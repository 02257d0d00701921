"""Vectors of documents for scikit-learn: a transformer for its pipelines and searches."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from elmo_jax.config import Precision
from elmo_jax.elmo import Elmo, Layers, PathLike, Sentence, load
from elmo_jax.engine import Pool, StateMode
from elmo_jax.errors import InputError, brief
from elmo_jax.mix import Mix


class ElmoVectorizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Documents → float32 [N, 2P]: the mean or maximum of their tokens' vectors.

    A document is a list of tokens, or a str of tokens separated by spaces; `tokenizer` (str → tokens) takes others. It
    is read as one sentence. `model` is a loaded model, which copies of the transformer share, or what `load` takes,
    which every `fit` loads. The other parameters are those of `Elmo.embed`, with layers="all" one behind the other,
    [N, (L + 1) · 2P]. Nothing is learned of the documents.
    """

    def __init__(
        self,
        model: Elmo | PathLike = "small",
        *,
        pool: Pool = "mean",
        layers: Layers = "average",
        mix: Mix | None = None,
        state: StateMode = "warm",
        precision: Precision = "float32",
        tokenizer: Callable[[str], list[str]] | None = None,
    ):
        self.model, self.pool, self.layers, self.mix = model, pool, layers, mix
        self.state, self.precision, self.tokenizer = state, precision, tokenizer

    def fit(self, documents: Iterable[Sentence], y: Any = None) -> "ElmoVectorizer":
        """Loads the model and checks the parameters; documents are not looked at."""
        if self.pool is None or self.state == "carry":
            what = f"pool is {self.pool!r}, state is {self.state!r}"
            raise InputError(f"{what}; a document has one vector, whatever the others: give another of each")
        if not (self.tokenizer is None or callable(self.tokenizer)):
            raise InputError(f"tokenizer is {brief(repr(self.tokenizer))}; it must be a function of a str, or None")
        elmo = self.model if isinstance(self.model, Elmo) else load(self.model)
        elmo.embed([], **self._options())
        self.elmo_ = elmo
        self._n_features_out = elmo.dim * (elmo.model.layers + 1 if self.layers == "all" else 1)
        return self

    def transform(self, documents: Iterable[Sentence]) -> np.ndarray:
        """Vectors of documents, float32 [N, 2P]."""
        check_is_fitted(self)
        if self.tokenizer is not None and not isinstance(documents, str):
            documents = [self.tokenizer(text) if isinstance(text, str) else text for text in documents]
        vectors = self.elmo_.embed(documents, **self._options())
        return np.reshape(np.array(vectors, np.float32), (-1, self._n_features_out))

    def _options(self) -> dict[str, Any]:
        names = ("pool", "layers", "mix", "state", "precision")
        return {name: getattr(self, name) for name in names}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags
