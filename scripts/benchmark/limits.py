"""The best that this machine could do, measured in the same run. Must not know: nbdpull's engine, or the peers."""

import hashlib
import os
import time
from collections import deque
from typing import NamedTuple

import measure
import nbd
import tools
import zstandard
from blake3 import blake3

from nbdpull.core import extents, freed_memory
from nbdpull.format import layout
from nbdpull.nbd import source
from nbdpull.operations.options.pulls import PullOptions

IN_FLIGHT = 8
READ_SIZE = 1 << 20
AROUND_THE_COPY = 0.4  # seconds granted to an incremental pull for all but its reads


class Spent(NamedTuple):
    """Seconds of CPU, of one thread: what the frames of a store cost, without reading the disk."""

    zstd: float
    digests: float
    writing: float


def packing(setting, read):
    """Return two limits of a full pull at the default level; read: the Cost of nbdcopy to nothing. The frames are those
    of the newest store of the setting.

    No pull takes less than the CPU time of libzstd for the stored frames and of reading, shared by all cores. No pull
    whose result is proved and durable takes less than that with digests and writing; or than the disk takes to write
    what was stored, if that is longer.
    """
    copy, again = setting.fresh("copy"), setting.fresh("again")
    took = spent(sorted((setting.folder / "store").rglob("*.zst")), copy)
    written = setting.run(tools.synced_copy(copy, again))
    copy.unlink()
    again.unlink()
    least = took.zstd + read.cpu
    yield "limit: zstd and reading", _shared(least, read.qemu_cpu)
    yield "limit: and proofs, writing", _shared(least + took.digests + took.writing, read.qemu_cpu, written.wall)


def _shared(cpu, qemu_cpu, wall=0.0):
    """Return the Cost of that much work on all cores, which takes at least that long."""
    return measure.Cost(max((cpu + qemu_cpu) / os.cpu_count(), wall), cpu, qemu_cpu, peak_mib=0, size=0)


def spent(chunks, copy):
    """Return the cost of making the frames of chunk files again in this thread: by the linked libzstd, with BLAKE3 of
    the content of a frame and SHA-256 of the frame, and of writing them to the file `copy`."""
    freed_memory.keep()  # as a pull does
    zstd, unpack = zstandard.ZstdCompressor(level=PullOptions.level, write_checksum=True), zstandard.ZstdDecompressor()
    sha256, sums = hashlib.sha256(), [0.0, 0.0, 0.0]
    with open(copy, "wb", buffering=0) as file:
        for stored in _frames(chunks):
            data, times = unpack.decompress(stored), [time.thread_time()]
            frame = zstd.compress(data)
            times.append(time.thread_time())
            blake3(data).digest()
            sha256.update(frame)
            times.append(time.thread_time())
            file.write(frame)
            times.append(time.thread_time())
            sums = [each + stop - start for each, start, stop in zip(sums, times, times[1:])]
    return Spent(*sums)


def _frames(chunks):
    """Yield the frames of chunk files, except the skippable ones."""
    for path in chunks:
        data, at = path.read_bytes(), 0
        for stored, raw in layout.parse_seek_table(data):
            if raw:
                yield data[at : at + stored]
            at += stored


def same_reads(setting, vm, base):
    """Do an incremental pull's reads to nothing, on one connection, 8 in flight; and add 0.4 s for everything else."""
    with setting.export(vm, base) as job:
        export = job.exports["vda"]
        with source.Source(job.socket, export.name, export.bitmap) as opened:
            found = [extents.cut(part[part["kind"] == extents.DATA], READ_SIZE) for part in opened.extents()]
        ranges = [pair for part in found for pair in zip(part["offset"].tolist(), part["length"].tolist())]
        before, cpu, began = measure.cpu_of(vm.pid), time.process_time(), time.monotonic()
        read(tools.export_uri(job.socket, export.name), ranges)
        wall, cpu = time.monotonic() - began, time.process_time() - cpu
        return measure.Cost(wall + AROUND_THE_COPY, cpu, measure.cpu_of(vm.pid) - before, peak_mib=0, size=0)


def read(uri, ranges):
    """Read [(offset, length), …] and drop the bytes; return their number."""
    handle, under_way, total = nbd.NBD(), deque(), 0
    handle.connect_uri(uri)
    for offset, length in ranges:
        if len(under_way) >= IN_FLIGHT:
            _finish(handle, under_way.popleft())
        under_way.append(handle.aio_pread(nbd.Buffer(length), offset))
        total += length
    while under_way:
        _finish(handle, under_way.popleft())
    handle.shutdown()
    return total


def _finish(handle, request):
    """Wait for the end of a request; raise nbd.Error if it failed."""
    while not handle.aio_command_completed(request):
        handle.poll(-1)
