"""Every module has its py_library and every test file its py_test, with exact deps."""

from __future__ import annotations

import pathlib

import pytest

from tools import bazel_targets

# Not resolved: under Bazel this is the runfiles folder, which holds what the test depends on.
REPOSITORY = pathlib.Path(__file__).absolute().parents[1]


@pytest.fixture
def repository(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small repository with exact BUILD files."""
    files = {
        "tfp_surgery/__init__.py": "from tfp_surgery.outer.inner import thing\n",
        "tfp_surgery/base.py": "import numpy\n",
        "tfp_surgery/outer/inner.py": "from tfp_surgery import base\nfrom ..base import thing\n",
        "experiments/script.py": "import tfp_surgery\nif __name__ == '__main__':\n    pass\n",
        "tests/conftest.py": "",
        "tests/testing/mnist.py": "",
        "tests/base_test.py": "from tfp_surgery.base import thing\n",
        "tests/script_test.py": "command = ['-m', 'experiments.script']\n",
        "tests/outer/inner_test.py": "import tests.testing.mnist\nimport tfp_surgery.outer.inner\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    bazel_targets.write(tmp_path)
    return tmp_path


def build_text(repository: pathlib.Path, folder: str) -> str:
    return (repository / folder / "BUILD").read_text()


def test_build_files_of_this_repository_are_exact() -> None:
    assert (REPOSITORY / "tfp_surgery").is_dir()
    diffs = bazel_targets.differences(REPOSITORY)
    assert not diffs, "run `make build-files`:\n" + "\n".join(diffs)


def test_written_files_have_no_differences_and_are_not_written_again(
    repository: pathlib.Path,
) -> None:
    assert bazel_targets.differences(repository) == []
    assert bazel_targets.write(repository) == []


def test_modules_become_libraries_with_exact_deps(repository: pathlib.Path) -> None:
    assert build_text(repository, "tfp_surgery/outer") == (
        bazel_targets.HEADER + "\n"
        'package(default_visibility = ["//visibility:public"])\n\n'
        "filegroup(\n"
        '    name = "build_inputs",\n'
        '    srcs = glob(["**/*.py"]) + ["BUILD"],\n'
        ")\n\n"
        "py_library(\n"
        '    name = "inner",\n'
        '    srcs = ["inner.py"],\n'
        '    deps = ["//tfp_surgery:base"],\n'
        ")\n"
    )
    package = build_text(repository, "tfp_surgery")
    assert (
        'name = "tfp_surgery",\n    srcs = ["__init__.py"],\n'
        '    deps = ["//tfp_surgery/outer:inner"],\n' in package
    )
    assert 'name = "base",\n    srcs = ["base.py"],\n)' in package


def test_tests_depend_on_what_they_import_and_on_conftest(repository: pathlib.Path) -> None:
    assert (
        "py_test(\n"
        '    name = "inner_test",\n'
        '    size = "medium",\n'
        '    srcs = ["inner_test.py"],\n'
        '    data = ["//:pyproject.toml"],\n'
        "    tags = [\n"
        '        "mnist",\n'
        '        "unit",\n'
        "    ],\n"
        "    deps = [\n"
        '        "//tests:conftest",\n'
        '        "//tests/testing:mnist",\n'
        '        "//tfp_surgery/outer:inner",\n'
        "    ],\n"
        ")\n" in build_text(repository, "tests/outer")
    )


def test_scripts_become_binaries_and_libraries(repository: pathlib.Path) -> None:
    experiments = build_text(repository, "experiments")
    assert (
        'py_binary(\n    name = "script",\n    srcs = ["script.py"],\n'
        '    deps = [":script_lib"],\n)' in experiments
    )
    assert (
        'py_library(\n    name = "script_lib",\n    srcs = ["script.py"],\n'
        '    deps = ["//tfp_surgery"],\n)' in experiments
    )


def test_a_module_named_in_a_string_is_a_dependency(repository: pathlib.Path) -> None:
    tests = build_text(repository, "tests")
    script_test = tests[tests.index('name = "script_test"') :]
    assert '"//experiments:script_lib",' in script_test
    assert 'tags = ["integration"],' in script_test


@pytest.mark.parametrize(
    ("new_file", "target"),
    [
        ("tests/new_test.py", 'name = "new_test"'),
        ("tfp_surgery/new.py", 'name = "new"'),
        ("tfp_surgery/new/module.py", 'name = "module"'),
        ("experiments/new.py", 'name = "new"'),
    ],
)
def test_a_file_without_target_is_a_difference(
    repository: pathlib.Path, new_file: str, target: str
) -> None:
    path = repository / new_file
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    diffs = "\n".join(bazel_targets.differences(repository))
    assert f"+    {target}" in diffs
    assert f'+    srcs = ["{path.name}"]' in diffs


@pytest.mark.parametrize(
    ("old", "new", "diff"),
    [
        ('"//tfp_surgery:base"', '"//tfp_surgery"', '+        "//tfp_surgery:base",'),
        ('        "//tfp_surgery:base",\n', "", '+        "//tfp_surgery:base",'),
        (
            '"//tfp_surgery:base"',
            '"//tfp_surgery:base",\n        "//tools:x"',
            '-        "//tools:x",',
        ),
        ('data = ["//:pyproject.toml"]', "data = []", '+    data = ["//:pyproject.toml"],'),
    ],
)
def test_deps_and_data_that_are_not_exact_are_a_difference(
    repository: pathlib.Path, old: str, new: str, diff: str
) -> None:
    path = repository / "tests/BUILD"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert diff in "\n".join(bazel_targets.differences(repository))


def test_targets_without_a_file_and_folders_without_python_are_removed(
    repository: pathlib.Path,
) -> None:
    (repository / "tests/base_test.py").unlink()
    (repository / "tests/outer/inner_test.py").unlink()
    diffs = "\n".join(bazel_targets.differences(repository))
    assert '-    name = "base_test",' in diffs
    assert '-    name = "inner_test",' in diffs
    bazel_targets.write(repository)
    assert "base_test" not in build_text(repository, "tests")
    assert not (repository / "tests/outer/BUILD").exists()
    assert bazel_targets.differences(repository) == []


def test_what_was_set_by_hand_is_kept(repository: pathlib.Path) -> None:
    path = repository / "tests/BUILD"
    hand_set = (
        path.read_text()
        .replace('size = "medium"', 'size = "large"', 1)
        .replace('data = ["//:pyproject.toml"]', 'data = ["//:README.md"]', 1)
        .replace('tags = ["unit"]', 'tags = ["exclusive", "mnist"]', 1)
        .replace("    deps", "    flaky = False,\n    deps", 1)
    )
    path.write_text(hand_set + '\nexports_files(["notes.txt"])\n')
    bazel_targets.write(repository)
    text = path.read_text()
    assert 'size = "large"' in text
    assert '"//:README.md",\n        "//:pyproject.toml",' in text
    assert 'tags = [\n        "exclusive",\n        "unit",\n    ]' in text
    assert "flaky = False" in text
    assert 'exports_files(["notes.txt"])' in text
    assert bazel_targets.differences(repository) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tests/a_test.py", "import tfp_surgery.absent", "imports tfp_surgery.absent"),
        ("tests/a_test.py", "from tests import base_test", "move what they share"),
        ("tests/a_test.py", "def", "does not parse"),
        ("tests/BUILD", "py_test(", "does not parse"),
        ("tfp_surgery/tfp_surgery.py", "", "two files for the target tfp_surgery"),
    ],
)
def test_what_has_no_targets_is_an_error(
    repository: pathlib.Path, name: str, text: str, message: str
) -> None:
    (repository / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        bazel_targets.differences(repository)


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-m", "not slow"]))
