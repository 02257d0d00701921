"""Batches for programs of one's own: `Elmo.encode` and `Elmo.batch`."""

import jax
import numpy as np
import pytest
from conftest import ROOT, SENTENCES, SMALL

import elmo_jax
from elmo_jax import InputError
from elmo_jax.batches import word_room
from elmo_jax.vocabulary import BEGIN_SENTENCE, END_SENTENCE, character_ids

MANYLANGS = ROOT / "tests" / "data" / "manylangs"


def close(activations, mask, vectors, positions):
    """The rows of a batch are these sentences' vectors [L + 1, T_i, 2P], and zeros."""
    assert activations.shape == (len(mask), vectors[0].shape[0], positions, vectors[0].shape[2])
    assert mask.shape == (len(mask), positions)
    for row, own in enumerate(vectors):
        assert mask[row].sum() == own.shape[1]
        np.testing.assert_allclose(activations[row, :, : own.shape[1]], own, atol=1e-6)
    assert not np.asarray(activations)[~np.broadcast_to(np.asarray(mask)[:, None], activations.shape[:3])].any()


@pytest.mark.parametrize("boundaries", [False, True])
@pytest.mark.parametrize("state", ["warm", "zero"])
def test_a_batch_has_the_vectors_of_embed(elmo, state, boundaries):
    activations, mask = elmo.batch(SENTENCES, state=state, boundaries=boundaries, rows=8)
    assert isinstance(activations, jax.Array)
    vectors = elmo.embed(SENTENCES, layers="all", state=state, boundaries=boundaries)
    none = np.zeros((3, 0, elmo.dim), np.float32)
    close(activations, mask, [*vectors, none, none], 34 if boundaries else 32)


def test_rows_are_divided_among_the_devices(folder):
    for devices, held in ((2, 3), (4, 6)):
        elmo = elmo_jax.load(folder, devices=devices)
        activations, mask = elmo.batch(SENTENCES)
        assert {shard.data.shape[0] for shard in activations.addressable_shards} == {held}
        assert len(activations.devices()) == devices
        close(activations, mask, elmo.embed(SENTENCES, layers="all"), 32)


def test_a_batch_in_bfloat16(elmo):
    activations, _ = elmo.batch(SENTENCES, precision="bfloat16")
    expected = elmo.embed(SENTENCES, layers="all", precision="bfloat16")
    for row, own in zip(activations, expected, strict=True):
        np.testing.assert_allclose(row[:, : own.shape[1]], own, atol=2e-2)
    exact = elmo.embed(SENTENCES[:1], layers="all")[0]
    assert 1e-6 < np.abs(np.asarray(activations)[0, :, : exact.shape[1]] - exact).max() < 5e-2
    alone, _ = elmo.batch(SENTENCES[:1], precision="bfloat16")  # a CPU reads it in float32
    np.testing.assert_allclose(alone[0, :, : exact.shape[1]], exact, atol=1e-6)


def test_encoded_says_what_the_rows_read(elmo):
    encoded = elmo.encode(SENTENCES, rows=7)
    assert encoded._fields == ("words", "count", "positions", "mask", "sentences")
    distinct = {word for sentence in SENTENCES for word in sentence} | {BEGIN_SENTENCE, END_SENTENCE}
    assert encoded.count == len(distinct)
    assert encoded.words.shape == (word_room(len(distinct), 7 * 32), SMALL.max_characters)
    assert encoded.positions.shape == encoded.mask.shape == (7, 32)
    assert encoded.sentences.tolist() == [True] * 6 + [False]
    assert all(isinstance(leaf, np.ndarray | np.int32) for leaf in jax.tree.leaves(encoded))
    for row, sentence in enumerate([*SENTENCES, []]):
        assert encoded.mask[row].tolist() == [place < len(sentence) for place in range(32)]
        read = encoded.words[encoded.positions[row, : len(sentence)]]
        assert (read == character_ids(sentence, SMALL.max_characters)).all()
    assert (encoded.words[:2] == character_ids([BEGIN_SENTENCE, END_SENTENCE], SMALL.max_characters)).all()
    assert not encoded.positions[~encoded.mask].any()


