"""What is other on a page than in Jupyter: a notebook's live explorers, and a link to Colab."""

import copy
import re
from typing import Any
from urllib.parse import urlsplit

_EXPLORED = re.compile(r"""\bkt\.explore\(["']([\w-]+)["']""")


def page_of(notebook: dict[str, Any], stem: str, repository: str | None) -> dict[str, Any]:
    """A notebook as a page: widgets, which need a kernel, become frames of the same explorer.

    Args:
        notebook: what the file holds.
        stem: the file's name without its ending.
        repository: address of the repository on GitHub, for a link that opens the notebook in
            Colab; none is made without it, or for another host.
    """
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and (name := _EXPLORED.search("".join(cell["source"]))):
            frame = (
                f'<iframe class="explorer" src="../explorers/{name[1]}.html" '
                f'title="targets of the task {name[1]}"></iframe>'
            )
            shown = {"data": {"text/html": [frame]}, "metadata": {}, "output_type": "display_data"}
            cell["outputs"] = [shown]
    if link := _in_colab(stem, repository):
        heading = notebook["cells"][0]
        heading["source"] = [*heading["source"], f"\n\n{link}\n"]
    return notebook


def explored(notebook: dict[str, Any]) -> set[str]:
    """The tasks whose explorers a notebook shows."""
    sources = ("".join(x["source"]) for x in notebook["cells"] if x["cell_type"] == "code")
    return {name for source in sources for name in _EXPLORED.findall(source)}


def _in_colab(stem: str, repository: str | None) -> str | None:
    address = urlsplit(repository or "")
    if address.netloc != "github.com":
        return None
    path = f"{address.path.strip('/').removesuffix('.git')}/blob/main/notebooks/{stem}.ipynb"
    url = f"https://colab.research.google.com/github/{path}"
    return f'<a class="badge-link" href="{url}">Open in Colab</a>'
