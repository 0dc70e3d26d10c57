"""libvirt's XML as values, and back: disks, backups, checkpoints, capabilities.

Owns: the names of all elements and attributes. A backup is one value that is built from a plan and parsed from
libvirt's answer, so that "did libvirt start what we requested" is a comparison of two values.

Must not know: libvirt's API, files, or what a value means for a run.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple, Optional

from . import xml_tree

# The daemon checks names against this pattern and answers with a page of schema errors.
CHECKPOINT_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_SCRATCH = re.compile(r"/nbdpull-([^/]+)-[^/-]+\.scratch$")

AGENT = "org.qemu.guest_agent.0"  # name of its channel
_DESCRIPTION = re.compile(r"nbdpull run (\S+)")


@dataclass(frozen=True)
class Disk:
    """One disk of a domain, as facts; the caller decides which of them rule it out.

    target: vda; source: path of a file or block device, else a text that names it ("rbd:pool/image"), "" if empty;
    format: qcow2, raw, …; type: file, block, network, volume, …; device: disk, cdrom, floppy, lun; size: virtual size
    in bytes, 0 if not inspected; allocation: bytes that the image takes, possibly 0 for a block device; bitmaps:
    whether the image format can store bitmaps, None if unknown; encrypted: whether QEMU gets a secret for it; secret:
    the uuid or usage by which libvirt finds the secret; iothread: whether its device has an I/O thread of its own or
    through its controller; layered: whether its image has, or may have, a backing image (a running domain shows it).
    """

    target: str
    type: str
    source: str
    format: str
    device: str
    bus: str
    readonly: bool
    transient: bool
    shareable: bool
    empty: bool
    size: int = 0
    bitmaps: Optional[bool] = None
    allocation: int = 0
    encrypted: bool = False
    secret: str = ""
    iothread: bool = False
    layered: bool = False


class Listen(NamedTuple):
    """host: an address of the hypervisor."""

    host: str
    port: int


@dataclass(frozen=True)
class DiskBackup:
    """A disk's part in a backup. base: checkpoint name, None = full; bitmap: name of the exported one, None = full."""

    base: Optional[str]
    export: str
    bitmap: Optional[str]
    scratch: Optional[str]


@dataclass(frozen=True)
class Backup:
    """A backup job: mode (pull or push), NBD socket path (None: TCP, or push), and its disks by target.

    tcp: where its server listens instead; tls: whether that requires TLS.
    """

    mode: str
    socket: Optional[str]
    disks: Mapping[str, DiskBackup]
    tcp: Optional[Listen] = None
    tls: bool = False

    @property
    def run_id(self) -> Optional[str]:
        """The nbdpull run that started this job, according to its scratch files; None = not nbdpull's."""
        found = [_SCRATCH.search(disk.scratch or "") for disk in self.disks.values()]
        ids = {match.group(1) if match else None for match in found}
        return ids.pop() if len(ids) == 1 else None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint.

    creation_time: seconds since the epoch; disks: target -> whether the bitmap can be a base (None: unknown, as the
    domain is off), only for the disks that it covers; xml: libvirt's, with the domain, suitable for a redefinition.
    """

    name: str
    creation_time: int
    description: str
    disks: Mapping[str, Optional[bool]]
    xml: str

    @property
    def run_id(self) -> Optional[str]:
        """The nbdpull run that created it; None = not nbdpull's."""
        match = _DESCRIPTION.match(self.description)
        return match.group(1) if match else None


class Images(NamedTuple):
    """What a definition says about a disk's images.

    chain: (path, format) of its own image and of the backing images that the definition names, top first; path is ""
    for anything but a file or block device, format "" if not named; is_all: nothing is below the last one; otherwise
    that image itself names its backing image; altered: why a guest sees something else than their bytes, or "".
    """

    chain: list[tuple[str, str]]
    is_all: bool
    altered: str


class Platform(NamedTuple):
    """The arguments of virConnectGetDomainCapabilities, in their order."""

    emulator: Optional[str]
    arch: Optional[str]
    machine: Optional[str]
    virttype: Optional[str]


def scratch_path(directory: str, run_id: str, target: str) -> str:
    return f"{directory.rstrip('/')}/nbdpull-{run_id}-{target}.scratch"


def disk_backup(run_id: str, target: str, base: Optional[str], scratch_dir: str) -> DiskBackup:
    """Return our names for a disk's part in the backup of `run_id`; base None = full."""
    bitmap = f"nbdpull-{run_id}-{target}" if base else None
    return DiskBackup(base, target, bitmap, scratch_path(scratch_dir, run_id, target))


def backup_xml(backup: Backup) -> str:
    """Return the <domainbackup> of a pull."""
    root = ET.Element("domainbackup", mode=backup.mode)
    if backup.tcp:
        server = ET.SubElement(root, "server", transport="tcp", name=backup.tcp.host, port=str(backup.tcp.port))
    else:
        server = ET.SubElement(root, "server", transport="unix", socket=backup.socket or "")
    if backup.tls:
        server.set("tls", "yes")
    disks = ET.SubElement(root, "disks")
    for target, disk in backup.disks.items():
        _add_disk(disks, target, disk)
    return ET.tostring(root, encoding="unicode")


