"""Devices that were plugged into a running domain alone: its next start would not have them, but its disks are pulled.

Owns: what the definition of a domain as it runs has besides the persistent one, and how disks of it come into that.
Must not know: libvirt's API, the store, where a disk is restored to.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Optional, cast

from . import definition, xml_tree


def found(xml: str, live: str) -> list[ET.Element]:
    """Devices that a <domain> has as it runs, and not by the definition of its next start."""
    known = [_key(device) for device in definition.parse(xml).iterfind("devices/*")]
    extra = []
    for device in definition.parse(live).iterfind("devices/*"):
        if _key(device) in known:
            known.remove(_key(device))
        else:
            extra.append(device)
    return extra


def _key(device: ET.Element) -> tuple[Optional[str], ...]:
    """What identifies a device among others of its kind; if nothing does, their number is compared."""
    told = {"disk": ("target", "dev"), "interface": ("mac", "address")}.get(device.tag)
    if told is None:
        return device.tag, device.get("type"), device.get("index"), device.get("model")
    inner = device.find(told[0])
    return device.tag, None if inner is None else inner.get(told[1])


def joined(xml: str, live: Optional[str], disks: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """Return (XML, extra, lost): the <domain> that the next start would have had, with every one of the disks. live:
    its definition as it ran, None where there is none; extra: texts that name what it had besides; lost: which of the
    disks are in neither."""
    root, extra = definition.parse(xml), []
    for device in found(xml, live) if live else []:
        if device.tag == "disk" and definition.target_of(device) in disks:
            _plug(root, device, definition.parse(cast(str, live)))  # without it nothing is found
        elif device.tag != "controller":
            extra.append(_described(device))
    known = [definition.target_of(disk) for disk in root.iterfind("devices/disk")]
    return xml_tree.text_of(root), extra, [disk for disk in disks if disk not in known]


def _described(device: ET.Element) -> str:
    return " ".join(filter(None, [device.tag, *(each for each in _key(device)[1:] if each)]))


def _plug(root: ET.Element, disk: ET.Element, live_root: ET.Element) -> None:
    """Add a disk to a <domain>, with the controller that it hangs on."""
    address, target = disk.find("address"), xml_tree.child(disk, "target")
    if address is not None and address.get("type") == "drive":
        wanted = {"type": target.get("bus"), "index": address.get("controller", "0")}
        if not _having(root, wanted):
            for controller in _having(live_root, wanted):
                _add(root, controller)
    _add(root, disk)


def _having(root: ET.Element, attributes: dict[str, Optional[str]]) -> list[ET.Element]:
    return [each for each in root.iterfind("devices/controller") if attributes.items() <= each.attrib.items()]


def _add(root: ET.Element, device: ET.Element) -> None:
    devices = xml_tree.made(root, "devices")
    taken = [each.attrib for each in devices.iter("address")]
    for child in list(device):
        if child.tag in ("alias", "backingStore", "mirror") or (child.tag == "address" and child.attrib in taken):
            device.remove(child)  # for a disk without an address libvirt finds one
    siblings = [number for number, each in enumerate(devices) if each.tag == device.tag]
    devices.insert(siblings[-1] + 1 if siblings else len(devices), device)
