"""The published "small" model: 13.6 million parameters without the softmax (allennlp.org/elmo, options.json)."""

from elmo_jax import Config, ModelConfig

config = Config(model=ModelConfig(cell_dim=1024, projection_dim=128, highway_layers=1))