def test_shapes_are_few(elmo):
    """However long the sentences and whatever their words, a batch has one of few shapes."""
    generator = np.random.default_rng(3)
    shapes = set()
    for _ in range(60):
        lengths = generator.integers(0, 60, 12)
        sentences = [[f"w{generator.zipf(1.5)}" for _ in range(length)] for length in lengths]
        encoded = elmo.encode(sentences, rows=12)
        shapes.add(tuple(leaf.shape for leaf in jax.tree.leaves(encoded)))
        assert encoded.count <= len(encoded.words)
    assert len(shapes) <= 2
    assert [elmo.encode([["w"] * length]).mask.shape[1] for length in (0, 1, 16, 17, 32, 33, 64, 65)] == [
        *(16, 16, 16, 32, 32, 64, 64, 128)
    ]
    assert [word_room(*of) for of in ((2, 16), (1024, 2048), (1025, 2048))] == [64, 1024, 2112]


@pytest.mark.parametrize("kind", ["characters", "words_and_characters"])
def test_models_that_read_an_alphabet(kind):
    elmo = elmo_jax.load(MANYLANGS / kind)
    close(*elmo.batch(SENTENCES), elmo.embed(SENTENCES, layers="all"), 32)
    encoded = elmo.encode(SENTENCES)
    assert isinstance(encoded.words, tuple) == (kind != "characters")
    if kind != "characters":
        characters, ids = encoded.words
        assert len(characters) == len(ids)
        words = ["cat", "one"]
        numbers = encoded.positions[[0, 4], [1, 0]]
        assert ids[numbers].tolist() == elmo.vocabulary.ids(words).tolist()


@pytest.mark.parametrize("method", ["encode", "batch"])
@pytest.mark.parametrize(
    ("sentences", "options", "message"),
    [
        ("one sentence", {}, "several sentences are needed"),
        ([], {}, "no sentences; give at least one"),
        (["a", "b c"], {"rows": 1}, "2 sentences do not fit into rows=1"),
        (["a b"], {"rows": 0}, "rows is 0; it must be a whole number from 1 up"),
        (["a b"], {"rows": 2.0}, "rows is 2.0"),
        ([3], {}, "a sentence is a str or a list of str"),
    ],
)
def test_bad_input(elmo, method, sentences, options, message):
    with pytest.raises(InputError, match=message):
        getattr(elmo, method)(sentences, **options)


def test_bad_options_of_a_batch(elmo):
    with pytest.raises(InputError, match="state is 'carry'; it must be one of 'warm', 'zero'"):
        elmo.batch(["a b"], state="carry")
    with pytest.raises(InputError, match="precision is 'float16'"):
        elmo.batch(["a b"], precision="float16")
    with pytest.raises(InputError, match="boundaries is 'no'"):
        elmo.batch(["a b"], boundaries="no")
    activations, mask = elmo.batch([], rows=2)
    assert activations.shape == (2, 3, 16, elmo.dim)
    assert not mask.any()


@pytest.mark.slow
def test_pytorch_takes_a_batch_without_a_copy(folder):
    """By DLPack, from a model on one device: a layer of PyTorch's is trained on it."""
    torch = pytest.importorskip("torch")
    activations, mask = elmo_jax.load(folder, devices=1).batch(SENTENCES)
    vectors, tokens = torch.from_dlpack(activations), torch.from_dlpack(mask)
    assert vectors.data_ptr() == activations.unsafe_buffer_pointer()
    np.testing.assert_array_equal(vectors.numpy(), activations)
    np.testing.assert_array_equal(tokens.numpy(), mask)
    mix = torch.nn.Parameter(torch.zeros(3))
    mixed = (mix.softmax(0)[:, None, None] * vectors).sum(1)
    mixed[tokens].square().mean().backward()
    assert mix.grad.abs().max() > 0
