import pickle

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from conftest import SENTENCES, SMALL, write_random_model

import elmo_jax
from elmo_jax import EmbeddingColumn
from elmo_jax.errors import InputError
from elmo_jax.outputs import Target, Writer
from elmo_jax.sources import read_input


@pytest.mark.parametrize("options", [{}, {"layers": "all"}, {"pool": "mean", "state": "zero"}])
def test_a_dataset_has_the_vectors_of_embed(elmo, options):
    """The library itself: lists of tokens and texts, in batches that differ in size."""
    import datasets

    rows = {"tokens": SENTENCES, "text": [" ".join(tokens) for tokens in SENTENCES], "id": list(range(len(SENTENCES)))}
    dataset = datasets.Dataset.from_dict(rows)
    expected = elmo.embed(SENTENCES, **options)
    mapped = dataset.map(EmbeddingColumn(elmo, **options), batched=True, batch_size=4)
    mapped = mapped.map(EmbeddingColumn(elmo, "text", "of text", **options), batched=True)
    assert mapped.column_names == ["tokens", "text", "id", "embedding", "of text"]
    for number, vectors in enumerate(expected):
        for name in ("embedding", "of text"):
            found = np.array(mapped[number][name], np.float32).reshape(vectors.shape)
            assert np.abs(found - vectors).max(initial=0) <= 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("options", [{}, {"layers": "all"}, {"pool": "mean"}, {"layers": "all", "pool": "max"}])
def test_a_table_has_the_column_of_parquet(elmo, folder, tmp_path, dtype, options):
    """That `embed` writes, of the same types; of an older column of the name nothing is left."""
    rows = {"tokens": SENTENCES, "id": [*range(len(SENTENCES))], "of text": [None] * len(SENTENCES)}
    rows["text"] = [" ".join(tokens) for tokens in SENTENCES]
    table = EmbeddingColumn(elmo, output="vectors", dtype=dtype, **options)(arrow.table(rows))
    table = EmbeddingColumn(folder, "text", "of text", dtype=dtype, **options)(table)
    assert table.column_names == ["tokens", "id", "text", "vectors", "of text"]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(rows["text"]), encoding="utf-8")
    target = Target.of(tmp_path / "v.parquet")
    Writer(elmo, lambda **where: read_input([str(text)], **where), target, options, dtype).write()
    written = parquet.read_table(target.path)
    table.validate(full=True)
    for name in ("vectors", "of text"):
        assert table.schema.field(name).type == written.schema.field("vectors").type
    for found, other, expected in zip(
        *(table.column(name).to_pylist() for name in ("vectors", "of text")),
        written.column("vectors").to_pylist(),
        strict=True,
    ):
        shape = np.shape(expected)
        assert np.allclose(np.reshape(found, shape), expected, atol=1e-6 if dtype == "float32" else 2e-3)
        assert found == other
    assert EmbeddingColumn(elmo, **options)(arrow.table({"tokens": []})).num_rows == 0


def test_what_was_computed_is_found_again_by_the_parameters(tmp_path):
    import datasets

    name = lambda seed, **options: datasets.fingerprint.Hasher.hash(
        EmbeddingColumn(elmo_jax.load(write_random_model(tmp_path / "model", SMALL, seed)), **options)
    )
    assert name(0) == name(0)
    assert len({name(0), name(1), name(0, layers="top")}) == 3


def test_pickled_columns(tmp_path):
    folder = write_random_model(tmp_path / "model", SMALL)
    pickled = pickle.dumps(EmbeddingColumn(elmo_jax.load(folder), pool="max"))
    again = pickle.loads(pickled)
    assert again({"tokens": [["a", "b"]]})["embedding"][0].shape == (14,)
    write_random_model(folder, SMALL, seed=1)
    with pytest.raises(InputError, match="have changed since they were loaded; load the model again"):
        pickle.loads(pickled)


@pytest.mark.parametrize(
    ("column", "options", "batch", "message"),
    [
        ("tokens", {}, {"text": ["a"], "id": [1]}, "the dataset has no column tokens, but text, id"),
        ("tokens", {}, {"tokens": "one row"}, r"give dataset.map\(..., batched=True\)"),
        ("tokens", {}, {"tokens": [None]}, "a sentence is a str or a list of str"),
        ("words", {}, arrow.table({"text": ["a"]}), "the dataset has no column words, but text"),
        ("tokens", {}, arrow.table({"tokens": [None]}), "a sentence is a str or a list of str"),
        ("tokens", {"dtype": "float64"}, {}, "dtype is 'float64'; it must be one of 'float16', 'float32'"),
        (
            "tokens",
            {"dtype": "float16", "layers": "mix", "mix": elmo_jax.Mix([1, 2, 3], 1e7)},
            {"tokens": ["a"]},
            "float16 cannot hold",
        ),
        ("tokens", {}, {"tokens": np.array([["a"], ["b"]])}, 'batch_format="pyarrow"'),
        ("tokens", {"state": "carry"}, {}, 'take "warm" or "zero"'),
        ("tokens", {"layers": "most"}, {}, "layers is 'most'"),
    ],
)
def test_what_is_refused(elmo, column, options, batch, message):
    with pytest.raises(InputError, match=message):
        EmbeddingColumn(elmo, column, **options)(batch)
