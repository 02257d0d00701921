"""Vectors as a column of a dataset: of Hugging Face's by its `map`, of Ray Data's by its `map_batches`."""

import functools
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from elmo_jax.elmo import Elmo, PathLike, load
from elmo_jax.embeddings import VECTOR_TYPES, Made
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.outputs import VectorType, fingerprint, made_as, vector_column

if TYPE_CHECKING:
    import pyarrow

    Batch = TypeVar("Batch", MutableMapping[str, Sequence[Any]], pyarrow.Table)


class EmbeddingColumn:
    """Adds the vectors of a column of sentences, lists of tokens or texts, to each batch of a dataset.

    `dataset.map(EmbeddingColumn(elmo), batched=True)` gives every row of a Hugging Face dataset the column `output`:
    [T, 2P] of `dtype`, or with `pool` [2P], for the sentence in its column `column`. `options` are those of
    `Elmo.embed` but state="carry", since batches do not know of each other. Larger batches (batch_size of `map`) are
    faster; with a number of processes (num_proc) JAX cannot compute. The library keeps what was computed, and finds it
    again by the options and by the model's parameters.

    Of Ray Data, `dataset.map_batches(EmbeddingColumn, fn_constructor_args=(model,), batch_format="pyarrow", ...)`:
    every actor loads the model once, `model` being what `load` takes, on the devices that Ray gives it. A table of
    Arrow gets lists of fixed size, as in the Parquet of `elmo-jax embed`.
    """

    def __init__(
        self,
        model: Elmo | PathLike,
        column: str = "tokens",
        output: str = "embedding",
        *,
        dtype: VectorType = "float32",
        **options: Any,
    ):
        if options.get("state") == "carry":
            raise InputError('state="carry" reads one text from its beginning to its end; take "warm" or "zero"')
        if dtype not in VECTOR_TYPES:
            raise InputError(f"dtype is {brief(repr(dtype))}; it must be one of {', '.join(map(repr, VECTOR_TYPES))}")
        self.elmo = model if isinstance(model, Elmo) else load(model)
        self.column, self.output, self.dtype, self.options = column, output, dtype, options
        self.elmo.embed([], **options)  # checks them
        self.made = Made(made_as(self.elmo, options, dtype))
        self.fingerprint = fingerprint(self.elmo)

    def __call__(self, batch: "Batch") -> "Batch":
        """The batch, a mapping from columns to their values or a table of Arrow, with the new column."""
        table = hasattr(batch, "append_column")
        names = batch.column_names if table else list(batch)
        if self.column not in names:
            raise InputError(f"the dataset has no column {brief(self.column)}, but {brief(listed(names, ', '))}")
        sentences = batch[self.column]
        if isinstance(sentences, str):
            raise InputError("this is one row, not a batch of rows; give dataset.map(..., batched=True)")
        if isinstance(batch, dict) and isinstance(sentences, np.ndarray):
            raise InputError(
                "a batch of NumPy's arrays, from which Ray cannot write lists of tokens as lists; give "
                'dataset.map_batches(..., batch_format="pyarrow")'
            )
        found = self.elmo.embed(sentences.to_pylist() if table else sentences, **self.options)
        vectors = [self.made.stored([own]) for own in found]
        if not table:
            batch[self.output] = vectors
            return batch
        kept = batch.select([name for name in names if name != self.output])
        return kept.append_column(
            self.output, vector_column([self.made.of_position(own) for own in vectors], self.made)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        again = functools.partial(_again, self.elmo, self.column, self.output, self.dtype, self.options)
        return again, (self.fingerprint,)


def _again(
    elmo: Elmo, column: str, output: str, dtype: VectorType, options: dict[str, Any], expected: str
) -> EmbeddingColumn:
    """What a pickled column becomes; the model's files must be what they were."""
    made = EmbeddingColumn(elmo, column, output, dtype=dtype, **options)
    if made.fingerprint != expected:
        raise InputError(f"the files of {elmo} have changed since they were loaded; load the model again")
    return made
