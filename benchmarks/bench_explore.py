"""``explore``: from the move of a slider to the new picture, in milliseconds.

What is timed is all that the browser does before it paints: solving, measuring, the path over β
with its flips where more than β has moved, the SVG and its layout. The bar is a median of 50 ms.
Beside it stands the same problem solved in Python, which is what ``Explorer.scene`` does.
"""

from __future__ import annotations

import html
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import time

import jax.numpy as jnp
import numpy as np
import pytest

import kltarget as kt
from kltarget import pages

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--dump-dom",
]
OWN = kt.FDivergence(lambda u: u * jnp.log(u) + (u - 1) ** 2 - u + 1, name="own")
AT_ONCE = "<script>requestAnimationFrame = (call) => { call(); return 0; };</script></head>"
MOVES = """<script>
  const taken = Object.fromEntries(["beta", "reward_scale"].map((name) => {
    const slider = document.getElementById("explorer").shadowRoot.getElementById(name);
    return [name, Array.from({ length: 21 }, (_, k) => {
      const start = performance.now();
      slider.value = -100 + 7 * k;
      slider.dispatchEvent(new Event("input", { bubbles: true }));
      return performance.now() - start;
    })];
  }));
  document.body.dataset.taken = JSON.stringify(taken);
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("name", ["one-two", "bimodal", "words"])
@pytest.mark.parametrize("divergence", ["reverse-kl", "forward-kl", OWN], ids=str)
def test_redraw(benchmark, divergence, name: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "page.html"
    page = pages.page(name, divergences=(divergence,), beta=0.1)
    page = page.replace("</head>", AT_ONCE).replace("</body>", MOVES)
    file.write_text(page, encoding="utf-8")
    command = [BROWSER, *QUIET, f"--user-data-dir={tmp_path}/user", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    found = re.search(r'data-taken="([^"]*)"', dom)
    assert found, "the script in the page failed"
    taken = json.loads(html.unescape(found[1]))

    explorer = kt.explore(name, divergences=(divergence,), beta=0.1)
    start = time.perf_counter()
    explorer.move(beta=0.2)
    first = time.perf_counter() - start
    benchmark.pedantic(lambda: explorer.move(beta=0.1), rounds=5)
    medians = {key: statistics.median(values) for key, values in taken.items()}
    benchmark.extra_info.update(
        task=name,
        divergence=explorer.divergence,
        beta_ms=medians["beta"],
        reward_scale_ms=medians["reward_scale"],
        median_ms=float(np.mean(list(medians.values()))),
        first_scene_seconds=first,
    )
