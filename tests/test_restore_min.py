"""scripts/nbdpull-restore-min, made of docs/format.md alone: what nbdpull restores it restores, what is to be refused
it refuses. If the two do not agree, one of them or the specification is wrong.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy
import pytest
import stores
import strange
from stores import KIB, MIB

from nbdpull.core import errors, extents
from nbdpull.format import layout
from nbdpull.format.manifest import FileEntry, ParentEntry
from nbdpull.operations import restore

PROGRAM = Path(__file__).parent.parent / "scripts/nbdpull-restore-min"
CODE = compile(PROGRAM.read_text(), PROGRAM, "exec")


def minimal(vm, point, disk, out):
    """Run it as a program is run, but in this process, which spares two hundred starts of Python; (exit code, what it
    says)."""
    folder = os.getcwd()
    try:
        with mock.patch.object(sys, "argv", [str(PROGRAM), str(vm.root), vm.name, point, disk, str(out)]):
            exec(CODE, {"__name__": "__main__"})
    except SystemExit as end:
        return 1, f"{end.code}\n"
    finally:
        os.chdir(folder)
    return 0, ""


def as_a_program(vm, point, disk, out):
    """The same of a process of its own."""
    command = [PROGRAM, vm.root, vm.name, point, disk, out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def assert_refused(vm, out, says="", point="latest", disk="vda"):
    """Both refuse it, and neither leaves an image."""
    code, said = minimal(vm, point, disk, out)
    assert code == 1 and says in said and said.count("\n") == 1, said
    assert not out.exists()
    with pytest.raises((errors.Damaged, errors.StoreError)):
        restore.restore(restore.Options(str(vm.root), str(out), vm.name, point, [disk], "raw"))
    assert not (out / f"{disk}.raw").exists()


def assert_restored(vm, point, disk, folder):
    code, said = minimal(vm, point.id, disk, folder / "min.raw")
    assert (code, said) == (0, "")
    restored = restore.restore(restore.Options(str(vm.root), str(folder / "full"), vm.name, point.id, [disk], "raw"))
    image = (folder / "min.raw").read_bytes()
    assert image == Path(restored.files[disk]).read_bytes()
    assert image == vm.images[point.id][disk]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A series of three points of vda, which grows, and vdb."""
    return stores.chain(tmp_path_factory.mktemp("minimal") / "store")


@pytest.fixture
def vm(original, tmp_path):
    return original.copy(tmp_path / "store")


def test_it_is_small_and_needs_nothing():
    text = PROGRAM.read_text()
    assert len(text.splitlines()) <= 280
    imported = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    known = getattr(sys, "stdlib_module_names", None)  # Python 3.10
    assert "nbdpull" not in imported
    assert known is None or {name.partition(".")[0] for name in imported} <= known


def test_it_is_a_program(vm, tmp_path):
    last = vm.points[-1]
    assert as_a_program(vm, last.id, "vda", tmp_path / "out") == (0, "")
    assert (tmp_path / "out").read_bytes() == vm.images[last.id]["vda"]
    code, said = as_a_program(vm, last.id, "vdz", tmp_path / "none")
    assert (code, said) == (1, f"{PROGRAM.name}: {last.id}: no disk vdz\n")
    assert minimal(vm, last.id, "vdz", tmp_path / "none") == (code, said)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("seed", [1, 2])
def test_every_point_of_a_chain(tmp_path, seed):
    vm = stores.chain(tmp_path / "store", seed, chunk_size=MIB)
    for number, point in enumerate(vm.points):
        for disk in vm.disks:
            folder = tmp_path / f"{number}-{disk}"
            folder.mkdir()
            assert_restored(vm, point, disk, folder)


def test_the_latest_point_is_that_of_the_highest_sequence(tmp_path):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    for number, point_id in enumerate(["20300101T000000Z-aaaaaa", "20200101T000000Z-aaaaaa"]):
        vm.write("vda", 0, bytes([number + 1]) * KIB)
        vm.pull(point_id=point_id)
    assert minimal(vm, "latest", "vda", tmp_path / "out") == (0, "")
    assert (tmp_path / "out").read_bytes() == vm.images["20200101T000000Z-aaaaaa"]["vda"]


