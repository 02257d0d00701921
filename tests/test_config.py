import json

import pytest
from conftest import ROOT, SMALL

from elmo_jax.config import (
    Config,
    ModelConfig,
    TrainConfig,
    check,
    from_json,
    from_options,
    load_config,
    read_options,
    to_json,
    to_options,
)
from elmo_jax.errors import InputError


@pytest.mark.parametrize("name", ["tiny", "small", "medium", "original"])
def test_configs_survive_json(name):
    config = load_config(name, ROOT / "configs")
    check(config)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("model", [SMALL, ModelConfig(), ModelConfig(input="words"), ModelConfig(cell_clip=None)])
def test_options_survive(model):
    options = json.loads(json.dumps(to_options(model, 99)))
    found = from_options(options, "options.json")
    assert to_options(found, 99) == options
    assert found == model


def test_a_published_options_file():
    """The text of the published small model's file."""
    text = """{"lstm": {"use_skip_connections": true, "projection_dim": 128, "cell_clip": 3, "proj_clip": 3,
    "dim": 1024, "n_layers": 2}, "char_cnn": {"activation": "relu", "filters": [[1, 32], [2, 32], [3, 64], [4, 128],
    [5, 256], [6, 512], [7, 1024]], "n_highway": 1, "embedding": {"dim": 16}, "n_characters": 262,
    "max_characters_per_token": 50}}"""
    assert from_options(json.loads(text), "options.json") == load_config("small", ROOT / "configs").model


@pytest.mark.parametrize("n_characters", [261, 262, None])
def test_numbers_of_characters(n_characters):
    options = to_options(SMALL)
    options["char_cnn"]["n_characters"] = n_characters
    if n_characters is None:
        del options["char_cnn"]["n_characters"]
    assert from_options(options, "options.json") == SMALL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o.pop("lstm"), "options.json lacks lstm"),
        (lambda o: o["lstm"].pop("projection_dim"), "lacks lstm.projection_dim"),
        (lambda o: o["char_cnn"].pop("filters"), "lacks char_cnn.filters"),
        (lambda o: o["char_cnn"]["embedding"].pop("dim"), "lacks char_cnn.embedding.dim"),
        (lambda o: o["char_cnn"].update(activation="gelu"), "'gelu'; relu and tanh are accepted"),
        (lambda o: o["char_cnn"].update(n_characters=300), "n_characters 300; it is 261 or 262"),
        (lambda o: o.update(bidirectional=False), "bidirectional: false"),
        (lambda o: o["lstm"].update(dim="wide"), "lstm.dim 'wide'; it must be int"),
        (lambda o: o["char_cnn"].update(filters=[3, 4]), "char_cnn.filters"),
    ],
)
def test_bad_options(change, message):
    options = to_options(SMALL)
    change(options)
    with pytest.raises(InputError, match=message):
        from_options(options, "options.json")


def test_options_that_are_not_json(tmp_path):
    (tmp_path / "options.json").write_text("{lstm: 3")
    with pytest.raises(InputError, match="is not JSON"):
        read_options(tmp_path / "options.json")
    (tmp_path / "options.json").write_text("[]")
    with pytest.raises(InputError, match="holds a JSON list"):
        read_options(tmp_path / "options.json")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(ModelConfig(layers=0)), "model.layers is 0"),
        (Config(ModelConfig(max_characters=5)), "model.max_characters is 5"),
        (Config(ModelConfig(projection_dim=5000)), "model.projection_dim is 5000"),
        (Config(ModelConfig(filters=())), "model.filters is ()"),
        (Config(ModelConfig(cell_clip=0.0)), "model.cell_clip is 0.0"),
        (Config(ModelConfig(highway_layers=-1)), "model.highway_layers is -1"),
        (Config(train=TrainConfig(window=0)), "train.window is 0"),
        (Config(train=TrainConfig(dropout=1.0)), "train.dropout is 1.0"),
        (Config(train=TrainConfig(seed=-1)), "train.seed is -1"),
        (Config(train=TrainConfig(learning_rate=float("nan"))), "train.learning_rate is nan"),
    ],
)
def test_values_that_make_no_sense(config, message):
    with pytest.raises(InputError) as error:
        check(config)
    assert message in str(error.value)


def test_config_files(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("from elmo_jax import Config, TrainConfig\nconfig = Config(train=TrainConfig(steps=7))")
    assert load_config(str(mine), ROOT / "configs").train.steps == 7
    for text, message in (("config = 3", "must define"), ("1 / 0", "does not run: ZeroDivisionError")):
        mine.write_text(text)
        with pytest.raises(InputError, match=message):
            load_config(str(mine), ROOT / "configs")
    with pytest.raises(InputError, match="no config 'huge'; give one of medium, original, small, tiny"):
        load_config("huge", ROOT / "configs")
