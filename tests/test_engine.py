import dataclasses
import itertools
import json
import tracemalloc

import h5py
import numpy as np
import numpy_elmo
import pytest
from conftest import SENTENCES, SMALL, TOLERANCE, random_weights, relative_error, write_random_model

import elmo_jax
from elmo_jax import engine
from elmo_jax.config import to_options
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import write_arrays


def largest_error(found, expected):
    """Largest difference over all sentences, relative to the largest value in any."""
    assert [array.shape for array in found] == [array.shape for array in expected]
    return relative_error(*(np.concatenate([array.ravel() for array in arrays]) for arrays in (found, expected)))


@pytest.mark.parametrize("fixture", ["bilm_tf_fixture", "allennlp_fixture"])
def test_top_layer_of_the_originals_with_carried_state(golden, fixture):
    folder = golden / fixture
    elmo = elmo_jax.load(options=folder / "options.json", weights=folder / "lm_weights.hdf5")
    columns = json.loads(next(folder.glob("*sentences.json")).read_text())
    sentences = [sentence for batch in zip(*columns, strict=True) for sentence in batch]
    found = elmo.embed(sentences, layers="top", state="carry", batch_size=3)
    expected = []
    for number, column in itertools.product(range(len(columns[0])), range(3)):
        with h5py.File(folder / f"lm_embeddings_{column}.hdf5") as file:
            expected.append(np.concatenate(file[str(number)][()], -1))
    assert largest_error(found, expected) < TOLERANCE


def test_all_layers_of_the_original_with_zero_state(golden):
    folder = golden / "allennlp_fixture"
    elmo = elmo_jax.load(options=folder / "options.json", weights=folder / "lm_weights.hdf5")
    with h5py.File(folder / "all_layers_zero_state.hdf5") as file:
        sentences = json.loads(file["sentences"][()])
        expected = [file[str(number)][()] for number in range(len(sentences))]
    found = elmo.embed(sentences, layers="all", state="zero", boundaries=True)
    assert largest_error(found, expected) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "tanh", "skip_connections": False, "highway_layers": 0, "layers": 1},
        {"layers": 3, "highway_layers": 2, "cell_clip": 0.1, "projection_clip": 0.05},
        {"activation": "tanh", "layers": 3, "highway_layers": 0, "cell_clip": None, "projection_clip": None},
        {"cell_dim": 7, "highway_layers": 2, "skip_connections": False, "layers": 3},
        {"filters": ((1, 3), (2, 4)), "layers": 1},
        {"max_characters": 50},  # of which only 16 are looked at where words are short
    ],
)
def test_numpy_elmo_agrees(changes, tmp_path):
    model = dataclasses.replace(SMALL, **changes)
    elmo = elmo_jax.load(write_random_model(tmp_path, model, seed=len(changes)))
    weights, options = random_weights(model, seed=len(changes)), to_options(model)
    expected = [numpy_elmo.embed(sentence, weights, options) for sentence in SENTENCES]
    found = elmo.embed(SENTENCES, layers="all", state="zero", boundaries=True)
    assert largest_error(found, expected) < TOLERANCE


def test_words_without_characters(tmp_path):
    model = dataclasses.replace(SMALL, input="words")
    vocabulary = Vocabulary(["<S>", "</S>", "<UNK>", "the", "cat", "sat"])
    weights = random_weights(model, len(vocabulary))
    write_arrays(tmp_path / "w.hdf5", weights)
    (tmp_path / "o.json").write_text(json.dumps(to_options(model)))
    vocabulary.save(tmp_path / "v.txt")
    elmo = elmo_jax.load(options=tmp_path / "o.json", weights=tmp_path / "w.hdf5", vocab=tmp_path / "v.txt")
    found = elmo.embed(["the cat sat", "the dog"], layers="all", state="zero", boundaries=True)
    options = to_options(model) | {"vocabulary": vocabulary.words}
    expected = [numpy_elmo.embed(s.split(), weights, options) for s in ("the cat sat", "the <UNK>")]
    assert largest_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("state", ["zero", "warm"])
