"""Devices that were plugged into a running domain only: its next start would lack them, but its disks are pulled.

Owns: what the definition of the running domain has besides the persistent one, and how its disks are added to the
latter. Must not know: libvirt's API, the store, where a disk is restored to.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Optional, cast

from . import definition, xml_tree


def found(xml: str, live: str) -> list[ET.Element]:
    """Return the devices that the running <domain> has, but the definition of its next start lacks."""
    known = [_key(device) for device in definition.parse(xml).iterfind("devices/*")]
    extra = []
    for device in definition.parse(live).iterfind("devices/*"):
        if _key(device) in known:
            known.remove(_key(device))
        else:
            extra.append(device)
    return extra


def _key(device: ET.Element) -> tuple[Optional[str], ...]:
    """Return what identifies a device among others of its kind. Devices with equal keys are matched by number."""
    where = {"disk": ("target", "dev"), "interface": ("mac", "address")}.get(device.tag)
    if where is None:
        return device.tag, device.get("type"), device.get("index"), device.get("model")
    inner = device.find(where[0])
    return device.tag, None if inner is None else inner.get(where[1])


def joined(xml: str, live: Optional[str], disks: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """Return (XML, extra, lost): the <domain> of the next start, with every one of the disks added.

    live: the definition of the running domain, None if there is none; extra: texts that name what else it had; lost:
    the disks that are in neither.
    """
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
    """Add a disk to a <domain>, with its controller."""
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
            device.remove(child)  # libvirt assigns an address to a disk without one
    siblings = [number for number, each in enumerate(devices) if each.tag == device.tag]
    devices.insert(siblings[-1] + 1 if siblings else len(devices), device)
