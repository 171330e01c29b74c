"""Configuration shared by the tests, the doctests and the benchmarks."""

import gc
import os

import jax
import jaxlib
import pytest

os.environ.setdefault("MPLBACKEND", "agg")

# Tracing makes and drops objects by the million, few of them in cycles.
gc.set_threshold(50_000, 50, 50)

# Implicit promotion is how a float32 input silently becomes a float64 result, and implicit
# broadcasting of ranks is how a batch axis is silently mistaken for the outcomes.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Has XLA compile quickly rather than well, unless benchmarks are timed or flags ask for it."""
    timed = any("benchmarks" in str(x) for x in config.args)
    asked = "optimization_level" in os.environ.get("XLA_FLAGS", "")
    if asked or (timed and not config.getoption("benchmark_disable", default=False)):
        return
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    # Later versions stop at flags that they do not know.
    if jaxlib.version.__version_info__ < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    # What the environment asks for holds.
    os.environ["XLA_FLAGS"] = " ".join(filter(None, (*flags, os.environ.get("XLA_FLAGS", ""))))


def pytest_report_header(config: pytest.Config) -> str:
    """Says which of the two float modes this session tests."""
    mode = "on" if jax.config.jax_enable_x64 else "off"
    return f"jax: {jax.__version__}, x64 {mode} (JAX_ENABLE_X64)"
