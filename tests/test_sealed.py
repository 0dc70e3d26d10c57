"""Sealed stores: what is in them, what needs the key, and that nothing that was changed is accepted.

The tests of bytes follow docs/format.md, section 20, with the library of the cipher, not with the package's code.
"""

import hashlib
import hmac
import json
import random
import resource
import shutil
import subprocess

import pytest
import sealed
import stores
import zstandard
from blake3 import blake3
from sealed import KEYS, KIB, MASTER, OTHER, SECRET, Vm, contains_secret, opening

from nbdpull.core import errors
from nbdpull.crypto import xaes
from nbdpull.format import layout, moved, reader
from nbdpull.operations import (
    compare,
    copy,
    diff,
    digest,
    index,
    listing,
    prune,
    rebuild,
    remove,
    restore,
    show,
    status,
    usage,
    verify,
)  # fmt: skip
from nbdpull.repository import half_points, lookup, marker, new_point, removal, series, series_choice

SHARED = "20270101T000000Z-000000aa"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return sealed.chain(tmp_path_factory.mktemp("sealed") / "store")


@pytest.fixture
def vm(made, tmp_path):
    """A copy of its own."""
    return twin(made, tmp_path / "store")


def twin(vm, root):
    shutil.copytree(vm.root, root)
    found = Vm(root, keys=KEYS)
    found.points, found.images = [*vm.points], {**vm.images}
    return found


@pytest.fixture
def key(monkeypatch):
    with opening(monkeypatch):
        yield


def documents(vm):
    return {path: json.loads(path.read_bytes()) for path in vm.root.rglob("manifest.json")}


# What is in one


def test_every_point_is_restored_as_it_was(made, key, tmp_path):
    for number, point in enumerate(made.points):
        assert stores.restored(made, point, tmp_path / str(number)) == made.images[point.id]


def test_it_verifies_to_the_last_frame(made, key):
    found = stores.verify_store(made.root)
    assert (found.damages, found.points, found.frames) == ([], 3, 4)


def test_nothing_of_the_guest_nor_of_the_key_is_in_it(made):
    readable = [path for path in stores.files(made.root) if contains_secret(path.read_bytes())]
    assert readable == []
    secrets = [MASTER, KEYS.data, KEYS.index, KEYS.names, KEYS.mac]
    for path in stores.files(made.root):
        data = path.read_bytes()
        assert not any(secret in data or secret.hex().encode() in data for secret in secrets)


def test_the_search_for_guest_data_finds_what_is_there(tmp_path):
    plain = sealed.chain(tmp_path / "store", 1, None)
    names = {path.name for path in stores.files(plain.root) if contains_secret(path.read_bytes())}
    assert {"vda.0000.zst", "vdb.0000.zst", "nvram", "domain.xml"} <= names


def test_a_plain_store_says_nothing_of_sealing(tmp_path):
    plain = sealed.chain(tmp_path / "store", 1, None)
    assert not any(b"sealed" in path.read_bytes() or b'"mac"' in path.read_bytes() for path in stores.files(plain.root))


def test_its_marker_says_that_it_is_sealed(made):
    result = json.loads((made.root / "nbdpull.json").read_bytes())
    assert result["requires"] == ["sealed"]
    assert result["sealed"] == {"cipher": "XAES-256-GCM", "key": KEYS.id}


def test_a_manifest_has_a_mac(made):
    for path, document in documents(made).items():
        data = path.read_bytes()
        end = f'\n "mac": "{document["mac"]}",\n "digest": "{document["digest"]}"\n}}\n'.encode()
        assert data.endswith(end) and document["requires"] == ["sealed"]
        zeros = b"0" * 64
        with_mac = data.replace(document["digest"].encode(), zeros)
        assert hashlib.sha256(with_mac).hexdigest() == document["digest"]
        blank = with_mac.replace(document["mac"].encode(), zeros)
        assert hmac.new(KEYS.mac, blank, "sha256").hexdigest() == document["mac"]


