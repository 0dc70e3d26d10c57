"""Opening a domain: whether it exists, whether it may be used, and the bindings for that."""

import importlib
import sys
from types import SimpleNamespace

import pytest
from backup_rig import plan
from fake_libvirt import Meddled, error_of, libvirt, raising

from nbdpull.core import errors
from nbdpull.hypervisor import connection, domain


def test_no_such_domain_names_those_that_exist(shared):
    with pytest.raises(errors.NoSuchDomain, match=f"no domain 'vm-none' at .*{shared.name}"), domain.open("vm-none"):
        pass


def test_only_some_of_many_domains_are_named():
    """A message is one line, even on a host of two hundred."""
    names = [SimpleNamespace(name=lambda number=number: f"vm{number:03}") for number in range(200)]
    missing = raising(error_of(libvirt.VIR_ERR_NO_DOMAIN))
    host = Meddled(None, lookupByName=missing, listAllDomains=lambda: names, getURI=lambda: "qemu:///system")
    with pytest.raises(errors.NoSuchDomain, match="it has vm000, .*, vm009 and 190 more$"):
        connection.look_up(host, "vm1")


def test_a_domain_of_the_system_that_is_looked_for_in_the_session():
    missing = raising(error_of(libvirt.VIR_ERR_NO_DOMAIN))
    session = Meddled(None, lookupByName=missing, listAllDomains=lambda: [], getURI=lambda: "qemu:///session")
    with pytest.raises(errors.NoSuchDomain, match="it has none; VMs of the system are at -c qemu:///system"):
        connection.look_up(session, "vm1")


@pytest.mark.parametrize("uri", ["qemu:///nowhere", "qemu+unix:///system?socket=/no/such/sock", "nonsense://"])
def test_no_such_hypervisor(uri, capfd):
    with pytest.raises(errors.HypervisorError, match="cannot connect to libvirt at"), domain.open("vm", uri):
        pass
    assert capfd.readouterr() == ("", "")


def test_no_permission_to_write(shared, scratch, monkeypatch):
    monkeypatch.setattr(libvirt, "open", libvirt.openReadOnly)
    with domain.open(shared.name) as vm, pytest.raises(errors.AccessDenied), vm.backups.begun(plan(scratch)):
        pass


def test_missing_bindings(monkeypatch):
    monkeypatch.setitem(sys.modules, "libvirt", None)
    monkeypatch.delitem(sys.modules, "nbdpull.hypervisor.bindings")
    with pytest.raises(errors.MissingSoftware, match="python3-libvirt .* libvirt-python"):
        importlib.import_module("nbdpull.hypervisor.bindings")
