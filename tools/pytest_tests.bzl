"""Makes the test files of a folder Bazel targets."""

def pytest_tests(deps = [], data = [], large = []):
    """Makes a `py_test` named `x_test` for each file `x_test.py` of the folder.

    pytest runs the file with the options of pyproject.toml, which leave out tests marked slow:
    `bazel test --test_arg=-m --test_arg=slow //tests/networks:all` runs these instead.

    Args:
      deps: The libraries that the files import.
      data: Other files that they read.
      large: Names of the targets that may take 15 minutes; others may take 5.
    """
    files = native.glob(["*_test.py"])
    for name in large:
        if name + ".py" not in files:
            fail("large names " + name + ", and there is no such file")
    for file in files:
        name = file[:-len(".py")]
        native.py_test(
            name = name,
            size = "large" if name in large else "medium",
            srcs = [file, "//tools:pytest_main.py"],
            main = "//tools:pytest_main.py",
            args = ["$(location %s)" % file],
            data = data + ["//:pyproject.toml"],
            deps = deps,
        )
