"""The check of one point: which of its files, pages and frames are not what was stored.

Owns: what is checked of a point, and in which order; the check continues after damage, to report all of it. Must not
know: which points are checked and for how long, what follows from damage (evidence.py and verdict.py know).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional, Union

import numpy

from ..core import errors, pipeline
from ..core.errors import Check
from ..format import layout, reader, stack
from ..format.directory import NOWHERE, Directory, PageReader
from ..format.manifest import FileEntry
from . import references, verdict
from .evidence import Damage, Look
from .file_flaws import FileFlaws
from .good_windows import GoodWindows
from .part import Part
from .seen_frames import FRAME, SeenFrames, equal_frames, one_of_each
from .series import Series

if TYPE_CHECKING:
    from ..core.extents import Mask
    from ..format.layout import Record, Records

BATCH_FRAMES = 64
BUDGET = 1 << 26  # bytes of decompressed frames under way
FEW_BYTES = 1 << 20  # of all files of a point: handing fewer to threads takes longer than hashing them
MAX_DAMAGES = 10_000  # reported per disk of a point
_NONE = numpy.empty(0, layout.RECORD)


@dataclass(frozen=True)
class TooNew:
    """A point that a newer nbdpull made: this version can neither prove it nor call it damaged."""

    point: str
    problem: str


class Seen(NamedTuple):
    """What more of a point was checked: numbers of files and frames. raw_bytes: size of the frames, decompressed."""

    point: str
    files: int = 0
    frames: int = 0
    raw_bytes: int = 0


Report = Callable[[Union[Damage, TooNew, Seen]], None]


@dataclass(frozen=True)
class Depth:
    """How thorough the check is. level: see verdict.py; check: called often, an exception from it ends the check."""

    level: str
    part: Part
    threads: int
    check: Check


class _Enough(Exception):
    """Raised when a disk of a point has so much damage that reading on is pointless."""


def refusal(point: str, error: errors.NbdpullError) -> Union[Damage, TooNew]:
    """Return what to report of a point that a reader must refuse as a whole."""
    if isinstance(error, errors.FormatTooNew):
        return TooNew(point, str(error))
    return Damage(point, None, str(error))


class Inspector:
    """Checks points of one Series. report: called with all that is found, and with the progress in between.

    What several points refer to is checked and reported once, and noted for each point.
    """

    def __init__(self, target: Series, depth: Depth, report: Report) -> None:
        self._target, self._depth, self._report = target, depth, report
        self._threads = pipeline.Threads(depth.threads)
        self._sound: set[tuple[str, str]] = set()  # (path, SHA-256) of files read and found good
        self._fitting: set[tuple[str, str]] = set()  # and those of which only the size was checked
        self._unsound: dict[tuple[str, str], str] = {}  # (path, SHA-256): why the file is not what was stored
        self._read_page = PageReader()
        self._flaws = FileFlaws(target, depth.check)
        self._good = SeenFrames()
        self._bad: dict[tuple[str, bytes], str] = {}  # (path, the rest of what identifies a frame): its flaw
        self._bad_pages: set[tuple[int, str]] = set()  # (offset of the window, problem)
        self._good_windows = GoodWindows()

    def inspect(self, look: Look) -> None:
        """Check the point of a Look, and note in the Look what is found."""
        directories = self._directories(look)
        self._files(look, directories)
        if self._depth.level == verdict.FRAMES or self._target.store.seal.opens:
            look.ended = all([self._disk(look, each) for each in directories])
        else:  # pages are sealed, too; the digests of their files were checked
            look.ended = True
        if look.complete and self._depth.level == verdict.FRAMES:
            look.seen |= self._depth.part.paths or set()

    def _directories(self, look: Look) -> list[Directory]:
        """Return the directories of the disks that are intact."""
        found = []
        for disk in look.point.manifest.disks:
            try:
                found.append(self._target.directory(look.point, disk.name, partial=True, read=self._read_page))
            except errors.Damaged as error:
                look.unread.add(disk.name)
                self._report(look.found(disk.name, error, path=disk.directory.path))
        return found

    def _files(self, look: Look, directories: Sequence[Directory]) -> None:
        """Check the size and digest of every file except the directories."""
        point = look.point
        entries = self._unseen(look, references.by_directories(point, directories))
        if not entries:
            return
        proved = {disk.directory.path for disk in point.manifest.disks}
        self._note_known(look, directories, entries)
        known = self._unsound.keys()
        entries = [each for each in entries if each.path not in proved and (each.path, each.sha256) not in known]
        whole = self._read_whole(look, entries)

        def work(entry: FileEntry) -> Optional[str]:
            read = entry.path in whole
            return self._flaws.of(entry) if read else self._target.size_flaw(entry)

        with self._looking(entries):
            for entry, flaw in zip(entries, self._of_each(work, entries)):
                if flaw:
                    self._report(look.found(_disk_of(directories, entry), flaw, path=entry.path))
                    self._unsound[entry.path, entry.sha256] = flaw
                else:
                    self._fitting.add((entry.path, entry.sha256))
                    self._sound |= {(entry.path, entry.sha256)} if entry.path in whole else set()
                self._report(Seen(point.id, files=int(entry.path in whole)))

    def _looking(self, entries: Iterable[FileEntry]) -> AbstractContextManager[None]:
        """Look at the folder of some files. Usually the files left to check of a point are its own, and the folder of
        a long series has thousands."""
        folder, names = self._target.folder, {entry.folder for entry in entries}
        return self._target.store.looking(f"{folder}/{names.pop()}" if len(names) == 1 else folder)

    def _of_each(
        self, work: Callable[[FileEntry], Optional[str]], entries: Sequence[FileEntry]
    ) -> Iterator[Optional[str]]:
        """Yield work(entry) for each file. Where there is little to hash, all depends on whether the store has to be
        waited for, so it decides how many files are worked on at once."""
        if sum(entry.size for entry in entries) < FEW_BYTES:
            return self._target.store.several(work, entries)
        return self._threads.ordered(work, entries, budget=1, weight=lambda _: 0, check=self._depth.check)

    def _unseen(self, look: Look, named: Iterable[FileEntry]) -> list[FileEntry]:
        """Return the files of a point that are still to be checked: few, if other points name most of them, too."""
        if not look.has_recorded:
            return [each for each in named if (each.path, each.sha256) not in self._fitting]
        wanted = ((each, self._sound if look.is_wanted(each.path) else self._fitting) for each in named)
        return [each for each, known in wanted if (each.path, each.sha256) not in known]

    def _note_known(self, look: Look, directories: Sequence[Directory], entries: Iterable[FileEntry]) -> None:
        for entry in entries:
            if flaw := self._unsound.get((entry.path, entry.sha256)):
                look.found(_disk_of(directories, entry), flaw, path=entry.path)

    def _read_whole(self, look: Look, entries: Iterable[FileEntry]) -> set[str]:
        """Return the paths of the files whose digest is checked, too."""
        paths, part = {entry.path for entry in entries}, self._depth.part
        return {path for path in paths if part.file(path) or look.is_wanted(path)}

    def _disk(self, look: Look, disk: Directory) -> bool:
        """Check every page and the chosen frames of one disk; return whether the check came to its end."""
        ranges = _Ranges(look, disk.disk, self._report)
        try:
            self._frames(look, disk, ranges)
        except _Enough:
            problem = f"more than {MAX_DAMAGES} damages: the rest of this disk is not checked"
            self._report(look.found(disk.disk, problem))
            return False
        return True

    def _frames(self, look: Look, disk: Directory, ranges: _Ranges) -> None:
        with reader.FrameReader(self._target.store, self._target.folder, disk.files) as frames:

            def work(part: _Part) -> tuple[_Part, list[Optional[str]]]:
                known = [self._bad.get(_frame(disk, record)) if self._bad else None for record in part.chosen]
                return part, [bad or frames.flaw(record) for bad, record in zip(known, part.chosen)]

            for part, flaws in self._threads.ordered(
                work,
                self._chosen(look, disk, ranges),
                budget=BUDGET,
                weight=lambda part: int(part.chosen["raw"].sum()),
                check=self._depth.check,
            ):
                is_good = numpy.array([flaw is None for flaw in flaws], bool)
                for path, records in _by_path(disk, part.chosen[is_good]):
                    self._good.add(path, records)
                for number, flaw in enumerate(flaws):
                    if flaw:
                        self._bad_frame(flaw, disk, part.chosen[number : number + 1], part.window, ranges)
                self._report(Seen(look.point.id, frames=len(flaws), raw_bytes=int(part.chosen["raw"].sum())))

    def _bad_frame(self, flaw: str, disk: Directory, one: Records, window: Records, ranges: _Ranges) -> None:
        """Note every range whose data are in the bad frame of a record. one: an array of that record alone. Another
        point may have reported the frame already: it is read once, however many points show it."""
        path, key = disk.files[int(one["chunk"][0])].path, _frame(disk, one[0])
        is_new = key not in self._bad
        self._bad.setdefault(key, flaw)
        for each in window[(window["chunk"] == one["chunk"]) & equal_frames(window, one)]:
            about = f"{flaw}{reader.range_of(each)}"
            ranges.damaged(about, int(each["offset"]), int(each["length"]), path, is_new)

    def _chosen(self, look: Look, disk: Directory, ranges: _Ranges) -> Iterator[_Part]:
        """Yield in small parts the data records whose frames are to be checked. Every page is checked on the way."""
        good = self._good_windows.of(disk)
        for start in disk.starts():
            self._depth.check()
            try:
                if not look.has_recorded and good.has(start):
                    continue
                data, chosen = self._in_window(look, disk, start)
            except errors.Damaged as error:
                self._bad_window(disk, start, str(error), ranges)
                continue
            if not len(chosen):  # nor is a bad frame among them: it would be chosen each time
                good.add(start)
            for part in numpy.array_split(chosen, -(-len(chosen) // BATCH_FRAMES)) if len(chosen) else []:
                yield _Part(part, data)

    def _in_window(self, look: Look, disk: Directory, start: int) -> tuple[Records, Records]:
        """Return the data records of a window, and those of them whose frames are to be checked. Damaged."""
        by_frames = self._depth.level != verdict.FILES
        if not by_frames and not look.has_recorded:
            disk.prove(start)
            return _NONE, _NONE
        data = stack.data_of(disk.window(start).flat())
        wanted = look.wanted(disk, data)
        if by_frames:
            wanted |= self._depth.part.frames(data, disk.files)
        candidates = data[wanted]
        return data, one_of_each(candidates[~self._known_good(disk, candidates)])

    def _known_good(self, disk: Directory, data: Records) -> Mask:
        """Return which of the records have frames that were checked and found good."""
        known = numpy.zeros(len(data), bool)
        for number in {*data["chunk"].tolist()}:
            mine = data["chunk"] == number
            known[mine] = self._good.known(disk.files[number].path, data[mine])
        return known

    def _bad_window(self, disk: Directory, start: int, problem: str, ranges: _Ranges) -> None:
        """Note a window of which a page cannot be read. Another point may have reported it already."""
        is_new = (start, problem) not in self._bad_pages
        self._bad_pages.add((start, problem))
        ranges.damaged(problem, start, min(layout.WINDOW, disk.size - start), _path_of_bad_page(disk, start), is_new)


class _Part(NamedTuple):
    """Records to be checked, one per frame, and all data records of their window."""

    chosen: Records
    window: Records


class _Ranges:
    """The damaged ranges of a disk, reported one by one until there are too many."""

    def __init__(self, look: Look, disk: str, report: Report) -> None:
        self._look, self._disk, self._report = look, disk, report
        self._left = MAX_DAMAGES

    def damaged(self, problem: str, offset: int, length: int, path: Optional[str], is_new: bool) -> None:
        found = self._look.found(self._disk, problem, offset, length, path)
        if is_new:
            self._report(found)
        self._left -= 1
        if self._left <= 0:
            raise _Enough


def _frame(disk: Directory, record: Record) -> tuple[str, bytes]:
    """Return what identifies the frame of a record, whichever point shows it."""
    return disk.files[int(record["chunk"])].path, b"".join(record[name].tobytes() for name in FRAME)


def _disk_of(directories: Iterable[Directory], entry: FileEntry) -> Optional[str]:
    """Return the disk to which a file belongs, if any."""
    return next((each.disk for each in directories if each.number(entry.path) != NOWHERE), None)


def _by_path(disk: Directory, records: Records) -> Iterator[tuple[str, Records]]:
    for number in {*records["chunk"].tolist()}:
        yield disk.files[number].path, records[records["chunk"] == number]


def _path_of_bad_page(disk: Directory, start: int) -> Optional[str]:
    """Return the path of the index file with the bad page; None if all pages are intact, and the directory lacks a
    file."""
    for ref in disk.refs(start):
        try:
            disk.records(ref)
        except errors.Damaged:
            return disk.files[int(ref["file"])].path
    return None
