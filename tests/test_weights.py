import dataclasses
import json

import h5py
import jax
import numpy as np
import pytest
from conftest import SMALL, random_weights, write_random_model

from elmo_jax.config import ModelConfig, from_options, read_options
from elmo_jax.errors import InputError
from elmo_jax.modules import init_bilm
from elmo_jax.vocabulary import Vocabulary
from elmo_jax.weights import read_folder, read_weights, weight_shapes, write_arrays, write_folder, write_weights

WORDS = ModelConfig(input="words", cell_dim=11, projection_dim=7)


def contents(path):
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


@pytest.mark.parametrize("trace", ["one_device", "two_devices"])
def test_exported_names_are_those_of_bilm_tf(golden, tmp_path, trace):
    folder = golden / "training" / trace
    model = from_options(json.loads((folder / "options.json").read_text()), "options.json")
    write_weights(tmp_path / "weights.hdf5", init_bilm(jax.random.key(0), model), model)
    ours, theirs = contents(tmp_path / "weights.hdf5"), contents(folder / "dumped_weights.hdf5")
    describe = lambda arrays: {name: (array.shape, array.dtype) for name, array in arrays.items()}
    assert describe(ours) == describe(theirs)


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        dataclasses.replace(SMALL, highway_layers=0, layers=3, filters=((1, 3), (2, 4)), projection_dim=7),
        dataclasses.replace(SMALL, cell_dim=7, activation="tanh", layers=1),
        WORDS,
    ],
    ids=["usual", "no highway, no CNN projection", "no LSTM projection", "words"],
)
def test_load_of_export_is_bit_identical(model, tmp_path):
    vocabulary = Vocabulary(["<S>", "</S>", "<UNK>", "the", "cat"])
    bilm = init_bilm(jax.random.key(0), model, len(vocabulary))
    softmax = {"weight": np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32), "bias": np.arange(5.0)}
    write_folder(tmp_path, model, {"bilm": bilm, "softmax": softmax}, vocabulary)
    folder = read_folder(tmp_path, with_softmax=True)
    assert folder.model == model
    assert folder.vocabulary.words == vocabulary.words
    assert jax.tree.structure(folder.parameters) == jax.tree.structure(bilm)
    for found, saved in zip(jax.tree.leaves(folder.parameters), jax.tree.leaves(bilm), strict=True):
        assert (found == saved).all()
    assert (folder.softmax["weight"] == softmax["weight"]).all()
    assert (folder.softmax["bias"] == softmax["bias"]).all()


def test_exported_options_suit_the_originals(tmp_path):
    """bilm-tf refuses n_characters other than 262 at inference, AllenNLP needs all of these keys."""
    folder = write_random_model(tmp_path, SMALL)
    options = json.loads((folder / "options.json").read_text())
    assert options["char_cnn"]["n_characters"] == 262
    assert set(options["char_cnn"]) >= {"activation", "embedding", "filters", "n_highway", "max_characters_per_token"}
    assert set(options["lstm"]) == {
        "dim", "projection_dim", "n_layers", "cell_clip", "proj_clip", "use_skip_connections"
    }  # fmt: skip


def test_all_problems_are_reported_together(tmp_path):
    path = tmp_path / "weights.hdf5"
    arrays = random_weights(SMALL)
    del arrays["CNN_proj/b_proj"]
    arrays["extra"] = np.zeros(3)
    arrays["char_embed"] = np.zeros((262, 3))
    write_arrays(path, arrays)
    with pytest.raises(InputError) as error:
        read_weights(path, SMALL)
    message = str(error.value)
    assert str(path) in message
    assert "missing: CNN_proj/b_proj (7,)" in message
    assert "not known: extra" in message
    assert "char_embed is (262, 3), expected (261, 3)" in message


def test_one_layer_as_bilm_tf_names_it(tmp_path):
    model = dataclasses.replace(SMALL, layers=1)
    arrays = random_weights(model)
    renamed = {name.replace("/MultiRNNCell/Cell0", ""): array for name, array in arrays.items()}
    assert set(renamed) != set(arrays)
    write_arrays(tmp_path / "weights.hdf5", renamed)
    parameters = read_weights(tmp_path / "weights.hdf5", model)
    assert (parameters["forward_0"]["kernel"] == arrays["RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/W_0"]).all()


def test_files_that_are_not_there_or_not_hdf5(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_weights(tmp_path / "weights.hdf5", SMALL)
    write_arrays(tmp_path / "weights.hdf5", random_weights(SMALL))
    (tmp_path / "half.hdf5").write_bytes((tmp_path / "weights.hdf5").read_bytes()[:3000])
    with pytest.raises(InputError, match="not a whole HDF5 file"):
        read_weights(tmp_path / "half.hdf5", SMALL)
    with pytest.raises(InputError, match="no folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no file .*/options.json"):
        read_folder(tmp_path)


def test_words_need_a_vocabulary(tmp_path):
    folder = write_random_model(tmp_path, SMALL)
    options = json.loads((folder / "options.json").read_text())
    del options["char_cnn"]
    (folder / "options.json").write_text(json.dumps(options))
    assert read_options(folder / "options.json").input == "words"
    with pytest.raises(InputError, match=r"needs its vocab.txt"):
        read_folder(folder)


def test_published_fixtures_load(golden):
    for name in ("bilm_tf_fixture", "allennlp_fixture"):
        model = read_options(golden / name / "options.json")
        shapes = weight_shapes(model, 0)
        assert {n: a.shape for n, a in contents(golden / name / "lm_weights.hdf5").items()} == shapes
