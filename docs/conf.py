"""Sphinx configuration: `sphinx-build -W docs build/docs`."""

import contextlib
import functools
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import shutil
import sys
import tomllib
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.append(str(ROOT / "tests"))  # whose docstrings state the published claims
sys.path.append(str(HERE))
from dark import with_dark_pictures, write_dark_pictures  # noqa: E402
from page_of_notebook import explored, page_of  # noqa: E402
from pictures import Figures, Gallery, first_sentence  # noqa: E402

logger = logging.getLogger(__name__)

project = "kltarget"
author = "The kltarget authors"
copyright = author
metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
version = release = metadata["version"]
# Notebooks have a link to Colab where pyproject.toml says which repository they are in.
repository = metadata.get("urls", {}).get("Repository")
notebooks = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["**.ipynb_checkpoints"]
html_theme = "sphinx_book_theme"
html_title = "kltarget"
html_show_copyright = False
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["kltarget.css"]
html_js_files = ["explorer.js"]
html_math_renderer = "mathml"

# Notebooks are stored with their outputs, which the tests of the notebooks keep true.
nb_execution_mode = "off"
# What a cell prints line by line is one block.
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings state shapes and units themselves.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# Classes of trainers are shown without the packages that they extend.
autodoc_mock_imports = ["accelerate", "torch", "trl"]
autodoc_preserve_defaults = True
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False
nitpicky = True
add_module_names = False
toc_object_entries_show_parents = "hide"


def _mathml(self, node: nodes.math | nodes.math_block) -> None:
    """Writes a formula as MathML, which browsers draw by themselves: no script, no network."""
    try:
        block = isinstance(node, nodes.math_block)
        tree = latex2mathml.tex2mathml(node.astext(), as_block=block)
        # On a phone a wide formula moves by itself, not the page.
        tree = f'<div class="formula">{tree}</div>' if block else tree
    except MathError as error:
        logger.warning("no MathML for %s: %s", node.astext(), error, location=node)
        tree = escape(node.astext())
    self.body.append(tree)
    raise nodes.SkipNode


