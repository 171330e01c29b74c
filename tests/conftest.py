"""Eight simulated CPU devices for the sharding tests.

Here and not at the root: the benchmarks must time the machine as it is.
"""

import os

# XLA reads this when the first array is made, which no conftest does.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)
