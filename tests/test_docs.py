"""The documentation names everything that is public, and its examples run."""

import ast
import colorsys
import doctest
import functools
import importlib
import io
import itertools
import json
import os
import pkgutil
import re
import shlex
import tomllib
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import urlsplit

import matplotlib
import numpy as np
import pytest
from claims import VERDICTS, read_claims
from PIL import Image
from test_house import FLOORS

import kltarget as kt
from kltarget.cli import main

ROOT = Path(__file__).parents[1]
CLAIMS = read_claims(ROOT / "tests")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINES = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def public_modules():
    """All modules without an underscore in their path, and the package itself."""
    found = pkgutil.walk_packages(kt.__path__, "kltarget.")
    return ["kltarget", *(module.name for module in found if "._" not in module.name)]


def resolve(name):
    """The object that a dotted name stands for."""
    module, attributes = name, []
    while True:
        try:
            return functools.reduce(getattr, attributes, importlib.import_module(module))
        except ModuleNotFoundError:
            module, _, attribute = module.rpartition(".")
            attributes.insert(0, attribute)
            if not module:
                raise AttributeError(name) from None


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


def wants_a_package(name):
    """Whether a name of `adapters` is of a class that extends one of a package not installed."""
    if not name.startswith("kltarget.adapters."):
        return False
    try:
        resolve(name)
    except ImportError as error:
        return "pip install" in str(error)
    return False


def test_every_public_name_is_in_the_reference():
    shown = {name for name in documented() if not wants_a_package(name)}
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
    cited = set(number.findall("\n".join(sources))) | {x.arxiv for x in CLAIMS}
    listed = (ROOT / "docs" / "bibliography.md").read_text()
    assert set(number.findall(listed)) == cited
    assert all(f"[arXiv {n}](https://arxiv.org/abs/{n})" in listed for n in cited)


def test_claims_are_many_and_some_fail():
    """Each is read by its form, or the reading of them all fails."""
    assert len(CLAIMS) >= 40
    assert {x.verdict for x in CLAIMS} == set(VERDICTS)
    assert len({x.statement for x in CLAIMS}) == len(CLAIMS)


@pytest.mark.parametrize(
    "text",
    [
        "Claim: it is so.",
        "Claim: it is so (arXiv 2510.20817).",
        "Claim: a (arXiv 2510.20817). Fails.",
    ],
)
def test_a_claim_without_source_verdict_or_counterexample_is_refused(tmp_path, text):
    (tmp_path / "test_it.py").write_text(f'def test_a():\n    """{text}"""\n')
    with pytest.raises(ValueError, match=r"test_it\.py, test_a: "):
        read_claims(tmp_path)


def exists(scope, path):
    """Whether a chain of attributes, the last of which may be a field of a dataclass, is there."""
    *owners, last = path
    try:
        scope = functools.reduce(getattr, owners, scope)
    except AttributeError:
        return False
    return hasattr(scope, last) or last in getattr(scope, "__dataclass_fields__", ())


CODE = re.compile(r":[\w:.+-]+:`[^`]+`|``.+?``")


def described(tree):
    """Line and docstring of each property, and of each name that a text below it describes."""
    for node in ast.walk(tree):
        for x in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(x, ast.FunctionDef):
                by = {ast.unparse(decorator).rpartition(".")[2] for decorator in x.decorator_list}
                if by & {"property", "cached_property", "abstractproperty"}:
                    yield x.lineno, ast.get_docstring(x) or ""
        if isinstance(node, ast.ClassDef | ast.Module):
            for named, text in itertools.pairwise(node.body):
                assigned = isinstance(named, ast.Assign | ast.AnnAssign)
                if assigned and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                    yield text.lineno, str(text.value.value)


def read_as_types(source):
    """Lines of properties and attributes whose docstring Sphinx would read as 'type: text'."""
    for line, text in described(ast.parse(source)):
        if ":" in CODE.sub("", text.partition("\n")[0]):
            yield line


def test_attributes_are_described_without_a_colon():
    for path in sorted((ROOT / "kltarget").rglob("*.py")):
        lines = list(read_as_types(path.read_text(encoding="utf-8")))
        assert not lines, f"{path.relative_to(ROOT)}:{lines[0]}: the first line has a colon"


