"""The Python files of this repository and which of them each one names."""

from __future__ import annotations

import ast
import dataclasses
import pathlib

SOURCE_FOLDERS = ("benchmarks", "experiments", "tests", "tfp_surgery", "tools")


@dataclasses.dataclass(frozen=True)
class Module:
    """One Python file: where it is, what it is, and which modules of the repository it names."""

    path: pathlib.PurePosixPath  # relative to the root
    is_script: bool
    imports: frozenset[str]

    @property
    def name(self) -> str:
        return _dotted_name(self.path)

    @property
    def is_test(self) -> bool:
        return self.path.stem.endswith("_test")

    @property
    def is_binary(self) -> bool:
        return self.is_script and self.path.parts[0] not in ("tests", "tfp_surgery")

    @property
    def target(self) -> str:
        """The name of the target that others depend on to import this module."""
        if self.path.stem == "__init__":
            return self.path.parent.name
        return f"{self.path.stem}_lib" if self.is_binary else self.path.stem

    def label_from(self, folder: pathlib.PurePosixPath) -> str:
        """The shortest Bazel label of `target` in the BUILD file of `folder`."""
        if self.path.parent == folder:
            return f":{self.target}"
        if self.path.parent.name == self.target:
            return f"//{self.path.parent}"
        return f"//{self.path.parent}:{self.target}"


def read_modules(root: pathlib.Path) -> dict[str, Module]:
    """Reads the Python files of the repository.

    Args:
      root: the top folder of the repository.

    Returns:
      The modules by dotted name, in the order of their paths.

    Raises:
      ValueError: if a file does not parse, or imports a module of the repository that is not there.
    """
    files = sorted(file for folder in SOURCE_FOLDERS for file in (root / folder).rglob("*.py"))
    paths = [pathlib.PurePosixPath(file.relative_to(root).as_posix()) for file in files]
    names = frozenset(map(_dotted_name, paths))
    modules: dict[str, Module] = {}
    for file, path in zip(files, paths, strict=True):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except SyntaxError as error:
            raise ValueError(f"{path} does not parse: {error}") from error
        module = Module(path, _is_script(tree), _imports(tree, path, names))
        modules[module.name] = module
    return modules


def _dotted_name(path: pathlib.PurePosixPath) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if path.stem == "__init__" else parts)


def _is_script(tree: ast.Module) -> bool:
    tests = (ast.unparse(node.test) for node in tree.body if isinstance(node, ast.If))
    return any("__name__" in test and "__main__" in test for test in tests)


def _imports(
    tree: ast.Module, path: pathlib.PurePosixPath, names: frozenset[str]
) -> frozenset[str]:
    """The dotted names, out of `names`, that the file at `path` imports or names in a string."""
    found = set()

    def add(name: str, line: int) -> None:
        if name in names:
            found.add(name)
        elif name.split(".", maxsplit=1)[0] in SOURCE_FOLDERS:
            raise ValueError(f"{path}:{line} imports {name}, and the repository has no such file.")

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.parts[: len(path.parts) - node.level]) if node.level else ""
            origin = ".".join(part for part in (package, node.module) if part)
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                add(submodule if submodule in names else origin, node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            found.update({node.value} & names)
    return frozenset(found)
