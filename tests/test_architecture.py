"""The rooms of the package: imports point down, no circles, no file too long to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import bayespare

PACKAGE = Path(bayespare.__file__).parent

# A room may import from itself and from rooms of a lower rank.
RANKS = {
    "errors": 0,
    "version": 0,
    "machine": 0,
    "checks": 1,
    "nets": 1,
    "data": 1,
    "bayes": 1,
    "optim": 2,
    "structure": 2,
    "measure": 2,
    "given": 2,
    "lookups": 2,
    "training": 3,
    "methods": 4,
    "result": 5,
    "options": 5,
    "assess": 6,
    "pipeline": 7,
    "posthoc": 7,
    "load": 7,
    "export": 7,
    "runtime": 7,
    "report": 9,
    "own_loop": 6,
    "huggingface": 7,
    "lightning": 7,
    "select": 8,
    "cli": 10,
    "sklearn": 9,
    "__main__": 11,
    "__init__": 11,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "bayespare" and len(parts) > 1 and parts[1] in RANKS:
                yield parts[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    for there in imported_rooms(path):
        assert there == here or RANKS[there] < RANKS[here], f"{here} imports {there}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 480


def test_nothing_is_unpickled_or_evaluated() -> None:
    calls = {"eval", "exec", "compile"}
    for path in MODULES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in calls, path
            if isinstance(node, ast.Import):
                assert all(alias.name != "pickle" for alias in node.names), path
            if isinstance(node, ast.keyword) and node.arg == "weights_only":
                assert not (isinstance(node.value, ast.Constant) and node.value.value is False)
