"""What scripts/install installs for whom, which of that scripts/test requests, and the commands of docs/hacking.md.
Nothing is installed here."""

import os
import re
import shutil
import subprocess

import pytest
from documents import PROJECT, blocks

SCRIPTS = PROJECT / "scripts"
HACKING = (PROJECT / "docs/hacking.md").read_text()
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
    for name in ("install", "in-release"):
        make_echo(tmp_path / "scripts" / name)
    for name in ("python", "ruff", "mypy", "nbdpull"):
        make_echo(tmp_path / ".venv/bin" / name)
    return tmp_path


def make_echo(path):
    """Make a program that only says how it was called."""
    path.write_text('#!/bin/sh\necho "$0" "$@"\n')
    os.chmod(path, 0o755)


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


def test_the_commands_for_developers(project, tmp_path):
    """They install, clone and test: here each says so, and what they name is there."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text(f'#!/bin/sh\necho git "$@"\nln -s {project} "$3"\n')
    os.chmod(tmp_path / "bin/git", 0o755)
    first, second = blocks(HACKING, "sh")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", f"{first}\n{second}"], cwd=tmp_path / "bin", env=environment,
                          capture_output=True, text=True, check=True)  # fmt: skip
    tests = "-m pytest -n 4 --dist loadscope --no-loadscope-reorder"
    assert re.sub(rf"{tmp_path}/(bin/nbdpull/)?", "", done.stdout).splitlines() == [
        "git clone URL nbdpull",
        "scripts/install --test",
        ".venv/bin/python -m pytest tests/test_docs.py",
        "scripts/install --test",
        ".venv/bin/ruff check .",
        ".venv/bin/ruff format --check .",
        ".venv/bin/mypy",
        f".venv/bin/python {tests}",
        f"scripts/in-release trixie .venv/bin/python {tests} tests/test_pull.py",
        "scripts/in-release trixie .venv/bin/nbdpull doctor",
        "scripts/in-release trixie bash",
    ]
    named = {*re.findall(r"\b(?:scripts|tests|docs)/\w[\w/.-]*\w", HACKING)}
    assert len(named) > 20
    assert [name for name in sorted(named) if not (PROJECT / name).exists()] == []


def test_the_variables_for_developers():
    """A variable that makes a test longer is one that this test reads."""
    pairs = re.findall(r"`([A-Z]\w+)(?:=\d+)?`\s\(((?:test_\w+(?:, )?)+)", HACKING)
    assert len(pairs) > 3
    for variable, tests in pairs:
        for name in tests.split(", "):
            [path] = PROJECT.glob(f"tests/**/{name}.py")
            assert f'"{variable}"' in path.read_text(), (variable, name)
