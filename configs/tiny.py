"""A model that learns the built-in text in a minute or two on two CPU cores: for `make demo` and for trying things out.

Figures are our own choice: the shape of "small" (one highway layer, cell = 8 · projection there, 4 · here) at about a
hundredth of its size; rows and steps such that the text is read about ten times.
"""

from elmo_jax import Config, DataConfig, ModelConfig, TrainConfig

config = Config(
    model=ModelConfig(
        filters=((1, 16), (2, 32), (3, 64), (4, 64), (5, 80)), highway_layers=1, cell_dim=256, projection_dim=64
    ),
    data=DataConfig(train=("builtin",)),
    train=TrainConfig(
        steps=1000, batch_size=32, window=20, negatives=512, checkpoint_every=500, eval_every=250, log_every=10
    ),
)