def test_a_partial_point_is_not_the_latest(tmp_path):
    """Made since a checkpoint of which the store has no point; nor is what builds on it. Of all latest ones that hold
    whole images it is the last; where there is none, the refusal says so."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, b"whole")
    whole = vm.pull()
    for since in ("elsewhere", "last"):
        vm.write("vda", 5, b"partial")
        vm.pull(since)
        assert minimal(vm, "latest", "vda", tmp_path / since) == (0, "")
        assert (tmp_path / since).read_bytes() == vm.images[whole.id]["vda"]
        assert vm.series.point().id == whole.id
    shutil.rmtree(vm.folder / whole.id)
    code, problem = minimal(vm, "latest", "vda", tmp_path / "none")
    assert code == 1 and "no full pull to begin with" in problem and not (tmp_path / "none").exists()


def test_a_partial_point_that_says_it_is_older_than_its_parent(tmp_path):
    """Both readers tell it by its chain: which point is the latest is not a matter of taste."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    whole, parent, child = vm.pull(), vm.pull("elsewhere"), vm.pull("last")
    parent = stores.resealed(vm, parent, sequence=9)
    stores.resealed(vm, child, sequence=8, parent=ParentEntry(parent.id, parent.sha256))
    stores.resealed(vm, whole, sequence=1)
    assert minimal(vm, "latest", "vda", tmp_path / "out") == (0, "")
    assert vm.series.point().id == whole.id


@pytest.mark.parametrize("name", [".my vm/ü", "." * 300, "a" + "日" * 85, "💾" * 85, "x" * 255, "vm~0123456789abcdef"])
def test_strange_names(tmp_path, name):
    vm = stores.Vm(tmp_path / "store", name=name)
    vm.add_disk("vd a", 3 * 512)
    vm.write("vd a", 512, b"x" * 512)
    assert_restored(vm, vm.pull(), "vd a", tmp_path)


def test_a_disk_that_is_all_zero_and_one_of_no_size(tmp_path):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.add_disk("vdb", 0)
    point = vm.pull()
    for disk in vm.disks:
        (tmp_path / disk).mkdir()
        assert_restored(vm, point, disk, tmp_path / disk)
    assert os.stat(tmp_path / "vda/min.raw").st_blocks == 0


