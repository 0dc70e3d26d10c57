"""What doctor says about this machine, about the disks of a domain that it can or cannot pull, and about a cluster.

test_plan_doctor.py asks a real libvirt; test_finding.py and test_versions.py have the other parts.
"""

import io
import os
from dataclasses import replace

import pytest

pytest.importorskip("libvirt")
pytest.importorskip("nbd")

from nbdpull.core import errors  # noqa: E402
from nbdpull.definitions import domain_xml  # noqa: E402
from nbdpull.kubevirt import objects, ours  # noqa: E402
from nbdpull.kubevirt.backup import Who  # noqa: E402
from nbdpull.kubevirt.given import Machine  # noqa: E402
from nbdpull.readiness import disks, kubevirt, machine  # noqa: E402
from nbdpull.readiness.finding import BAD, GOOD, WARN  # noqa: E402

DISK = "<disk type='file' device='{}'><driver type='{}'/><source file='/{}'/><target dev='{}' bus='virtio'/>{}</disk>"


def disk(target, kind="qcow2", device="disk", inside="", **facts):
    xml = DISK.format(device, kind, target, target, inside)
    [found] = domain_xml.parse_disks(f"<domain><devices>{xml}</devices></domain>")
    return replace(found, **facts)


class Vm:
    """looked: {target: what looking at the disk raises}."""

    def __init__(self, *found, version=(9, 2, 0), xml="<domain><devices/></domain>", looked=()):
        self._disks, self._xml, self._looked, self.seen_version = found, xml, dict(looked), version

    def disks(self):
        return list(self._disks)

    def looked_at(self, found):
        for each in found:
            if each.target in self._looked:
                raise self._looked[each.target]
        return list(found)

    def domain_xml(self):
        return self._xml

    def live_xml(self):
        return None


def of_disks(*found, **options):
    return {each.subject: each for each in disks.found(Vm(*found, **options))}


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facts, state, says", [
    ({"size": 1 << 30, "bitmaps": True}, GOOD, "qcow2 /vda, 1.0 GiB: full and incremental"),
    ({"kind": "raw"}, WARN, "full pulls only"),
    ({"bitmaps": False}, WARN, "qcow2 version 2, full pulls only"),
    ({"device": "cdrom"}, GOOD, "not pulled because it is a CD-ROM drive"),
    ({"inside": "<readonly/>"}, GOOD, "not pulled because it is read-only"),
    ({"inside": "<shareable/>"}, WARN, "not pulled because it is shareable"),
    ({"device": "lun"}, WARN, "not pulled because it is passed through"),
    ({"device": "lun", "inside": "<readonly/>"}, GOOD, "not pulled because it is passed through"),  # nobody writes it
])  # fmt: skip
def test_whether_a_disk_is_pulled(facts, state, says):
    [found] = of_disks(disk("vda", **facts)).values()
    assert (found.subject, found.state) == ("disk vda", state) and says in found.text
    assert bool(found.advice) == (state != GOOD)


def test_a_disk_that_cannot_be_looked_at_hides_no_other():
    looked = {"vda": errors.SourceError("cannot read /vda: look at the image"), "vdb": errors.Unsupported("no backing")}
    found = of_disks(disk("vda"), disk("vdb"), disk("vdc"), looked=looked)
    assert [each.state for each in found.values()] == [BAD, WARN, GOOD]
    bad = found["disk vda"]
    assert (bad.text, bad.advice, bad.exit_code) == ("cannot read /vda", "look at the image", 6)
    assert found["disk vdb"].exit_code == 0  # a pull starts the domain instead


def test_an_encrypted_disk_is_pulled_in_the_clear():
    found = of_disks(disk("vda", encrypted=True))
    assert found["disk vda"].state == GOOD and found["encryption of vda"].state == WARN
    assert set(of_disks(disk("vda", encrypted=True, device="cdrom"))) == {"disk vda"}  # that one is not


def test_other_data_of_the_guest():
    shared = "<filesystem type='mount'><source dir='/srv/home'/><target dir='home'/></filesystem>"
    [found] = disks.other_data(Vm(xml=f"<domain><devices>{shared}</devices></domain>"))
    assert found.state == WARN and "/srv/home: not pulled because it" in found.text and found.advice


