"""The shape of the published "small" model, trained in few steps: the best recipe of those in docs/training.md.

Adam in place of Adagrad, at a rate that rises for a tenth of the steps and then falls to zero with the last, and one
row in twenty that begins from zero in each step. For another number of steps give --train.steps, --train.decay_steps
(the same) and --train.warmup_steps (a tenth).
"""

from elmo_jax import Config, ModelConfig, TrainConfig

config = Config(
    model=ModelConfig(cell_dim=1024, projection_dim=128, highway_layers=1),
    train=TrainConfig(
        steps=1000,
        batch_size=32,
        optimizer="adam",
        learning_rate=0.002,
        schedule="cosine",
        warmup_steps=100,
        decay_steps=1000,
        state_reset=0.05,
        checkpoint_every=250,
        eval_every=250,
    ),
)
