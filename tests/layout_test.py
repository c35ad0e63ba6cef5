"""Tests of the layout: rooms that import one way, and files of a readable length."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).absolute().parents[1]
MOST_LINES = 450
# From the lowest room up, and the experiments on top; a room imports from those before it.
ROOMS = (
    "checks",
    "components",
    "log_density",
    "distributions",
    "networks",
    "measurement",
    "priors",
    "information",
    "evidence",
    "surgery",
    "training",
    "models",
)


def _modules() -> dict[str, Path]:
    files = [*ROOT.glob("tfp_surgery/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def _imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of the repository that a file names in an import, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in modules else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules.keys()


def test_modules_import_without_circles() -> None:
    modules = _modules()
    graph = {name: _imports(path, modules) for name, path in modules.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules)


def test_rooms_import_from_the_rooms_below_them() -> None:
    modules = _modules()
    for name, path in modules.items():
        room = name.split(".")[1] if name.startswith("tfp_surgery.") else ""
        if room not in ROOMS:
            continue
        for other in _imports(path, modules):
            other_room = other.split(".")[1] if other.count(".") > 1 else ""
            if other_room in ROOMS:
                assert ROOMS.index(other_room) <= ROOMS.index(room), (name, other)
            assert not other.startswith("experiments"), (name, other)


@pytest.mark.parametrize("folder", ["tfp_surgery", "experiments"])
def test_no_file_is_too_long_to_read(folder: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in ROOT.glob(f"{folder}/**/*.py")}
    assert lengths
    assert {path for path, length in lengths.items() if length > MOST_LINES} == set()
