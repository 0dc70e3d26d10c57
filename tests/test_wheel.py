"""The wheel: what is built and installed has every module, and runs without this checkout."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


def run(*words, **options):
    return subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True, timeout=100, **options)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(python of an empty venv that has the wheel and nothing else, the folder of its packages)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    shutil.copytree(PROJECT / "nbdpull", source / "nbdpull", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source)
    [wheel] = folder.glob("nbdpull-*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv/bin/python"
    [packages] = (folder / "venv/lib").glob("python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages, wheel)
    return python, packages


def test_every_module_is_installed(installed):
    _, packages = installed
    here = {path.relative_to(PROJECT) for path in (PROJECT / "nbdpull").rglob("*.py")}
    assert {path.relative_to(packages) for path in (packages / "nbdpull").rglob("*.py")} == here


def test_its_schemas_are_installed(installed):
    _, packages = installed
    here = {path.name: path.read_bytes() for path in (PROJECT / "nbdpull/schemas").glob("*.json")}
    assert here
    assert {path.name: path.read_bytes() for path in (packages / "nbdpull/schemas").glob("*.json")} == here


def test_its_types_are_installed(installed):
    """PEP 561: without that file, mypy ignores the annotations."""
    _, packages = installed
    assert (packages / "nbdpull/py.typed").read_bytes() == b""


def test_it_runs_without_this_checkout(installed, tmp_path):
    python, packages = installed
    assert run(python, "-m", "nbdpull", "--version", cwd=tmp_path).stdout.startswith("nbdpull ")
    found = json.loads(
        run(python, "-c", "import json, nbdpull; print(json.dumps(nbdpull.__path__))", cwd=tmp_path).stdout
    )
    assert found == [str(packages / "nbdpull")]
