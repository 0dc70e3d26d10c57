"""Make the golden store: a small store of format nbdpull/2 with every kind of record, and the expected content of its
images.

    rm -r tests/data/golden tests/data/golden.json && python3 tests/data/make_golden.py

and the same store, sealed for the identity tests/data/identities/age1:

    rm -r tests/data/golden-sealed && python3 tests/data/make_golden.py tests/data/golden-sealed age1

The store was made once and is committed, and every later version has to read it: a store that the current code makes
proves nothing about stores of earlier versions. It may be made again only before the first release of its format. A new
format gets a golden store of its own beside this one.
"""

import hashlib
import json
import random
import sys
from pathlib import Path

import numpy

DATA = Path(__file__).parent
sys.path[:0] = [str(DATA.parent.parent), str(DATA.parent)]

import identities  # noqa: E402
from stores import KIB, MIB, Vm, chunks_of, directory_of, move, records_of  # noqa: E402

from nbdpull.core import extents  # noqa: E402
from nbdpull.crypto import age  # noqa: E402
from nbdpull.crypto import keys as store_keys  # noqa: E402
from nbdpull.format import layout  # noqa: E402
from nbdpull.repository import half_points, marker, removal  # noqa: E402

ROLLING = {"chunk_size": 6 * KIB, "batch_size": 64 * KIB}


