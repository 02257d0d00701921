import dataclasses
import json
import math

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
    parameter_count,
    read_options,
    to_json,
    to_options,
)
from elmo_jax.errors import InputError
from elmo_jax.model import parameter_shapes


@pytest.mark.parametrize("name", ["tiny", "small", "small_adam", "medium", "original"])
def test_configs_survive_json(name):
    config = load_config(name, ROOT / "configs")
    check(config)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


UNICODE = ModelConfig(alphabet=300, word_dim=100)


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        ModelConfig(),
        ModelConfig(input="words"),
        ModelConfig(cell_clip=None),
        UNICODE,
        dataclasses.replace(UNICODE, word_dim=0),
    ],
)
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
        (lambda o: o.pop("lstm"), "options.json describes no model: it lacks lstm.dim"),
        (lambda o: o["lstm"].pop("projection_dim"), "lacks lstm.projection_dim"),
        (lambda o: o["char_cnn"].pop("filters"), "lacks char_cnn.filters"),
        (lambda o: o["char_cnn"]["embedding"].pop("dim"), "lacks char_cnn.embedding.dim"),
        (
            lambda o: o["char_cnn"].update(activation="gelu"),
            "activation is 'gelu'; it must be 'relu' or 'tanh'",
        ),
        (lambda o: o["char_cnn"].update(n_characters=300), "n_characters is 300; it must be 261 or 262"),
        (lambda o: o.update(bidirectional=False), "bidirectional is False; it must be True"),
        (lambda o: o["lstm"].update(dim="wide"), "lstm.dim is 'wide'; it must be int"),
        (lambda o: o["char_cnn"].update(filters=[3, 4]), "char_cnn.filters"),
        (
            lambda o: o["char_cnn"].update(alphabet="../letters.txt"),
            "alphabet is '../letters.txt'; it must be 'characters.txt'",
        ),
        (lambda o: o["char_cnn"].update(alphabet="characters.txt", n_characters=260), "model.alphabet is 260"),
        (
            lambda o: (
                o.update(word_embedding={"dim": 5})
                or o["char_cnn"].update(alphabet="characters.txt", n_characters=None)
            ),
            "it lacks char_cnn.n_characters",
        ),
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
    with pytest.raises(InputError, match=r"is not JSON that can be read \(a list, not an object"):
        read_options(tmp_path / "options.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o["lstm"].update(n_layers=3000), "model.layers is 3000; it must be a number from 1 to 100"),
        (lambda o: o["lstm"].update(dim=10**9), "more than 100,000,000,000 parameters"),
        (lambda o: o["lstm"].update(cell_clip=10**400), "lstm.cell_clip is 1000*…; it must be float"),
        (lambda o: o["lstm"].update(proj_clip=float("nan")), "model.projection_clip is nan"),
        (
            lambda o: o["char_cnn"].update(n_highway=2**31),
            "model.highway_layers is 2147483648; it must be a",
        ),
        (
            lambda o: o["char_cnn"].update(max_characters_per_token=10**7),
            "model.max_characters is 10000000; it",
        ),
        (lambda o: o["char_cnn"].update(filters=[[1, 1]] * 10_000), "model.filters is .*; give 1 to 100 pairs"),
        (lambda o: o["char_cnn"].update(filters=[[1, 10**4000]]), "more than 100,000,000,000 parameters"),
        (lambda o: o["char_cnn"].update(filters=["x" * 10**6]), "char_cnn.filters"),
        (lambda o: o["char_cnn"].update(activation="x" * 10**6), "char_cnn.activation"),
        (lambda o: o["lstm"].update(dim="x" * 10**6), "lstm.dim"),
    ],
)
def test_options_beyond_all_models(change, message):
    options = to_options(SMALL)
    change(options)
    with pytest.raises(InputError, match=message) as error:
        from_options(options, "options.json")
    assert len(str(error.value)) < 500


def test_clips_are_floats():
    """JAX takes no integer of 2^31 and more."""
    options = to_options(SMALL)
    options["lstm"] |= {"cell_clip": 2**31, "proj_clip": 3}
    model = from_options(options, "options.json")
    assert (repr(model.cell_clip), repr(model.projection_clip)) == ("2147483648.0", "3.0")


def test_parameters_are_counted():
    for model in (SMALL, ModelConfig(), UNICODE):
        shapes = parameter_shapes(model)
        assert parameter_count(model) == sum(math.prod(shape) for group in shapes.values() for shape in group.values())


def test_a_byte_order_mark_is_read_as_nothing(tmp_path):
    for name, values in (("options.json", to_options(SMALL)), ("config.json", to_json(Config()))):
        (tmp_path / name).write_text(json.dumps(values), encoding="utf-8-sig")
    assert read_options(tmp_path / "options.json") == SMALL
    assert load_config(str(tmp_path / "config.json"), ROOT / "configs") == Config()


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "3", "null", "{}", '{"model": 3, "data": {}, "train": {}}', "[" * 10**5,
        f'{{"model": {"9" * 5000}}}',        b"\xff\xfe{\x00}\x00", b"caf\xe9", b"\x89HDF\r\n\x1a\n",
    ],
)  # fmt: skip
def test_json_that_is_no_config(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"config\.json is (not|an HDF5 file)") as error:
        load_config(str(path), ROOT / "configs")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("train", "steps", "7"), ("train", "steps", 7.0), ("train", "steps", None), ("train", "steps", True),
        ("train", "learning_rate", "fast"), ("train", "learning_rate", 10**400), ("train", "softmax", "half"),
        ("train", "softmax", ["full"]), ("train", "stepz", 3), ("train", "x" * 10**6, 3),
        ("data", "train", "text.txt"), ("data", "train", [1]), ("data", "vocab", 3), ("data", "shuffle", 1),
        ("model", "filters", [[1, 2, 3]]), ("model", "filters", [[1, "a"]]), ("model", "layers", "x" * 10**6),
    ],
)  # fmt: skip
def test_fields_of_wrong_types(tmp_path, section, name, value):
    values = to_json(Config()) | {"rows": 8, "text": None}
    values[section][name] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="is not the config of a run: ") as error:
        load_config(str(tmp_path / "config.json"), ROOT / "configs")
    assert name[:20] in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Config(train=TrainConfig(steps=10**12)),
            "train.steps is 1000000000000; it must be a number from 1 to",
        ),
        (Config(train=TrainConfig(learning_rate=float("inf"))), "train.learning_rate is inf; it must be"),
        (Config(ModelConfig(layers=0)), "model.layers is 0"),
        (Config(ModelConfig(max_characters=5)), "model.max_characters is 5"),
        (Config(ModelConfig(projection_dim=5000)), "model.projection_dim is 5000"),
        (Config(ModelConfig(filters=())), "model.filters is ()"),
        (Config(ModelConfig(cell_clip=0.0)), "model.cell_clip is 0.0"),
        (Config(ModelConfig(word_dim=5)), "model.word_dim is 5; only a model with model.alphabet"),
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
    mine.write_text("from elmo_jax import Config, TrainConfig\nconfig = Config(train=TrainConfig(steps='7'))")
    with pytest.raises(InputError, match=r"mine\.py .* train.steps is '7'; it must be int"):
        load_config(str(mine), ROOT / "configs")
    with pytest.raises(InputError, match="no config 'huge'; give one of medium, original, small, small_adam, tiny"):
        load_config("huge", ROOT / "configs")