def _add_disk(disks: ET.Element, target: str, disk: DiskBackup) -> None:
    # type is that of the scratch, not of the disk.
    element = ET.SubElement(disks, "disk", name=target, backup="yes", type="file", exportname=disk.export)
    element.set("backupmode", "incremental" if disk.base else "full")
    for name, value in (("incremental", disk.base), ("exportbitmap", disk.bitmap)):
        if value:
            element.set(name, value)
    ET.SubElement(element, "driver", type="qcow2")
    ET.SubElement(element, "scratch", file=disk.scratch or "")


def parse_backup(xml: str) -> Backup:
    """Parse a <domainbackup>, whoever started it."""
    root = ET.fromstring(xml)
    disks = {e.get("name", ""): _parse_disk_backup(e) for e in root.iterfind("disks/disk") if e.get("backup") != "no"}
    name, port = _attribute(root, "server", "name"), _attribute(root, "server", "port")
    tcp, tls = Listen(name, int(port)) if name and port else None, _attribute(root, "server", "tls") == "yes"
    return Backup(root.get("mode", "push"), _attribute(root, "server", "socket"), disks, tcp, tls)


def _parse_disk_backup(element: ET.Element) -> DiskBackup:
    # libvirt echoes exportbitmap for a full backup too, although it makes no such bitmap.
    base, name = element.get("incremental"), element.get("name", "")
    bitmap = element.get("exportbitmap") if base else None
    scratch = _attribute(element, "scratch", "file") or _attribute(element, "scratch", "dev")
    return DiskBackup(base, element.get("exportname") or name, bitmap, scratch)


def description(run_id: str, text: str) -> str:
    """Return a checkpoint's description, its only place for a note: who made it, then the text."""
    return f"nbdpull run {run_id} {text}".rstrip()


def checkpoint_xml(name: str, description: str, targets: Iterable[str]) -> str:
    """Return a <domaincheckpoint> that covers `targets` and no other disk."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "description").text = description
    disks = ET.SubElement(root, "disks")
    for target in targets:
        ET.SubElement(disks, "disk", name=target, checkpoint="bitmap")
    return ET.tostring(root, encoding="unicode")


def redefinition_xml(checkpoint: Checkpoint) -> str:
    """Return a <domaincheckpoint> for CREATE_REDEFINE, on the disks of `checkpoint`; no parent, no domain."""
    root = ET.fromstring(checkpoint_xml(checkpoint.name, checkpoint.description, checkpoint.disks))
    ET.SubElement(root, "creationTime").text = str(checkpoint.creation_time)
    return ET.tostring(root, encoding="unicode")


def parse_checkpoint(xml: str, with_size: bool) -> Checkpoint:
    """Parse a <domaincheckpoint>; `with_size`: libvirt was asked for sizes.

    libvirt reports a size only for the disks whose bitmap is present, recording and consistent in every layer, so a
    missing size reveals a broken base before a backup starts.
    """
    root = xml_tree.parse(xml, "domaincheckpoint")  # it may come from a point, where anybody may have written it
    covered = [e for e in root.iterfind("disks/disk") if e.get("checkpoint") == "bitmap"]
    disks = {e.get("name", ""): "size" in e.attrib if with_size else None for e in covered}
    time, description = int(root.findtext("creationTime", "0")), root.findtext("description", "")
    return Checkpoint(root.findtext("name", ""), time, description, disks, xml)


def parse_disks(xml: str) -> list[Disk]:
    """Return the disks of a <domain>, possibly from a point, in its order."""
    root = xml_tree.parse(xml)
    controllers = {e.get("index") for e in root.iterfind("devices/controller[@type='scsi']") if _has_iothread(e)}
    return [_parse_disk(element, controllers) for element in root.iterfind("devices/disk")]


def _has_iothread(device: ET.Element) -> bool:
    """Return whether a device has an I/O thread or, since libvirt 10.0, a list of them."""
    driver = device.find("driver")
    return driver is not None and ("iothread" in driver.attrib or driver.find("iothreads") is not None)


def _parse_disk(element: ET.Element, threaded_controllers: Set[Optional[str]]) -> Disk:
    kind, source = element.get("type", ""), _source(element)
    encryption, below = _encryption(element), element.find("backingStore")
    return Disk(
        target=_attribute(element, "target", "dev") or "",
        type=kind,
        source=source,
        format=_attribute(element, "driver", "type") or "raw",
        device=element.get("device", "disk"),
        bus=_attribute(element, "target", "bus") or "",
        readonly=element.find("readonly") is not None,
        transient=element.find("transient") is not None,
        shareable=element.find("shareable") is not None,
        empty=not source,
        encrypted=encryption is not None,
        secret=_secret(encryption),
        iothread=_has_iothread(element) or _scsi_controller(element) in threaded_controllers,
        layered=below is None or below.get("type") is not None,
    )


def _encryption(disk: ET.Element) -> Optional[ET.Element]:
    inner = disk.find("source/encryption")
    return inner if inner is not None else disk.find("encryption")


def _secret(encryption: Optional[ET.Element]) -> str:
    secret = encryption.find("secret") if encryption is not None else None
    return "" if secret is None else secret.get("uuid") or secret.get("usage") or ""


def _scsi_controller(disk: ET.Element) -> Optional[str]:
    """Return the index of a SCSI disk's controller, None for other disks."""
    if _attribute(disk, "target", "bus") != "scsi":
        return None
    return _attribute(disk, "address", "controller") or "0"


