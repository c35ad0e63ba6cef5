"""What `import tfp_surgery` shows and what it loads."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import tfp_surgery as tfs

ROOT = Path(__file__).absolute().parents[1]
SUBPACKAGES = {
    name: vars(tfs)[name] for name in tfs.__all__ if isinstance(vars(tfs)[name], types.ModuleType)
}
FOLDERS = ["", *(part.name for part in pkgutil.walk_packages(tfs.__path__, ".") if part.ispkg)]


def test_beside_public_names_only_subpackages_are_shown() -> None:
    assert set(tfs.__all__) <= set(dir(tfs))
    for name in set(dir(tfs)) - set(tfs.__all__):
        assert hasattr(vars(tfs)[name], "__path__"), name


def test_the_promised_subpackages_are_public() -> None:
    assert {"datasets", "models", "networks", "objectives", "priors"} <= set(SUBPACKAGES)
    assert tfs.models.VAE is tfs.VAE


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_a_public_subpackage_shows_its_public_names_alone(name: str) -> None:
    module = SUBPACKAGES[name]
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)
    if hasattr(module, "__path__"):
        members = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        imported = {
            key for key, value in members.items() if not isinstance(value, types.ModuleType)
        }
        assert imported == set(module.__all__)


def test_a_name_lives_in_one_public_subpackage() -> None:
    names = [name for module in SUBPACKAGES.values() for name in module.__all__]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_in_a_line_what_lives_there(folder: str) -> None:
    doc = importlib.import_module(f"tfp_surgery{folder}").__doc__
    assert doc is not None
    assert "\n" not in doc.strip()


def test_the_version_is_written_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", tfs.__version__)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'version = { attr = "tfp_surgery.__version__" }' in project
    assert tfs.__version__ not in re.findall(r'"([^"]*)"', project)


# The parts of its dependencies that this package loads beside what TensorFlow, TFP and Keras load.
LOADED = """
import json, sys
import keras, tensorflow, tensorflow_probability
before = set(sys.modules)
import tfp_surgery
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_loads_no_optional_library() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.split(".")[0] for name in json.loads(run.stdout)}
    assert "tfp_surgery" in loaded
    heavy = {"h5py", "matplotlib", "numba", "pandas", "sklearn", "tensorflow_datasets"}
    assert not loaded & heavy


def test_one_module_knows_the_inside_of_tfp() -> None:
    """A new TFP is met in one place."""
    inside = re.compile(r"tensorflow_probability(\.| import )python|\btfp\.python")
    folders = ("tfp_surgery", "experiments", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    knowing = [path.name for path in files if inside.search(path.read_text(encoding="utf-8"))]
    assert knowing == ["tfp_internals.py"]