def test_small_files_are_sealed_by_their_names(made):
    folder = made.folder / made.points[0].id
    for name, plain in {"nvram": SECRET * 10, "domain.xml": made.xml.encode()}.items():
        assert xaes.opened(KEYS.index, (folder / name).read_bytes(), f"file {name}".encode()) == plain
        nonce = hmac.new(KEYS.names, f"nonce file {name}\0".encode() + plain, "sha256").digest()[:24]
        assert (folder / name).read_bytes()[:24] == nonce
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_pages_and_frames_are_sealed_separately(made):
    point = made.points[0]
    directory = stores.directory_of(made, point, "vda")
    [ref] = directory.pages
    data = (made.folder / point.id / "vda.index").read_bytes()
    assert (int(ref["position"]), int(ref["stored"])) == (0, len(data))
    page = zstandard.decompress(xaes.opened(KEYS.index, data, b"page"))
    assert len(page) == ref["raw"]
    keyed = hmac.new(KEYS.names, b"digest " + blake3(page).digest(), "sha256").digest()
    assert ref["digest"].tobytes() == keyed
    for record in directory.records(ref):
        chunk = (made.folder / directory.files[int(record["chunk"])].path).read_bytes()
        frame = chunk[int(record["position"]) :][: int(record["stored"])]
        plain = zstandard.decompress(xaes.opened(KEYS.data, frame, record["digest"].tobytes()))
        assert blake3(plain).digest() == record["digest"].tobytes()
        start = int(record["offset"]) - int(record["skip"])
        assert plain == made.images[point.id]["vda"][start : start + len(plain)]


def test_the_end_of_a_chunk_file_reveals_no_sizes_of_frames(made):
    path = made.folder / made.points[0].id / "vda.0000.zst"
    sizes = layout.parse_seek_table(path.read_bytes())
    assert len(sizes) == 2 and sizes[0][1] == sizes[1][1] == 0
    page = reader.chunk_records(made.store, f"vm1/{made.points[0].id}/vda.0000.zst", path.stat().st_size, "vda")
    assert len(page.records)


def test_what_did_not_change_is_stored_once(vm):
    """Small files, too: their stored bytes are recognized by their digest."""
    assert vm.points[-1].manifest.disk("vdb").stored_bytes < 400  # a directory
    first, new_id = vm.points[0], layout.new_point_id()
    with half_points.writing(vm.series), new_point.begun(vm.series, new_id) as new:
        new.add_file("nvram", SECRET * 10, first)
        new.add_file("domain.xml", b"<other/>", first)
        assert [entry.path for entry in new._files] == [f"{first.id}/nvram", f"{new_id}/domain.xml"]


def test_a_file_has_the_recorded_size_and_digest(vm):
    """Otherwise the whole point would be refused because of it."""
    with half_points.writing(vm.series), new_point.begun(vm.series, layout.new_point_id()) as new:
        assert new.fits("nvram", layout.MAX_FILE - xaes.OVERHEAD)
        assert not new.fits("nvram", layout.MAX_FILE - xaes.OVERHEAD + 1)


def test_equal_data_is_sealed_differently_each_time(tmp_path):
    """Frames: a comparison of two stores with one key does not show which frames are equal."""
    one, other = (sealed.chain(tmp_path / name, 1) for name in ("one", "other"))
    chunks = [vm.folder / vm.points[0].id / "vdb.0000.zst" for vm in (one, other)]
    header = layout.chunk_header(one.points[0].id, "vdb", 3000, 0)
    found = [path.read_bytes()[len(header) :][:60] for path in chunks]
    assert found[0] != found[1]


# Who has no key


def test_verbs_that_need_no_key(made, tmp_path):
    vm = twin(made, tmp_path / "store")
    root, first = str(vm.root), vm.points[0].id
    listed = listing.listing(listing.Options(root))
    assert [point["id"] for point in listed.points] == [point.id for point in vm.points] and listed.refused == []
    assert {None} == {point["not_in_point"] for point in listed.points}
    assert not status.status(status.Options(root)).is_bad
    usage.usage(usage.Options(root))
    copied = copy.copy(copy.Options(root, str(tmp_path / "copy")))
    assert [len(each.copied) for each in copied.domains] == [3] and copied.errors == []
    assert not compare.compare(compare.Options(root, str(tmp_path / "copy"))).differs
    pruned = prune.prune(prune.Options(root, keep_last=1, force=True, now=True))
    assert [each.removed for each in pruned.domains] == [[first, vm.points[1].id]]
    assert copy.copy(copy.Options(root, str(tmp_path / "copy"))).errors == []


def test_a_copy_is_sealed_with_the_same_key(made, key, tmp_path):
    copy.copy(copy.Options(str(made.root), str(tmp_path / "copy")))
    twin = Vm(tmp_path / "copy", keys=KEYS)
    for number, point in enumerate(made.points):
        assert stores.restored(twin, point, tmp_path / str(number)) == made.images[point.id]
    for path in stores.files(made.folder):
        assert (twin.folder / path.relative_to(made.folder)).read_bytes() == path.read_bytes()


