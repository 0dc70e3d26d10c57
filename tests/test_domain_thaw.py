"""The guard of a frozen guest, step by step. test_domain_freeze.py starts it; faults/test_quiesce.py kills its
parent."""

import os
import sys
from types import SimpleNamespace

import pytest
from fake_libvirt import error_of, libvirt

from nbdpull.hypervisor import domain_thaw, guard

MARK = "urn:mark"
THAWED = ["thaw", ("response", -2), ("mark", None)]
NO_DOMAIN, NO_AGENT = error_of(libvirt.VIR_ERR_NO_DOMAIN), error_of(libvirt.VIR_ERR_AGENT_UNRESPONSIVE)


class Dom:
    """fails: what the first calls of fsThaw raise; is_active: whether it runs, or the error of asking."""

    def __init__(self, *fails, is_active=True):
        self.calls, self._fails, self._is_active = [], list(fails), is_active

    def fsThaw(self):
        if self._fails:
            raise self._fails.pop(0)
        self.calls.append("thaw")

    def agentSetResponseTimeout(self, seconds):
        self.calls.append(("response", seconds))

    def setMetadata(self, kind, text, _key, uri, flags):
        assert (kind, flags) == (libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE) and uri == MARK
        self.calls.append(("mark", text))

    def isActive(self):
        if isinstance(self._is_active, Exception):
            raise self._is_active
        return self._is_active


@pytest.fixture
def clock(monkeypatch):
    """Time passes only while the guard sleeps; `clock.now`."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds):
        clock.now += seconds

    monkeypatch.setattr(domain_thaw, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


@pytest.fixture
def thaw(clock, monkeypatch):
    """Return thaw(domain, …): thaw it; further domains, or errors, are what looking it up again brings."""

    def call(dom, *again, is_connected=True):
        found = list(again)

        def look_up(_uri, _uuid):
            each = found.pop(0) if len(found) > 1 else found[0]
            if isinstance(each, Exception):
                raise each
            return each

        monkeypatch.setattr(guard, "look_up", look_up)
        monkeypatch.setattr(guard, "is_connected", lambda _dom: is_connected)
        domain_thaw.thaw(dom, "uri", "uuid", MARK)

    return call


def test_a_guest_is_thawed_and_its_mark_removed(thaw, clock):
    dom = Dom()
    thaw(dom)
    assert dom.calls == THAWED and clock.now == 0


def test_an_agent_that_hangs_may_come_back(thaw, clock):
    dom = Dom(*[NO_AGENT] * 5)
    thaw(dom)
    assert dom.calls == THAWED and clock.now == 5 * domain_thaw.PAUSE


def test_an_agent_that_never_comes_back(thaw, clock):
    dom = Dom(*[NO_AGENT] * 10_000)
    thaw(dom)
    assert dom.calls == [] and clock.now == domain_thaw.GIVE_UP


def test_a_daemon_that_restarts_is_connected_again(thaw, clock):
    """It does not answer at once."""
    second = Dom()
    thaw(Dom(error_of(libvirt.VIR_ERR_INTERNAL_ERROR)), None, None, second, is_connected=False)
    assert second.calls == THAWED and clock.now == 3 * domain_thaw.PAUSE


def test_a_daemon_that_did_not_answer_at_the_start(thaw, clock):
    dom = Dom()
    thaw(None, None, dom)
    assert dom.calls == THAWED


@pytest.mark.parametrize("dom, again", [
    (Dom(NO_DOMAIN), [None]),
    (Dom(NO_AGENT, is_active=False), [None]),
    (Dom(NO_AGENT, is_active=NO_DOMAIN), [None]),
    (None, [NO_DOMAIN]),
])  # fmt: skip
def test_a_guest_that_has_ended_needs_no_thaw(thaw, clock, dom, again):
    thaw(dom, *again)
    assert clock.now == 0 and (dom is None or dom.calls == [])


# -- what its parent says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said, is_done", [
    (b"frozen\ndone\n", True),
    (b"frozen\n", False),  # the parent was killed
    (b"", True),  # before it froze anything: a frozen guest is frozen by somebody else
    (b"done\n", True),
    (b"frozen\nwhat\n", False),
])  # fmt: skip
def test_what_the_parent_says(monkeypatch, said, is_done):
    end, begin = os.pipe()
    os.write(begin, said)
    os.close(begin)
    with os.fdopen(end, "rb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        monkeypatch.setattr(domain_thaw, "line", pipe.readline)
        assert domain_thaw.wait_for_done(60) is is_done


def test_a_parent_that_is_silent_for_too_long(monkeypatch):
    end, begin = os.pipe()
    os.write(begin, b"frozen\n")
    with os.fdopen(end, "rb", buffering=0) as pipe, os.fdopen(begin, "wb"):
        monkeypatch.setattr(sys, "stdin", pipe)
        monkeypatch.setattr(domain_thaw, "line", pipe.readline)
        assert domain_thaw.wait_for_done(0) is False
