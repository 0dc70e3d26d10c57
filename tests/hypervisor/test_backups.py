"""What must hold before a backup is started, and where its socket is created."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from backup_rig import RUN, plan
from bed.machine import MIB

from nbdpull.core import errors, unix_socket
from nbdpull.hypervisor import domain


def test_socket_path_is_libvirts_own_for_the_domain(vm):
    if vm.uri == "qemu:///system":
        assert Path(vm.backups.socket_path(RUN)).parent.is_dir()
        assert Path(vm.backups.socket_path(RUN)).parent.name == f"domain-{vm.id}-{vm.name[:20]}"
    assert RUN in vm.backups.socket_path(RUN)


@pytest.mark.parametrize("uri, name", [
    ("qemu:///session", "vm1"), ("qemu+ssh://host/system", "\N{FULL BLOCK}" * 20), ("qemu+ssh://host/system", "a\tb"),
])  # fmt: skip
def test_socket_path_without_such_a_place(vm, monkeypatch, uri, name):
    monkeypatch.setattr(vm, "uri", uri)
    monkeypatch.setattr(vm, "name", name)
    assert vm.backups.socket_path(RUN) == f"/var/tmp/nbdpull-{RUN}.sock"


def test_not_running(machine, scratch):
    made = machine({"vda": MIB})
    made.create_checkpoint("c")
    made.stop()
    with domain.open(made.name) as vm:
        for call in (vm.require_running, vm.jobs.require_idle, lambda: vm.checkpoints.delete("c")):
            with pytest.raises(errors.DomainNotRunning, match="is not running: start it"):
                call()
        with pytest.raises(errors.DomainNotRunning), vm.backups.begun(plan(scratch)):
            pass
        assert vm.checkpoints.names() == ["c"] and vm.jobs.backup() is None and vm.id == -1


def test_missing_base(vm, scratch):
    with (
        pytest.raises(errors.NoSuchCheckpoint, match="'chk9'; it has foreign"),
        vm.backups.begun(plan(scratch, since="chk9")),
    ):
        pass


def test_base_that_does_not_cover_the_disk(machine, scratch):
    made = machine({"vda": MIB, "vdb": MIB})
    made.create_checkpoint("c", ["vda"])
    with (
        domain.open(made.name) as vm,
        pytest.raises(errors.CheckpointUnusable),
        vm.backups.begun(plan(scratch, since="c")),
    ):
        pass


def test_checkpoint_that_exists_is_left_alone(vm, scratch, shared):
    with (
        pytest.raises(errors.CheckpointExists, match="'foreign'"),
        vm.backups.begun(plan(scratch, checkpoint="foreign")),
    ):
        pass
    assert "foreign" in shared.bitmaps("vda")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "\N{LATIN SMALL LETTER A WITH DIAERESIS}"])
def test_impossible_checkpoint_name(vm, scratch, name):
    with pytest.raises(errors.UsageError, match="checkpoint name"), vm.backups.begun(plan(scratch, checkpoint=name)):
        pass


@pytest.mark.parametrize("socket", ["relative.sock", "/" + "x" * unix_socket.PATH_MAX])
def test_impossible_socket(vm, scratch, socket):
    with pytest.raises(errors.UsageError, match="absolute .* 107"), vm.backups.begun(plan(scratch, socket=socket)):
        pass


@pytest.mark.parametrize("where", ["socket", "scratch_dir"])
def test_a_path_that_xml_cannot_express(vm, scratch, where):
    """libvirt would write the tab unchanged, and read it as a space: the job was not the requested one."""
    asked = replace(plan(scratch), **{where: f"{scratch}/a\tb"})
    with (
        pytest.raises(errors.UsageError, match=r"a\\tb' cannot be written into libvirt's XML"),
        vm.backups.begun(asked),
    ):
        pass


def test_socket_that_exists_is_left_alone(vm, scratch):
    precious = scratch / "precious"
    precious.write_text("x")
    with pytest.raises(errors.OutputExists), vm.backups.begun(plan(scratch, socket=str(precious))):
        pass
    assert precious.read_text() == "x"


@pytest.mark.parametrize("options", [{"socket": "/no/such/place/x.sock"}, {"scratch": "/no/such/place"}])
def test_place_that_qemu_cannot_use(vm, scratch, options):
    options = plan(**{"scratch": scratch, **options})
    with (
        pytest.raises(errors.HypervisorError, match="cannot start a backup.*/no/such/place"),
        vm.backups.begun(options),
    ):
        pass
    assert os.listdir(scratch) == []
