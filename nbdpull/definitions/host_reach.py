"""What a definition names of its host: programs, files, devices. The author of the definition chose them.

Owns: where such names occur, and which of them a host offers to every domain. A value with a slash counts anywhere, so
that new elements of later libvirt versions count, too. A value without a slash counts where a file or a program is
expected: libvirt looks for a program in its PATH, QEMU for a file in its working directory, which is the root. What
reaches the host without a path is recognized by its kind. Must not know: libvirt's API, which files exist.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .copy_policy import RANDOM_DEVICES, TO_QEMU, local_name

# What may have slashes and does not name anything of the host: words, times, secrets of processors, tuning, network
# filters.
_HARMLESS = ("name", "title", "description", "metadata", "clock", "blkiotune", "resource", "cmdline", "serial",
             "vendor", "product", "wwn", "alias", "filterref", "secret", "session", "dhCert", "idBlock", "idAuth",
             "hostData", "mrConfigId", "mrOwner", "mrOwnerConfig")  # fmt: skip
_PATHS = ("file", "path", "socket", "evdev", "logFile", "rendernode", "template", "tap", "vhost")  # attributes
_DEVICES = ("source", "input", "output")  # elements whose dev is a path, except in an interface
_TEXTS = ("emulator", "bootloader", "loader", "nvram", "kernel", "initrd", "dtb", "shim", "table", "path", "backend")
_OF_THE_GUEST = ("alias", "address", "target", "boot", "driver", "backingStore", "readonly", "shareable")
_PORTS = ("serial", "parallel", "console", "channel", "redirdev")


class Reach(NamedTuple):
    """Something of the host that a definition names.

    what: "emulator", "disk vdb", …; value: a path, or everything that identifies it if no path alone does; formats: the
    formats assumed for a disk's images: a raw image that a guest filled may look like one that names files of the host.
    """

    what: str
    value: str
    is_path: bool = True
    formats: str = ""

    def __str__(self) -> str:
        return f"{self.what} {self.value}"


_DRIVE = re.compile(r"/dev/(sr\d+|cdrom\w*|dvd\w*)\Z", re.ASCII)
_EMULATOR = re.compile(r"/usr/(bin|libexec)/(qemu-(system-\w+|kvm)|kvm)\Z", re.ASCII)


@dataclass(frozen=True)
class Offer:
    """What a host offers to every domain.

    emulators: paths; firmware: directories with firmware. Its source of entropy and its disc drive are also offered.
    """

    emulators: frozenset[str] = frozenset()
    firmware: frozenset[str] = frozenset()

    def has_firmware(self, path: str) -> bool:
        return os.path.dirname(path) in self.firmware

    def covers(self, reach: Reach) -> bool:
        if reach.what == "emulator":
            return reach.value in self.emulators
        if reach.what in ("loader", "nvram template"):
            return self.has_firmware(reach.value)
        if reach.what == "rng":
            return reach.value in RANDOM_DEVICES
        return reach.what.startswith("cdrom ") and bool(_DRIVE.match(reach.value))


class Packaged(Offer):
    """What hosts usually offer, if no libvirt was asked: what packages put into system directories."""

    def has_firmware(self, path: str) -> bool:
        return path.startswith("/usr/share/") and ".." not in path

    def covers(self, reach: Reach) -> bool:
        return (reach.what == "emulator" and is_usual_emulator(reach.value)) or super().covers(reach)


def is_usual_emulator(path: str) -> bool:
    """Return whether packages of distributions put QEMU there."""
    return bool(_EMULATOR.match(path))


def usual_emulators(root: ET.Element) -> list[str]:
    """Return the usual paths of a QEMU that runs a <domain>."""
    kind = root.find("os/type")
    if kind is not None and kind.get("arch", "x86_64") != "x86_64":  # their names are not always QEMU's
        return []
    return ["/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm", "/usr/bin/kvm"]


def reaches(root: ET.Element) -> list[Reach]:
    """Return everything of the host that a <domain> names, each once."""
    parts = (element for element in root if local_name(element) not in _HARMLESS)
    found = dict.fromkeys(reach for element in parts for reach in _of(element))
    # libvirt writes the first serial port a second time, as a console.
    return [reach for reach in found if reach.what != "console" or reach._replace(what="serial") not in found]


def _of(element: ET.Element) -> Iterator[Reach]:
    """Yield what a child of <domain> names."""
    if element.tag in ("devices", "os"):
        for child in element:
            if element.tag == "devices" or child.tag not in _HARMLESS:
                yield from _of_part(child)
    elif local_name(element) in TO_QEMU:
        yield Reach(element.tag, " ".join(_values(element.iter())), False)
    elif element.tag == "sysinfo":  # its texts are the guest's
        yield from (Reach("sysinfo", each.get("file", "")) for each in element.iter() if each.get("file"))
    else:
        yield from _of_part(element)


def _of_part(part: ET.Element) -> Iterator[Reach]:
    what, formats = _name(part), _formats(part)
    if _has_no_path(part):
        about = [each for child in part if child.tag not in _OF_THE_GUEST for each in child.iter()]
        yield Reach(what, " ".join([*part.attrib.values(), *_values(about)]), False, formats)
    # The chain below a pathless disk is not listed with it, because a running domain lists it, too; its files are.
    for each in part.iterfind("backingStore//") if _has_no_path(part) else _walk(part):
        if each.tag == "seclabel" and _is_static(each):
            yield Reach("seclabel" if part is each else f"{what} seclabel", " ".join(_values(each.iter())), False)
        texts = [("", each.text or ""), *each.attrib.items()]
        yield from (
            Reach(f"{what} template" if name == "template" else what, value.strip(), True, formats)
            for name, value in texts
            if "/" in value or (value.strip() and _is_for_a_path(part, each, name))
        )


def _formats(part: ET.Element) -> str:
    """Return the formats of a disk and of everything below it, "" if all are raw."""
    found = [each.get("type") or "" for each in part.iter() if part.tag == "disk" and each.tag in ("driver", "format")]
    return " ".join(found) if {*found} - {"raw"} else ""


def _is_for_a_path(part: ET.Element, element: ET.Element, name: str) -> bool:
    """Return whether a value is a path even without a slash. name: of an attribute, "" for the text."""
    if name == "dev":
        return element.tag in _DEVICES and part.tag != "interface"
    return name in _PATHS or (not name and element.tag in _TEXTS)


def _has_no_path(part: ET.Element) -> bool:
    """Return whether the part can reach the host without a path: then everything in it is listed."""
    kinds = [part.get("type"), *(backend.get("type") for backend in part.iterfind("backend"))]
    return (
        part.tag in ("hostdev", "filesystem", "shmem", "lease")
        or (part.tag == "disk" and part.get("type") not in ("file", "block"))
        or (part.tag == "interface" and part.get("type") == "hostdev")
        or (part.tag == "smartcard" and part.get("mode") != "passthrough")
        or (part.tag == "tpm" and "emulator" not in kinds)
        or (part.tag in (*_PORTS, "smartcard", "rng") and bool({"tcp", "udp"} & set(kinds)))
    )


def _is_static(label: ET.Element) -> bool:
    """Return whether a label is fixed.

    A domain's label shows that by its type, or by the label that it starts from; a device's by whether it is applied.
    """
    if label.find("baselabel") is not None:
        return True
    return label.get("type") in ("static", "none") if label.get("type") else label.get("relabel") != "no"


def _name(part: ET.Element) -> str:
    target = part.find("target")
    if part.tag != "disk" or target is None:
        return part.tag
    kind = part.get("device", "disk")
    return f"{kind if kind in ('cdrom', 'floppy') else 'disk'} {target.get('dev', '')}"


def _walk(element: ET.Element) -> Iterator[ET.Element]:
    yield element
    for child in element:
        if child.tag not in _HARMLESS:
            yield from _walk(child)


def _values(elements: Iterable[ET.Element]) -> list[str]:
    found = []
    for each in elements:
        found += [(each.text or "").strip(), *(v for name, v in each.attrib.items() if not name.startswith("xmlns"))]
    return list(filter(None, found))
