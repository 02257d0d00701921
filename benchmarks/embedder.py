"""What a step of a tagger costs with ELMo inside: frozen or fine-tuned, beside embedding and the head apart.

python -m benchmarks.embedder --text TEXT
"""

import functools
import sys
import tempfile
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

import elmo_jax
from benchmarks import tables
from benchmarks.embedding import write_random_model
from benchmarks.systems import ROOT, command, machine, result_path, save, spread
from elmo_jax import ElmoEmbedder, ScalarMix
from elmo_jax.batches import read_sentences, with_boundaries
from elmo_jax.config import Precision, load_config
from elmo_jax.errors import exit_on_bad_input
from elmo_jax.model import word_vectors
from elmo_jax.sources import read_input

# Kinds of chunks in CoNLL-2000, inside and beginning.
TAGS = 23


class Head(nn.Module):
    """A mix of activations [L + 1, B, T, 2P] and a layer of scores, as the tagger has them."""

    @nn.compact
    def __call__(self, activations: jax.Array, mask: jax.Array) -> jax.Array:
        return nn.Dense(TAGS)(nn.Dropout(0.5)(ScalarMix()(activations, mask), deterministic=False))


class Tagger(nn.Module):
    """ELMo and a layer of scores."""

    elmo: ElmoEmbedder

    @nn.compact
    def __call__(self, encoded: elmo_jax.Encoded) -> jax.Array:
        (vectors,), _ = self.elmo(encoded, deterministic=False)
        return nn.Dense(TAGS)(vectors)


def loss(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Of tags that are the positions: what they are costs nothing."""
    tags = jnp.broadcast_to(jnp.arange(mask.shape[1])[None] % TAGS, mask.shape)
    return optax.softmax_cross_entropy_with_integer_labels(scores, tags).mean(where=mask)


def embed(model, precision, held, encoded):
    """The activations that a frozen module has, as a program of their own."""
    bilm, ends = held["bilm"], jnp.arange(2, dtype=jnp.int32)
    positions, mask = with_boundaries(encoded.positions, encoded.mask, encoded.sentences, ends)
    vectors = word_vectors(model, bilm["words"], encoded.words, encoded.count, "float32")
    read = functools.partial(read_sentences, model, bilm, vectors, positions, mask, held["start_state"])
    return read(precision, mask.any(0)), mask


def programs(elmo: elmo_jax.Elmo, precision: Precision, encoded: elmo_jax.Encoded) -> dict[str, list]:
    """By name: programs, compiled, each with what makes its arguments from the results of the one before."""
    key = jax.random.key(0)
    dropout = {"dropout": key}
    tagger = lambda frozen: Tagger(ElmoEmbedder.of(elmo, frozen=frozen, precision=precision))

    def step(module, params, fixed, encoded):
        score = lambda params: module.apply({"params": params, **fixed}, encoded, rngs=dropout)
        return jax.value_and_grad(lambda params: loss(score(params), encoded.mask))(params)

    def head_step(params, activations, mask):
        score = lambda params: Head().apply({"params": params}, activations, mask, rngs=dropout)
        return jax.value_and_grad(lambda params: loss(score(params), mask))(params)

    compiled = {}
    for name, frozen in (("frozen", True), ("fine-tuned", False)):
        variables = tagger(frozen).init({"params": key, **dropout}, encoded)
        params = variables.pop("params")
        arguments = params, variables, encoded
        program = jax.jit(functools.partial(step, tagger(frozen))).lower(*arguments).compile()
        compiled[name] = [(program, lambda _, arguments=arguments: arguments)]
        if frozen:
            apart = variables["elmo"]["elmo"], encoded
            embedding = jax.jit(functools.partial(embed, elmo.model, precision)).lower(*apart).compile()
            activations = embedding(*apart)
            params = Head().init({"params": key, **dropout}, *activations)["params"]
            head = jax.jit(head_step).lower(params, *activations).compile()
            compiled["embedding, then the head"] = [
                (embedding, lambda _, apart=apart: apart),
                (head, lambda found, params=params: (params, *found)),
            ]
    return compiled


def run(chain: list) -> float:
    """Seconds that programs take one after the other."""
    begun, found = time.perf_counter(), None
    for program, arguments in chain:
        found = program(*arguments(found))
    jax.block_until_ready(found)
    return time.perf_counter() - begun


def benchmark(
    text: str,
    config: str = "small",
    precision: Precision = "float32",
    rows: int = 32,
    repeats: int = 10,
    output: Path | None = None,
) -> None:
    """Times steps on one batch of a text, the ways in turn.

    Args:
        text: Text file, a sentence a line.
        config: Size of the model, a file in configs/ or a path.
        precision: Inputs of the LSTMs' products.
        rows: Sentences of the batch, the first of the text.
        repeats: Rounds.
        output: JSON file to write.
    """
    model = load_config(config, ROOT / "configs").model
    sentences = [tokens for tokens in read_input([text]) if tokens][:rows]
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder) / "model", model)
        elmo = elmo_jax.load(Path(folder) / "model", devices=1)
    encoded = jax.device_put(elmo.encode(sentences, rows=rows))
    chains = programs(elmo, precision, encoded)
    seconds: dict[str, list[float]] = {name: [] for name in chains}
    for _ in tqdm(range(repeats), "rounds"):
        for name, chain in chains.items():
            run(chain)  # not timed: the first run after another way's finds memory that is not its own
            seconds[name].append(run(chain))
    apart = seconds["embedding, then the head"]
    ways = []
    for name, chain in chains.items():
        memory = [program.memory_analysis().temp_size_in_bytes for program, _ in chain]
        ratios = [one / other for one, other in zip(seconds[name], apart, strict=True)]
        ways.append({"way": name, "seconds": spread(seconds[name]), "ratio": spread(ratios)})
        ways[-1]["temporary_bytes"] = max(memory)
    result = {
        "benchmark": "embedder",
        "command": command("embedder"),
        "machine": machine(),
        "config": config,
        "precision": precision,
        "rows": rows,
        "positions": int(encoded.positions.shape[1]),
        "tokens": int(np.sum(encoded.mask)),
        "distinct_words": int(encoded.count),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(elmo.parameters)),
        "repeats": repeats,
        "ways": ways,
    }
    save(output or result_path("embedder", config), result)
    print(tables.embedder(result))


@exit_on_bad_input
def main(argv: list[str]) -> None:
    tyro.cli(benchmark, args=argv, use_underscores=True)


if __name__ == "__main__":
    main(sys.argv[1:])
