"""What is kept of a dead run: its chunk files, as long as each is what a reader of the point to be would take."""

from types import SimpleNamespace

import numpy
import pytest
import stores
from stores import KIB, MIB
from strange import compressed

from nbdpull.core import errors, extents
from nbdpull.format import layout

pytest.importorskip("libvirt")

from nbdpull.pulling import journal, resume  # noqa: E402


@pytest.fixture
def vm(tmp_path):
    """A point of vda in three chunk files, whose folder may pass for that of a run that died."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 3 * MIB)
    vm.write("vda", 0, numpy.random.default_rng(1).bytes(3 * MIB))
    vm.pull(chunk_size=MIB, batch_size=MIB)
    return vm


def kept(vm, *lines, size=3 * MIB, check=lambda: None):
    """lines: of each event of the journal, the chunk files; without any, those of the point."""
    entries = vm.points[0].manifest.disk("vda").chunks
    lines = lines or [[[entry.path, entry.size, entry.sha256]] for entry in entries]
    sealed = [journal.Sealed(chunks, MIB) for chunks in lines]
    run = SimpleNamespace(id=vm.points[0].id, sealed={"vda": sealed})
    return resume.Kept(vm.series, run, SimpleNamespace(target="vda", size=size), check)


def test_all_of_it(vm):
    found = kept(vm)
    assert (found.chunks, found.reached) == (vm.points[0].manifest.disk("vda").chunks, 3 * MIB)
    assert sum(map(len, found.records())) == 48


def test_a_stop_is_heard_while_a_file_is_proved(vm, monkeypatch):
    """One chunk file may be as large as --chunk-size lets it be."""
    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise errors.Interrupted(15)

    def slow(_path, check):
        while True:
            check()

    monkeypatch.setattr(vm.series.store, "sha256", slow)
    with pytest.raises(errors.Interrupted):
        kept(vm, check=check)


def test_not_beyond_the_disk(vm):
    assert len(kept(vm, size=3 * MIB - 1).chunks) == 2


def ending(vm, number, records):
    """The chunk file of that number with other records at its end; what a journal tells of it."""
    name = layout.chunk_name("vda", number)
    records = layout.skippable(layout.RECORDS_MAGIC, compressed(records.tobytes()))
    data = records + layout.seek_table([(len(records), 0)])
    path = vm.folder / vm.points[0].id / name
    path.write_bytes(data)
    where = f"{vm.points[0].id}/{name}"
    return [where, len(data), vm.store.sha256(f"vm1/{where}")]


GOOD = layout.zero_records(extents.of([(0, 4 * KIB, extents.ZERO), (8 * KIB, 4 * KIB, extents.ZERO)]))


def changed(**fields):
    records = GOOD.copy()
    for name, value in fields.items():
        records[name][1] = value
    return records


FLAWS = {
    "none at all": GOOD[:0],
    "out of order": GOOD[::-1].copy(),
    "past the end": changed(length=1 << 40),
    "of no length": changed(length=0),
    "of a chunk file that is not told": changed(kind=extents.DATA, stored=10, raw=4 * KIB, chunk=1),
    "of an unknown kind": changed(kind=9),
    "with flags": changed(flags=1),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_records_that_a_reader_must_refuse_are_not_kept(vm, flaw):
    """A dead run's files may have been made up by whoever can write to the store."""
    assert kept(vm, [ending(vm, 0, GOOD)]).reached == 12 * KIB
    assert kept(vm, [ending(vm, 0, FLAWS[flaw])]).chunks == []


def test_no_file_of_another_disk(vm):
    own = ending(vm, 0, GOOD)
    older = ["20200101T000000Z-aaaaaa/vdb.0000.zst", 5, "0" * 64]
    (vm.folder / "20200101T000000Z-aaaaaa").mkdir()
    (vm.folder / older[0]).write_bytes(b"12345")
    assert kept(vm, [own, older]).chunks == []
