"""What every test runs under: a CPU, strict promotion and compiled programs that survive from one run to the next."""

import os
from pathlib import Path

import numpy as np
import pytest

# In the environment rather than in jax.config, so that the processes a test starts inherit them.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jvq" / "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402  (it reads the variables above when it is imported)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts afresh in every test."""
    return np.random.default_rng(0)
