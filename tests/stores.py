"""Stores for tests, made without libvirt: a simulated VM with byte arrays as disks, which records what was written.

Owns: `Vm`, whose points are written by the package's own writer while it remembers the bytes that each must restore to;
ways to damage a file and repair it; and a parser of zstd frames by the published specification (RFC 8878), independent
of the package's.
"""

import contextlib
import copy
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy
from blake3 import blake3

from nbdpull.core import errors, extents
from nbdpull.format import layout, manifest, moved, pages, stack, writer
from nbdpull.format.directory import Directory
from nbdpull.format.manifest import FileEntry
from nbdpull.format.sound_part import SoundPart
from nbdpull.operations import restore
from nbdpull.operations.verify import Options, verify
from nbdpull.repository import half_points, known_frames, marker, new_point, series

KIB, MIB = 1 << 10, 1 << 20
ROLLING = {"chunk_size": 8 * KIB, "batch_size": 64 * KIB}  # gives many chunk files from little data
REASONS = {manifest.FULL: "requested", manifest.INCREMENTAL: "checkpoint"}
SMALL = {"points": 3, "size": 400_000, "chunk_size": 100 * KIB, "batch_size": 64 * KIB}  # several chunk files of vda
SEVERAL = {**SMALL, "size": 900_000}  # and more of them


@dataclass
class Disk:
    """A disk. content: its bytes; kind: extents.DATA or ZERO for each byte; dirty: which bytes changed since the last
    pull."""

    content: numpy.ndarray
    kind: numpy.ndarray
    dirty: numpy.ndarray

    @staticmethod
    def blank(size):
        return Disk(numpy.zeros(size, "u1"), numpy.full(size, extents.ZERO, "u1"), numpy.zeros(size, bool))

    @property
    def size(self):
        return len(self.content)

    def extents(self, full):
        """Return the extents that a server would report: all for a full pull, else the dirty ones."""
        clean = numpy.uint8(255)  # a plain 255 would make numbers of eight bytes
        state = self.kind if full else numpy.where(self.dirty, self.kind, clean)
        starts = [0, *(numpy.flatnonzero(state[1:] != state[:-1]) + 1).tolist()] if len(state) else []
        stops = [*starts[1:], len(state)]
        return extents.of([(a, b - a, state[a]) for a, b in zip(starts, stops) if state[a] != clean])


class Blank(Disk):
    """A disk of which only the size is known."""

    def __init__(self, size):
        super().__init__(numpy.zeros(0, "u1"), numpy.zeros(0, "u1"), numpy.zeros(0, bool))
        self._size = size

    @property
    def size(self):
        return self._size


def domain_xml(disks, name="vm1", uuid="3e3fce45-4f53-4fa7-bb32-11f34168b82b", **inner):
    """Return a definition with disks {target: format}; inner: additional XML in the element of a disk, by target."""
    elements = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{kind}'/>"
        f"<source file={quoteattr(f'/images/{target}.{kind}')}/><target dev={quoteattr(target)} bus='virtio'/>"
        f"{inner.get(target, '')}</disk>"
        for target, kind in disks.items()
    )
    machine = "<memory unit='MiB'>16</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>"
    identity = f"<name>{escape(name)}</name><uuid>{uuid}</uuid>"
    return f"<domain type='qemu'>{identity}{machine}<devices>{elements}</devices></domain>\n"


def disks_of(xml):
    """Return {target: (format, path)} for the disks of a definition that have an image."""
    found = [disk for disk in ET.fromstring(xml).iterfind("devices/disk") if disk.find("source") is not None]
    by_target = {disk.find("target").get("dev"): (disk.find("driver"), disk.find("source")) for disk in found}
    return {target: (driver.get("type"), at.get("file") or at.get("dev")) for target, (driver, at) in by_target.items()}


