"""The stored notebooks are small, complete and free of the machine they ran on.

That they still run, and that what they claim still holds, is `pytest --nbmake notebooks`.
"""

import json
import pathlib
import re

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
