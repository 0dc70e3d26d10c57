"""scripts/nbdpull-restore-min, written from docs/format.md only: it restores what nbdpull restores, and refuses what
must be refused. If the two do not agree, one of them or the specification is wrong."""

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tokenize
import types
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import copies
import identities
import numpy
import pytest
import stores
import strange
from sealed import sealed_store
from stores import KIB, MIB, page_of, relaid, replaced

from nbdpull.core import errors, extents
from nbdpull.format import layout, moved, pages
from nbdpull.operations import restore

pytestmark = pytest.mark.usefixtures("no_threads")

PROGRAM = Path(__file__).parent.parent / "scripts/nbdpull-restore-min"


GOLDEN = Path(__file__).parent / "data/golden"
Golden = namedtuple("Golden", "root name")
MODULE = types.ModuleType("nbdpull_restore_min")
exec(compile(PROGRAM.read_text(), str(PROGRAM), "exec"), vars(MODULE))


def minimal(vm, point, disk, out):
    """Run it in this process; return (exit code, its message)."""
    before = os.getcwd()
    try:
        MODULE.main([str(vm.root), vm.name, point, disk, str(out)])
    except SystemExit as stop:
        return 1, f"{stop.code}\n"
    finally:
        os.chdir(before)
    return 0, ""


