"""Bazel leaves out no file, and its targets have what they import.

The BUILD files and the macro are run here as the Python that they also are, with rules that write
down what they are given.
"""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).absolute().parents[1]
FOLDERS = ("benchmarks", "experiments", "tests", "tfp_surgery")
Targets = dict[str, dict[str, Any]]

if not (ROOT / "WORKSPACE").is_file():
    pytest.skip("Bazel copies no BUILD files to where tests run", allow_module_level=True)


def read_targets(root: Path) -> Targets:
    """The Python targets by label: their `rule`, `srcs` as paths from `root`, `deps` as labels."""
    targets: Targets = {}
    for build in [path for folder in FOLDERS for path in (root / folder).rglob("BUILD")]:
        run_build_file(root, build.parent, targets)
    return targets


def run_build_file(root: Path, folder: Path, targets: Targets) -> None:
    package = folder.relative_to(root).as_posix()

    def label(name: str) -> str:
        if name.startswith("//"):
            return name if ":" in name else f"{name}:{name.rsplit('/', 1)[-1]}"
        return f"//{package}:{name.removeprefix(':')}"

    def glob(include: list[str], exclude: list[str] | None = None) -> list[str]:
        found = {path.name for pattern in include for path in folder.glob(pattern)}
        return sorted(found - set(exclude or ()))

    def rule(kind: str, name: str, srcs: Any = (), deps: Any = (), **_: Any) -> None:
        paths = [label(source).removeprefix("//").replace(":", "/") for source in srcs]
        targets[label(name)] = {"rule": kind, "srcs": paths, "deps": [*map(label, deps)]}

    rules = {kind: functools.partial(rule, kind) for kind in ("py_library", "py_test", "py_binary")}
    macro: dict[str, Any] = {"native": types.SimpleNamespace(glob=glob, **rules)}
    exec((ROOT / "tools" / "pytest_tests.bzl").read_text(), macro)
    known = {"load": lambda *_: None, "glob": glob, "pytest_tests": macro["pytest_tests"], **rules}
    exec((folder / "BUILD").read_text(), known)


def left_out(root: Path, targets: Targets) -> list[str]:
    """The Python files without a target that Bazel needs for them, from `root`."""
    sources = {kind: set[str]() for kind in ("py_library", "py_test", "py_binary")}
    for target in targets.values():
        sources[target["rule"]].update(target["srcs"])
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    return sorted(
        path.relative_to(root).as_posix()
        for path in files
        if path.relative_to(root).as_posix()
        not in sources["py_test" if path.name.endswith("_test.py") else "py_library"]
    )


def missing_deps(root: Path, targets: Targets) -> dict[str, list[str]]:
    """What the files of a target import and neither it nor its deps have, by label."""
    library_of = {
        source.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name
        for name, target in targets.items()
        if target["rule"] == "py_library"
        for source in target["srcs"]
    }
    missing = {}
    for name, target in targets.items():
        sources = [root / source for source in target["srcs"] if not source.startswith("tools/")]
        needed = {library_of[module] for file in sources for module in imports(file, library_of)}
        lacking = needed - reached_from(name, targets)
        if lacking:
            missing[name] = sorted(lacking)
    return missing


def reached_from(name: str, targets: Targets) -> set[str]:
    reached: set[str] = set()
    todo = [name]
    while todo:
        label = todo.pop()
        if label not in reached:
            reached.add(label)
            todo += targets[label]["deps"]
    return reached


def imports(file: Path, modules: Collection[str]) -> set[str]:
    """Those of the modules that a file imports, or names as the argument of `python -m`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names.update(name if name in modules else str(node.module) for name in inner)
        elif isinstance(node, ast.Constant) and "." in str(node.value):
            names.add(str(node.value))
    return names & set(modules)


def test_no_file_is_left_out() -> None:
    targets = read_targets(ROOT)
    assert not left_out(ROOT, targets), "each folder has a BUILD file with a target for its files"
    tests = {file.relative_to(ROOT) for file in (ROOT / "tests").rglob("*_test.py")}
    for file in tests:
        assert targets[f"//{file.parent}:{file.stem}"]["rule"] == "py_test"


def test_targets_have_what_they_import() -> None:
    assert missing_deps(ROOT, read_targets(ROOT)) == {}


def test_build_files_are_short() -> None:
    files = [ROOT / "BUILD", *(file for file in ROOT.glob("t*/**/BUILD"))]
    files += [file for folder in FOLDERS[:2] for file in (ROOT / folder).rglob("BUILD")]
    assert sum(len(file.read_text().splitlines()) for file in files) < 400


def test_faults_are_found(tmp_path: Path) -> None:
    files = {
        "tfp_surgery/BUILD": 'py_library(name = "tfp_surgery", srcs = ["__init__.py"])',
        "tfp_surgery/__init__.py": "",
        "tfp_surgery/forgotten.py": "",
        "experiments/BUILD": 'py_library(name = "experiments", srcs = ["script.py"])',
        "experiments/script.py": "import tfp_surgery as tfs",
        "tests/BUILD": 'pytest_tests(deps = [])\npy_library(name = "lib", srcs = ["mnist.py"])',
        "tests/mnist.py": "",
        "tests/base_test.py": "from tests import mnist\ncommand = ['-m', 'experiments.script']",
        "tests/outer/inner_test.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    targets = read_targets(tmp_path)
    assert left_out(tmp_path, targets) == ["tests/outer/inner_test.py", "tfp_surgery/forgotten.py"]
    assert missing_deps(tmp_path, targets) == {
        "//experiments:experiments": ["//tfp_surgery:tfp_surgery"],
        "//tests:base_test": ["//experiments:experiments", "//tests:lib"],
    }
