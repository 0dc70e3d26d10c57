"""The seam to libvirt against the real one; a call is meddled with only where libvirt does not fail on demand."""

import errno
import importlib
import itertools
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from bed.machine import MIB, Disk, wait_for
from fake_libvirt import Meddled, error_of, libvirt, raising

from nbdpull.core import errors, unix_socket
from nbdpull.definitions import domain_xml
from nbdpull.hypervisor import backup_spec, backup_traces, connection, domain
from nbdpull.readiness import domain as readiness
from nbdpull.readiness import finding

RUN = "20261122T194500Z-7f3a9c0d11223344"


@pytest.fixture(scope="module")
def shared(private_libvirt, tmp_path_factory):
    """A machine for the tests that leave it as it was."""
    from bed.machine import Machine

    disks = {"vda": 8 * MIB, "vdb": Disk(MIB, "raw")}
    with Machine(private_libvirt, tmp_path_factory.mktemp("images"), disks) as machine:
        machine.create_checkpoint("foreign")
        yield machine


@pytest.fixture
def vm(shared):
    with domain.open(shared.name) as vm:
        yield vm
        assert_idle(vm, ["foreign"])


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def plan(scratch, disks=("vda", "vdb"), since=None, run_id=RUN, **options):
    options = {"checkpoint": f"auto-{run_id}", "checkpoint_disks": ["vda"], **options}
    return backup_spec.BackupSpec(run_id, {disk: since for disk in disks}, scratch_dir=str(scratch), **options)


def assert_idle(vm, checkpoints):
    assert vm.jobs.backup() is None
    vm.jobs.require_idle()
    assert vm.checkpoints.names() == checkpoints
    assert not os.path.lexists(vm.backups.socket_path(RUN))


def backup(vm, plan):
    """A whole backup without a reader; the checkpoint made."""
    with vm.backups.begun(plan) as job:
        job.finish()
        return job.checkpoint


# Opening


def test_no_such_domain_names_those_that_exist(shared):
    with pytest.raises(errors.NoSuchDomain, match=f"no domain 'vm-none' at .*{shared.name}"), domain.open("vm-none"):
        pass


def test_of_many_domains_some_are_named():
    """A message is a line, also on a host of two hundred."""
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


def test_a_domain_that_is_off_in_this_session_alone(machine, monkeypatch):
    """Neither started nor called off, by a pull, a plan or doctor, where another session's libvirt may run it."""
    vm = machine({"vda": MIB})
    vm.stop()
    monkeypatch.setattr(domain.Domain, "other_session", "XDG_RUNTIME_DIR is not set")
    with domain.open(vm.name) as opened:
        with pytest.raises(errors.DomainNotRunning, match="seems to be off: XDG_RUNTIME_DIR is not set"):
            opened.power._require_startable()
        with pytest.raises(errors.DomainNotRunning, match="XDG_RUNTIME_DIR is not set"):
            opened.require_running()
        told = readiness.off(opened)
        assert (told.state, told.advice) == (finding.BAD, "XDG_RUNTIME_DIR is not set") and told.exit_code == 3
    assert not vm.active


