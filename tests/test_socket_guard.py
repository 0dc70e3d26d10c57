"""The guard of a guest whose QEMU its clients must not hang up on, step by step. test_socket_keeper.py starts it."""

import os
import socket
import threading

import pytest
from fake_libvirt import Meddled, error_of, libvirt, raising

from nbdpull.hypervisor import guard, socket_guard
from nbdpull.hypervisor.socket_guard import Connections

RUN = "20261122T194500Z-7f3a9c04"
XML = "<domainbackup><disks><disk><scratch file='/var/tmp/nbdpull-{}-vda.qcow2'/></disk></disks></domainbackup>"
GONE = error_of(libvirt.VIR_ERR_NO_DOMAIN_BACKUP if hasattr(libvirt, "VIR_ERR_NO_DOMAIN_BACKUP") else 104)


def domain(run=RUN, operation=socket_guard.BACKUP, **methods):
    """Return (a domain with a backup job of that run, what was aborted)."""
    aborted = []
    dom = Meddled(
        backupGetXMLDesc=lambda: XML.format(run), jobStats=lambda: {"operation": operation},
        abortJob=lambda: aborted.append(run),
    )  # fmt: skip
    vars(dom).update(methods)
    return dom, aborted


@pytest.mark.parametrize("facts, is_ours", [
    ({}, True),
    ({"run": "20261122T194500Z-00000000"}, False),
    ({"run": RUN + "5"}, False),  # ours is the beginning of it
    ({"operation": 2}, False),  # another job, as the backup has just ended
])  # fmt: skip
def test_only_the_job_of_the_run_is_ended(facts, is_ours):
    dom, aborted = domain(**facts)
    assert socket_guard.asked_to_end(dom, RUN) is dom
    assert aborted == [RUN] * is_ours


@pytest.mark.parametrize("call", ["backupGetXMLDesc", "jobStats", "abortJob"])
@pytest.mark.parametrize("is_connected", [True, False])
def test_a_domain_is_asked_again_as_long_as_its_daemon_answers(monkeypatch, call, is_connected):
    monkeypatch.setattr(guard, "is_connected", lambda _dom: is_connected)
    dom, _ = domain(**{call: raising(GONE)})
    assert socket_guard.asked_to_end(dom, RUN) is (dom if is_connected else None)


def test_no_domain_to_ask():
    assert socket_guard.asked_to_end(None, RUN) is None


# -- the connections ---------------------------------------------------------------------------------------------------


class Bench:
    """Connections in a thread, their parent, and connections to servers."""

    def __init__(self):
        self.parent, its = socket.socketpair()
        self.guarded = Connections()
        self.parent.settimeout(10)
        self._its = its
        self._thread = threading.Thread(target=self.guarded.hold_for, args=(its,))
        self._thread.start()

    def give(self, say=b"k"):
        """Give the guard a connection; return the server's end."""
        ours, server = socket.socketpair()
        ours.setblocking(False)
        server.settimeout(10)
        socket.send_fds(self.parent, [say], [ours.fileno()])
        assert self.parent.recv(1) == say
        if say == b"a":
            ours.close()
        return server, ours

    def end(self):
        self.parent.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def close(self):
        if self._thread.is_alive():
            self.end()
        self._its.close()
        for each in self.guarded._kept:
            os.close(each)


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.close()


MORE = bytes(1 << 20)  # than fits into a socket


def test_without_connections_there_is_nothing_to_guard(bench):
    bench.end()
    assert not bench.guarded.any_open


def test_what_arrives_on_an_abandoned_connection_is_discarded(bench):
    server, _ = bench.give(b"a")
    server.sendall(MORE)  # would block if nobody read it
    server.close()
    assert not bench.guarded.any_open


def test_a_connection_in_use_is_left_to_its_reader(bench):
    server, ours = bench.give()
    server.sendall(b"an answer")
    assert bench.guarded.any_open and ours.recv(20) == b"an answer"
    server.close()
    ours.close()


def test_the_guard_stays_until_every_server_has_hung_up(bench):
    (one, first), (two, second) = bench.give(), bench.give()
    first.close()
    second.close()
    bench.end()
    waiting = threading.Thread(target=bench.guarded.drop_until_hung_up)
    waiting.start()
    one.sendall(MORE)
    one.close()
    two.sendall(MORE)  # it reads on
    assert waiting.is_alive()
    two.close()
    waiting.join(10)
    assert not waiting.is_alive()
