"""Restore: write the disks of a point to their targets, with the other files of the domain that the point contains.

Owns: the order of steps, above all that everything is known to fit before the first byte is written, and that
everything is proved before anything is overwritten, or a new image gets its name. Must not know: how a step is done
(see restoring/), byte layouts, how a target is written, what is printed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Optional

from ..core import errors
from ..core.errors import Check, Report
from ..definitions import definition
from ..repository import series_choice
from ..repository.image import Image
from ..repository.series import Point, Series
from ..restoring import belongings, copying, fit, origin
from ..restoring.belongings import Asked, Planned, Stored
from ..restoring.destination import Destinations
from ..restoring.loss import Loss as Loss  # for the command line
from ..restoring.origin import Origin
from ..storage import access, folders
from ..targets import places
from ..targets.places import Place
from . import earlier, reading, unlocking
from .options.restores import RestoreOptions as Options

log = logging.getLogger("nbdpull.restore")


@dataclass(frozen=True)
class Result:
    """What was restored. All dicts but the last two have an entry for each restored disk.

    domain: name of the restored domain; files: targets; formats: of the targets; encrypted: disks whose targets are
    encrypted; misplaced: disks that the restored definition, or else that of the point, places elsewhere, or in another
    format; lost: what --salvage could not restore; beside: paths of other files; defined: name, uuid and uri of the
    domain, None if none was defined.
    """

    point: Point
    domain: str
    files: dict[str, str]
    formats: dict[str, str]
    encrypted: list[str]
    misplaced: list[str]
    written_bytes: dict[str, int]
    sizes: dict[str, int]
    lost: list[Loss]
    beside: dict[str, str]
    defined: Optional[dict[str, str]]
    seconds: float
    warnings: list[str]


def restore(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Write the disks of a point to their targets.

    Damaged if a file that they are made from is not what was stored: before anything is written, or, for data in chunk
    files, before a new image gets its name.
    """
    _require_sense(options)
    options = earlier.seen(options)
    store = unlocking.opened(options.store, options.identities)
    with ExitStack() as looking:
        opened, point = series_choice.only_point(store, options.domain, options.point, looking)
        return _restored(options, opened, point, report, check)


def _restored(options: Options, opened: Series, point: Point, report: Report, check: Check) -> Result:
    started = time.monotonic()
    subject = _subject(options, opened, point, check)
    log.info("point %s of %s: %s", point.id, opened.domain, ", ".join(subject.places))
    report = partial(report, domain=subject.name)
    with ExitStack() as images:
        prepared = _prepare(options, subject, images, report)
        log.info("everything is checked that can be before the first write")
        done = _write(options, subject, prepared, report)
        sizes = {disk: image.size for disk, image in prepared.images.items()}
    defined = _define(options, subject, prepared.planned, done.beside)
    taken = prepared.places
    return Result(
        point=subject.origin.point,
        domain=subject.name,
        files={disk: subject.where.text(disk) for disk in taken},
        formats={disk: place.format for disk, place in taken.items()},
        encrypted=[disk for disk, place in taken.items() if place.secret],
        misplaced=belongings.misplaced(prepared.planned.xml or subject.stored.xml, taken),
        written_bytes=done.written_bytes,
        sizes=sizes,
        lost=[*prepared.lost, *done.lost],
        beside=done.beside,
        defined=defined and defined.domain,
        seconds=round(time.monotonic() - started, 3),
        warnings=[*prepared.warnings, *(defined.warnings if defined else [])],
    )


def _require_sense(options: Options) -> None:
    if options.onto and options.delta:
        raise errors.UsageError("--onto applies what changed, --delta restores the whole state: give one of them")
    if options.trust_definition and not options.define:
        raise errors.UsageError("--trust-definition is for --define")
    if options.name is not None and (
        not options.name.strip() or "/" in options.name or not definition.can_name(options.name)
    ):
        raise errors.UsageError(f"--name {options.name!r}: libvirt does not accept this as the name of a domain")
    if not (options.output or options.to):
        raise errors.UsageError("no target: give -o OUT, --to DISK=TARGET or --onto IMAGE")
    for text in filter(None, [options.output, *options.to.values()]):
        places.require_outside(text, options.store)


# What, and where to


@dataclass(frozen=True)
class _Subject:
    """What is restored, and where to. name: of the restored domain; places: targets of the wanted disks."""

    origin: Origin
    stored: Stored
    name: str
    where: Destinations
    places: dict[str, Place]
    asked: Asked


def _subject(options: Options, opened: Series, point: Point, check: Check) -> _Subject:
    stored = belongings.stored(opened, point)
    where = _destinations(options, point, stored)
    asked = Asked(
        define=options.define,
        name=options.name,
        new_uuid=options.new_uuid,
        uri=options.uri,
        force=options.force,
        trusted=options.trust_definition,
    )
    threads = reading.threads(opened.store, options.threads)
    return _Subject(
        origin=Origin(opened, point, onto=options.onto, threads=threads, check=check),
        stored=stored,
        name=options.name or stored.name or opened.domain,
        where=where,
        places=_places(where, _chosen(options, point, where, asked), options.in_place),
        asked=asked,
    )