def seen_by(xml):
    """Return {target: the bytes of the disk} for a domain, read as its definition says."""
    return {target: _seen(*disk) for target, disk in disks_of(xml).items()}


def _seen(kind, path):
    with tempfile.NamedTemporaryFile() as raw:
        subprocess.run(["qemu-img", "convert", "-U", "-f", kind, "-O", "raw", path, raw.name], check=True)
        return raw.read()


class Vm:
    """A simulated VM: `vm = Vm(folder); vm.add_disk("vda", MIB); vm.write("vda", 0, b"x"); point = vm.pull()`.

    images[point.id][disk] is what a restore must return. All points belong to one series.
    """

    def __init__(self, root, name="vm1", uuid="3e3fce45-4f53-4fa7-bb32-11f34168b82b", keys=None):
        """keys: StoreKeys that the store is sealed with; None: the store is not sealed."""
        self.store = marker.open_or_create(str(root), seal=keys and marker.NewSeal(keys.id, []))
        if keys:
            marker.unlock(self.store, keys)
        self.root = Path(root)
        self.name, self.uuid = name, uuid
        self.series = series.Series(self.store, name)
        self.folder = self.root / self.series.folder
        self.xml = None  # the definition that goes into the next point; None: one with its disks, all qcow2
        self.bad = frozenset()  # paths of damaged files, without which the next points are made
        self.files = {}  # other files of the domain that go into it: {name: bytes}
        self.disks = {}
        self.points = []
        self.images = {}

    def copy(self, root):
        """Return a copy of this Vm with a copy of its store, in a tenth of the time of the pulls."""
        shutil.copytree(self.root, root)
        twin = Vm(root, self.name, self.uuid)
        twin.xml, twin.files, twin.points, twin.images = self.xml, {**self.files}, [*self.points], {**self.images}
        twin.disks = copy.deepcopy(self.disks)
        return twin

    def add_disk(self, name, size):
        self.disks[name] = Disk.blank(size)

    def write(self, name, offset, data):
        disk, stop = self.disks[name], offset + len(data)
        disk.content[offset:stop] = numpy.frombuffer(data, "u1")
        disk.kind[offset:stop] = extents.DATA
        disk.dirty[offset:stop] = True

    def zero(self, name, offset, length):
        disk, stop = self.disks[name], offset + length
        disk.content[offset:stop] = 0
        disk.kind[offset:stop] = extents.ZERO
        disk.dirty[offset:stop] = True

    def grow(self, name, size):
        """Grow or shrink a disk. New space reads as zero and is not dirty, as with QEMU's bitmaps."""
        old, new = self.disks[name], Disk.blank(size)
        for field in ("content", "kind", "dirty"):
            getattr(new, field)[: old.size] = getattr(old, field)[:size]
        self.disks[name] = new

    def shrink(self, name, size):
        """Shrink a disk. No bitmap records that: the next pull has to be a full one."""
        old = self.disks[name]
        self.disks[name] = Disk(old.content[:size].copy(), old.kind[:size].copy(), old.dirty[:size].copy())

    def pull(self, since="last", point_id=None, disks=None, handmade=None, sequence=None, levels=None, **how):
        """Commit a point of the named disks, by default of all.

        since: "last" point, "nothing" (full), "nothing, alike" (full, but only differences from the last point are
        stored), or a checkpoint "elsewhere" (incremental, without a parent); handmade: {disk: function of the point's
        folder -> (records, chunk files that the records number)}, for what DiskWriter never writes; sequence: its
        number, by default the next one; levels: recorded in the manifest; how: frame_size, chunk_size, batch_size,
        dedupe, level.
        """
        point_id = point_id or layout.new_point_id()
        last = self.points[-1] if self.points and since in ("last", "nothing, alike") else None
        chosen = disks or list(self.disks)
        modes = {name: self._mode(name, last, since) for name in chosen}
        parent = last if manifest.INCREMENTAL in modes.values() or since == "nothing, alike" else None
        with half_points.writing(self.series), new_point.begun(self.series, point_id) as new:
            made = handmade or {}
            stored = [self._stored(name, new.id, modes[name], parent, made.get(name), how, levels) for name in chosen]
            xml = self.xml or domain_xml(dict.fromkeys(self.disks, "qcow2"), self.name, self.uuid)
            for name, data in {layout.DOMAIN_XML: xml.encode(), **self.files}.items():
                new.add_file(name, data)
            fields = {"sequence": sequence} if sequence else {}
            point = new.commit({**self._fields(point_id, parent), **fields}, stored)
        self.points.append(point)
        self.images[point.id] = {name: self.disks[name].content.tobytes() for name in chosen}
        for name in chosen:
            self.disks[name].dirty[:] = False
        return point

    def pull_zeros(self, name, size):
        """Commit a full point of one new disk of any size that is all zeros."""
        self.disks[name] = Blank(size)
        return self.pull("nothing", disks=[name], handmade={name: lambda folder: (numpy.empty(0, layout.RECORD), [])})

    def _mode(self, name, last, since):
        based = since == "elsewhere" or (since == "last" and last is not None and last.manifest.disk(name) is not None)
        return manifest.INCREMENTAL if based else manifest.FULL

    def _stored(self, name, point_id, mode, parent, handmade, how, levels):
        base = parent and parent.manifest.disk(name) and self._base(parent, name)
        whole = mode == manifest.FULL or bool(base and base.whole)
        base = base if base and base.whole == whole else None
        disk = writer.Disk(self.series.folder, point_id, name, self.disks[name].size, whole)
        if handmade:
            records, chunks = handmade(f"{self.series.folder}/{point_id}")
            directory, files = handmade_files(self.store, disk, base, records, chunks)
        else:
            directory, files = self._write(disk, mode, base, **how)
        size = directory.size + sum(file.size for file in files)
        fields = (name, disk.size, mode, REASONS[mode], f"/images/{name}.qcow2", whole, directory, 0, 0, 0, size)
        return new_point.Stored(manifest.DiskEntry(*fields, levels=levels or {}), files)

    def _base(self, parent, name):
        if not self.bad:
            return self.series.directory(parent, name, partial=True)
        base = SoundPart(self.store, self.series.folder, parent.manifest.disk(name), self.bad)
        for offset, length, _ in base.again.tolist():
            self.disks[name].dirty[offset : offset + length] = True
        return base

    def _write(
        self, about, mode, base, frame_size=64 * KIB, chunk_size=256 * MIB, batch_size=MIB, dedupe=False, level=1
    ):
        disk = self.disks[about.name]
        encoder = writer.Encoder(level, known_frames.KnownFrames(base) if dedupe and base else None, self.store.seal)
        found = disk.extents(mode == manifest.FULL)
        pieces = extents.cut(found, frame_size, only=found["kind"] == extents.DATA)
        with writer.DiskWriter(self.store, about, chunk_size, base) as output:
            for batch in extents.batches(pieces, batch_size, 1 << 10):
                output.add(encoder.encode(batch, buffers(disk.content, batch)))
            return output.close()

    def _fields(self, point_id, last):
        return {
            "sequence": 1 + max((point.manifest.sequence for point in self.points), default=0),
            "created": "2026-11-22T19:45:00+00:00",
            "as_of": "2026-11-22T19:44:00+00:00",
            "store": marker.uuid_of(self.store),
            "parent": last and manifest.ParentEntry(last.id, last.sha256),
            "domain": self.name,
            "uuid": self.uuid,
            "since": "chk-of-the-parent",
            "checkpoint": manifest.CheckpointEntry(f"nbdpull-{point_id}", 1795376700, True),
            "consistency": "crash-consistent",
            "versions": {"nbdpull": "0.1.0"},
            "seconds": {"copy": 0.5},
        }


