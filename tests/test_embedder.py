"""ELMo inside a Flax model: equal to AllenNLP's module, frozen or fine-tuned, on meshes, and exported again."""

import functools
import pickle
import subprocess

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import ROOT, SENTENCES, SMALL, relative_error
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import elmo_jax
from benchmarks.systems import python_of
from elmo_jax import ElmoEmbedder, Encoded, InputError, ScalarMix, layer_rates, parameter_groups
from elmo_jax.batches import read_sentences, with_boundaries
from elmo_jax.model import parameter_shapes, word_vectors
from elmo_jax.weights import named_weights

ARCHIVES = ROOT / "tests" / "data" / "allennlp"
GOLDEN = np.load(ARCHIVES / "embedder.npz")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def archive():
    """The model of AllenNLP's golden values, and their sentences."""
    sentences = [sentence.split() for sentence in np.load(ARCHIVES / "vectors.npz")["sentences"].tolist()]
    return elmo_jax.load(ARCHIVES / "classifier.tar.gz"), sentences


def with_golden_mixes(variables):
    params = dict(variables["params"])
    for number, (scalars, gamma) in enumerate(zip(GOLDEN["scalars"], GOLDEN["gammas"], strict=True)):
        params[f"scalar_mix_{number}"] = {"weights": jnp.asarray(scalars), "gamma": jnp.asarray(gamma)}
    return variables | {"params": params}


def representations_of(embedder, variables, encoded):
    return jax.jit(functools.partial(embedder.apply, deterministic=True))(variables, encoded)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("boundaries", [False, True])
def test_it_equals_allennlp(archive, layer_norm, boundaries):
    elmo, sentences = archive
    options = {"layer_norm": layer_norm, "keep_sentence_boundaries": boundaries}
    embedder = ElmoEmbedder.of(elmo, state="zero", num_output_representations=2, **options)
    encoded = elmo.encode(sentences, rows=6)
    variables = with_golden_mixes(embedder.init(KEY, encoded, deterministic=True))
    representations, mask = representations_of(embedder, variables, encoded)
    case = f"{layer_norm:d}{boundaries:d}"
    expected, known = GOLDEN[f"{case}/representations"], GOLDEN[f"{case}/mask"]
    positions = known.shape[1]
    assert (mask[:4, :positions] == known).all()
    assert not mask[4:].any()
    assert not mask[:, positions:].any()
    for own, golden in zip(representations, expected, strict=True):
        assert relative_error(own[:4, :positions][known], golden[known]) < 1e-5
        assert not np.asarray(own)[~np.asarray(mask)].any()


