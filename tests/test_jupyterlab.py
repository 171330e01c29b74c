"""The explorer in a real JupyterLab, with a browser that is told to reach nothing but it."""

import asyncio
import base64
import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

pytestmark = pytest.mark.slow
if importlib.util.find_spec("jupyterlab") is None:  # importing it takes seconds
    pytest.skip("jupyterlab is not installed", allow_module_level=True)
nbformat = pytest.importorskip("nbformat")
websocket = pytest.importorskip("tornado.websocket")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
OFFLINE = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1400,1700",
    "about:blank",
]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _json(url, seconds):
    """What an address answers as soon as somebody listens there."""
    for wait in itertools.repeat(0.3, int(seconds / 0.3)):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
        time.sleep(wait)
    raise TimeoutError(url)


@contextlib.contextmanager
def _running(*command, **options):
    process = subprocess.Popen(command, **options)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


class _Page:
    """A tab, by the DevTools protocol."""

    def __init__(self, socket):
        self._socket, self._ids = socket, itertools.count()

    async def __call__(self, method, **params):
        number = next(self._ids)
        await self._socket.write_message(
            json.dumps({"id": number, "method": method, "params": params})
        )
        while (answer := json.loads(await self._socket.read_message())).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def close(self):
        self._socket.close()

    async def evaluate(self, script):
        found = await self("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def wait(self, script, seconds=120):
        """The value of a script once it is neither null, false nor empty."""
        end = time.monotonic() + seconds
        while not (value := await self.evaluate(script)):
            assert time.monotonic() < end, (script, await self.evaluate("document.body.innerText"))
            await asyncio.sleep(0.3)
        return value


# The explorer draws into a shadow root of the element that its cell gives it.
HOST = "[...document.querySelectorAll('.jp-OutputArea-output *')].find((x) => x.shadowRoot)"
NUMBERS = f"{HOST}?.shadowRoot.getElementById('numbers')?.innerText.replaceAll('\\t', ' ')"
# JupyterLab's own objects, which --expose-app-in-browser gives.
NOTEBOOK = "[...(window.jupyterapp?.shell.widgets('main') ?? [])].find((x) => x.context)"
READY = f"{NOTEBOOK}?.context.sessionContext.session?.kernel?.status === 'idle'"
RUN = f"""{NOTEBOOK}.content.activeCellIndex = %d;
  window.jupyterapp.shell.activateById({NOTEBOOK}.id);
  void window.jupyterapp.commands.execute("notebook:run-cell")"""


async def _session(url, port, picture):
    tabs = _json(f"http://127.0.0.1:{port}/json/list", 60)
    address = next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"]
    page = _Page(await websocket.websocket_connect(address, max_message_size=1 << 27))
    await page("Emulation.setFocusEmulationEnabled", enabled=True)
    await page("Page.navigate", url=url)
    await page.wait(READY)
    await page.evaluate(RUN % 0)
    await page.wait(NUMBERS)
    seen = {"shown": await page.evaluate(NUMBERS)}
    drag = """((slider) => { slider.value = %d;
      slider.dispatchEvent(new Event("input", { bubbles: true })); })(%s)"""
    beta = f"{HOST}.shadowRoot.getElementById('beta')"
    await page.evaluate(drag % (-130, beta))
    await page.wait(f"{NUMBERS} !== {json.dumps(seen['shown'])}")
    seen["moved"] = await page.evaluate(NUMBERS)
    # The kernel has been told; and what it is told to set, the browser shows.
    await page.evaluate(RUN % 1)
    said = "[...document.querySelectorAll('.jp-OutputArea-output pre')].map((x) => x.innerText)"
    seen["kernel"] = await page.wait(f"{said}.find((x) => x.startsWith('beta was 0.05'))")
    await page.wait(f"{NUMBERS} !== {json.dumps(seen['moved'])}")
    seen["set"] = await page.evaluate(NUMBERS)
    if picture:
        shot = await page("Page.captureScreenshot", format="png")
        pathlib.Path(picture).write_bytes(base64.b64decode(shot["data"]))
    page.close()
    return seen


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
def test_sliders_in_jupyterlab(tmp_path):
    import kltarget as kt

    cells = [
        'import kltarget as kt\nexplorer = kt.explore("bimodal", beta=0.1)\nexplorer',
        'print("beta was", explorer.beta)\nexplorer.beta = 0.2 if explorer.beta < 0.1 else 0.1',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cells[0])])
    notebook.cells.append(nbformat.v4.new_code_cell(cells[1]))
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(notebook, folder / "explore.ipynb")
    lab, tools = _free_port(), _free_port()
    homes = {
        name: str(tmp_path / name)
        for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    server = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={lab}"),
        *("--ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"),
        *("--expose-app-in-browser", "--LabApp.check_for_updates_class="),
    ]
    server[-1] += "jupyterlab.NeverCheckForUpdate"
    browser = [
        *(BROWSER, f"--user-data-dir={tmp_path}/user", f"--remote-debugging-port={tools}"),
        *("--remote-allow-origins=*", *OFFLINE),
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        _running(*server, env=os.environ | homes, **quiet),
        _running(*browser, **quiet),
    ):
        _json(f"http://127.0.0.1:{lab}/api", 60)
        url = f"http://127.0.0.1:{lab}/lab/tree/explore.ipynb"
        seen = asyncio.run(_session(url, tools, os.environ.get("KLTARGET_PICTURE")))
    explorer = kt.explore("bimodal", beta=0.1)
    for name, beta in (("shown", 0.1), ("moved", 0.05), ("set", 0.2)):
        measures = explorer.move(beta=beta).measures
        numbers = " ".join(f"{x:.4g}" for x in measures["expected_reward"])
        assert re.search(rf"expected reward\s+{numbers}", seen[name]), (name, seen)
    assert seen["kernel"].strip() == "beta was 0.05"