def needing(vm, out):
    """Return the verbs that read sealed data."""
    root, point = str(vm.root), vm.points[-1].id
    return {
        "restore": lambda: restore.restore(restore.Options(root, str(out), kind="raw")),
        "verify": lambda: verify.verify(verify.Options(root)),
        "diff": lambda: list(diff.diff(diff.Options(root, vm.points[0].id, point)).ranges),
        "digest": lambda: digest.digest(digest.Options(root)),
        "index": lambda: list(index.index(index.Options(root, point, "vda")).records),
    }


@pytest.mark.parametrize("verb", ["restore", "verify", "diff", "digest", "index"])
def test_verbs_that_need_the_key_say_so(made, tmp_path, verb):
    before = sorted(stores.files(made.root))
    with pytest.raises(errors.KeyNeeded, match="is sealed: name an identity that opens it") as caught:
        needing(made, tmp_path / "out")[verb]()
    assert (caught.value.exit_code, caught.value.code) == (16, "key-needed")
    assert str(made.root) in str(caught.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
    assert sorted(stores.files(made.root)) == before


@pytest.mark.parametrize("verb", ["restore", "verify", "diff", "digest", "index"])
def test_verbs_that_need_the_key_work_with_it(made, key, tmp_path, verb):
    needing(twin(made, tmp_path / "store"), tmp_path / "out")[verb]()


def test_no_point_is_made_without_the_key(made, tmp_path):
    vm = twin(made, tmp_path / "store")
    before = sorted(stores.files(vm.root))
    locked = Vm(vm.root)
    locked.add_disk("vda", KIB)
    locked.write("vda", 0, b"x")
    with pytest.raises(errors.KeyNeeded):
        locked.pull()
    assert sorted(stores.files(vm.root)) == before


def test_another_key_opens_nothing(made):
    store = marker.open_store(str(made.root))
    with pytest.raises(errors.KeyNeeded, match=f"is sealed with key {KEYS.id}, this is key {OTHER.id}"):
        marker.unlock(store, OTHER)


def test_a_process_with_the_key_leaves_no_core_dump(made):
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        marker.unlock(marker.open_store(str(made.root)), KEYS)
        assert resource.getrlimit(resource.RLIMIT_CORE) == (0, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_keys_for_a_store_that_is_not_sealed(tmp_path):
    """Somebody may have put another one in the place of a sealed one."""
    plain = sealed.chain(tmp_path / "store", 1, None)
    with pytest.raises(errors.KeyNeeded, match="is not sealed, this is key"):
        marker.unlock(plain.store, KEYS)


# Repack, heal, rebuild


def test_frames_are_moved_as_they_are(made, key, tmp_path):
    vm = twin(made, tmp_path / "store")
    first, last = vm.points[0], vm.points[-1]
    paths = [entry.path for entry in stores.chunks_of(vm, last, "vda") if entry.path.startswith(first.id)]
    stores.move(vm, last, "vda", paths[:1], SHARED)
    with half_points.writing(vm.series):
        removal.remove(vm.series, first)
    assert stores.restored(vm, last, tmp_path / "out") == vm.images[last.id]
    assert stores.verify_store(vm.root).damages == []


def test_a_prune_repacks_with_the_key_only(tmp_path, monkeypatch):
    vm = Vm(tmp_path / "store", keys=KEYS)
    vm.add_disk("vda", 1 << 20)
    for number in range(16):
        vm.write("vda", number * 64 * KIB, random.Random(number).randbytes(20 * KIB))
    first = vm.pull()
    vm.zero("vda", 64 * KIB, 15 * 64 * KIB)
    last = vm.pull()
    rules = prune.Options(str(vm.root), keep_last=1, force=True, now=True, repack_below=0.5)
    [found] = prune.prune(rules).domains
    assert found.removed == [first.id] and not found.problem
    assert [problem for problem in found.repacked.problems if "is sealed" in problem]
    before = sum(path.stat().st_size for path in stores.files(vm.root))
    with opening(monkeypatch):
        [found] = prune.prune(rules).domains
        assert found.repacked.moved > 20 * KIB and not found.repacked.problems
        assert sum(path.stat().st_size for path in stores.files(vm.root)) < before - 200 * KIB
        assert stores.restored(vm, last, tmp_path / "out") == vm.images[last.id]
        assert stores.verify_store(vm.root).damages == []
    assert not any(contains_secret(path.read_bytes()) for path in stores.files(vm.root))


def test_a_damaged_file_is_healed_from_a_copy(vm, key, tmp_path):
    shutil.copytree(vm.root, tmp_path / "copy")
    path = vm.folder / vm.points[0].id / "vda.0000.zst"
    path.write_bytes(stores.flipped(path.read_bytes(), 200))
    found = verify.verify(verify.Options(str(vm.root), heal_from=str(tmp_path / "copy")))
    assert len(found.healed) == 1
    assert stores.verify_store(vm.root).damages == []


@pytest.mark.parametrize("lost", [["vda.index"], ["vda.directory"], ["vda.index", "vda.directory"]])
def test_a_lost_index_is_made_again(vm, key, lost):
    for name in lost:
        (vm.folder / vm.points[1].id / name).unlink()
    before = {name: (vm.folder / vm.points[1].id / name).exists() for name in lost}
    assert not any(before.values())
    rebuild.rebuild(rebuild.Options(str(vm.root), point=vm.points[1].id, disk="vda"))
    assert stores.verify_store(vm.root).damages == []


def test_digests_in_findings_are_keyed(vm, key):
    digest.digest(digest.Options(str(vm.root), keep=True))
    [path] = vm.folder.glob("*.digest.json")
    [about] = json.loads(path.read_bytes())["points"]
    [(_, digests)] = digest.digest(digest.Options(str(vm.root))).points
    plain = bytes.fromhex(digests["vda"])
    assert about["disks"]["vda"] == hmac.new(KEYS.names, b"digest " + plain, "sha256").hexdigest()


# What was changed


def everything(root):
    """Return everything that a reader with the key sees of a store: points, images, small files."""
    store = marker.open_store(str(root))
    marker.unlock(store, KEYS)
    [target] = series_choice.all_series(store)
    found = {}
    for point in target.points():
        for disk in point.disks:
            directory = target.directory(point, disk)
            with reader.FrameReader(store, target.folder, directory.files) as frames:
                for window in directory.windows():
                    for record in window.flat():
                        found[point.id, disk, int(record["offset"])] = record["kind"] or frames.read(record)
            for entry in directory.files:
                if flaw := target.file_flaw(entry):
                    raise errors.Damaged(flaw)
        for name, entry in point.files.items():
            found[point.id, name] = target.file_flaw(entry) or name == layout.SUMS or target.read_file(point, name)
    return found


def assert_refused(root, *names):
    """Require that a reader with the key refuses it, and names the file."""
    with pytest.raises((errors.Damaged, errors.StoreError, errors.KeyNeeded)) as caught:
        reported = everything(root)
        flaws = [value for value in reported.values() if isinstance(value, str)]
        raise errors.Damaged(flaws[0]) if flaws else AssertionError("nothing was found")
    assert any(name in str(caught.value) for name in names), caught.value


def test_every_flipped_byte_is_found(tmp_path):
    vm = Vm(tmp_path / "store", keys=KEYS)
    vm.xml, vm.files = "<domain/>", {"nvram": b"x"}
    vm.add_disk("a", 100)
    vm.write("a", 0, SECRET)
    vm.pull()
    assert not [value for value in everything(vm.root).values() if isinstance(value, str)]
    rng = random.Random(7)
    for path in stores.files(vm.root):
        data = path.read_bytes()
        for at in range(len(data)):
            path.write_bytes(stores.flipped(data, at, rng.randrange(8)))
            assert_refused(vm.root, path.name)
        path.write_bytes(data)


def test_every_cut_is_found(vm):
    for path in stores.files(vm.root):
        data = path.read_bytes()
        for length in {0, 1, len(data) // 2, len(data) - 1}:
            path.write_bytes(data[:length])
            assert_refused(vm.root, path.name)
        path.write_bytes(data + b"\0")
        assert_refused(vm.root, path.name)
        path.write_bytes(data)


def test_two_files_in_each_others_place_are_found(vm):
    """Any two files of all points: so also an older file under the name of a newer one."""
    paths = stores.files(vm.root)
    for number, one in enumerate(paths):
        for other in paths[number + 1 :]:
            first, second = one.read_bytes(), other.read_bytes()
            if first == second:
                continue
            one.write_bytes(second), other.write_bytes(first)
            assert_refused(vm.root, one.name, other.name, one.parent.name, other.parent.name)
            one.write_bytes(first), other.write_bytes(second)


def forged(path, **changes):
    """Return a document that somebody without the key has changed, with a right digest."""
    document = {**json.loads(path.read_bytes()), **changes}
    del document["digest"]
    path.write_bytes(layout.seal(document))


@pytest.mark.parametrize("change", [
    {"sequence": 99}, {"domain": "vm2"}, {"requires": []}, {"mac": "0" * 64}, {"mac": 5}, {"mac": None}, {"files": []},
    {"created": "2020-11-22T19:45:00+00:00"}, {"checkpoint": {"name": "x", "creation_time": 0, "automatic": True}},
])  # fmt: skip
def test_a_manifest_is_made_with_the_key_only(vm, change):
    path = vm.folder / vm.points[-1].id / "manifest.json"
    forged(path, **change)
    assert_refused(vm.root, f"{vm.points[-1].id}/manifest.json: not made with the key of this store")


def test_a_point_of_another_store_is_refused(vm, tmp_path):
    for number, other in enumerate((OTHER, None)):
        strange = sealed.chain(tmp_path / str(number), 1, other)
        folder = shutil.copytree(strange.folder / strange.points[0].id, vm.folder / strange.points[0].id)
        assert_refused(vm.root, f"{folder.name}/manifest.json: not made with the key of this store")
        shutil.rmtree(folder)


def test_a_point_under_the_name_of_another_is_refused(vm):
    first, last = (vm.folder / point.id for point in (vm.points[0], vm.points[-1]))
    shutil.copy(first / "manifest.json", last / "manifest.json")
    assert_refused(vm.root, "the directory was renamed")


def test_a_marker_that_says_the_store_is_not_sealed_is_found(vm, tmp_path):
    plain = sealed.chain(tmp_path / "plain", 1, None)
    shutil.copy(plain.root / "nbdpull.json", vm.root / "nbdpull.json")
    with pytest.raises(errors.Damaged, match="made in a sealed store, but nbdpull.json says that this one is not"):
        series.Series(marker.open_store(str(vm.root)), "vm1").points()
    assert_refused(vm.root, "is not sealed, this is key")


@pytest.mark.parametrize("change", [
    {"requires": []}, {"sealed": None}, {"sealed": {"cipher": "ROT13", "key": KEYS.id}}, {"sealed": {"cipher": "x"}},
])  # fmt: skip
def test_a_marker_that_contradicts_itself(vm, change):
    forged(vm.root / "nbdpull.json", **change)
    with pytest.raises(errors.Damaged, match="not the marker of a store"):
        marker.open_store(str(vm.root))


def frames_of(vm, point, disk="vda"):
    directory = stores.directory_of(vm, point, disk)
    return [(directory, record) for ref in directory.pages for record in directory.records(ref) if not record["kind"]]


def test_no_frame_is_taken_for_another(vm):
    """Without digests of files first, as with random access; and without BLAKE3."""
    found = frames_of(vm, vm.points[-1])
    directory = found[0][0]
    files = {entry.path: (vm.folder / entry.path).read_bytes() for entry in directory.chunks}

    def stored(record):
        return files[directory.files[int(record["chunk"])].path][int(record["position"]) :][: int(record["stored"])]

    seal = vm.store.seal
    for _, record in found:
        for _, other in found:
            if record["digest"].tobytes() != other["digest"].tobytes():
                with pytest.raises(ValueError, match="does not open"):
                    seal.opened_frame(stored(other), record["digest"].tobytes())


def test_a_moved_table_leads_to_no_other_frame(vm, tmp_path):
    """It is the only file that the manifest does not bind: anyone who can write to the store can write one."""
    first, last = vm.points[0], vm.points[-1]
    chunk = next(entry for entry in stores.chunks_of(vm, last, "vda") if entry.path.startswith(first.id))
    stores.move(vm, last, "vda", [chunk.path], SHARED)
    table = moved.read(vm.store, "vm1", chunk)
    if len(table.moves) > 1:
        moves = table.moves.copy()
        moves["to"] = moves["to"][::-1]
    else:
        moves = table.moves.copy()
        moves["to"] += 1
    path = vm.folder / moved.path_of(chunk.path)
    path.write_bytes(moved.encode(moved.Table(table.old, table.files, moves)))
    with (
        lookup.RandomImage(vm.series, last, "vda") as opened,
        pytest.raises(errors.Damaged, match="a frame is not what"),
    ):
        opened.read(0, opened.size)


def test_a_point_is_removed_and_shown_without_a_key(vm):
    removed = remove.remove(remove.Options(str(vm.root), [vm.points[0].id]))
    assert removed is not None
    assert [point["id"] for point in listing.listing(listing.Options(str(vm.root))).points] == [
        point.id for point in vm.points[1:]
    ]
    with pytest.raises(errors.KeyNeeded):
        show.show(show.Options(str(vm.root), "latest", definition=True))


def test_the_state_of_a_point_that_was_removed_is_bound_too(vm):
    with half_points.writing(vm.series):
        removal.remove(vm.series, vm.points[0])
    forged(vm.folder / vm.points[0].id / half_points.REMOVED, sequence=50)
    assert half_points.removed_points(vm.series) == {}
