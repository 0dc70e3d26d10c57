"""The replacement for os.fsync in unit tests returns what os.fsync does."""

import os
import socket

import flush
import pytest


def closed(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


KINDS = {
    "a file": lambda folder: os.open(folder / "file", os.O_WRONLY | os.O_CREAT),
    "a folder": lambda folder: os.open(folder, os.O_RDONLY),
    "a path": lambda folder: os.open(folder, os.O_PATH),
    "a device": lambda folder: os.open("/dev/null", os.O_WRONLY),
    "a socket": lambda folder: socket.socket().detach(),
    "closed": closed,
}


def error_of(call, descriptor):
    try:
        return call(descriptor)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_as_the_real_one(tmp_path, kind):
    descriptor = KINDS[kind](tmp_path)
    assert error_of(flush.skipped, descriptor) == error_of(flush.REAL, descriptor)
    if kind != "closed":
        os.close(descriptor)


def test_it_takes_a_file(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        assert flush.skipped(file) is flush.REAL(file) is None


def test_a_unit_test_has_it():
    assert os.fsync is flush.skipped
