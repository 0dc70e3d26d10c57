"""A throw-away VM without an operating system: tests write its disks byte by byte, through QEMU itself.

The writes go through the disk's own backend, as a guest's do: dirty bitmaps record them, a backup job sees them. Must
not know what the writes are for, nor anything of the program under test.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional
from xml.sax.saxutils import escape, quoteattr

from bed import BedError
from bed.libvirtd import libvirt
from bed.started import Started

try:
    import libvirt_qemu
except ImportError:
    libvirt_qemu = None

MIB = 1 << 20
# What else comes into QEMU's log: libvirt's word on a run's first monitor command, QEMU's on NBD clients killed.
NOTES = (" is tainted: ", ": Disconnect client, due to: ", ": option negotiation failed: ")
MAX_REQUEST = 1 << 30  # qemu-io takes no length of 2 GiB or more in one command

DOMAIN = """<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>{cpus}</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <controller type='scsi' model='virtio-scsi'/>
    {devices}
    <memballoon model='none'/>
  </devices>
</domain>"""

_numbers = itertools.count(1)


@dataclass
class Disk:
    """A disk to make: its size in bytes, qcow2 or raw, options for qemu-img create -o; or the path of an image.

    data_file: of a qcow2 image, the raw file with its data, which the definition names (libvirt 10.10 or later). extra:
    XML for its <disk>, such as <shareable/>. below: (path, format) of the layers below it after `snapshot`, the lowest
    first.
    """

    size: int = 0
    format: str = "qcow2"
    options: str = ""
    path: Optional[Path] = None
    data_file: Optional[Path] = None
    extra: str = ""
    below: list = field(default_factory=list)


class Machine(Started):
    """A VM: `with Machine(bed, folder, {"vda": 64 * MIB, "vdb": Disk(MIB, "raw")}) as vm:`. It is defined, started, and
    undefined at the end. The images remain in folder. Targets vdX are virtio, sdX are SCSI (which detach in an
    instant).

    It is started paused: without an operating system there is nothing to run, and no CPU is spent on the firmware.
    iothreads: over how many I/O threads the disks are distributed. QEMU moves a virtio disk there while the CPUs run;
    SCSI disks are all in the first one, from the start.
    """

    def __init__(self, bed, folder, disks, name=None, paused=True, iothreads=0):
        self.bed = bed
        self.folder = Path(folder)
        self.name = name or f"bed-{os.getpid()}-{next(_numbers)}"
        self.paused = paused
        self.iothreads = iothreads
        self.disks = {}
        self._devices = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        for target, disk in disks.items():
            self._make_image(target, disk)
        self.uuid = bed.connection().defineXML(self._xml()).UUIDString()

    @classmethod
    def of(cls, bed, uuid, disks):
        """Return the Machine of an existing domain; disks: {target: Disk}."""
        vm = object.__new__(cls)
        vm.bed, vm.uuid, vm.paused, vm._devices = bed, uuid, True, {}
        vm.name, vm.folder = vm.domain.name(), None
        vm.disks = disks
        return vm

    def close(self):
        """End and undefine it, with the metadata of its checkpoints; the images remain."""
        try:
            domain = self.domain
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            return  # a test undefined it
        if domain.isActive():
            domain.destroy()
        domain.undefineFlags(
            libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        )
        with contextlib.suppress(libvirt.libvirtError):
            domain.destroy()  # where a killed pull had it started: libvirt undefined it after that

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def domain(self):
        """The libvirt domain, on a connection that works: do not keep it across a daemon restart."""
        return self.bed.connection().lookupByUUIDString(self.uuid)

    @property
    def pid(self):
        """QEMU's process id; None while the domain is off."""
        return self.bed.qemu_pid(self.name)

    @property
    def active(self):
        return bool(self.domain.isActive())

    @property
    def running(self):
        return self.domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING

    def start(self):
        self._devices.clear()
        self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if self.paused else 0)

    def stop(self):
        """End QEMU in an orderly way: it stores its bitmaps. (Without an operating system, nothing reacts to a
        shutdown.)"""
        self.domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)

    def destroy(self):
        self.domain.destroy()

    def kill(self):
        """Send SIGKILL to QEMU, as in a crash or power loss; return when libvirt has noticed."""
        os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: not self.active, f"{self.name} shut off after SIGKILL")

    def rename(self, name):
        """Rename a domain that is off. Its images keep their paths."""
        self.domain.rename(name, 0)
        self.name = name

    def suspend(self):
        self.domain.suspend()

    def resume(self):
        self.domain.resume()

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, disk, offset, length, pattern=0x55):
        """Fill a range with one byte value."""
        self._ranges(disk, f"write -q -P {pattern:#x}", offset, length)

    def write_zeroes(self, disk, offset, length, unmap=False):
        """Write zeroes as with the guest's WRITE ZEROES; with unmap, the image may deallocate."""
        self._ranges(disk, "write -q -z -u" if unmap else "write -q -z", offset, length)

    def discard(self, disk, offset, length):
        self._ranges(disk, "discard -q", offset, length)

    def flush(self, disk=None):
        for target in [disk] if disk else self.disks:
            self.qemu_io(target, "flush")

    def write_bytes(self, disk, offset, data):
        """Write the given bytes."""
        # in the bed's own folder: a path inside an HMP command has to be free of quotes and blanks
        with tempfile.NamedTemporaryFile(dir=self.bed.folder) as file:
            file.write(data)
            file.flush()
            self.qemu_io(disk, f"write -q -s {file.name} {offset} {len(data)}")

    def write_offline(self, disk, commands):
        """Apply qemu-io commands (`write -q -P 7 0 64k`) to the image while the domain is off; persistent bitmaps
        record them.

        Use -q in every line: any output counts as an error. This takes 0.1 ms a line, against 2 ms on the live disk.
        """
        image = self.disks[disk]
        done = subprocess.run(
            ["qemu-io", "-d", "unmap", "-t", "unsafe", "-f", image.format, str(image.path)],
            input="".join(f"{line}\n" for line in commands),
            capture_output=True,
            text=True,
        )
        said = (done.stdout + done.stderr).replace("qemu-io> ", "").strip()
        if said or done.returncode:
            raise BedError(f"qemu-io on {image.path}: {said or done.returncode}")

    def qemu_io(self, disk, command):
        """Run one quiet qemu-io command (-q) on the live disk.

        QEMU's answer is empty, whether it succeeds or not, and an error is printed to QEMU's standard output: so its
        log is read.
        """
        log = self.bed.qemu_log(self.name)
        before = log.read_bytes().rfind(b"\n") + 1  # QEMU may be in the middle of a line
        answer = self.hmp(f'qemu-io -d {self._device(disk)} "{command}"').strip()
        with open(log, "rb") as file:
            file.seek(before)
            printed = file.read().decode(errors="replace")
        printed = "\n".join(line for line in printed.splitlines() if not any(note in line for note in NOTES))
        if answer or printed:
            raise BedError(f"{self.name}, {disk}: {command}: {answer or printed}")

    def hmp(self, command):
        """Run a command of QEMU's human monitor; return its answer."""
        return libvirt_qemu.qemuMonitorCommand(self.domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)

    def qmp(self, command, **arguments):
        """Run a QMP command; return its result."""
        text = json.dumps({"execute": command, "arguments": arguments})
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(self.domain, text, 0))
        if "error" in answer:
            raise BedError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    # -- reading ------------------------------------------------------------------------------------------------------

    def freeze_copy(self, disk, to):
        """Make `to` a raw copy of the disk as it is now; a running machine is paused meanwhile."""
        image, resume = self.disks[disk], False
        if self.active:
            resume = self.running
            if resume:
                self.suspend()
            # a standing VM has no request in flight; the flush brings qcow2's cached tables into the file
            self.flush(disk)
        try:
            subprocess.run(
                ["qemu-img", "convert", "-U", "-f", image.format, "-O", "raw", str(image.path), str(to)], check=True
            )
        finally:
            if resume:
                self.resume()
        return Path(to)

    def content(self, disk):
        """Return all bytes of a (small) disk as it is now."""
        with tempfile.NamedTemporaryFile(dir=self.bed.folder) as file:
            return self.freeze_copy(disk, file.name).read_bytes()

    # -- disks --------------------------------------------------------------------------------------------------------

    def attach_disk(self, target, disk, persistent=True):
        """Add a disk, persistently and, on an active machine, at once; return the path of its image."""
        self._make_image(target, disk)
        self.domain.attachDeviceFlags(self._disk_xml(target), self._live_and_config(persistent))
        return self.disks[target].path

    def detach_disk(self, target, persistent=True):
        """Remove a disk, persistently and, on an active machine, at once."""
        xml = self._disk_xml(target)
        if self.active and target.startswith("vd"):
            # PCI unplug needs the guest's consent, which nobody here gives: a pending unplug completes in a reset.
            # Not detachDeviceFlags: it waits 5 s for the consent before it returns, and keeps the reset waiting.
            self.qmp("device_del", id=self._device(target).split("/")[3])
            self.domain.reset(0)
            wait_for(lambda: f"<target dev='{target}'" not in self.domain.XMLDesc(), f"{target} unplugged")
            self.domain.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
        else:
            self.domain.detachDeviceFlags(xml, self._live_and_config(persistent))
        self._devices.pop(target, None)
        del self.disks[target]

    def resize(self, target, size):
        image = self.disks[target]
        if self.active:
            self.domain.blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        else:
            shrink = ["--shrink"] if size < image.size else []
            subprocess.run(
                ["qemu-img", "resize", "-q", *shrink, "-f", image.format, str(image.path), str(size)], check=True
            )
        image.size = size

    # -- layers of a live disk ----------------------------------------------------------------------------------------

    def snapshot(self, target, name):
        """Take an external snapshot: a new layer on top, with the bitmaps in it."""
        image = self.disks[target]
        path = image.path.with_suffix(f".{name}")
        layer = f"<disk name='{target}' snapshot='external'><source file={quoteattr(str(path))}/></disk>"
        others = "".join(f"<disk name='{other}' snapshot='no'/>" for other in self.disks if other != target)
        self.domain.snapshotCreateXML(
            f"<domainsnapshot><disks>{layer}{others}</disks></domainsnapshot>",
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
        )
        image.below.append((image.path, image.format))
        image.path, image.format = path, "qcow2"

    def commit(self, target):
        """Merge all layers into the lowest one, which is the disk from then on."""
        self.bed.virsh("blockcommit", self.name, target, "--active", "--pivot", "--wait")
        image = self.disks[target]
        image.path, image.format = image.below[0]
        image.below.clear()

    def flatten(self, target):
        """Merge all layers into the highest one (virsh blockpull)."""
        self.bed.virsh("blockpull", self.name, target, "--wait")
        self.disks[target].below.clear()

    def move(self, target, path):
        """Copy all layers into an image elsewhere, which is the disk from then on (virsh blockcopy)."""
        self.bed.virsh("blockcopy", self.name, target, path, "--format", "qcow2", "--pivot", "--wait",
                       "--transient-job")  # fmt: skip
        image = self.disks[target]
        image.path, image.format = Path(path), "qcow2"
        image.below.clear()

    # -- checkpoints and jobs -----------------------------------------------------------------------------------------

    def create_checkpoint(self, name, disks=None):
        """Make a checkpoint with bitmaps on the named disks, by default on all that can have one (not on raw ones)."""
        if disks is None:
            disks = [target for target, disk in self.disks.items() if disk.format == "qcow2"]
        listed = "".join(f"<disk name='{target}' checkpoint='bitmap'/>" for target in disks)
        self.domain.checkpointCreateXML(
            f"<domaincheckpoint><name>{escape(name)}</name><disks>{listed}</disks></domaincheckpoint>"
        )

    def delete_checkpoint(self, name):
        self.domain.checkpointLookupByName(name).delete()

    def forget_checkpoint(self, name):
        """Delete only the metadata of a checkpoint, as a migration does: the bitmaps remain in the images."""
        self.domain.checkpointLookupByName(name).delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)

    def checkpoints(self):
        """Return the names of all checkpoints, parents first."""
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL
        return [checkpoint.getName() for checkpoint in self.domain.listAllCheckpoints(flags)]

    def bitmaps(self, disk):
        """Return QEMU's description of each dirty bitmap of a live disk: {name: {"count": bytes dirty, "recording":
        ..., ...}}."""
        device = self._device(disk)
        found = [block for block in self.qmp("query-block") if block.get("qdev") == device]
        if not found:  # QEMU names a virtio disk by its backend's path, a SCSI one by its id
            found = [block for block in self.qmp("query-block") if block.get("qdev") == device.split("/")[3]]
        return {bitmap["name"]: bitmap for bitmap in found[0]["inserted"].get("dirty-bitmaps", [])}

    def job_active(self):
        """Return whether the domain has an active job (backup, migration, ...)."""
        return self.active and self.domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE

    # -- inside -------------------------------------------------------------------------------------------------------

    def _xml(self):
        return self._domain_xml("".join(map(self._disk_xml, self.disks)))

    def _domain_xml(self, devices, kind="qemu", memory=16, boot=""):
        root = ET.fromstring(DOMAIN.format(kind=kind, name=escape(self.name), memory=memory, cpus=1, boot=boot,
                                           devices=devices))  # fmt: skip
        if self.iothreads:
            ET.SubElement(root, "iothreads").text = str(self.iothreads)
            ET.SubElement(root.find("devices/controller[@model='virtio-scsi']"), "driver", iothread="1")
        return ET.tostring(root, encoding="unicode")

    def _disk_xml(self, target):
        image = self.disks[target]
        bus = {"vd": "virtio", "sd": "scsi", "hd": "ide"}[target[:2]]
        number = list(self.disks).index(target) % max(self.iothreads, 1) + 1
        iothread = f" iothread='{number}'" if self.iothreads and bus == "virtio" else ""
        return (
            f"<disk type='file' device='disk'><driver name='qemu' type='{image.format}' discard='unmap'{iothread}/>"
            f"<source file={quoteattr(str(image.path))}>{self._data_store(image)}</source>"
            f"<target dev='{target}' bus='{bus}'/>{image.extra}</disk>"
        )

    def _data_store(self, image):
        if image.data_file is None:
            return ""
        source = f"<source file={quoteattr(str(image.data_file))}/>"
        return f"<dataStore type='file'><format type='raw'/>{source}</dataStore>"

    def _make_image(self, target, disk):
        disk = Disk(disk) if isinstance(disk, int) else replace(disk)
        if disk.path is None:
            disk.path = self.folder / f"{self.name}-{target}.{disk.format}"
            options = ["-o", disk.options] if disk.options else []
            subprocess.run(
                ["qemu-img", "create", "-q", "-f", disk.format, *options, str(disk.path), str(disk.size)], check=True
            )
        self.disks[target] = disk

    def _live_and_config(self, persistent=True):
        live = libvirt.VIR_DOMAIN_AFFECT_LIVE if self.active else 0
        return live | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if persistent else 0)

    def _device(self, target):
        """Return the QOM path of a live disk's backend; a node name would bypass the filter that a backup job inserts
        on top."""
        if target not in self._devices:
            for disk in ET.fromstring(self.domain.XMLDesc()).iterfind("devices/disk"):
                backend = "/virtio-backend" if disk.find("target").get("bus") == "virtio" else ""
                self._devices[disk.find("target").get("dev")] = (
                    f"/machine/peripheral/{disk.find('alias').get('name')}{backend}"
                )
        return self._devices[target]

    def _ranges(self, disk, command, offset, length):
        for start in range(offset, offset + length, MAX_REQUEST):
            self.qemu_io(disk, f"{command} {start} {min(MAX_REQUEST, offset + length - start)}")


def wait_for(condition, what, seconds=60):
    """Wait until condition() is true; raise BedError with `what` when the time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BedError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.01)
