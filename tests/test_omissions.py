"""Parts of a domain that are in no point are reported: by the pull, for points of any age, and in advance by doctor."""

import json

import pytest
from bed.machine import DOMAIN, MIB, Disk, Machine
from command import run_bytes
from stores import Vm, damaged

from nbdpull.definitions import omissions
from nbdpull.operations import listing

DISK = "<disk type='file' device='{device}'><source file='/i/{name}'/><target dev='{name}'/>{inside}</disk>"
DEVICES = {
    "<filesystem type='mount'><source dir='/srv/home'/><target dir='home'/></filesystem>":
        ("filesystem home", "is a directory of the host", "/srv/home", True),
    "<filesystem type='mount'><driver type='virtiofs'/><source socket='/run/fs.sock'/><target dir='x'/></filesystem>":
        ("filesystem x", "is a directory of the host", "/run/fs.sock", True),
    "<memory model='nvdimm' access='shared'><source><path>/srv/pmem</path></source></memory>":
        ("memory nvdimm", "is kept by the host", "/srv/pmem", True),
    "<memory model='virtio-pmem'><source><path>/srv/pmem2</path></source></memory>":
        ("memory virtio-pmem", "is kept by the host", "/srv/pmem2", True),
    "<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x01'/></source></hostdev>":
        ("hostdev pci", "is a device of the host", "0x0000 0x01", False),
    "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/></source></hostdev>":
        ("hostdev scsi", "is a device of the host", "scsi_host0", True),
    "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>":
        ("tpm", "keeps its state outside of libvirt", None, True),
    "<filesystem type='ram'><source usage='10'/><target dir='r'/></filesystem>": None,
    "<memory model='dimm'><target><size>1</size></target></memory>": None,
    "<tpm><backend type='emulator' version='2.0'/></tpm>": None,
    "<tpm><backend type='emulator' version='2.0'><encryption secret='5a7f'/></backend></tpm>":
        ("secret 5a7f", "opens the TPM's state, and only libvirt has it", None, True),
    "<interface type='hostdev'><source><address type='pci'/></source></interface>": None,
    DISK.format(device="disk", name="vdx", inside="<readonly/>"): ("disk vdx", "is read-only", "/i/vdx", False),
    DISK.format(device="cdrom", name="sda", inside="<readonly/>"): ("cdrom sda", "is a CD-ROM drive", "/i/sda", False),
    DISK.format(device="floppy", name="fda", inside=""): ("floppy fda", "is a floppy drive", "/i/fda", False),
    DISK.format(device="disk", name="vdy", inside=""): ("disk vdy", "was left out", "/i/vdy", False),
    DISK.format(device="disk", name="vdz", inside="<transient/>"):
        ("disk vdz", "is transient, which libvirt cannot back up", "/i/vdz", True),
    "<disk type='file' device='cdrom'><target dev='sdb'/></disk>": None,
    "<disk type='vhostuser' device='disk'><source type='unix' path='/run/v'/><target dev='vdv'/></disk>":
        ("disk vdv", "is of type vhostuser, which libvirt cannot back up", "/run/v", True),
}  # fmt: skip


def xml_of(*devices, os=""):
    return f"<domain><name>vm1</name><os>{os}</os><devices>{''.join(devices)}</devices></domain>"


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device[:60])
def test_each_device(device):
    found = omissions.found(xml_of(DISK.format(device="disk", name="vda", inside=""), device), None, ["vda"])
    assert [each[1:] for each in found] == ([DEVICES[device]] if DEVICES[device] else [])


def test_what_the_user_said_to_leave_out_is_not_missed():
    xml = xml_of(DISK.format(device="disk", name="vdz", inside="<transient/>"))
    assert [each.missed for each in omissions.found(xml, None, [], asked=["vdz"])] == [False]


def test_devices_of_only_one_definition():
    """A device that was plugged in without --config, and a disk that the running domain does not have yet."""
    share, disk = list(DEVICES)[0], DISK.format(device="disk", name="vdn", inside="")
    found = omissions.found(xml_of(disk), xml_of(share), [])
    assert [(each.what, each.missed) for each in found] == [("disk vdn", True), ("filesystem home", True)]
    assert found[0].why == omissions.NEXT_START
    assert [each.missed for each in omissions.found(xml_of(disk), xml_of(), [], asked=["vdn"])] == [False]


@pytest.mark.parametrize("files, expected", [
    ([], ["nvram", "tpm", "kernel"]), (["nvram", "tpm.tpm2-00.permall", "kernel", "domain.xml"], []), (None, [])
])  # fmt: skip
def test_files_that_could_not_be_stored(files, expected):
    """Those of a domain on another machine, for example."""
    boot = "<loader type='pflash'>/fw</loader><nvram>/vars</nvram><kernel>/vmlinuz</kernel>"
    xml = xml_of("<tpm><backend type='emulator' version='2.0'/></tpm>", os=boot)
    found = omissions.found(xml, None, [], files)
    assert [each.what for each in found] == expected
    assert [each.path for each in found] == (["/vars", None, "/vmlinuz"] if expected else [])


