"""What a restore brings back besides the disks: the domain's definition, with the new paths, and the files it needs.

Owns: what a point records of its domain, which definition is written, the warnings about it, and that what libvirt
would refuse is refused before the first byte is written. Must not know: how a definition is rewritten (definitions/),
how disks are copied. libvirt is imported only to define a domain.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional, cast

from ..core import errors
from ..core.errors import Report
from ..core.os_error import translated
from ..definitions import definition, domain_xml, host_fit, host_reach, hot_plug
from ..format import layout
from ..repository.series import Point, Series
from ..targets import places, replace
from ..targets.places import Place
from . import loss
from .destination import is_as
from .loss import Loss

_IN_A_DEFINITION = {places.NEW: "file", places.EXISTING: "file", places.DEVICE: "block"}  # types of <disk>


@dataclass(frozen=True)
class Stored:
    """What a point records of its domain.

    xml: the definition with every disk of the point, None if it cannot be read (the proof reports that) or is invalid;
    extra: texts that name what else the running domain had; lost: disks of the point that are in no definition.
    """

    xml: Optional[str] = None
    extra: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def name(self) -> Optional[str]:
        return self.xml and definition.identity(self.xml)[0]

    @property
    def disks(self) -> dict[str, domain_xml.Disk]:
        """The disks of the definition, by target."""
        return _disks(self.xml)


@dataclass(frozen=True)
class Asked:
    """What the user asked for the restored domain.

    define: define it in libvirt; name: another name than it had, or None; new_uuid: give it another UUID; force: it may
    replace a definition; trusted: the definition is the user's own, and may name paths of this host.
    """

    define: bool
    name: Optional[str]
    new_uuid: bool
    uri: Optional[str]
    force: bool
    trusted: bool

    def is_copy_of(self, xml: str) -> bool:
        """Return whether the restored domain may exist beside the one of that definition."""
        return self.new_uuid or self.name not in (None, definition.identity(xml)[0])

    @property
    def is_any(self) -> bool:
        return bool(self.define or self.name or self.new_uuid)


class Planned(NamedTuple):
    """xml: the definition to write, None if it is unchanged or there is none; autostart: whether the domain, once it is
    defined, should start with its host."""

    xml: Optional[str]
    warnings: list[str]
    autostart: bool = False


class Written(NamedTuple):
    """paths: of the restored files, by name; lost: the damaged files."""

    paths: dict[str, str]
    lost: list[Loss]


class Defined(NamedTuple):
    """domain: its members name, uuid and uri."""

    domain: dict[str, str]
    warnings: list[str]


# What is stored


def stored(series: Series, point: Point) -> Stored:
    try:
        xml = series.definition(point)
        if not definition.identity(xml)[0].strip():  # libvirt refuses an empty name
            return Stored()
        with suppress(errors.Damaged):  # in the live definition, which only adds to it
            return Stored(*hot_plug.joined(xml, series.live_definition(point), point.disks))
        return Stored(*hot_plug.joined(xml, None, point.disks))
    except errors.Damaged:
        return Stored()


def beside(point: Point, folder: Optional[str]) -> dict[str, str]:
    """Return {name: path} of the point's files that belong to the domain and are restored; {} if there is no folder."""
    if folder is None:
        return {}
    return {name: os.path.join(folder, name) for name in point.files if layout.belongs_to_domain(name)}


# Before the disks are copied


def planned(
    series: Series, point: Point, known: Stored, taken: Mapping[str, Place], folder: Optional[str], asked: Asked
) -> Planned:
    """Return the definition to write; raise if libvirt would refuse it.

    taken: where each disk goes; folder: for the files beside the disks, None: none are restored.
    """
    if folder is None:
        return Planned(None, [])
    if known.xml is None:
        return Planned(None, _unadapted(series, point, asked))
    paths = {name: os.path.abspath(path) for name, path in beside(point, folder).items()}
    nameable = {name: path for name, path in paths.items() if definition.can_name(path)}
    if asked.is_any and nameable != paths:
        raise errors.UsageError(f"-o {folder}: that name cannot be written into a definition")
    sources = _sources(taken)
    elsewhere = {disk: place.path for disk, place in taken.items() if disk not in sources}
    xml, adapted = definition.adapted(
        known.xml, sources, nameable, asked.name, asked.new_uuid, elsewhere, point.manifest.passwords
    )
    warnings = [*_of_the_running_domain(known), *adapted]
    if not asked.define and any(name.startswith(layout.TPM_PREFIX) for name in paths):
        warnings.append("the TPM's state is in the directory, where libvirt does not look: --define moves it")
    autostart = bool(point.manifest.autostart) and not asked.is_copy_of(known.xml)
    if autostart and not asked.define:
        warnings.append("the domain started with its host: after virsh define, virsh autostart makes it do so again")
    own = [source.path for source in sources.values()] + list(nameable.values())
    xml, more = _for_libvirt(xml, known.xml, own, asked) if asked.define else _for_a_folder(xml, own)
    return Planned(xml, warnings + more, autostart)


