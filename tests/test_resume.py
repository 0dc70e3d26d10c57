"""What is kept of a dead run: its chunk files, as long as a reader of the future point would accept each of them."""

from types import SimpleNamespace

import numpy
import pytest
import stores
from stores import KIB, MIB

from nbdpull.core import errors, extents
from nbdpull.format import layout, pages, sound_part, writer

pytest.importorskip("libvirt")

from nbdpull.pulling import journal, resume  # noqa: E402


@pytest.fixture
def vm(tmp_path):
    """A point of vda in three chunk files, whose directory may pass for that of a dead run."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 3 * MIB)
    vm.write("vda", 0, numpy.random.default_rng(1).bytes(3 * MIB))
    vm.pull(chunk_size=MIB, batch_size=MIB)
    return vm


def kept(vm, *sealed, size=3 * MIB, base=None, check=lambda: None):
    """Return what is kept. sealed: FileEntry of each chunk file in the journal; by default, those of the point."""
    sealed = sealed or stores.chunks_of(vm, vm.points[0], "vda")
    run = SimpleNamespace(id=vm.points[0].id, sealed={"vda": [journal.Sealed(*vars(e).values(), MIB) for e in sealed]})
    return resume.Kept(vm.series, run, SimpleNamespace(target="vda", size=size), base, check)


def test_everything_is_kept(vm):
    found = kept(vm)
    assert (found.files, found.reached) == (stores.chunks_of(vm, vm.points[0], "vda"), 3 * MIB)
    assert (found.read_bytes, sum(len(page.records) for page in found.pages())) == (3 * MIB, 48)


def test_files_are_kept_up_to_the_first_that_changed(vm):
    first, second, third = stores.chunks_of(vm, vm.points[0], "vda")
    data = (vm.folder / second.path).read_bytes()
    for changed in (stores.flipped(data, 200), data[:-1], None):
        with stores.damaged(vm.folder / second.path, changed):
            assert (kept(vm).files, kept(vm).reached) == ([first], MIB)
    for torn in ([first, third], [second, third]):  # the journal lacks a line
        assert kept(vm, *torn).files == torn[:1] * (torn[0] == first)


def test_a_file_without_data_belongs_to_the_point(tmp_path):
    """SHA256SUMS names it, so it must stay as long as the point: its directory has to name it, too."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.zero("vda", 0, 64 * KIB)
    vm.pull()
    about = writer.Disk(vm.series.folder, vm.points[0].id, "vda", MIB, True)
    made = stores.directory_of(vm, vm.points[0], "vda")
    for name in (layout.directory_name("vda"), *(entry.path.partition("/")[2] for entry in made.indexes)):
        (vm.folder / vm.points[0].id / name).unlink()
    [entry] = made.chunks
    with writer.DiskWriter(vm.store, about, MIB, kept=kept(vm, entry)) as output:
        assert output.close()[0] == vm.points[0].manifest.disk("vda").directory


def test_a_signal_ends_the_proof_of_a_file(vm, monkeypatch):
    """One chunk file may be as large as --chunk-size allows."""
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


def test_no_record_beyond_the_disk_is_kept(vm):
    assert len(kept(vm, size=3 * MIB - 1).files) == 2


def ending(vm, records, *names):
    """Put other records at the end of the first chunk file, into files of these names; return its FileEntry."""
    path = f"{vm.points[0].id}/{layout.chunk_name('vda', 0)}"
    page = pages.encode_page(pages.Page([path, *names], records))
    frame = layout.skippable(layout.RECORDS_MAGIC, pages.compressed(page))
    return stores.replaced(vm, path, frame + layout.seek_table([(len(frame), 0)]))


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
    "of a chunk file that is not named": changed(kind=extents.DATA, stored=10, raw=4 * KIB, chunk=1),
    "of an unknown kind": changed(kind=9),
    "with flags": changed(flags=1),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_records_that_a_reader_must_refuse_are_not_kept(vm, flaw):
    """Anyone who can write to the store may have made up a dead run's files."""
    assert kept(vm, ending(vm, GOOD)).reached == 12 * KIB
    assert kept(vm, ending(vm, FLAWS[flaw])).files == []


def test_no_file_except_those_of_the_base_is_referred_to(vm):
    """What a record points into must exist, and be what the base names."""
    older = stores.Vm(vm.root.parent / "older")
    older.add_disk("vda", MIB)
    older.write("vda", 0, b"x")
    base = stores.directory_of(older, older.pull(), "vda")
    [known] = base.chunks
    assert kept(vm, ending(vm, GOOD, known.path), base=base).reached == 12 * KIB
    assert kept(vm, ending(vm, GOOD, known.path)).files == []
    for strange in (
        "20200101T000000Z-aaaaaa/vda.0000.zst",  # of no point
        known.path.replace("vda", "vdb"),
        known.path.replace("0000", "0001"),
        base.indexes[0].path,
        "../" + known.path,
    ):
        assert kept(vm, ending(vm, GOOD, strange), base=base).files == []


def test_files_are_kept_up_to_the_first_that_relies_on_damage_in_the_base(tmp_path):
    """The damage may have been found since the run died: the run did not read that data again, or refers to it."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 3 * MIB)
    vm.write("vda", 0, numpy.random.default_rng(1).bytes(3 * MIB))
    how = {"chunk_size": MIB, "batch_size": MIB, "dedupe": True}
    first = vm.pull(**how)
    vm.disks["vda"].dirty[:] = True
    vm.disks["vda"].dirty[MIB + 64 * KIB : MIB + 128 * KIB] = False
    vm.write("vda", 0, numpy.random.default_rng(2).bytes(MIB))
    vm.pull(**how)
    old, made = stores.chunks_of(vm, first, "vda"), stores.chunks_of(vm, vm.points[1], "vda")
    made = [entry for entry in made if entry.path.startswith(vm.points[1].id)]

    def kept_by(bad):
        base = sound_part.SoundPart(vm.store, vm.series.folder, first.manifest.disk("vda"), bad)
        run = SimpleNamespace(id=vm.points[1].id, sealed={"vda": [journal.Sealed(*vars(e).values(), 0) for e in made]})
        found = resume.Kept(vm.series, run, SimpleNamespace(target="vda", size=3 * MIB), base)
        return len(found.files), found.reached

    assert kept_by(set()) == (len(made), 3 * MIB)
    assert kept_by({old[0].path}) == (len(made), 3 * MIB)  # which was written over
    assert kept_by({old[1].path})[1] == MIB
