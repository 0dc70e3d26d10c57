"""The connection to libvirt: every call ends, and a connection that breaks with its daemon is made again."""

import signal
import threading
import time

import pytest
from fake_libvirt import error_of, libvirt, raising

from nbdpull.core import errors
from nbdpull.hypervisor import domain_link

BROKEN = error_of(libvirt.VIR_ERR_RPC)


class Host:
    """The result of libvirt.open: each connection has what the test defines, and lives until `die`."""

    def __init__(self):
        self.opened, self.up, self.calls = [], True, []

    def open(self, _uri):
        if not self.up:
            raise BROKEN
        self.opened.append(Connection(self))
        return self.opened[-1]


class Connection:
    def __init__(self, host):
        self._host, self.alive = host, True

    def isAlive(self):
        return self.alive

    def getLibVersion(self):
        return 9_000_000

    def close(self):
        self._host.calls.append("close")

    def _called(self, name):
        self._host.calls.append(name)
        if not self.alive:
            raise BROKEN
        return name

    def listAllDomains(self):
        return self._called("listAllDomains")

    def backupBegin(self):  # of a domain, really: what counts is the name
        return self._called("backupBegin")


@pytest.fixture
def host(monkeypatch):
    host = Host()
    monkeypatch.setattr(domain_link.libvirt, "open", host.open)
    for name in ("LOOK_INTERVAL", "DAEMON_WAIT"):
        monkeypatch.setattr(domain_link, name, 0.01)
    monkeypatch.setattr(domain_link, "AFTER_SILENCE", 10)  # what answers may be slow, beside a load
    return host


@pytest.fixture
def impatient(monkeypatch):
    """impatient(): from now on, do not wait for a silent daemon."""
    return lambda: monkeypatch.setattr(domain_link, "AFTER_SILENCE", 0.01)


@pytest.fixture
def forever():
    """A call that does not end before the test does."""
    over = threading.Event()
    yield lambda: over.wait(30)
    over.set()


def test_a_call_returns_its_result(host):
    link = domain_link.Link(None, 30)
    assert link.bounded(lambda a, b: a + b, 2, 3) == 5
    with pytest.raises(ZeroDivisionError):
        link.bounded(lambda: 1 // 0)


def test_a_call_that_does_not_end(host, forever):
    link = domain_link.Link(None, 0.01)
    with pytest.raises(errors.NoAnswer, match="libvirt did not answer within 0.02 s; QEMU or libvirt hangs"):
        link.bounded(forever)
    link.close()
    assert host.calls == [], "close would wait for what hangs"


def test_a_hanging_daemon_is_detected_once(host, forever, impatient, monkeypatch):
    link = domain_link.Link(None, 0.01)
    impatient()
    monkeypatch.setattr(Connection, "getLibVersion", lambda _self: forever())
    with pytest.raises(errors.NoAnswer, match="libvirt's daemon hangs"):
        link.bounded(forever)
    with pytest.raises(errors.NoAnswer, match="libvirt's daemon hangs"):
        link.bounded(lambda: pytest.fail("it was called"))


def test_a_signal_is_noticed_while_a_call_hangs(host, forever, impatient):
    def check():
        raise errors.Interrupted(signal.SIGTERM)

    link = domain_link.Link(None, 30, check)
    impatient()
    with pytest.raises(errors.Interrupted):
        link.bounded(forever)
    with link.ignoring_check(), pytest.raises(errors.NoAnswer):
        assert link.timeout == domain_link.AFTER_SIGNAL
        link.timeout = 0.01
        link.bounded(forever)
    assert (link.check, link.timeout) == (check, 30)


def test_a_call_that_breaks_with_its_daemon_is_repeated(host):
    link = domain_link.Link(None, 30)
    connection = link.connection()
    host.opened[0].alive = False
    assert connection.listAllDomains() == "listAllDomains"
    assert (len(host.opened), host.calls) == (2, ["listAllDomains", "listAllDomains"])
    assert connection.listAllDomains() == "listAllDomains" and len(host.opened) == 2


@pytest.mark.parametrize("name", domain_link.NOT_REPEATED)
def test_a_call_that_may_have_taken_effect_is_not_repeated(host, monkeypatch, name):
    monkeypatch.setattr(Connection, name, lambda self: self._called(name), raising=False)
    connection = domain_link.Link(None, 30).connection()
    host.opened[0].alive = False
    with pytest.raises(libvirt.libvirtError):
        getattr(connection, name)()
    assert (len(host.opened), host.calls) == (2, [name]), "who cleans up finds a connection"


def test_an_error_of_a_connection_that_lives_is_no_reason_for_another(host, monkeypatch):
    refused = raising(error_of(libvirt.VIR_ERR_OPERATION_INVALID))
    monkeypatch.setattr(Connection, "listAllDomains", lambda _self: refused())
    with pytest.raises(libvirt.libvirtError):
        domain_link.Link(None, 30).connection().listAllDomains()
    assert len(host.opened) == 1


def test_a_daemon_that_stays_away(host):
    link = domain_link.Link(None, 0.03)
    host.opened[0].alive = host.up = False
    with pytest.raises(errors.NoAnswer, match="libvirt's daemon is gone and did not come back within 0.03 s"):
        link.connection().listAllDomains()
    began = time.monotonic()
    with pytest.raises(errors.NoAnswer, match="libvirt's daemon is gone"):
        link.connection().listAllDomains()
    assert host.calls == ["listAllDomains"] and time.monotonic() - began < 20


def test_several_threads_connect_once(host):
    link = domain_link.Link(None, 30)
    connections = [link.connection() for _ in range(8)]
    host.opened[0].alive = False
    threads = [threading.Thread(target=each.listAllDomains) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(host.opened) == 2