def test_what_is_read_as_a_type():
    source = '''
class A:
    """Any: class."""

    count: int
    """How many: at most two."""

    @property
    def here(self):
        """At one moment: now."""

    @functools.cached_property
    def there(self):
        """Elsewhere.

        For instance: there.
        """

    @property
    def code(self):
        """The :class:`A` of ``x[1:]``."""

    def method(self):
        """Does: something."""
'''
    assert sorted(read_as_types(source)) == [6, 9]


def test_docstrings_refer_to_what_exists():
    public = [importlib.import_module(name) for name in public_modules()]
    missing = []
    for file in sorted((ROOT / "kltarget").rglob("*.py")):
        if file.stem == "__main__":
            continue
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        try:
            module = importlib.import_module(name.removesuffix(".__init__"))
        except ModuleNotFoundError as error:
            # A file that extends another package's classes.
            if "adapters" not in file.parts or error.name.startswith("kltarget"):
                raise
            continue
        classes = [x for x in vars(module).values() if isinstance(x, type)]
        for reference in re.findall(r":(?:func|class|meth|attr|mod):`~?([\w.]+)", file.read_text()):
            path = reference.split(".")
            if path[0] == "kltarget":
                scopes, path = [kt], path[1:]
            else:
                scopes = [module, *classes, *public]
            if not any(exists(scope, path) for scope in scopes):
                missing.append(f"{name}: {reference}")
    assert not missing


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(ROOT / page for page in ("README.md", ".github/CONTRIBUTING.md"))],
    ids=lambda page: f"{page.parent.name}-{page.stem}",
)
def test_pages_name_what_exists(page):
    for name in re.findall(r"`(?:kt|kltarget)\.([A-Za-z_]\w*(?:\.\w+)*)", page.read_text()):
        resolve(f"kltarget.{name}")


def test_the_picture_of_the_house_is_that_of_the_arrows():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    picture = re.search(r"```text\n(cli .*?)```", text, re.DOTALL)
    assert picture
    rooms = [set(re.split(r" {2,}", line)[0].split(" · ")) for line in picture[1].splitlines()]
    assert rooms == [set(floor) for floor in reversed(FLOORS)]


def test_pictures_of_the_readme_are_packed_and_the_animation_is_small_and_loops():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    with (ROOT / "pyproject.toml").open("rb") as file:
        packed = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {f"/{path}" for path in pictures} <= set(packed)
    (animation,) = (ROOT / path for path in pictures if path.endswith(".gif"))
    assert animation.stat().st_size < 500_000
    with Image.open(animation) as frames:
        assert frames.info["loop"] == 0
        assert 3 < frames.n_frames * frames.info["duration"] / 1000 < 8


def test_links_are_well_formed():
    for page in (*PAGES, ROOT / "README.md"):
        for url in re.findall(r"\w+://[^\s)>\"`]+", page.read_text()):
            parts = urlsplit(url)
            assert parts.scheme == "https", url
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), url


STEP = re.compile(
    r"^(?P<mark><!-- not run: .*? -->\n)?"
    r"```(?P<kind>python|pycon|console|sh|bash)\n(?P<code>.*?)^```$"
    r"(?:\n\n```text\n(?P<shown>.*?)^```$)?"
    r"|`(?P<command>kltarget [a-z]+ [^`]+)`",
    re.MULTILINE | re.DOTALL,
)
PLACEHOLDER = re.compile(r"^<!-- ([A-Z]+) = (\S+) -->$", re.MULTILINE)


def steps(page):
    """What a reader of a page may run, in order: kind, text, and what is shown as its output.

    Blocks after a comment ``<!-- not run: why -->`` are left out, and a comment
    ``<!-- PATH = here -->`` gives a name in capitals its value.
    """
    text = page.read_text()
    for name, value in PLACEHOLDER.findall(text):
        text = re.sub(rf"\b{name}\b(?! = )", value, text)
    for step in STEP.finditer(text):
        kind, code, shown = step["kind"], step["code"], step["shown"]
        if step["command"]:
            yield "command", " ".join(step["command"].split()), None
        elif step["mark"]:
            continue
        elif kind in ("python", "pycon"):
            yield kind, code, shown
        elif kind == "console":
            for command, output in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", code, re.MULTILINE):
                yield "command", command, output
        else:
            lines = re.sub(r"\\\n| +#.*", "", code).splitlines()
            for command in (x.strip() for line in lines for x in line.split("&&")):
                if command.startswith("kltarget "):
                    yield "command", command, shown


