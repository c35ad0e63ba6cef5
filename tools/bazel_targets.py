"""Derives the Bazel targets of this repository from the imports of its Python files.

Every folder with Python files gets a BUILD file with one `py_library` a module, one `py_test` a
test file and one `py_binary` a script, whose deps are exactly the modules that the file names: in
an import, or as a dotted string such as the argument of `python -m`. What the imports cannot tell
(`size`, `tags`, further `data`, a whole target of another rule) is kept from the BUILD file as it
is; everything else in it is rewritten.

    python -m tools.bazel_targets --check    # prints a diff and exits 1 where a BUILD file is off
    python -m tools.bazel_targets --write    # brings the BUILD files up to date
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

from tools.python_modules import SOURCE_FOLDERS, Module, read_modules

HEADER = "# Written by `make build-files`; size, tags, data and other rules' targets are kept.\n"
PACKAGE = 'package(default_visibility = ["//visibility:public"])\n'
TESTS_PACKAGE = """package(
    default_testonly = True,
    default_visibility = ["//visibility:public"],
)
"""
INPUTS = "build_inputs"
DERIVED_TAGS = frozenset({"integration", "mnist", "unit"})
DERIVED_RULES = ("py_binary", "py_library", "py_test")
# The order in which attributes are written; any other stands between `data` and `tags`.
FIRST_ATTRIBUTES = ("name", "size", "srcs", "data")
LAST_ATTRIBUTES = ("tags", "deps")

Attributes = dict[str, str]  # attribute name -> its expression, as written


@dataclasses.dataclass(frozen=True)
class BuildFile:
    """What a BUILD file holds now: attributes by target name, and what is kept word for word."""

    attributes: Mapping[str, Attributes]
    kept: Sequence[str]


def expected_build_files(root: pathlib.Path) -> dict[pathlib.PurePosixPath, str]:
    """The text that every BUILD file of the repository should have.

    Args:
      root: the top folder of the repository.

    Returns:
      The text by path relative to `root`, for the root and each folder with Python files.

    Raises:
      ValueError: if a file does not parse, imports a module of the repository that is not there,
        or two files of a folder would have the same target.
    """
    modules = read_modules(root)
    folders = sorted({module.path.parent for module in modules.values()})
    root_build = pathlib.PurePosixPath("BUILD")
    expected = {root_build: _root_build(folders, _read_build(root, root_build))}
    for folder in folders:
        members = [module for module in modules.values() if module.path.parent == folder]
        build = _read_build(root, folder / "BUILD")
        expected[folder / "BUILD"] = _folder_build(folder, members, modules, build)
    return expected


def differences(root: pathlib.Path) -> list[str]:
    """One unified diff for each BUILD file that is not as its folder's imports ask for.

    Args:
      root: the top folder of the repository.

    Returns:
      The diffs, from the file as it is to the file as it should be; empty where all is exact.

    Raises:
      ValueError: as `expected_build_files`.
    """
    expected = expected_build_files(root)
    expected.update({path: "" for path in _build_paths(root) if path not in expected})
    diffs = []
    for path, wanted in sorted(expected.items()):
        file = root / path
        found = file.read_text(encoding="utf-8") if file.is_file() else ""
        lines = difflib.unified_diff(
            found.splitlines(keepends=True),
            wanted.splitlines(keepends=True),
            fromfile=f"{path} as it is" if file.is_file() else f"{path} (missing)",
            tofile=f"{path} as it should be" if wanted else f"{path} (its folder has no Python)",
        )
        diff = "".join(lines)
        if diff:
            diffs.append(diff)
    return diffs


def write(root: pathlib.Path) -> list[pathlib.PurePosixPath]:
    """Brings the BUILD files up to date and removes those of folders without Python files.

    Args:
      root: the top folder of the repository.

    Returns:
      The paths, relative to `root`, of the files that changed.

    Raises:
      ValueError: as `expected_build_files`.
    """
    expected = expected_build_files(root)
    changed = [path for path in _build_paths(root) if path not in expected]
    for path in changed:
        (root / path).unlink()
    for path, text in expected.items():
        file = root / path
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            changed.append(path)
    return sorted(changed)


def _build_paths(root: pathlib.Path) -> Iterator[pathlib.PurePosixPath]:
    for folder in SOURCE_FOLDERS:
        for file in (root / folder).rglob("BUILD"):
            path = pathlib.PurePosixPath(file.relative_to(root).as_posix())
            if path.parts[:2] != ("tools", "bazel_stand_ins"):
                yield path


def _read_build(root: pathlib.Path, path: pathlib.PurePosixPath) -> BuildFile:
    """What is worth keeping of the BUILD file at `path`, which need not exist."""
    file = root / path
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    attributes: dict[str, Attributes] = {}
    kept = []
    try:
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError(f"{path} does not parse: {error}") from error
    for statement in statements:
        source = ast.get_source_segment(text, statement) or ""
        call = statement.value if isinstance(statement, ast.Expr) else None
        if not isinstance(call, ast.Call):
            kept.append(source)
            continue
        rule = ast.unparse(call.func)
        target = {
            keyword.arg: ast.get_source_segment(text, keyword.value) or ""
            for keyword in call.keywords
            if keyword.arg
        }
        if rule in DERIVED_RULES:
            attributes[ast.literal_eval(target["name"])] = target
        elif rule != "package" and target.get("name") != f'"{INPUTS}"':
            kept.append(source)
    return BuildFile(attributes, kept)


def _root_build(folders: Sequence[pathlib.PurePosixPath], build: BuildFile) -> str:
    inputs = [f"//{folder}:{INPUTS}" for folder in folders]
    sources = _list(["BUILD", *inputs])
    filegroup = _target("filegroup", {"name": f'"{INPUTS}"', "testonly": "True", "srcs": sources})
    return "\n".join([HEADER, PACKAGE, *(f"{text}\n" for text in build.kept), filegroup])


def _folder_build(
    folder: pathlib.PurePosixPath,
    members: Sequence[Module],
    modules: Mapping[str, Module],
    build: BuildFile,
) -> str:
    inputs = {"name": f'"{INPUTS}"', "srcs": 'glob(["**/*.py"]) + ["BUILD"]'}
    targets: dict[str, str] = {INPUTS: _target("filegroup", inputs)}

    def add(rule: str, name: str, module: Module, deps: Sequence[str]) -> None:
        if name in targets:
            raise ValueError(f"{folder} has two files for the target {name}: rename one of them.")
        attributes = dict(build.attributes.get(name, {}))
        attributes["name"] = f'"{name}"'
        attributes["srcs"] = _list([module.path.name])
        attributes["deps"] = _list(deps)
        if rule == "py_test":
            attributes.setdefault("size", '"medium"')
            attributes["data"] = _list({"//:pyproject.toml", *_strings(attributes, "data")})
            kept_tags = set(_strings(attributes, "tags")) - DERIVED_TAGS
            attributes["tags"] = _list(kept_tags | _derived_tags(module))
        targets[name] = _target(rule, attributes)

    for module in members:
        deps = _dependencies(module, modules)
        labels = [dependency.label_from(folder) for dependency in deps]
        add("py_test" if module.is_test else "py_library", module.target, module, labels)
        if module.is_binary:
            add("py_binary", module.path.stem, module, [f":{module.target}"])
    package = TESTS_PACKAGE if folder.parts[0] == "tests" else PACKAGE
    kept = [f"{text}\n" for text in build.kept]
    return "\n".join([HEADER, package, *kept, *targets.values()])


def _dependencies(module: Module, modules: Mapping[str, Module]) -> list[Module]:
    names = set(module.imports) - {module.name}
    if module.is_test:  # pytest imports the conftest.py of every folder above
        conftests = (".".join([*folder.parts, "conftest"]) for folder in module.path.parents)
        names.update(name for name in conftests if name in modules)
    dependencies = [modules[name] for name in sorted(names)]
    for dependency in dependencies:
        if dependency.is_test:
            raise ValueError(
                f"{module.path} imports the test {dependency.path}: move what they share to "
                "tests/testing."
            )
    return dependencies


def _derived_tags(module: Module) -> set[str]:
    imported = {tuple(name.split(".")) for name in module.imports}
    tags = {"integration" if any(name[0] == "experiments" for name in imported) else "unit"}
    return tags | {"mnist"} if ("tests", "testing", "mnist") in imported else tags


def _strings(attributes: Attributes, name: str) -> list[str]:
    value = ast.literal_eval(attributes.get(name, "[]"))
    return [str(item) for item in value]


def _list(items: Sequence[str] | set[str]) -> str:
    """A Starlark list as buildifier writes it: files, then labels of the folder, then others."""
    ordered = sorted(set(items), key=lambda item: (item.startswith("//"), item.split(":")))
    if len(ordered) < 2:
        return f'["{ordered[0]}"]' if ordered else "[]"
    return "[\n" + "".join(f'        "{item}",\n' for item in ordered) + "    ]"


def _target(rule: str, attributes: Mapping[str, str]) -> str:
    others = [name for name in attributes if name not in FIRST_ATTRIBUTES + LAST_ATTRIBUTES]
    order = [*FIRST_ATTRIBUTES, *sorted(others), *LAST_ATTRIBUTES]
    present = [name for name in order if attributes.get(name, "[]") != "[]"]
    lines = [f"    {name} = {attributes[name]},\n" for name in present]
    return f"{rule}(\n{''.join(lines)})\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks or writes the BUILD files; returns the exit code."""
    parser = argparse.ArgumentParser(description="BUILD files from the imports of Python files.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit 1 where a BUILD file is off")
    action.add_argument("--write", action="store_true", help="bring the BUILD files up to date")
    options = parser.parse_args(arguments)
    root = pathlib.Path(__file__).resolve().parents[1]
    try:
        if options.write:
            for path in write(root):
                print(f"changed {path}")
            return 0
        diffs = differences(root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if diffs:
        print("\n".join(diffs))
        print("BUILD files do not match the imports: run `make build-files`.", file=sys.stderr)
    return 1 if diffs else 0


if __name__ == "__main__":
    sys.exit(main())
