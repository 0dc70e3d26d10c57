"""States of a domain in words, and which error its end is."""

import pytest

from nbdpull.core import errors

libvirt = pytest.importorskip("libvirt")

from nbdpull.hypervisor import domain_state  # noqa: E402  (it needs libvirt)
from nbdpull.hypervisor.domain_state import State  # noqa: E402


@pytest.mark.parametrize(
    "state, words, off",
    [
        ((1, 1), "running", False),
        ((3, 5), "paused (by an I/O error)", False),
        ((3, 99), "paused", False),
        ((5, 3), "shut off", True),
        ((6, 1), "crashed", False),  # of a guest that panicked QEMU may be kept
        ((99, 0), "in no known state", False),
        ((None,), "gone", True),
    ],
)
def test_state_in_words(state, words, off):
    assert (str(State(*state)), State(*state).off) == (words, off)


@pytest.mark.parametrize(
    "state, kind, says",
    [
        ((5, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED), errors.DomainCrashed, "QEMU of domain 'vm1' crashed or was killed"),
        ((5, libvirt.VIR_DOMAIN_SHUTOFF_FAILED), errors.DomainCrashed, "crashed"),
        ((5, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN), errors.DomainStopped, "was shut down by its guest"),
        ((5, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED), errors.DomainStopped, "was destroyed"),
        ((5, libvirt.VIR_DOMAIN_SHUTOFF_SAVED), errors.DomainStopped, "was saved (as by virsh save)"),
        ((5, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED), errors.DomainStopped, "was migrated"),
        ((5, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN), errors.DomainStopped, "domain 'vm1' ended during"),
        ((None,), errors.DomainStopped, "domain 'vm1' ended during"),
    ],
)
def test_an_end_is_reported_with_its_reason(state, kind, says):
    error = domain_state.ended("vm1", State(*state))
    assert type(error) is kind and says in str(error) and "start it first" not in str(error)