def assert_shown(said, shown):
    """The page's words exactly, and its numbers as far as float32 has their digits."""
    if doctest.OutputChecker().check_output(shown, said, LINES):
        return
    number = r"[-+]?\d*\.\d+(?:e[-+]?\d+)?"
    assert doctest.OutputChecker().check_output(
        re.sub(number, "#", shown), re.sub(number, "#", said), LINES
    ), said
    here, there = ([float(x) for x in re.findall(number, text)] for text in (said, shown))
    np.testing.assert_allclose(here, there, rtol=2e-6, err_msg=said)


RUNNABLE = {page.stem: page for page in (ROOT / "README.md", *PAGES) if any(steps(page))}


def of_kinds(*kinds, slow=()):
    """The pages that have steps of some kinds, to parametrise tests by."""
    pages = [x for x in RUNNABLE if any(kind in kinds for kind, *_ in steps(RUNNABLE[x]))]
    return [pytest.param(x, marks=[pytest.mark.slow] * (x in slow)) for x in pages]


@pytest.mark.quick_only("README", "trainers", "unit_tests", "concepts", others="broad")
@pytest.mark.parametrize("name", of_kinds("python", "pycon"))
def test_examples_of_a_page_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for kind, code, shown in steps(RUNNABLE[name]):
        if kind == "python":
            with redirect_stdout(io.StringIO()) as said:
                exec(code, names)
            assert_shown(said.getvalue(), shown or "")
        elif kind == "pycon":
            example = doctest.DocTestParser().get_doctest(code, names, name, None, 0)
            report = io.StringIO()
            runner = doctest.DocTestRunner(optionflags=LINES)
            runner.run(example, out=report.write, clear_globs=False)
            assert not report.getvalue(), report.getvalue()
            names.update(example.globs)


@pytest.mark.parametrize("name", of_kinds("command", slow=("README", "compare")))
def test_commands_of_a_page_say_what_it_shows(name, tmp_path, monkeypatch, capsys):
    # Rollouts and counts that a checkout has.
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (tmp_path / "kltarget").mkdir()
    (tmp_path / "kltarget" / "data").symlink_to(ROOT / "kltarget" / "data")
    monkeypatch.chdir(tmp_path)
    for kind, command, shown in steps(RUNNABLE[name]):
        if kind == "command":
            assert main(shlex.split(command)[1:]) == 0, command
            said = capsys.readouterr().out
            if shown:
                assert_shown(said, shown)


