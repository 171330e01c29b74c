"""Configuration shared by the tests, the doctests and the benchmarks."""

import gc
import importlib.util
import inspect
import os
import pkgutil
from pathlib import Path

import jax
import jaxlib
import pytest

os.environ.setdefault("MPLBACKEND", "agg")
# Pages are as wide as this says, and what is printed here must be the same everywhere.
os.environ.pop("COLUMNS", None)

# Tracing makes and drops objects by the million, few of them in cycles.
gc.set_threshold(50_000, 50, 50)

# Implicit promotion is how a float32 input silently becomes a float64 result, and implicit
# broadcasting of ranks is how a batch axis is silently mistaken for the outcomes.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


SLOW_EXAMPLES = (
    "kltarget.plot.distances",
    "kltarget.plot.forgetting",
    "kltarget.plot.predicted_vs_reached",
    "kltarget.mixtures.basins",
    "kltarget.mixtures.find_modes",
    "kltarget.mixtures.fit_mixture",
    "kltarget.mixtures.project",
    "kltarget.policies.GaussianMixturePolicy",
    "kltarget.training.dpo",
    "kltarget.verification.Report",
    "kltarget.verification.verify",
    "kltarget.verification.verify_chain",
    "kltarget.verification.verify_game",
    "kltarget.verification.verify_mdp",
    "kltarget.verification.verify_texts",
)
"""Public names whose docstrings take several seconds: an example cannot carry a mark."""

BROAD_EXAMPLES = (
    "kltarget.comparisons.compare",
    "kltarget.divergences.TermDivergence",
    "kltarget.frontier.beta_for",
    "kltarget.mixtures.existence_beta",
    "kltarget.mixtures.mode_flip_beta",
    "kltarget.mixtures.solve_on_samples",
    "kltarget.plot.chain_ends",
    "kltarget.plot.comparison",
    "kltarget.plot.ratio",
    "kltarget.plot.training",
    "kltarget.recipes.divergence_of_loss",
    "kltarget.studies.forgetting_path",
    "kltarget.training.estimators.surrogate",
    "kltarget.training.f_dpg",
    "kltarget.training.f_dpg_on_texts",
    "kltarget.training.fine_tune_mdp",
    "kltarget.training.fit",
)
"""Those whose docstrings take more than a second, and which quick tests call anyway."""


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the examples of the library's docstrings that take longer; each of them must exist."""
    examples = {x.name: x for x in items if isinstance(x, pytest.DoctestItem)}
    files = {x.path for x in examples.values()}
    marked = [(x, "slow") for x in SLOW_EXAMPLES] + [(x, "broad") for x in BROAD_EXAMPLES]
    for public, mark in marked if examples else ():
        shown = pkgutil.resolve_name(public)
        name = f"{shown.__module__}.{shown.__qualname__}"
        if name in examples:
            examples[name].add_marker(mark)
        elif Path(inspect.getfile(shown)) in files and not any("::" in x for x in config.args):
            raise pytest.UsageError(f"conftest.py: the docstring of {public} has no example")


NEEDED_BY: dict[str, tuple[str, ...]] = {
    "trl": (
        "kltarget/adapters/trl/_log_prob_trainers.py",
        "kltarget/adapters/trl/_log_probs_of_batches.py",
        "kltarget/adapters/trl/_mara_trainers.py",
        "tests/tiny_trl.py",
    ),
}
"""Files that cannot be imported without a package of an extra, by that package."""

collect_ignore = [
    str(Path(__file__).parent / file)
    for package, files in NEEDED_BY.items()
    if importlib.util.find_spec(package) is None
    for file in files
]
