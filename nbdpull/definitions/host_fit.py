"""A restored definition adapted to this host: what is missing here is replaced, what only the definition names is
shown.

Owns: what is replaced automatically, and what a person has to approve before libvirt gets it. Whoever could write to
the store could write the definition: an emulator runs as root, and a path is a file that the guest reads or writes.
Must not know: libvirt's API; files, which a callable inspects.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import Callable

from ..core import errors
from . import definition, xml_tree
from .host_reach import Offer, Reach, is_usual_emulator, reaches, usual_emulators

DISC, FILE, NOTHING, UNKNOWN = "disc", "file", "nothing", "unknown"  # what exists at a path
_SHOWN = 6  # number of refused items listed in one line
_IMAGES = ("disk", "cdrom", "floppy")
_MAY_BE_MISSING = ("optional", "requisite")  # startupPolicy: libvirt ejects it automatically

Look = Callable[[str], str]


def fitted(xml: str, offer: Offer, look: Look, trusted: bool = False) -> tuple[str, list[str]]:
    """Return (XML, warnings).

    look(path): returns one of the words above; trusted: the definition is the user's own, so only what does not exist
    is replaced.
    """

    def stays(path: str) -> bool:
        return trusted and look(path) != NOTHING

    root, warnings = definition.parse(xml), []
    for emulator in root.findall("devices/emulator"):
        path = (emulator.text or "").strip()
        if path not in offer.emulators and not stays(path):
            xml_tree.child(root, "devices").remove(emulator)
            warnings.append(f"libvirt does not offer the emulator {path} here: it uses its own")
    for loader in root.iterfind("os[@firmware='efi']/loader"):
        path = (loader.text or "").strip()
        if path and not offer.has_firmware(path) and not stays(path):
            loader.text = None
            for nvram in root.iterfind("os/nvram"):
                nvram.attrib.pop("template", None)
            warnings.append(f"the firmware {path} is not on this host: libvirt selects another")
    for disk in root.iterfind("devices/disk"):
        warnings += _without_medium(disk, look, trusted)
    return xml_tree.text_of(root), warnings


def loosened(xml: str, is_here: Callable[[str], bool]) -> tuple[str, list[str]]:
    """Return (XML, warnings) for a libvirt that cannot be asked: what it may lack must not prevent the guest from
    starting.

    is_here(path): whether such a file exists; called only for the usual emulators.
    """
    root, warnings = definition.parse(xml), []
    for emulator in root.findall("devices/emulator"):
        path = (emulator.text or "").strip()
        if is_usual_emulator(path) and not is_here(path) and any(map(is_here, usual_emulators(root))):
            xml_tree.child(root, "devices").remove(emulator)
            warnings.append(f"the emulator {path} is not on this host: libvirt uses its own")
    for drive in root.iterfind("devices/disk"):
        source, is_path = drive.find("source"), drive.get("type") in ("file", "block")
        if is_path and drive.get("device") in ("cdrom", "floppy") and source is not None:
            source.attrib.setdefault("startupPolicy", "optional")
    return xml_tree.text_of(root), warnings


def _without_medium(drive: ET.Element, look: Look, trusted: bool) -> list[str]:
    """Eject a medium that is missing, or is not a disc; return warnings."""
    source, kind = drive.find("source"), drive.get("device")
    if source is None or kind not in ("cdrom", "floppy") or source.get("startupPolicy") in _MAY_BE_MISSING:
        return []
    path = source.get("file") or source.get("dev")
    found = look(path) if path else UNKNOWN
    no_disc = found == FILE and kind == "cdrom" and drive.get("type") == "file" and not trusted
    if found != NOTHING and not no_disc:
        return []
    drive.remove(source)
    why = "is not an image of a disc" if no_disc else "does not exist here"
    return [f"{kind} {definition.target_of(drive)} has no medium: {path} {why}"]


def foreign(xml: str, offer: Offer, look: Look, own: Iterable[str], known: Iterable[Reach] = ()) -> list[Reach]:
    """Return what a definition names of the host that is not in `own`, not offered to every domain, and not in
    `known`."""
    own, known = set(own), set(known)

    def is_foreign(reach: Reach) -> bool:
        if reach.value in own or reach in known or offer.covers(reach):
            return False
        may_be_disc = reach.what.startswith("cdrom ") and reach.is_path and not reach.formats
        return not (may_be_disc and look(reach.value) == DISC)

    return list(filter(is_foreign, reaches(definition.parse(xml))))


def require_known(xml: str, offer: Offer, look: Look, own: Iterable[str], known: Iterable[Reach]) -> None:
    """Raise ForeignDefinition if there is anything foreign.

    A missing image is not foreign: the guest cannot start without it. (But QEMU would create the file of a port.)
    """

    def is_gone(reach: Reach) -> bool:
        return reach.what.partition(" ")[0] in _IMAGES and reach.is_path and look(reach.value) == NOTHING

    found = [reach for reach in foreign(xml, offer, look, own, known) if not is_gone(reach)]
    firmware = sorted(offer.firmware) if any(each.what == "loader" for each in found) else []
    hint = f" (firmware of this host is in {', '.join(firmware)})" if firmware else ""
    if found:
        raise errors.ForeignDefinition(
            f"the definition names what is neither in the point nor offered by this host to every domain: "
            f"{listing(found)}{hint}; if you trust it, use --trust-definition; else restore without --define, correct "
            "domain.xml, and run virsh define"
        )


def listing(found: list[Reach]) -> str:
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(map(str, found[:_SHOWN])) + more
