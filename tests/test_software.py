"""Missing programs: one line says what to install."""

import pytest

from nbdpull.core import errors, software


@pytest.fixture
def none_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize("program", sorted(software.PACKAGES))
def test_a_program_that_is_not_installed(none_installed, program):
    with pytest.raises(errors.MissingSoftware) as caught:
        software.require(program)
    assert str(caught.value) == f"{program} is not installed: install {software.PACKAGES[program]}"


def test_how_to_do_without_it(none_installed):
    with pytest.raises(errors.MissingSoftware, match=r"\(Fedora, RHEL\); raw images need none$"):
        software.require("qemu-img", "raw images need none")


def test_a_part_that_is_not_installed():
    said = str(software.missing("nbdkit", "nbdkit has no Python plugin"))
    assert said.startswith("nbdkit has no Python plugin: install nbdkit and nbdkit-plugin-python")


def test_a_program_that_is_installed(monkeypatch, tmp_path):
    (tmp_path / "qemu-img").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    software.require("qemu-img")