@pytest.mark.slow
def test_the_table_of_a_verification_is_what_verify_prints(tmp_path, capsys):
    (shown,) = re.findall(r"```text\n(policy .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    # Where the command has just been run, as in the project's own checks, it is not run again.
    if printed := os.environ.get("KLTARGET_VERIFIED"):
        text = Path(printed).read_text(encoding="utf-8")
    else:
        assert main(["verify", "--policies", "tabular", "--out", str(tmp_path)]) == 0
        text = capsys.readouterr().out
    said = re.search(r"\n\n(policy .*?)\n\n", text, re.DOTALL)
    assert said
    # Rounding of another machine may end elsewhere below the bar.
    far = re.compile(r"\de-0\d")
    lines = [[far.sub("#", x).split() for x in table.splitlines()] for table in (said[1], shown)]
    assert lines[0][: len(lines[1])] == lines[1]


def test_the_pages_that_run_are_read():
    kinds = {(name, kind) for name, page in RUNNABLE.items() for kind, *_ in steps(page)}
    assert kinds >= {
        ("README", "python"),
        ("README", "command"),
        ("concepts", "pycon"),
        ("trainers", "command"),
        ("jupyter", "command"),
    }


def test_a_notebooks_page_has_its_explorer_and_a_link_to_colab(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from page_of_notebook import explored, page_of

    path = ROOT / "notebooks" / "01_mode_collapse.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert explored(notebook) == {"bimodal"}
    stored = json.dumps(notebook)
    address = "https://github.com/someone/kltarget.git"
    page = page_of(notebook, path.stem, address)
    (frame,) = (
        x["data"]["text/html"][0]
        for cell in page["cells"]
        for x in cell.get("outputs", ())
        if "<iframe" in str(x.get("data", ""))
    )
    assert 'src="../explorers/bimodal.html"' in frame
    opened = "https://colab.research.google.com/github/someone/kltarget/blob/main/notebooks"
    assert f'href="{opened}/01_mode_collapse.ipynb"' in page["cells"][0]["source"][-1]
    # Where no address is given, or of a host that Colab does not read, there is no link.
    for other in (None, "https://example.org/someone/kltarget"):
        assert "colab" not in json.dumps(page_of(notebook, path.stem, other))
    assert json.dumps(notebook) == stored


def test_choosing_beta_is_in_a_title():
    """The search of the documentation puts pages whose title has the words first."""
    titles = {re.search(r"^# (.+)", page.read_text("utf-8"), re.MULTILINE)[1] for page in PAGES}
    words = [set(re.findall(r"\w+", title.lower())) for title in titles]
    assert sum({"choose", "beta"} <= each for each in words) == 1


def test_every_figure_has_a_picture():
    """Of a notebook that calls it, or else of the example in its docstring."""
    notebooks = "\n".join(path.read_text("utf-8") for path in (ROOT / "notebooks").glob("*.ipynb"))
    functions = [x for x in (getattr(kt.plot, name) for name in kt.plot.__all__) if callable(x)]
    for function in functions:
        examples = "\n".join(
            x.source for x in doctest.DocTestParser().get_examples(function.__doc__)
        )
        called = rf"\bplot\.{function.__name__}\("
        assert re.search(called, notebooks) or re.search(called, examples), function.__name__
    assert len(functions) > 20


def test_pictures_have_dark_twins_of_the_same_hues(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "docs")
    from dark import darkened, with_dark_pictures, write_dark_pictures

    orange, green = [230, 159, 0], [0, 158, 115]
    row = np.array([[[255] * 3, [0] * 3, orange, green]], np.uint8)
    ground, ink, *hues = darkened(row)[0].astype(int)
    assert ground.max() < 32
    assert ink.min() > 208
    for was, found in zip((orange, green), hues, strict=True):
        assert np.argsort(was).tolist() == np.argsort(found).tolist()
        assert colorsys.rgb_to_hsv(*found)[0] == pytest.approx(colorsys.rgb_to_hsv(*was)[0])
        assert max(found) >= max(was)
    # The rim of a line is between line and page, as it was.
    rim = darkened((row + [[[255] * 3]] * 4).astype(float)[:, 2:3] / 2)[0, 0].astype(int)
    between = np.sort([ground, hues[0]], axis=0)
    assert (between[0] <= rim).all()
    assert (rim <= between[1]).all()
    # A map keeps its order, and what is written in it.
    colors = 255 * matplotlib.colormaps["viridis"](np.linspace(0, 1, 90))[:, :3]
    heat = np.broadcast_to(colors.round().astype(np.uint8), (60, 90, 3)).copy()
    heat[30, 40:50] = 255
    np.testing.assert_array_equal(
        darkened(np.pad(heat, ((9, 9), (9, 9), (0, 0))))[9:-9, 9:-9], heat
    )

    page = '<p><img alt="a" src="../_images/a.png" /><img src="_images/b.gif" /></p>'
    both = with_dark_pictures(page)
    assert both.count("<img") == 3
    assert 'class="only-dark" alt="a" src="../_images/dark/a.png"' in both
    Image.fromarray(row).save(tmp_path / "a.png")
    write_dark_pictures(tmp_path)
    assert np.asarray(Image.open(tmp_path / "dark" / "a.png").convert("RGB"))[0, 0].max() < 32
