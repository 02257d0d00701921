"""What a program writes that uses the package: read by the type checker, never run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import jax
import numpy as np
import numpy.typing as npt

import elmo_jax
from elmo_jax import (
    BiLM,
    Config,
    DataConfig,
    Elmo,
    ElmoEmbedder,
    ElmoVectorizer,
    Encoded,
    InputError,
    Mix,
    ModelConfig,
    ScalarMix,
    TrainConfig,
)

Vectors = npt.NDArray[np.float32]


def load(folder: Path) -> Elmo:
    elmo = assert_type(elmo_jax.load("runs/mine"), Elmo)
    elmo_jax.load(folder)
    elmo_jax.load("original")
    elmo_jax.load(options="options.json", weights=folder / "weights.hdf5")
    elmo_jax.load("options.json", "weights.hdf5", compilation_cache=False)
    elmo_jax.load(options=folder / "options.json", weights=folder / "weights.hdf5", vocab="vocab.txt")
    assert_type(elmo.dim, int)
    assert_type(elmo.model, ModelConfig)
    elmo_jax.laod("runs/mine")  # type: ignore[attr-defined]
    return elmo


def embed(elmo: Elmo) -> Iterator[Vectors]:
    vectors = elmo.embed(["The river burst its banks .", ["The", "bank", "raised", "its", "rates", "."]])
    assert_type(vectors, list[Vectors])
    elmo.embed([("a", "sentence")], layers="top", state="zero", precision="bfloat16", boundaries=True, batch_size=8)
    elmo.embed((["w"] for _ in range(3)), layers="mix", mix=Mix([0.1, 0.2, 0.7], gamma=2.0, layer_norm=True))
    elmo.embed(["w"], layers="mix", mix=[0.1, 0.2, 0.7])
    elmo.embed(["w"], pool="mean")
    elmo.embed(["w"], layers="mix", mix=np.ones(3, np.float32), batch_size=np.int64(8))
    elmo.embed(
        ["w"],
        layers="average",
        state="warm",
        precision="float32",
        boundaries=False,
        batch_size=None,
        mix=None,
        pool=None,
    )
    assert_type(elmo.embed_iter(["w"], layers="all", state="carry", batch_size=2), Iterator[Vectors])
    with open("large.txt") as lines:
        yield from elmo.embed_iter(
            lines, layers="mix", state="warm", precision="float32", boundaries=True, batch_size=1, mix=Mix((1.0, 2.0))
        )
    elmo.embed(["w"], layers="bottom")  # type: ignore[arg-type]
    elmo.embed(["w"], pool="sum")  # type: ignore[arg-type]
    elmo.embed(["w"], state="cold")  # type: ignore[arg-type]
    elmo.embed(["w"], precision="float16")  # type: ignore[arg-type]
    elmo.embed([3])  # type: ignore[list-item]
    elmo.embed(["w"], rows=3)  # type: ignore[call-arg]


def configure() -> Config:
    model = ModelConfig(cell_dim=2048, filters=((1, 32), (2, 64)), cell_clip=None, input="characters")
    config = Config(model, DataConfig(train=("builtin",)), TrainConfig(steps=10, precision="bfloat16"))
    assert_type(config.model.projection_dim, int)
    ModelConfig(cell_dim="2048")  # type: ignore[arg-type]
    TrainConfig(softmax="whole")  # type: ignore[arg-type]
    return config


def build(config: Config) -> tuple[Any, Any]:
    """The modules, for a model of one's own."""
    return BiLM(config.model, vocabulary_size=7, precision="float32"), ScalarMix(layer_norm=True)


def own_model(elmo: Elmo) -> Elmo:
    """ELMo inside a model of one's own."""
    encoded = assert_type(elmo.encode(["The river burst its banks ."], rows=4), Encoded)
    activations, mask = elmo.batch([["w"]], state="zero", precision="bfloat16", boundaries=True, rows=2)
    assert_type(activations, jax.Array)
    assert_type(mask, jax.Array)
    elmo.batch(["w"], state="carry")  # type: ignore[arg-type]
    embedder = assert_type(ElmoEmbedder.of(elmo, num_output_representations=2, frozen=False), ElmoEmbedder)
    variables = embedder.init(jax.random.key(0), encoded, deterministic=True)
    learned = assert_type(embedder.to_elmo(variables["params"]), Elmo)
    learned.save("runs/learned")
    ElmoVectorizer(elmo, pool="max").fit_transform(["a river"])
    return assert_type(elmo.with_parameters(learned.parameters, mixes=[Mix([0.0, 0.0, 1.0])]), Elmo)


def bad_input(elmo: Elmo) -> str | None:
    try:
        elmo.embed(["w"])
    except InputError as error:
        assert_type(error, InputError)
        return str(error)
    return None


assert_type(elmo_jax.__version__, str)
