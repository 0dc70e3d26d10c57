"""The writer of one disk's index file and directory, from records in ascending order. directory.py is its mirror.

What did not change is not stored again: a window without new records keeps the pages of the base, and a new page
contains only records that differ.

Owns: the numbers of chunk files, when a window is complete, what its new page contains, and how many bytes of each file
the image needs. Must not know: frames, where records come from.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import numpy

from ..core import errors, extents
from ..storage.base import Store, Writer
from . import layout, pages, reader, stack
from .directory import NOWHERE, Directory, renumbered
from .manifest import FileEntry

if TYPE_CHECKING:
    from .pages import PageRefs


class Disk(NamedTuple):
    """The disk to be written: `name`, with `size` bytes, as of `point`, whole or not.

    series: path of the series' folder; beside: name of the folder for index and chunk files; None: the point's.
    """

    series: str
    point: str
    name: str
    size: int
    whole: bool
    beside: Optional[str] = None

    @property
    def folder(self) -> str:
        """The name of the folder for index and chunk files."""
        return self.beside or self.point


class _Layer(NamedTuple):
    """A page of a window. ref: its PAGE, as an array of one; None: not written yet."""

    ref: Optional[Any]
    records: layout.Records


class IndexWriter:
    """Writes the index and the directory of one disk: `add` all records in ascending order, then `close`.

    base: the Directory over which the records are laid; None: nothing.
    """

    def __init__(self, store: Store, disk: Disk, base: Optional[Directory] = None) -> None:
        self._store, self._disk, self._base = store, disk, base
        self._files: list[str] = [entry.path for entry in base.files] if base else []
        self._numbers = {path: number for number, path in enumerate(self._files)}
        self._live: Counter[int] = Counter(dict(enumerate(base.live.tolist())) if base else {})
        self._refs: list[PageRefs] = []
        self._left = deque(base.starts() if base else [])  # windows of the base still to come
        self._waiting: list[layout.Records] = []  # of the current window
        self._start = self._reached = 0
        self._index: Optional[Writer] = None
        self._index_number = NOWHERE

    def number(self, path: str) -> int:
        """Return the number of a file; a new path gets a new number."""
        if path not in self._numbers:
            self._numbers[path] = len(self._files)
            self._files.append(path)
        return self._numbers[path]

    def page(self, records: layout.Records) -> pages.Page:
        """Return the records as a page for a file: with the names of the chunk files that they point into."""
        is_data = records["kind"] == extents.DATA
        used = sorted({*records["chunk"][is_data].tolist()})
        places = numpy.zeros(used[-1] + 1 if used else 1, "u4")
        places[used] = numpy.arange(len(used))
        records = records.copy()
        records["chunk"][is_data] = places[records["chunk"][is_data]]
        return pages.Page([self._files[number] for number in used], records)

    def add(self, records: layout.Records) -> None:
        """Add records. Failure if they are out of order: an index that readers refuse must never be committed."""
        if not len(records):
            return
        if int(records["offset"][0]) < self._reached:
            raise errors.Failure(f"disk {self._disk.name}: records from byte {records['offset'][0]} come too late")
        self._reached = int(extents.ends(records[-1:])[0])
        for part in extents.split(extents.cut(records, layout.WINDOW), layout.WINDOW):
            start = layout.window_start(int(part["offset"][0]))
            if start != self._start:
                self._end_window()
                self._start = start
            self._waiting.append(part)

    def add_chunk(self, path: str, page: pages.Page) -> None:
        """Add the records from the end of a chunk file of this pull. The file gets a number even if it has no data."""
        self.number(path)
        self.add(renumbered(page, self.number))

    def _end_window(self) -> None:
        """Make pages of the records that wait."""
        if not self._waiting:
            return
        new, self._waiting = numpy.concatenate(self._waiting), []
        self._keep(self._start)
        stop = layout.window_stop(self._start, self._disk.size)
        below = self._below(self._start, stop)
        before = stack.flat([layer.records for layer in below], self._start, stop)
        changed = stack.changes(new, before, self._disk.whole)
        layers = self._merged([*below, _Layer(None, changed)] if len(changed) else below, stop)
        if len(changed):
            self._account(before, stack.flat([layer.records for layer in layers], self._start, stop))
        self._refs += self._in_place(layers, self._start)

    def _keep(self, until: int) -> None:
        """Take over the windows of the base that begin before `until`."""
        while self._base and self._left and self._left[0] < until:
            start = self._left.popleft()
            if self._base.can_stay(start):
                self._refs.append(self._base.refs(start))
            else:
                self._refs += self._in_place([_Layer(None, self._base.window(start).flat())], start)

    def _below(self, start: int, stop: int) -> list[_Layer]:
        """Return the layers of the base for a window; a single flat one if the disk now ends within them, or if the
        pages cannot be kept."""
        if self._base is None or not self._left or self._left[0] != start:
            return []
        refs = self._base.refs(self._left.popleft())
        layers = [_Layer(ref[None], records) for ref, records in zip(refs, self._base.window(start).layers)]
        is_cut = any(len(layer.records) and int(extents.ends(layer.records[-1:])[0]) > stop for layer in layers)
        if is_cut or not self._base.can_stay(start):
            whole = self._base.window(start).flat()
            left = extents.clip(whole, start, stop)
            self._account(whole, left)
            return [_Layer(None, left)]
        return layers

    def _merged(self, layers: list[_Layer], stop: int) -> list[_Layer]:
        """Return the layers with the top ones merged as often as stack.merges requires."""
        layers = list(layers)
        while len(layers) > 1 and stack.merges(len(layers[-2].records), len(layers[-1].records), len(layers)):
            two = [layer.records for layer in layers[-2:]]
            layers[-2:] = [_Layer(None, stack.flat(two, self._start, stop))]
        return layers

    def _account(self, before: layout.Records, after: layout.Records) -> None:
        self._live.subtract(pages.total_live(before))
        self._live.update(pages.total_live(after))

    def _in_place(self, layers: Sequence[_Layer], start: int) -> list[Any]:
        """Return the PAGE of each layer of a window; write the new ones. Zeros in the lowest layer of a whole disk have
        no effect, and are left out."""
        if layers and layers[0].ref is None and self._disk.whole:
            layers = [_Layer(None, stack.data_of(layers[0].records)), *layers[1:]]
        layers = [layer for layer in layers if len(layer.records)]
        return [layer.ref if layer.ref is not None else self._written(layer.records, start) for layer in layers]

    def _written(self, records: layout.Records, start: int) -> Any:
        """Write records of a window to the index file; return their PAGE, as an array of one."""
        if flaw := pages.density_flaw(records):
            raise errors.Unsupported(f"disk {self._disk.name} has {flaw}, which the format does not allow")
        if self._index is None:
            name = layout.index_name(self._disk.name)
            self._index = self._store.create(f"{self._disk.series}/{self._disk.folder}/{name}")
            self._index_number = self.number(f"{self._disk.folder}/{name}")
        raw = pages.encode_page(self.page(records))
        data = self._store.seal.piece(pages.compressed(raw), layout.PAGE_PIECE)
        ref = numpy.zeros(1, pages.PAGE)
        ref["offset"], ref["records"], ref["file"] = start, len(records), self._index_number
        ref["position"], ref["stored"], ref["raw"] = self._index.size, len(data), len(raw)
        ref["digest"] = numpy.array([self._store.seal.secret(reader.digest(raw))], "V32")
        self._index.write(data)
        return ref

    def close(self, made: Mapping[str, FileEntry]) -> tuple[FileEntry, list[FileEntry]]:
        """Seal index and directory; return FileEntry of the directory, and of the index if there is one.

        made: FileEntry of every new chunk file, by path.
        """
        self._end_window()
        self._keep(self._disk.size)
        for start in self._left:  # beyond the end of a disk that was shrunk
            self._account(self._base.window(start).flat(), numpy.empty(0, layout.RECORD))  # type: ignore[union-attr]
        own = [self._sealed(self._index)] if self._index else []
        known = {entry.path: entry for entry in [*(self._base.files if self._base else []), *made.values(), *own]}
        with self._store.create(f"{self._disk.series}/{self._disk.point}/{self._name}") as file:
            file.write(pages.compressed(pages.encode_directory(self._directory(known, made))))
        return self._entry(file), own

    @property
    def _name(self) -> str:
        return layout.directory_name(self._disk.name)

    def _directory(self, known: Mapping[str, FileEntry], made: Mapping[str, FileEntry]) -> pages.Directory:
        """Return the directory, which lists only those older files that are needed."""
        refs = numpy.concatenate([numpy.empty(0, pages.PAGE), *self._refs])
        needed = {*refs["file"].tolist()}
        for number in needed:
            self._live[number] = int(refs["stored"][refs["file"] == number].sum())
        is_chunk = layout.CHUNK_PATH.match
        needed |= {n for n, path in enumerate(self._files) if path in made or (is_chunk(path) and self._live[n] > 0)}
        kept = sorted(needed)
        if self._base and not self._base.bad.isdisjoint(self._files[number] for number in kept):
            raise errors.Failure(f"disk {self._disk.name}: not all data in damaged files was read again")
        places = numpy.zeros(len(self._files), "u4")
        places[kept] = numpy.arange(len(kept))
        refs["file"] = places[refs["file"]]
        live = numpy.array([self._live[number] for number in kept], "u8")
        return pages.Directory([known[self._files[number]] for number in kept], live, refs)

    def _sealed(self, file: Writer) -> FileEntry:
        file.seal()
        return self._entry(file)

    def _entry(self, file: Writer) -> FileEntry:
        return FileEntry(file.path.partition("/")[2], file.size, file.sha256())

    def abandon(self) -> None:
        if self._index:
            self._index.close()
