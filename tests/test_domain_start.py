"""Why a domain that is off cannot be started for a pull: libvirt's own reason, and matching advice."""

import os
import subprocess
from pathlib import Path

import pytest
from bed.machine import MIB, wait_for
from command import nbdpull, unfolded
from witness import Witness, assert_refused

libvirt = pytest.importorskip("libvirt")

from nbdpull.hypervisor import domain_start  # noqa: E402  (it needs libvirt)

START_FAILED, BUSY = (6, "start-failed"), (5, "busy")


@pytest.fixture
def off(machine, tmp_path):
    """Factory: the Witness of a machine that is off, with these devices."""

    def make(devices=""):
        vm = machine({"vda": MIB})
        vm.stop()
        xml = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        vm.bed.connection().defineXML(xml.replace("<memballoon", f"{devices}<memballoon"))
        return Witness(vm, tmp_path / "witness")

    return make


def assert_not_started(witness, failure, *says):
    result = assert_refused(witness, *failure, [witness.vm.name, *says], "--offline=start-paused")
    assert "start it first" not in result["message"] and not witness.vm.active
    assert nbdpull("cleanup", witness.vm.name, "-c", witness.vm.bed.uri).stdout == "nothing to clean up\n"


def assert_read_instead(witness, *says):
    """Require a point nevertheless, if a start was not requested explicitly, and a warning that says why it has no
    checkpoint."""
    point = witness.pull()
    (warning,) = witness.result["warnings"]
    assert (witness.result["offline"], point["checkpoint"]) == ("read", None) and not witness.vm.active
    assert "could not be started" in warning and all(text in warning for text in says)
    witness.assert_restores()


@pytest.fixture
def inactive_network(private_libvirt):
    network = private_libvirt.connection().networkDefineXML(
        "<network><name>n1</name><bridge name='virbr77'/></network>"
    )
    yield "n1"
    network.undefine()


def test_its_network_is_not_active(off, inactive_network):
    witness = off(f"<interface type='network'><source network='{inactive_network}'/></interface>")
    assert_not_started(witness, START_FAILED, "network 'n1' is not active", "net-list")
    assert_read_instead(witness, "network 'n1' is not active")


def test_its_bridge_is_missing(off):
    witness = off("<interface type='bridge'><source bridge='nobr0'/></interface>")
    assert_not_started(witness, START_FAILED, "nobr0", "file or a device that its definition names")
    assert_read_instead(witness, "nobr0")


def test_its_iso_was_deleted(off):
    drive = (
        "<disk type='file' device='cdrom'><source file='/gone/x.iso'/><target dev='hda' bus='ide'/><readonly/></disk>"
    )
    witness = off(drive)
    assert_not_started(witness, START_FAILED, "'/gone/x.iso': No such file")
    assert_read_instead(witness, "'/gone/x.iso': No such file")


def test_its_image_was_deleted(off):
    witness = off()
    os.unlink(witness.vm.disks["vda"].path)
    image = str(witness.vm.disks["vda"].path)
    assert_refused(witness, 6, "start-failed", ["No such file", image], "--offline=start-paused")
    assert_refused(witness, 6, "hypervisor", ["could not be started", "cannot be read either: disk vda", image])


def test_a_hook_refuses_it(off, private_libvirt):
    if not private_libvirt.root:
        pytest.skip("a session daemon runs no hooks of the system")
    witness, hook = off(), Path("/etc/libvirt/hooks/qemu")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n[ $2 != prepare ] || { echo not tonight >&2; exit 1; }\n")
    hook.chmod(0o755)
    private_libvirt.restart()  # it looks for hooks when it starts
    try:
        assert_not_started(witness, START_FAILED, "a hook of libvirt refused", "not tonight")
        assert_read_instead(witness, "not tonight")
    finally:
        hook.unlink()
        private_libvirt.restart()


def test_it_runs_on_another_host(off):
    """Its image is locked then. Starting it would be wrong, so nothing advises that."""
    witness = off()
    image = witness.vm.disks["vda"].path
    words = ["qemu-system-x86_64", "-display", "none", "-S", "-nodefaults", "-drive", f"file={image},if=virtio"]
    other = subprocess.Popen([*words, "-pidfile", image.with_suffix(".pid")])
    try:
        wait_for(image.with_suffix(".pid").exists, "the other QEMU")
        assert_not_started(witness, BUSY, "seems to run elsewhere", "do not start it here", str(image))
        assert_refused(witness, *BUSY, ["seems to run elsewhere", "do not start it here", str(image)])
    finally:
        other.kill()
        other.wait()


def test_a_saved_state_is_reported_with_the_right_advice(off):
    witness = off()
    vm = witness.vm
    vm.start()
    vm.resume()
    vm.domain.managedSave(0)
    output = unfolded(nbdpull("doctor", vm.name, "-c", vm.bed.uri).stdout)
    assert "with a saved state (managedsave): a pull reads its images" in output and f"virsh start {vm.name}" in output


@pytest.mark.parametrize(
    "uri, environment, says",
    [
        ("qemu:///session", {}, True),
        ("qemu:///session", {"XDG_RUNTIME_DIR": "/run/user/0"}, False),
        ("qemu:///system", {}, False),
        ("qemu+ssh://host/session", {}, False),
    ],
)
def test_a_foreign_session_is_noticed(monkeypatch, uri, environment, says):
    """As under cron: the daemon that libvirt starts then knows the definitions, and shows all domains as off."""
    monkeypatch.setattr(domain_start.os.path, "isdir", lambda path: path == f"/run/user/{os.geteuid()}")
    assert ("XDG_RUNTIME_DIR is not set" in domain_start.other_session(uri, environment)) is says
