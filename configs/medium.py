"""The published "medium" model: 28.0 million parameters without the softmax (allennlp.org/elmo)."""

from elmo_jax import Config, ModelConfig

config = Config(model=ModelConfig(cell_dim=2048, projection_dim=256, highway_layers=1))