@pytest.mark.parametrize("version, bus, subjects", [
    ((7, 2, 0), "virtio", ["iothreads", "pause or reset"]),
    ((7, 2, 0), "scsi", ["iothreads"]),  # it stays in its thread
    ((8, 2, 3), "virtio", ["iothreads"]),  # only over TLS
    ((9, 0, 0), "virtio", ["iothreads"]),
    ((9, 0, 1), "virtio", []),
    ((9, 2, 0), "virtio", []),
])  # fmt: skip
def test_disks_in_threads_that_can_crash_qemu(version, bus, subjects):
    threaded = disk("vda", iothread=True, bus=bus)
    found = list(disks.in_threads(Vm(threaded, disk("vdb"), version=version)))
    assert [each.subject for each in found] == subjects
    assert all("disk vda: " in each.text and ".".join(map(str, version)) in each.text for each in found)
    assert list(disks.in_threads(Vm(disk("vdb"), version=version))) == []
    says = "reads" if version >= (8, 2, 3) else "disconnects"
    assert not found or says in found[0].text or "read over TLS" in found[0].text


# -- the machine -------------------------------------------------------------------------------------------------------


def test_programs_that_are_missing_are_named_with_their_package(monkeypatch):
    there, gone = (name for name, _ in machine._PROGRAMS[:2])
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/bin/there" if name == there else None)
    found = {each.subject: each for each in machine.programs()}
    assert (found[there].state, found[there].text) == (GOOD, "/bin/there")
    assert found[gone].text == "not installed; needed for qcow2 images at restore"
    assert found[gone].state == WARN
    assert found[gone].advice == f"install {machine.software.PACKAGES[gone]}" and found[gone].exit_code == 0


@pytest.mark.parametrize("kind, mode, free, state, says", [
    ("ext4", 0o711, 1 << 40, GOOD, "free on ext4"),
    ("tmpfs", 0o711, 1 << 40, WARN, "free on tmpfs"),
    ("ext4", 0o700, 1 << 40, WARN, "free on ext4"),
    ("tmpfs", 0o700, 0, BAD, "too little for a pull to start"),
])  # fmt: skip
def test_the_scratch_directory(tmp_path, monkeypatch, kind, mode, free, state, says):
    tmp_path.chmod(mode)
    monkeypatch.setattr(machine, "_file_system", lambda _folder: kind)
    monkeypatch.setattr(machine.scratch_watch.file_system, "free_bytes", lambda _folder: free)
    found = machine.scratch(str(tmp_path))
    assert found.state == state and says in found.text and bool(found.advice) == (state != GOOD)
    assert bool(found.exit_code) == (state == BAD)


def test_a_scratch_directory_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        found = machine.scratch(str(tmp_path / name))
        assert (found.state, found.exit_code) == (BAD, 9) and f"{name} is not a directory" in found.text


MOUNTS = b"""\
/dev/a / ext4 rw 0 0
/dev/b /srv xfs rw 0 0
tmpfs /srv/a tmpfs rw 0 0
/dev/c /srv/a/b btrfs rw 0 0
/dev/d /srv/a/b ext3 rw 0 0
/dev/f /srv/\xff\r btrfs rw 0 0
/dev/e /srv/my\\040disk\\134 xfs rw 0 0
tmpfs /srv/my\\040disk\\134/a tmpfs rw 0 0
"""


@pytest.mark.parametrize("folder, kind", [
    ("/", "ext4"), ("/srvx", "ext4"), ("/srv", "xfs"), ("/srv/ab", "xfs"), ("/srv/a", "tmpfs"),
    ("/srv/a/b/c", "ext3"),  # mounted over the other
    (os.fsdecode(b"/srv/\xff\r"), "btrfs"),
    ("/srv/my disk\\/a", "tmpfs"),
])  # fmt: skip
def test_the_file_system_of_a_folder(monkeypatch, folder, kind):
    read = lambda _path, **how: io.TextIOWrapper(io.BytesIO(MOUNTS), "utf-8", **how)  # noqa: E731
    monkeypatch.setattr(machine, "open", read, raising=False)
    assert machine._file_system(folder) == kind


# -- a cluster ---------------------------------------------------------------------------------------------------------

MACHINE = Machine("ns", "vm1")
VM = {
    "metadata": {"name": "vm1", "uid": "u"},
    "spec": {"template": {"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "c"}},
                                               {"name": "init", "cloudInitNoCloud": {}}]}}},
    "status": {"changedBlockTracking": {"state": "Enabled"}},
}  # fmt: skip
STORE = "0b5ee1c4-9d22-4ff1-8f0c-5b5a0c1d7d11"


