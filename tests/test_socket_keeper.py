"""When connections have to be kept, and that they are. What a real QEMU makes of it is in faults/test_iothreads.py."""

import json
import select
import socket
import sys
import time
from types import SimpleNamespace

import pytest
from fake_nbd import FakeServer

from nbdpull import errors, route, socket_keeper

source = pytest.importorskip("nbdpull.source")

MIB = 1 << 20
PLAIN, TLS = route.Route(), route.Route(certificates="/tls")


def disk(target, iothread):
    return SimpleNamespace(target=target, iothread=iothread)


@pytest.mark.parametrize("threads", ["", "a", "b", "ab"])
@pytest.mark.parametrize("version", [(6, 1, 0), (7, 2, 22), (8, 2, 9), (9, 0, 0), (10, 0, 13), None])
@pytest.mark.parametrize("way", [PLAIN, TLS], ids=["plain", "tls"])
@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_where_it_is_required(threads, version, way, remote):
    vm = SimpleNamespace(name="vm1", running_version=version, is_remote=remote)
    disks = [disk(f"vd{letter}", letter in threads) for letter in "ab"]
    deadly = bool(threads) and (version is None or version < (9, 0))
    if deadly and (remote or way is TLS):
        with pytest.raises(
            errors.Unsupported, match=rf"disk {', '.join(f'vd{each}' for each in threads)} of .*iothread"
        ):
            socket_keeper.required(vm, disks, way)
    else:
        assert socket_keeper.required(vm, disks, way) == deadly


class Keeper:
    """Holds what it is given, and counts."""

    def __init__(self):
        self.kept = []

    def keep(self, connected):
        self.kept.append(connected.dup())

    def hung_up(self):
        """Of the connections whose other end is closed."""
        poll = select.poll()
        for each in self.kept:
            poll.register(each, select.POLLRDHUP)
        return len(poll.poll(0))


def all_data(context, offset, length):
    return [(length, 0)]


def test_a_source_leaves_the_hanging_up_to_the_server(tmp_path):
    keeper = Keeper()
    with FakeServer(tmp_path / "s", MIB, all_data, lambda offset, length: b"x" * length) as server:
        with source.Source(source.Kept(str(tmp_path / "s"), keeper), "vda", connections=3) as opened:
            assert opened.read(0, 70000) == b"x" * 70000
        assert (len(keeper.kept), keeper.hung_up()) == (3, 0)
        asked = server.asked
        time.sleep(0.05)  # no goodbye comes later, either
        assert server.asked == asked and keeper.hung_up() == 0
    assert keeper.hung_up() == 3


def test_a_source_that_fails_does_not_hang_up(tmp_path):
    """libnbd closes its own descriptor at what the protocol forbids."""
    keeper = Keeper()
    with FakeServer(tmp_path / "s", MIB, all_data, lambda offset, length: b"x" * (length - 1)):
        with pytest.raises(errors.SourceError), source.Source(source.Kept(str(tmp_path / "s"), keeper), "x") as opened:
            opened.read(0, 4096)
        assert keeper.kept and keeper.hung_up() == 0


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(source.ConnectionLost, match="connecting failed"):
        source.Source(source.Kept(str(tmp_path / "none"), Keeper()), "x")


def test_a_guard_that_cannot_be(monkeypatch):
    """It is known before a job is begun."""
    keeper = socket_keeper.SocketKeeper("test:///no/such/file", "no-uuid", "R")
    with pytest.raises(errors.HypervisorError, match="cannot connect to libvirt"), keeper:
        pytest.fail("there is no guard")


# The same protocol as the real guard's, without libvirt: it tells how many descriptors it got, in a file.
GUARD = """
import json, socket, sys
parent = socket.socket(fileno=0)
while parent.recv(1) != b"\\n":
    pass
parent.sendall(b"y")
got = 0
while True:
    said, descriptors, _, _ = socket.recv_fds(parent, 1, 1)
    if not said:
        break
    got += len(descriptors)
    json.dump(got, open(sys.argv[1], "w"))
    parent.sendall(said)
"""


@pytest.fixture
def keeper(tmp_path):
    keeper = socket_keeper.SocketKeeper("any:///", "uuid", "run")
    keeper._command = [sys.executable, "-c", GUARD, str(tmp_path / "got")]
    return keeper


def test_a_guard_that_was_killed_is_replaced(keeper, tmp_path):
    pairs = [socket.socketpair() for _ in range(3)]
    with keeper:
        for ours, _ in pairs[:2]:
            keeper.keep(ours)
        assert json.loads((tmp_path / "got").read_text()) == 2
        keeper.check()
        first = keeper._guard
        first.kill()
        first.wait()
        keeper.check()
        assert keeper._guard.pid != first.pid and json.loads((tmp_path / "got").read_text()) == 2
        keeper._guard.kill()
        keeper.keep(pairs[2][0])  # at this moment, too
        assert json.loads((tmp_path / "got").read_text()) == 3
        second = keeper._guard
        for ours, its in pairs:
            ours.close()
            its.close()
    assert second.returncode == 0, "it was waited for, as the server had hung up"
    keeper.check()  # after the end nothing is to be guarded


def test_where_the_server_does_not_hang_up_the_guard_stays(keeper, monkeypatch):
    monkeypatch.setattr(socket_keeper, "HANG_UP", 0.05)
    ours, its = socket.socketpair()
    with keeper:
        keeper.keep(ours)
        guard = keeper._guard
        ours.close()
    its.setblocking(False)
    guard.wait(10)  # this one goes when its input ends, and only then
    assert its.recv(1) == b""