def test_company_does_not_matter(elmo, state):
    """Streaming, one at a time, shuffled, in more or fewer rows: the same vectors."""
    generator = np.random.default_rng(0)
    words = ["w" * int(n) for n in generator.integers(1, 9, 50)]
    sentences = SENTENCES + [list(generator.choice(words, n)) for n in generator.integers(1, 100, 12)]
    reference = elmo.embed(sentences, layers="all", state=state)
    alone = [elmo.embed([sentence], layers="all", state=state)[0] for sentence in sentences]
    assert largest_error(alone, reference) < 1e-6
    for batch_size in (2, 5, 13):
        assert largest_error(elmo.embed(sentences, layers="all", state=state, batch_size=batch_size), reference) < 1e-6
    order = generator.permutation(len(sentences))
    shuffled = elmo.embed([sentences[i] for i in order], layers="all", state=state)
    assert largest_error([shuffled[i] for i in np.argsort(order)], reference) < 1e-6


def test_a_sentence_of_many_windows_is_exact(elmo, monkeypatch):
    sentence = [f"w{number % 17}" for number in range(5 * engine.WINDOW + 3)]
    in_windows = elmo.embed([sentence], layers="all", state="zero")
    monkeypatch.setattr(engine, "WINDOW", len(sentence) + 2)
    assert largest_error(in_windows, elmo.embed([sentence], layers="all", state="zero")) < 1e-6


def test_states_differ(elmo):
    zero, warm, carry = (elmo.embed(SENTENCES, state=state) for state in ("zero", "warm", "carry"))
    assert largest_error(zero, warm) > 1e-3
    assert largest_error(zero[:1], carry[:1]) < 1e-6  # nothing to carry yet
    assert largest_error(zero[1:], carry[1:]) > 1e-3
    assert largest_error(elmo.embed(SENTENCES), warm) == 0


def test_calls_keep_no_state(elmo):
    for state in ("zero", "warm", "carry"):
        first, second = (elmo.embed(SENTENCES, state=state) for _ in range(2))
        assert all((one == other).all() for one, other in zip(first, second, strict=True))


