"""ELMo (Peters et al. 2018) in JAX: pretraining, and embeddings from any published or self-trained weights."""

from typing import TYPE_CHECKING

from elmo_jax.config import Config, DataConfig, ModelConfig, TrainConfig
from elmo_jax.elmo import Elmo, Mix, load
from elmo_jax.errors import InputError

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

if TYPE_CHECKING:
    from elmo_jax.modules import BiLM, ScalarMix
else:

    def __getattr__(name: str):
        """The Flax modules, imported when they are asked for: embedding needs no Flax."""
        if name not in ("BiLM", "ScalarMix"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from elmo_jax import modules

        return getattr(modules, name)