def buffers(content, batch):
    """Return the bytes of each data extent of a batch."""
    data = batch[batch["kind"] == extents.DATA]
    return [content[int(e["offset"]) : int(e["offset"] + e["length"])].tobytes() for e in data]


def scribble(vm, name, rng, count=6, longest=700 * KIB):
    """Write random data and zeros at random offsets, of random lengths; `rng` is a random.Random."""
    size = vm.disks[name].size
    for _ in range(count):
        offset = rng.randrange(size)
        length = min(rng.choice([1, 511, 4096, 65536, rng.randrange(1, longest)]), size - offset)
        what = rng.randrange(4)
        if what == 0:
            vm.zero(name, offset, length)
        elif what == 1:
            vm.write(name, offset, bytes(length))  # zeros that the server does not report as such
        else:
            vm.write(name, offset, rng.randbytes(min(length, 3000)).ljust(length, b"%c" % rng.randrange(256)))


def chain(root, seed=1, points=3, size=2 * MIB + 1234, **how):
    """Return a Vm with a full point and incremental ones of vda, which grows, and vdb."""
    rng = random.Random(seed)
    vm = Vm(root)
    vm.add_disk("vda", size)
    vm.add_disk("vdb", 300 * KIB)
    for number in range(points):
        if number:
            vm.grow("vda", vm.disks["vda"].size + 77777)
        scribble(vm, "vda", rng)
        vm.write("vda", rng.randrange(size - 200 * KIB), rng.randbytes(200 * KIB))
        scribble(vm, "vdb", rng, count=2, longest=100 * KIB)
        vm.pull(**how)
    return vm