class Cluster:
    """denied: {(verb, kind)} that this account may not; items: {kind: objects, or an error}."""

    host, inside, warnings = "https://cluster", False, ()

    def __init__(self, denied=(), vm=VM, **listed):
        self._denied, self._vm, self._items = denied, vm, listed

    def version(self):
        return "v1.34"

    def get(self, _kind, _namespace, _name):
        return self._vm

    def may(self, verb, kind, namespace):
        assert namespace == "ns"
        return (verb, objects.plural(kind)) not in self._denied

    def items(self, kind, _namespace, _labels=None):
        found = self._items.get(objects.plural(kind), [])
        if isinstance(found, Exception):
            raise found
        return found


def of_cluster(*args, **listed):
    found = list(kubevirt.found(Cluster(*args, **listed), MACHINE))
    return {each.subject: each for each in found}


def installed(*gates):
    return {"spec": {"configuration": {"developerConfiguration": {"featureGates": [*gates]}}},
            "status": {"observedKubeVirtVersion": "v1.9.0"}}  # fmt: skip


def test_a_cluster_that_is_fit():
    found = of_cluster(kubevirts=[installed(objects.GATE)])
    assert {each.state for name, each in found.items() if name != "volume init"} == {GOOD}
    assert found["cluster"].text == "https://cluster, Kubernetes v1.34, from outside"
    assert found["KubeVirt"].text == f"v1.9.0, with the feature gate {objects.GATE}"
    assert (found["volume init"].state, found["volume data"].text) == (WARN, found["volume data"].text)
    assert found["backups"].text == "none is running"


@pytest.mark.parametrize("listed, state, says", [
    ([installed()], WARN, "has no feature gate"),
    ([installed("Snapshot")], WARN, "has no feature gate"),
    ([{}], WARN, "an unknown version"),
    (errors.AccessDenied("no"), GOOD, "its version is unknown: this account may not list kubevirts, and need not"),
    (errors.HypervisorError("the cluster: does not answer"), BAD, "the cluster"),
])  # fmt: skip
def test_the_version_of_kubevirt(listed, state, says):
    found = of_cluster(kubevirts=listed)
    assert found["KubeVirt"].state == state and says in found["KubeVirt"].text
    assert found["permissions"].state == GOOD  # each check is by itself


@pytest.mark.parametrize("denied, state, code, says", [
    (("get", "virtualmachines"), BAD, 7, "not get virtualmachines"),
    (("delete", "virtualmachinebackups"), BAD, 7, "not delete virtualmachinebackups"),
    (("create", "secrets"), BAD, 7, "not create secrets"),
    (("list", "secrets"), WARN, 0, "not list secrets"),
    (("create", "persistentvolumeclaims"), WARN, 0, "not create persistentvolumeclaims"),
])  # fmt: skip
def test_what_a_missing_right_prevents(denied, state, code, says):
    found = of_cluster({denied}, kubevirts=[])["permissions"]
    assert (found.state, found.exit_code) == (state, code) and says in found.text and found.advice


@pytest.mark.parametrize("vm, code", [
    (None, 3),
    ({**VM, "status": {"printableStatus": "Stopped"}}, 3),
    ({**VM, "status": {"changedBlockTracking": {"state": "PendingRestart"}}}, 6),
])  # fmt: skip
def test_a_machine_that_cannot_be_backed_up(vm, code):
    found = of_cluster(vm=vm)
    bad = found["virtual machine ns/vm1"]
    assert (bad.state, bad.exit_code) == (BAD, code)
    assert ("volume data" in found) == (vm is not None)  # they are shown nevertheless


def test_backups_of_the_machine_that_are_running():
    who = Who(MACHINE, STORE, "20261122T194500Z-7f3a9c04")
    labels = ours.labels(STORE, who.run_id, who.tracker)
    tracker = ours.tracker(MACHINE, who.tracker, labels)
    mine = ours.backup(who.name, labels, ours.Wish(who.tracker, True, False, None, "c"))
    source = {"kind": "VirtualMachine", "name": "vm1"}
    theirs = {"metadata": {"name": "theirs"}, "spec": {"source": source}}
    over = {**theirs, "metadata": {"name": "over"}, "status": {"conditions": [{"type": "Done", "status": "True"}]}}
    other = {"metadata": {"name": "other"}, "spec": {"source": {**source, "name": "vm2"}}}
    found = of_cluster(virtualmachinebackups=[mine, theirs, over, other], virtualmachinebackuptrackers=[tracker])
    assert {name for name in found if name.startswith("backup")} == {f"backup {who.name}", "backup theirs"}
    assert f"made by nbdpull, for store {STORE}" in found[f"backup {who.name}"].text
    assert found["backup theirs"].text.startswith("not made by nbdpull; running: ")
    assert found[f"tracker {who.tracker}"].text == f"store {STORE}; its next backup starts at checkpoint none"
