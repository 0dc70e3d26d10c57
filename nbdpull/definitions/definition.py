"""A domain's definition as a document: which files it needs besides its disks, and its adaptation to restored ones.

Owns: the rewriting of a <domain>: paths, name, uuid and what has to change with them. Must not know: libvirt's API, the
store, which files exist.
"""

from __future__ import annotations

import re
import secrets
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Optional, Union

from ..core import errors
from ..format.layout import BOOT_FILES
from . import copy_policy, xml_tree

_TPM_FOLDERS = {"1.2": "tpm1.2", "2.0": "tpm2"}  # libvirt's names, below the directory of the domain's UUID
LOOPBACK = "127.0.0.1"
TRIAL = "nbdpull-trial-"  # prefix of the names of definitions that exist only to be judged
_ABOUT_A_TRIAL = "made by nbdpull to have a definition judged, and of no other use"
_ATTRIBUTES = {"file": "file", "block": "dev"}  # of <source>, by the disk's type
_OF_THE_OLD_SOURCE = ("backingStore", "mirror", "auth", "encryption", "transient")
_NOT_IN_XML = re.compile("[\0-\x1f\ud800-\udfff\ufffe\uffff]")  # to compile the complement takes 3 ms in each start


@dataclass(frozen=True)
class Source:
    """Where a disk is now.

    type: "file" or "block"; format: "qcow2" or "raw"; encrypted: with the secret that the definition names for it.
    """

    type: str
    path: str
    format: str
    encrypted: bool = False


def parse(xml: Union[str, bytes]) -> ET.Element:
    """Return the tree of a <domain>; Damaged if it is not one. libvirt reads two <devices> as one, and never writes
    two."""
    root = xml_tree.parse(xml)
    for tag in ("name", "uuid", "os", "devices"):
        if len(root.findall(tag)) > 1:
            raise errors.Damaged(f"not a definition of a domain: it has <{tag}> twice")
    return root


def can_name(text: str) -> bool:
    """Return whether a definition can contain that path or name: it is XML, in UTF-8."""
    return not _NOT_IN_XML.search(text)


def identity(xml: str) -> tuple[str, Optional[str]]:
    """Return (name, uuid or None) of a <domain>."""
    root = parse(xml)
    return root.findtext("name", ""), root.findtext("uuid")


def boot_files(xml: str) -> dict[str, str]:
    """Return {name: path} of the files that a <domain> boots from directly; names are those of BOOT_FILES."""
    root = parse(xml)
    return {name: root.findtext(f"os/{name}", "").strip() for name in BOOT_FILES if root.findtext(f"os/{name}")}


def tpm_folder(xml: str) -> Optional[str]:
    """Return the name of the directory with the state of an emulated TPM, below that of the domain; None without a
    TPM."""
    backend = parse(xml).find("devices/tpm/backend[@type='emulator']")
    return None if backend is None else _TPM_FOLDERS.get(backend.get("version") or "2.0")


def tpm_secret(tpm: ET.Element) -> Optional[str]:
    """Return the UUID of the libvirt secret that opens the state of an emulated TPM; None if it is not encrypted."""
    encryption = tpm.find("backend[@type='emulator']/encryption")
    return None if encryption is None else encryption.get("secret")


def has_variables(root: ET.Element) -> bool:
    """Return whether the firmware of a <domain> keeps variables in a file, as UEFI does, even if no file is named."""
    loader = root.find("os/loader")
    if loader is not None and loader.get("stateless") == "yes":
        return False
    pflash = loader is not None and loader.get("type") == "pflash"
    return pflash or root.find("os/nvram") is not None or root.find("os[@firmware='efi']") is not None


def variables(xml: str) -> tuple[Optional[str], Optional[str]]:
    """Return (path of the file or device with the firmware's variables, a warning if it is neither)."""
    element = parse(xml).find("os/nvram")
    if element is None:
        return None, None
    source = element.find("source")
    about = source.attrib if source is not None else {}
    path = (element.text or "").strip() or about.get("file") or about.get("dev")
    if path or source is None:
        return path or None, None
    return None, f"the firmware's variables ({element.get('type')} {' '.join(about.values())}) are not in the point"


def for_trial(xml: str) -> str:
    """Return the <domain> under another name and uuid, for a trial that `is_trial` recognizes.

    It lacks devices that libvirt cannot judge from the XML alone, and the scripts that libvirt would run.
    """
    root = parse(xml)
    _name(root, f"{TRIAL}{secrets.token_hex(4)}", new_uuid=True)
    xml_tree.made(root, "description").text = _ABOUT_A_TRIAL
    for device in root.findall("devices/hostdev[@type='pci']") + root.findall("devices/interface[@type='hostdev']"):
        xml_tree.child(root, "devices").remove(device)
    for interface in root.iterfind("devices/interface"):
        for script in interface.findall("script") + interface.findall("downscript"):
            interface.remove(script)
    return xml_tree.text_of(root)


def is_trial(xml: str) -> bool:
    """Return whether `for_trial` made a <domain>."""
    root = parse(xml)
    return root.findtext("name", "").startswith(TRIAL) and root.findtext("description") == _ABOUT_A_TRIAL