def _destinations(options: Options, point: Point, stored: Stored) -> Destinations:
    if None in options.to and len(point.disks) > 1:
        raise errors.UsageError(f"point {point.id} has more than one disk: give --onto DISK=IMAGE")
    to = {point.disks[0] if disk is None else disk: target for disk, target in options.to.items()}
    if len(to) != len(options.to):
        raise errors.UsageError(f"disk {point.disks[0]} has two targets")
    return Destinations(
        output=options.output,
        to=to,
        kind=options.kind,
        options=options.image_options,
        in_place=options.in_place,
        disks=stored.disks,
        secrets=options.secrets,
    )


def _chosen(options: Options, point: Point, where: Destinations, asked: Asked) -> list[str]:
    wanted = options.disks or list(where.to if not where.output else point.disks)
    for name in [*wanted, *where.to, *where.secrets]:
        point.disk(name)  # NoSuchDisk
    if where.is_one_place and len(wanted) > 1:
        raise errors.UsageError(f"-o {where.output} takes one disk; choose with --disk: {', '.join(point.disks)}")
    if where.folder is None and asked.is_any:
        raise errors.UsageError("--define, --name and --new-uuid need the whole domain: restore to a directory with -o")
    return list(dict.fromkeys(wanted))


def _places(where: Destinations, disks: list[str], in_place: bool) -> dict[str, Place]:
    found = {disk: where.place(disk) for disk in disks}
    if any(place.kind == places.STDOUT for place in found.values()) and (in_place or len(disks) > 1):
        raise errors.UsageError("-: stdout takes one whole disk, and nothing can be compared there")
    return found


# Before the first byte


@dataclass(frozen=True)
class _Prepared:
    """What is checked and proved before anything is written.

    images, places: of the disks that can be restored; lost: the losses of --salvage so far.
    """

    images: dict[str, Image]
    places: dict[str, Place]
    planned: Planned
    lost: list[Loss]
    warnings: list[str]


def _prepare(options: Options, subject: _Subject, opened: ExitStack, report: Report) -> _Prepared:
    """Check and prove everything before the first byte is written. opened: closes the images at its end."""
    source, where = subject.origin, subject.where
    if options.salvage:
        images, lost = origin.salvaged(source, subject.places, opened, report)
    else:
        images, lost = origin.images(source, subject.places, opened), []
    if options.onto:
        _require_partial(images)
    taken = {disk: subject.places[disk] for disk in images}
    beside = belongings.beside(source.point, where.folder)
    allowed = fit.Allowed(force=options.force, in_place=options.in_place, space_check=options.space_check)
    fitting = fit.require_fit(where, images, taken, beside.values(), allowed, source.check)
    planned = belongings.planned(source.series, source.point, subject.stored, taken, where.folder, subject.asked)
    spare: list[str] = []
    if not options.salvage:  # the domain's files even without --verify: no other digest covers their content
        files = [source.point.files[name] for name in beside]
        spare = origin.prove(source, images.values() if options.verify else (), files, whole=not _are_new(taken))
    return _Prepared(images, taken, planned, lost, [*spare, *fitting, *planned.warnings])


def _are_new(taken: Mapping[str, Place]) -> bool:
    """Return whether all are new images, which get their names only when all are whole: a failure changes nothing."""
    return all(place.kind == places.NEW for place in taken.values())


def _require_partial(images: Mapping[str, Image]) -> None:
    whole = [disk for disk, image in images.items() if not image.partial]
    if whole:
        raise errors.UsageError(
            f"--onto: the full pull of disk {', '.join(whole)} is in the store, no image is needed to begin with; "
            "leave --onto out, or use --delta to write only what differs"
        )


# From then on


@dataclass(frozen=True)
class _Done:
    written_bytes: dict[str, int]
    beside: dict[str, str]
    lost: list[Loss]


def _write(options: Options, subject: _Subject, prepared: _Prepared, report: Report) -> _Done:
    source, folder = subject.origin, subject.where.folder
    how = copying.How(source.threads, force=options.force, delta=options.delta, salvage=options.salvage)
    with ExitStack() as outputs:
        if folder:
            outputs.enter_context(folders.made(folder, access.PASSABLE))
        with origin.leaving_nothing() if _are_new(prepared.places) else nullcontext():
            copied = copying.copied(prepared.images, prepared.places, outputs, how, report, source.check)
        force = options.force or options.in_place
        written = belongings.written(
            source.series, source.point, folder, prepared.planned.xml, force, options.salvage, report
        )
    return _Done(copied.written_bytes, written.paths, [*copied.lost, *written.lost])


def _define(
    options: Options, subject: _Subject, planned: Planned, beside: Mapping[str, str]
) -> Optional[belongings.Defined]:
    if not (options.define and planned.xml and subject.where.folder):  # --define without them was refused before
        return None
    return belongings.defined(planned, options.uri, beside, subject.where.folder)
