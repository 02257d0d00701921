"""The published "original" model: 93.6 million parameters without the softmax (allennlp.org/elmo, options.json).

Every field is at its default: model from the published options.json, training from bilm-tf's bin/train_elmo.py
(128 rows a device, windows of 20, 8192 negatives, dropout 0.1, Adagrad 0.2, clip 10).
"""

from elmo_jax import Config

config = Config()