def _source(element: ET.Element) -> str:
    source = element.find("source")
    if source is None:
        return ""
    path = source.get("file") or source.get("dev")
    if path:
        return path
    # No path: what distinguishes this source from another of the same type, without hosts and snapshots.
    parts = [source.get(key) for key in ("protocol", "pool", "name", "volume", "dir", "path", "namespace")]
    return ":".join([part for part in parts if part] + list(_address(source).values()))


def images(xml: str) -> dict[str, Images]:
    """Return the images of each disk of a <domain>, by target."""
    found = ET.fromstring(xml).iterfind("devices/disk")
    return {_attribute(element, "target", "dev") or "": _images(element) for element in found}


def _images(disk: ET.Element) -> Images:
    chain, layer = [(_path(disk, disk.get("type")), _attribute(disk, "driver", "type") or "raw")], disk
    while (below := layer.find("backingStore")) is not None and below.get("type"):
        chain.append((_path(below, below.get("type")), _attribute(below, "format", "type") or ""))
        layer = below
    altered = [text for tag, text in _ALTERING.items() if disk.find(f".//{tag}") is not None]
    return Images(chain, below is not None, altered[0] if altered else "")


# Elements below <disk>, and their effect on the images.
_ALTERING = {
    "encryption": "is encrypted",
    "slice": "is a part of a file",
    "dataStore": "keeps its data in another file",
}


def _path(element: ET.Element, kind: Optional[str]) -> str:
    source = element.find("source")
    return source.get({"file": "file", "block": "dev"}.get(kind or "", ""), "") if source is not None else ""


def has_host_devices(xml: str) -> bool:
    """Return whether starting the domain takes devices away from the host."""
    root = ET.fromstring(xml)
    return any(root.find(f"devices/{path}") is not None for path in ("hostdev", "interface[@type='hostdev']"))


def _address(source: ET.Element) -> dict[str, str]:
    address = source.find("address")
    return dict(address.attrib) if address is not None else {}


def passwords(xml: str) -> set[str]:
    """Return the types of the graphics devices that have a password, in a <domain> with its secrets."""
    found = ET.fromstring(xml).iterfind("devices/graphics")
    return {each.get("type", "") for each in found if each.get("passwd") is not None}


def displays(xml: str) -> set[str]:
    """Return the types of the graphics devices of a <domain> that can have a password."""
    return {each.get("type", "") for each in ET.fromstring(xml).iterfind("devices/graphics")} & {"vnc", "spice"}


def agent_state(xml: str) -> Optional[str]:
    """Return the agent's state in a live <domain>: "connected", "disconnected"; None without a channel."""
    for target in ET.fromstring(xml).iterfind("devices/channel/target"):
        if target.get("name") == AGENT:
            return target.get("state", "disconnected")
    return None


def platform(xml: str) -> Platform:
    """Return the platform of a <domain>, possibly from a point."""
    root = xml_tree.parse(xml)
    arch, machine = _attribute(root, "os/type", "arch"), _attribute(root, "os/type", "machine")
    return Platform(root.findtext("devices/emulator"), arch, machine, root.get("type"))


def supports_backup(capabilities: str) -> bool:
    """Return whether <domainCapabilities> has <backup supported='yes'/>."""
    return _attribute(ET.fromstring(capabilities), "features/backup", "supported") == "yes"


def qemu_user(capabilities: str) -> Optional[int]:
    """Return the ID of the user that a host runs QEMU as, according to its <capabilities>; None if they do not say."""
    for model in ET.fromstring(capabilities).iterfind("host/secmodel"):
        label = re.match(r"\+(\d+):", model.findtext("baselabel", ""))
        if model.findtext("model") == "dac" and label:
            return int(label[1])
    return None


def emulators(capabilities: str) -> list[str]:
    """Return the paths of all emulators in a host's <capabilities>."""
    return [each.text or "" for each in ET.fromstring(capabilities).iterfind("guest/arch//emulator")]


def offered(capabilities: str) -> tuple[str, list[str]]:
    """Return the emulator's path, and those of all firmware, in <domainCapabilities>."""
    root = ET.fromstring(capabilities)
    return root.findtext("path", ""), [each.text or "" for each in root.iterfind("os/loader/value")]


def _attribute(element: ET.Element, path: str, name: str) -> Optional[str]:
    child = element.find(path)
    return child.get(name) if child is not None else None
