"""The copy of a disk in any pieces, from a map that comes in any parts: it restores, and is counted right."""

import contextlib
import random
from unittest import mock

import numpy
import pytest
import stores
from stores import KIB

from nbdpull.core import extents
from nbdpull.core.throttle import Throttle
from nbdpull.definitions.domain_xml import Disk
from nbdpull.format.manifest import FULL
from nbdpull.pulling import disk_copy
from nbdpull.pulling.level import Level
from nbdpull.repository import lookup

BLOCK = 4 * KIB  # what the data of a disk are alike in, so that frames are found again


class Source:
    """A disk of a stores.Vm, whose map comes in random parts, also of the same kind side by side."""

    presumed = 0

    def __init__(self, disk, full, chance):
        self._disk, self._full, self._chance, self.read = disk, full, chance, 0

    def extents(self, start=0):
        assert start == 0
        found = self._disk.extents(self._full)
        pieces = extents.cut(found, self._chance.choice([512, 5000, 1 << 30]))
        while len(pieces):
            count = self._chance.randrange(1, 9)
            yield pieces[:count]
            pieces = pieces[count:]

    @contextlib.contextmanager
    def reading(self):
        yield self

    def read_batch(self, ranges):
        self.read += sum(length for _, length in ranges)
        return [self._disk.content[offset : offset + length].tobytes() for offset, length in ranges]


class Vm(stores.Vm):
    """Whose disks are copied as those of a pull are. copied: [(entry of the manifest, the extents that were read)]"""

    chance, copied = random.Random(1), []

    def _stored(self, name, point_id, mode, parent, *_):
        content, chance = self.disks[name], self.chance
        base = self._base(parent, name) if parent and parent.manifest.disk(name) else None
        facts = dict.fromkeys(["readonly", "transient", "shareable", "empty"], False)
        about = Disk(target=name, type="file", source="/i", format="qcow2", device="disk", bus="virtio", **facts,
                     size=content.size)  # fmt: skip
        source, throttle = Source(content, mode == FULL, chance), mock.Mock(Throttle)
        storing = disk_copy.Storing(chance.choice([4, 16, 64]) * KIB, chance.choice([20, 200]) * KIB, Level(1))
        read_data = chance.choice([0, 64 * KIB, disk_copy.READ_DATA])
        decision = mode, "requested"
        with disk_copy.DiskCopy(
            about, source, decision, self.series, point_id, storing, throttle, base, read_data=read_data
        ) as copy:
            for item in copy.items():
                for encoded in copy.encode(item, copy.read(item)):
                    copy.add(encoded)
                assert extents.total(numpy.concatenate(item), extents.DATA) <= max(read_data, disk_copy.BATCH_DATA)
            done = copy.progress()
            stored = copy.close()
        found = content.extents(mode == FULL)
        assert sum(call.args[0] for call in throttle.take.call_args_list) == source.read == done["read_bytes"]
        self.copied.append((stored.entry, found))
        return stored


def scribbled(vm, chance):
    """With blocks that are there already, others, and zeros that no map reports."""
    size = vm.disks["vda"].size
    for _ in range(6):
        at = chance.randrange(size // BLOCK) * BLOCK
        what = chance.choice([bytes([chance.randrange(4)]) * BLOCK, chance.randbytes(BLOCK), bytes(3 * BLOCK)])
        if chance.random() < 0.2:
            vm.zero("vda", at, min(5 * BLOCK, size - at))
        else:
            vm.write("vda", at, what[: size - at])


@pytest.mark.parametrize("seed", range(6))
def test_any_pieces_restore_and_are_counted(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(disk_copy, "BATCH_DATA", 32 * KIB)
    monkeypatch.setattr(disk_copy, "BATCH_EXTENTS", 5)
    vm, chance = Vm(tmp_path / "store"), random.Random(seed)
    vm.chance, vm.copied = chance, []
    vm.add_disk("vda", 200 * KIB + 512 * chance.randrange(9))
    for _ in range(4):
        scribbled(vm, chance)
        before = vm.disks["vda"].dirty.copy()
        point = vm.pull(chance.choice(["last", "last", "nothing"]))
        entry, found = vm.copied[-1]
        data = extents.total(found, extents.DATA)
        assert entry.dirty_bytes == extents.total(found) and entry.read_bytes == data
        assert entry.zero_bytes + entry.deduped_bytes <= entry.dirty_bytes
        assert entry.mode == FULL or entry.dirty_bytes == before.sum()
        content = numpy.frombuffer(vm.images[point.id]["vda"], "u1")
        nothing = sum(not content[o : o + n].any() and n for o, n, _ in found.tolist())
        assert entry.zero_bytes >= nothing, "zeros that no map reported"
        with lookup.RandomImage(vm.series, point, "vda") as image:
            assert image.read(0, image.size) == vm.images[point.id]["vda"]
