"""The longest path of a Unix socket, according to the kernel; and a socket without a path."""

import os
import socket
import tempfile

import pytest

from nbdpull.core import unix_socket


@pytest.mark.parametrize("letter", ["a", "\N{LATIN SMALL LETTER A WITH DIAERESIS}"])  # one byte, and two
@pytest.mark.parametrize("more", [0, 1])
def test_paths_that_can_be_bound(tmp_path, monkeypatch, letter, more):
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


@pytest.mark.parametrize("depth", [0, 2])
def test_a_socket_without_a_name(tmp_path, monkeypatch, depth):
    folder = tmp_path.joinpath(*["x" * 100] * depth)
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    listening, way = unix_socket.nameless()
    assert os.listdir(folder) == []
    with listening, socket.socket(socket.AF_UNIX) as client:
        listening.listen()
        client.connect(unix_socket.path_of(way))
        with listening.accept()[0] as accepted:
            accepted.sendall(b"x")
        assert client.recv(1) == b"x"
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(unix_socket.path_of(way))
    os.close(way)
