"""The copy of one disk of a point into a store with another seal: its frames are unsealed and sealed again, without
being compressed again.

The disk is written as in a pull: based on a point that both stores have, in new chunk files that contain only what
differs. So pages, directory and chunk files are new, and do not depend on where the source has a frame, moved or not.

Owns: which frames the target has already, and how the others are copied. Must not know: manifests, small files, what
may be removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

import numpy

from ..core import extents, pipeline
from ..core.errors import Check
from ..crypto.seal import Seal
from ..format import layout, pages, reader, stack, writer
from ..format.directory import Directory, same_pages
from ..format.index_writer import Disk
from ..format.manifest import FileEntry
from .series import Series

if TYPE_CHECKING:
    from ..core.extents import Indexes, Mask
    from ..format.layout import Records

BATCH_BYTES = 4 << 20  # bytes of frames in one batch
BATCH_RECORDS = 1 << 12
AHEAD_BYTES = 32 << 20  # bytes of frames in progress
THREADS = 2  # a third thread digests and writes
_KEPT_PAGES = 2  # pages of left chunk files that are kept in memory

Count = Callable[[int], None]  # takes bytes
_NONE = numpy.empty(0, layout.RECORD)


class Base(NamedTuple):
    """A disk as of a point that both stores have. here: its directory in the source, None if it cannot be read; there:
    in the target."""

    here: Optional[Directory]
    there: Directory


class Left(NamedTuple):
    """A chunk file of the point that an interrupted copy left: complete, with each frame verified.

    start, stop: the range of the disk that its records cover; both are 0 for any other file that the directory must
    name.
    """

    entry: FileEntry
    start: int
    stop: int


class Written(NamedTuple):
    """directory, files: FileEntry of the disk's directory, and of the other files of the point itself; made: the files
    that no earlier copy left."""

    directory: FileEntry
    files: list[FileEntry]
    made: list[FileEntry]


@dataclass(frozen=True)
class _Kept:
    """The writer.Kept for files that the directory must name, but whose records it must not take over."""

    files: list[FileEntry]

    def pages(self) -> Iterator[pages.Page]:
        return (pages.Page([], _NONE) for _ in self.files)


@dataclass(frozen=True)
class _Batch:
    """Some records to write, complete except for the places of new frames.

    new: numbers of records of new frames, one for each frame, which contain its place in the source; old: numbers of
    records whose frame is in the target; again: see writer.Encoded.
    """

    records: Records
    new: Indexes
    old: Indexes
    again: list[tuple[int, int]]

    @property
    def size(self) -> int:
        return int(self.records["stored"][self.new].sum())


def write(
    source: Series,
    here: Directory,
    target: Series,
    about: Disk,
    base: Optional[Base],
    left: Sequence[Left],
    chunk_size: int,
    *,
    begin: Count = lambda count: None,
    done: Count = lambda count: None,
    check: Check = lambda: None,
) -> Written:
    """Write the disk of a Directory of the source to new files of the target.

    here: the directory; about: the new disk; left: files of an interrupted copy; begin, done: called with the bytes of
    frames before they are read, and after they are written. Damaged, OutputError: what was written remains.
    """
    there = base.there if base else None
    wanted = here.live.tolist()
    with ExitStack() as held:
        frames = held.enter_context(reader.FrameReader(source.store, source.folder, here.files, wanted=wanted))
        kept = _Kept([each.entry for each in left])
        output = held.enter_context(writer.DiskWriter(target.store, about, chunk_size, there, kept))
        known = _Known(target, about.name, there, left, output.number)

        def items() -> Iterator[_Batch]:
            for batch in _batches(here, base, known, check):
                begin(batch.size)
                yield batch

        def work(batch: _Batch) -> tuple[_Batch, list[bytes]]:
            return batch, [_resealed(frames, batch.records[number], target.store.seal) for number in batch.new]

        ready = pipeline.ordered(
            work, items(), threads=THREADS, budget=AHEAD_BYTES, weight=lambda batch: batch.size, check=check
        )
        for batch, parts in ready:
            size = batch.size
            batch.records["stored"][batch.new] = [len(part) for part in parts]
            output.add(writer.Encoded(batch.records, parts, 0, batch.new, batch.old, again=batch.again))
            done(size)
        directory, files = output.close()
    return Written(directory, files, [entry for entry in files if entry not in kept.files])


def is_found(
    source: Series, here: Directory, target: Series, there: Directory, sure: Container[str], check: Check
) -> bool:
    """Return whether a Directory that exists in the target describes the same disk as one of the source, and leads to
    its frames. sure: paths of files that are relied on; in other files each frame is verified. Damaged."""
    doubtful = {number for number, entry in enumerate(there.files) if entry.path not in sure}
    live: Counter[int] = Counter()
    with reader.FrameReader(target.store, target.folder, there.files, wanted=there.live.tolist()) as frames:
        for start in sorted({*here.starts(), *there.starts()}):
            check()
            wanted, found = _shown(here, start), _shown(there, start)
            if not _shows_same(wanted, found):
                return False
            live.update(pages.total_live(found))
            data = found[found["kind"] == extents.DATA]
            places = dict(zip(zip(data["chunk"].tolist(), data["position"].tolist()), data))
            for (number, _), record in places.items():
                if number in doubtful:
                    check()
                    frames.unsealed(record)
    for ref in there.pages:
        live[int(ref["file"])] += int(ref["stored"])
    return all(live[number] == count for number, count in enumerate(there.live.tolist()))


def _shown(directory: Directory, start: int) -> Records:
    records = directory.window(start).flat() if len(directory.refs(start)) else _NONE
    return stack.data_of(records) if directory.whole else records


def _shows_same(one: Records, other: Records) -> bool:
    """Return whether records are the same except for the places of the frames."""
    names = ["offset", "length", "raw", "skip", "kind", "flags", "digest"]
    return len(one) == len(other) and bool((one[names] == other[names]).all())


def _resealed(frames: reader.FrameReader, record: layout.Record, seal: Seal) -> bytes:
    return seal.frame(frames.unsealed(record), record["digest"].tobytes())


def _batches(here: Directory, base: Optional[Base], known: _Known, check: Check) -> Iterator[_Batch]:
    """Yield, in ascending order, all records in which the disk differs from the base in the target."""
    starts = {*here.starts(), *(base.there.starts() if base else ())}
    for start in sorted(start for start in starts if start < here.size):
        check()
        is_cut = base is not None and _is_cut(base.there, start, here.size)
        if base and not is_cut and _is_same(here, base, start):
            continue
        yield from _of_window(here, known.window(start, layout.window_stop(start, here.size)), is_cut)


def _is_cut(there: Directory, start: int, size: int) -> bool:
    """Return whether a window of the base extends beyond the present end of the disk."""
    return there.size > size and start + layout.WINDOW > size


def _is_same(here: Directory, base: Base, start: int) -> bool:
    """Return whether a window can be skipped: it has the same pages as in the base, and the target has all their
    frames."""
    if base.here is None or len(extents.clip(base.there.again, start, start + layout.WINDOW)):
        return False
    has_it = start in base.there.starts()
    return has_it == bool(len(here.refs(start))) and same_pages(base.here.refs(start), here.refs(start))


def _of_window(here: Directory, known: _KnownInWindow, is_cut: bool) -> Iterator[_Batch]:
    """Yield the batches of a window. is_cut: at least one record must be written."""
    shown = here.window(known.start).flat() if len(here.refs(known.start)) else _NONE
    records = _with_zeros(shown, known.start, known.stop) if here.whole else shown
    records, is_known = known.resolved(records)
    stays = _unchanged(records, is_known, known.below, here.whole)
    if is_cut and stays.all():
        stays[-1:] = False
    records, is_new = records[~stays], (records["kind"] == extents.DATA)[~stays] & ~is_known[~stays]
    for first, stop in _bounds(records, is_new):
        yield _batch(records[first:stop], is_new[first:stop])


def _with_zeros(shown: Records, start: int, stop: int) -> Records:
    """Return the data records, with zeros added wherever there is no data. For a disk that is whole."""
    data = stack.data_of(shown)
    zeros = layout.zero_records(extents.of((*gap, extents.ZERO) for gap in extents.gaps(data, start, stop)))
    both = numpy.concatenate([data, zeros])
    found: Records = both[numpy.argsort(both["offset"], kind="stable")]
    return found


def _unchanged(records: Records, is_known: Mask, below: Records, whole: bool) -> Mask:
    """Return which records change nothing compared with the records below."""
    is_recorded = is_known | (records["kind"] == extents.ZERO)
    changes = stack.changes(records[is_recorded], below, whole)
    stays: Mask = is_recorded & ~numpy.isin(records["offset"], changes["offset"])
    return stays


def _bounds(records: Records, is_new: Mask) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of each batch. A batch consists of complete blocks of layout.MAX_FRAME, because a frame shows
    in only one block."""
    block = records["offset"] // layout.MAX_FRAME
    edges = [*(numpy.flatnonzero(block[1:] != block[:-1]) + 1).tolist(), len(records)]
    sizes = numpy.concatenate([[0], numpy.cumsum(numpy.where(is_new, records["stored"], 0), dtype="u8")]).tolist()
    first = 0
    for edge in edges:
        if edge > first and (
            edge == len(records) or sizes[edge] - sizes[first] >= BATCH_BYTES or edge - first >= BATCH_RECORDS
        ):
            yield first, edge
            first = edge