@pytest.mark.parametrize("layer_norm", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_equal_pytorchs(archive, layer_norm):
    """Of mixes, γ and every parameter of the biLM, through characters, both directions and the boundaries."""
    elmo, sentences = archive
    options = {"layer_norm": layer_norm, "num_output_representations": 2, "frozen": False}
    embedder = ElmoEmbedder.of(elmo, state="zero", **options)
    encoded = elmo.encode(sentences)
    variables = with_golden_mixes(embedder.init(KEY, encoded, deterministic=True))
    cotangent = GOLDEN["cotangent"]

    @jax.jit
    @jax.grad
    def gradient(params):
        representations, _ = embedder.apply(variables | {"params": params}, encoded, deterministic=True)
        return sum(
            (own[:, : cotangent.shape[2]] * of).sum() for own, of in zip(representations, cotangent, strict=True)
        )

    found, case = gradient(variables["params"]), f"{layer_norm:d}0/gradient"
    mixes = [found[f"scalar_mix_{number}"] for number in range(2)]
    assert relative_error([mix["gamma"] for mix in mixes], GOLDEN[f"{case}/gammas"]) < 1e-4
    assert relative_error([mix["weights"] for mix in mixes], GOLDEN[f"{case}/scalars"]) < 1e-4
    weights = named_weights(found["bilm"], elmo.model)
    assert {f"{case}/{name}" for name in weights} <= set(GOLDEN.files)
    for name, array in weights.items():
        assert np.abs(array).max() > 0
        assert relative_error(array, GOLDEN[f"{case}/{name}"]) < 1e-4, name


@pytest.mark.parametrize("frozen", [False, True])
def test_it_has_the_vectors_of_embed(elmo, frozen):
    embedder = ElmoEmbedder.of(elmo, frozen=frozen, keep_sentence_boundaries=True)
    encoded = elmo.encode(SENTENCES)
    variables = embedder.init(KEY, encoded, deterministic=True)
    (average,), mask = representations_of(embedder, variables, encoded)
    for row, valid, own in zip(average, mask, elmo.embed(SENTENCES, boundaries=True), strict=True):
        np.testing.assert_allclose(row[valid], own, atol=1e-6)


class Tagger(nn.Module):
    """A head of one layer on a mix."""

    embedder: ElmoEmbedder

    @nn.compact
    def __call__(self, encoded, deterministic):
        (vectors,), mask = self.embedder(encoded, deterministic=deterministic)
        return nn.Dense(5)(vectors), mask


def tag_loss(logits, mask):
    """A loss whose targets are the positions."""
    targets = jnp.broadcast_to(jnp.arange(mask.shape[1])[None] % 5, mask.shape)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(where=mask)


def tagger_of(elmo, **options):
    """The tagger, its "params" and what is not trained."""
    tagger = Tagger(ElmoEmbedder.of(elmo, **options))
    variables = tagger.init(KEY, elmo.encode(SENTENCES), True)
    params = variables.pop("params")
    return tagger, params, variables


def step_of(tagger):
    """Gradients of the loss with respect to "params"."""

    def loss(params, fixed, encoded, key):
        return tag_loss(*tagger.apply({"params": params} | fixed, encoded, False, rngs={"dropout": key}))

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.slow
def test_frozen_costs_embedding_and_the_head(elmo):
    """Nothing is computed of the biLM's gradient, not even where all variables are differentiated."""
    encoded = elmo.encode(SENTENCES)
    tagger, params, fixed = tagger_of(elmo)
    assert set(params["embedder"]) == {"scalar_mix_0"}
    program = step_of(tagger).lower(params, fixed, encoded, KEY).compile()
    held = fixed["elmo"]["embedder"]

    def embed(held, encoded):
        bilm = held["bilm"]
        positions, mask = with_boundaries(*encoded[2:], jnp.arange(2, dtype=jnp.int32))
        vectors = word_vectors(elmo.model, bilm["words"], encoded.words, encoded.count, "float32")
        return read_sentences(elmo.model, bilm, vectors, positions, mask, held["start_state"], used=mask.any(0)), mask

    class Head(nn.Module):
        @nn.compact
        def __call__(self, activations, mask):
            mixed = nn.Dropout(0.5)(ScalarMix()(activations, mask), deterministic=False)
            return nn.Dense(5)(mixed)

    def head(params, activations, mask):
        return tag_loss(Head().apply({"params": params}, activations, mask, rngs={"dropout": KEY}), mask)

    embedding = jax.jit(embed).lower(held, encoded).compile()
    activations = jax.eval_shape(embed, held, encoded)
    head_params = jax.eval_shape(Head().init, {"params": KEY, "dropout": KEY}, *activations)["params"]
    own = jax.jit(jax.value_and_grad(head)).lower(head_params, *activations).compile()
    flops = lambda program: program.cost_analysis()["flops"]
    assert flops(program) < 1.1 * (flops(embedding) + flops(own))
    tuned, tuned_params, tuned_fixed = tagger_of(elmo, frozen=False)
    costly = step_of(tuned).lower(tuned_params, tuned_fixed, encoded, KEY).compile()
    assert flops(costly) > 2 * flops(program)
    assert costly.memory_analysis().temp_size_in_bytes > program.memory_analysis().temp_size_in_bytes
    everything = lambda variables: tag_loss(*tagger.apply(variables, encoded, True))
    loops = lambda function: str(jax.make_jaxpr(function)({"params": params} | fixed)).count("scan[")
    assert loops(jax.grad(everything)) == loops(everything) > 0


def test_fine_tuned_parameters_are_exported(elmo, tmp_path):
    """Every parameter gets a gradient; the folder that is written gives the vectors of the module."""
    tagger, params, fixed = tagger_of(elmo, frozen=False)
    encoded, step = elmo.encode(SENTENCES), step_of(tagger)
    optimiser = optax.sgd(0.3)
    state = optimiser.init(params)
    losses = []
    for number in range(4):
        loss, gradients = step(params, fixed, encoded, jax.random.fold_in(KEY, number))
        assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients["embedder"]["bilm"]))
        updates, state = optimiser.update(gradients, state)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    learned = tagger.embedder.to_elmo(params["embedder"])
    learned.save(tmp_path)
    loaded = elmo_jax.load(tmp_path)
    np.testing.assert_array_equal(loaded.mix.weights, params["embedder"]["scalar_mix_0"]["weights"])
    again = pickle.loads(pickle.dumps(learned))
    for state in ("warm", "zero"):
        module = ElmoEmbedder.of(elmo, state=state, frozen=False)
        variables = {"params": params["embedder"]}
        (mixed,), mask = representations_of(module, variables, encoded)
        for model in (loaded, learned, again):
            for row, valid, vectors in zip(mixed, mask, model.embed(SENTENCES, layers="mix", state=state), strict=True):
                np.testing.assert_allclose(row[valid], vectors, atol=2e-6)
    assert np.abs(elmo.embed(SENTENCES[:1])[0] - learned.embed(SENTENCES[:1])[0]).max() > 1e-3
    assert "not saved" in repr(learned)


