"""The longest path that a unix socket can have, by the kernel's own word."""

import os
import socket

import pytest

from nbdpull.core import unix_socket


@pytest.mark.parametrize("letter", ["a", "\N{LATIN SMALL LETTER A WITH DIAERESIS}"])  # one byte, and two
@pytest.mark.parametrize("more", [0, 1])
def test_it_is_told_what_can_be_bound(tmp_path, monkeypatch, letter, more):
    monkeypatch.chdir(tmp_path)
    length = unix_socket.PATH_MAX + more
    path = letter * (length // len(os.fsencode(letter)))
    path += "x" * (length - len(os.fsencode(path)))
    assert unix_socket.fits(path) == (more == 0)
    with socket.socket(socket.AF_UNIX) as bound:
        if more:
            with pytest.raises(OSError, match="too long"):
                bound.bind(path)
        else:
            bound.bind(path)
            assert os.listdir() == [path]
