"""ELMo (Peters et al. 2018) in JAX: pretraining, and embeddings from any published or self-trained weights."""

from elmo_jax.config import Config, DataConfig, ModelConfig, TrainConfig
from elmo_jax.embedding import Elmo, Mix, load
from elmo_jax.errors import InputError
from elmo_jax.model import BiLM, ScalarMix

__all__ = [
    "BiLM",
    "Config",
    "DataConfig",
    "Elmo",
    "InputError",
    "Mix",
    "ModelConfig",
    "ScalarMix",
    "TrainConfig",
    "load",
]
__version__ = "0.2.0"
