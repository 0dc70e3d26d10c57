"""What a copy of a domain may keep of the original, which may run beside it: nothing that exists once per host.

Owns: the one rule for each device, for restored copies and for drills. What exists once per host (a port, a path, an
address, a device) becomes automatic; what the copy cannot have for itself is left out and reported. A device that this
module does not know is left out, too. Must not know: disks and firmware (definition.py, drill_xml.py), libvirt's API,
files.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Callable, NamedTuple

ENTROPY = "/dev/urandom"
RANDOM_DEVICES = (ENTROPY, "/dev/random", "/dev/hwrng")  # which any number of guests may read
TO_QEMU = ("commandline", "override")  # local names of elements that bypass libvirt and go to QEMU

_OWN_PORTS = ("pty", "null", "vc", "stdio", "spicevmc", "spiceport", "qemu-vdagent", "dbus")
_OWN_NETWORKS = ("network", "bridge", "direct", "user", "ethernet", "mcast", "client", "null")
_OWN_AUDIO = ("none", "spice")
_PORT_IDENTITY = ("interfaceid", "instanceid")  # of <virtualport>: a switch knows a port by it


class Rule(NamedTuple):
    """The result for one device. kept: whether a copy keeps it, made its own; warning: "" if there is none."""

    kept: bool = True
    warning: str = ""


_KEPT = Rule()


def own(device: ET.Element) -> Rule:
    """Make a device the copy's own, in place."""
    return _RULES.get(device.tag, _left_out)(device)


def own_domain(root: ET.Element) -> list[str]:
    """Do the same with the parts of the domain that are not devices; return warnings."""
    warnings = []
    for element in list(root):
        label = element.tag == "seclabel" and element.get("type") == "static"
        if label or local_name(element) in TO_QEMU:
            root.remove(element)
            warnings.append(f"{element.tag} is left out: it may name something of the original")
    return warnings


def local_name(element: ET.Element) -> str:
    return element.tag.rpartition(":")[2] if isinstance(element.tag, str) else ""  # a comment has none


def _kept(_device: ET.Element) -> Rule:
    return _KEPT


def _left_out(device: ET.Element, why: str = "it belongs to the original, or to the host") -> Rule:
    words = [device.tag, device.get("type") or device.get("model") or device.get("mode") or ""]
    source = device.find("source")
    words += list(source.attrib.values())[:1] if source is not None else []
    return Rule(False, f"{' '.join(filter(None, words))} is left out: {why}")


def _kept_if(kept: Callable[[ET.Element], bool]) -> Callable[[ET.Element], Rule]:
    return lambda device: _KEPT if kept(device) else _left_out(device)


def _remove(element: ET.Element, *tags: str) -> None:
    for tag in tags:
        for child in element.findall(tag):
            element.remove(child)


def _port(device: ET.Element) -> Rule:
    """Make a serial or parallel port, or a console, the copy's own."""
    kind = device.get("type", "pty")
    _remove(device, "log", *(["source"] if kind == "pty" or kind not in _OWN_PORTS else []))
    device.attrib.pop("tty", None)
    if kind in _OWN_PORTS:
        return _KEPT
    device.set("type", "pty")
    _remove(device, "protocol")
    target = device.find("target")
    mirrors = device.tag == "console" and target is not None and target.get("type") == "serial"  # reported there
    return Rule(True, "" if mirrors else f"{device.tag}, a {kind} of the host, becomes a pty")


def _channel(device: ET.Element) -> Rule:
    target, kind = device.find("target"), device.get("type")
    if target is not None and target.get("type") == "guestfwd":
        return _left_out(device)
    _remove(device, "log")
    if kind in _OWN_PORTS:
        return _KEPT
    source = device.find("source")
    changed = kind != "unix" or (source is not None and source.get("mode") == "connect")
    _remove(device, "source", "protocol")
    device.set("type", "unix")  # libvirt makes its path
    name = (target.get("name") if target is not None else None) or "without a name"
    return Rule(True, f"channel {name}, a {kind} of the host, becomes a socket of its own" if changed else "")


def _graphics(device: ET.Element) -> Rule:
    kind = device.get("type")
    if kind in ("sdl", "desktop"):
        return _left_out(device)
    for name in ("socket", "address", "tlsPort"):
        device.attrib.pop(name, None)
    for listen in device.iterfind("listen"):
        listen.attrib.pop("socket", None)
    if kind in ("vnc", "spice", "rdp"):
        device.set("port", "-1")
        device.set("autoport", "yes")
    if device.get("websocket"):
        device.set("websocket", "-1")
    return _KEPT


def _interface(device: ET.Element) -> Rule:
    kind, source, target = device.get("type"), device.find("source"), device.find("target")
    alone = source is not None and source.get("mode") == "passthrough"  # occupies the host's device exclusively
    unmanaged = target is not None and target.get("managed") == "no"  # somebody made it for this domain only
    if kind not in _OWN_NETWORKS or alone or unmanaged:
        return _left_out(device)
    _remove(device, "mac", "target", "portForward")
    for parameters in device.iterfind("virtualport/parameters"):
        for name in _PORT_IDENTITY:
            parameters.attrib.pop(name, None)
    for backend in device.iterfind("backend"):
        backend.attrib.pop("logFile", None)
    return _KEPT


def _rng(device: ET.Element) -> Rule:
    for backend in device.iterfind("backend"):
        if backend.get("model") == "builtin" or (backend.text or "").strip() in RANDOM_DEVICES:
            continue
        backend.clear()
        backend.set("model", "random")
        backend.text = ENTROPY
    return _KEPT


def _vsock(device: ET.Element) -> Rule:
    for cid in device.iterfind("cid"):
        cid.attrib.clear()
        cid.set("auto", "yes")
    return _KEPT


def _audio(device: ET.Element) -> Rule:
    kind = device.get("type")
    if kind in _OWN_AUDIO:
        return _KEPT
    _remove(device, "input", "output")
    number = device.get("id", "1")
    device.attrib.clear()
    device.attrib.update(id=number, type="none")
    return Rule(True, f"audio {kind} of the host becomes none")


def _tpm(device: ET.Element) -> Rule:
    for backend in device.iterfind("backend"):
        if backend.get("type") != "emulator":
            return _left_out(device)
        _remove(backend, "source")
    return _KEPT


def _pstore(device: ET.Element) -> Rule:
    _remove(device, "path")
    return _KEPT


def _is_spice(device: ET.Element) -> bool:
    return device.get("type") == "spicevmc" and device.get("mode", "passthrough") == "passthrough"


_RULES: dict[str, Callable[[ET.Element], Rule]] = {
    **dict.fromkeys(
        ("emulator", "controller", "hub", "iommu", "memballoon", "nvram", "panic", "redirfilter", "sound", "video",
         "watchdog"), _kept,
    ),
    **dict.fromkeys(("serial", "parallel", "console"), _port),
    "audio": _audio,
    "channel": _channel,
    "crypto": _kept_if(lambda device: device.find("backend[@model='builtin']") is not None),
    "graphics": _graphics,
    "input": _kept_if(lambda device: device.get("type") in ("mouse", "tablet", "keyboard")),
    "interface": _interface,
    "memory": _kept_if(lambda device: device.get("model") in ("dimm", "virtio-mem", "sgx-epc")),
    "pstore": _pstore,
    "redirdev": _kept_if(_is_spice),
    "rng": _rng,
    "smartcard": _kept_if(_is_spice),
    "tpm": _tpm,
    "vsock": _vsock,
}  # fmt: skip
