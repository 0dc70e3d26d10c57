"""A freeze, step by step: a domain that obeys, and a real guard, connected to libvirt's test driver.

faults/test_quiesce.py has a real guest and a real agent.
"""

import pytest
from fake_libvirt import error_of, libvirt, raising

from nbdpull.core import errors
from nbdpull.core.choices import Quiesce
from nbdpull.hypervisor import domain_freeze
from nbdpull.hypervisor.domain_freeze import CRASH_CONSISTENT, FROZEN, Freeze

AUTO, REQUIRE, NEVER = Quiesce.AUTO, Quiesce.REQUIRE, Quiesce.NEVER
TEST_DRIVER = "test:///default"
AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='{}'/></channel>"
UNRESPONSIVE = error_of(libvirt.VIR_ERR_AGENT_UNRESPONSIVE)
REFUSED = error_of(libvirt.VIR_ERR_INTERNAL_ERROR)


class Dom:
    """A domain that records each call that changes something."""

    def __init__(self, state=libvirt.VIR_DOMAIN_RUNNING, agent="connected", freeze=None, thaw=1):
        self.calls, self._state, self._freeze, self._thaw = [], state, freeze, thaw
        self._devices = AGENT.format(agent) if agent else ""

    def name(self):
        return "vm1"

    def UUIDString(self):
        return libvirt.open(TEST_DRIVER).lookupByName("test").UUIDString()

    def state(self):
        return [self._state, 1]

    def XMLDesc(self, _flags):
        return f"<domain><devices>{self._devices}</devices></domain>"

    def agentSetResponseTimeout(self, seconds, _flags):
        self.calls.append(("response", seconds))

    def setMetadata(self, _kind, text, *_args):
        self.calls.append("mark" if text else "no mark")

    def fsFreeze(self):
        self.calls.append("freeze")
        if self._freeze:
            raising(self._freeze)()

    def fsThaw(self):
        self.calls.append("thaw")
        if isinstance(self._thaw, Exception):
            raise self._thaw
        return self._thaw


FREEZING = [("response", 7), "mark", "freeze"]
RESTORED = [("response", -2), "no mark"]  # libvirt's own response time


@pytest.fixture
def freeze():
    """Factory of Freeze; a guard that continues by itself is ended with the test."""
    made = []

    def make(dom, how=AUTO):
        made.append(Freeze(dom, TEST_DRIVER, how, 7))
        return made[-1]

    yield make
    for each in made:
        if each._guard and each._guard.poll() is None:
            each._guard.kill()
            each._guard.wait()


def guards_on(freeze):
    return freeze._guard is not None and freeze._guard.poll() is None


@pytest.mark.parametrize("how", [AUTO, REQUIRE])
def test_frozen_for_the_time_of_one_call(freeze, how):
    dom = Dom()
    with freeze(dom, how) as it:
        assert dom.calls == FREEZING and guards_on(it)
        dom.calls.append("begin")
    assert dom.calls == [*FREEZING, "begin", "thaw", *RESTORED]
    assert (it.consistency, it.reason, it.warnings) == (FROZEN, "", []) and it._guard.returncode == 0


def test_thawed_also_where_the_begin_fails(freeze):
    dom = Dom()
    with pytest.raises(ZeroDivisionError), freeze(dom, REQUIRE):
        raise ZeroDivisionError
    assert dom.calls == [*FREEZING, "thaw", *RESTORED]


@pytest.mark.parametrize(
    "dom, how, reason, warned",
    [
        (Dom(), NEVER, "not-requested", False),
        (Dom(state=libvirt.VIR_DOMAIN_PAUSED), AUTO, "paused", False),
        (Dom(agent=None), AUTO, "no-agent-channel", False),
        (Dom(agent="disconnected"), AUTO, "agent-not-connected", True),
    ],
)
def test_nothing_is_tried_if_there_is_nothing_to_freeze(freeze, dom, how, reason, warned):
    with freeze(dom, how) as it:
        pass
    assert (it.consistency, it.reason, bool(it.warnings), dom.calls) == (CRASH_CONSISTENT, reason, warned, [])


def test_an_agent_that_refuses_has_frozen_nothing(freeze):
    """It has undone what it had frozen: a thaw could undo the freeze of another program."""
    dom = Dom(freeze=REFUSED)
    with freeze(dom) as it:
        pass
    assert dom.calls == [*FREEZING, *RESTORED] and not guards_on(it)
    assert (it.consistency, it.reason) == (CRASH_CONSISTENT, "freeze-failed")


@pytest.mark.parametrize("error", [UNRESPONSIVE, errors.NoAnswer("libvirt did not answer")])
def test_a_freeze_that_may_come_late_keeps_its_guard(freeze, error):
    dom = Dom(freeze=error)
    with freeze(dom) as it:
        pass
    assert dom.calls == FREEZING and guards_on(it), "the mark stays, for the next run"
    assert (it.consistency, it.reason) == (CRASH_CONSISTENT, "agent-unresponsive")


def test_a_thaw_that_fails_is_left_to_the_guard(freeze):
    dom = Dom(thaw=UNRESPONSIVE)
    with freeze(dom) as it:
        pass
    assert dom.calls == [*FREEZING, "thaw"] and guards_on(it)
    assert len(it.warnings) == 1 and "could not be thawed" in it.warnings[0] and it.consistency == FROZEN


def test_a_freeze_that_did_not_last_does_not_count(freeze):
    with freeze(Dom(thaw=0)) as it:
        pass
    assert (it.consistency, it.reason, len(it.warnings)) == (CRASH_CONSISTENT, "thawed-early", 1)


@pytest.mark.parametrize("dom, begun", [(Dom(agent=None), False), (Dom(freeze=REFUSED), False), (Dom(thaw=0), True)])
def test_a_required_freeze_accepts_nothing_less(freeze, dom, begun):
    entered = []
    with pytest.raises(errors.NotQuiesced, match=r"^domain 'vm1' could not be frozen \("), freeze(dom, REQUIRE):
        entered.append(1)
    assert bool(entered) is begun


def test_without_a_guard_nothing_is_frozen(freeze, monkeypatch, tmp_path):
    """If we were killed during a freeze, the guest would remain frozen forever."""
    guard = tmp_path / "guard.py"
    guard.write_text("")
    monkeypatch.setattr(domain_freeze, "_GUARD", guard)
    dom = Dom()
    with freeze(dom) as it:
        pass
    assert "freeze" not in dom.calls and it.reason == "no-freeze-guard" and it.consistency == CRASH_CONSISTENT
