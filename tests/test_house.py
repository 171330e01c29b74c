"""The rooms of the library and the arrows between them: which may import which.

Every import counts: those inside functions and those for types alone too.
"""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import sys
from collections import Counter

import pytest

import kltarget

ROOT = pathlib.Path(kltarget.__file__).parent

FLOORS = (
    ("_core",),
    ("divergences",),
    ("spaces", "recipes"),
    ("objectives",),
    ("policies",),
    ("tasks",),
    ("targets", "training"),
    ("projections", "modes"),
    ("implied", "frontier"),
    ("sweeps", "verification", "rollouts"),
    ("evidence",),
    ("comparisons", "diagnosis", "forecasts", "studies"),
    ("mixtures", "plot", "adapters"),
    ("pages",),
    ("cli",),
)
"""From the ground up. A room may import those below its own floor."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
AT_THE_ROOT = {"__init__.py", "__main__.py", "testing.py", "py.typed"}


def files():
    return sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(path):
    """The modules of the library that a file imports, the files behind names included."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {x.name for x in node.names if x.name.split(".")[0] == "kltarget"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kltarget":
            for x in node.names:
                inner = f"{node.module}.{x.name}"
                modules.add(inner if is_module(inner) else node.module)
    return modules


def is_module(name):
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def arrows():
    """Every import between two rooms: from which file, to which room."""
    for path in [*files(), *ROOT.glob("*/**/__init__.py")]:
        source = room_of(module_of(path))
        if source in FLOOR_OF:
            for module in imported_by(path):
                if room_of(module) != source:
                    yield path.relative_to(ROOT).as_posix(), source, room_of(module)


def test_nothing_new_at_the_root():
    assert {x.name for x in ROOT.iterdir() if x.is_file()} == AT_THE_ROOT
    rooms = {x.name for x in ROOT.iterdir() if x.is_dir() and x.name not in ("data", "__pycache__")}
    assert rooms == set(FLOOR_OF)


def test_every_arrow_points_downwards():
    upwards = [
        f"{file} → {target or 'kltarget'}"
        for file, source, target in arrows()
        if FLOOR_OF.get(target, len(FLOORS)) >= FLOOR_OF[source]
    ]
    assert not upwards, "\n".join(upwards)


def test_training_and_closed_forms_cannot_reach_each_other():
    below = {room: set() for room in FLOOR_OF}
    for _, source, target in arrows():
        below[source].add(target)

    def reached(room):
        rooms = set(below[room])
        for other in below[room]:
            rooms |= reached(other)
        return rooms

    assert "targets" not in reached("training")
    assert "training" not in reached("targets")


def test_files_import_each_other_in_no_circle():
    graph = {module_of(path): imported_by(path) for path in files()}
    done, path = set(), []

    def visit(module):
        if module in path:
            circle = " → ".join([*path[path.index(module) :], module])
            pytest.fail(f"a circle: {circle}")
        if module in done or module not in graph:
            return
        path.append(module)
        for target in sorted(graph[module]):
            visit(target)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_the_citation_is_of_this_version():
    checkout = pathlib.Path(__file__).parents[1]
    versions = [
        re.search(rf"^version{sign} *\"?([\d.]+)", (checkout / name).read_text(), re.MULTILINE)
        for name, sign in (("pyproject.toml", " ="), ("CITATION.cff", ":"))
    ]
    assert None not in versions
    assert len({found[1] for found in versions}) == 1


def test_a_file_name_occurs_once():
    counts = Counter(path.name for path in files() if path.parent != ROOT)
    assert [name for name, number in counts.items() if number > 1] == []


@pytest.mark.quick_only("kltarget-without0", "kltarget.implied-without1", others="broad")
@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("kltarget", ("optax", "pandas", "matplotlib", "xarray", "tqdm")),
        ("kltarget.implied", ("optax", "pandas", "matplotlib", "xarray")),
        ("kltarget.rollouts", ("optax", "matplotlib", "xarray")),
        ("kltarget.diagnosis", ("optax", "matplotlib", "xarray")),
    ],
)
def test_a_room_brings_no_more_than_it_needs(module, without):
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(without).isdisjoint(run.stdout.split())


def test_tests_and_benchmarks_import_nothing_private():
    private = []
    inside = rf"(kt|kltarget|({'|'.join(FLOOR_OF)}))(\.\w+)*\._[a-z]"
    for folder in ("tests", "benchmarks"):
        for path in (ROOT.parent / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Attribute) and re.match(
                    inside, dotted := ast.unparse(node)
                ):
                    private.append(f"{path.name}:{node.lineno} {dotted}")
                names = [x.name for x in getattr(node, "names", ()) if hasattr(x, "name")]
                module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else ""
                for name in names:
                    parts = f"{module}.{name}".strip(".").split(".")
                    if parts[0] == "kltarget" and any(x.startswith("_") for x in parts[1:]):
                        private.append(f"{path.name}:{node.lineno} {'.'.join(parts)}")
    assert not private, "\n".join(private)


def test_nothing_is_unpickled():
    """Opening a pickle runs what is in it; logs and models come from anywhere."""
    openers = {"pickle", "dill", "cloudpickle", "joblib", "read_pickle"}
    for path in files():
        if path.name == "processes.py":  # what another process of the same job has just made
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = set()
            if isinstance(node, ast.Import):
                names = {x.name.split(".")[0] for x in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").split(".")[0]}
            elif isinstance(node, ast.Attribute):
                names = {node.attr}
                loads = node.attr == "load" and isinstance(node.value, ast.Name)
                assert not (loads and node.value.id == "torch"), f"{path}: torch.load"
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, f"{path}: allow_pickle"
            assert not names & openers, f"{path}: {names & openers}"
