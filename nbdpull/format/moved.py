"""Moved tables: where the frames of a chunk file are after a repack.

A table is next to the chunk file that it replaces, and contains that file's size and digest, so it can replace no other
file. Neither records nor directories change when frames are moved.

Owns: the layout of a table, and what a reader must refuse in one. Must not know: which frames are worth moving, what
else is in the new files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Optional

import numpy

from ..core import errors
from ..storage.base import Store
from . import layout, pages
from .manifest import FileEntry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Moves = NDArray[numpy.void]  # of MOVE

MOVE = numpy.dtype(
    [
        ("position", "<u8"),  # of a frame in the file that was repacked
        ("to", "<u8"),  # the frame's position in the new file
        ("stored", "<u4"),  # the frame's size in both files
        ("file", "<u4"),  # which new file: number in the table's files, from 1
    ]
)
assert MOVE.itemsize == 24

_SEAL = hashlib.sha256().digest_size
MAX_TABLE = layout.MAX_DIRECTORY + _SEAL  # bytes of a table's file


class Place(NamedTuple):
    """Where the bytes of a frame are: a path relative to the series, and a position."""

    path: str
    position: int


@dataclass(frozen=True)
class Table:
    """A moved table.

    old: the file that was repacked; files: the new chunk files, with paths relative to the series; moves: MOVE, sorted
    by position.
    """

    old: FileEntry
    files: Sequence[FileEntry]
    moves: Moves

    def place(self, position: int, stored: int) -> Optional[Place]:
        """Return where a frame of the old file is now; None if it was not moved."""
        number = int(self.moves["position"].searchsorted(numpy.uint64(position)))
        if number == len(self.moves):
            return None
        move = self.moves[number]
        if (int(move["position"]), int(move["stored"])) != (position, stored):
            return None
        return Place(self.files[int(move["file"]) - 1].path, int(move["to"]))

    def bytes_in(self, path: str) -> int:
        """Return how many bytes of the old file are in this new one."""
        numbers = [number for number, entry in enumerate(self.files, 1) if entry.path == path]
        return int(self.moves["stored"][numpy.isin(self.moves["file"], numbers)].sum(dtype="u8"))


def path_of(path: str) -> str:
    """Return the path of the moved table of a chunk file."""
    return path + layout.MOVED


def encode(table: Table) -> bytes:
    """Return the bytes of the table's file."""
    files, moves = [table.old, *table.files], table.moves
    live = [int(moves["stored"].sum(dtype="u8")), *(table.bytes_in(entry.path) for entry in table.files)]
    frame = pages.compressed(pages.joined(files, live, moves))
    return frame + hashlib.sha256(frame).digest()


def decode(data: bytes, old: FileEntry) -> Table:
    """Return the moved table of the chunk file `old`; ValueError if a reader must refuse it."""
    frame, seal = data[:-_SEAL], data[-_SEAL:]
    if hashlib.sha256(frame).digest() != seal:
        raise ValueError("its digest does not match")
    files, _, moves = pages.split(pages.decompressed(frame, layout.MAX_DIRECTORY), MOVE)
    if files[:1] != [old]:
        raise ValueError("it belongs to another file")
    if len({_disk_of(entry.path) for entry in files}) != 1:
        raise ValueError("it names a path that is not a chunk file of the disk")
    flaw = _flaw(moves, numpy.array([entry.size for entry in files], "u8"))
    if flaw:
        raise ValueError(flaw)
    return Table(old, files[1:], moves)


def _disk_of(path: str) -> Optional[str]:
    """Return the encoded name of the disk of a chunk file, None for other files."""
    match = layout.CHUNK_PATH.match(path)
    return match and match["disk"]


def _flaw(moves: Moves, sizes: pages.Numbers) -> Optional[str]:
    if not moves["file"].all() or (moves["file"] >= len(sizes)).any():
        return "a move to a file that is not listed"
    if not moves["stored"].all() or (moves["stored"] > layout.MAX_STORED).any():
        return "a frame of impossible size"
    if pages.reach_past(moves["position"], moves["stored"], sizes[:1].repeat(len(moves))):
        return "a move from beyond the end of the file"
    if pages.reach_past(moves["to"], moves["stored"], sizes[moves["file"]]):
        return "a move to beyond the end of a file"
    if (moves["position"][1:] < moves["position"][:-1] + moves["stored"][:-1]).any():
        return "moves that are out of order"
    return None


def read(store: Store, series: str, old: FileEntry) -> Optional[Table]:
    """Return the moved table of the chunk file `old`; None if it has none. Damaged."""
    path = f"{series}/{path_of(old.path)}"
    if _disk_of(old.path) is None or store.size(path) is None:
        return None
    try:
        return decode(store.read(path, MAX_TABLE), old)
    except ValueError as error:
        raise errors.Damaged(f"{store.path(path)}: not the moved table of its file ({error})") from None


def table(old: FileEntry, frames: layout.Records, places: Sequence[Place], files: Sequence[FileEntry]) -> Table:
    """Return a table with the place of each of these frames of `old`.

    frames: a record of each, by position; files: the files of all places, and perhaps others, which are left out.
    """
    used = {place.path for place in places}
    files = [entry for entry in files if entry.path in used]
    numbers = {entry.path: number for number, entry in enumerate(files, 1)}
    moves = numpy.zeros(len(frames), MOVE)
    moves["position"], moves["stored"] = frames["position"], frames["stored"]
    moves["to"] = numpy.array([place.position for place in places], "u8")
    moves["file"] = [numbers[place.path] for place in places]
    return Table(old, files, moves)


def joined(one: Table, other: Table) -> Table:
    """Return a table with all frames of two tables of the same file; for a frame in both, `one` counts."""
    fresh = ~numpy.isin(other.moves["position"], one.moves["position"])
    more = other.moves[fresh]
    if not len(more):
        return one
    files = list(dict.fromkeys([*one.files, *(other.files[number - 1] for number in more["file"].tolist())]))
    numbers = numpy.array([0, *(files.index(entry) + 1 if entry in files else 0 for entry in other.files)], "u4")
    more["file"] = numbers[more["file"]]
    moves = numpy.concatenate([one.moves, more])
    return Table(one.old, files, moves[numpy.argsort(moves["position"], kind="stable")])
