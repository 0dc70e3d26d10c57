"""The version of the running QEMU, with a program in its place: a copy of the shell as its executable."""

import os
import shutil
import subprocess

import pytest

from nbdpull.hypervisor import qemu_process


@pytest.fixture
def session(tmp_path, monkeypatch):
    """The directory in which a session's libvirt records process ids."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "libvirt/qemu/run"
    folder.mkdir(parents=True)
    return folder


def test_folders_of_a_session_and_of_the_system(session, monkeypatch):
    assert qemu_process._folder(True) == str(session) and qemu_process._folder(False) == "/run/libvirt/qemu"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert qemu_process._folder(True) == f"/run/user/{os.geteuid()}/libvirt/qemu/run"


def test_the_executable_that_runs_is_asked_also_where_its_file_is_gone(session, tmp_path):
    """bash prints its version as QEMU does."""
    output = subprocess.run(["bash", "--version"], capture_output=True, text=True).stdout
    version = tuple(map(int, output.partition("version ")[2].partition("(")[0].split(".")))
    program = tmp_path / "program"
    shutil.copy(shutil.which("bash"), program)
    with subprocess.Popen([program, "-c", "read line"], stdin=subprocess.PIPE) as running:
        (session / "vm1.pid").write_text(f"{running.pid}\n")
        program.unlink()
        assert qemu_process.version("vm1", True) == version
        running.stdin.close()
    assert qemu_process.version("vm1", True) is None, "it has ended"


@pytest.mark.parametrize("text", ["", "no number", "999999999"])
def test_nothing_is_made_up(session, text):
    (session / "vm1.pid").write_text(text)
    assert qemu_process.version("vm1", True) is None
    assert qemu_process.version("vm2", True) is None


def test_a_program_that_reports_no_version(session):
    with subprocess.Popen(["sleep", "60"]) as running:
        (session / "vm1.pid").write_text(str(running.pid))
        try:
            assert qemu_process.version("vm1", True) is None
        finally:
            running.kill()
