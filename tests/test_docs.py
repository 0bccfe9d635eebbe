"""Documents are checked like code."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"


def test_paper_map_names_things_that_exist():
    rows = [line for line in (ROOT / "docs/paper-map.md").read_text().splitlines() if line.startswith("|")]
    symbols = [match for row in rows for match in re.findall(r"`(causvid[\w.]*):([\w.]+)`", row)]
    assert len(symbols) >= 10
    for module, names in symbols:
        thing = import_module(module)
        for name in names.split("."):
            thing = getattr(thing, name)
    tests = {path for row in rows for path in re.findall(r"`(tests/[\w./]+)`", row)}
    assert tests and all((ROOT / path).is_file() for path in tests)


@pytest.mark.parametrize("document", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"], ids=str)
def test_links_to_files_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} points to {target}"


def imports_of(module: Path) -> set[Path]:
    """The project's own files that a file imports, however late."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("causvid"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = SOURCE / Path(*name.split("."))
            for candidate in (path.with_suffix(".py"), path / "__init__.py"):
                if candidate.is_file() and candidate.read_text().strip():
                    found.add(candidate)
    return found - {SOURCE / "causvid/__init__.py"}


def closure(module: str) -> set[Path]:
    todo, done = [SOURCE / module], set()
    while todo:
        path = todo.pop()
        if path not in done:
            done.add(path)
            todo += imports_of(path)
    return done


@pytest.mark.parametrize(("module", "max_files", "max_lines"), [("causvid/rollout.py", 10, 1_600)])
def test_reading_closure_stays_within_its_budget(module, max_files, max_lines):
    """How many files must be open to understand one thing: growth should be a decision, not an accident."""
    files = closure(module)
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert len(files) <= max_files and lines <= max_lines, f"{len(files)} files, {lines} lines"
