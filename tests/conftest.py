"""Eight simulated CPU devices for the sharding tests, and compiled programs that are kept.

Here and not at the root: the benchmarks must time the machine as it is.
"""

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest
from annotations import enforce

# Most of the suite's time is compilation; what one worker or an earlier session compiled is reused.
jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# The first example of every test pays for compilation, which is neither slow data nor a hang.
_COMPILES = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("default", max_examples=30, derandomize=True, **_COMPILES)
hypothesis.settings.register_profile("thorough", max_examples=500, **_COMPILES)
hypothesis.settings.load_profile("default")


enforce("kltarget")


def pytest_configure() -> None:
    """Sets XLA's flags, which it reads when the first array is made.

    And has workers, one for each core, use one thread for products of matrices: those that wait for
    others spin, which was half the time of some tests.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    devices = "--xla_force_host_platform_device_count=8"
    os.environ["XLA_FLAGS"] = " ".join(filter(None, (devices, os.environ.get("XLA_FLAGS", ""))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each process a run of neighbours, which share what they trace and compile.

    One that is done early takes over half of what another has left.
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session")
def all_devices() -> list[jax.Device]:
    """All simulated devices."""
    return jax.local_devices()


@pytest.fixture(autouse=True, scope="session")
def one_device(all_devices: list[jax.Device]) -> Iterator[None]:
    """Trains on one device by default: eight on two cores take several times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: all_devices[:1])
        yield


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(name: str) -> Any:
    """Marks as slow, or as it says, the cases that a test's mark ``quick_only`` does not name.

    Here, where a function's cases are all at hand, whichever of them the command line selects.
    """
    collected = yield
    functions = collected if isinstance(collected, list) else []
    functions = [x for x in functions if hasattr(x, "callspec")]
    mark = functions[0].get_closest_marker("quick_only") if functions else None
    if mark is None:
        return collected
    # The type of the numbers is that of the session and has no say.
    cases = {re.sub(r"-float(32|64)$", "", x.callspec.id): x for x in functions}
    if unknown := set(mark.args) - set(cases):
        raise pytest.Collector.CollectError(
            f"{name}: quick_only names {sorted(unknown)}, but the cases are {sorted(cases)}"
        )
    for case in set(cases) - set(mark.args):
        cases[case].add_marker(mark.kwargs.get("others", "slow"))
    return collected


_ROOM = pytest.StashKey[int]()


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Lets go of compiled programs before they fill the memory or have too many memory maps.

    Five gigabytes have about 10,000 of these, and the kernel's limit is 65,530. Two thirds of the
    machine's memory are shared by the workers. What is freed is used again but stays with the
    process: the next time is half a gigabyte later.
    """
    usage = Path("/proc/self/statm")
    if not usage.exists():
        return

    def resident() -> int:
        return int(usage.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if resident() > item.config.stash.get(_ROOM, min(8 << 30, memory * 2 // 3 // workers)):
        jax.clear_caches()
        gc.collect()
        item.config.stash[_ROOM] = resident() + (1 << 29)
