"""Runs pytest on the files and options of the command line: the main of every Bazel test."""

from __future__ import annotations

import sys

import pytest

if __name__ == "__main__":
    exit_code = pytest.main(sys.argv[1:])
    # Where `-m` leaves out all tests of a file, the file was imported and nothing is wrong.
    sys.exit(0 if exit_code == pytest.ExitCode.NO_TESTS_COLLECTED else exit_code)