def adapted(
    xml: str,
    disks: dict[str, Source],
    files: Mapping[str, str],
    name: Optional[str] = None,
    new_uuid: bool = False,
    elsewhere: Optional[dict[str, str]] = None,
    passwords: Collection[str] = (),
) -> tuple[str, list[str]]:
    """Return (XML, warnings): the <domain> with disks {target: Source} and files {"nvram", "kernel" …: path}.

    elsewhere: {target: where} of restored disks that no Source can name; passwords: types of graphics that had one. A
    copy, which is a domain with another name or uuid, may run beside the original: it shares nothing with it.
    """
    root = parse(xml)
    warnings: list[str] = []
    copy = new_uuid or name not in (None, root.findtext("name"))
    _name(root, name, new_uuid)
    for disk in list(root.iterfind("devices/disk")):
        target = target_of(disk)
        if target in disks:
            warnings += _place(disk, disks[target])
        elif disk.get("device", "disk") in ("disk", "lun"):
            where = elsewhere[target] if elsewhere and target in elsewhere else None
            what = f"disk {target} was {f'restored to {where}, which is not named here' if where else 'not restored'}"
            if copy:
                xml_tree.child(root, "devices").remove(disk)
            warnings.append(f"{what}: it is left out" if copy else f"{what}: it remains unchanged")
    for element in root.iterfind("os/*"):
        if element.tag in BOOT_FILES and element.tag in files:
            element.text = files[element.tag]
    _nvram(root, files.get("nvram"), copy)
    warnings += [_sealed(secret) for secret in map(tpm_secret, root.iterfind("devices/tpm")) if secret]
    if copy:
        warnings += _own(root)
    warnings += [warning for graphics in root.iterfind("devices/graphics") for warning in _closed(graphics, passwords)]
    return xml_tree.text_of(root), warnings


def _name(root: ET.Element, name: Optional[str], new_uuid: bool) -> None:
    if name:
        xml_tree.made(root, "name").text = name
    if new_uuid:
        xml_tree.made(root, "uuid").text = fresh = str(uuid.uuid4())
        for entry in root.iterfind("sysinfo/system/entry[@name='uuid']"):  # libvirt requires both to be equal
            entry.text = fresh
        if (genid := root.find("genid")) is not None:  # shows a guest that it is a copy
            genid.text = str(uuid.uuid4())
    root.attrib.pop("id", None)


def target_of(disk: ET.Element) -> Optional[str]:
    """Return the target of a disk, such as vda."""
    target = disk.find("target")
    return None if target is None else target.get("dev")


def _place(disk: ET.Element, place: Source) -> list[str]:
    """Point the definition at a restored disk; return warnings."""
    known_secrets = [*disk.findall("source/encryption/secret"), *disk.findall("encryption/secret")]
    for tag in (*_OF_THE_OLD_SOURCE, "source"):
        for old in disk.findall(tag):
            disk.remove(old)
    for other in disk.findall("driver")[1:]:  # libvirt decides which of them counts
        disk.remove(other)
    disk.set("type", place.type)
    driver, source = xml_tree.made(disk, "driver"), ET.Element("source", {_ATTRIBUTES[place.type]: place.path})
    disk.insert(list(disk).index(driver) + 1, source)
    if place.encrypted:
        ET.SubElement(source, "encryption", format="luks").extend(known_secrets[:1])
    driver.set("type", place.format)
    for cache in driver.findall("metadata_cache") if place.format != "qcow2" else []:
        driver.remove(cache)  # of qcow2's tables
    return _no_lun(disk) if place.type == "file" and disk.get("device") == "lun" else []


def _no_lun(disk: ET.Element) -> list[str]:
    disk.set("device", "disk")
    for name in ("rawio", "sgio"):
        disk.attrib.pop(name, None)
    return [f"disk {target_of(disk)} was a LUN, which takes SCSI commands from the guest: in a file it is a plain disk"]


def _nvram(root: ET.Element, path: Optional[str], copy: bool) -> None:
    """Use the variables of the point. For a copy without any, libvirt makes them, at a path of its own."""
    if not has_variables(root) or not (path or copy):
        return
    element = xml_tree.made(xml_tree.child(root, "os"), "nvram")
    for child in list(element):
        element.remove(child)
    element.attrib.pop("type", None)  # the format remains: a point has the bytes unchanged
    element.text = path


def _sealed(secret: str) -> str:
    return (
        f"the TPM's state is encrypted with libvirt's secret {secret}, which is not in the point: without it the "
        "domain does not start (virsh secret-define, secret-set-value)"
    )


def _own(root: ET.Element) -> list[str]:
    """Make a copy's devices its own; return warnings."""
    devices, warnings = root.find("devices"), copy_policy.own_domain(root)
    for device in list(devices) if devices is not None else []:
        rule = copy_policy.Rule(warning=_own_disk(device)) if device.tag == "disk" else copy_policy.own(device)
        warnings.append(rule.warning)
        if not rule.kept:
            xml_tree.child(root, "devices").remove(device)
    return [f"in the copy {text}" for text in warnings if text]


def _own_disk(disk: ET.Element) -> str:
    """Keep restored disks, and read-only media, which can be in the drives of both; return a warning or ""."""
    for mark in disk.findall("shareable"):
        disk.remove(mark)
    kind, source = disk.get("device"), disk.find("source")
    written_to = kind == "floppy" and disk.find("readonly") is None
    if source is None or not (written_to or (kind == "cdrom" and disk.get("type") == "block")):
        return ""
    disk.remove(source)
    return f"{kind} {target_of(disk)} has no medium: it belongs to the original"


def _closed(graphics: ET.Element, passwords: Collection[str]) -> list[str]:
    """If a display had a password, which no point contains, let it listen on this host only; return warnings."""
    kind = graphics.get("type")
    if kind not in passwords:
        return []
    graphics.attrib.pop("listen", None)
    listens = graphics.findall("listen")
    for listen in listens:
        if listen.get("type") in ("address", "network"):
            listen.attrib.clear()
            listen.attrib.update(type="address", address=LOOPBACK)
    if not listens and not graphics.get("socket"):
        graphics.set("listen", LOOPBACK)
    return [f"graphics {kind} had a password, which is not in the point: it listens on {LOOPBACK}; see virsh edit"]
