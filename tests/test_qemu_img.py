"""How qemu-img is called, and what becomes of its errors. A script takes its place, and records how it was called."""

import os

import pytest

from nbdpull.core import errors
from nbdpull.images import qemu_img


@pytest.fixture
def program(tmp_path, monkeypatch):
    """program("exit 1"): what qemu-img does from now on; program.calls(): the words of each call."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def does(line):
        (folder / "qemu-img").write_text(f'#!/bin/sh\nprintf "%s|" "$@" >>{calls}; echo >>{calls}\n{line}\n')
        (folder / "qemu-img").chmod(0o755)

    does.calls = lambda: [line.split("|")[:-1] for line in calls.read_text().splitlines()]
    return does


@pytest.mark.parametrize(
    "said, kind, says",
    [
        ("Failed to get shared 'write' lock", errors.Busy, "^/i/a is in use, .*lock.$"),
        ("No space left on device", errors.OutputError, "^qemu-img failed: No space left on device$"),
        ("two\nlines", errors.OutputError, "^qemu-img failed: two lines$"),
    ],
)
def test_its_errors_are_translated(program, said, kind, says):
    program(f'echo "{said}" >&2; exit 1')
    with pytest.raises(kind, match=says) as caught:
        qemu_img.create("/i/a", 1 << 20)
    assert caught.type is kind


def test_where_it_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.MissingSoftware, match="qemu-img .*can be restored without it"):
        qemu_img.virtual_size("/i/a", "qcow2")


def test_a_new_image(program):
    program("")
    qemu_img.create("/i/a", 12345, "-o", "compat=0.10")
    assert program.calls() == [["create", "-q", "-f", "qcow2", "-o", "compat=0.10", "/i/a", "12345"]]


@pytest.mark.parametrize(
    "kind, driver, within", [("qcow2", "qcow2", "encrypt.format=luks,encrypt."), ("raw", "luks", "")]
)
def test_a_new_encrypted_image_is_of_whole_sectors(program, kind, driver, within):
    program("")
    for size in (1024, 1025, 1536):
        qemu_img.create_encrypted("/i/a", size, kind, "/s,t")
    words = [
        "create",
        "-q",
        "--object",
        "secret,id=secret0,file=/s,,t",
        "-f",
        driver,
        "-o",
        f"{within}key-secret=secret0",
    ]
    assert program.calls() == [[*words, "/i/a", size] for size in ("1024", "1536", "1536")]


def test_a_passphrase_that_took_no_time_is_tried_again(program, tmp_path):
    """The kernel counts CPU time by ticks: one time out of ten it counts none, which says nothing about the next
    try."""
    program(
        f'echo x >>{tmp_path}/n; [ $(wc -l <{tmp_path}/n) -ge 5 ] || {{ echo "Unable to get CPU usage" >&2; exit 1; }}'
    )
    qemu_img.create_encrypted("/i/a", 512, "raw", "/s")
    assert len(program.calls()) == 5


@pytest.mark.parametrize("said, tries", [("Unable to get CPU usage", qemu_img.CREATE_TRIES), ("no room", 1)])
def test_it_is_not_tried_for_ever(program, said, tries):
    program(f'echo "{said}" >&2; exit 1')
    with pytest.raises(errors.OutputError, match=said):
        qemu_img.create_encrypted("/i/a", 512, "raw", "/s")
    assert len(program.calls()) == tries


def test_the_size_of_a_disk(program):
    program("""echo '{"virtual-size": 1234567, "format": "qcow2"}'""")
    assert qemu_img.virtual_size("/i/a", "qcow2") == 1234567
    assert program.calls() == [["info", "--output=json", "-f", "qcow2", "/i/a"]]


def test_growth(program):
    program("")
    qemu_img.grow("/i/a", "raw", 4096)
    assert program.calls() == [["resize", "-q", "-f", "raw", "/i/a", "4096"]]