def _unadapted(series: Series, point: Point, asked: Asked) -> list[str]:
    entry = point.file(layout.DOMAIN_XML)
    flaw = series.file_flaw(entry) if entry else f"point {point.id} has no {layout.DOMAIN_XML}"
    if asked.is_any:
        raise errors.Damaged(flaw or f"{layout.DOMAIN_XML} of point {point.id} is not a domain definition")
    # The proof reports a flaw, or `written` does.
    return [] if flaw else ["domain.xml is not a domain definition: it is unchanged"]


def _sources(taken: Mapping[str, Place]) -> dict[str, definition.Source]:
    """Return {disk: Source} of the disks whose place a definition can name."""
    return {
        disk: definition.Source(_IN_A_DEFINITION[at.kind], os.path.abspath(at.path), at.format, bool(at.secret))
        for disk, at in taken.items()
        if at.kind in _IN_A_DEFINITION and definition.can_name(at.path)
    }


def _of_the_running_domain(known: Stored) -> Iterator[str]:
    """Yield warnings about devices that were plugged in without --config."""
    yield from (f"disk {disk} is in no definition of the point: the domain is without it" for disk in known.lost)
    for each in known.extra:
        yield f"{each} was plugged into the running domain only: only {layout.LIVE_XML} has it"


def _for_libvirt(xml: str, original: str, own: list[str], asked: Asked) -> tuple[str, list[str]]:
    from ..hypervisor import domain_define

    was = definition.identity(original)
    return domain_define.prepared(xml, asked.uri, asked.force, was, own, asked.trusted)


def _for_a_folder(xml: str, own: Iterable[str]) -> tuple[str, list[str]]:
    """Return the definition, and warnings about the things of a host that it names.

    Disks that were not restored are left out: definition.adapted warns about them. No file is opened only because a
    store names it.
    """
    xml, warnings = host_fit.loosened(xml, os.path.exists)
    found = host_fit.foreign(xml, host_reach.Packaged(), lambda _path: host_fit.UNKNOWN, own)
    named = [each for each in found if not each.what.startswith("disk ")]
    if named:
        warnings.append(
            f"domain.xml names what is not in the point: {host_fit.listing(named)}; check it before you define it"
        )
    return xml, warnings


# After the disks are copied


def written(
    series: Series, point: Point, folder: Optional[str], xml: Optional[str], force: bool, salvage: bool, report: Report
) -> Written:
    """Write the files. xml: the definition, None: as stored.

    Damaged if a file is not what was stored; with `salvage`, such a file is lost instead.
    """
    paths, lost = {}, []
    for name, path in beside(point, folder).items():
        flaw = series.file_flaw(point.files[name])
        if flaw and not salvage:
            raise errors.Damaged(flaw)
        if flaw:
            lost.append(loss.of_file(report, flaw))
            continue
        plain = cast(bytes, series.read_file(point, name))  # not None: the point has it
        _write(path, xml.encode() if xml and name == layout.DOMAIN_XML else plain, force)
        paths[name] = path
    return Written(paths, lost)


def _write(path: str, data: bytes, force: bool) -> None:
    with replace.whole(os.path.realpath(path), force) as draft, translated("write", path):
        Path(draft).write_bytes(data)


def misplaced(xml: Optional[str], taken: Mapping[str, Place]) -> list[str]:
    """Return the disks for which the definition does not name the place and the format that they have now."""
    known = _disks(xml)
    return [disk for disk, place in taken.items() if not is_as(known.get(disk), place)]


def _disks(xml: Optional[str]) -> dict[str, domain_xml.Disk]:
    return {disk.target: disk for disk in domain_xml.parse_disks(xml)} if xml else {}


def defined(planned: Planned, uri: Optional[str], paths: Mapping[str, str], folder: str) -> Defined:
    """Have libvirt define the domain, with everything restored in that folder."""
    from ..hypervisor import domain_define

    try:
        return Defined(*domain_define.define(cast(str, planned.xml), uri, paths, planned.autostart))
    except errors.NbdpullError as error:
        where = f"everything is restored in {folder}: correct its domain.xml, then run virsh define"
        raise type(error)(f"{error}; {where}") from error
