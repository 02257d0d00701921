import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "4"

from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get("ELMO_GOLDEN", ROOT.parent / "shared/data/golden"))
# Largest absolute difference, relative to the largest value.
TOLERANCE = 1e-5


def relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.fixture
def golden() -> Path:
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden outputs of the originals at {GOLDEN} (set ELMO_GOLDEN)")
    return GOLDEN


def random_tree(tree, seed: int, scale: float = 0.5):
    """Normal random values in the shapes of `tree`."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (scale * generator.normal(size=leaf.shape)).astype(np.float32), tree)