def by_itself(vm, point, disk, out):
    """Run it as a program; return (exit code, its message)."""
    command = [sys.executable, str(PROGRAM), str(vm.root), vm.name, point, disk, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def assert_refused(vm, out, says="", point="latest", disk="vda"):
    """Require that both refuse it, and that neither leaves an image."""
    code, said = minimal(vm, point, disk, out)
    assert code == 1 and says in said and said.count("\n") == 1, said
    assert not out.exists()
    with pytest.raises((errors.Damaged, errors.StoreError)):
        restore.restore(restore.Options(str(vm.root), str(out), vm.name, point, [disk], "raw"))
    assert not (out / f"{disk}.raw").exists()


def assert_not_written_over(vm, out):
    """Require the same of a chunk file that only its SHA-256 reveals: nbdpull refuses to overwrite anything. It makes a
    new image by the digests of the frames (13)."""
    code, said = minimal(vm, "latest", "vda", out)
    assert code == 1 and "damaged" in said and not out.exists()
    out.write_bytes(b"old")
    with pytest.raises(errors.Damaged):
        restore.restore(restore.Options(str(vm.root), to={"vda": str(out)}, kind="raw", delta=True))
    assert out.read_bytes() == b"old"
    out.unlink()


def assert_restored(vm, point, disk, folder):
    code, said = minimal(vm, point.id, disk, folder / "min.raw")
    assert (code, said) == (0, "")
    restored = restore.restore(restore.Options(str(vm.root), str(folder / "full"), vm.name, point.id, [disk], "raw"))
    image = (folder / "min.raw").read_bytes()
    assert image == Path(restored.files[disk]).read_bytes()
    assert image == vm.images[point.id][disk]


@pytest.fixture(scope="module")
def pulled(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("pulled") / "store")


@pytest.fixture
def vm(pulled, tmp_path):
    """A series of three points of vda, which grows, and vdb."""
    return pulled.copy(tmp_path / "store")


def test_it_is_small_and_needs_nothing():
    text = PROGRAM.read_text()
    code = {token.start[0] for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
            and not token.string.startswith('"""')}  # fmt: skip
    assert len(code) <= 275
    imported = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    known = getattr(sys, "stdlib_module_names", None)  # Python 3.10
    assert "nbdpull" not in imported
    assert known is None or {name.partition(".")[0] for name in imported} <= known


def test_the_golden_store(tmp_path):
    for domain, points in json.loads((GOLDEN / "../golden.json").read_text(encoding="utf-8")).items():
        for point, disks in points.items():
            for disk, about in disks.items():
                out = tmp_path / f"{point}-{disk}"
                assert minimal(Golden(GOLDEN, domain), point, disk, out) == (0, "")
                data = out.read_bytes()
                assert (len(data), hashlib.sha256(data).hexdigest()) == (about["size"], about["sha256"])


SEALED = GOLDEN / "../golden-sealed"


def opened(out, point="latest", domain="vm1", disk="vda", identity=("age1",), root=SEALED):
    """Return (exit code, message) of a restore from the sealed golden store."""
    before, words = os.getcwd(), [str(root), domain, point, disk, str(out), *map(identities.path, identity)]
    try:
        MODULE.main(words)
    except SystemExit as stop:
        return 1, f"{stop.code}\n"
    finally:
        os.chdir(before)
    return 0, ""


def test_the_golden_store_that_is_sealed(tmp_path):
    for domain, points in json.loads((GOLDEN / "../golden.json").read_text(encoding="utf-8")).items():
        for point, disks in points.items():
            for disk, about in disks.items():
                out = tmp_path / f"{point}-{disk}"
                assert opened(out, point, domain, disk) == (0, "")
                data = out.read_bytes()
                assert (len(data), hashlib.sha256(data).hexdigest()) == (about["size"], about["sha256"])


@pytest.mark.parametrize("identity", ["age2", "ed25519", "age1.pub"])
def test_a_sealed_store_opens_for_its_identities(tmp_path, identity):
    code, said = opened(tmp_path / "out", identity=[identity])
    assert code == 1 and "@keys: the identity opens none of the key files" in said
    assert not (tmp_path / "out").exists()


def test_what_was_copied_under_another_seal(vm, tmp_path):
    other = copies.over(vm, tmp_path / "other", sealed_store(tmp_path / "other"))
    copies.reseal(vm, other)
    for point in vm.points:
        for disk in point.disks:
            out = tmp_path / f"{point.id}-{disk}"
            assert opened(out, point.id, "vm1", disk, root=other.root) == (0, "")
            assert out.read_bytes() == vm.images[point.id][disk]


def test_nothing_that_was_changed_is_restored_of_a_sealed_store(tmp_path):
    """Even if its digests are made right again, which takes no key."""
    root = shutil.copytree(SEALED, tmp_path / "store")
    newest = root / "vm1/20260105T000000Z-00000e"
    document = json.loads((newest / "manifest.json").read_bytes())
    marker = json.loads((root / "nbdpull.json").read_bytes())
    keys = [*root.glob("@keys/*.age")][0]
    changes = [
        (newest / "manifest.json", "not made with the key of the store", {**document, "domain": "vm2"}),
        (newest / "manifest.json", "nbdpull.json says otherwise", {**document, "requires": []}),
        (newest / "manifest.json", "has no mac", {name: document[name] for name in document if name != "mac"}),
        (root / "nbdpull.json", "contradicts itself", {**marker, "requires": []}),
        (root / "nbdpull.json", "unknown way", {**marker, "sealed": {**marker["sealed"], "cipher": "ROT13"}}),
        (root / "nbdpull.json", "opens none", {**marker, "sealed": {**marker["sealed"], "key": "0" * 32}}),
    ]
    plain = {name: value for name, value in marker.items() if name != "sealed"}
    changes.append((root / "nbdpull.json", "nbdpull.json says otherwise", {**plain, "requires": []}))
    for path, says, changed in changes:
        changed = {name: value for name, value in changed.items() if name != "digest"}
        with stores.damaged(path, layout.seal(changed)):
            is_plain = path.name == "nbdpull.json" and "sealed" not in changed
            who = () if is_plain else ("age1",)
            code, said = opened(tmp_path / "out", "20260105T000000Z-00000e", identity=who, root=root)
            assert (code, says in said) == (1, True), said
    for path in [keys, *newest.glob("vda*")]:
        data = path.read_bytes()
        for changed in (stores.flipped(data, len(data) // 2), data[:-1], b""):
            with stores.damaged(path, changed):
                assert opened(tmp_path / "out", root=root)[0] == 1
    assert not (tmp_path / "out").exists()
    assert opened(tmp_path / "out", root=root) == (0, "")


def test_what_orders_the_points_of_a_sealed_store_is_proved_first(tmp_path):
    root = shutil.copytree(SEALED, tmp_path / "store")
    path = root / "vm1/20260105T000000Z-00000e/manifest.json"
    document = {name: value for name, value in json.loads(path.read_bytes()).items() if name != "digest"}
    path.write_bytes(layout.seal({**document, "sequence": 0}))
    code, said = opened(tmp_path / "out", root=root)
    assert code == 1 and "not made with the key of the store" in said


def test_an_identity_is_for_no_store_that_is_not_sealed(vm, tmp_path):
    """Somebody may have put it in the place of a sealed one."""
    code, said = opened(tmp_path / "out", root=vm.root)
    assert code == 1 and "nbdpull.json: not sealed, and there is an identity" in said
    assert not (tmp_path / "out").exists()


def test_an_identity_says_which_master_key_it_is_for(tmp_path):
    key = json.loads((SEALED / "nbdpull.json").read_bytes())["sealed"]["key"]
    other, mistyped = "not the key that the identity is for", "has an invalid line for nbdpull"
    for only, says in ((key, ""), ("0" * 32, other), (key[:-1], mistyped)):
        own = tmp_path / only
        own.write_bytes(f"# nbdpull: only for master key {only}\n".encode() + identities.data("age1"))
        code, said = opened(tmp_path / f"{only}.raw", identity=(own,))
        assert (code, says in said) == (int(bool(says)), True), said


def test_points_of_two_domains(tmp_path):
    """Both refuse what somebody brought to the points of another domain; by its id, a point of that domain is
    restored."""
    vm, other = (stores.chain(tmp_path / name, points=2, size=300_000) for name in ("store", "other"))
    for point in other.points:
        stores.resealed(other, point, domain="vm2", uuid="d2a2b4b3-3b1c-4b5e-8f0e-3b0f0a3b6d11")
        shutil.copytree(other.folder / point.id, vm.folder / point.id)
        assert_refused(vm, tmp_path / "out", "points of several domains", point.id)
    assert_refused(vm, tmp_path / "out", "points of several domains")
    assert_restored(vm, vm.points[0], "vda", tmp_path)


def test_no_frame_of_a_sealed_store_is_taken_for_another(tmp_path):
    """A moved table, which no manifest binds, leads to another frame."""
    root = shutil.copytree(SEALED, tmp_path / "store")
    path = root / "vm3/20260101T000000Z-00003a/vda.0000.zst.moved"
    data = bytearray(pages.decompressed(path.read_bytes()[:-32], 1 << 20))
    [count] = struct.unpack_from("<I", data, 4)
    [files] = struct.unpack_from("<I", data, 0)
    at = 16 + 48 * files
    assert count == 2 and data[at + 16 : at + 20] != b""
    for number in range(count):
        [to] = struct.unpack_from("<Q", data, at + 24 * number + 8)
        struct.pack_into("<Q", data, at + 24 * number + 8, to - 1)
    frame = pages.compressed(bytes(data))
    path.write_bytes(frame + hashlib.sha256(frame).digest())
    code, said = opened(tmp_path / "out", domain="vm3", root=root)
    assert (code, "does not open with the key" in said) == (1, True), said


@pytest.mark.parametrize("seed", [1, 2])
def test_every_point_of_a_series(tmp_path, seed):
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
    """It was made since a checkpoint for which the store has no point; nor is a point that builds on it. The latest is
    the last point with whole images; if there is none, the refusal says so."""
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
    (vm.folder / whole.id / layout.MANIFEST).unlink()
    assert_refused(vm, tmp_path / "none", "not whole")


def test_points_that_were_removed(vm, tmp_path):
    """Any may be removed, in any order: what the others refer to still exists."""
    (vm.folder / vm.points[1].id / layout.MANIFEST).unlink()
    assert_restored(vm, vm.points[2], "vda", tmp_path)
    (vm.folder / vm.points[0].id / layout.MANIFEST).unlink()
    (tmp_path / "again").mkdir()
    assert_restored(vm, vm.points[2], "vda", tmp_path / "again")


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


def test_records_that_share_a_part_of_a_frame(small):
    """The format allows it, although nbdpull does not write it yet: `skip`, and one frame for several ranges."""
    vm, point, page, out = small
    [old] = page.records[page.records["kind"] == DATA]
    records = numpy.array([old] * 3, layout.RECORD)
    records["offset"], records["length"], records["skip"] = [5, 300, MIB + 9], [100, KIB, 5], [7, 3 * KIB, 0]
    relaid(vm, point, "vda", [page._replace(records=records)])
    assert minimal(vm, point.id, "vda", out) == (0, "")
    frame = vm.images[point.id]["vda"][: 64 * KIB]
    image = bytearray(MIB + 64 * KIB)
    for offset, length, skip in records[["offset", "length", "skip"]].tolist():
        image[offset : offset + length] = frame[skip : skip + length]
    assert out.read_bytes() == image


def test_stacked_pages(small):
    """The last one is on top. What it hides may be in files that are gone; and there may be 16 of them."""
    vm, point, page, out = small
    [data] = page.records[page.records["kind"] == DATA]
    parts = [part(data, 0, 64 * KIB), part(data, 100, 1000), ZERO_AT(600, 50), ZERO_AT(MIB - 5, 10), part(data, 3, 5)]
    stack = [page._replace(records=numpy.array([each], layout.RECORD)) for each in parts]
    gone = pages.Page(["20200101T000000Z-aaaaaa/vda.0000.zst"], numpy.array([part(data, 200, 20)], layout.RECORD))
    relaid(vm, point, "vda", [stack[0], gone, *stack[1:], *stack[-1:] * 10])
    assert minimal(vm, point.id, "vda", out) == (0, "")
    frame, image = vm.images[point.id]["vda"][: 64 * KIB], bytearray(MIB + 64 * KIB)
    for record in parts:
        offset, length = int(record["offset"]), int(record["length"])
        image[offset : offset + length] = frame[:length] if record["kind"] == DATA else bytes(length)
    assert out.read_bytes() == image


def test_windows(tmp_path):
    """A disk with several windows, each with its own pages; what has none, and what no record covers, takes no
    space."""
    vm, size = stores.Vm(tmp_path / "store"), 3 * layout.WINDOW + 5
    vm.add_disk("vda", MIB)
    vm.write("vda", 0, bytes(range(256)) * 256)
    point = vm.pull()
    page = page_of(vm, point, "vda")
    [data] = page.records[page.records["kind"] == DATA]
    point = stores.resealed(vm, point, disks=[replace(point.manifest.disks[0], size=size)])
    starts = [0, 2 * layout.WINDOW, 3 * layout.WINDOW]
    parts = [part(data, 0, 64 * KIB), part(data, 2 * layout.WINDOW + 7, 9), part(data, 3 * layout.WINDOW, 5)]
    relaid(vm, point, "vda", [page._replace(records=numpy.array([each], layout.RECORD)) for each in parts], starts)
    out = tmp_path / "out"
    assert minimal(vm, point.id, "vda", out) == (0, "")
    assert os.path.getsize(out) == size and os.stat(out).st_blocks < 400
    with open(out, "rb") as file:
        for record, length in zip(parts, (64 * KIB, 9, 5)):
            file.seek(record["offset"])
            assert file.read(length) == (bytes(range(256)) * 256)[:length]


def test_nothing_is_overwritten(vm, tmp_path):
    assert by_itself(vm, "latest", "vda", tmp_path / "out") == (0, "")
    assert (tmp_path / "out").read_bytes() == vm.images[vm.points[-1].id]["vda"]
    (tmp_path / "out").write_text("mine")
    code, said = by_itself(vm, "latest", "vda", tmp_path / "out")
    assert code == 1 and "exists" in said
    assert (tmp_path / "out").read_text() == "mine"


def test_a_file_that_was_moved(vm, tmp_path):
    """Some files still exist, two are in one new file, and a table beside an existing file is ignored."""
    point = vm.points[2]
    chunks = [entry.path for entry in stores.chunks_of(vm, point, "vda")]
    made = stores.move(vm, point, "vda", chunks[:2])
    assert not any((vm.folder / path).exists() for path in chunks[:2]) and (vm.folder / chunks[2]).exists()
    (vm.folder / moved.path_of(chunks[2])).write_bytes(b"no table")
    assert_restored(vm, point, "vda", tmp_path)
    data = (vm.folder / made.path).read_bytes()
    assert len(stores.zstd_frames(data)) > 4
    subprocess.run(["zstd", "-tq", str(vm.folder / made.path)], check=True)


# -- what must be refused ---------------------------------------------------------------------------------------------


def needed(vm, point, disk):
    """Return every file that a disk of a point needs: the marker, its manifest, its directory, and what that names."""
    files = [file.path for file in vm.series.directory(point, disk).files]
    names = [f"{point.id}/{layout.MANIFEST}", f"{point.id}/{layout.directory_name(disk)}", *files]
    return [vm.root / layout.MARKER, *(vm.folder / name for name in names)]


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_any_damaged_file(vm, tmp_path, how):
    paths = needed(vm, vm.points[-1], "vdb")
    assert len(paths) > 5 and len({path.parent for path in paths}) > 2, "files of several points"
    for path in paths:
        data = path.read_bytes()
        if how == "gone" and path.name == layout.MANIFEST:
            continue  # then there is no such point
        bad = {"flipped": stores.flipped(data, len(data) // 2), "cut": data[:-1], "gone": None}[how]
        with stores.damaged(path, bad):
            assert_refused(vm, tmp_path / "out", disk="vdb")


def test_the_latest_is_not_known_where_a_manifest_is_damaged(vm, tmp_path):
    path = vm.folder / vm.points[0].id / layout.MANIFEST
    with stores.damaged(path, stores.flipped(path.read_bytes(), 99)):
        assert_refused(vm, tmp_path / "out", "digest")
        assert_restored(vm, vm.points[1], "vda", tmp_path)


def test_a_folder_without_a_manifest_is_not_a_point(vm, tmp_path):
    (vm.folder / vm.points[-1].id / layout.MANIFEST).unlink()
    assert_refused(vm, tmp_path / "out", point=vm.points[-1].id)
    assert minimal(vm, "latest", "vda", tmp_path / "out") == (0, "")
    assert (tmp_path / "out").read_bytes() == vm.images[vm.points[-2].id]["vda"]


@pytest.mark.parametrize(
    "member, value, says",
    [
        ("format", "nbdpull/1", "another nbdpull"),
        ("format", "nbdpull/3", "another nbdpull"),
        ("requires", ["holograms"], "another nbdpull"),
        ("sequence", "3", "a member"),
        ("sequence", -3, "a member"),
        ("sequence", True, "a member"),
        ("sequence", 1 << 64, "too large"),
        ("point", "20200101T000000Z-aaaaaa", "a member"),
        ("disks", {}, "a member"),
        ("disks", [], "none"),
        ("disks", [{}], "a member"),
    ],
)
def test_a_manifest_that_is_sealed_but_cannot_be(vm, tmp_path, member, value, says):
    path = vm.folder / vm.points[-1].id / layout.MANIFEST
    document = json.loads(path.read_bytes())
    del document["digest"]
    with stores.damaged(path, layout.seal({**document, member: value})):
        assert_refused(vm, tmp_path / "out", says, point=vm.points[-1].id)
    del document[member]
    if member != "requires":
        with stores.damaged(path, layout.seal(document)):
            assert_refused(vm, tmp_path / "out", point=vm.points[-1].id)


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "../vda.directory"},
        {"path": "20200101T000000Z-aaaaaa/vda.directory"},
        {"path": "vdb.directory"},
        {"whole": False, "mode": "incremental"},
        {"whole": 1},
        {"size": (1 << 50) + 1},
        {"size": 512.0},
        {"name": ""},
        {"name": "VDB"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_disk_entry_that_cannot_be(vm, tmp_path, changes):
    path = vm.folder / vm.points[-1].id / layout.MANIFEST
    document = json.loads(path.read_bytes())
    del document["digest"]
    entry = document["disks"][0]
    (entry["directory"] if "path" in changes else entry).update(changes)
    with stores.damaged(path, layout.seal(document)):
        assert_refused(vm, tmp_path / "out", point=vm.points[-1].id)


def test_it_checks_only_what_it_uses(vm, tmp_path):
    """A refusal because of a file that nobody reads does not help anyone who restores at night."""
    path = vm.folder / vm.points[-1].id / layout.MANIFEST
    document = json.loads(path.read_bytes())
    used = {name: document[name] for name in ("format", "requires", "point", "sequence", "domain", "uuid", "disks")}
    used["disks"] = [{name: disk[name] for name in ("name", "size", "whole", "directory")} for disk in used["disks"]]
    path.write_bytes(layout.seal({**used, "parent": "5", "versions": None}))
    assert minimal(vm, "latest", "vda", tmp_path / "out") == (0, "")
    assert (tmp_path / "out").read_bytes() == vm.images[vm.points[-1].id]["vda"]


@pytest.mark.parametrize("member", strange.JSON, ids=lambda member: ascii(member[:30]))
def test_json_that_two_readers_might_read_as_two_things(vm, tmp_path, member):
    for path in (vm.root / layout.MARKER, vm.folder / vm.points[-1].id / layout.MANIFEST):
        text = path.read_text(encoding="utf-8").rpartition(',\n "digest"')[0]
        with stores.damaged(path, strange.resealed(f"{text},\n {member}")):
            assert_refused(vm, tmp_path / "out", point=vm.points[-1].id)


def test_members_that_may_be_missing(vm, tmp_path):
    path = vm.folder / vm.points[-1].id / layout.MANIFEST
    document = json.loads(path.read_bytes())
    for member in ("digest", "as_of", "consistency_reason", "passwords"):
        del document[member]
    for disk in document["disks"]:
        del disk["deduped_bytes"]
    path.write_bytes(layout.seal(document))
    assert_restored(vm, vm.points[-1], "vda", tmp_path)


@pytest.mark.timeout_seconds(30)
@pytest.mark.parametrize("kind", ["link", "FIFO"])
@pytest.mark.parametrize("name", ["nbdpull.json", "manifest.json", "vda.directory", "vda.index", "vda.0000.zst", ""])
def test_special_files(vm, tmp_path, kind, name):
    folder = vm.folder / vm.points[-1].id
    path = vm.root / name if name == "nbdpull.json" else folder / name if name else folder
    path.rename(tmp_path / "elsewhere")
    strange.FILES[kind](path)
    assert_refused(vm, tmp_path / "out", point=vm.points[-1].id)


def test_its_messages_are_harmless_in_a_terminal(vm, tmp_path):
    code, said = by_itself(vm, "\x1b[31m\n", "vda", tmp_path / "out")
    assert code == 1 and "\x1b" not in said and said.count("\n") == 1


# -- pages and directories that cannot be, in a store whose digests are all right --------------------------------------

DATA, ZERO = 0, 1  # kinds, and the numbers of the records in the page below


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(Vm, its only point, the only page of that): a data record of 64 KiB, and a zero one."""
    folder = tmp_path_factory.mktemp("small")
    vm = stores.Vm(folder / "store")
    vm.add_disk("vda", MIB + 64 * KIB)
    vm.write("vda", 0, bytes(range(256)) * 256)
    point = vm.pull()
    page = page_of(vm, point, "vda")
    records = numpy.concatenate([page.records[page.records["kind"] == DATA], [ZERO_AT(64 * KIB, MIB)]])
    page = page._replace(records=records)
    point = relaid(vm, point, "vda", [page])
    assert minimal(vm, point.id, "vda", folder / "good") == (0, "")
    assert (folder / "good").read_bytes() == vm.images[point.id]["vda"]
    return vm, point, page


@pytest.fixture
def small(original, tmp_path):
    """The same of a Vm of its own, and the path for an image."""
    vm, point, page = original
    return vm.copy(tmp_path / "store"), point, page, tmp_path / "out"


def ZERO_AT(offset, length):
    return layout.zero_records(numpy.array([(offset, length, ZERO)], extents.EXTENT))[0]


def part(record, offset, length):
    """Return a data record of the beginning of its frame, for another place."""
    found = record.copy()
    found["offset"], found["length"] = offset, length
    return found


def changed(number, **fields):
    """Return a function that changes one or more values in the records of a page."""

    def change(page):
        records = page.records.copy()
        for name, value in fields.items():
            records[name][number] = value
        return page._replace(records=records)

    return change


def dense(page):
    """Return one zero record more than a block may have."""
    records = numpy.array([page.records[ZERO]] * ((1 << 14) + 1), layout.RECORD)
    records["offset"], records["length"] = numpy.arange(len(records)) * 2, 1
    return page._replace(records=records)


def poked(at, form, value):
    """Return a function that writes a number into bytes."""

    def poke(data):
        found = bytearray(data)
        struct.pack_into("<" + form, found, at, value)
        return bytes(found)

    return poke


def named(*names):
    return lambda page: page._replace(names=[*names])


OTHER = "20200101T000000Z-aaaaaa"
STRANGE, NAMES, SIZE = "a record that cannot be", "strange names", "than it says"
PAGES = {  # (14) to (21)
    "empty record": (STRANGE, changed(DATA, length=0)),
    "past the end of the disk": (STRANGE, changed(ZERO, length=MIB + 1)),
    "out of order": (STRANGE, lambda page: page._replace(records=page.records[::-1].copy())),
    "overlap": (STRANGE, changed(ZERO, offset=64 * KIB - 1)),
    "an end past all numbers": (STRANGE, changed(ZERO, length=(1 << 64) - 1)),
    "unknown kind": (STRANGE, changed(ZERO, kind=2)),
    "flags": (STRANGE, changed(DATA, flags=1)),
    "zero with a position": (STRANGE, changed(ZERO, position=9)),
    "zero with a chunk": (STRANGE, changed(ZERO, chunk=1)),
    "no such chunk": (STRANGE, changed(DATA, chunk=1)),
    "nothing stored": (STRANGE, changed(DATA, stored=0)),
    "too much stored": (STRANGE, changed(DATA, stored=2 * MIB)),
    "too dense": (STRANGE, dense),
    "raw too large": (STRANGE, changed(DATA, raw=2 * MIB)),
    "skip past the frame": (STRANGE, changed(DATA, skip=1)),
    "across a border of blocks": (STRANGE, lambda page: changed(DATA, offset=MIB - 1)(one(page))),
    "no record": ("a page that cannot be", lambda page: page._replace(records=page.records[:0])),
    "raw another": ("no frame", changed(DATA, raw=64 * KIB + 1)),
    "not where a frame is": ("no frame", changed(DATA, position=9)),
    "past the end of its file": ("past its end", changed(DATA, position=1 << 40)),
    "past the end of all files": ("past its end", changed(DATA, position=(1 << 64) - 1)),
    "a file that the directory does not name": ("in no file", named(f"{OTHER}/vda.0000.zst")),
    "a file of another disk": (NAMES, named(f"{OTHER}/vdb.0000.zst")),
    "an index": (NAMES, named(f"{OTHER}/vda.index")),
    "a file outside": (NAMES, named("../vda.0000.zst")),
    "a file of no point": (NAMES, named("x/../../vda.0000.zst")),
    "a file twice": (NAMES, named(*[f"{OTHER}/vda.0000.zst"] * 2)),
    "no line feed": (NAMES, lambda page: pages.encode_page(page).replace(b".zst\n", b".zst0", 1)),
    "fewer names than it says": (NAMES, lambda page: poked(0, "I", 2)(pages.encode_page(page))),
    "more names than it says": (NAMES, lambda page: poked(0, "I", 0)(pages.encode_page(page))),
    "names past its end": (SIZE, lambda page: poked(4, "I", 1 << 31)(pages.encode_page(page))),
    "half a record": (SIZE, lambda page: pages.encode_page(page)[:-40]),
    "half a head": (SIZE, lambda page: pages.encode_page(page)[:5]),
}


def one(page):
    return page._replace(records=page.records[:1])


@pytest.mark.parametrize("flaw", PAGES)
def test_a_page_that_cannot_be(small, flaw):
    vm, point, page, out = small
    says, spoil = PAGES[flaw]
    relaid(vm, point, "vda", [spoil(page)])
    assert_refused(vm, out, says)


@pytest.mark.parametrize("how", strange.NO_FRAMES)
def test_a_page_that_is_no_whole_frame(small, how):
    vm, point, page, out = small
    relaid(vm, point, "vda", [page], frame=strange.NO_FRAMES[how])
    assert_refused(vm, out)


@pytest.mark.parametrize("offset, length", [(layout.WINDOW - 1, 2), (layout.WINDOW, 2)])
def test_a_record_outside_of_its_window(small, offset, length):
    vm, point, page, out = small
    point = stores.resealed(vm, point, disks=[replace(point.manifest.disks[0], size=2 * layout.WINDOW)])
    for start in (0, layout.WINDOW):
        if not start <= offset <= offset + length <= start + layout.WINDOW:
            relaid(vm, point, "vda", [page._replace(records=numpy.array([ZERO_AT(offset, length)]))], [start])
            assert_refused(vm, out, STRANGE)


HEAD, FILES, REFS, NAMES_AT = 0, 16, 16 + 2 * 48, 16 + 2 * 48 + 64  # of a directory with two files and a page
BAD_REF, WRONG_SIZE = "a page that cannot be", "not of the size"


def more_pages(data):
    """Return the same page 17 times."""
    return poked(4, "I", 17)(data[:REFS] + data[REFS:NAMES_AT] * 17 + data[NAMES_AT:])


def chunk_number(data):
    """Return which of the two files is the chunk file."""
    return data[NAMES_AT:].split(b"\n")[1].endswith(b".zst")


DIRECTORIES = {  # (10) to (13)
    "more files than there are": (WRONG_SIZE, poked(0, "I", 3)),
    "more pages than there are": (WRONG_SIZE, poked(4, "I", 2)),
    "more names than there are": (WRONG_SIZE, poked(8, "Q", 1 << 40)),
    "more after it": (WRONG_SIZE, lambda data: data + b"x"),
    "half a head": (WRONG_SIZE, lambda data: data[:9]),
    "nothing": (WRONG_SIZE, lambda data: b""),
    "no line feed": (NAMES, lambda data: data[:-1] + b"x"),
    "a file of another disk": (NAMES, lambda data: data.replace(b"/vda.0000", b"/vdb.0000")),
    "a file of another kind": (NAMES, lambda data: data.replace(b"/vda.0000.zst", b"/vda.directory"[:13])),
    "a file of no point": (NAMES, lambda data: data.replace(b"Z-", b"/..")[: len(data)]),
    "a window that is none": (BAD_REF, poked(REFS, "Q", 512)),
    "a window behind the disk": (BAD_REF, poked(REFS, "Q", layout.WINDOW)),
    "too many pages": (BAD_REF, more_pages),
    "a page in no file": (BAD_REF, poked(REFS + 24, "I", 2)),
    "a page in a chunk file": (BAD_REF, lambda data: poked(REFS + 24, "I", chunk_number(data))(data)),
    "a page past the end": (BAD_REF, poked(REFS + 8, "Q", 1)),
    "a page far past the end": (BAD_REF, poked(REFS + 8, "Q", (1 << 64) - 1)),
    "nothing stored": (BAD_REF, poked(REFS + 16, "I", 0)),
    "raw too large": (BAD_REF, poked(REFS + 20, "I", (1 << 28) + 1)),
    "raw another": ("no frame", poked(REFS + 20, "I", 255)),
    "no record": (BAD_REF, poked(REFS + 28, "I", 0)),
    "too many records": (BAD_REF, poked(REFS + 28, "I", (1 << 21) + 1)),
    "another number of records": (SIZE, poked(REFS + 28, "I", 1)),
    "a file of another size": ("damaged", poked(FILES, "Q", 1 << 20)),
    "another digest of an index": ("damaged", lambda data: poked(FILES + 64 - 48 * chunk_number(data), "Q", 5)(data)),
}


@pytest.mark.parametrize("flaw", DIRECTORIES)
def test_a_directory_that_cannot_be(small, flaw):
    vm, point, page, out = small
    says, spoil = DIRECTORIES[flaw]
    relaid(vm, point, "vda", [page], directory=spoil)
    assert_refused(vm, out, says)


def test_a_chunk_file_of_another_digest(small):
    vm, point, page, out = small
    relaid(vm, point, "vda", [page], directory=lambda data: poked(FILES + 16 + 48 * chunk_number(data), "Q", 5)(data))
    assert_not_written_over(vm, out)


def test_pages_that_are_out_of_order(small):
    vm, point, page, out = small
    point = stores.resealed(vm, point, disks=[replace(point.manifest.disks[0], size=2 * layout.WINDOW)])
    second = page._replace(records=numpy.array([ZERO_AT(layout.WINDOW, 5)]))
    relaid(vm, point, "vda", [second, page], [layout.WINDOW, 0])
    assert_refused(vm, out, BAD_REF)


@pytest.mark.parametrize("how", strange.NO_FRAMES)
def test_a_directory_that_is_no_whole_frame(small, how):
    vm, point, page, out = small
    entry = point.manifest.disk("vda")
    data = pages.decompressed((vm.folder / entry.directory.path).read_bytes(), 1 << 20)
    written = replaced(vm, entry.directory.path, strange.NO_FRAMES[how](data))
    stores.resealed(vm, point, disks=[replace(entry, directory=written)])
    assert_refused(vm, out)


def test_frames_that_make_up_for_each_other(tmp_path):
    """Two frames of 64 and 4 KiB are recorded as 4 and 64: their sum is right, and each is wrong."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 68 * KIB)
    vm.write("vda", 0, b"x" * 68 * KIB)
    point = vm.pull()
    page = page_of(vm, point, "vda")
    records = page.records.copy()
    assert records["raw"].tolist() == [64 * KIB, 4 * KIB]
    records["raw"] = records["length"] = [4 * KIB, 64 * KIB]
    records["offset"] = [0, 4 * KIB]
    relaid(vm, point, "vda", [page._replace(records=records)])
    assert_refused(vm, tmp_path / "out", "no frame")


MOVE = 16 + 2 * 48  # of a table with one new file
BAD_MOVE, BAD_SEAL = "a move that cannot be", "its digest"
TABLES = {  # (22) and (23)
    "more files than there are": (WRONG_SIZE, poked(0, "I", 3)),
    "more moves than there are": (WRONG_SIZE, poked(4, "I", 200)),
    "more names than there are": (WRONG_SIZE, poked(8, "Q", 1 << 40)),
    "half a head": (WRONG_SIZE, lambda data: data[:9]),
    "no line feed": (NAMES, lambda data: data[:-1] + b"x"),
    "a new file of another disk": (NAMES, lambda data: data[:-13] + b"vdb.0000.zst\n"),
    "a new file outside": (NAMES, lambda data: data.replace(b"20270101T0", b"../../../x")),
    "the same file": (NAMES, lambda data: data[:MOVED_NAMES] + data[MOVED_NAMES:-39] * 2),
    "of another size": ("another file", poked(16, "Q", 1 << 20)),
    "of another digest": ("another file", poked(32, "Q", 5)),
    "to the file itself": (BAD_MOVE, poked(MOVE + 20, "I", 0)),
    "to no file": (BAD_MOVE, poked(MOVE + 20, "I", 2)),
    "nothing stored": (BAD_MOVE, poked(MOVE + 16, "I", 0)),
    "too much stored": (BAD_MOVE, poked(MOVE + 16, "I", 2 * MIB)),
    "from past the end": (BAD_MOVE, poked(MOVE, "Q", (1 << 64) - 1)),
    "to past the end": (BAD_MOVE, poked(MOVE + 8, "Q", (1 << 64) - 1)),
    "out of order": (
        BAD_MOVE,
        lambda data: data[:MOVE] + data[MOVE + 24 :][:24] + data[MOVE:][:24] + data[MOVE + 48 :],
    ),
    "one twice": (BAD_MOVE, lambda data: data[:MOVE] + data[MOVE:][:24] * 2 + data[MOVE + 48 :]),
    "another place": ("no frame", poked(MOVE + 8, "Q", 9)),
    "another frame": ("no file", poked(MOVE, "Q", 1)),
    "a new file of another size": ("damaged", poked(16 + 48, "Q", 1 << 20)),
}
MOVED_NAMES = MOVE + 3 * 24


@pytest.fixture(scope="module")
def moved_once(tmp_path_factory):
    """A Vm, its point, and the FileEntry of its only chunk file, whose three frames are moved."""
    vm = stores.Vm(tmp_path_factory.mktemp("moved") / "store")
    vm.add_disk("vda", 3 * 64 * KIB)
    for number in range(3):
        vm.write("vda", number * 64 * KIB, b"%c" % (65 + number) * 64 * KIB)
    point = vm.pull()
    [chunk] = stores.chunks_of(vm, point, "vda")
    stores.move(vm, point, "vda", [chunk.path])
    return vm, point, chunk


@pytest.fixture
def moved_file(moved_once, tmp_path):
    """A Vm, its point, the path of the table of its chunk file, and the table's bytes, decompressed."""
    vm, point, chunk = moved_once
    vm = vm.copy(tmp_path / "store")
    path = vm.folder / moved.path_of(chunk.path)
    return vm, point, path, pages.decompressed(path.read_bytes()[:-32], 1 << 20)


def sealed(frame):
    return frame + hashlib.sha256(frame).digest()


@pytest.mark.parametrize("flaw", TABLES)
def test_a_table_that_cannot_be(moved_file, tmp_path, flaw):
    vm, point, path, data = moved_file
    says, spoil = TABLES[flaw]
    path.write_bytes(sealed(pages.compressed(spoil(data))))
    assert_refused(vm, tmp_path / "out", says)


@pytest.mark.parametrize("how", strange.NO_FRAMES)
def test_a_table_that_is_no_whole_frame(moved_file, tmp_path, how):
    vm, point, path, data = moved_file
    path.write_bytes(sealed(strange.NO_FRAMES[how](data)))
    assert_refused(vm, tmp_path / "out")


def test_a_table_that_is_damaged(moved_file, tmp_path):
    """Whatever it claims: it is sealed. Nor is a file that it names another one."""
    vm, point, path, data = moved_file
    [new] = vm.folder.glob("2027*/vda.0000.zst")
    for bad in (path, new):
        held = bad.read_bytes()
        for changed in (stores.flipped(held, len(held) // 2), held[:-1], held + b"x", None):
            with stores.damaged(bad, changed):
                only_digest = bad == new and changed and len(changed) == len(held)
                (assert_not_written_over if only_digest else assert_refused)(vm, tmp_path / "out")
    assert_restored(vm, point, "vda", tmp_path)


def test_a_table_with_another_digest_of_a_file(moved_file, tmp_path):
    vm, point, path, data = moved_file
    path.write_bytes(sealed(pages.compressed(poked(32 + 48, "Q", 5)(data))))
    assert_not_written_over(vm, tmp_path / "out")


def test_a_table_leads_to_files_and_not_to_tables(moved_file, tmp_path):
    vm, point, path, data = moved_file
    [new] = vm.folder.glob("2027*/vda.0000.zst")
    entry = stores.entry_of(vm, new)
    moves = moved.decode(path.read_bytes(), stores.chunks_of(vm, point, "vda")[0]).moves.copy()
    moves["position"] = moves["to"]
    other = replaced(vm, f"{new.parent.name}/vda.0001.zst", new.read_bytes())
    (vm.folder / moved.path_of(entry.path)).write_bytes(moved.encode(moved.Table(entry, [other], moves)))
    new.unlink()
    assert_refused(vm, tmp_path / "out")
