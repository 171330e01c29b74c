"""The published claims that tests show: read from their docstrings, which all have one form.

    Claim: the statement (arXiv 2510.20817, Theorem 1).

    Holds.

Instead of ``Holds.`` the second paragraph may say ``Holds: …`` with a remark, ``Holds with a
correction: …`` or ``Fails: …``, which names the counterexample and, where there is one, the
statement that holds.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

VERDICTS = ("Holds", "Holds with a correction", "Fails")
_FORM = re.compile(
    r"Claim: (?P<statement>.+?) \(arXiv (?P<arxiv>\d{4}\.\d{4,5})(?:, (?P<place>[^()]+))?\)\. "
    rf"(?P<verdict>{'|'.join(sorted(VERDICTS, key=len, reverse=True))})(?:\.|: (?P<remark>.+))"
)


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, what became of it, and the test that shows it."""

    statement: str
    arxiv: str
    place: str
    verdict: str
    remark: str
    file: str
    test: str


def read_claims(folder: Path) -> list[Claim]:
    """The claims of all test files of a folder, by paper."""
    claims = [
        _claim(" ".join(text.split()), file.name, node.name)
        for file in sorted(folder.glob("test_*.py"))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and (text := ast.get_docstring(node) or "").startswith("Claim")
    ]
    return sorted(claims, key=lambda x: (x.arxiv, x.place))


def _claim(text: str, file: str, test: str) -> Claim:
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{file}, {test}: a claim reads as tests/claims.py says, not {text!r}")
    parts = {name: value or "" for name, value in found.groupdict().items()}
    if parts["verdict"] != "Holds" and not parts["remark"]:
        raise ValueError(f"{file}, {test}: {parts['verdict']!r} does not say how")
    return Claim(**parts, file=file, test=test)
