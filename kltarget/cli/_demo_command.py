"""The sub-command ``kltarget demo``: what the other commands say, on data that is shipped."""

from __future__ import annotations

import argparse
import importlib.resources
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from kltarget._core.page import Bullets, Heading, Item, Lines, Page, Paragraph, Table
from kltarget._core.words import number
from kltarget.cli._output import InputError, say

_NO_KL = "digits-no-kl.csv"


class Demo(NamedTuple):
    """A demonstration.

    Attributes:
        about: what it shows, a line.
        commands: what is run, each as its arguments; ``{data}`` stands for the shipped files.
        look: what to look at on the page, and what it means.
        own: commands that do the same on files of one's own.
        page: what is shown besides, if no command shows it.
    """

    about: str
    commands: tuple[str, ...]
    look: str
    own: tuple[str, str]
    page: Callable[[], Page] | None = None


def _forgotten() -> Page:
    from kltarget.studies import forgetting, forgetting_path

    task, rows = forgetting(), [("trained by", "steps", "learned", "forgotten")]
    for name, method, rate in (
        ("maximum likelihood: forward KL to the data", "sft", 0.15),
        ("policy gradient: reverse KL", "rl", 0.01),
    ):
        path = forgetting_path(task, method, learning_rate=rate)
        forgotten = number(100 * float(path.loss_at(0.9)), 3)
        rows.append((name, f"{int(path.steps_to(0.9))}", "90 %", f"{forgotten} %"))
    told = (
        "A policy of two modes learns a new one from samples of the new one alone. How much of the "
        "old mode is gone when 90 % of the new one is covered:"
    )
    return Page([Paragraph(told)], [Table(rows, "lrrr")])


DEMOS = {
    "collapse": Demo(
        "two answers are equally right, and training keeps one",
        ("solve one-two --beta 0.02:1:4",),
        "Both answers earn 1, yet no β lets the second have more than a fifteenth of the first: "
        "equal rewards keep the reference's ratio, and a small β removes what else there was. The "
        "objective asks for that, and no optimiser changes it. Mode-anchored rewards do "
        "(kltarget.mara).",
        ("kltarget solve TABLE.csv --beta 0.02:1:4", "kltarget diagnose LOG --trainer trl-grpo"),
    ),
    "silent-upgrade": Demo(
        "the same YAML under two versions of a trainer",
        ("recipe trl-grpo==1.9.2 --compare trl-grpo==1.10 --beta 0.04",),
        "One setting changed its default: k3 in the loss is now weighted by the policy's ratio. "
        "The forward KL became the reverse one, which has a critical β and other targets.",
        ("kltarget recipe --config run.yaml", "kltarget recipe trl-grpo --installed"),
    ),
    "chi2": Demo(
        "a KL penalty with its arguments exchanged is a χ² penalty",
        ("recipe --loss kltarget.studies:exchanged_k3",),
        "The loss is called, its gradients are read, and what they follow is named: not a KL, but "
        "half a χ², whose target is linear in the reward and gives answers up altogether.",
        ("kltarget recipe --loss my_trainer.py:my_loss", "kltarget recipe --config run.yaml"),
    ),
    "no-kl": Demo(
        "the log of a run without a KL term, whose answers went",
        (f"diagnose {{data}}/{_NO_KL} --trainer trl-grpo --beta 0",),
        "“1” and “2” were both right. Rewards rose to 1, and one of the two right answers of each "
        "prompt all but went: with β = 0 nothing asks for it.",
        (
            "kltarget diagnose LOG --trainer trl-grpo --beta 0.04",
            "kltarget diagnose LOG --trainer trl-grpo --beta 0.04 --html page.html",
        ),
    ),
    "forecast": Demo(
        "which β before training, from how often a model solves 1,060 problems",
        ("forecast deepscaler --trainer verl-kl-in-reward --beta 0.03:3:6 --kl-budget 0.5",),
        "Each row is where a run with this β would end: reward, pass@k, and the KL that it costs, "
        "with what 128 samples a problem leave open.",
        (
            "kltarget forecast SAMPLES --trainer trl-grpo --kl-budget 0.5",
            "kltarget compare BEFORE AFTER",
        ),
    ),
    "forgetting": Demo(
        "what is forgotten while a new mode is learned, by either KL",
        (),
        "At equal gain the policy that follows the reverse KL has kept more of what it knew. "
        "kltarget.studies.forgetting_path has the whole path.",
        ("kltarget compare BEFORE AFTER", "kltarget compare BEFORE AFTER --html page.html"),
        _forgotten,
    ),
}


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser of the command."""
    command = commands.add_parser(
        "demo",
        help="see what this is for, in ten seconds each",
        description="Show what the other commands say, on data that is shipped, and which commands "
        "do the same on your own files. Without a name: the list.",
    )
    command.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(DEMOS)}")
    command.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    if arguments.name is None:
        rows = [("demo", "shows"), *((name, demo.about) for name, demo in DEMOS.items())]
        say(Page([Table(rows, "ll")], [Lines(["kltarget demo collapse"])]))
        return 0
    if arguments.name not in DEMOS:
        raise InputError(f"there is no demo {arguments.name!r}: there are {', '.join(DEMOS)}")
    demo = DEMOS[arguments.name]
    say(Page([Heading(f"{arguments.name}: {demo.about}", 1)]))
    data = importlib.resources.files("kltarget") / "data"
    with importlib.resources.as_file(data) as folder:
        for command in demo.commands:
            words = [x.replace("{data}", str(folder)) for x in command.split()]
            say(["", f"$ kltarget {shlex.join(words)}", ""])
            code = arguments.main(words)
            if code:
                return code
    if demo.page is not None:
        say([""])
        say(demo.page())
    own = Bullets([Item("  $ ", text) for text in demo.own])
    say([""])
    say(Page([Heading("What to look at"), Paragraph(demo.look)], [Heading("Your own files"), own]))
    return 0