def daily(root, days, name="vm1", uuid="3e3fce45-4f53-4fa7-bb32-11f34168b82b"):
    """Return a Vm with one point per day for that many days, the newest from yesterday."""
    vm = Vm(root, name, uuid)
    vm.add_disk("vda", 64 * KIB)
    for age in range(days, 0, -1):
        vm.write("vda", 512 * age, bytes([age]) * 512)
        when = (datetime.now(timezone.utc) - timedelta(days=age)).isoformat(timespec="seconds")
        vm.points[-1] = resealed(vm, vm.pull(), created=when, as_of=when)
    return vm


def ids(vm):
    """Return the ids of a Vm's existing points."""
    return [point.id for point in vm.series.points()]


def handmade_files(store, disk, base, records, chunks):
    """Write an index and a directory of the given records, even of invalid ones: one page per window, on top of those
    of the base. chunks: the FileEntry objects that the records number; disk: writer.Disk. Return what DiskWriter.close
    returns."""
    refs, index = [], b""
    windows = records["offset"] // layout.WINDOW
    for window in numpy.unique(windows):
        page = pages.Page([chunk.path for chunk in chunks], records[windows == window])
        raw, ref = pages.encode_page(page), numpy.zeros(1, pages.PAGE)
        data = store.seal.piece(pages.compressed(raw), layout.PAGE_PIECE)
        ref["offset"], ref["records"] = window * layout.WINDOW, len(page.records)
        ref["position"], ref["stored"], ref["raw"] = len(index), len(data), len(raw)
        ref["digest"] = numpy.void(store.seal.secret(digest(raw).tobytes()))
        refs.append(ref)
        index += data
    own = [_put(store, disk, layout.index_name(disk.name), index)] if refs else []
    files = list({file.path: file for file in [*(base.files if base else []), *chunks, *own]}.values())
    below = base.pages if base else numpy.empty(0, pages.PAGE)
    for ref in refs:
        ref["file"] = files.index(own[0])
    found = numpy.concatenate([below, *refs])
    found = found[numpy.argsort(found["offset"], kind="stable")]
    live = _live(disk, files, base, records, chunks)
    for ref in found:
        live[ref["file"]] += ref["stored"]
    data = pages.compressed(pages.encode_directory(pages.Directory(files, live, found)))
    made = [chunk for chunk in chunks if chunk.path.startswith(disk.point)]
    return _put(store, disk, layout.directory_name(disk.name), data), [*own, *made]


