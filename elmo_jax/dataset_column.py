"""Vectors as a column of a Hugging Face dataset, by its `map`."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elmo_jax.elmo import Elmo
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.outputs import fingerprint


class EmbeddingColumn:
    """Adds the vectors of a column of sentences, lists of tokens or texts, to each batch of a dataset.

    `dataset.map(EmbeddingColumn(elmo), batched=True)` gives every row of a Hugging Face dataset the column `output`:
    float32 [T, 2P], or with `pool` [2P], for the sentence in its column `column`. `options` are those of `Elmo.embed`
    but state="carry", since batches do not know of each other. Larger batches (batch_size of `map`) are faster; with a
    number of processes (num_proc) JAX cannot compute. The library keeps what was computed, and finds it again by the
    options and by the model's parameters.
    """

    def __init__(self, elmo: Elmo, column: str = "tokens", output: str = "embedding", **options: Any):
        if options.get("state") == "carry":
            raise InputError('state="carry" reads one text from its beginning to its end; take "warm" or "zero"')
        self.elmo, self.column, self.output, self.options = elmo, column, output, options
        elmo.embed([], **options)  # checks them
        self.fingerprint = fingerprint(elmo)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[np.ndarray]]:
        """The new column of a batch, which is a mapping from columns to their values."""
        if self.column not in batch:
            raise InputError(f"the dataset has no column {brief(self.column)}, but {brief(listed(list(batch), ', '))}")
        sentences = batch[self.column]
        if isinstance(sentences, str):
            raise InputError("this is one row, not a batch of rows; give dataset.map(..., batched=True)")
        return {self.output: self.elmo.embed(sentences, **self.options)}

    def __reduce__(self) -> tuple[Any, ...]:
        again = functools.partial(_again, self.elmo, self.column, self.output, self.options)
        return again, (self.fingerprint,)


def _again(elmo: Elmo, column: str, output: str, options: dict[str, Any], expected: str) -> EmbeddingColumn:
    """What a pickled column becomes; the model's files must be what they were."""
    made = EmbeddingColumn(elmo, column, output, **options)
    if made.fingerprint != expected:
        raise InputError(f"the files of {elmo} have changed since they were loaded; load the model again")
    return made
