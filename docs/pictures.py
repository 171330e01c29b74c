"""Pictures of the documentation: those that notebooks have, and those of docstrings' examples."""

import base64
import contextlib
import doctest
import functools
import inspect
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
NOTEBOOKS = sorted((HERE.parent / "notebooks").glob("*.ipynb"))


def first_sentence(public: object) -> str:
    """What a docstring says first."""
    paragraph = " ".join((inspect.getdoc(public) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z])", paragraph, maxsplit=1)[0]


class Shown(NamedTuple):
    """A picture of a notebook, the title of its section, and the code of its cell."""

    title: str
    code: str
    png: bytes


@functools.cache
def pictures_of(notebook: Path) -> tuple[str, list[Shown]]:
    """The title of a notebook and its pictures, as they are stored."""
    titles, found = [], []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            titles += re.findall(r"^#+ (.+)", source.replace("*", ""), re.MULTILINE)
        stored = [output.get("data", {}).get("image/png") for output in cell.get("outputs", ())]
        found += [Shown(titles[-1], source, base64.b64decode(png)) for png in stored if png]
    return titles[0], found


def drawn(function: Callable) -> bytes:
    """What the example of a figure's docstring draws."""
    from kltarget import plot

    results = []

    def drawing(*args, **options):
        results.append(function(*args, **options))
        return results[-1]

    examples = doctest.DocTestParser().get_examples(function.__doc__ or "")
    with (
        mock.patch.object(plot, function.__name__, drawing),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        exec("".join(x.source for x in examples), {})
    figure = getattr(results[-1], "figure", results[-1])
    with io.BytesIO() as file:
        figure.savefig(file, format="png", bbox_inches="tight", dpi=110)
        return file.getvalue()


def _stored(name: str, png: bytes) -> str:
    folder = HERE / "notebooks" / "pictures"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.png").write_bytes(png)
    return f"notebooks/pictures/{name}.png"


class Gallery(SphinxDirective):
    """The notebooks' pictures, one of each section, under the section's title."""

    def run(self) -> list[nodes.Node]:
        """Takes them out of the notebooks as they are stored, with nothing to compute."""
        found: list[nodes.Node] = []
        for notebook in NOTEBOOKS:
            title, pictures = pictures_of(notebook)
            sections = {x.title: x for x in reversed(pictures)}
            cards = [self._card(sections[x], notebook.stem, k) for k, x in enumerate(sections)]
            if cards:
                row = nodes.container("", *reversed(cards), classes=["gallery"])
                found += [nodes.rubric("", title), row]
        return found

    def _card(self, shown: Shown, stem: str, k: int) -> nodes.Node:
        link = nodes.reference("", "", refuri=f"notebooks/{stem}.html", internal=True)
        link += nodes.image(uri=_stored(f"{stem}-{k}", shown.png), alt=shown.title)
        return nodes.container("", nodes.paragraph("", "", link), nodes.paragraph("", shown.title))


class Figures(SphinxDirective):
    """Every function of ``kltarget.plot`` with a picture and the first sentence about it."""

    def run(self) -> list[nodes.Node]:
        """Takes a notebook's picture where one calls it, and draws the docstring's example else."""
        from kltarget import plot

        functions = [getattr(plot, name) for name in plot.__all__]
        cards = [self._card(function) for function in functions if callable(function)]
        return [nodes.container("", *cards, classes=["gallery", "figures"])]

    def _card(self, function: Callable) -> nodes.Node:
        name = function.__name__
        pictures = [x for notebook in NOTEBOOKS for x in pictures_of(notebook)[1]]
        called = (x.png for x in pictures if re.search(rf"\bplot\.{name}\(", x.code))
        picture = _stored(f"plot-{name}", next(called, None) or drawn(function))
        link = f"{{py:func}}`plot.{name} <kltarget.plot.{name}>`"
        image = nodes.paragraph("", "", nodes.image(uri=picture, alt=f"plot.{name}"))
        text = self.parse_text_to_nodes(f"{link}\n\n{first_sentence(function)}")
        return nodes.container("", *text, image)