def _prepare(app, what, name, obj, options, lines: list[str]) -> None:
    """Makes links of arXiv numbers, and keeps napoleon from taking a clause for a type."""
    text = "\n".join(lines)
    text = re.sub(r"arXiv\s+(\d{4}\.\d{4,5})", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", text)
    # What it finds before the first colon is the type returned: nothing, then.
    text = re.sub(r"^( *Returns:\n +)(?=\S)", r"\1: ", text, flags=re.MULTILINE)
    lines[:] = text.splitlines()


def _public_name(app, env, node, contnode) -> nodes.Node | None:
    """Finds what a docstring names briefly, or by another door than the reference does."""
    if node.get("refdomain") != "py":
        return None
    entries = env.domains["py"].objects
    target = node["reftarget"].strip(".")
    for name in (f"{node.get('py:module')}.{target}", f"kltarget.{target}", target):
        owner, path = _lookup(name)
        for door in (other for other, public in _doors().items() if public is owner):
            if (documented := ".".join((door, *path))) in entries:
                page, anchor = entries[documented].docname, entries[documented].node_id
                return make_refnode(app.builder, node["refdoc"], page, anchor, contnode)
    return None


def _lookup(name: str) -> tuple[object, list[str]]:
    """The object that a module, or one room alone, has by that name; and the attribute of it."""
    module, path = name.split("."), []
    while len(module) > 1:
        with contextlib.suppress(ImportError, AttributeError):
            owner = getattr(importlib.import_module(".".join(module[:-1])), module[-1])
            functools.reduce(getattr, path, owner)
            return owner, path
        path.insert(0, module.pop())
    first, *path = name.split(".")
    owners = [public for door, public in _doors().items() if door.split(".")[-1] == first]
    if len({id(owner) for owner in owners}) == 1 and all(hasattr(owners[0], x) for x in path[:1]):
        return owners[0], path
    return None, []


@functools.cache
def _doors() -> dict[str, object]:
    """Every public object by each name under which it may be imported, the shortest first."""
    import kltarget

    rooms = [room.name for room in pkgutil.walk_packages(kltarget.__path__, "kltarget.")]
    modules = ["kltarget", *(room for room in rooms if "._" not in room)]
    return {
        f"{module}.{name}": getattr(importlib.import_module(module), name)
        for module in modules
        for name in getattr(importlib.import_module(module), "__all__", ())
    }


class NamesTable(SphinxDirective):
    """Every public name of the rooms with the first sentence of its docstring."""

    def run(self) -> list[nodes.Node]:
        """Asks the rooms themselves, so that none is forgotten."""
        doors: dict[int, list[str]] = {}
        for door, public in _doors().items():
            if not inspect.ismodule(public) and inspect.getdoc(public) != type(public).__doc__:
                doors.setdefault(id(public), []).append(door)
        rooms: dict[str, list[str]] = {}
        for shortest, *others in sorted(doors.values()):
            room = (others or [shortest])[0].rpartition(".")[0]
            rooms.setdefault(room, []).append(shortest)
        return [self._section(room, rooms[room]) for room in sorted(rooms)]

    def _section(self, room: str, doors: list[str]) -> nodes.section:
        title = room.removeprefix("kltarget.")
        body = nodes.title("", title), *self.parse_text_to_nodes(_names_of(doors))
        return nodes.section("", *body, ids=[nodes.make_id(f"names {title}")])


def _names_of(doors: list[str]) -> str:
    rows = [
        f"   * - :py:obj:`{door.removeprefix('kltarget.')} <{door}>`\n"
        f"     - {first_sentence(_doors()[door])}"
        for door in sorted(doors, key=lambda x: x.rpartition(".")[2].lower())
    ]
    return "\n".join([".. list-table::", "   :class: names", "   :widths: 35 65", "", *rows])


class CommandHelp(SphinxDirective):
    """The help of the command line, a section for each sub-command."""

    def run(self) -> list[nodes.Node]:
        """Asks the command itself which sub-commands it has."""
        commands = re.findall(r"^    ([a-z]+) ", _help(), flags=re.MULTILINE)
        return [self._section(name) for name in commands]

    def _section(self, command: str) -> nodes.section:
        title, text = f"kltarget {command}", _help(command)
        body = nodes.title("", title), nodes.literal_block(text, text, language="text")
        return nodes.section("", *body, ids=[nodes.make_id(title)])


class ClaimsTable(SphinxDirective):
    """The published claims that the tests show, a row for each."""

    def run(self) -> list[nodes.Node]:
        """Reads the tests anew, so that no page lags behind them."""
        from claims import VERDICTS, read_claims

        claims = read_claims(ROOT / "tests")
        meanings = zip(VERDICTS, ("hold", "hold with a correction", "fail"), strict=True)
        counts = [f"{sum(x.verdict == v for x in claims)} {meaning}" for v, meaning in meanings]
        rows = [
            "| statement | arXiv | verdict | shown by |",
            "|---|---|---|---|",
            *map(_row, claims),
        ]
        text = f"{len(claims)} claims: {', '.join(counts)}.\n\n" + "\n".join(rows)
        return self.parse_text_to_nodes(text)


def _row(claim) -> str:
    test = f"{claim.file.removesuffix('.py')}.{claim.test.removeprefix('test_')}".replace("_", " ")
    cells = (
        claim.statement[0].upper() + claim.statement[1:],
        f"[{claim.arxiv}](https://arxiv.org/abs/{claim.arxiv}) {claim.place}",
        f"**{claim.verdict}**" + (f": {claim.remark}" if claim.remark else ""),
        test.removeprefix("test ").replace(".", ": "),
    )
    return "| " + " | ".join(x.replace("|", r"\|") for x in cells) + " |"


def _help(*command: str) -> str:
    from kltarget.cli import main

    os.environ["COLUMNS"] = "84"
    with contextlib.redirect_stdout(io.StringIO()) as text:
        main([*command, "--help"])
    return text.getvalue()


def _explorers(app: Sphinx, exception: Exception | None) -> None:
    """Writes the explorers that a page of the documentation frames."""
    from kltarget.pages import page

    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir) / "explorers"
        folder.mkdir(exist_ok=True)
        contents = (json.loads(path.read_text(encoding="utf-8")) for path in notebooks.values())
        for task in {"one-two", "bimodal", "words"}.union(*map(explored, contents)):
            (folder / f"{task}.html").write_text(page(task))


def _dark_twins(app, pagename, templatename, context, doctree) -> None:
    """Lets a page show the dark twins of its pictures where it is dark."""
    if "body" in context:
        context["body"] = with_dark_pictures(context["body"])


def _write_dark_twins(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        write_dark_pictures(Path(app.outdir) / "_images")


def setup(app: Sphinx) -> None:
    """Brings the notebooks under this folder, where Sphinx looks for pages."""
    for stale in (HERE / "notebooks").glob("*.ipynb"):
        stale.unlink()
    for stem, path in notebooks.items():
        page = page_of(json.loads(path.read_text(encoding="utf-8")), stem, repository)
        copied = HERE / "notebooks" / path.name
        copied.write_text(json.dumps(page, ensure_ascii=False), encoding="utf-8")
        shutil.copystat(path, copied)  # a page that has not changed is not made anew
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
    app.add_directive("claims-table", ClaimsTable)
    app.add_directive("command-help", CommandHelp)
    app.add_directive("figures", Figures)
    app.add_directive("gallery", Gallery)
    app.add_directive("names-table", NamesTable)
    app.connect("autodoc-process-docstring", _prepare, priority=400)  # before napoleon
    app.connect("missing-reference", _public_name)
    app.connect("html-page-context", _dark_twins)
    app.connect("build-finished", _explorers)
    app.connect("build-finished", _write_dark_twins)