def test_omissions_of_an_old_point(tmp_path):
    """From nothing but its definition and its disks; if the definition is damaged, nothing is known."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.xml = xml_of(DISK.format(device="disk", name="vda", inside=""), *DEVICES)
    vm.pull()
    expected = [dict(zip(("what", "why", "path", "missed"), about)) for about in DEVICES.values() if about]
    expected.sort(key=lambda each: each["what"].split()[0] not in ("disk", "cdrom", "floppy"))
    shown = json.loads(run_bytes("show", vm.root, "latest", "--json").stdout)["not_in_point"]
    listed = json.loads(run_bytes("list", vm.root, "--json").stdout)[-1]["not_in_point"]
    assert shown == listed and [each for each in shown if each["what"] not in ("nvram", "tpm")] == [
        each for each in expected if each["what"] != "tpm"
    ]
    text = run_bytes("show", vm.root, "latest").stdout.decode()
    assert "not in it: filesystem home (/srv/home), which is a directory of the host\n" in text
    with damaged(vm.folder / vm.points[0].id / "domain.xml", b"<domain/>"):
        assert listing.listing(listing.Options(str(vm.root))).points[0]["not_in_point"] is None
        assert run_bytes("show", vm.root, "latest").returncode == 0


@pytest.mark.parametrize(
    "live", ["<?xml version='1.0' encoding='utf-16'?><domain/>", "<domain>", "<network/>", "<q:x/>"]
)
def test_an_invalid_live_definition(tmp_path, live):
    """Anyone who can write to the store may have written it: the list is reported nevertheless."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.xml = xml_of(DISK.format(device="disk", name="vda", inside=""))
    vm.files["domain-live.xml"] = live.encode()
    vm.pull()
    [point] = listing.listing(listing.Options(str(vm.root))).points
    assert point["not_in_point"] == ([] if live.startswith("<?xml") else None)


class WithShare(Machine):
    def _xml(self):
        share = "<filesystem type='mount'><source dir='/tmp'/><target dir='home'/></filesystem>"
        cd = f"<disk type='file' device='cdrom'><source file='{self.folder}/cd.iso'/><target dev='sdc'/></disk>"
        (self.folder / "cd.iso").write_bytes(bytes(MIB))
        devices = "".join(map(self._disk_xml, self.disks)) + share + cd
        return DOMAIN.format(kind="qemu", name=self.name, memory=16, cpus=1, boot="", devices=devices)


def test_a_pull_reports_omissions(private_libvirt, tmp_path):
    """As a warning, even with --quiet, what nobody would expect; the rest, and what was requested, in a line."""
    with WithShare(private_libvirt, tmp_path / "images", {"vda": MIB, "vdb": MIB, "vdc": Disk(MIB, "raw")}) as vm:
        pull = ["pull", vm.name, "-c", vm.bed.uri, "-o", tmp_path / "store"]
        done = run_bytes(*pull, "--exclude", "vdb", "--quiet")
        warning = "nbdpull: warning: filesystem home (/tmp) is not in the point: it is a directory of the host\n"
        assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"", warning)
        done = run_bytes(*pull, "--exclude", "vdb")
        lines = [line for line in done.stdout.decode().splitlines() if line.startswith("not in it: ")]
        assert lines == [
            f"not in it: disk vdb ({vm.disks['vdb'].path}), which was left out",
            f"not in it: cdrom sdc ({vm.folder}/cd.iso), which is a CD-ROM drive",
            "not in it: filesystem home (/tmp), which is a directory of the host",
        ]
        result = json.loads(run_bytes(*pull, "--disk", "vda", "--json").stdout.splitlines()[-1])
        assert result["warnings"] == [], "it is reported once if no option can acknowledge it"
        assert [each["what"] for each in result["details"]["not_in_point"]] == [
            "disk vdb", "disk vdc", "cdrom sdc", "filesystem home"
        ]  # fmt: skip
        assert result["details"] == json.loads(run_bytes("show", tmp_path / "store", "latest", "--json").stdout)
        vm.domain.attachDeviceFlags(a_disk(tmp_path), 2)  # for the next start
        result = json.loads(run_bytes(*pull, "--json").stdout.splitlines()[-1])
        assert f"disk vdn ({tmp_path}/n) is not in the point: it is not in the running domain" in result["warnings"]
        doctor = json.loads(run_bytes("doctor", vm.name, "-c", vm.bed.uri, "--json").stdout)
        findings = {each["subject"]: (each["state"], each["text"]) for each in doctor}
        assert findings["filesystem home"] == ("warn", "/tmp: not pulled because it is a directory of the host")
        assert findings["disk vdn"] == ("warn", f"{tmp_path}/n: not pulled because it is not in the running domain")


def a_disk(folder):
    (folder / "n").write_bytes(bytes(MIB))
    return f"<disk type='file'><source file='{folder}/n'/><target dev='vdn' bus='virtio'/></disk>"
