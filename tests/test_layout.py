"""Where tests lie: a folder for each room, none imports another, and what they share is in `support`."""

import ast
from pathlib import Path

import pytest

import unet_engine
import unet_export

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))


def rooms(package):
    folder = Path(package.__file__).parent
    return {str(path.parent.relative_to(folder)) for path in folder.rglob("*.py")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_file_imports_a_test(path):
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(alias.name for alias in node.names)]
    parts = {part for name in names for part in name.split(".")}
    assert not {part for part in parts if part.startswith("test_")} & {file.stem for file in FILES}


def test_every_folder_is_a_room():
    """Of the engine or of what makes model files, or the folder of scripts that measure."""
    folders = {str(path.parent.relative_to(TESTS)) for path in FILES if path.stem.startswith("test_")}
    assert folders - {"."} <= rooms(unet_engine) | rooms(unet_export) | {"benchmarks"}


def test_the_conftest_holds_fixtures_and_hooks_alone():
    for node in ast.parse((TESTS / "conftest.py").read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("pytest_"):
            assert any("pytest.fixture" in ast.unparse(mark) for mark in node.decorator_list), node.name
        elif not isinstance(node, ast.FunctionDef):
            assert isinstance(node, ast.Import | ast.ImportFrom | ast.Expr) or "pytest_plugins" in ast.unparse(node)
