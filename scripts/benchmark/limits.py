"""What this machine could do at best, measured in the same run. Must not know: nbdpull's engine, or the peers."""

import os
import time
from collections import deque

import measure
import nbd
import tools

from nbdpull.core import extents
from nbdpull.nbd import source

IN_FLIGHT = 8
READ_SIZE = 1 << 20
AROUND_THE_COPY = 0.4  # seconds granted to an incremental pull for all but its reads


def packing(setting, read):
    """No full pull that compresses with zstd -1 can take less: the CPU time of zstd over the bytes that were stored and
    of reading them, shared by all cores; or the time to write what was stored, where that is longer.

    read: the Cost of nbdcopy to nothing. What was stored is the newest store of the setting.
    """
    raw, copy = setting.fresh("raw"), setting.fresh("copy")
    chunks = " ".join(str(path) for path in sorted((setting.folder / "store").rglob("*.zst")))
    setting.run(["sh", "-c", f"zstd -q -dc {chunks} > {raw}"])
    packed = setting.run(["sh", "-c", f"exec zstd -q -1 -T1 -c {raw} > /dev/null"])
    written = setting.run(["sh", "-c", f"cat {chunks} | exec dd of={copy} bs=1M conv=fsync"])
    raw.unlink()
    copy.unlink()
    cpu = packed.cpu + read.cpu + read.qemu_cpu
    wall = max(cpu / os.cpu_count(), written.wall)
    return measure.Cost(wall=wall, cpu=cpu, qemu_cpu=read.qemu_cpu, peak_mib=0, size=0)


def same_reads(setting, vm, base):
    """An incremental pull's reads to nothing, on one connection, 8 in flight; and 0.4 s for what is around them."""
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
    """Read [(offset, length), …] and drop the bytes; the number of bytes read."""
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
    """Wait for a request's end; nbd.Error where it failed."""
    while not handle.aio_command_completed(request):
        handle.poll(-1)