def test_records_that_share_a_frame_of_an_older_point(tmp_path):
    """The format has it, though nbdpull does not write it yet: chunk files of other points, and `skip`."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, bytes(range(256)) * 256)
    first = vm.pull()
    [old] = [record for record in stores.records_of(vm, first, "vda") if record["kind"] == extents.DATA]
    records = numpy.array([old] * 2, layout.RECORD)
    records["offset"], records["length"], records["skip"] = [5 * KIB, 200 * KIB], [100, KIB], [7, 3 * KIB]
    for offset, length, skip in records[["offset", "length", "skip"]].tolist():
        vm.write("vda", offset, (bytes(range(256)) * 256)[skip : skip + length])

    def shared(folder):
        return stores.handmade_index(vm, folder, "vda", records), first.manifest.disk("vda").chunks

    assert_restored(vm, vm.pull(handmade={"vda": shared}), "vda", tmp_path)


def test_nothing_is_overwritten(vm, tmp_path):
    (tmp_path / "out").write_text("mine")
    code, said = minimal(vm, "latest", "vda", tmp_path / "out")
    assert code == 1 and "exists" in said
    assert (tmp_path / "out").read_text() == "mine"


# -- what must be refused ---------------------------------------------------------------------------------------------


def needed(vm, disk):
    """Every file that a disk of the last point is made of: the marker, manifests, indexes and chunk files."""
    names = [name for name in stores.files(vm.root) if name.name in (layout.MARKER, layout.MANIFEST)]
    return names + [path for path in stores.files(vm.root) if path.name.startswith(f"{disk}.")]


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_any_damaged_file_of_the_chain(vm, tmp_path, how):
    paths = needed(vm, "vdb")
    assert len(paths) == 1 + 3 * 3
    for path in paths:
        data = path.read_bytes()
        if how == "gone" and path.name == layout.MANIFEST and path.parent.name == vm.points[-1].id:
            continue  # then there is no such point
        bad = {"flipped": stores.flipped(data, len(data) // 2), "cut": data[:-1], "gone": None}[how]
        with stores.damaged(path, bad):
            assert_refused(vm, tmp_path / "out", disk="vdb")


def test_a_point_without_manifest_is_none(vm, tmp_path):
    (vm.folder / vm.points[-1].id / layout.MANIFEST).unlink()
    assert_refused(vm, tmp_path / "out", point=vm.points[-1].id)
    assert minimal(vm, "latest", "vda", tmp_path / "out") == (0, "")
    assert (tmp_path / "out").read_bytes() == vm.images[vm.points[-2].id]["vda"]


def test_a_point_without_a_full_one_below(tmp_path):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, b"x" * KIB)
    vm.pull(since="elsewhere")
    assert_refused(vm, tmp_path / "out", "no whole image")


def test_another_parent_than_the_one_built_on(vm, tmp_path):
    last = vm.points[-1].manifest
    stores.resealed(vm, vm.points[-1], parent=ParentEntry(last.parent.point, "0" * 64))
    assert_refused(vm, tmp_path / "out", "not the parent")


def test_a_disk_that_shrinks_along_the_chain(vm, tmp_path):
    last = vm.pull()  # nothing changed: no record that would end beyond the disk
    smaller = [replace(disk, size=disk.size - 512) for disk in last.manifest.disks]
    stores.resealed(vm, last, disks=smaller)
    assert_refused(vm, tmp_path / "out", "larger than later")


@pytest.mark.parametrize(
    "member, value, says",
    [
        ("format", "nbdpull/2", "later"),
        ("requires", ["holograms"], "later"),
        ("sequence", "3", "type"),
        ("sequence", -3, "type"),
        ("uuid", None, "type"),
        ("point", "20200101T000000Z-aaaaaa", "another point"),
        ("files", [{"path": "../x", "size": 1, "sha256": "0" * 64}], "strange"),
        ("files", [{"path": "x", "size": 1}], "type"),
        ("created", "yesterday", "type"),
        ("created", "2026-13-22T19:45:00+00:00", "month"),
        ("as_of", "yesterday", "type"),
        ("as_of", "2026-02-30T19:45:00.123+00:00", "day"),
        ("consistency_reason", None, "type"),
        ("passwords", {"vnc": 1}, "type"),
        ("passwords", ["vnc", 5], "type"),
        ("versions", {"qemu": 7}, "type"),
        ("versions", {"x" * 5000: "7"}, "type"),
        ("seconds", {"copy": "7"}, "type"),
        ("seconds", {"copy": True}, "type"),
        ("disks", [], "none"),
        ("domain", "x" * 5000, "type"),
        ("sequence", 1 << 64, "too large"),
        ("files", [{"path": "20200101T000000Z-aaaaaa/x", "size": 1 << 31, "sha256": "0" * 64}], "strange"),
        ("files", [{"path": "20200101T000000Z-aaaaaa/x", "size": 1, "sha256": "0" * 64}] * 2, "strange"),
        ("files", [{"path": "20200101T000000Z-aaaaaa/a\nb", "size": 1, "sha256": "0" * 64}], "strange"),
    ],
)
def test_a_manifest_that_is_sealed_but_cannot_be(vm, tmp_path, member, value, says):
    path = vm.folder / vm.points[-1].id / layout.MANIFEST
    document = json.loads(path.read_bytes())
    del document["digest"]
    with stores.damaged(path, layout.seal({**document, member: value})):
        assert_refused(vm, tmp_path / "out", says, point=vm.points[-1].id)
    del document[member]
    if member not in ("requires", "as_of", "consistency_reason", "passwords"):
        with stores.damaged(path, layout.seal(document)):
            assert_refused(vm, tmp_path / "out", point=vm.points[-1].id)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "differential"},
        {"deduped_bytes": "5"},
        {"dirty_bytes": 1.0},
        {"index": "../vda.index"},
        {"chunks": "20200101T000000Z-aaaaaa/../../x.0000.zst"},
        {"chunks": "20200101T000000Z-aaaaaa/vdb.0000.zst"},
        {"size": (1 << 50) + 1},
        {"name": ""},
        {"name": "VDB"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_disk_entry_that_cannot_be(vm, tmp_path, changes):
    [disk, *others] = vm.points[-1].manifest.disks
    if "index" in changes:
        changes = {"index": replace(disk.index, path=changes["index"])}
    if "chunks" in changes:
        changes = {"chunks": [replace(chunk, path=changes["chunks"]) for chunk in disk.chunks]}
    with pytest.raises(errors.Damaged):
        stores.resealed(vm, vm.points[-1], disks=[replace(disk, **changes), *others])
    assert_refused(vm, tmp_path / "out", point=vm.points[-1].id)


@pytest.mark.parametrize("member", strange.JSON, ids=lambda member: ascii(member[:30]))
def test_json_that_two_readers_might_read_as_two_things(vm, tmp_path, member):
    for path in (vm.root / layout.MARKER, vm.folder / vm.points[-1].id / layout.MANIFEST):
        text = path.read_text(encoding="utf-8").rpartition(',\n "digest"')[0]
        with stores.damaged(path, strange.resealed(f"{text},\n {member}")):
            assert_refused(vm, tmp_path / "out", point=vm.points[-1].id)


def test_what_may_be_missing(vm, tmp_path):
    path = vm.folder / vm.points[-1].id / layout.MANIFEST
    document = json.loads(path.read_bytes())
    for member in ("digest", "as_of", "consistency_reason", "passwords"):
        del document[member]
    for disk in document["disks"]:
        del disk["deduped_bytes"]
    path.write_bytes(layout.seal(document))
    assert_restored(vm, vm.points[-1], "vda", tmp_path)


def changed(records, number, **fields):
    result = records.copy()
    for name, value in fields.items():
        result[name][number] = value
    return result


def dense(record):
    """One zero record more in a block than there may be."""
    records = numpy.array([record] * ((1 << 14) + 1), layout.RECORD)
    records["offset"], records["length"] = numpy.arange(len(records)) * 2, 1
    return records


DATA, ZERO = 0, 1  # numbers of records in the index below
STRANGE = "a record that cannot be"
FLAWS = {
    "empty": (STRANGE, lambda records: changed(records, DATA, length=0)),
    "past the end": (STRANGE, lambda records: changed(records, ZERO, length=MIB + 1)),
    "out of order": (STRANGE, lambda records: records[::-1].copy()),
    "overlap": (STRANGE, lambda records: changed(records, ZERO, offset=64 * KIB - 1)),
    "unknown kind": (STRANGE, lambda records: changed(records, ZERO, kind=2)),
    "flags": (STRANGE, lambda records: changed(records, DATA, flags=1)),
    "zero with a position": (STRANGE, lambda records: changed(records, ZERO, position=9)),
    "zero with a chunk": (STRANGE, lambda records: changed(records, ZERO, chunk=1)),
    "no such chunk": (STRANGE, lambda records: changed(records, DATA, chunk=1)),
    "nothing stored": (STRANGE, lambda records: changed(records, DATA, stored=0)),
    "too much stored": (STRANGE, lambda records: changed(records, DATA, stored=2 * MIB)),
    "too dense": (STRANGE, lambda records: dense(records[ZERO])),
    "raw too large": (STRANGE, lambda records: changed(records, DATA, raw=2 * MIB)),
    "skip past the frame": (STRANGE, lambda records: changed(records, DATA, skip=1)),
    "raw another": ("no frame", lambda records: changed(records, DATA, raw=64 * KIB + 1)),
    "not where a frame is": (".zst: no zstd frame", lambda records: changed(records, DATA, position=9)),
    "half a record": ("inside a record", lambda records: numpy.frombuffer(records.tobytes()[:-40], "u1")),
    "a gap": ("the whole disk", lambda records: changed(records, ZERO, offset=65 * KIB, length=MIB - KIB)),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_an_index_that_cannot_be(tmp_path, flaw):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB + 64 * KIB)
    vm.write("vda", 0, b"x" * 64 * KIB)
    good = vm.pull()
    records = stores.records_of(vm, good, "vda")
    assert records["kind"].tolist() == [extents.DATA, extents.ZERO]
    says, spoil = FLAWS[flaw]

    def made(folder):
        return stores.handmade_index(vm, folder, "vda", spoil(records)), good.manifest.disk("vda").chunks

    vm.pull(since="nothing" if flaw == "a gap" else "last", handmade={"vda": made})
    assert_refused(vm, tmp_path / "out", says)


@pytest.mark.parametrize("how", strange.NO_FRAMES)
def test_an_index_that_is_no_whole_frame(tmp_path, how):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, b"x" * 64 * KIB)
    good = vm.pull()
    data = strange.NO_FRAMES[how](stores.records_of(vm, good, "vda").tobytes())

    def made(folder):
        with vm.store.create(f"{folder}/vda.index") as file:
            file.write(data)
        return FileEntry(file.path.partition("/")[2], file.size, file.sha256()), good.manifest.disk("vda").chunks

    vm.pull(since="nothing", handmade={"vda": made})
    assert_refused(vm, tmp_path / "out")


@pytest.mark.timeout_seconds(30)
@pytest.mark.parametrize("kind", ["link", "FIFO"])
@pytest.mark.parametrize("name", ["nbdpull.json", "manifest.json", "vda.index", "vda.0000.zst", ""])
def test_what_is_no_file_or_folder(vm, tmp_path, kind, name):
    folder = vm.folder / vm.points[-1].id
    path = vm.root / name if name == "nbdpull.json" else folder / name if name else folder
    path.rename(tmp_path / "elsewhere")
    strange.FILES[kind](path)
    assert_refused(vm, tmp_path / "out", point=vm.points[-1].id)


@pytest.mark.timeout_seconds(30)
def test_a_circle_of_parents(tmp_path):
    """Of two points that name each other as parents: none of them is right, and the look for the latest ends."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    points = [vm.pull(since="elsewhere"), vm.pull(since="elsewhere")]
    for point, other in zip(points, reversed(points)):
        stores.resealed(vm, point, parent=ParentEntry(other.id, other.sha256))
    assert_refused(vm, tmp_path / "out")


