"""The golden store, made once by an earlier version (tests/data/make_golden.py): every later version has to read it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import identities
import numpy
import pytest
import sealed
from stores import files, package_environment, verify_store, zstd_frames

from nbdpull.core import errors, extents
from nbdpull.crypto import age
from nbdpull.format import moved
from nbdpull.format.directory import NOWHERE, Directory
from nbdpull.operations import listing
from nbdpull.operations.restore import Options, restore
from nbdpull.repository import keyring, marker, series

FOLDER = Path(__file__).parent / "data"
GOLDEN = FOLDER / "golden"
IMAGES = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
POINTS = [(domain, point) for domain, points in IMAGES.items() for point in points]


def restored(root, folder, domain, point, kind="raw"):
    """Return {disk: {"size": …, "sha256": …}} of a restore."""
    images = {}
    for disk, path in restore(Options(str(root), str(folder), domain, point, kind=kind)).files.items():
        if kind == "qcow2":
            subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, f"{path}.raw"], check=True)
            path = f"{path}.raw"
        data = Path(path).read_bytes()
        images[disk] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return images


@pytest.mark.parametrize("domain, point", POINTS)
def test_every_point_is_restored_as_it_was(tmp_path, domain, point):
    assert restored(GOLDEN, tmp_path / "out", domain, point) == IMAGES[domain][point]


SEALED = FOLDER / "golden-sealed"
SEALED_FOR = "age1"


def keys_of(identity):
    """Return the keys of the sealed one, as an identity of the tests opens it."""
    return keyring.keys_of(marker.open_store(str(SEALED)), age.identities(identities.data(identity), identity))


@pytest.mark.parametrize("domain, point", POINTS)
def test_every_point_of_the_sealed_one_is(tmp_path, monkeypatch, domain, point):
    with sealed.opening(monkeypatch, keys_of(SEALED_FOR)):
        assert restored(SEALED, tmp_path / "out", domain, point) == IMAGES[domain][point]


def test_the_sealed_one_verifies(monkeypatch):
    with sealed.opening(monkeypatch, keys_of(SEALED_FOR)):
        report = verify_store(SEALED)
    assert (report.damages, report.points, report.frames) == ([], len(POINTS), 32)


def test_the_sealed_one_opens_for_its_recipients_only(tmp_path):
    with pytest.raises(errors.KeyNeeded, match="age2"):
        keys_of("age2")
    with pytest.raises(errors.KeyNeeded, match="is sealed"):
        restored(SEALED, tmp_path / "out", *POINTS[0])


def test_other_programs_prove_the_files_of_the_sealed_one():
    found = [path.parent for path in files(SEALED) if path.name == "SHA256SUMS"]
    for point in found:
        subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=point, check=True)
        for path in point.glob("*.directory"):
            subprocess.run(["zstd", "-tq", str(path)], check=True)
    assert len(found) == len(POINTS)


def test_to_qcow2_as_well(tmp_path):
    domain, point = POINTS[3]
    assert restored(GOLDEN, tmp_path / "out", domain, point, "qcow2") == IMAGES[domain][point]


def test_it_verifies():
    report = verify_store(GOLDEN)
    assert report.damages == []
    assert report.points == len(POINTS)
    assert report.frames == 32


def test_it_is_listed_in_the_order_of_its_commits():
    listed = listing.listing(listing.Options(str(GOLDEN)))
    found, refused = listed.points, listed.refused
    assert refused == []
    ours = [point for point in found if point["domain"] == "vm1"]
    assert [point["id"] for point in ours] == list(IMAGES["vm1"])
    assert [point["parent"] for point in ours] == [None, *list(IMAGES["vm1"])[:-1]]
    assert [disk["mode"] for disk in ours[0]["disks"]] == ["full", "full"]
    assert {disk["mode"] for point in ours[1:] for disk in point["disks"]} == {"incremental"}
    for point in ours:
        sizes = {disk["name"]: disk["size"] for disk in point["disks"]}
        assert sizes == {disk: about["size"] for disk, about in IMAGES["vm1"][point["id"]].items()}


FRAMES = {  # data and skippable ones, or pages, by the last two digits of the point and the file
    "0a/vda.0000.zst": 4, "0a/vda.0001.zst": 5, "0a/vda.0002.zst": 4, "0a/vda.0003.zst": 6, "0a/vda.0004.zst": 12,
    "0a/vdb.0000.zst": 4, "0a/vdb.0001.zst": 4, "0a/vda.index": 1, "0a/vdb.index": 1,
    "0b/vda.0000.zst": 5, "0b/vda.index": 1,
    "0c/vdb.0000.zst": 4, "0c/vda.index": 1, "0c/vdb.index": 1,
    "0d/vda.0000.zst": 6, "0d/vda.index": 1,
    "0e/vda.0000.zst": 4, "0e/vdb.0000.zst": 4, "0e/vda.index": 2, "0e/vdb.index": 1,
    "ff/sda.0000.zst": 4, "ff/sda.index": 1,
    "3b/vda.0000.zst": 4, "3b/vda.index": 1,
}  # fmt: skip
DIRECTORIES = {f"{point}/{disk}.directory" for point in ("0a", "0b", "0c", "0d", "0e") for disk in ("vda", "vdb")}
DIRECTORIES |= {"ff/sda.directory", "3b/vda.directory"}


def test_other_programs_read_it():
    found = {}
    for point in (path.parent for path in files(GOLDEN) if path.name == "SHA256SUMS"):
        subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=point, check=True)
        for path in [*point.glob("*.zst"), *point.glob("*.index"), *point.glob("*.directory")]:
            subprocess.run(["zstd", "-tq", str(path)], check=True)
            found[f"{point.name[-2:]}/{path.name}"] = len(zstd_frames(path.read_bytes()))
    assert {name: found.pop(name) for name in [*found] if name.endswith(".directory")} == dict.fromkeys(DIRECTORIES, 1)
    assert found == FRAMES


def test_it_has_every_kind_of_record():
    """What is not in it is not tested by it."""
    opened = marker.open_store(str(GOLDEN))
    points = series.Series(opened, "vm1").points()
    directories = [(point, Directory(opened, "vm1", disk)) for point in points for disk in point.manifest.disks]
    found = [(point, of, ref, of.records(ref)) for point, of in directories for ref in of.pages]
    data = [
        (point, of, record) for point, of, _, records in found for record in records[records["kind"] == extents.DATA]
    ]
    paths = {point.id: {file.path for file in of.files} for point, of in directories}
    assert any((records["kind"] == extents.ZERO).any() for _, _, _, records in found)
    assert any(record["skip"] for _, _, record in data), "a part of a frame"
    assert any(record["chunk"] == NOWHERE for _, _, record in data), "a chunk file of which nothing is visible"
    older = [record for point, of, record in data if record["chunk"] != NOWHERE
             and not of.files[record["chunk"]].path.startswith(point.id)]  # fmt: skip
    assert older, "frames of older points"
    places = [
        (int(record["chunk"]), int(record["position"]), int(record["offset"] - record["skip"])) for record in older
    ]
    assert len({place[:2] for place in places}) < len({*places}), "a frame at another place than its own"
    assert any(record["stored"] > record["raw"] for _, _, record in data), "data that does not compress"
    assert any(len(of.chunks) > 2 for _, of in directories), "several chunk files"
    assert any(not file.startswith(point) for point, files in paths.items() for file in files)
    assert any(len(of.refs(0)) > 2 for _, of in directories), "pages on each other"
    assert any(len(of.indexes) > 1 for _, of in directories), "indexes of several points"
    assert any(not of.files[-1].path.startswith(point.id) for point, of in directories), "nothing dirty"
    assert any(len(of.refs(0)) == 1 and of.disk == "vda" for point, of in directories[2:]), "pages made into one"
    sizes = [point.manifest.disk("vda").size for point in points]
    assert sizes != sorted(sizes) and sizes != sorted(sizes, reverse=True), "a disk that grew, and shrank"
    assert [point.id for point in points] != sorted(point.id for point in points)


def test_it_has_files_that_were_moved():
    """Two files of a removed point, to one file that other programs read."""
    gone, new = GOLDEN / "vm3/20260101T000000Z-00003a", GOLDEN / "vm3/20260103T000000Z-00003c/vda.0000.zst"
    assert sorted(path.name for path in gone.glob("*.zst*")) == [
        "vda.0000.zst.moved", "vda.0001.zst.moved", "vda.0002.zst"]  # fmt: skip
    subprocess.run(["zstd", "-tq", str(new)], check=True)
    assert len(zstd_frames(new.read_bytes())) == 3 + 3
    target = series.Series(marker.open_store(str(GOLDEN)), "vm3")
    [point] = target.points()
    tables = [moved.read(target.store, "vm3", entry) for entry in target.directory(point, "vda").chunks]
    assert [len(table.moves) for table in tables if table] == [2, 1]


@pytest.mark.parametrize("point", IMAGES["vm1"])
def test_its_directories_say_what_is_live(point):
    """By the definition: what the image needs of each file, computed byte for byte."""
    opened = marker.open_store(str(GOLDEN))
    target = series.Series(opened, "vm1")
    for disk in target.point(point).manifest.disks:
        found = Directory(opened, "vm1", disk)
        records = [record for ref in found.pages for record in found.records(ref)]
        top = numpy.full(disk.size, len(records))
        for number, record in enumerate(records):
            top[int(record["offset"]) :][: int(record["length"])] = number
        visible = [records[number] for number in numpy.unique(top) if number < len(records)]
        frames = {(r["chunk"], r["position"]): int(r["stored"]) for r in visible if r["kind"] == extents.DATA}
        live = [
            sum(size for (chunk, _), size in frames.items() if chunk == number) for number in range(len(found.files))
        ]
        for ref in found.pages:
            live[ref["file"]] += int(ref["stored"])
        assert found.live.tolist() == live
        assert {point} >= {file.path.partition("/")[0] for file, size in zip(found.files, live) if not size}


def test_it_is_small():
    assert sum(path.stat().st_size for path in files(GOLDEN)) < 100_000


def test_reading_leaves_it_as_it_is(tmp_path):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in [GOLDEN, *GOLDEN.rglob("*")]}

    before = state()
    verify_store(GOLDEN)
    restored(GOLDEN, tmp_path / "out", *POINTS[0])
    listing.listing(listing.Options(str(GOLDEN)))
    assert state() == before


def test_the_code_of_today_makes_a_store_of_the_same_images(tmp_path):
    made = tmp_path / "golden"
    command = [sys.executable, str(FOLDER / "make_golden.py"), str(made)]
    subprocess.run(command, check=True, env=package_environment())
    assert json.loads(Path(f"{made}.json").read_text(encoding="utf-8")) == IMAGES
    assert verify_store(made).damages == []
    assert subprocess.run(command, capture_output=True, env=package_environment()).returncode, "it overwrites nothing"
    assert os.path.exists(made / "nbdpull.json")
