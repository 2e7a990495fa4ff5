"""The house rules of CONTRIBUTING.md on every file of src; each rule is shown to catch its own breach."""

import ast
import io
import re
import subprocess
import sys
import textwrap
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "unbranch").rglob("*.py"))
MAX_LINES = 400
BATCH_NORM = "ops/batch_norm.py"

Finding = tuple[int, str]
Rule = Callable[[str, ast.Module], Iterator[Finding]]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _called(node: ast.AST, name: str) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == name


def probing(_text: str, tree: ast.Module) -> Iterator[Finding]:
    """A thing is asked for by its type, not by whether it happens to have an attribute."""
    for node in ast.walk(tree):
        if _called(node, "hasattr"):
            yield node.lineno, "hasattr"
        if _called(node, "getattr") and len(node.args) == 3 and _is_none(node.args[2]):
            yield node.lineno, "getattr with None as its default"


def assigned_forward(_text: str, tree: ast.Module) -> Iterator[Finding]:
    """A module's meaning is its class's: no forward is put over it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "forward" and isinstance(node.ctx, ast.Store):
            yield node.lineno, "forward assigned"
        if _called(node, "setattr") and ast.unparse(node.args[1]) == "'forward'":
            yield node.lineno, "forward set"


def broad_except(_text: str, tree: ast.Module) -> Iterator[Finding]:
    """Only what is expected is caught."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = {ast.unparse(name) for name in ast.walk(node.type)} if node.type else {"everything"}
            if caught & {"everything", "Exception", "BaseException"}:
                yield node.lineno, "catches everything"


def unsafe_load(_text: str, tree: ast.Module) -> Iterator[Finding]:
    """A checkpoint is data: loading it runs no code of its own."""
    for node in ast.walk(tree):
        if _called(node, "torch.load"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("weights_only") != "True":
                yield node.lineno, "torch.load without weights_only=True"


def left_open(text: str, tree: ast.Module) -> Iterator[Finding]:
    """Nothing is left for later, and no checker is told to look away without saying from what."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and re.search(
            r"\b(TODO|FIXME|XXX)\b|type: *ignore|no *cover", token.string
        ):
            yield token.start[0], token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc and "NotImplementedError" in ast.unparse(node.exc):
            yield node.lineno, "raises NotImplementedError"


def postponed_annotations(_text: str, tree: ast.Module) -> Iterator[Finding]:
    """Annotations are values that the tests check at run time."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            yield node.lineno, "from __future__"


def too_long(text: str, _tree: ast.Module) -> Iterator[Finding]:
    """A file is read in one sitting."""
    lines = len(text.splitlines())
    if lines >= MAX_LINES:
        yield lines, f"{lines} lines"


BREACHES: list[tuple[Rule, str]] = [
    (probing, "if hasattr(module, 'bn'): pass"),
    (probing, "norm = getattr(module, 'bn', None)"),
    (assigned_forward, "module.forward = module.forward_fused"),
    (assigned_forward, "a, module.forward = 1, f"),
    (assigned_forward, "setattr(module, 'forward', f)"),
    (broad_except, "try:\n    f()\nexcept:\n    pass"),
    (broad_except, "try:\n    f()\nexcept Exception as error:\n    raise"),
    (broad_except, "try:\n    f()\nexcept (KeyError, Exception):\n    pass"),
    (unsafe_load, "state = torch.load(path)"),
    (unsafe_load, "state = torch.load(path, weights_only=False)"),
    (left_open, "x = 1  # TODO later"),
    (left_open, "x = f()  # type: ignore[arg-type]"),
    (left_open, "def f(): raise NotImplementedError"),
    (left_open, "def f(): raise NotImplementedError('later')"),
    (postponed_annotations, "from __future__ import annotations"),
    (too_long, "x = 1\n" * MAX_LINES),
]
ALLOWED = """
stride = getattr(module, "stride")
eps = getattr(module, "eps", 1e-5)
out = module.forward(x)
state = torch.load(path, weights_only=True)
try:
    f()
except (KeyError, NotImplementedError) as error:
    raise ValueError("hasattr, TODO and type: ignore in a string") from error
"""


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _ in BREACHES), ids=lambda rule: rule.__name__)
def test_house_rule(rule: Rule) -> None:
    found = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        found += [
            f"{path.relative_to(ROOT)}:{line}: {what}"
            for line, what in rule(text, ast.parse(text, str(path)))
        ]
    assert found == [], f"{rule.__doc__} Found:\n" + "\n".join(found)


@pytest.mark.parametrize(("rule", "breach"), BREACHES)
def test_rule_catches_its_breach(rule: Rule, breach: str) -> None:
    assert list(rule(breach, ast.parse(breach)))


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _ in BREACHES), ids=lambda rule: rule.__name__)
def test_rule_lets_good_code_pass(rule: Rule) -> None:
    assert list(rule(ALLOWED, ast.parse(ALLOWED))) == []


def test_the_batch_norm_formula_stands_in_one_file() -> None:
    holders = {
        path.relative_to(ROOT / "src" / "unbranch").as_posix()
        for path in SOURCES
        if "running_var" in path.read_text()
    }
    assert holders <= {BATCH_NORM}


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of the modules that a file imports, whole or in part, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"unbranch"}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Distributions that the core and these extras name, extras that refer to extras followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names: set[str] = set()
    for requirement in project["dependencies"] + [
        line for extra in extras for line in project["optional-dependencies"][extra]
    ]:
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        assert match, requirement
        if match[1] == "unbranch":
            names |= declared(*match[2].split(","))
        else:
            names.add(normalized(match[1]))
    return names


def undeclared(modules: set[str]) -> list[str]:
    """Imported modules of which no declared dependency is the home; development-time extras do not count."""
    homes = packages_distributions()
    allowed = declared("demo")
    return sorted(
        name for name in modules if not {normalized(home) for home in homes.get(name, [])} & allowed
    )


def test_every_import_is_a_declared_dependency() -> None:
    modules: set[str] = set()
    for path in SOURCES:
        modules |= imported(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    # OpenCV has two distributions of one module; which of them is here is the machine's business.
    assert undeclared(modules - {"cv2"}) == []
    assert "opencv-python" in declared("detect") & declared("demo")


def test_an_undeclared_import_is_noticed() -> None:
    tree = ast.parse(
        "import timm.models\ndef f():\n    from ultralytics import YOLO\n    import os, yaml, torch.fx"
    )
    assert undeclared(imported(tree)) == ["timm", "ultralytics"]


def test_the_core_needs_no_extra() -> None:
    """`import unbranch` and its command line work where only the core dependencies are installed."""
    optional = declared("demo", "headless", "peers", "dev") - declared()
    modules = {
        name
        for name, homes in packages_distributions().items()
        if {normalized(home) for home in homes} & optional
    }
    script = f"""
        import sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {modules!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Absent())
        import unbranch.cli
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
