"""Configuration shared by the tests, the doctests and the benchmarks."""

import os

import jax
import pytest

os.environ.setdefault("MPLBACKEND", "agg")

# Implicit promotion is how a float32 input silently becomes a float64 result, and implicit
# broadcasting of ranks is how a batch axis is silently mistaken for the outcomes.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_report_header(config: pytest.Config) -> str:
    """Says which of the two float modes this session tests."""
    mode = "on" if jax.config.jax_enable_x64 else "off"
    return f"jax: {jax.__version__}, x64 {mode} (JAX_ENABLE_X64)"