ALLENNLP = """
import sys
import numpy as np
from allennlp.modules.elmo import Elmo, batch_to_ids
folder, *sentences = sys.argv[1:]
elmo = Elmo(folder + "/options.json", folder + "/weights.hdf5", 1).eval()
found = elmo(batch_to_ids([sentence.split() for sentence in sentences]))["elmo_representations"][0]
np.save(folder + "/found.npy", found.detach().numpy())
"""


@pytest.mark.slow
def test_allennlp_reads_what_was_fine_tuned(archive, tmp_path):
    """Its environment is that of the benchmarks, `make peers`."""
    python = python_of("allennlp")
    if not python.exists():
        pytest.skip(f"no {python}; `make peers` installs AllenNLP")
    elmo, sentences = archive
    tagger, encoded = Tagger(ElmoEmbedder.of(elmo, frozen=False)), elmo.encode(sentences)
    variables = tagger.init(KEY, encoded, True)
    params = variables.pop("params")
    _, gradients = step_of(tagger)(params, variables, encoded, KEY)
    params = jax.tree.map(lambda array, gradient: array - 0.1 * gradient, params, gradients)
    tagger.embedder.to_elmo(params["embedder"]).save(tmp_path)
    command = [python, "-W", "ignore", "-c", ALLENNLP, tmp_path, *map(" ".join, sentences)]
    subprocess.run(command, check=True, capture_output=True)
    learned, found = elmo_jax.load(tmp_path), np.load(tmp_path / "found.npy")
    for sentence, own, before, theirs in zip(
        sentences, learned.embed(sentences, state="zero"), elmo.embed(sentences, state="zero"), found, strict=True
    ):
        assert relative_error(theirs[: len(sentence)], own) < 1e-5
        assert np.abs(own - before).max() > 1e-4


def test_a_frozen_model_keeps_its_parameters_and_has_the_mixes(elmo):
    embedder = ElmoEmbedder.of(elmo, num_output_representations=2, layer_norm=True)
    params = embedder.init(KEY, elmo.encode(SENTENCES), deterministic=True)["params"]
    params["scalar_mix_1"]["weights"] = jnp.array([2.0, 0.0, -1.0])
    learned = embedder.to_elmo(params)
    assert learned.mixes[1].weights.tolist() == [2.0, 0.0, -1.0]
    assert [mix.layer_norm for mix in learned.mixes] == [True, True]
    np.testing.assert_array_equal(learned.embed(SENTENCES)[0], elmo.embed(SENTENCES)[0])


def test_rates_of_layers(elmo):
    _, params, _ = tagger_of(elmo, frozen=False)
    groups = parameter_groups(params)
    assert set(jax.tree.leaves(groups)) == {"words", "lstm_0", "lstm_1", "rest"}
    assert groups["embedder"]["bilm"]["backward_1"]["kernel"] == "lstm_1"
    assert groups["embedder"]["scalar_mix_0"]["gamma"] == groups["Dense_0"]["bias"] == "rest"
    optimiser = optax.chain(optax.sgd(1.0), layer_rates({"words": 0.0, "lstm_0": 0.5}))
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimiser.update(ones, optimiser.init(params), params)
    expected = {"words": 0.0, "lstm_0": -0.5, "lstm_1": -1.0, "rest": -1.0}
    jax.tree.map(lambda array, group: np.testing.assert_array_equal(array, expected[group]), updates, groups)
    with pytest.raises(InputError, match=r"no group lstm_7, but \['lstm_0', 'lstm_1', 'rest', 'words'\]"):
        layer_rates({"lstm_7": 0.0}).update(ones, optax.EmptyState())
    several = optax.multi_transform(
        {"words": optax.set_to_zero()} | dict.fromkeys(("lstm_0", "lstm_1", "rest"), optax.sgd(0.1)), parameter_groups
    )
    updates, _ = several.update(ones, several.init(params), params)
    assert not np.asarray(updates["embedder"]["bilm"]["words"]["embedding"]).any()


