"""ELMo as a Flax module in a model of one's own: mixes of layers that are learned there, the biLM frozen or fine-tuned.

B rows, T positions, P projection size, L layers.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from elmo_jax.batches import Encoded, read_sentences, with_boundaries
from elmo_jax.config import ModelConfig, Precision
from elmo_jax.elmo import Elmo
from elmo_jax.errors import InputError, brief, listed
from elmo_jax.mix import Mix
from elmo_jax.model import DIRECTIONS, read_before, start_state, state_after, word_vectors, zero_state
from elmo_jax.modules import ScalarMix, init_bilm

# The collection of variables that are not trained; the name of the biLM's in it or in "params", and of an LSTM's.
COLLECTION, BILM = "elmo", "bilm"
LSTM = re.compile(f"(?:{'|'.join(DIRECTIONS)})_(\\d+)")


class Loaded:
    """What the module of a loaded model begins with: the model, and what sentences begin with."""

    def __init__(self, elmo: Elmo, state: Literal["warm", "zero"]):
        folder = elmo._folder
        read_by = folder.vocabulary, state, True, folder.alphabet
        self.elmo, self.before = elmo, read_before(folder.model, *read_by)
        with jax.ensure_compile_time_eval():  # whoever makes it within jit
            self.start_state = start_state(folder.model, folder.parameters, *read_by)

    def __repr__(self) -> str:
        return repr(self.elmo)


class ElmoEmbedder(nn.Module):
    """The biLM and mixes of its layers, γ · Σ softmax(w)_l · h_l: what AllenNLP's module `Elmo` computes.

    model                       its shape; `ElmoEmbedder.of` takes a loaded model, whose weights `init` then gives
    num_output_representations  mixes, each with weights and γ of its own
    dropout                     of the representations, where not `deterministic`; its random numbers are "dropout"
    layer_norm                  normalise each layer first, by one mean and variance over all tokens and boundaries of
                                the batch (as published, so that a sentence's vectors depend on the others')
    keep_sentence_boundaries    with <S> and </S>, two positions more
    projection_dim              project each representation to this width
    frozen                      the biLM's parameters, and the state at the beginning of a sentence, are in the
                                collection "elmo" and nothing is computed of their gradient; otherwise they are
                                "params"' "bilm" and trained with the rest
    precision                   of the LSTMs' products, as in `Elmo.embed_iter`; fine-tuned, of the char CNN's, too
    vocabulary_size             of a model that looks words up

    Fine-tuned, the state at the beginning of a sentence ("warm") is that of the parameters as they are, what `load` of
    the exported model computes, and no gradient is taken of it. On a mesh, whose axes must be of type Auto, divide rows
    and share words: Encoded(P(), P(), P("rows"), P("rows"), P("rows")).
    """

    model: ModelConfig
    num_output_representations: int = 1
    dropout: float = 0.5
    layer_norm: bool = False
    keep_sentence_boundaries: bool = False
    projection_dim: int | None = None
    frozen: bool = True
    precision: Precision = "float32"
    vocabulary_size: int = 0
    loaded: Loaded | None = None

    @classmethod
    def of(cls, elmo: Elmo, *, state: Literal["warm", "zero"] = "warm", **options: Any) -> "ElmoEmbedder":
        """The module of a loaded model: `init`, its own or that of a module that has it inside, gives the weights.

        Call `init` outside of jit, which would compile the weights into the program. `options` are the fields above.
        """
        if not isinstance(elmo, Elmo):
            raise InputError(f"ElmoEmbedder.of was given {brief(repr(elmo))}; it takes what elmo_jax.load gives")
        if state not in ("warm", "zero"):
            raise InputError(f"state is {brief(repr(state))}; it must be 'warm' or 'zero'")
        return cls(elmo.model, vocabulary_size=len(elmo.vocabulary or ()), loaded=Loaded(elmo, state), **options)

    def __post_init__(self) -> None:
        whole = lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1
        count, width = self.num_output_representations, self.projection_dim
        checks = {
            "model": (isinstance(self.model, ModelConfig), "a ModelConfig; for a loaded model, ElmoEmbedder.of(elmo)"),
            "num_output_representations": (whole(count), "a whole number from 1 up"),
            "dropout": (isinstance(self.dropout, int | float) and 0 <= self.dropout < 1, "a number from 0 to below 1"),
            "projection_dim": (width is None or whole(width), "a whole number from 1 up, or None"),
            "precision": (self.precision in get_args(Precision), f"one of {', '.join(get_args(Precision))}"),
        }
        for name, (right, accepted) in checks.items():
            if not right:
                raise InputError(f"{name} is {brief(repr(getattr(self, name)))}; it must be {accepted}")
        super().__post_init__()

    @nn.compact
    def __call__(self, encoded: Encoded, *, deterministic: bool) -> tuple[list[jax.Array], jax.Array]:
        """What `Elmo.encode` made → representations [B, T, 2P or projection_dim] and the mask [B, T].

        Zeros where the mask is false. T is two more with `keep_sentence_boundaries`.
        """
        if not isinstance(encoded, Encoded):
            raise InputError(f"the module was given {brief(repr(encoded), 60)}; it takes what elmo.encode makes")
        ends = jnp.arange(2, dtype=jnp.int32)  # places of <S> and </S> among the words
        positions, whole = with_boundaries(encoded.positions, jnp.asarray(encoded.mask), encoded.sentences, ends)
        activations = self._activations(encoded, positions, whole)
        mask = whole if self.keep_sentence_boundaries else jnp.asarray(encoded.mask)
        representations = []
        for number in range(self.num_output_representations):
            mixed = ScalarMix(self.layer_norm, name=f"scalar_mix_{number}")(activations, whole)
            if not self.keep_sentence_boundaries:
                mixed = mixed[:, 1:-1]
            mixed = nn.Dropout(self.dropout)(mixed, deterministic=deterministic)
            if self.projection_dim is not None:
                mixed = nn.Dense(self.projection_dim, name=f"projection_{number}")(mixed)
            representations.append(jnp.where(mask[:, :, None], mixed, 0.0))
        return representations, mask

    def _activations(self, encoded: Encoded, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """Of sentences with their boundaries, [L + 1, B, T + 2, 2P]; `init`, which asks for shapes, computes none."""
        key = lambda: self.make_rng("params")
        if self.frozen:
            bilm = self.variable(COLLECTION, BILM, lambda: self._initial_parameters(key())).value
            begin = self.variable(COLLECTION, "start_state", self._initial_state).value
        else:
            bilm = self.param(BILM, self._initial_parameters)
        if self.is_initializing():
            return jnp.zeros((self.model.layers + 1, *mask.shape, 2 * self.model.projection_dim))
        if self.frozen:
            bilm, begin = jax.lax.stop_gradient((bilm, begin))
            words_in, used = "float32", mask.any(0)
        else:
            begin = state_after(self.model, jax.lax.stop_gradient(bilm), self.loaded and self.loaded.before)
            words_in, used = self.precision, None
        vectors = word_vectors(self.model, bilm["words"], encoded.words, encoded.count, words_in)
        return read_sentences(self.model, bilm, vectors, positions, mask, begin, self.precision, used)

    def _initial_parameters(self, key: jax.Array) -> dict[str, Any]:
        if self.loaded is None:
            return init_bilm(key, self.model, self.vocabulary_size)
        return jax.tree.map(jnp.asarray, self.loaded.elmo.parameters)

    def _initial_state(self) -> Any:
        state = zero_state(self.model) if self.loaded is None else self.loaded.start_state
        return jax.tree.map(jnp.asarray, state)

    def to_elmo(self, params: Mapping[str, Any]) -> Elmo:
        """The loaded model with what was learned: this module's part of "params".

        Its mixes are those of the representations, and its biLM the fine-tuned one; `Elmo.save` writes a model folder.
        """
        if self.loaded is None:
            raise InputError("the module was not made by ElmoEmbedder.of(elmo), so it has no vocabulary and no files")
        names = [f"scalar_mix_{number}" for number in range(self.num_output_representations)]
        if lacking := [name for name in ([] if self.frozen else [BILM]) + names if name not in params]:
            has = listed([brief(name, 40) for name in params], ", ")
            raise InputError(
                f"params have {has}, not {', '.join(lacking)}; give this module's part: params, or params[ITS NAME] "
                "where it is inside another"
            )
        learned = fetched({name: params[name] for name in names})
        mixes = [Mix(learned[name]["weights"], float(learned[name]["gamma"]), self.layer_norm) for name in names]
        elmo = self.loaded.elmo
        return elmo.with_parameters(elmo.parameters if self.frozen else fetched(params[BILM]), mixes)


def fetched(tree: Any) -> Any:
    """Arrays → NumPy."""
    return jax.tree.map(np.asarray, tree)


def parameter_groups(params: Any) -> Any:
    """A tree like `params` whose leaves name what a parameter belongs to, for optax.multi_transform or optax.masked.

    "words" is the fine-tuned biLM's char CNN or table of words, "lstm_0", "lstm_1", .. are its layers in both
    directions; "rest" is everything else: mixes, projections, and what is not ELMo's.
    """

    def group(path: tuple[Any, ...], _: Any) -> str:
        names = [str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path]
        if BILM not in names[:-1]:
            return "rest"
        module = names[names.index(BILM) + 1]
        layer = LSTM.fullmatch(module)
        return module if module == "words" else f"lstm_{layer[1]}" if layer else "rest"

    return jax.tree_util.tree_map_with_path(group, params)


def layer_rates(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies updates by a rate for each of `parameter_groups`; last of an optax.chain.

    `optax.chain(optax.adam(1e-3), layer_rates({"words": 0.0, "lstm_0": 0.1, "lstm_1": 0.3}))`: groups that are not
    named have 1; those with 0 stay as they are.
    """
    numbers = isinstance(rates, Mapping) and all(isinstance(rate, int | float) for rate in rates.values())
    if not numbers or min(rates.values(), default=0) < 0:
        raise InputError(f"rates are {brief(repr(rates))}; they must be a dict of groups and numbers from 0 up")

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        groups = parameter_groups(updates)
        known = set(jax.tree.leaves(groups))
        if unknown := rates.keys() - known:
            raise InputError(f"the parameters have no group {listed(sorted(unknown), ', ')}, but {sorted(known)}")
        return jax.tree.map(lambda array, group: array * rates.get(group, 1.0), updates, groups), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