def test_carried_state_over_rows_that_devices_do_not_divide(elmo):
    """Sentence i goes to row i modulo batch_size; five rows on four devices."""
    found = elmo.embed(SENTENCES[::-1] + SENTENCES, state="carry", batch_size=5)
    by_row = [(SENTENCES[::-1] + SENTENCES)[row::5] for row in range(5)]
    expected = [elmo.embed(row, state="carry", batch_size=1) for row in by_row]
    assert largest_error(found, [expected[i % 5][i // 5] for i in range(len(found))]) < 1e-6


def test_carried_state_waits_unchanged(elmo, monkeypatch):
    """A row that has nothing to read while another reads a long sentence keeps its state."""
    monkeypatch.setattr(engine, "AHEAD", 1)
    sentences = [["long"] * 2000, *([["short", "one"]] * 101)]
    found = elmo.embed(sentences, state="carry", batch_size=2)
    for row in (0, 1):
        assert largest_error(found[row::2], elmo.embed(sentences[row::2], state="carry", batch_size=1)) < 1e-6


def test_a_second_call_compiles_nothing(elmo, folder, compilations):
    elmo.embed(SENTENCES)
    for again in (
        lambda: elmo.embed(SENTENCES[::-1]),
        lambda: elmo.embed([[f"{word}s" for word in sentence] for sentence in SENTENCES]),
        lambda: elmo_jax.load(folder).embed(SENTENCES),
    ):
        with compilations() as compiled:
            again()
        assert not compiled


def test_boundaries(elmo):
    without, with_them = elmo.embed(SENTENCES), elmo.embed(SENTENCES, boundaries=True)
    assert largest_error(without, [array[1:-1] for array in with_them]) < 1e-6
    for state in ("zero", "carry"):
        found, whole = (elmo.embed(SENTENCES, state=state, boundaries=boundaries) for boundaries in (False, True))
        assert largest_error(found, [array[1:-1] for array in whole]) < 1e-6


def test_pooled(elmo):
    """Sentence vectors are those of the tokens alone; a sentence without tokens has zeros."""
    for layers, state in (("all", "warm"), ("average", "carry"), ("top", "zero")):
        vectors = elmo.embed(SENTENCES, layers=layers, state=state)
        for pool in ("mean", "max"):
            found = elmo.embed(SENTENCES, layers=layers, state=state, pool=pool)
            for array, own in zip(found, vectors, strict=True):
                own = own if own.shape[-2] else np.zeros((*own.shape[:-2], 1, elmo.dim), np.float32)
                assert array.dtype == np.float32
                assert np.allclose(array, getattr(own, pool)(-2), atol=1e-7)
    with pytest.raises(elmo_jax.InputError, match="pool is 'sum'; it must be one of 'mean', 'max', or None"):
        elmo.embed(SENTENCES, pool="sum")
    with pytest.raises(elmo_jax.InputError, match="exclude each other"):
        elmo.embed(SENTENCES, pool="max", boundaries=True)


def test_bfloat16_is_near(elmo):
    exact, rounded = (elmo.embed(SENTENCES, precision=name, batch_size=8) for name in ("float32", "bfloat16"))
    assert 1e-5 < largest_error(rounded, exact) < 0.05


def test_bfloat16_reads_a_single_row_in_float32_on_cpu(elmo):
    (exact,), (found,) = (elmo.embed(SENTENCES[:1], precision=name) for name in ("float32", "bfloat16"))
    assert (found == exact).all()


def test_embed_iter_holds_little(elmo):
    """Sentences leave as soon as they are complete: what is held is small beside what is made."""

    def held_and_made(sentences):
        made = 0
        tracemalloc.start()
        for vectors in elmo.embed_iter((["some", "words"] * 15 for _ in range(sentences)), layers="all", batch_size=4):
            made += vectors.nbytes
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held, made

    held_and_made(100)
    held, made = held_and_made(1000)
    assert made == 1000 * 30 * 3 * 14 * 4
    assert held < made / 10


def test_a_long_sentence_holds_back_the_others(elmo, monkeypatch):
    """While the first sentence is read, only so much of what follows is read ahead, and nothing changes."""
    monkeypatch.setattr(engine, "AHEAD", 2)
    sentences = [["long"] * 3000] + [["short", "one"]] * 2000
    read = 0

    def stream():
        nonlocal read
        for sentence in sentences:
            read += 1
            yield sentence

    vectors = elmo.embed_iter(stream(), state="zero", batch_size=8)
    first = next(vectors)
    assert read < (3002 + 3 * 8 * engine.WINDOW) / 4
    assert largest_error([first, *vectors], elmo.embed(sentences, state="zero", batch_size=1)) < 1e-6


@pytest.mark.slow
def test_a_sentence_of_100_000_tokens(elmo, tmp_path):
    """Exact to the last position, in memory that is little beside the vectors themselves."""
    generator = np.random.default_rng(0)
    sentence = [f"w{number}" for number in generator.integers(0, 500, 100_000)]
    tracemalloc.start()
    (found,) = elmo.embed([sentence], layers="all", state="zero", boundaries=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = numpy_elmo.embed(sentence, random_weights(SMALL), to_options(SMALL))
    assert relative_error(found, expected) < TOLERANCE
    assert peak < 3 * found.nbytes


def test_word_longer_than_the_limit_is_cut(elmo):
    limit = SMALL.max_characters - 2
    assert largest_error(elmo.embed([["x" * limit]]), elmo.embed([["x" * 200]])) == 0