def test_dropout_and_projection(elmo):
    encoded = elmo.encode(SENTENCES)
    embedder = ElmoEmbedder.of(elmo, num_output_representations=2, projection_dim=3, dropout=0.3)
    variables = embedder.init(KEY, encoded, deterministic=True)
    assert variables["params"]["projection_1"]["kernel"].shape == (elmo.dim, 3)
    dropped = jax.jit(functools.partial(embedder.apply, deterministic=False))
    first, _ = dropped(variables, encoded, rngs={"dropout": KEY})
    same, _ = dropped(variables, encoded, rngs={"dropout": KEY})
    np.testing.assert_array_equal(first, same)
    plain, mask = representations_of(embedder, variables, encoded)
    assert np.shape(plain) == (2, *mask.shape, 3)
    assert not np.asarray(plain)[:, ~np.asarray(mask)].any()
    assert (np.abs(np.asarray(first) - np.asarray(plain)).max((1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("frozen", [pytest.param(False, marks=pytest.mark.slow), True])
def test_rows_on_a_mesh_and_under_pmap(elmo, frozen):
    """Rows divided among four devices, words on each: gradients are those of one device."""
    tagger, params, fixed = tagger_of(elmo, frozen=frozen, dropout=0.0)
    encoded, step = elmo.encode(SENTENCES, rows=8), step_of(tagger)
    loss, gradients = step(params, fixed, encoded, KEY)
    mesh = Mesh(np.array(jax.devices()[:4]), ("rows",))
    shared, divided = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("rows"))
    places = Encoded(shared, shared, divided, divided, divided)
    placed = jax.device_put((params, fixed), shared), jax.device_put(encoded, places)
    found, on_mesh = step(*placed[0], placed[1], KEY)
    assert relative_error(found, loss) < 1e-6
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), on_mesh, gradients)

    def local(params, fixed, encoded):
        def total(params):
            logits, mask = tagger.apply({"params": params} | fixed, encoded, True)
            return jnp.nan_to_num(tag_loss(logits, mask)) * mask.sum(dtype=jnp.float32)

        tokens = jax.lax.psum(encoded.mask.sum(dtype=jnp.float32), "rows")
        summed = jax.lax.psum(jax.grad(total)(params), "rows")
        return jax.tree.map(lambda array: array / tokens, summed)

    axes = Encoded(None, None, 0, 0, 0)
    part = lambda array: array.reshape(4, 2, *array.shape[1:])
    parts = encoded._replace(**{name: part(getattr(encoded, name)) for name in ("positions", "mask", "sentences")})
    under_pmap = jax.pmap(local, "rows", in_axes=(None, None, axes), out_axes=None, devices=jax.devices()[:4])
    found = under_pmap(params, fixed, parts)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found, gradients)


@pytest.mark.parametrize("frozen", [pytest.param(False, marks=pytest.mark.slow), True])
def test_inside_nnx(elmo, frozen):
    """By nnx.bridge: what is frozen is no nnx.Param."""
    encoded = elmo.encode(SENTENCES)

    class NNXTagger(nnx.Module):
        def __init__(self, rngs):
            embedder = ElmoEmbedder.of(elmo, frozen=frozen, dropout=0.1)
            self.embedder = nnx.bridge.ToNNX(embedder, rngs=rngs).lazy_init(encoded, deterministic=True)
            self.head = nnx.Linear(elmo.dim, 5, rngs=rngs)

        def __call__(self, encoded, deterministic):
            (vectors,), mask = self.embedder(encoded, deterministic=deterministic)
            return self.head(vectors), mask

    tagger = NNXTagger(nnx.Rngs(0))
    optimiser = nnx.Optimizer(tagger, optax.sgd(0.3), wrt=nnx.Param)

    @nnx.jit
    def step(tagger, optimiser, encoded):
        loss, gradients = nnx.value_and_grad(lambda tagger: tag_loss(*tagger(encoded, False)))(tagger)
        optimiser.update(tagger, gradients)
        return loss

    losses = [float(step(tagger, optimiser, encoded)) for _ in range(8)]
    assert losses[-1] < losses[0]
    names = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(tagger, nnx.Param))}
    assert any("bilm" in name for name in names) != frozen
    params = nnx.to_pure_dict(nnx.state(tagger.embedder, nnx.Param))
    learned = ElmoEmbedder.of(elmo, frozen=frozen).to_elmo(params)
    changed = np.abs(learned.embed(SENTENCES[:1])[0] - elmo.embed(SENTENCES[:1])[0]).max()
    assert (changed > 1e-4) != frozen


