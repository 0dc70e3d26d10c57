"""A libvirt domain: what is known about it, and what can be done with it.

Owns: the facts about it from libvirt, its definition and its images. Actions have their own modules: checkpoints, jobs,
power, backups. Must not know: NBD, extents, the store. domain_xml owns the XML.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Optional

from ..core import errors
from ..core.choices import STALL_TIMEOUT
from ..core.errors import Check
from ..definitions import domain_xml
from ..definitions.domain_xml import Disk
from ..images import guest_files
from . import domain_link, domain_state, libvirt_uri, qemu_process
from .backups import Backups
from .bindings import libvirt
from .checkpoints import Checkpoints
from .connection import dotted, linked, look_up
from .domain_link import Link
from .handle import Handle
from .jobs import Jobs
from .power import Power

OLDEST_WITH_CHECKPOINTS = 7_006_000


@contextlib.contextmanager
def open(
    name: str, uri: Optional[str] = None, stall_timeout: float = STALL_TIMEOUT, check: Check = lambda: None
) -> Iterator[Domain]:
    """Yield the domain `name`. uri: None = libvirt's default. NoSuchDomain, AccessDenied, HypervisorError.

    If the daemon restarts, the connection is opened again. No call takes longer than stall_timeout plus the time that
    the daemon itself waits. An exception from check() also ends a call.
    """
    with linked(uri, stall_timeout, check) as link:
        connection = link.connection()
        yield Domain(connection, look_up(connection, name), link)


class Domain(Handle):
    """One domain through one connection; made by `open`."""

    reads_images = False  # whether its disks are read without QEMU: see offline_read
    image_warnings: Sequence[str] = ()  # what the operator should know about that reading

    def __init__(self, connection: Any, dom: Any, link: Link):
        super().__init__(connection, dom, link)
        self.jobs = Jobs(self)
        self.checkpoints = Checkpoints(self)
        self.power = Power(self, self.jobs)
        self.backups = Backups(self, self.jobs, self.checkpoints)

    @property
    def shown_uri(self) -> str:
        """The URI without a password that a user put into it: use this one in anything that is stored."""
        return libvirt_uri.without_password(self.uri)

    @property
    def host(self) -> str:
        """Name of the machine that the domain is on, as in its URI."""
        return libvirt_uri.host(self.uri)

    @property
    def versions(self) -> dict[str, str]:
        """{"libvirt": version of the daemon, "qemu": version of the emulator}, each as "9.0.0"."""
        with self.seam("read the versions"):
            daemon, emulator = self.connection.getLibVersion(), self.connection.getVersion()
        return {"libvirt": dotted(daemon), "qemu": dotted(emulator)}

    @property
    def running_version(self) -> Optional[tuple[int, ...]]:
        """Version of the QEMU that runs the domain, such as (7, 2, 22); None if unknown."""
        if self.is_remote:
            return self._reported_version()
        return qemu_process.version(self.name, libvirt_uri.is_session(self.uri))

    def _reported_version(self) -> Optional[tuple[int, ...]]:
        """Ask QEMU itself for its version: libvirt knows only the version that is installed now."""
        try:
            with self.seam("ask QEMU for its version"):
                answer = json.loads(domain_link.ask_monitor(self.dom, '{"execute": "query-version"}'))
            return tuple(answer["return"]["qemu"][part] for part in ("major", "minor", "micro"))
        except (errors.HypervisorError, errors.AccessDenied, errors.DomainNotRunning, ValueError, KeyError):
            return None

    @property
    def seen_version(self) -> tuple[int, ...]:
        """The likely version, without a question to QEMU that libvirt would record; on another host, the installed
        one."""
        return tuple(map(int, self.versions["qemu"].split("."))) if self.is_remote else self.likely_version

    @property
    def likely_version(self) -> tuple[int, ...]:
        """Version of the QEMU that runs the domain; if unknown, of the installed one."""
        return self.running_version or tuple(map(int, self.versions["qemu"].split(".")))

    @property
    def agent_state(self) -> Optional[str]:
        """State of the guest agent: "connected", "disconnected", None without a channel for it."""
        with self.seam("read the definition"):
            return domain_xml.agent_state(self.dom.XMLDesc(0))

    @property
    def supports_checkpoints(self) -> bool:
        """Whether the daemon and the domain's emulator can make checkpoints and incremental backups.

        A domain that was started before an upgrade may still lack this: then the backup raises Unsupported.
        """
        with self.seam("read the capabilities"):
            if self.connection.getLibVersion() < OLDEST_WITH_CHECKPOINTS:
                return False
            platform = domain_xml.platform(self.dom.XMLDesc(0))
            return domain_xml.supports_backup(self.connection.getDomainCapabilities(*platform))

    @property
    def has_host_devices(self) -> bool:
        """Whether starting the domain takes devices from the host."""
        with self.seam("read the definition"):
            return domain_xml.has_host_devices(self.dom.XMLDesc(0))

    def require_there(self) -> None:
        """Raise DomainStopped if the domain ended, NoAnswer if libvirt's daemon is gone or hangs; ignore other
        errors."""
        try:
            state = self.guest_state()
        except errors.DomainStopped:
            raise
        except errors.NbdpullError:
            if self.link.gone:
                raise
        else:
            if state.off:
                raise domain_state.ended(self.name, state)

    def heed(self, check: Check = lambda: None) -> None:
        """From now on, let an exception from this check() end a wait for libvirt."""
        self.link.check = check

    def disks(self) -> list[Disk]:
        """Return all disks, CD-ROMs and floppies in the definition; if the domain runs, in its current one."""
        with self.seam("read the definition"):
            return domain_xml.parse_disks(self.dom.XMLDesc(0))

    def looked_at(self, disks: Iterable[Disk]) -> list[Disk]:
        """Return the disks with facts about their images.

        Pass only those you need: other storage may hang or be missing.
        """
        return [self._with_facts(disk) for disk in disks]

    def _with_facts(self, disk: Disk) -> Disk:
        with self.seam(f"inspect disk {disk.target}"):
            size, allocation, _ = self.dom.blockInfo(disk.target)
        return replace(disk, size=size, allocation=allocation, bitmaps=self._holds_bitmaps(disk))

    def _holds_bitmaps(self, disk: Disk) -> Optional[bool]:
        """Return whether the image can store bitmaps: qcow2 can from version 3 (compat 1.1) on.

        None if its header cannot be read from here.
        """
        if disk.format != "qcow2":
            return False
        if self.is_remote or disk.type not in ("file", "block"):
            return None
        try:
            head = guest_files.read(disk.source, self.link.timeout, 8, self.link.check)
        except TimeoutError as error:
            raise errors.NoAnswer(
                f"domain '{self.name}': disk {disk.target} cannot be read ({disk.source}: {error.strerror}): "
                f"leave it out with --exclude {disk.target}, or repair its storage"
            ) from error
        except OSError:
            return None
        return int.from_bytes(head[4:], "big") >= 3

    @property
    def has_internal_snapshots(self) -> bool:
        """Whether one of its images contains an internal snapshot."""
        with self.seam("look for snapshots"):
            return bool(self.dom.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL))

    def domain_xml(self) -> str:
        """Return the persistent definition, which lists what the next start uses; for a transient domain, the
        equivalent.

        It omits passwords (such as that of graphics): what a store keeps must not be secret.
        """
        with self.seam("read the definition"):
            return str(self.dom.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def live_xml(self) -> Optional[str]:
        """Return the definition of the running domain, without passwords; None if it is off."""
        with self.seam("read the live definition"):
            return str(self.dom.XMLDesc(0)) if self.active else None

    @property
    def autostart(self) -> bool:
        """Whether libvirt starts the domain with its host; no definition contains that."""
        with self.seam("check whether it starts with its host"):
            return bool(self.dom.autostart())

    def passwords(self) -> list[str]:
        """Return the types of the graphics devices that have a password now, or will at the next start.

        AccessDenied: a user who may read the rest may not read secrets.
        """
        with self.seam("check whether its displays have passwords"):
            secure = libvirt.VIR_DOMAIN_XML_SECURE
            xmls = [self.dom.XMLDesc(secure), self.dom.XMLDesc(secure | libvirt.VIR_DOMAIN_XML_INACTIVE)]
        return sorted(set().union(*map(domain_xml.passwords, xmls)))