@pytest.mark.parametrize("uri", ["qemu:///nowhere", "qemu+unix:///system?socket=/no/such/sock", "nonsense://"])
def test_no_such_hypervisor(uri, capfd):
    with pytest.raises(errors.HypervisorError, match="cannot connect to libvirt at"), domain.open("vm", uri):
        pass
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody without permission")
def test_no_permission_to_connect(shared):
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setuid(65534)
            with domain.open(shared.name):
                os._exit(1)
        except errors.AccessDenied as error:
            os._exit(0 if "group libvirt" in str(error) else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_permission_to_write(shared, scratch, monkeypatch):
    monkeypatch.setattr(libvirt, "open", libvirt.openReadOnly)
    with domain.open(shared.name) as vm, pytest.raises(errors.AccessDenied), vm.backups.begun(plan(scratch)):
        pass


def test_missing_bindings(monkeypatch):
    monkeypatch.setitem(sys.modules, "libvirt", None)
    monkeypatch.delitem(sys.modules, "nbdpull.hypervisor.bindings")
    with pytest.raises(errors.MissingSoftware, match="python3-libvirt .* libvirt-python"):
        importlib.import_module("nbdpull.hypervisor.bindings")


@pytest.mark.parametrize("code, number, kind", [
    (88, -1, errors.AccessDenied),
    (45, -1, errors.AccessDenied),
    (79, -1, errors.AccessDenied),
    (94, -1, errors.AccessDenied),
    (38, errno.EACCES, errors.AccessDenied),
    (38, errno.ECONNREFUSED, errors.HypervisorError),
    (3, -1, errors.Unsupported),
    (84, -1, errors.Unsupported),
    (92, -1, errors.Unsupported),
    (68, -1, errors.Busy),
    (109, -1, errors.CheckpointUnusable),
    (1, -1, errors.HypervisorError),
])  # fmt: skip
def test_begin_error_by_code(vm, scratch, code, number, kind):
    vm.dom = Meddled(vm.dom, backupBegin=raising(error_of(code, number)))
    with pytest.raises(kind) as caught, vm.backups.begun(plan(scratch)):
        pass
    assert caught.type is kind
    assert vm.name in str(caught.value) and "(libvirt's words in lines)" in str(caught.value)
    assert isinstance(caught.value.__cause__, libvirt.libvirtError)
    assert caught.value.left_behind == ()


def test_hypervisor_that_can_do_no_backups():
    with domain.open("test", "test:///default") as vm, pytest.raises(errors.Unsupported, match="needs? libvirt 7.6"):
        vm.jobs.require_idle()


# Facts


def test_facts(vm, shared):
    assert (vm.name, vm.uuid, vm.uri) == (shared.name, shared.uuid, shared.bed.uri)
    assert vm.active and vm.id == shared.domain.ID() and not vm.is_remote
    assert set(vm.versions) == {"libvirt", "qemu"}
    assert tuple(map(int, vm.versions["libvirt"].split("."))) >= (7, 6, 0)
    assert vm.supports_checkpoints
    assert f"<name>{vm.name}</name>" in vm.domain_xml() and "<alias" not in vm.domain_xml()
    assert f"<name>{vm.name}</name>" in vm.live_xml() and "<alias" in vm.live_xml()
    vm.require_running()


def test_daemon_too_old_for_checkpoints(vm):
    vm.connection = Meddled(vm.connection, getLibVersion=lambda: 7_005_000)
    assert not vm.supports_checkpoints


def test_disks(machine):
    made = machine({"vda": 3 * MIB, "vdb": Disk(MIB + 512, "raw"), "vdc": Disk(MIB, options="compat=0.10")})
    made.stop()
    for xml in (
        "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>",
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{made.disks['vda'].path}'/>"
        "<target dev='sdb' bus='scsi'/><readonly/><shareable/></disk>",
    ):
        made.domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    with domain.open(made.name) as vm:
        told = vm.disks()
        disks = {disk.target: disk for disk in told if disk.empty}
        disks |= {disk.target: disk for disk in vm.looked_at(disk for disk in told if not disk.empty)}
    assert all(not disk.size and disk.bitmaps is None for disk in told)
    assert {target: (disk.format, disk.size, disk.bitmaps) for target, disk in disks.items()} == {
        "vda": ("qcow2", 3 * MIB, True),
        "vdb": ("raw", MIB + 512, False),
        "vdc": ("qcow2", MIB, False),
        "sdb": ("qcow2", 3 * MIB, True),
        "hda": ("raw", 0, None),
    }
    assert disks["vda"].source == str(made.disks["vda"].path)
    assert [target for target, disk in disks.items() if disk.readonly] == ["hda", "sdb"]
    assert [target for target, disk in disks.items() if disk.empty] == ["hda"]


def test_size_of_a_grown_disk(machine):
    made = machine({"vda": MIB})
    made.resize("vda", 2 * MIB)
    with domain.open(made.name) as vm:
        assert vm.looked_at(vm.disks())[0].size == 2 * MIB


def test_an_image_that_hangs_is_given_up(machine, tmp_path):
    """A pipe without a writer stands for a file system that does not answer: who opens it waits for ever."""
    made, pipe = machine({"vda": MIB}), tmp_path / "pipe"
    os.mkfifo(pipe)
    with domain.open(made.name, stall_timeout=1) as vm:
        (disk,) = vm.disks()
        with pytest.raises(errors.NoAnswer, match=f"disk vda cannot be read .{pipe}: .* within 1 s.*--exclude vda"):
            vm.looked_at([replace(disk, source=str(pipe))])


def test_an_upgrade_does_not_hide_which_qemu_runs(machine, monkeypatch):
    """On this host its executable tells, on another one QEMU itself; libvirt tells of what is installed."""
    vm = machine({"vda": MIB})
    installed = vm.bed.connection().getVersion()
    running = (installed // 1_000_000, installed // 1000 % 1000, installed % 1000)
    with domain.open(vm.name) as opened:
        monkeypatch.setattr(domain.Domain, "versions", {"libvirt": "99.0.0", "qemu": "99.0.0"})
        assert opened.running_version == opened.likely_version == running
        monkeypatch.setattr(opened, "uri", "qemu+ssh://root@host/system")
        assert opened.is_remote and opened.running_version == opened.likely_version == running
        vm.stop()
        assert opened.running_version is None and opened.likely_version == (99, 0, 0)


@pytest.mark.parametrize("uri, shown", [
    ("qemu+ssh://backup:geheim@hv1:2222/system?keyfile=/k", "qemu+ssh://backup@hv1:2222/system?keyfile=/k"),
    ("qemu+ssh://backup@hv1/system", "qemu+ssh://backup@hv1/system"), ("qemu:///system", "qemu:///system"),
])  # fmt: skip
def test_no_password_of_a_uri_is_kept(vm, monkeypatch, uri, shown):
    monkeypatch.setattr(vm, "uri", uri)
    assert vm.shown_uri == shown


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


# Checkpoints


def test_checkpoint(vm):
    checkpoint = vm.checkpoints.get("foreign")
    assert (checkpoint.name, checkpoint.disks, checkpoint.run_id) == ("foreign", {"vda": True}, None)
    assert abs(checkpoint.creation_time - time.time()) < 600
    assert vm.uuid in checkpoint.xml


def test_no_such_checkpoint_names_those_that_exist(vm):
    with pytest.raises(errors.NoSuchCheckpoint, match="no checkpoint 'chk9'; it has foreign"):
        vm.checkpoints.get("chk9")


def remove_bitmap(machine, disk, name):
    serial = next(block for block in machine.qmp("query-block") if disk in str(block["inserted"]["image"]["filename"]))
    machine.qmp("block-dirty-bitmap-remove", node=serial["inserted"]["node-name"], name=name)


def test_broken_bitmap_is_seen_and_refused(machine, scratch):
    made = machine({"vda": MIB, "vdb": MIB})
    made.create_checkpoint("base")
    remove_bitmap(made, "vdb", "base")
    with domain.open(made.name) as vm:
        assert vm.checkpoints.get("base").disks == {"vda": True, "vdb": False}
        with pytest.raises(errors.CheckpointUnusable), vm.backups.begun(plan(scratch, since="base")):
            pass
        assert_idle(vm, ["base"])


def test_bitmaps_after_a_crash_are_unusable(machine):
    made = machine({"vda": MIB})
    made.create_checkpoint("base")
    made.stop()
    made.start()
    with domain.open(made.name) as vm:
        assert vm.checkpoints.get("base").disks == {"vda": True}
        made.kill()
        assert vm.checkpoints.get("base").disks == {"vda": None}
        made.start()
        assert vm.checkpoints.get("base").disks == {"vda": False}
        assert vm.checkpoints.delete("base")
    assert made.bitmaps("vda") == {}


def test_delete_checkpoint(machine):
    made = machine({"vda": MIB})
    made.create_checkpoint("a")
    with domain.open(made.name) as vm:
        assert vm.checkpoints.delete("a") is True
        assert vm.checkpoints.delete("a") is False
    assert made.bitmaps("vda") == {}


@pytest.mark.parametrize("broken", [["vda"], ["vdb"], ["vda", "vdb"]])
def test_delete_checkpoint_of_which_a_bitmap_is_gone(machine, broken):
    made = machine({"vda": MIB, "vdb": MIB})
    for name in "abc":
        made.create_checkpoint(name)
    for disk in broken:
        remove_bitmap(made, disk, "b")
    with domain.open(made.name) as vm:
        assert vm.checkpoints.delete("b") is True
        assert vm.checkpoints.names() == ["a", "c"]
        assert vm.checkpoints.get("c").disks == {"vda": True, "vdb": True}
    assert set(made.bitmaps("vda")) == set(made.bitmaps("vdb")) == {"a", "c"}


def test_checkpoints_oldest_first_whoever_is_whose_child(machine):
    made = machine({"vda": MIB})
    made.create_checkpoint("one")
    time.sleep(1.1)  # libvirt tells whole seconds
    made.create_checkpoint("two")
    with domain.open(made.name) as vm:
        xml = vm.checkpoints.get("one").xml
        made.domain.checkpointLookupByName("one").delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        made.domain.checkpointCreateXML(xml, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)
        assert vm.checkpoints.names() == ["one", "two"]


# A backup


def test_full_then_incremental(machine, scratch):
    made = machine({"vda": 8 * MIB, "vdb": Disk(MIB, "raw")})
    made.create_checkpoint("foreign1")
    time.sleep(1.1)
    with domain.open(made.name) as vm:
        with vm.backups.begun(plan(scratch, description="<hello>")) as job:
            assert job.exports == {"vda": ("vda", None), "vdb": ("vdb", None)}
            assert job.socket == vm.backups.socket_path(RUN) and os.path.exists(job.socket)
            assert sorted(os.listdir(scratch)) == [f"nbdpull-{RUN}-vda.scratch", f"nbdpull-{RUN}-vdb.scratch"]
            assert job.checkpoint.disks == {"vda": True}
            assert job.checkpoint.description == f"nbdpull run {RUN} <hello>"
            job.require_alive()
            made.write("vda", 0, 200 * 1024)
            assert job.stats() == {"scratch_bytes": 256 * 1024}
            job.finish()
            assert job.stats() == {"scratch_bytes": 256 * 1024}
        assert os.listdir(scratch) == []
        assert_idle(vm, ["foreign1", f"auto-{RUN}"])
        second = plan(scratch, ["vda"], since=f"auto-{RUN}", run_id="R2", checkpoint=None)
        with vm.backups.begun(second) as job:
            assert job.exports == {"vda": ("vda", "nbdpull-R2-vda")}
            assert job.checkpoint is None
            job.finish()
        assert_idle(vm, ["foreign1", f"auto-{RUN}"])


def test_own_socket(vm, tmp_path):
    socket = str(tmp_path / "own.sock")
    with vm.backups.begun(plan(tmp_path, ["vda"], socket=socket)) as job:
        assert job.socket == socket and os.path.exists(socket)
    assert not os.path.exists(socket)


def test_left_without_finish(vm, scratch):
    with vm.backups.begun(plan(scratch)) as job:
        pass
    assert not job.finished and os.listdir(scratch) == []


@pytest.mark.parametrize("reason", [errors.SourceError("lost"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("finish", [False, True])
def test_left_by_an_exception(vm, scratch, reason, finish):
    with pytest.raises(type(reason)) as caught, vm.backups.begun(plan(scratch)) as job:
        if finish:
            job.finish()
        raise reason
    assert caught.value is reason and getattr(reason, "left_behind", ()) == ()
    assert os.listdir(scratch) == []


def test_the_first_error_is_not_hidden_and_leftovers_are_told(machine, scratch):
    made = machine({"vda": MIB})
    with domain.open(made.name) as vm:
        with pytest.raises(errors.OutputError) as caught, vm.backups.begun(plan(scratch, ["vda"])):
            made.stop()
            raise errors.OutputError("the disk is full")
        assert caught.value.left_behind == (
            f"checkpoint 'auto-{RUN}' is left behind because the domain is off: "
            "the next pull removes it once the domain runs",
        )
        assert os.listdir(scratch) == []


def test_leftovers_alone_are_an_error(vm, scratch):
    with pytest.raises(errors.HypervisorError, match="checkpoint 'auto-.* is left behind"):  # noqa: SIM117
        with vm.backups.begun(plan(scratch)):
            vm.checkpoints.delete = raising(errors.HypervisorError("no"))
    del vm.checkpoints.delete
    vm.checkpoints.delete(f"auto-{RUN}")


def test_interrupted_before_begin_returned(vm, scratch):
    def begin(*args):
        real.backupBegin(*args)
        raise KeyboardInterrupt

    real, vm.dom = vm.dom, None
    vm.dom = Meddled(real, backupBegin=begin)
    with pytest.raises(KeyboardInterrupt), vm.backups.begun(plan(scratch)):
        pass
    assert os.listdir(scratch) == []


class Interrupting:
    """A libvirt object whose call of this number is done, and then interrupted."""

    def __init__(self, real, number):
        self._real, self._left = real, number

    def __getattr__(self, name):
        def call(*args):
            result = getattr(self._real, name)(*args)
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
            return result

        return call


def test_interrupted_after_any_call_of_begin(vm, scratch):
    """By number and not by a timer: between two steps of Python an interrupt can hit what nothing protects."""
    real = vm.dom
    for number in itertools.count(1):
        vm.dom = Interrupting(real, number)
        try:
            with vm.backups.begun(plan(scratch)) as job:
                vm.dom = real
                job.finish()
            break
        except KeyboardInterrupt:
            vm.dom = real
            assert_idle(vm, ["foreign"])
            assert os.listdir(scratch) == []
    assert number > 5
    vm.checkpoints.delete(job.checkpoint.name)


# What is refused before or by begin


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


@pytest.mark.parametrize("version, flags", [(11_010_000, [2, 0]), (11_009_000, [0])])
def test_a_guests_shutdown_is_to_wait(vm, scratch, version, flags):
    """Asked for where libvirt may know it (11.10); the real one here does not, says so, and is asked without."""
    begin, asked = vm.dom.backupBegin, []

    def spy(*arguments):
        asked.append(arguments[-1])
        return begin(*arguments)

    vm.dom = Meddled(vm.dom, backupBegin=spy)
    vm.connection = Meddled(vm.connection, getLibVersion=lambda: version)
    with vm.backups.begun(plan(scratch)) as job:
        job.finish()
    vm.checkpoints.delete(job.checkpoint.name)
    assert asked == flags


def test_a_guests_shutdown_waits_where_libvirt_takes_the_flag(vm, scratch):
    begin, asked = vm.dom.backupBegin, []

    def newer(backup, checkpoint, flags):
        asked.append(flags)
        return begin(backup, checkpoint, flags & ~2)

    vm.dom = Meddled(vm.dom, backupBegin=newer)
    vm.connection = Meddled(vm.connection, getLibVersion=lambda: 11_010_000)
    with vm.backups.begun(plan(scratch)) as job:
        job.finish()
    vm.checkpoints.delete(job.checkpoint.name)
    assert asked == [2]


def test_base_that_does_not_exist(vm, scratch):
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
def test_a_path_that_no_xml_tells(vm, scratch, where):
    """libvirt would write the tab as it is, where it reads as a space: the job was another than was asked for."""
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


FOREIGN = """
<domainbackup mode='pull'><server transport='unix' socket='{0}/foreign.sock'/>
  <disks><disk name='vda' backup='yes' type='file'><scratch file='{0}/foreign.qcow2'/></disk></disks>
</domainbackup>"""


def end_job(dom):
    dom.abortJob()
    wait_for(lambda: not dom.jobInfo()[0], "job ended")


def test_backup_of_somebody_else_is_found_at_once(vm, shared, scratch):
    shared.domain.backupBegin(FOREIGN.format(scratch), None)
    before = time.monotonic()
    for call in (vm.jobs.require_idle, vm.backups.begun(plan(scratch)).__enter__):
        with pytest.raises(errors.Busy, match=f"not of nbdpull .*{scratch}/foreign.sock"):
            call()
    assert time.monotonic() - before < 2
    assert vm.jobs.backup().run_id is None
    end_job(shared.domain)


def test_backup_of_ours_is_named(vm, scratch):
    with vm.backups.begun(plan(scratch)) as job:
        with pytest.raises(errors.Busy, match=f"of nbdpull run {RUN}"), vm.backups.begun(plan(scratch, run_id="R2")):
            pass
        job.require_alive()


def test_other_job_is_named(vm):
    real, vm.dom = vm.dom, Meddled(vm.dom, jobStats=lambda _flags: {"type": 2, "operation": 5})
    with pytest.raises(errors.Busy, match="outgoing migration"):
        vm.jobs.require_idle()
    vm.dom = real


def test_block_job_is_named(vm, shared, scratch):
    target = f"<disk type='file'><source file='{scratch}/copy'/><driver type='qcow2'/></disk>"
    shared.domain.blockCopy("vda", target, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    with pytest.raises(errors.Busy, match="disk vda .*block job"), vm.backups.begun(plan(scratch)):
        pass
    assert vm.jobs.backup() is None
    shared.domain.blockJobAbort("vda")


# A begin that fails late


def test_begin_that_fails_at_the_export(vm, scratch, monkeypatch):
    real = domain_xml.disk_backup
    monkeypatch.setattr(domain_xml, "disk_backup", lambda *args: replace(real(*args), export="same"))
    with pytest.raises(errors.HypervisorError, match="already has export"), vm.backups.begun(plan(scratch)):
        pass
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("cured", [True, False])
def test_begin_that_cannot_store_the_checkpoint(machine, scratch, private_libvirt, cured):
    """libvirt then has no checkpoint, but QEMU has bitmaps of its name."""
    made = machine({"vda": MIB})
    made.create_checkpoint("foreign")
    root = Path("/var/lib/libvirt") if private_libvirt.root else private_libvirt.folder
    folder = next(root.rglob(f"{made.name}/foreign.xml")).parent
    aside = folder.with_name("aside")

    def begin(*args):
        folder.rename(aside)
        folder.write_text("in the way")
        try:
            return real.backupBegin(*args)
        finally:
            if cured:
                put_back()

    def put_back():
        folder.unlink()
        aside.rename(folder)

    with domain.open(made.name) as vm:
        real, vm.dom = vm.dom, Meddled(vm.dom, backupBegin=begin)
        with (
            pytest.raises(errors.HypervisorError, match="save metadata") as caught,
            vm.backups.begun(plan(scratch, ["vda"])),
        ):
            pass
        if cured:
            assert caught.value.left_behind == () and set(made.bitmaps("vda")) == {"foreign"}
        else:
            assert len(caught.value.left_behind) == 1 and f"checkpoint 'auto-{RUN}'" in caught.value.left_behind[0]
            put_back()
        assert_idle(vm, ["foreign"])
    assert os.listdir(scratch) == []


def test_a_bitmap_of_unknown_origin_is_left_alone(machine, scratch):
    """Its checkpoint's metadata is lost, and the user gave its name again: no proof that it is ours."""
    made = machine({"vda": MIB})
    made.create_checkpoint("chk1")
    made.domain.checkpointLookupByName("chk1").delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    with domain.open(made.name) as vm:
        with (
            pytest.raises(errors.HypervisorError, match="chk1"),
            vm.backups.begun(plan(scratch, ["vda"], checkpoint="chk1")),
        ):
            pass
        assert_idle(vm, [])
    assert "chk1" in made.bitmaps("vda")


def test_begin_of_something_else_than_asked(vm, scratch):
    def told(flags):
        return real.backupGetXMLDesc(flags).replace("exportname='vda'", "exportname='vdz'")

    real = vm.dom
    vm.dom = Meddled(real, backupGetXMLDesc=told)
    with pytest.raises(errors.HypervisorError, match="another backup than requested"), vm.backups.begun(plan(scratch)):
        pass
    assert os.listdir(scratch) == []


def test_job_that_no_abort_finds(vm, scratch):
    """A daemon can be left with a backup that is no job: only its block jobs can be ended then."""
    real = vm.dom
    with pytest.raises(errors.SourceError), vm.backups.begun(plan(scratch)):
        vm.dom = Meddled(real, jobStats=lambda _flags: {"type": 0}, abortJob=raising(error_of(55)))
        raise errors.SourceError("x")
    assert os.listdir(scratch) == []


# The end


def test_abort_that_has_to_wait_is_tried_again(vm, scratch):
    real, calls = vm.dom, []

    def abort():
        calls.append(1)
        if len(calls) < 3:
            raise error_of(68)
        return real.abortJob()

    with vm.backups.begun(plan(scratch)) as job:
        vm.dom = Meddled(real, abortJob=abort)
        job.finish()
    assert len(calls) == 3
    vm.checkpoints.delete(f"auto-{RUN}")


def test_job_that_does_not_end(vm, scratch, monkeypatch):
    monkeypatch.setattr(backup_traces, "END_TIMEOUT", 0.1)
    real = vm.dom
    with pytest.raises(errors.SourceError) as caught, vm.backups.begun(plan(scratch)):
        vm.dom = Meddled(real, abortJob=lambda: 0)
        raise errors.SourceError("x")
    assert "did not end" in caught.value.left_behind[0]
    assert len(os.listdir(scratch)) == 2  # QEMU still uses them
    vm.dom = real
    end_job(real)


def test_job_ended_by_somebody_else(vm, shared, scratch):
    with pytest.raises(errors.JobLost, match="before everything was read"), vm.backups.begun(plan(scratch)) as job:
        end_job(shared.domain)
        with pytest.raises(errors.JobLost):
            job.require_alive()
        job.finish()


def test_job_of_somebody_else_in_place_of_ours_is_left_alone(vm, shared, scratch):
    with pytest.raises(errors.JobLost), vm.backups.begun(plan(scratch)) as job:
        end_job(shared.domain)
        wait_for(lambda: vm.jobs.backup() is None, "gone")
        shared.domain.backupBegin(FOREIGN.format(scratch), None)
        job.finish()
    assert shared.job_active() and os.path.exists(f"{scratch}/foreign.sock")
    end_job(shared.domain)


def test_domain_that_stops(machine, scratch):
    made = machine({"vda": MIB})
    with domain.open(made.name) as vm, pytest.raises(errors.DomainCrashed, match="crashed or was killed"):  # noqa: SIM117
        with vm.backups.begun(plan(scratch, ["vda"])) as job:
            made.kill()
            job.finish()
    assert os.listdir(scratch) == []


def test_job_without_success(vm, scratch):
    def stats(flags):
        return {**real.jobStats(flags), **({"success": False, "errmsg": "disk is gone"} if flags else {})}

    real = vm.dom
    vm.dom = Meddled(real, jobStats=stats)
    with pytest.raises(errors.JobLost, match="disk is gone"), vm.backups.begun(plan(scratch)) as job:
        job.finish()