def test_epochs_compile_few_programs(elmo, compilations):
    """Three epochs in batches of 32 over sentences as long as those of a newspaper."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.rint(generator.gamma(4.5, 5.3, 480)), 1, 78).astype(int)
    words = [f"{'w' * min(number % 19, 9)}{number}" for number in range(4000)]
    draw = lambda length: [words[min(rank, 4000) - 1] for rank in generator.zipf(1.3, length)]
    text = [draw(length) for length in lengths]
    tagger, params, fixed = tagger_of(elmo)
    step = step_of(tagger)
    with compilations() as names:
        for _ in range(3):
            order = generator.permutation(len(text))
            for first in range(0, len(text), 32):
                batch = [text[number] for number in order[first : first + 32]]
                step(params, fixed, elmo.encode(batch, rows=32), KEY)
    assert 1 <= len(names) <= 4


def test_bad_input(elmo):
    for options, message in (
        ({"num_output_representations": 0}, "num_output_representations is 0"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be a number from 0 to below 1"),
        ({"projection_dim": 0}, "projection_dim is 0"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"state": "carry"}, "state is 'carry'; it must be 'warm' or 'zero'"),
    ):
        with pytest.raises(InputError, match=message):
            ElmoEmbedder.of(elmo, **options)
    with pytest.raises(InputError, match=r"it takes what elmo_jax\.load gives"):
        ElmoEmbedder.of("runs/demo")
    for rates in (0.1, {"words": "0.1"}, {"words": -1}):
        with pytest.raises(InputError, match="they must be a dict of groups and numbers from 0 up"):
            layer_rates(rates)
    with pytest.raises(InputError, match=r"it must be a ModelConfig; for a loaded model, ElmoEmbedder\.of"):
        ElmoEmbedder(elmo)
    embedder = ElmoEmbedder.of(elmo)
    with pytest.raises(InputError, match=r"it takes what elmo\.encode makes"):
        embedder.init(KEY, SENTENCES, deterministic=True)
    with pytest.raises(InputError, match="not scalar_mix_0; give this module's part"):
        embedder.to_elmo({"embedder": {}})
    with pytest.raises(InputError, match=r"not made by ElmoEmbedder\.of"):
        ElmoEmbedder(SMALL).to_elmo({})
    own = elmo.parameters
    own["forward_7"] = {"bias": own["forward_1"].pop("bias")}
    with pytest.raises(InputError, match=r"missing: forward_1/bias .*; not known: forward_7/bias"):
        elmo.with_parameters(own)
    with pytest.raises(InputError, match="words is no group of parameters"):
        elmo.with_parameters(elmo.parameters | {"words": 3})


def test_a_run_is_not_overwritten(elmo, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="is the folder of a training run; give another"):
        elmo.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_module_may_be_made_within_jit(elmo, frozen):
    encoded = elmo.encode(SENTENCES)
    inside = jax.jit(lambda key: ElmoEmbedder.of(elmo, frozen=frozen).init(key, encoded, deterministic=True))(KEY)
    outside = ElmoEmbedder.of(elmo, frozen=frozen).init(KEY, encoded, deterministic=True)
    jax.tree.map(np.testing.assert_array_equal, inside, outside)


def test_a_module_without_a_loaded_model():
    """Random weights, as bilm-tf draws them, of a shape."""
    encoded = Encoded(
        np.full((64, SMALL.max_characters), 260, np.uint16),
        np.int32(2),
        np.zeros((2, 16), np.int32),
        np.ones((2, 16), bool),
        np.ones(2, bool),
    )
    embedder = ElmoEmbedder(SMALL, frozen=False)
    params = embedder.init(KEY, encoded, deterministic=True)["params"]
    assert jax.tree.map(np.shape, params["bilm"]) == parameter_shapes(SMALL)
    assert np.asarray(params["bilm"]["forward_1"]["kernel"]).std() > 0