def _batch(records: Records, is_new: Mask) -> _Batch:
    places: dict[tuple[int, int], int] = {}
    again: list[tuple[int, int]] = []
    for number in numpy.flatnonzero(is_new).tolist():
        place = int(records["chunk"][number]), int(records["position"][number])
        if places.setdefault(place, number) != number:
            again.append((number, places[place]))
    new = numpy.array([*places.values()], "i8")
    old = numpy.flatnonzero((records["kind"] == extents.DATA) & ~is_new)
    return _Batch(records.copy(), new, old, again)


class _Known:
    """The frames of a disk that the target has. there: directory of the base; number: returns the number of a file in
    the records being written."""

    def __init__(
        self, target: Series, disk: str, there: Optional[Directory], left: Sequence[Left], number: Callable[[str], int]
    ) -> None:
        self._target, self._disk, self._there, self._left, self._number = target, disk, there, left, number
        self._pages: dict[str, Records] = {}

    def window(self, start: int, stop: int) -> _KnownInWindow:
        there = self._there
        if there is None or start not in there.starts():
            return _KnownInWindow(start, stop, _NONE, _NONE, self._of_left(start, stop))
        below = there.window(start).flat()
        bad = [there.number(path) for path in there.bad]
        good = below[(below["kind"] == extents.DATA) & ~numpy.isin(below["chunk"], bad)]
        return _KnownInWindow(start, stop, below, good, self._of_left(start, stop))

    def _of_left(self, start: int, stop: int) -> Records:
        found = [self._own(each.entry) for each in self._left if each.start < stop and each.stop > start]
        records = numpy.concatenate([_NONE, *found])
        mine: Records = records[(records["offset"] >= start) & (records["offset"] < stop)]
        return mine

    def _own(self, entry: FileEntry) -> Records:
        """Return the records of the frames in a chunk file, with the number of that file."""
        if entry.path not in self._pages:
            if len(self._pages) >= _KEPT_PAGES:
                del self._pages[next(iter(self._pages))]
            path = f"{self._target.folder}/{entry.path}"
            page = reader.chunk_records(self._target.store, path, entry.size, self._disk)
            records = own_frames(page, entry.path)
            records["chunk"] = self._number(entry.path)
            self._pages[entry.path] = records
        return self._pages[entry.path]


