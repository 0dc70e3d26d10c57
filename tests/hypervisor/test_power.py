"""A domain that is off, and whether it may be started. Starts and ends are in test_offline."""

import signal

import pytest
from bed.machine import MIB
from fake_libvirt import raising

from nbdpull.core import errors
from nbdpull.hypervisor import domain
from nbdpull.pulling.holder import Hold
from nbdpull.readiness import domain as readiness
from nbdpull.readiness import finding


def test_a_domain_that_is_off_only_in_this_session(machine, monkeypatch):
    """If another session's libvirt may run it, a pull, a plan or doctor neither starts it nor says that it is off."""
    vm = machine({"vda": MIB})
    vm.stop()
    monkeypatch.setattr(domain.Domain, "other_session", "XDG_RUNTIME_DIR is not set")
    with domain.open(vm.name) as opened:
        with pytest.raises(errors.DomainNotRunning, match="seems to be off: XDG_RUNTIME_DIR is not set"):
            opened.power._require_startable()
        with pytest.raises(errors.DomainNotRunning, match="XDG_RUNTIME_DIR is not set"):
            opened.require_running()
        reported = readiness.off(opened)
        assert (reported.state, reported.advice) == (
            finding.BAD,
            "XDG_RUNTIME_DIR is not set",
        ) and reported.exit_code == 3
    assert not vm.active


def test_a_run_that_was_asked_to_end_does_not_start_the_domain(machine):
    vm = machine({"vda": MIB})
    vm.stop()
    with domain.open(vm.name) as opened:
        opened.heed(raising(errors.Interrupted(signal.SIGTERM)))
        with pytest.raises(errors.Interrupted) as caught, opened.power.awake(True, Hold(None)):
            pass
    assert caught.value.left_behind == () and not vm.active
