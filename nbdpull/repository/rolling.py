"""A verification file by file, starting with those verified longest ago; the ledger records how far it came.

The unit is the file, verified once no matter how many points share it. The proof of a file consists of:

- for any file: its size and its SHA-256;
- for a directory: its windows as well, for which every page that they consist of is read;
- for an index: its pages as well and, at the level of frames, each frame in other points' chunk files that they name;
- for a chunk file, at the level of frames: each frame that the pages of its own point's index name.

So everything that a point shows was checked since the oldest proof among its files. Frames that no point shows any more
are checked with the others, but do not count as damage. Owns: the order, and these proofs. Must not know: how damage is
reported (inspection.py inspects the points of a damaged file), how long the verification continues.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Optional, Union

import numpy

from ..core import errors, pipeline, sizes
from ..format import findings, layout, ledger, pages, reader, stack
from ..format.directory import read_page
from ..format.layout import Document
from ..format.ledger import NEVER, Key, Proof
from ..format.manifest import FileEntry
from . import verdict
from .catalog import Catalog, Page
from .evidence import Damage, Evidence, Look
from .file_flaws import FileFlaws
from .inspection import BATCH_FRAMES, BUDGET, Depth, Inspector, Report, Seen, TooNew
from .part import Part
from .seen_frames import SeenFrames, one_of_each
from .series import Point

if TYPE_CHECKING:
    from ..format.layout import Records

log = logging.getLogger("nbdpull.verify")
BATCH = 1 << 28  # bytes of files that are verified together, or one larger file
BATCH_FILES = 1000

ONLY_WINDOWS = Part(paths=frozenset())


class Rolling:
    """The verification of one series, based on its Evidence. report: called with all findings, and with what was
    checked meanwhile."""

    def __init__(self, evidence: Evidence, depth: Depth, report: Report) -> None:
        self._evidence, self._target, self._depth = evidence, evidence.target, depth
        self._outer_report, self._reported = report, set[Damage]()
        self._now = findings.now()["when"]
        self._catalog = Catalog()
        self._proved: dict[Key, Proof] = {}
        self._queue: Optional[list[Key]] = None  # the files to verify, the next one last
        self._has_proved = False
        self._looks: dict[str, Look] = {}
        self._windows = Inspector(self._target, replace(depth, part=ONLY_WINDOWS), self._report)
        self._flaws = FileFlaws(self._target, depth.check)
        self._names: dict[tuple[str, bytes, int], list[str]] = {}  # {page that was read: files that it names}
        self._good = SeenFrames()

    @property
    def points(self) -> int:
        """The number of points that were inspected."""
        return len(self._looks)

    @property
    def next(self) -> Optional[str]:
        """When the next file was last verified, "" for never; None if no file is left."""
        if self._queue is None:
            return ""
        return self._when(self._queue[-1]) if self._queue else None

    def _when(self, key: Key) -> str:
        return self._proved.get(key, NEVER).at(self._depth.level) or ""

    def go_on(self) -> None:
        """Verify the next files. The first call checks the places of recorded damage instead."""
        if self._queue is None:
            self._begin()
        else:
            self._prove(list(self._next_batch(self._queue)))

    def _begin(self) -> None:
        evidence, points = self._evidence, self._evidence.points
        for point in points:
            self._depth.check()
            self._catalog.add(self._target, point)
        self._proved = ledger.proofs(evidence.ledgers, self._now)
        for key, proof in evidence.proved_by_runs(self._catalog.of_point).items():
            self._proved[key] = proof.or_later(self._proved.get(key, NEVER))
        self._queue = sorted(self._catalog.entries, key=lambda key: (self._when(key), key), reverse=True)
        log.info(
            "%s: %d files to check, unchecked since %s", self._target.domain, len(self._queue), self.next or "ever"
        )
        known = [each for each in points if evidence.known.recorded(each) or each.id in self._catalog.unread]
        self._inspect(self._windows, known)

    def _next_batch(self, queue: list[Key]) -> Iterator[FileEntry]:
        size = count = 0
        while queue and count < BATCH_FILES and size < BATCH:
            entry = self._catalog.entries[queue.pop()]
            size, count = size + entry.size, count + 1
            yield entry

    def _prove(self, batch: Sequence[FileEntry]) -> None:
        bad = self._digests(batch)
        sound = [entry for entry in batch if entry.path not in bad]
        indexes = [entry for entry in sound if layout.INDEX_PATH.match(entry.path)]
        chunks = [entry for entry in sound if layout.CHUNK_PATH.match(entry.path)]
        directories = self._of_directories(sound)
        more = {entry.path for entry in indexes} | directories.keys()  # must be checked to be proved
        self._note(entry for entry in sound if entry.path not in more)
        bad |= self._pages_and_frames(indexes, chunks)
        bad = self._accuse(bad) if bad else bad
        self._inspect(self._windows, directories.values())
        bad |= {path for path, point in directories.items() if _has_bad_windows(self._looks[point.id])}
        for entry in (each for each in batch if each.path in bad):
            self._proved.pop((entry.path, entry.sha256), None)
        bad |= {entry.path for entry in chunks if _own_index(entry.path) in bad}  # their frames were not checked
        self._note((entry for entry in sound if entry.path not in bad), self._depth.level)
        size = sizes.shown(sum(entry.size for entry in batch))
        log.info("%s: %d files (%s) checked, damaged: %d", self._target.domain, len(batch), size, len(bad))

    def _note(self, entries: Iterable[FileEntry], level: str = verdict.FILES) -> None:
        for entry in entries:
            key = entry.path, entry.sha256
            self._proved[key] = self._proved.get(key, NEVER).with_one(level, self._now)
            self._has_proved = True

    def _digests(self, batch: Sequence[FileEntry]) -> set[str]:
        """Return the paths of the damaged files."""
        depth = self._depth

        flaws = pipeline.ordered(
            self._flaws.of, batch, threads=depth.threads, budget=1, weight=lambda _: 0, check=depth.check
        )
        bad = set()
        for entry, flaw in zip(batch, flaws):
            self._report(Seen(_point_of(entry.path), files=1))
            if flaw:
                bad.add(entry.path)
                self._blame(entry, flaw)
        return bad

    def _blame(self, entry: FileEntry, flaw: str) -> None:
        """Note a damaged file for every point that refers to it, so that it is recorded even if the run ends before the
        points are inspected. A damaged directory was noted at the beginning."""
        if not self._of_directories([entry]):
            points = self._points_of[entry.path, entry.sha256]
            disk = self._catalog.disks.get(entry.path)
            found = [self._look(point).found(disk, flaw, path=entry.path) for point in points]
            self._report(found[0])

    @functools.cached_property
    def _points_of(self) -> dict[Key, list[Point]]:
        """{key of a file: points that refer to it, in the order of commits}. Made once, for many files."""
        found: dict[Key, list[Point]] = {}
        for point in self._evidence.points:
            for key in self._catalog.of_point[point.id]:
                found.setdefault(key, []).append(point)
        return found

    def _of_directories(self, entries: Iterable[FileEntry]) -> dict[str, Point]:
        """Return {path: its point} of those files that are directories of disks."""
        named = self._catalog.directories
        return {entry.path: named[entry.path] for entry in entries if entry.path in named}

    def _inspect(self, inspector: Inspector, points: Iterable[Point]) -> None:
        for point in points:
            self._depth.check()
            inspector.inspect(self._look(point))

    def _look(self, point: Point) -> Look:
        if point.id not in self._looks:
            self._looks[point.id] = self._evidence.look(point)
        return self._looks[point.id]

    def _accuse(self, paths: set[str]) -> set[str]:
        """Inspect every point that refers to one of these files; return the paths of the files that are damaged."""
        inspector = Inspector(self._target, replace(self._depth, part=Part(paths=frozenset(paths))), self._report)
        of_point = self._catalog.of_point
        points = [each for each in self._evidence.points if any(path in paths for path, _ in of_point[each.id])]
        self._inspect(inspector, points)
        return {damage.path for look in self._looks.values() for damage in look.damages if damage.path in paths}

    def _report(self, found: Union[Damage, TooNew, Seen]) -> None:
        """Report a finding; damage that is found twice is reported only once."""
        if isinstance(found, Damage):
            if found in self._reported:
                return
            self._reported.add(found)
        self._outer_report(found)

    # Pages and frames

    def _pages_and_frames(self, indexes: Sequence[FileEntry], chunks: Sequence[FileEntry]) -> set[str]:
        """Return the paths of the indexes with damaged pages, and of the chunk files with damaged frames."""
        bad: set[str] = set()
        depth, files = self._depth, reader.OpenFiles(self._target.store)

        def work(part: _Part) -> tuple[_Part, list[bool]]:
            return part, [part.frames.flaw(record) is None for record in part.records]

        try:
            for part, good in pipeline.ordered(
                work,
                self._parts(indexes, chunks, files, bad),
                threads=depth.threads,
                budget=BUDGET,
                weight=lambda part: int(part.records["raw"].sum()),
                check=depth.check,
            ):
                is_good = numpy.array(good, bool)
                for number in {*part.records["chunk"].tolist()}:
                    mine = part.records["chunk"] == number
                    self._good.add(part.names[number], part.records[mine & is_good])
                    bad |= {part.names[number]} if (mine & ~is_good).any() else set()
                raw = int(part.records["raw"].sum())
                self._report(Seen(_point_of(part.names[number]), frames=len(good), raw_bytes=raw))
        finally:
            files.close()
        return bad

    def _parts(
        self, indexes: Sequence[FileEntry], chunks: Sequence[FileEntry], files: reader.OpenFiles, bad: set[str]
    ) -> Iterator[_Part]:
        """Yield, in small parts, the records of the frames to check. bad: indexes with a damaged page are added to
        it."""
        by_frames = self._depth.level == verdict.FRAMES
        own = {entry.path for entry in chunks} if by_frames else set()
        whole = {entry.path for entry in indexes}
        for index in sorted(whole | {*map(_own_index, own)}):
            for ref in self._catalog.pages.get(index, []):
                self._depth.check()
                if index not in whole and own.isdisjoint(self._names.get(ref.key, own)):
                    continue
                try:
                    page = self._read(ref)
                except errors.Damaged:
                    bad.add(index)
                    continue
                wanted = own | {name for name in page.names if index in whole and _is_foreign(name, index)}
                records = self._unseen(page, wanted & self._catalog.by_path.keys()) if by_frames else page.records[:0]
                entries = [self._catalog.by_path.get(name, FileEntry(name, 0, "")) for name in page.names]
                frames = reader.FrameReader(self._target.store, self._target.folder, entries, files)
                for part in numpy.array_split(records, -(-len(records) // BATCH_FRAMES)) if len(records) else []:
                    yield _Part(page.names, part, frames)

    def _read(self, ref: Page) -> pages.Page:
        page = read_page(self._target.store, self._target.folder, ref.path, ref.ref, ref.disk, ref.stop)
        self._names[ref.key] = page.names
        return page

    def _unseen(self, page: pages.Page, wanted: set[str]) -> Records:
        """Return one record for each frame of these files that a page names and that was not checked yet."""
        data = stack.data_of(page.records)
        found = [data[:0]]
        for number in (n for n, name in enumerate(page.names) if name in wanted):
            mine = data[data["chunk"] == number]
            found.append(mine[~self._good.known(page.names[number], mine)])
        return one_of_each(numpy.concatenate(found))

    # The result

    def conclude(self) -> Optional[Document]:
        """Return the ledger of all that is known now; None if this run proved nothing."""
        if not self._has_proved:
            return None
        catalog = self._catalog
        known = {key: proof for key, proof in self._proved.items() if key in catalog.entries}
        return ledger.of(self._depth.level, [(each, self._since(each)) for each in self._evidence.points], known)

    def _since(self, point: Point) -> Proof:
        """Return since when everything of a point is proved."""
        if point.id in self._catalog.unread:
            return NEVER
        proofs = [self._proved.get(key, NEVER) for key in self._catalog.of_point[point.id]]
        return Proof(*(min(times) if all(times) else None for times in zip(*proofs)))


class _Part(NamedTuple):
    """Some records of a page, each of a different frame. names: the files that the records' chunk numbers index."""

    names: list[str]
    records: Records
    frames: reader.FrameReader


def _has_bad_windows(look: Look) -> bool:
    """Return whether disks of the point were not inspected completely, or any file but a chunk file is damaged."""
    return not look.complete or not all(each.path and layout.CHUNK_PATH.match(each.path) for each in look.damages)


def _point_of(path: str) -> str:
    return path.partition("/")[0]


def _own_index(chunk: str) -> str:
    """Return the path of the index that was written with a chunk file."""
    match = layout.CHUNK_PATH.match(chunk)
    return f"{_point_of(chunk)}/{match['disk']}.index" if match else ""


def _is_foreign(chunk: str, index: str) -> bool:
    return _point_of(chunk) != _point_of(index)
