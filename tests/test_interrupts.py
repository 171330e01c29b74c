"""Ctrl-C in a process of the command, at awkward moments: one line and exit code 130."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from kltarget import cli

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has another Ctrl-C")

DATA = pathlib.Path(__file__).parent / "data"
LOG = DATA / "rollouts" / "trl116_grpo_digit_b004"

# Presses Ctrl-C as the process is about to import a module. Whoever runs the tests in the
# background has children ignore Ctrl-C, which the program itself respects.
PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
at, *sys.argv[1:] = sys.argv[1:]
class Presses:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
            try:
                for _ in range(1000): pass
            except KeyboardInterrupt:
                {turned}
sys.meta_path.insert(0, Presses())
sys.argv[0] = "kltarget"
from kltarget.cli import command
print("ready", flush=True)
sys.exit(command())
"""


def started(at, *arguments, turned="raise"):
    line = [sys.executable, "-c", PROGRAM.format(turned=turned), at, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, text=True, **pipes)


def ended(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out.removeprefix("ready\n"), err


SOLVE = ("solve", "one-two", "--beta", "0.1")
DIAGNOSE = ("diagnose", LOG, "--trainer", "trl-grpo==1.9.2", "--beta", "0.04")


@pytest.mark.parametrize(
    "module", ["jax", pytest.param("numpy", marks=pytest.mark.broad), "kltarget.tasks"]
)
def test_while_the_program_is_imported(module):
    code, out, err = ended(started(module, *SOLVE))
    assert (code, out, err) == (130, "", "kltarget: interrupted\n")


@pytest.mark.broad
@pytest.mark.parametrize(
    ("module", "turned"),
    [
        # Compiled modules say that an import failed, whatever stopped it.
        ("pandas", "raise ImportError('numpy._core.multiarray failed to import')"),
        ("pandas", "raise"),
        ("kltarget.diagnosis", "raise RuntimeError"),
    ],
)
def test_while_a_command_imports(module, turned):
    code, out, err = ended(started(module, *DIAGNOSE, turned=turned))
    assert (code, out, err) == (130, "", "kltarget: interrupted\n")


@pytest.mark.broad
def test_what_was_written_is_named(tmp_path):
    made, figure = tmp_path / "t.json", tmp_path / "t.png"
    options = ("--json", made, "--plot", figure)
    process = started("matplotlib.backends.backend_agg", *SOLVE, *options)
    code, _, err = ended(process)
    assert (code, err) == (130, f"kltarget: interrupted: wrote {made}\n")
    assert made.exists()
    assert os.listdir(tmp_path) == ["t.json"]


def test_who_is_told_to_ignore_it_does(monkeypatch):
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        monkeypatch.setattr(sys, "argv", ["kltarget", "tasks"])
        assert cli.command() == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
    assert sys.unraisablehook is hook


COMMANDS = {
    "solve": SOLVE,
    "sweep": ("sweep", "words-3", "--beta", "1e-3:1:200", "--out", "s.nc"),
    "verify": ("verify", "one-two", "--policies", "tabular", "--beta", "0.3", "--seeds", "1"),
    "diagnose": (*DIAGNOSE, "--html", "page.html"),
    "watch": (*DIAGNOSE, "--watch", "0.1", "--html", "page.html"),
    "loss": ("recipe", "--loss", f"{DATA / 'losses' / 'exchanged_arguments.py'}:loss"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_at_a_random_moment(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(name)
    process = started("no.such.module", *COMMANDS[name])
    process.stdout.readline()
    time.sleep(rng.uniform(0, 5 if name == "watch" else 3))
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    *_, last = err.replace("\r", "\n").splitlines() or [""]
    assert "Traceback" not in err
    # A command may have ended before.
    assert code == 130 or name != "watch"
    if code == 130:
        assert last.startswith("kltarget: interrupted")
        assert err.count("interrupted") == 1
    else:
        assert code in (0, 1), err
    assert not list(tmp_path.rglob("*.unfinished"))
