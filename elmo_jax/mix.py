"""Scalar mixes of a model's layers, and the files that hold learned ones."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from elmo_jax.errors import InputError, brief
from elmo_jax.files import read_json, writing

LARGEST = float(np.finfo(np.float32).max)


class Mix(NamedTuple):
    """A scalar mix, γ · Σ softmax(weights)_l · h_l.

    With `layer_norm`, each layer is first normalised by one mean and variance over all values of the sentence that
    are returned: what bilm-tf computes for a batch of that one sentence, or AllenNLP if boundaries are kept.
    """

    weights: Sequence[float] | npt.NDArray[np.floating[Any]]
    gamma: float = 1.0
    layer_norm: bool = False

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Mix":
        """Reads a JSON file, {"weights": [0.1, 0.2, 0.7], "gamma": 1.0, "layer_norm": false}; the last two may lack."""
        values = read_json(path)
        accepted = 'a mix is {"weights": [a number for each layer], "gamma": a number, "layer_norm": true or false}'
        weights, gamma, layer_norm = values.get("weights"), values.get("gamma", 1.0), values.get("layer_norm", False)
        if unknown := values.keys() - set(cls._fields):
            raise InputError(f"{os.fspath(path)} has {brief(repr(min(unknown)), 80)}; {accepted}")
        right = isinstance(weights, list) and weights and all(map(_is_number, (*weights, gamma)))
        if not right or not isinstance(layer_norm, bool):
            raise InputError(f"{os.fspath(path)} is {brief(values)}; {accepted}, all finite")
        return cls([float(weight) for weight in weights], float(gamma), layer_norm)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes such a file."""
        with writing(path) as partial:
            partial.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of such a file."""
        values = {"weights": [float(weight) for weight in self.weights], "gamma": float(self.gamma)}
        return f"{json.dumps(values | {'layer_norm': bool(self.layer_norm)})}\n".encode()


def _is_number(value: Any) -> bool:
    """Whether a value out of JSON is a number that is finite in float32."""
    try:
        return type(value) in (int, float) and bool(math.isfinite(value)) and abs(value) <= LARGEST
    except OverflowError:
        return False
