"""A domain's definition turned into that of a drill: the same machine, isolated, with throw-away disks.

Owns: what a drill keeps of a definition. Only devices listed here are kept, each as a copy may have it
(copy_policy.py): a drill must not reach a network, a device or a folder of the host, nor anything that the real domain
may be using. Nor does it run or open anything of the host that only the definition names. Must not know: libvirt's API,
files.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Collection
from typing import Optional

from ..core import errors
from ..format.layout import BOOT_FILES
from . import copy_policy, definition, domain_xml, host_reach, xml_tree
from .host_reach import Offer

_KEPT_DEVICES = ("emulator", "controller", "input", "rng", "memballoon", "panic", "iommu", "memory", "video")
# Of the domain itself, this leaves out pinning, tuning, labels, host memory, metadata, and its own QEMU arguments.
_KEPT = ("name", "uuid", "memory", "currentMemory", "maxMemory", "vcpu", "vcpus", "os", "features", "cpu", "clock",
         "pm", "on_poweroff", "on_reboot", "on_crash", "devices", "launchSecurity", "iothreads", "sysinfo")  # fmt: skip
_KEPT_OF_DISK = ("target", "boot", "serial", "wwn", "vendor", "product", "address", "geometry", "blockio")


def has_agent(xml: str) -> bool:
    """Return whether the domain has the guest agent's channel."""
    names = [target.get("name") for target in definition.parse(xml).iterfind("devices/channel/target")]
    return domain_xml.AGENT in names


def has_display(xml: str) -> bool:
    models = [model.get("type") for model in definition.parse(xml).iterfind("devices/video/model")]
    return any(model != "none" for model in models)


def disks(xml: str) -> list[str]:
    """Return the targets of the domain's disks."""
    found = definition.parse(xml).iterfind("devices/disk")
    return [_target(disk) for disk in found if disk.get("device", "disk") in ("disk", "lun")]


def adapted(
    xml: str, name: str, uuid: str, images: dict[str, str], console: str, files: dict[str, str], offer: Offer
) -> str:
    """Return the definition of the drill.

    images: qcow2 file for each disk's target; console: file for what the guest prints; files: path of "nvram",
    "kernel", "initrd", "dtb" if the point has them; offer: what the host has. StoreError, Unsupported if the machine
    needs what neither the point nor the host has.
    """
    root = definition.parse(xml)
    for element in list(root):
        if element.tag not in _KEPT:
            root.remove(element)
    root.attrib.pop("id", None)
    xml_tree.made(root, "name").text = name
    xml_tree.made(root, "uuid").text = uuid
    for event in ("on_poweroff", "on_crash"):
        xml_tree.made(root, event).text = "destroy"
    _adapt_os(root, files, offer)
    devices = xml_tree.made(root, "devices")
    kept = [_device(device, images, offer) for device in list(devices)]
    serial = _serial(devices, console)
    for device in list(devices):
        devices.remove(device)
    devices.extend([device for device in kept if device is not None] + [serial])
    if has_agent(xml):
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "target", type="virtio", name=domain_xml.AGENT)
    _require_nothing_of_the_host(root, {*images.values(), console, *files.values()}, offer)
    return xml_tree.text_of(root)


def _require_nothing_of_the_host(root: ET.Element, own: Collection[str], offer: Offer) -> None:
    """Raise Unsupported if the definition names anything of the host.

    Whoever can write to the store may have written the definition, and a drill runs as root.
    """
    found = [each for each in host_reach.reaches(root) if each.value not in own and not offer.covers(each)]
    if found:
        raise errors.Unsupported(f"no drill: the domain's definition names {found[0]}, which is neither in the point "
                                 "nor offered by this host to every domain")  # fmt: skip


def _adapt_os(root: ET.Element, files: dict[str, str], offer: Offer) -> None:
    os = root.find("os")
    if os is None:
        return
    for tag in BOOT_FILES:
        element = os.find(tag)
        if element is not None and tag not in files:
            raise errors.StoreError(f"no drill: the domain's {tag} is not in the point")
        if element is not None:
            element.text = files[tag]
    if definition.has_variables(root):
        _adapt_nvram(os, files["nvram"], offer)


def _adapt_nvram(os: ET.Element, path: str, offer: Offer) -> None:
    """Set the path of the variables: where they are, or where libvirt should make them from the template.

    At libvirt's default path they would remain after the drill.
    """
    old = os.find("nvram")
    kept = {} if old is None else {name: old.get(name, "") for name in ("template", "format") if old.get(name)}
    if not offer.has_firmware(kept.get("template", "")):
        kept.pop("template", None)  # libvirt knows a template for each firmware of the host
    if old is not None:
        os.remove(old)
    ET.SubElement(os, "nvram", kept).text = path


def _device(device: ET.Element, images: dict[str, str], offer: Offer) -> Optional[ET.Element]:
    """Return what a drill keeps of a device, or None."""
    if device.tag == "disk":
        return _disk(device, images)
    if device.tag not in _KEPT_DEVICES or not copy_policy.own(device).kept:
        return None
    if device.tag == "emulator" and device.text not in offer.emulators:
        return None  # libvirt has its own for this architecture
    return _video(device) if device.tag == "video" else device


def _disk(device: ET.Element, images: dict[str, str]) -> Optional[ET.Element]:
    target = _target(device)
    if target not in images:
        return None
    disk = ET.Element("disk", type="file", device="disk")
    # The disk is thrown away: nothing has to reach the medium.
    ET.SubElement(disk, "driver", name="qemu", type="qcow2", cache="unsafe")
    ET.SubElement(disk, "source", file=images[target])
    disk.extend([child for child in device if child.tag in _KEPT_OF_DISK])
    return disk


def _video(device: ET.Element) -> ET.Element:
    """Replace QXL, which needs SPICE, which a drill lacks; drop acceleration and drivers, which need something of the
    host."""
    for driver in device.findall("driver"):
        device.remove(driver)
    model = device.find("model")
    if model is not None:
        if model.get("type") == "qxl":
            model.attrib.clear()
            model.set("type", "vga")
        for child in list(model):
            model.remove(child)
    return device


def _serial(devices: ET.Element, console: str) -> ET.Element:
    """Return the first serial port, else the first console, else a new port, redirected to a file."""
    found = devices.find("serial")
    if found is None:
        found = devices.find("console")
    serial = ET.Element(found.tag if found is not None else "serial", type="file")
    ET.SubElement(serial, "source", path=console)
    for child in found if found is not None else []:
        if child.tag in ("target", "address"):
            serial.append(child)
    return serial


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "") if target is not None else ""
