"""A disk without a VM, and points of it that the package's own engine makes: a thousand in the time of a hundred pulls.

Owns: what such a disk holds, how a guest writes to it day by day, and its series. Must not know: what is measured.
"""

import os
import random
import struct
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy
from stores import domain_xml

from nbdpull.core import extents
from nbdpull.core.throttle import Throttle
from nbdpull.definitions import domain_xml as definitions
from nbdpull.format import layout, manifest
from nbdpull.pulling.disk_copy import DiskCopy, Storing
from nbdpull.pulling.level import Level
from nbdpull.repository import half_points, marker, new_point, series

BLOCK = 64 << 10  # bytes: QEMU's usual cluster, by which its bitmaps count
POOL = 64 << 20  # bytes of noise, of which no two blocks of a frame are likely to have the same
NAME, UUID = "pretend", "3e3fce45-4f53-4fa7-bb32-11f34168b82b"
TODAY = datetime(2026, 11, 22, 19, 45, tzinfo=timezone.utc)
STORING = Storing(frame_size=1 << 20, chunk_size=256 << 20, level=Level(1))  # the defaults of pull


class Disk:
    """A disk of `size` bytes in blocks, each described by how often it was written: 0 is a hole. Each state of a block
    differs from all others, and zstd compresses it to `noise` of its size."""

    def __init__(self, size, noise=0.5):
        self.size = size
        self.versions = numpy.zeros(size // BLOCK, "u4")
        self._dirty = numpy.zeros(size // BLOCK, bool)
        self._noise = int(BLOCK * noise)
        self._pool = random.Random(1).randbytes(POOL)

    def write(self, blocks):
        self.versions[blocks] += 1
        self._dirty[blocks] = True

    def fill(self):
        self.write(slice(None))

    def block(self, number):
        version = int(self.versions[number])
        if not version:
            return bytes(BLOCK)
        label = struct.pack("<QQ", number, version)
        start = hash((number, version)) % (POOL - BLOCK)
        return (label + self._pool[start : start + self._noise]).ljust(BLOCK, b"\1")[:BLOCK]

    def read(self, offset, length):
        return b"".join(map(self.block, range(offset // BLOCK, (offset + length) // BLOCK)))

    def save(self, path):
        """Save it as a sparse file."""
        with open(path, "wb") as file:
            for number in numpy.flatnonzero(self.versions).tolist():
                file.seek(number * BLOCK)
                file.write(self.block(number))
            file.truncate(self.size)

    def changed(self, everything):
        """Return the extents since the last call, in runs of blocks; everything: of the whole disk."""
        wanted = self._dirty | everything
        self._dirty[:] = False
        state = numpy.where(wanted, numpy.where(self.versions > 0, extents.DATA, extents.ZERO), 255)
        first = numpy.flatnonzero(numpy.concatenate([[True], state[1:] != state[:-1]]))
        stops = [*first[1:].tolist(), len(state)]
        runs = [(a * BLOCK, (b - a) * BLOCK, int(state[a])) for a, b in zip(first.tolist(), stops) if state[a] != 255]
        return extents.of(runs)


class Days:
    """What a guest writes in a day: a share of its blocks, two thirds of it in runs in a hot tenth of the disk, one
    third at random."""

    def __init__(self, disk, share, seed=1):
        self._disk, self._chance = disk, numpy.random.default_rng(seed)
        self._count = max(1, int(share * len(disk.versions)))

    def pass_one(self):
        blocks, chance = len(self._disk.versions), self._chance
        scattered = chance.integers(blocks, size=max(1, self._count // 3))
        runs = chance.integers(max(1, blocks // 10 - 8), size=max(1, self._count * 2 // 3 // 8))
        hot = (blocks // 3 + runs[:, None] + numpy.arange(8)).ravel() % blocks
        self._disk.write(numpy.unique(numpy.concatenate([scattered, hot])))


class _Source:
    """The source that a DiskCopy reads: see there."""

    presumed = 0

    def __init__(self, disk, everything):
        self._disk, self._everything = disk, everything

    def extents(self, start=0):
        yield self._disk.changed(self._everything)

    def reading(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def read_batch(self, ranges):
        return [self._disk.read(offset, length) for offset, length in ranges]


class Series:
    """The points of one Disk, vda of a domain that libvirt need not have."""

    def __init__(self, root, disk, name=NAME, uuid=UUID, storing=STORING, source="/images/vda.qcow2"):
        self.store = marker.open_or_create(str(root))
        self.series = series.Series(self.store, name)
        self._disk, self._uuid, self._storing, self._source = disk, uuid, storing, source
        self._last = None

    def pull(self, created=TODAY):
        """Commit a point: the first one in full, each other as what changed."""
        last, point_id = self._last, layout.new_point_id(created)
        with half_points.writing(self.series), new_point.begun(self.series, point_id) as new:
            stored = self._copied(new.id, last)
            xml = domain_xml({"vda": "qcow2"}, self.series.domain, self._uuid)
            new.add_file(layout.DOMAIN_XML, xml.encode(), last)
            self._last = new.commit(self._fields(last, created), [stored])
        return self._last

    def _copied(self, point_id, last):
        base = last and self.series.directory(last, "vda")
        decision = (manifest.INCREMENTAL, "checkpoint") if base else (manifest.FULL, "first-point")
        about = definitions.Disk("vda", "file", self._source, "qcow2", "disk", "virtio", False, False, False, False,
                                 size=self._disk.size)  # fmt: skip
        source = _Source(self._disk, base is None)
        with DiskCopy(about, source, decision, self.series, point_id, self._storing, Throttle(), base) as copy:
            for item in copy.items():
                for encoded in copy.encode(item, copy.read(item)):
                    copy.add(encoded)
            return copy.close()

    def _fields(self, last, created):
        return {
            "sequence": last.manifest.sequence + 1 if last else 1,
            "created": created.isoformat(),
            "as_of": created.isoformat(),
            "store": marker.uuid_of(self.store),
            "parent": last and manifest.ParentEntry(last.id, last.sha256),
            "domain": self.series.domain,
            "uuid": self._uuid,
            "since": "chk-of-the-parent" if last else None,
            "checkpoint": None,
            "consistency": "crash-consistent",
            "versions": {"nbdpull": "0.1.0"},
            "seconds": {"copy": 0.5},
        }


def history(root, disk, points, share, **how):
    """Return a Series of that many points, a day apart and the last one of TODAY, of a disk that was full at the
    first."""
    made, days = Series(root, disk, **how), Days(disk, share)
    disk.fill()
    for number in range(points):
        if number:
            days.pass_one()
        made.pull(TODAY - timedelta(days=points - 1 - number))
    return made


def cloned(made, name, uuid):
    """Make the same points again as those of another domain. The files are links, because none is ever written to."""
    other = series.Series(made.store, name)
    made.store.make_folder(other.folder)
    above = None
    for point in made.series.points():
        folder = Path(made.store.path(other.folder, point.id))
        folder.mkdir()
        for file in Path(made.store.path(made.series.folder, point.id)).iterdir():
            if file.name != layout.MANIFEST:
                os.link(file, folder / file.name)
        fields = {**vars(point.manifest), "domain": name, "uuid": uuid, "parent": above}
        (folder / layout.MANIFEST).write_bytes(manifest.encode(manifest.Manifest(**fields)))
        above = manifest.ParentEntry(point.id, other.point(point.id).sha256)