def _live(disk, files, base, records, chunks):
    """Return how many bytes of each chunk file are visible; all of them if the records are invalid."""
    if layout.records_flaw(records, disk.size, len(chunks)):
        return numpy.array([0 if file.path.endswith(".index") else file.size for file in files], "u8")
    numbers, live = numpy.array([files.index(chunk) for chunk in chunks] or [0], "u4"), numpy.zeros(len(files), "u8")
    new = records.copy()
    new["chunk"] = numbers[new["chunk"]]
    for start in {*(new["offset"] // layout.WINDOW * layout.WINDOW).tolist(), *(base.starts() if base else [])}:
        layers = [*(base.window(start).layers if base else []), new]
        for number, size in pages.total_live(stack.flat(layers, start, min(start + layout.WINDOW, disk.size))).items():
            live[number] += numpy.uint64(size)
    return live


def move(vm, point, disk, paths, new_id="20270101T000000Z-000000aa"):
    """Move the frames that a point shows from some chunk files of a disk into one new file, and remove those files.
    Return the FileEntry of the new file."""
    found = directory_of(vm, point, disk)
    old = [entry for entry in found.files if entry.path in paths]
    frames = {entry.path: _frames(found, entry) for entry in old}
    vm.store.make_folder(f"{vm.series.folder}/{new_id}", fresh=True)
    about = {"format": layout.FORMAT, "requires": [], "when": "2027-01-01T00:00:00+00:00", "who": "root@host"}
    vm.store.publish(f"{vm.series.folder}/{new_id}/{layout.REPACKED}", layout.seal(about))
    path = f"{new_id}/{layout.chunk_name(disk, 0)}"
    file = vm.store.create(f"{vm.series.folder}/{path}")
    output = writer.Chunk(file, 0, layout.chunk_header(new_id, disk, found.size, 0), vm.store.seal)
    for entry in old:
        data = (vm.folder / entry.path).read_bytes()
        parts = [data[r["position"] :][: r["stored"]] for r in frames[entry.path]]
        new = frames[entry.path].copy()
        output.add(writer.Encoded(new, parts, 0, numpy.arange(len(new)), numpy.arange(0)))
        frames[entry.path] = (frames[entry.path], new)
    output.seal(pages.Page([path], output.records()))
    made = FileEntry(path, file.size, file.sha256())
    for entry in old:
        before, after = frames[entry.path]
        moves = numpy.zeros(len(before), moved.MOVE)
        moves["position"], moves["stored"] = before["position"], before["stored"]
        moves["to"], moves["file"] = after["position"], 1
        (vm.folder / moved.path_of(entry.path)).write_bytes(moved.encode(moved.Table(entry, [made], moves)))
        (vm.folder / entry.path).unlink()
    return made


def _frames(directory, entry):
    """Return one record for each frame of a file that the image of a disk shows, by position."""
    found = numpy.concatenate([stack.data_of(window.flat()) for window in directory.windows()])
    mine = found[found["chunk"] == directory.files.index(entry)]
    return mine[numpy.unique(mine["position"], return_index=True)[1]]


def _put(store, disk, name, data):
    with store.create(f"{disk.series}/{disk.point}/{name}") as file:
        file.write(data)
    return FileEntry(f"{disk.point}/{name}", file.size, file.sha256())


def digest(data):
    return numpy.void(blake3(data).digest())


def shown(image):
    """Return (bytes of an Image, bool array of the bytes that it contains)."""
    content, known = numpy.zeros(image.size, "u1"), numpy.zeros(image.size, bool)
    for piece in image.pieces():
        for extent, data in zip(piece, image.read_piece(piece) if is_data(piece) else [b"\0"] * len(piece)):
            part = slice(int(extent["offset"]), int(extent["offset"] + extent["length"]))
            content[part] = numpy.frombuffer(data, "u1")
            known[part] = True
    return content, known


def is_data(piece):
    """Return whether a piece of an Image has data; otherwise it reads as zero."""
    return piece["kind"][0] == extents.DATA


def directory_of(vm, point, disk):
    return Directory(vm.store, vm.series.folder, point.manifest.disk(disk))


def chunks_of(vm, point, disk):
    """Return the FileEntry of each chunk file, of any point, that the image of a disk consists of."""
    return directory_of(vm, point, disk).chunks


def index_of(vm, point, disk):
    """Return the path of the index that the pull of a point wrote."""
    return vm.folder / point.id / layout.index_name(disk)


def records_of(vm, point, disk):
    """Return the records of all pages that the pull of a point wrote, as one array; chunk: number in the directory's
    files."""
    found = directory_of(vm, point, disk)
    own = [ref for ref in found.pages if found.files[ref["file"]].path.startswith(point.id)]
    return numpy.concatenate([numpy.empty(0, layout.RECORD), *(found.records(ref) for ref in own)])


def page_of(vm, point, disk):
    """Return the only Page of a disk."""
    found = directory_of(vm, point, disk)
    [ref] = found.pages
    data = (vm.folder / found.files[ref["file"]].path).read_bytes()
    return pages.decode_page(pages.decompressed(data, int(ref["raw"])), disk)


def relaid(vm, point, disk, layers, starts=None, frame=pages.compressed, directory=lambda data: data):
    """Replace the only page of a disk by others, adapt all sizes and digests in files, and return the new Point.

    layers: Pages, or bytes in place of some; starts: their windows, by default the first; frame: function from a page's
    bytes to those in the file; directory: function that changes the bytes of the directory.
    """
    point = vm.series.point_in(point.id)  # as it is now
    found = directory_of(vm, point, disk)
    number = int(found.pages["file"][0])
    refs, index = numpy.repeat(found.pages[:1], len(layers)), b""
    for ref, layer, start in zip(refs, layers, starts or [0] * len(layers)):
        raw = layer if isinstance(layer, bytes) else pages.encode_page(layer)
        data = frame(raw)
        ref["offset"], ref["position"], ref["stored"], ref["raw"] = start, len(index), len(data), len(raw)
        count = (len(raw) - 8 - int.from_bytes(raw[4:8], "little")) // 80
        ref["records"] = count if count >= 0 else 1
        ref["digest"] = digest(raw)
        index += data
    files = [*found.files]
    files[number] = replaced(vm, files[number].path, index)
    return redirected(vm, point, disk, pages.Directory(files, found.live, refs), directory)


def redirected(vm, point, disk, directory, changed=lambda data: data):
    """Replace the directory of a disk by another pages.Directory, and return the new Point. changed: function that
    changes the bytes of the directory."""
    entry = point.manifest.disk(disk)
    written = replaced(vm, entry.directory.path, pages.compressed(changed(pages.encode_directory(directory))))
    return resealed(vm, point, disks=[replace(each, directory=written) if each == entry else each
                                      for each in point.manifest.disks])  # fmt: skip


def replaced(vm, path, data):
    """Replace the content of a file; return its FileEntry."""
    (vm.folder / path).write_bytes(data)
    return FileEntry(path, len(data), hashlib.sha256(data).hexdigest())


def entry_of(vm, path):
    """Return the FileEntry of the present content of a file of the series."""
    data = Path(path).read_bytes()
    return FileEntry(str(Path(path).relative_to(vm.folder)), len(data), hashlib.sha256(data).hexdigest())


def resealed(vm, point, **changes):
    """Replace the manifest of a point by a changed one with a correct seal, and return the new Point."""
    path = vm.folder / point.id / layout.MANIFEST
    path.write_bytes(manifest.encode(replace(point.manifest, **changes)))
    return vm.series.point_in(point.id)


# -- damage -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def damaged(path, data):
    """Replace the content of a file (None: remove the file) inside the block."""
    path = Path(path)
    before = path.read_bytes()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def flipped(data, at, bit=0):
    """Return the bytes with one bit flipped."""
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def files(root):
    """Return all files below a folder, sorted."""
    return sorted(path for path in Path(root).rglob("*") if path.is_file())


def forged_store(root):
    """Return (Vm, Point) of a store in which two frames were exchanged, and the digests of all files adapted, but not
    those of the frames."""
    vm = Vm(root)
    vm.add_disk("vda", 3 * MIB)
    noise = [random.Random(i).randbytes(64 * KIB) for i in range(48)]
    for i, data in enumerate(noise):
        vm.write("vda", i * 64 * KIB, data)
    point = vm.pull()
    records = records_of(vm, point, "vda")
    [chunk] = chunks_of(vm, point, "vda")
    data = bytearray((vm.folder / chunk.path).read_bytes())
    (a, b), size = records["position"][[40, 41]].tolist(), int(records["stored"][40])
    assert size == records["stored"][41]
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    forged = replaced(vm, chunk.path, bytes(data)).sha256

    def fits(directory):
        return directory.replace(bytes.fromhex(chunk.sha256), bytes.fromhex(forged))

    return vm, relaid(vm, point, "vda", [page_of(vm, point, "vda")], directory=fits)


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a file system of `size` bytes at a new folder; needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def unprivileged():
    """Run this process, if it is root, as the user nobody inside the block; give a folder of that user."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = os.geteuid() == 0
        if root:
            os.chown(folder, 65534, 65534)
            os.setresuid(65534, 65534, 0)
        try:
            yield Path(folder)
        finally:
            if root:
                os.setresuid(0, 0, 0)


# -- zstd by its specification ----------------------------------------------------------------------------------------


def zstd_frames(data):
    """Return [(magic, start, stop), …] for all frames in a file, by RFC 8878; ValueError if there is something else."""
    frames, at = [], 0
    while at < len(data):
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:
            stop = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        elif magic == 0xFD2FB528:
            stop = _frame_end(data, at + 4)
        else:
            raise ValueError(f"no frame at {at}: magic {magic:#x}")
        if stop > len(data):
            raise ValueError(f"the frame at {at} is cut short")
        frames.append((magic, at, stop))
        at = stop
    return frames


def _frame_end(data, at):
    descriptor = data[at]
    single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    at += 1 + (not single) + [0, 1, 2, 4][descriptor & 3] + [single, 2, 4, 8][descriptor >> 6]
    last = False
    while not last:
        block = int.from_bytes(data[at : at + 3], "little")
        last, rle = block & 1, block >> 1 & 3 == 1
        at += 3 + (1 if rle else block >> 3)
    return at + 4 * checksum


def package_environment():
    """Return an environment in which `python -m nbdpull` runs the package under test, from any folder."""
    import nbdpull

    return {**os.environ, "PYTHONPATH": str(Path(nbdpull.__file__).parent.parent), "NBDPULL_DEBUG": ""}


def verify_store(root, report=lambda **event: None, check=lambda: None, keep=False, **options):
    """Return what verify finds in a store, without changing the store."""
    return verify(Options(str(root), keep=keep, **options), report, check)


def restored(vm, point, folder):
    """Return {disk: bytes} of a restore to raw; {} if it fails with Damaged, in which case no file may be left."""
    try:
        result = restore.restore(restore.Options(str(vm.root), str(folder), vm.name, point.id, kind="raw"))
    except errors.Damaged as error:
        assert error.exit_code == 11
        assert not folder.exists() or list(folder.iterdir()) == []
        return {}
    images = {}
    for disk, path in result.files.items():
        with open(path, "rb") as file:
            images[disk] = file.read()
    shutil.rmtree(folder)
    return images
