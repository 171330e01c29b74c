"""A page that is written anew while a run goes on, and that its reader need not load again."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

from kltarget._core.files import open_whole
from kltarget.cli._output import is_stdout

_LEAST = 2.0
"""Seconds between two loads of the page."""

# Where it is read and what is unfolded are kept; pages of a disk may be denied a memory.
_RELOAD = """<script>
(() => {
  const here = "kltarget " + location.pathname;
  const folds = () => [...document.querySelectorAll("details")];
  addEventListener("load", () => {
    try {
      const kept = JSON.parse(sessionStorage.getItem(here) ?? "null");
      if (!kept) return;
      folds().forEach((fold, i) => { fold.open = kept.open.includes(i); });
      scrollTo(kept.x, kept.y);
    } catch {}
  });
  setTimeout(() => {
    try {
      const open = folds().flatMap((fold, i) => fold.open ? [i] : []);
      sessionStorage.setItem(here, JSON.stringify({ x: scrollX, y: scrollY, open }));
    } catch {}
    location.reload();
  }, MILLISECONDS);
})();
</script>
<noscript><meta http-equiv="refresh" content="SECONDS"></noscript>
"""


class WatchedPage:
    """What is written to the page's file while ``--watch`` goes on, and when it has ended.

    Args:
        path: the file, if a page is asked for.
        seconds: how often files are looked at.
        clock: says what time it is.
    """

    def __init__(
        self,
        path: pathlib.Path | None,
        seconds: float,
        clock: Callable[[], time.struct_time] = time.localtime,
    ) -> None:
        self.path = None if is_stdout(path) else path
        self.seconds, self.clock = seconds, clock
        self.html = self.read = self.stays = ""

    def of(self, html: str) -> str:
        """The page, which says when the files were read and loads itself again."""
        if self.path is None:
            return html
        self.html, self.read = html, time.strftime("%Y-%m-%d %H:%M:%S", self.clock())
        wait = max(self.seconds, _LEAST)
        reload = _RELOAD.replace("MILLISECONDS", f"{1000 * wait:.0f}")
        reload = reload.replace("SECONDS", f"{wait:.0f}")
        said = f"Files read at {self.read}; looked at again every {self.seconds:g} s."
        return self._with(said).replace("</head>", f"{reload}</head>", 1)

    def left(self) -> str:
        """Writes the page as it stays, once, and says so in a few words; nothing without one."""
        if self.path is None or not self.html:
            return ""
        if self.stays:
            return self.stays
        with open_whole(self.path) as file:
            file.write(self._with(f"Files read at {self.read}; no longer watched."))
        self.stays = f"{self.path} is as of {self.read}"
        return self.stays

    def _with(self, said: str) -> str:
        line = f'<p style="opacity: .75; font: .82rem system-ui, sans-serif">{said}</p>'
        return self.html.replace("<body>", f"<body>{line}", 1)
