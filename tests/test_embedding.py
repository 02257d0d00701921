import dataclasses
import itertools
import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import numpy_elmo
import pytest
from conftest import SENTENCES, SMALL, TOLERANCE, random_weights, relative_error, write_random_model

import elmo_jax
from elmo_jax import Mix, embedding
from elmo_jax.config import ModelConfig, to_options
from elmo_jax.embedding import WordVectors
from elmo_jax.errors import InputError
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import write_arrays


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("model"), SMALL)


@pytest.fixture(scope="module")
def elmo(folder):
    return elmo_jax.load(folder)


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
    sentence = [f"w{number % 17}" for number in range(5 * embedding.WINDOW + 3)]
    in_windows = elmo.embed([sentence], layers="all", state="zero")
    monkeypatch.setattr(embedding, "WINDOW", len(sentence) + 2)
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
    monkeypatch.setattr(embedding, "AHEAD", 1)
    sentences = [["long"] * 2000, *([["short", "one"]] * 101)]
    found = elmo.embed(sentences, state="carry", batch_size=2)
    for row in (0, 1):
        assert largest_error(found[row::2], elmo.embed(sentences[row::2], state="carry", batch_size=1)) < 1e-6


def test_a_word_has_the_same_vector_in_any_company(elmo):
    """Bit for bit, whatever other words are new with it, and after it has been forgotten."""
    words = [f"{'x' * (number % 11)}{number}" for number in range(400)]

    def vectors(table, words):
        places = table.places(words)
        return np.asarray(table.table)[places]

    together = vectors(WordVectors(elmo.model, elmo._words, 512), words)
    few = WordVectors(elmo.model, elmo._words, 64)
    for word, expected in zip(words, together, strict=True):
        assert (vectors(few, [word])[0] == expected).all()
    assert (vectors(few, words[:64]) == together[:64]).all()
    assert len(few.place) + len(few.free) == 64


def test_words_used_last_are_kept(elmo):
    table = WordVectors(elmo.model, elmo._words, 16)
    table.places(["kept", *(f"old{number}" for number in range(14))])
    place = table.places(["kept"])
    table.places([f"new{number}" for number in range(15)])
    assert table.places(["kept"]) == place
    assert "old3" not in table.place
    assert len(table.place) == 16


def test_few_places_for_words_change_nothing(elmo, monkeypatch):
    """With places for fewer words than the text has, words are forgotten and spelled again."""
    sentences = [[f"w{number % 1000}" for number in range(first, first + 9)] for first in range(0, 4000, 7)]
    expected = elmo.embed(sentences, batch_size=4)
    monkeypatch.setattr(embedding, "CACHED_WORDS", 1)
    monkeypatch.setattr(elmo, "_vectors", None)
    found = elmo.embed(sentences, batch_size=4)
    assert elmo._vectors.capacity < 1000
    assert all((one == other).all() for one, other in zip(found, expected, strict=True))


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


def test_threads_share_a_model(elmo):
    sentences = [[f"{name}{number}" for number in range(9)] for name in "abcdefgh" for _ in range(40)]
    expected = elmo.embed(sentences, batch_size=8)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: elmo.embed(sentences, batch_size=8), range(4)))
    for one in found:
        assert all((array == other).all() for array, other in zip(one, expected, strict=True))


def test_layers(elmo):
    layers = elmo.embed(SENTENCES, layers="all")
    assert [array.shape for array in layers] == [(3, len(sentence), 14) for sentence in SENTENCES]
    assert {array.dtype for array in layers} == {np.dtype(np.float32)}
    assert elmo.dim == 14
    assert largest_error(elmo.embed(SENTENCES), [array.mean(0) for array in layers]) < 1e-6
    assert largest_error(elmo.embed(SENTENCES, layers="top"), [array[-1] for array in layers]) < 1e-6
    assert all((array[0, :, :7] == array[0, :, 7:]).all() for array in layers)
    weights = np.array([1.0, -2.0, 0.5])
    share = np.exp(weights) / np.exp(weights).sum()
    mixed = elmo.embed(SENTENCES, layers="mix", mix=Mix(weights, 1.7))
    assert largest_error(mixed, [1.7 * np.tensordot(share, array, 1) for array in layers]) < 1e-6


@pytest.mark.parametrize("boundaries", [False, True])
def test_mix_with_layer_norm(elmo, boundaries):
    sentences = [SENTENCES[0], SENTENCES[-1]]
    layers = elmo.embed(sentences, layers="all", boundaries=boundaries)
    normal = [(a - a.mean((1, 2), keepdims=True)) / a.std((1, 2), keepdims=True) for a in layers]
    found = elmo.embed(sentences, layers="mix", mix=Mix([0, 0, 0], layer_norm=True), boundaries=boundaries)
    assert largest_error(found, [array.mean(0) for array in normal]) < TOLERANCE


def test_boundaries(elmo):
    without, with_them = elmo.embed(SENTENCES), elmo.embed(SENTENCES, boundaries=True)
    assert largest_error(without, [array[1:-1] for array in with_them]) < 1e-6
    for state in ("zero", "carry"):
        found, whole = (elmo.embed(SENTENCES, state=state, boundaries=boundaries) for boundaries in (False, True))
        assert largest_error(found, [array[1:-1] for array in whole]) < 1e-6


def test_strings_are_split_at_spaces(elmo):
    assert largest_error(elmo.embed(["the cat  sat"]), elmo.embed([["the", "cat", "sat"]])) == 0


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
    monkeypatch.setattr(embedding, "AHEAD", 2)
    sentences = [["long"] * 3000] + [["short", "one"]] * 2000
    read = 0

    def stream():
        nonlocal read
        for sentence in sentences:
            read += 1
            yield sentence

    vectors = elmo.embed_iter(stream(), state="zero", batch_size=8)
    first = next(vectors)
    assert read < (3002 + 3 * 8 * embedding.WINDOW) / 4
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": "topmost"}, "layers is 'topmost'; it must be one of 'average', 'top', 'all', 'mix'"),
        ({"state": "hot"}, "state is 'hot'"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"layers": "mix"}, "go together"),
        ({"layers": "mix", "mix": Mix([1, 2])}, "mix has 2 weights; the model needs 3"),
    ],
)
def test_bad_arguments(elmo, arguments, message):
    with pytest.raises(InputError, match=message):
        elmo.embed_iter(SENTENCES, **arguments)


@pytest.mark.parametrize(
    ("sentences", "message"), [("a str", "one str"), ([["a", 3]], "got .*3"), ([None], "got None")]
)
def test_bad_sentences(elmo, sentences, message):
    with pytest.raises(InputError, match=message):
        elmo.embed(sentences)


def test_no_sentences(elmo):
    assert elmo.embed([]) == []


def test_load_takes_a_folder_or_files(tmp_path):
    with pytest.raises(InputError, match="takes a folder, or options= and weights="):
        elmo_jax.load(options=tmp_path)


def test_word_longer_than_the_limit_is_cut(elmo):
    limit = SMALL.max_characters - 2
    assert largest_error(elmo.embed([["x" * limit]]), elmo.embed([["x" * 200]])) == 0
    assert isinstance(elmo.model, ModelConfig)
