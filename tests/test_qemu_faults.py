"""Which QEMUs crash at what; faults/test_iothreads.py has a real one."""

from types import SimpleNamespace

import pytest

from nbdpull.hypervisor import qemu_faults

# version: (hang-up, pause, TLS handshake, TLS of a disk in an I/O thread), by the commits that docs/faults.md names
KNOWN = {
    (6, 1, 0): (True, True, False, False),
    (7, 2, 22): (True, True, False, False),
    (8, 0, 0): (True, True, True, False),
    (8, 1, 5): (True, True, True, False),
    (8, 2, 0): (True, True, True, True),
    (8, 2, 2): (True, True, True, True),
    (8, 2, 3): (False, False, True, True),
    (8, 2, 4): (False, False, False, True),
    (8, 2, 5): (False, False, False, False),
    (8, 2, 10): (False, False, False, False),
    (9, 0, 0): (False, False, True, True),
    (9, 0, 1): (False, False, False, False),
    (9, 1, 0): (False, False, False, False),
    (10, 0, 13): (False, False, False, False),
}
ASKED = qemu_faults.hang_up, qemu_faults.pause, qemu_faults.tls_handshake, qemu_faults.tls_in_thread


@pytest.mark.parametrize("version", KNOWN)
def test_versions(version):
    assert tuple(ask(version) for ask in ASKED) == KNOWN[version]


def test_an_unknown_version_may_crash_at_a_hang_up():
    assert [ask(None) for ask in ASKED] == [True, False, False, False]


def disk(target, iothread=True):
    return SimpleNamespace(target=target, iothread=iothread, bus="virtio" if target.startswith("v") else "scsi")


@pytest.mark.parametrize("version", KNOWN)
@pytest.mark.parametrize("tls", [False, True])
def test_what_cannot_be_prevented_is_a_warning(version, tls):
    vm = SimpleNamespace(likely_version=version, reads_images=False)
    _, pause, handshake, _ = KNOWN[version]
    warnings = qemu_faults.warnings(vm, [disk("vda"), disk("vdb", False), disk("sda"), disk("vdc")], tls)
    assert len(warnings) == pause + (tls and handshake)
    assert all("QEMU " + ".".join(map(str, version)) in each and "crash" in each for each in warnings)
    assert any(each.startswith("disk vda, vdc:") and "paused or rebooted" in each for each in warnings) == pause
    assert any(each.startswith("--tls:") for each in warnings) == (tls and handshake)


def test_the_version_is_not_queried_if_nothing_can_happen():
    vm = SimpleNamespace(reads_images=False)
    assert qemu_faults.warnings(vm, [disk("vda", False), disk("sda")], False) == []
    assert qemu_faults.warnings(SimpleNamespace(reads_images=True), [disk("vda")], False) == []
