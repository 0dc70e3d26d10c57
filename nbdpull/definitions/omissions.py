"""What of a domain a point lacks: disks that were not pulled, and other things that contain data.

Owns: which parts of a definition contain data, and whether anybody would miss them. This follows from the definitions
in a point, and so applies to points of any age. Must not know: the store, libvirt's API, what is printed.
"""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator
from typing import NamedTuple, Optional, Protocol, TypeVar

from ..core import errors
from ..format import layout
from ..format.manifest import Manifest
from . import definition, disk_choice, domain_xml, hot_plug

DISK, DEVICE, FILE = "disk", "device", "file"
_MEMORY = ("nvdimm", "virtio-pmem")  # it outlives its domain
_WITH_DATA = ("scsi", "scsi_host", "storage")  # devices of the host
NEXT_START = "is not in the running domain"


class Omission(NamedTuple):
    """One thing that a point lacks.

    what: "disk vdb", "filesystem home", …; why: the end of a sentence that starts with it; path: where it is on the
    domain's host, None if unknown; missed: whether it contains data that nobody chose to leave out.
    """

    kind: str
    what: str
    why: str
    path: Optional[str]
    missed: bool


class Point(Protocol):
    @property
    def manifest(self) -> Manifest: ...


_P = TypeVar("_P", bound=Point, contravariant=True)


class Definitions(Protocol[_P]):
    """The part of a series of points that is used here."""

    def definition(self, point: _P) -> str: ...

    def live_definition(self, point: _P) -> Optional[str]: ...


def of_point(target: Definitions[_P], point: _P) -> Optional[list[Omission]]:
    """Return the omissions of a Point of the Series `target`; None if its definition cannot be read."""
    try:
        xml, live = target.definition(point), target.live_definition(point)
        files = tuple(entry.path.partition("/")[2] for entry in point.manifest.files)
        return _known(xml, live, tuple(disk.name for disk in point.manifest.disks), files)
    except (errors.Damaged, errors.KeyNeeded):
        return None


def found(
    xml: str,
    live: Optional[str],
    disks: Collection[str],
    files: Optional[Collection[str]] = None,
    asked: Collection[str] = (),
) -> list[Omission]:
    """Return what of a <domain> is not among `disks`, and not in the `files` of a point if these are known.

    live: the running domain, if it has more; asked: disks that the user chose to leave out. Damaged.
    """
    root = definition.parse(xml)
    extra = hot_plug.found(xml, live) if live else []
    devices = [*root.iterfind("devices/*"), *extra]
    omitted = [*_disks(xml, live, disks, asked), *filter(None, map(_device, devices))]
    return omitted + (list(_files(xml, live, root, files)) if files is not None else [])


_known = functools.lru_cache(maxsize=8)(found)  # most points of a domain have the same


def _disks(xml: str, live: Optional[str], disks: Collection[str], asked: Collection[str]) -> Iterator[Omission]:
    running = {disk.target: disk for disk in domain_xml.parse_disks(live)} if live else {}
    for name, disk in {**{each.target: each for each in domain_xml.parse_disks(xml)}, **running}.items():
        if name in disks or disk.empty:
            continue
        why, missed = disk_choice.why_left_out(disk), disk_choice.is_missed(disk)
        if live and name not in running:
            why, missed = NEXT_START, True
        kind = disk.device if disk.device in ("cdrom", "floppy") else "disk"
        yield Omission(DISK, f"{kind} {name}", why or "was left out", disk.source, missed and name not in asked)


def _device(device: ET.Element) -> Optional[Omission]:
    source = device.find("source")
    if device.tag == "filesystem" and device.get("type") != "ram":
        target = device.find("target")
        return Omission(DEVICE, _named("filesystem", target, "dir"), "is a directory of the host", _path(source), True)
    if device.tag == "memory" and device.get("model") in _MEMORY:
        return Omission(DEVICE, f"memory {device.get('model')}", "is kept by the host", _path(source), True)
    if device.tag == "hostdev":
        kind = device.get("type") or ""
        return Omission(DEVICE, f"hostdev {kind}", "is a device of the host", _path(source), kind in _WITH_DATA)
    if device.tag == "tpm" and device.find("backend[@type='emulator']") is None:
        return Omission(DEVICE, "tpm", "keeps its state outside of libvirt", None, True)
    if device.tag == "tpm" and (secret := definition.tpm_secret(device)):
        return Omission(DEVICE, f"secret {secret}", "opens the TPM's state, and only libvirt has it", None, True)
    return None


def _named(what: str, element: Optional[ET.Element], attribute: str) -> str:
    return f"{what} {element.get(attribute)}" if element is not None and element.get(attribute) else what


def _path(source: Optional[ET.Element]) -> Optional[str]:
    """Return a path, or else what a <source> names."""
    if source is None:
        return None
    values = [value for each in source.iter() for value in [*each.attrib.values(), (each.text or "").strip()] if value]
    return " ".join(values) or None


def _files(xml: str, live: Optional[str], root: ET.Element, files: Collection[str]) -> Iterator[Omission]:
    if definition.has_variables(root) and layout.NVRAM not in files:
        yield Omission(FILE, "nvram", "could not be read here", definition.variables(live or xml)[0], True)
    if definition.tpm_folder(xml) and not any(name.startswith(layout.TPM_PREFIX) for name in files):
        yield Omission(FILE, "tpm", "has a state that could not be read here", None, True)
    for name, path in definition.boot_files(xml).items():
        if name not in files:
            yield Omission(FILE, name, "could not be read here", path, True)