def test_what_it_says_is_harmless(vm, tmp_path):
    code, said = minimal(vm, "\x1b[31m\n", "vda", tmp_path / "out")
    assert code == 1 and "\x1b" not in said and said.count("\n") == 1


def test_a_record_that_crosses_a_border_of_blocks(tmp_path):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 2 * MIB)
    vm.write("vda", 0, b"x" * 64 * KIB)
    good = vm.pull()
    [record] = [record for record in stores.records_of(vm, good, "vda") if record["kind"] == extents.DATA]
    records = numpy.array([record], layout.RECORD)
    records["offset"] = MIB - 1

    def made(folder):
        return stores.handmade_index(vm, folder, "vda", records), good.manifest.disk("vda").chunks

    vm.pull(handmade={"vda": made})
    assert_refused(vm, tmp_path / "out")


def test_frames_that_make_up_for_each_other(tmp_path):
    """Two frames of 64 and 4 KiB said to be of 4 and 64: their sum is right, and each is wrong."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 68 * KIB)
    vm.write("vda", 0, b"x" * 68 * KIB)
    good = vm.pull()
    records = stores.records_of(vm, good, "vda")
    assert records["raw"].tolist() == [64 * KIB, 4 * KIB]
    records["raw"] = records["length"] = [4 * KIB, 64 * KIB]
    records["offset"] = [0, 4 * KIB]

    def made(folder):
        return stores.handmade_index(vm, folder, "vda", records), good.manifest.disk("vda").chunks

    vm.pull(since="nothing", handmade={"vda": made})
    assert_refused(vm, tmp_path / "out")
