"""What is checked before a restored domain is defined, against the real libvirt. Calls are replaced only if libvirt
does not fail on demand."""

import contextlib
import functools
import os

import pytest
import stores
from bed.machine import DOMAIN
from fake_libvirt import Meddled, error_of, libvirt, raising

from nbdpull.core import errors
from nbdpull.hypervisor import domain_boot, domain_define
from nbdpull.operations import restore

UUID = "3e3fce45-4f53-4fa7-bb32-11f34168b82b"


def definition_of(name, uuid=UUID):
    xml = DOMAIN.format(kind="qemu", name=name, memory=16, cpus=1, boot="", devices="")
    return xml.replace("</name>", f"</name><uuid>{uuid}</uuid>")


def meddle(monkeypatch, **methods):
    connected = domain_define.connected

    @contextlib.contextmanager
    def instead(uri=None, *timeout):
        with connected(uri, *timeout) as connection:
            yield Meddled(connection, **methods)

    monkeypatch.setattr(domain_define, "connected", instead)


@pytest.fixture
def meddled(private_libvirt, monkeypatch):
    """meddled(lookupByName=…): every connection from now on has these methods."""
    return functools.partial(meddle, monkeypatch)


@pytest.mark.parametrize("look_up", ["lookupByName", "lookupByUUIDString"])
@pytest.mark.parametrize("code, kind", [
    (libvirt.VIR_ERR_SYSTEM_ERROR, errors.HypervisorError), (libvirt.VIR_ERR_RPC, errors.HypervisorError),
    (libvirt.VIR_ERR_ACCESS_DENIED, errors.AccessDenied), (libvirt.VIR_ERR_OPERATION_TIMEOUT, errors.Busy),
])  # fmt: skip
def test_an_error_is_not_taken_for_a_domain_that_is_not_there(private_libvirt, meddled, look_up, code, kind):
    """Otherwise an existing definition would be replaced without --force."""
    meddled(**{look_up: raising(error_of(code))})
    with pytest.raises(kind, match="cannot look for domain 'new'"):
        domain_define.prepared(definition_of("new"), private_libvirt.uri, force=False)


def test_a_driver_other_than_qemu(monkeypatch):
    """The message says which driver to connect to; it used to say only that pulls need a newer libvirt. The driver for
    tests refused, too; that of libvirt 11 accepts the definition."""
    meddle(monkeypatch, getDomainCapabilities=raising(error_of(libvirt.VIR_ERR_NO_SUPPORT)))
    with pytest.raises(errors.Unsupported, match="connect to libvirt's driver for QEMU, such as qemu:///system"):
        domain_define.prepared(definition_of("new"), "test:///default", force=False)


def test_a_domain_that_is_not_there_can_be_defined(private_libvirt):
    domain_define.prepared(definition_of("new"), private_libvirt.uri, force=False)


def test_a_definition_that_libvirt_refuses_in_the_end(private_libvirt, meddled, tmp_path):
    """Everything is restored, and the message says where."""
    vm = stores.Vm(tmp_path / "store", name="new")
    vm.xml = definition_of("new")
    vm.add_disk("vda", 1 << 20)
    vm.pull()
    meddled(defineXML=raising(error_of(libvirt.VIR_ERR_INTERNAL_ERROR)))
    out = tmp_path / "out"
    request = restore.Options(str(vm.root), output=str(out), define=True, uri=private_libvirt.uri)
    with pytest.raises(errors.HypervisorError, match=f"cannot define domain 'new': .*everything is restored in {out}"):
        restore.restore(request)
    assert sorted(os.listdir(out)) == ["domain.xml", "vda.qcow2"]


# -- a drill's domain -------------------------------------------------------------------------------------------------


def test_an_error_is_not_taken_for_a_guest_that_ended():
    """Otherwise a broken connection would be a verdict on the point."""
    gone = domain_boot.Boot(None, Meddled(None, isActive=raising(error_of(libvirt.VIR_ERR_NO_DOMAIN))))
    assert not gone.active
    lost = domain_boot.Boot(None, Meddled(None, isActive=raising(error_of(libvirt.VIR_ERR_SYSTEM_ERROR))))
    with pytest.raises(errors.HypervisorError, match="cannot check whether the drill's domain runs"):
        assert lost.active


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_OPERATION_INVALID])
def test_an_agent_that_is_not_up_yet(monkeypatch, code):
    monkeypatch.setattr(domain_boot.libvirt_qemu, "qemuAgentCommand", raising(error_of(code)))
    assert not domain_boot.Boot(None, None).agent_answers()


def test_an_agent_that_may_not_be_asked(monkeypatch):
    """Otherwise nbdpull would wait for it in vain, and report the point as bad."""
    denied = error_of(libvirt.VIR_ERR_ACCESS_DENIED)
    monkeypatch.setattr(domain_boot.libvirt_qemu, "qemuAgentCommand", raising(denied))
    with pytest.raises(errors.AccessDenied, match="cannot ask the guest agent"):
        domain_boot.Boot(None, None).agent_answers()