def text(rng, length):
    """Return data that compresses, as most does."""
    words = [rng.randbytes(6).hex() for _ in range(40)]
    return " ".join(rng.choice(words) for _ in range(length // 8)).encode().ljust(length, b".")[:length]


def main_domain(root, keys):
    """vm1: two disks, a full point and four incremental ones."""
    rng = random.Random(2026)
    vm = Vm(root, "vm1", uuid="3e3fce45-4f53-4fa7-bb32-11f34168b82b", keys=keys)
    vm.add_disk("vda", 3 * MIB)
    vm.add_disk("vdb", 100 * KIB + 512)
    for offset in (0, 200 * KIB, MIB - 40 * KIB, 2 * MIB + 4096):
        vm.write("vda", offset, text(rng, 60 * KIB))
    for offset in range(3 * MIB - 128 * KIB, 3 * MIB, 16 * KIB):
        vm.write("vda", offset, text(rng, 600))
    vm.write("vda", 400 * KIB, rng.randbytes(10 * KIB))  # incompressible
    vm.write("vda", 512 * KIB, bytes(128 * KIB) + b"after zeros that the server did not tell of")
    vm.write("vdb", 0, text(rng, 100 * KIB + 512))
    vm.pull(point_id="20260101T000000Z-00000a", **ROLLING)

    vm.zero("vda", 210 * KIB, 20 * KIB)
    vm.write("vda", 100, b"a small change")
    vm.grow("vda", 4 * MIB + 1536)
    vm.write("vda", 4 * MIB + 1000, text(rng, 536))
    vm.pull(point_id="20260102T000000Z-00000b", **ROLLING)  # vdb: nothing dirty, no index

    vm.write("vdb", 70 * KIB, rng.randbytes(3 * KIB))
    vm.pull(point_id="20250103T000000Z-00000c", handmade={"vda": lambda folder: _rewrites(vm)})

    vm.write("vda", 3 * MIB, b"the newest point, by its sequence and not by its name")
    vm.write("vda", 3 * MIB - 128 * KIB, b"\xd1" * (128 * KIB))  # all that is in one of the first chunk files
    same = slice(2 * MIB + 64 * KIB, 2 * MIB + 64 * KIB + 4096)
    vm.write("vda", same.start, vm.disks["vda"].content[same].tobytes())  # which need not be stored again
    vm.pull(point_id="20250102T000000Z-00000d", dedupe=True)

    vm.grow("vda", 2 * MIB + 90 * KIB)
    vm.write("vda", 5000, b"and smaller")
    vm.write("vdb", 60 * KIB, text(rng, 20 * KIB))
    vm.pull(point_id="20260105T000000Z-00000e", frame_size=MIB)
    return vm


def _rewrites(vm):
    """Make a point whose vda has old data again: its records refer to parts of frames of the first point."""
    first = vm.points[0]
    old = records_of(vm, first, "vda")
    frame = old[(old["kind"] == extents.DATA) & (old["raw"] >= 50 * KIB)][0]
    source = bytes(vm.images[first.id]["vda"][int(frame["offset"]) :][: int(frame["raw"])])
    records = numpy.zeros(3, layout.RECORD)
    records[:2] = frame
    parts = [(300 * KIB, 5000, 1024), (MIB + 7, 300, 49_000)]
    records["offset"][:2], records["length"][:2], records["skip"][:2] = zip(*parts)
    records["chunk"][:2] = 0
    records[2:] = layout.zero_records(extents.of([(3 * MIB + 512, 1000, extents.ZERO)]))
    for offset, length, skip in parts:
        vm.write("vda", offset, source[skip : skip + length])
    vm.zero("vda", 3 * MIB + 512, 1000)
    return records, [directory_of(vm, first, "vda").files[frame["chunk"]]]


def other_domain(root, keys):
    """Make a domain whose name cannot be the name of a directory."""
    vm = Vm(root, "vm/2 ü", uuid="00000000-0000-4000-8000-000000000002", keys=keys)
    vm.add_disk("sda", 65_536)
    vm.write("sda", 0, b"boot")
    vm.pull(point_id="20260101T000000Z-0000ff")
    return vm


def moved_domain(root, keys):
    """Make vm3: a few frames of its first point, which was removed, are needed, and were moved."""
    rng = random.Random(2027)
    vm = Vm(root, "vm3", uuid="00000000-0000-4000-8000-000000000003", keys=keys)
    vm.add_disk("vda", 5 * 64 * KIB)
    for number in range(5):
        vm.write("vda", number * 64 * KIB, text(rng, 3 * KIB))
    first = vm.pull(point_id="20260101T000000Z-00003a", chunk_size=KIB, batch_size=4 * KIB)
    vm.write("vda", 64 * KIB + 100, text(rng, KIB))
    vm.zero("vda", 192 * KIB, 64 * KIB)
    last = vm.pull(point_id="20260102T000000Z-00003b")
    chunks = [entry.path for entry in chunks_of(vm, last, "vda") if entry.path.startswith(first.id)]
    move(vm, last, "vda", chunks[:-1], "20260103T000000Z-00003c")
    with half_points.writing(vm.series):
        removal.remove(vm.series, first)
    for path in (vm.folder / first.id).iterdir():
        if f"{first.id}/{path.name.replace(layout.MOVED, '')}" not in chunks and path.name != "vda.index":
            path.unlink()
    del vm.images[first.id]
    return vm


def about(data):
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sealed(root, identity):
    """Make a sealed store in a new directory for one identity of tests/data/identities; return its keys."""
    master = store_keys.new_master()
    keys = store_keys.of_master(master)
    wrapped = age.wrap(master, [identities.recipient(identity)])
    marker.open_or_create(root, seal=marker.NewSeal(keys.id, [(f"{layout.KEYS}/00000001.age", wrapped)]))
    return keys


def make(root, keys=None):
    """Make the store in a new directory; return the sizes and digests of the images, as the file that records them."""
    domains = [main_domain, other_domain, moved_domain]
    images = {vm.name: vm.images for vm in (domain(root, keys) for domain in domains)}
    reported = {
        domain: {point: {disk: about(data) for disk, data in disks.items()} for point, disks in points.items()}
        for domain, points in images.items()
    }
    return json.dumps(reported, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1] if sys.argv[1:] else DATA / "golden")
    if folder.exists():
        sys.exit(f"{folder} exists. It is made once: see the head of this file")
    if sys.argv[2:]:
        make(str(folder), sealed(str(folder), sys.argv[2]))  # of the same images
    else:
        Path(f"{folder}.json").write_text(make(str(folder)), encoding="utf-8")