def own_frames(page: pages.Page, path: str) -> Records:
    """Return the records of the frames that are in a chunk file itself. page: from the end of the file."""
    mine = [number for number, name in enumerate(page.names) if name == path]
    is_own = (page.records["kind"] == extents.DATA) & numpy.isin(page.records["chunk"], mine)
    found: Records = page.records[is_own]
    return found


class _KnownInWindow(NamedTuple):
    """below: all records of the base; good: its data in files that are not damaged; left: frames in files that an
    earlier copy left."""

    start: int
    stop: int
    below: Records
    good: Records
    left: Records

    def resolved(self, records: Records) -> tuple[Records, Mask]:
        """Return (the records, which of them lead to frames of the target now). Frames in the same place are preferred,
        so that each of several equal frames is found where it was."""
        records = records.copy()
        is_known = numpy.zeros(len(records), bool)
        is_data = records["kind"] == extents.DATA
        for find, among in ((_in_place, self.good), (_by_digest, self.good), (_by_digest, self.left)):
            wanted = numpy.flatnonzero(is_data & ~is_known)
            mask, found = find(records[wanted], among)
            for name in ("position", "stored", "chunk"):
                records[name][wanted[mask]] = found[name]
            is_known[wanted[mask]] = True
        return records, is_known


def _in_place(wanted: Records, among: Records) -> tuple[Mask, Records]:
    """Return (which of the wanted frames show in the same place among the others, the records of these others)."""
    if not len(among):
        return numpy.zeros(len(wanted), bool), among
    nearest = numpy.maximum(numpy.searchsorted(among["offset"], wanted["offset"], side="right"), 1) - 1
    return _equal(wanted, among[nearest])


def _by_digest(wanted: Records, among: Records) -> tuple[Mask, Records]:
    """Return (which of the wanted frames show anywhere among the others, the records of these others)."""
    if not len(among):
        return numpy.zeros(len(wanted), bool), among
    keys = _keys(among)
    order = numpy.argsort(keys, kind="stable")
    nearest = numpy.minimum(numpy.searchsorted(keys[order], _keys(wanted)), len(among) - 1)
    return _equal(wanted, among[order[nearest]])


def _equal(wanted: Records, found: Records) -> tuple[Mask, Records]:
    mask: Mask = (wanted["digest"] == found["digest"]) & (wanted["raw"] == found["raw"])
    return mask, found[mask]


def _keys(records: Records) -> Indexes:
    """Return the first 8 bytes of the digests, as numbers."""
    digests = numpy.frombuffer(records["digest"].tobytes(), "<u8")
    found: Indexes = digests.reshape(len(records), 4)[:, 0]
    return found
