"""ELMo (Peters et al. 2018) in JAX: pretraining, and embeddings from any published or self-trained weights.

How it works: three ideas carry the design. *Streams:* training and embedding feed the model rows of sentences laid end
to end, cut into windows of one shape; the LSTM state is carried from window to window and, in embedding, reset where a
sentence begins. *Word types:* the char CNN runs once per distinct word. *Explicit arrays:* the model is a function
(parameters, state, window) → (activations, state), so that state can be saved, compared and divided.

A sentence to embed goes through `elmo` (checked), `streams` (laid in a row), `word_vectors` (its words spelled by
`char_cnn`), `engine` (`model` and `lstm` over each window, vectors joined) and `outputs` (written). A batch to train
on: `corpus` (numbered), `streams` (windows), `training` (`model`, `losses`, Adagrad, on every device by `parallel`);
`pretraining` repeats that, reports and saves (`checkpoint`, `workdir`).
"""

from typing import TYPE_CHECKING

from elmo_jax.batches import Encoded
from elmo_jax.config import Config, DataConfig, ModelConfig, TrainConfig
from elmo_jax.dataset_column import EmbeddingColumn
from elmo_jax.elmo import Elmo, load
from elmo_jax.embeddings import Embeddings, read_embeddings
from elmo_jax.errors import InputError, needing
from elmo_jax.mix import Mix

__all__ = [
    "BiLM",
    "Config",
    "DataConfig",
    "Elmo",
    "ElmoEmbedder",
    "ElmoVectorizer",
    "EmbeddingColumn",
    "Embeddings",
    "Encoded",
    "InputError",
    "Mix",
    "ModelConfig",
    "ScalarMix",
    "TrainConfig",
    "layer_rates",
    "load",
    "parameter_groups",
    "read_embeddings",
]
__version__ = "0.2.0"

if TYPE_CHECKING:
    from elmo_jax.embedder import ElmoEmbedder, layer_rates, parameter_groups
    from elmo_jax.modules import BiLM, ScalarMix
    from elmo_jax.vectorizer import ElmoVectorizer
else:
    # Where each is, and the extra that brings the packages it needs.
    _FOUND_IN = dict.fromkeys(("BiLM", "ScalarMix"), ("modules", "train"))
    _FOUND_IN |= dict.fromkeys(("ElmoEmbedder", "layer_rates", "parameter_groups"), ("embedder", "train"))
    _FOUND_IN["ElmoVectorizer"] = "vectorizer", "sklearn"

    def __getattr__(name: str):
        """What needs further packages, imported when it is asked for: embedding needs neither Flax nor scikit-learn."""
        if name not in _FOUND_IN:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module, extra = _FOUND_IN[name]
        with needing(extra):
            return getattr(import_module(f"elmo_jax.{module}"), name)
