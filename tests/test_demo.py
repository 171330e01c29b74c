"""``kltarget demo`` and ``kltarget doctor``: what a newcomer types first."""

from __future__ import annotations

import importlib.metadata
import re
import shlex

import pytest

import kltarget as kt
from kltarget import targets
from kltarget.cli import main

DEMOS = ("collapse", "silent-upgrade", "chi2", "no-kl", "forecast", "forgetting")
SAYS = {
    "collapse": "keep the reference's ratio (15 : 1) at every β",
    "silent-upgrade": "forward KL → reverse KL",
    "chi2": "0.5 × χ²",
    "no-kl": "Collapsed, and nothing in the recipe held it. 1. Set beta: ",
    "forecast": "has a mean KL of 0.5 nats a prompt",
    "forgetting": "reverse KL",
}


def printed(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_the_list_names_every_demo(capsys):
    listed = printed(capsys, "demo")
    assert [line.split()[0] for line in listed.splitlines()[1:7]] == list(DEMOS)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.broad) if x == "forecast" else x for x in DEMOS]
)
def test_a_demo_shows_its_page_and_two_commands(capsys, name):
    page = printed(capsys, "demo", name)
    assert SAYS[name] in " ".join(page.split())
    assert "What to look at" in page
    commands = re.findall(r"^  \$ kltarget (.*)$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        # The shipped data or no files at all: what is wrong must be the file, not the command.
        code = main(shlex.split(command))
        error = capsys.readouterr().err
        assert code == 0 or re.search(
            r"no such file|cannot be read|there is no file|cannot be imported|not installed", error
        ), error


def test_an_unknown_demo_is_named(capsys):
    assert main(["demo", "nothing"]) == 2
    assert "there is no demo 'nothing': there are collapse, " in capsys.readouterr().err


def test_the_doctor_finds_all_well(capsys):
    page = printed(capsys, "doctor")
    assert "All is well." in page
    assert re.search(rf"^jax +{re.escape(importlib.metadata.version('jax'))}$", page, re.MULTILINE)
    assert page.count(" ok") == 8
    assert "float64" in page


def test_the_doctor_says_how_to_get_what_is_missing(capsys, monkeypatch):
    version = importlib.metadata.version

    def without(package):
        if package == "zarr":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without)
    page = printed(capsys, "doctor")
    assert re.search(r'zarr +missing +zarr: pip install "kltarget\[zarr\]"', page)


def test_the_doctor_fails_where_solve_is_wrong(capsys, monkeypatch):
    solve = targets.solve

    def wrong(objective):
        return solve(kt.Objective(objective.reward, objective.log_ref, objective.beta * 1.001))

    monkeypatch.setattr(targets, "solve", wrong)
    assert main(["doctor"]) == 1
    assert "WRONG" in capsys.readouterr().out
