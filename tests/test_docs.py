"""The documentation names everything that is public, and its examples run."""

import doctest
import importlib
import io
import pkgutil
import re
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import kltarget as kt
from kltarget.cli import main

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINES = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def public_modules():
    """All modules without an underscore in their path, and the package itself."""
    found = pkgutil.walk_packages(kt.__path__, "kltarget.")
    return ["kltarget", *(module.name for module in found if "._" not in module.name)]


def resolve(name):
    """The object that a dotted name of the reference stands for."""
    module, attribute = name, None
    while True:
        try:
            found = importlib.import_module(module)
            return found if attribute is None else getattr(found, attribute)
        except ModuleNotFoundError:
            module, attribute = module.rsplit(".", 1)


def documented():
    """Names that the pages of the reference show, by their directives."""
    names = set()
    for page in (ROOT / "docs" / "api").glob("*.rst"):
        current = ""
        for block in re.split(r"\n(?=\S)", page.read_text()):
            directive = re.match(r"\.\. ([\w:]+):: *(\S+)", block)
            if directive is None:
                continue
            kind, name = directive.groups()
            if kind in ("automodule", "currentmodule"):
                current = name
            if kind == "automodule":
                names.add(name)
                if ":members:" in block.split():
                    shown = {f"{name}.{each}" for each in resolve(name).__all__}
                    left_out = "".join(re.findall(r":exclude-members:(.*)", block))
                    shown -= {f"{name}.{each}" for each in re.findall(r"\w+", left_out)}
                    # Constants have no docstring, and Sphinx leaves them out too.
                    names |= {each for each in shown if callable(resolve(each))}
            elif kind == "py:data":
                names |= {f"{current}.{each}" for each in block.split("\n\n")[0].split()[2:]}
            elif kind.startswith("auto"):
                names.add(name if name.startswith("kltarget.") else f"{current}.{name}")
    return names


def test_every_public_name_is_in_the_reference():
    shown = documented()
    objects = {(name.rsplit(".", 1)[-1], id(resolve(name))) for name in shown}
    missing = [
        f"{module}.{name}"
        for module in public_modules()
        for name in getattr(importlib.import_module(module), "__all__", ())
        if (name, id(resolve(f"{module}.{name}"))) not in objects
    ]
    assert not missing, "add these to a page of docs/api"


def test_papers_are_those_of_the_docstrings():
    number = re.compile(r"arXiv\s+(\d{4}\.\d{4,5})")
    sources = [path.read_text() for path in (ROOT / "kltarget").rglob("*.py")]
    cited = set(number.findall("\n".join(sources)))
    listed = (ROOT / "docs" / "bibliography.md").read_text()
    assert set(number.findall(listed)) == cited
    assert all(f"[arXiv {n}](https://arxiv.org/abs/{n})" in listed for n in cited)


def test_links_are_well_formed():
    for page in (*PAGES, ROOT / "README.md"):
        for url in re.findall(r"\w+://[^\s)>\"`]+", page.read_text()):
            parts = urlsplit(url)
            assert parts.scheme == "https", url
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), url


@pytest.mark.parametrize("page", [p for p in PAGES if ">>>" in p.read_text()], ids=lambda p: p.stem)
def test_python_examples_run(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = re.sub(r"^```.*", "", page.read_text(), flags=re.MULTILINE)  # ends what is expected
    example = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    report = io.StringIO()
    doctest.DocTestRunner(optionflags=LINES).run(example, out=report.write)
    assert not report.getvalue(), report.getvalue()


COMMANDS = [
    (command, output)
    for page in PAGES
    for command, output in re.findall(
        r"```console\n\$ kltarget (.+)\n((?s:.*?))```", page.read_text()
    )
]


@pytest.mark.parametrize(
    ("command", "output"), COMMANDS, ids=[command.split()[0] for command, _ in COMMANDS]
)
def test_commands_say_what_the_pages_show(command, output, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    assert doctest.OutputChecker().check_output(output, said, LINES), said


def test_the_readme_prints_what_it_shows():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n((?s:.*?))```\n\n```text\n((?s:.*?))```", readme)
    assert blocks
    for code, shown in blocks:
        with redirect_stdout(io.StringIO()) as said:
            exec(code, {})
        here, there = (
            [float(x) for x in re.findall(r"[-+.\de]+", text)] for text in (said.getvalue(), shown)
        )
        # Printed with the digits of float32.
        np.testing.assert_allclose(here, there, rtol=2e-6)
