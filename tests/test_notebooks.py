"""The stored notebooks are small, complete and free of the machine they ran on.

That they still run, and that what they claim still holds, is `pytest --nbmake notebooks`.
"""

import json
import pathlib
import re
import sys
import tomllib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_ran(path):
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 300_000
    content = json.loads(text)
    assert content["cells"][0]["source"][0].startswith("# ")
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [x for x in outputs if x["output_type"] == "error" or x.get("name") == "stderr"]
    assert sum("assert" in "".join(cell["source"]) for cell in code) >= 3
    # Absolute paths are those of one machine; pictures are encoded with slashes.
    words = [cell["source"] for cell in content["cells"]]
    words += [x.get("text", x.get("data", {}).get("text/plain", [])) for x in outputs]
    assert not re.findall(r"(?:^|[\s\"'=(])/\w+/\w+", "\n".join(map("".join, words)))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 6


DOCS = sorted((NOTEBOOKS[0].parents[1] / "docs").rglob("*.md"))


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *DOCS, NOTEBOOKS[0].parents[1] / "README.md"], ids=lambda path: path.name
)
def test_fractions_have_braces(path):
    r"""Without them some renderers take all digits: `\tfrac12 t²` is drawn as (12/t)²."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    assert not re.findall(r"\\[cdt]?(?:frac|binom)(?!\s*\{).{0,20}", text)
    assert not re.findall(r"\\sqrt(?!\s*[\[{]).{0,20}", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_prints_fits_its_page(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for output in (output for cell in cells for output in cell.get("outputs", ())):
        if output["output_type"] == "stream":
            assert max(map(len, "".join(output["text"]).splitlines())) <= 100
        html = "".join(output.get("data", {}).get("text/html", ""))
        assert len(html) < 60_000
        attributes = re.findall(r"<dt><span>[^<]*</span></dt><dd>([^<]*)</dd>", html)
        assert all(len(attribute) < 1500 for attribute in attributes)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_cell_prints_is_one_block(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        names = [x.get("name") for x in cell.get("outputs", ()) if x["output_type"] == "stream"]
        assert len(names) == len(set(names))


def test_buttons_of_the_documentation_are_not_hidden_where_they_are_needed():
    style = (NOTEBOOKS[0].parents[1] / "docs" / "_static" / "kltarget.css").read_text("utf-8")
    hidden = re.search(r"@media \(min-width: (\d+)px\) \{\s*\.bd-header \{", style)
    assert hidden
    # From here on the theme shows both side bars.
    assert int(hidden[1]) >= 1200
    assert not re.search(r"^\.bd-header \{", style, re.MULTILINE)


def test_the_extra_has_what_the_notebooks_need():
    project = tomllib.loads((NOTEBOOKS[0].parents[1] / "pyproject.toml").read_text("utf-8"))[
        "project"
    ]
    listed = [*project["dependencies"], *project["optional-dependencies"]["notebooks"]]
    installed = {re.match(r"[\w-]+", name)[0] for name in listed} | sys.stdlib_module_names
    needed = set()
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(x["source"]) for x in cells if x["cell_type"] == "code")
        needed |= set(re.findall(r"^ *(?:import|from) (\w+)", code, re.MULTILINE))
        # What a library imports by itself, for what it is asked to do.
        needed |= {"pyarrow"} if ".parquet" in code else set()
        needed |= {"jinja2"} if ".style." in code else set()
    assert needed - installed == {"kltarget"}
