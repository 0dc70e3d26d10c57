"""Restore: the disks of a point, wherever each is to go, and what else of the domain is in the point.

Owns: the order of steps, above all that everything is proved and everything fits before the first byte is written. Must
not know: byte layouts, how a target is written, what is printed. libvirt is imported only to define a domain.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from ..core import errors, pipeline
from ..core.os_error import translated
from ..definitions import definition, domain_xml, host_fit, host_reach, hot_plug
from ..format import layout
from ..images import image_header
from ..repository import marker, series
from ..repository.image import Image
from ..restoring.destination import Destinations, is_as
from ..storage import access, folders
from ..targets import fit, opening, overwrite, places, replace
from ..targets.disk_restore import DiskRestore
from .options import RestoreOptions as Options

AHEAD_PER_THREAD = 8 << 20  # bytes of guest data under way for each thread

# What to do about a damaged file.
_OF_THE_CHAIN = "nothing was restored (nbdpull verify lists every damage, --salvage restores all else)"
_OF_AN_INDEX = "nbdpull index --rebuild may make it again"


@dataclass(frozen=True)
class Loss:
    """What --salvage could not bring back: a range of a disk in bytes, or a file of the point (then disk is None)."""

    disk: Optional[str]
    offset: Optional[int]
    length: Optional[int]
    problem: str


@dataclass
class Result:
    """point: the Point; domain: name of the restored one; files: where each disk went that was restored; formats: what
    each is there; encrypted: disks that are so there; misplaced: disks that its definition (the one that came with
    them, else that of the point) has elsewhere, or takes for another format; written_bytes: by disk; sizes: of the
    disks; beside: other files; defined: name and uuid of the domain, or None."""

    point: series.Point
    domain: str
    files: dict[str, str] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    encrypted: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    written_bytes: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    lost: list[Loss] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)
    defined: Optional[dict[str, str]] = None
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)


def restore(options: Options, report: Callable = lambda **event: None, check: Callable = lambda: None) -> Result:
    """Write the disks. Damaged, before anything is written, where a file of the chain is not what was stored."""
    _require_sense(options)
    opened = series.only_series(marker.open_store(options.store), options.domain)
    point = opened.point(options.point)
    return _Run(options, opened, point, report, check).run()


def _require_sense(options):
    if options.onto and options.delta:
        raise errors.UsageError("--onto applies what changed, --delta restores the whole state: give one of them")
    if options.trust_definition and not options.define:
        raise errors.UsageError("--trust-definition is for --define")
    if options.name is not None and (not options.name.strip() or set("/\n") & set(options.name)):
        raise errors.UsageError(f"--name {options.name!r}: libvirt takes no such name of a domain")
    if not (options.output or options.to):
        raise errors.UsageError("no target: give -o OUT, --to DISK=TARGET or --onto IMAGE")
    for text in filter(None, [options.output, *dict(options.to).values()]):
        places.require_outside(text, options.store)


class _Run:
    """One restore of one point."""

    def __init__(self, options, opened, point, report, check):
        self._options, self._series, self._point = options, opened, point
        self._check = check
        self._definition, self._extra, self._lost = self._stored_definition()
        self._where = self._destinations()
        self._disks = self._chosen()
        self._places = {disk: self._place(disk) for disk in self._disks}
        self._images: dict[str, Image] = {}
        named = self._definition and definition.identity(self._definition)[0]
        self._result = Result(point, options.name or named or opened.domain)
        self._report = partial(report, domain=self._result.domain)

    # What, and where to

    def _stored_definition(self):
        """What hot_plug.joined returns: the domain's definition as text, with every disk of the point, and more; None
        for a text where it cannot be read (the proof tells that), or is none."""
        try:
            xml = self._series.definition(self._point)
            if not definition.identity(xml)[0].strip():  # libvirt takes none of that kind
                return None, [], []
            with suppress(errors.Damaged):
                live = self._series.live_definition(self._point)
                return hot_plug.joined(xml, live, self._names)
            return hot_plug.joined(xml, None, self._names)
        except errors.Damaged:
            return None, [], []

    @property
    def _names(self):
        return self._point.disks

    def _destinations(self):
        options = self._options
        to, known = dict(options.to), self._names
        if None in to and len(known) > 1:
            raise errors.UsageError(f"point {self._point.id} has more than one disk: give --onto DISK=IMAGE")
        if None in to:
            to[known[0]] = to.pop(None)
        disks = domain_xml.parse_disks(self._definition) if self._definition else []
        by_target = {disk.target: disk for disk in disks}
        how = options.kind, options.image_options, options.in_place
        return Destinations(options.output, to, *how, by_target, options.secrets)

    def _chosen(self):
        known, where = self._names, self._where
        wanted = self._options.disks or list(where.to if not where.output else known)
        for name in [*wanted, *where.to, *where.secrets]:
            self._point.disk(name)  # NoSuchDisk
        if where.is_one_place and len(wanted) > 1:
            raise errors.UsageError(f"-o {where.output} takes one disk; choose with --disk: {', '.join(known)}")
        if where.folder is None and self._wants_domain:
            raise errors.UsageError("--define, --name and --new-uuid are about the whole domain: give a folder by -o")
        return list(dict.fromkeys(wanted))

    @property
    def _wants_domain(self):
        return bool(self._options.define or self._options.name or self._options.new_uuid)

    def _place(self, disk):
        place = self._where.place(disk)
        if place.kind == places.STDOUT and (self._options.in_place or len(self._disks) > 1):
            raise errors.UsageError("-: stdout takes one whole disk, and nothing can be compared there")
        return place

    # The steps

    def run(self):
        started = time.monotonic()
        with ExitStack() as images:
            self._open_images(images)
            self._require_partial()
            self._require_fit()
            xml = self._planned_xml()
            self._prove()
            with ExitStack() as outputs:  # no image gets its name before all of them are whole
                if self._where.folder:
                    outputs.enter_context(folders.made(self._where.folder, access.PASSABLE))
                self._copy(outputs)
                self._restore_files(xml)
        self._result.misplaced = self._misplaced(xml or self._definition)
        if self._options.define:
            self._define(xml)
        self._result.seconds = round(time.monotonic() - started, 3)
        return self._result

    def _open_images(self, stack):
        """Salvaging, a disk of whose chain a manifest or an index is damaged is lost as a whole; the others go on."""
        for disk in list(self._disks):
            try:
                image = stack.enter_context(self._image(disk))
                if self._options.salvage:
                    self._require_sound([entry.index for _, entry in self._links(disk)], _OF_AN_INDEX)
                self._images[disk] = image
            except errors.Damaged as error:
                if not self._options.salvage or isinstance(error, errors.NoFullPull):
                    raise
                self._lose(disk, 0, self._point.manifest.disk(disk).size, str(error))
                self._disks.remove(disk)
                del self._places[disk]
        if not self._disks:
            raise errors.Damaged(f"{self._result.lost[0].problem}; nothing can be salvaged")

    def _image(self, disk):
        return Image(self._series, self._point, disk, self._options.onto, self._check)

    def _links(self, disk):
        return self._series.chain(self._point, disk, self._options.onto)

    def _require_partial(self):
        whole = [disk for disk, image in self._images.items() if not image.partial]
        if self._options.onto and whole:
            raise errors.UsageError(
                f"--onto: the full pull of disk {', '.join(whole)} is in the store, no image is needed to begin with; "
                "leave --onto out, or use --delta to write only what differs"
            )

    def _require_fit(self):
        for disk, place in self._places.items():
            self._result.warnings += self._where.warnings(disk, place)
            known, head = self._where.disks.get(disk), partial(self._head, disk)
            overwrite.require_overwritable(place, self._options.in_place, known and known.encrypted, head,
                                           self._check)  # fmt: skip
            how = self._options.force, self._options.in_place, self._check
            fit.require_fit(place, self._images[disk].size, *how)
            fit.require_folder(place, self._where.folder)
            fit.require_file_size(place, self._images[disk].size)
        paths = [os.path.realpath(place.path) for place in self._places.values()]
        if len(set(paths)) != len(paths):
            raise errors.UsageError("two disks have the same target")
        if self._options.space_check:
            fit.require_space([self._need(disk) for disk, place in self._places.items() if place.kind == places.NEW])
        force = self._options.force or self._options.in_place
        for path in self._beside().values():
            if os.path.lexists(path) and not force:
                raise errors.OutputExists(f"{path} exists; give --force to overwrite it, or another directory to -o")

    def _head(self, disk):
        try:
            return self._images[disk].head(image_header.SIZE)
        except errors.Damaged:  # which is for the proof to tell
            return b""

    def _need(self, disk):
        place, image = self._places[disk], self._images[disk]
        if "preallocation=f" in place.options or (place.secret and place.format == image_header.RAW):  # falloc or full
            return place, lambda: image.size, image.size
        return place, lambda: _data_bytes(image, places.block_size(place)), image.size

    def _prove(self):
        """Every file that the disks are made from is what was stored: sizes and digests, from the manifest down. The
        domain's files in any case: what they hold has no other digest."""
        if self._options.salvage:
            return
        entries = [self._point.file(name) for name in self._beside()]
        links = [link for disk in self._disks for link in self._links(disk)] if self._options.verify else []
        for point, entry in links:
            entries += [entry.index, *entry.chunks, *point.manifest.files]
        self._require_sound(entries, _OF_THE_CHAIN)

    def _require_sound(self, entries, advice):
        """Raise Damaged where a file is not what was stored."""
        entries = {entry.path: entry for entry in entries}.values()

        def work(entry):
            return self._series.file_flaw(entry, self._check)

        threads = self._options.threads
        found = pipeline.ordered(work, entries, threads=threads, budget=1, weight=lambda _: 0, check=self._check)
        flaws = [flaw for flaw in found if flaw]
        if flaws:
            raise errors.Damaged(f"{flaws[0]}; {advice}")

    def _lose(self, disk, offset, length, problem):
        self._result.lost.append(Loss(disk, offset, length, problem))
        self._report(event="lost", **vars(self._result.lost[-1]))

    # The disks

    def _copy(self, outputs):
        copies = []
        for disk in self._disks:
            image, place = self._images[disk], self._places[disk]
            how = self._options.threads, self._options.force, self._check
            output = opening.open_target(place, image.size, *how)
            copies.append(DiskRestore(image, outputs.enter_context(output), self._options.delta, self._options.salvage))
        self._copy_all(copies)
        for copy in copies:
            copy.flush()
            self._result.files[copy.disk] = self._where.text(copy.disk)
            self._result.formats[copy.disk] = self._places[copy.disk].format
            self._result.encrypted += [copy.disk] if self._places[copy.disk].secret else []
            self._result.written_bytes[copy.disk] = copy.written
            self._result.sizes[copy.disk] = self._images[copy.disk].size
            self._report(event="progress", **copy.progress(finished=True))

    def _copy_all(self, copies):
        """All disks at once, by one pipeline: its threads are the whole budget."""
        threads = self._options.threads
        finished = pipeline.ordered(
            lambda item: item[0].work(item[1]),
            _in_turn([_items(copy) for copy in copies]),
            threads=threads,
            budget=AHEAD_PER_THREAD * threads,
            weight=lambda item: item[1].data,
            check=self._check,
        )
        for copy, done in finished:
            copy.add(done)
            for lost in done.lost:
                self._lose(copy.disk, *lost)
            self._report(event="progress", **copy.progress())
            self._check()

    # The domain

    def _beside(self):
        """{name: path} of the point's files that belong to the domain and come back."""
        if self._where.folder is None:
            return {}
        names = filter(layout.belongs_to_domain, self._point.files)
        return {name: os.path.join(self._where.folder, name) for name in names}

    def _planned_xml(self):
        """The definition to write, as text; None where it stays what it was, or there is none. What --define would
        refuse is refused here."""
        if self._where.folder is None:
            return None
        if self._definition is None:
            return self._unadapted()
        options, beside = self._options, {name: os.path.abspath(path) for name, path in self._beside().items()}
        files = {name: path for name, path in beside.items() if definition.can_name(path)}
        if self._wants_domain and files != beside:
            raise errors.UsageError(f"-o {self._where.folder}: that name cannot be written into a definition")
        new, warnings = definition.adapted(
            self._definition, self._sources(), files, options.name, options.new_uuid, self._elsewhere(),
            self._point.manifest.passwords,
        )  # fmt: skip
        self._result.warnings += [*self._of_the_running_domain(), *warnings]
        own = [source.path for source in self._sources().values()] + list(files.values())
        if not options.define and any(name.startswith(layout.TPM_PREFIX) for name in beside):
            self._result.warnings.append(
                "the TPM's state is in the folder, where libvirt does not look: --define moves it"
            )
        if options.define:
            from ..hypervisor import domain_define

            original = definition.identity(self._definition)
            trusted = options.trust_definition
            new, warnings = domain_define.prepared(new, options.uri, options.force, original, own, trusted)
            self._result.warnings += warnings
        else:
            new, warnings = host_fit.loosened(new, os.path.exists)
            self._result.warnings += [*warnings, *self._foreign(new, own)]
        return new

    def _foreign(self, xml, own):
        """What to tell of what a definition names of the host; of disks that were not restored it is told already.
        Nothing there is looked at: no file is opened because a store names it."""
        found = host_fit.foreign(xml, host_reach.Packaged(), lambda _path: host_fit.UNKNOWN, own)
        found = [each for each in found if not each.what.startswith("disk ")]
        if found:
            yield (f"domain.xml names what is not in the point: {host_fit.listing(found)}; see that it is as it should "
                   "be before you define it")  # fmt: skip

    def _of_the_running_domain(self):
        """What to tell of devices that were plugged in without --config."""
        yield from (f"disk {disk} is in no definition of the point: the domain is without it" for disk in self._lost)
        for each in self._extra:
            yield f"{each} was plugged into the running domain alone: only {layout.LIVE_XML} has it"

    def _unadapted(self):
        entry = self._point.file(layout.DOMAIN_XML)
        flaw = self._series.file_flaw(entry) if entry else f"point {self._point.id} has no {layout.DOMAIN_XML}"
        if self._wants_domain:
            raise errors.Damaged(flaw or f"{layout.DOMAIN_XML} of point {self._point.id} is not a domain definition")
        if not flaw:  # which the proof or _restore_files tells
            self._result.warnings.append("domain.xml is not a domain definition: it is as it was stored")

    def _sources(self):
        """{disk: Source} of what can be told in a definition."""
        types = {places.NEW: "file", places.EXISTING: "file", places.DEVICE: "block"}
        told = {disk: place for disk, place in self._places.items()
                if place.kind in types and definition.can_name(place.path)}  # fmt: skip
        return {
            disk: definition.Source(types[place.kind], os.path.abspath(place.path), place.format, bool(place.secret))
            for disk, place in told.items()
        }

    def _elsewhere(self):
        """{disk: where} of what cannot."""
        told = self._sources()
        return {disk: place.path for disk, place in self._places.items() if disk not in told}

    def _misplaced(self, xml):
        """The disks that a definition does not have where and as they are now."""
        disks = {disk.target: disk for disk in domain_xml.parse_disks(xml)} if xml else {}
        places = {disk: self._places[disk] for disk in self._disks}
        return [disk for disk, place in places.items() if not is_as(disks.get(disk), place)]

    def _restore_files(self, xml):
        for name, path in self._beside().items():
            entry = self._point.file(name)
            flaw = self._series.file_flaw(entry)
            if flaw and self._options.salvage:
                self._lose(None, None, None, flaw)
                continue
            if flaw:
                raise errors.Damaged(flaw)
            plain = self._series.read_file(self._point, name)
            data = xml.encode() if xml and name == layout.DOMAIN_XML else plain
            _write(path, data, self._options.force or self._options.in_place)
            self._result.beside[name] = path

    def _define(self, xml):
        from ..hypervisor import domain_define

        try:
            self._result.defined, warnings = domain_define.define(xml, self._options.uri, self._result.beside)
        except errors.NbdpullError as error:
            where = f"everything is restored in {self._where.folder}: correct its domain.xml, then virsh define"
            raise type(error)(f"{error}; {where}") from error
        self._result.warnings += warnings


def _data_bytes(image, block):
    try:
        return image.data_bytes(block)
    except errors.Damaged:  # which is for the proof to tell
        return 0


def _items(copy):
    return ((copy, batch) for batch in copy.batches())


def _in_turn(iterators):
    """One item of each in turn, until all are at their end."""
    while iterators:
        left = []
        for iterator in iterators:
            for item in iterator:
                yield item
                left.append(iterator)
                break
        iterators = left


def _write(path, data, force):
    with replace.whole(os.path.realpath(path), force) as draft, translated("write", path):
        Path(draft).write_bytes(data)
