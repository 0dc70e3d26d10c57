"""What scripts/install installs for whom, and which of that scripts/test requests. Nothing is installed here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
BINDINGS = ["python3", "python3-venv", "python3-libvirt", "python3-libnbd"]


def packages(kind):
    done = subprocess.run([SCRIPTS / "install", kind, "--packages"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_unit_tests_need_no_hypervisor():
    assert packages("--unit") == [*BINDINGS, "zstd", "age"]


def test_all_tests_need_the_hypervisor_too():
    needed = packages("--test")
    assert needed[:4] == BINDINGS
    assert {"qemu-utils", "nbdkit", "qemu-system-x86", "libvirt-daemon-system"} <= set(needed)


def test_an_unknown_option_names_those_that_there_are():
    done = subprocess.run([SCRIPTS / "install", "--tests"], capture_output=True, text=True)
    said = "scripts/install: unknown option: --tests (there are --test and --unit)\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.fixture
def project(tmp_path):
    """A directory with scripts/test in which everything that it runs only prints how it was called."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "test", tmp_path / "scripts/test")
    for name in ("scripts/install", ".venv/bin/python", ".venv/bin/ruff", ".venv/bin/mypy"):
        (tmp_path / name).write_text('#!/bin/sh\necho "$0" "$@"\n')
        os.chmod(tmp_path / name, 0o755)
    return tmp_path


@pytest.mark.parametrize(
    "args, kind",
    [
        (["-m", "unit"], "--unit"),
        (["-x", "-m", "unit", "tests/test_extents.py"], "--unit"),
        ([], "--test"),
        (["-m", "not unit"], "--test"),
        (["-m", "unit or guest"], "--test"),
        (["tests/test_extents.py", "-k", "unit"], "--test"),
    ],
)
def test_what_is_installed_for_a_run(project, args, kind):
    done = subprocess.run([project / "scripts/test", *args], capture_output=True, text=True, check=True)
    first, *_, last = done.stdout.splitlines()
    assert first == f"scripts/install {kind}"
    assert last.startswith(f"{project}/.venv/bin/python -m pytest ") and last.endswith(" ".join(args))
