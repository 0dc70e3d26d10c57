"""When connections have to be kept open, and that they are. faults/test_iothreads.py shows what a real QEMU does."""

import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from bed.machine import wait_for
from fake_nbd import FakeServer
from stores import package_environment

from nbdpull.core import errors
from nbdpull.hypervisor import socket_keeper

source = pytest.importorskip("nbdpull.nbd.source")
from nbdpull.nbd import address, source_connection  # noqa: E402

MIB = 1 << 20


def disk(target, iothread):
    return SimpleNamespace(target=target, iothread=iothread)


DEADLY, MENDED = [(6, 1, 0), (7, 2, 22), (8, 1, 9), (8, 2, 2), None], [(8, 2, 5), (8, 2, 9), (9, 0, 1), (10, 0, 13)]
DEADLY_WITH_TLS = [(8, 2, 3), (8, 2, 4), (9, 0, 0)]


@pytest.mark.parametrize("threads", ["", "a", "b", "ab"])
@pytest.mark.parametrize("version", [*DEADLY, *DEADLY_WITH_TLS, *MENDED])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_versions_that_require_it(threads, version, tls, remote):
    vm = SimpleNamespace(name="vm1", running_version=version, is_remote=remote, reads_images=False)
    disks = [disk(f"vd{letter}", letter in threads) for letter in "ab"]
    deadly = bool(threads) and version in DEADLY
    if deadly and (remote or tls) or threads and version in DEADLY_WITH_TLS and tls:
        with pytest.raises(
            errors.Unsupported, match=rf"disk {', '.join(f'vd{each}' for each in threads)} of .*iothread"
        ):
            socket_keeper.required(vm, disks, tls)
    else:
        assert socket_keeper.required(vm, disks, tls) == deadly


class Keeper:
    """A keeper that holds the sockets that it is given, and counts them."""

    def __init__(self):
        self.kept, self.abandoned = [], []

    def keep(self, connected):
        self.kept.append(connected.dup())
        return self.kept[-1]

    def abandon(self, kept):
        self.abandoned.append(kept)

    def hung_up(self):
        """Return the connections whose other end is closed."""
        poll = select.poll()
        for each in self.kept:
            poll.register(each, select.POLLRDHUP)
        return len(poll.poll(0))


def all_data(context, offset, length):
    return [(length, 0)]


def test_a_source_leaves_the_hanging_up_to_the_server(tmp_path):
    keeper = Keeper()
    with FakeServer(tmp_path / "s", MIB, all_data, lambda offset, length: b"x" * length) as server:
        with source.Source(address.Kept(str(tmp_path / "s"), keeper), "vda", connections=3) as opened:
            assert opened.read(0, 70000) == b"x" * 70000
        assert (len(keeper.kept), keeper.hung_up()) == (3, 0)
        asked = server.asked
        time.sleep(0.05)  # no goodbye comes later, either
        assert server.asked == asked and keeper.hung_up() == 0
        assert sorted(keeper.abandoned, key=id) == sorted(keeper.kept, key=id)
    assert keeper.hung_up() == 3


def test_a_source_that_fails_does_not_hang_up(tmp_path):
    """libnbd closes its own descriptor when the protocol is violated."""
    keeper = Keeper()
    with FakeServer(tmp_path / "s", MIB, all_data, lambda offset, length: b"x" * (length - 1)):
        with pytest.raises(errors.SourceError), source.Source(address.Kept(str(tmp_path / "s"), keeper), "x") as opened:
            opened.read(0, 4096)
        assert keeper.kept and keeper.hung_up() == 0 and set(keeper.kept) == set(keeper.abandoned)


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(source_connection.ConnectionLost, match="connecting failed"):
        source.Source(address.Kept(str(tmp_path / "none"), Keeper()), "x")


def test_a_guard_that_cannot_be_started(monkeypatch):
    """This is noticed before a job is started."""
    keeper = socket_keeper.SocketKeeper("test:///no/such/file", "no-uuid", "R")
    with pytest.raises(errors.HypervisorError, match="cannot connect to libvirt"), keeper:
        pytest.fail("there is no guard")


# The guard itself, with libvirt's test driver: its domain has no job that could be ended.


@pytest.fixture
def keeper():
    connection = pytest.importorskip("libvirt").open("test:///default")
    return socket_keeper.SocketKeeper("test:///default", connection.lookupByName("test").UUIDString(), "run")


@pytest.fixture
def server():
    """Both ends of a connection, like those of a client and a server."""
    ours, its = socket.socketpair()
    ours.setblocking(False)
    its.settimeout(10)
    with ours, its:
        yield ours, its


MORE = bytes(4 * MIB)  # than fits into a socket


def test_a_guard_that_was_killed_is_replaced(keeper):
    pairs = [socket.socketpair() for _ in range(3)]
    with keeper:
        names = [keeper.keep(ours) for ours, _ in pairs[:2]]
        keeper.abandon(names[0])
        keeper.check()
        first = keeper._guard
        first.kill()
        first.wait()
        keeper.check()
        second = keeper._guard
        assert second.pid != first.pid
        pairs[0][1].settimeout(10)
        pairs[0][1].sendall(MORE)  # the second knows what was abandoned before its time
        second.kill()
        keeper.keep(pairs[2][0])  # killed at this very moment
        third = keeper._guard
        for ours, its in pairs:
            ours.close()
            its.close()
    assert third.returncode == 0, "it was waited for, as the server had hung up"
    keeper.check()  # after the end nothing is to be guarded
    assert keeper._guard is third


def test_unread_answers_are_received(keeper, server):
    """A QEMU that has to wait for room in a socket hangs, together with its guest."""
    ours, its = server
    with keeper:
        name = keeper.keep(ours)
        its.send(b"an answer")
        assert ours.recv(9) == b"an answer", "the guard has left it alone"
        keeper.abandon(name)
        its.sendall(MORE)
        its.shutdown(socket.SHUT_RDWR)


def test_where_the_server_does_not_hang_up_the_guard_stays(keeper, server, monkeypatch):
    monkeypatch.setattr(socket_keeper, "HANG_UP", 0.05)
    ours, its = server
    with keeper:
        keeper.keep(ours)
        guard = keeper._guard
        ours.close()
    its.sendall(MORE)  # and takes what comes
    assert guard.poll() is None
    its.close()
    assert guard.wait(10) == 0


def test_a_guard_holds_on_when_we_are_killed(tmp_path, server):
    ours, its = server
    code = """
import socket, sys, time, libvirt
from nbdpull.hypervisor import socket_keeper
uuid = libvirt.open("test:///default").lookupByName("test").UUIDString()
with socket_keeper.SocketKeeper("test:///default", uuid, "run") as keeper:
    keeper.keep(socket.socket(fileno=int(sys.argv[1])))
    print(keeper._guard.pid, flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(ours.fileno())], pass_fds=[ours.fileno()],
                               stdout=subprocess.PIPE, env=package_environment())  # fmt: skip
    guard = int(process.stdout.readline())
    ours.close()
    process.kill()
    process.communicate()
    its.sendall(MORE)
    assert Path(f"/proc/{guard}").exists()
    its.close()
    wait_for(lambda: not Path(f"/proc/{guard}").exists(), "end of the guard")
