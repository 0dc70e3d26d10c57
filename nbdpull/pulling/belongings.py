"""The parts of a domain that go into a point besides its disks: its definitions, and its files on this machine.

Owns: which files these are, and the warnings about what is not in the point: disks that were left out, devices that
hold data, passwords. Must not know: a point's layout, how a domain is restored.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Optional

from ..core import errors
from ..definitions import domain_xml, hot_plug, omissions
from ..definitions.definition import LOOPBACK
from ..definitions.domain_xml import Checkpoint
from ..format import layout
from ..hypervisor import domain_files
from ..hypervisor.domain import Domain
from ..images import guest_files
from ..repository.new_point import NewPoint
from ..repository.series import Point, Series
from .preparation import Subject


@dataclass(frozen=True)
class Added:
    """passwords: types of the displays that have, or may have, a password; it is not in the point."""

    passwords: list[str]
    warnings: list[str]


def add(
    subject: Subject,
    series: Series,
    new: NewPoint,
    checkpoint: Optional[Checkpoint],
    parent: Optional[Point],
    asked: Collection[str],
    timeout: float,
) -> Added:
    """Add the files to a NewPoint.

    checkpoint: the one that was made; asked: disks that the operator wants left out; timeout: seconds that reading a
    file may take.
    """
    vm, warnings = subject.vm, []
    xml, live = vm.domain_xml(), vm.live_xml()
    new.add_file(layout.DOMAIN_XML, xml.encode())
    if live and hot_plug.found(xml, live):
        new.add_file(layout.LIVE_XML, live.encode())
    if checkpoint:
        new.add_file(layout.CHECKPOINT_XML, checkpoint.xml.encode())
    if not vm.is_remote:
        warnings += _add_local_files(vm, new, xml, live, parent, timeout)
    warnings += _missed(subject, series, xml, live, asked)
    passwords, warned = _passwords(vm, xml, live, subject.points.newest)
    return Added(passwords, warnings + warned)


def _add_local_files(
    vm: Domain, new: NewPoint, xml: str, live: Optional[str], parent: Optional[Point], timeout: float
) -> list[str]:
    """Add the local files that the domain needs besides its disks; return warnings. Most of these files never change,
    and are stored only once."""
    files, warnings = domain_files.found(xml, live, vm.uuid, vm.uri)
    for name, path in files:
        try:
            data = guest_files.read(path, timeout, layout.MAX_FILE + 1)
            if not new.fits(name, len(data)):
                raise OSError(errno.EFBIG, "it is too large, or its name is not possible in a store")
            new.add_file(name, data, parent)
        except OSError as error:
            warnings.append(f"{path} ({name} of the domain) is not in the point: {error.strerror}")
    return list(warnings)


def _missed(subject: Subject, series: Series, xml: str, live: Optional[str], asked: Collection[str]) -> Iterator[str]:
    """Yield warnings about things that hold data and are not in the point, except those that the operator was warned of
    before. A device is reported only when it is new: there is no option to acknowledge it."""
    names, last = [disk.target for disk in subject.disks], subject.points.newest
    known = {each.what for each in (omissions.of_point(series, last) if last else None) or []}
    for each in omissions.found(xml, live, names, [] if subject.vm.is_remote else None, asked):
        is_expected = {omissions.DISK: each.why != omissions.NEXT_START, omissions.DEVICE: each.what in known}
        if each.missed and not is_expected.get(each.kind):
            where = f" ({each.path})" if each.path else ""
            yield f"{each.what}{where} is not in the point: it {each.why}"


def _passwords(vm: Domain, xml: str, live: Optional[str], last: Optional[Point]) -> tuple[list[str], list[str]]:
    """Return (types of the displays with passwords, warnings about new ones)."""
    try:
        found, why = vm.passwords(), ""
    except errors.AccessDenied as error:
        found, why = sorted(domain_xml.displays(xml) | domain_xml.displays(live or xml)), f", if any ({error}),"
    known = last.manifest.passwords if last else []
    return found, [
        f"the password of graphics {kind}{why} is not in the point: in a restored domain, "
        f"it listens on {LOOPBACK} only until you set a new one"
        for kind in sorted(set(found) - set(known))
    ]
