"""The golden store, made once by an earlier version (tests/data/make_golden.py): every later version has to read it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stores import files, package_environment, verify_store, zstd_frames

from nbdpull.core import extents
from nbdpull.format import reader
from nbdpull.operations import listing
from nbdpull.operations.restore import Options, restore
from nbdpull.repository import marker, series

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden"
IMAGES = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))
POINTS = [(domain, point) for domain, points in IMAGES.items() for point in points]


def restored(root, folder, domain, point, kind="raw"):
    """{disk: {"size": …, "sha256": …}} of a restore."""
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


def test_to_qcow2_as_well(tmp_path):
    domain, point = POINTS[3]
    assert restored(GOLDEN, tmp_path / "out", domain, point, "qcow2") == IMAGES[domain][point]


def test_it_verifies():
    report = verify_store(GOLDEN)
    assert report.damages == []
    assert report.points == len(POINTS)
    assert report.frames == 25


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
        assert sizes == {disk: told["size"] for disk, told in IMAGES["vm1"][point["id"]].items()}


FRAMES = {  # data and skippable ones, by the last two digits of the point and the chunk file
    "0a/vda.0000.zst": 4, "0a/vda.0001.zst": 5, "0a/vda.0002.zst": 4, "0a/vda.0003.zst": 6, "0a/vda.0004.zst": 12,
    "0a/vdb.0000.zst": 4, "0a/vdb.0001.zst": 4, "0b/vda.0000.zst": 5, "0c/vdb.0000.zst": 4, "0d/vda.0000.zst": 4,
    "ff/sda.0000.zst": 4,
}  # fmt: skip


def test_other_programs_read_it():
    found = {}
    for point in (path.parent for path in files(GOLDEN) if path.name == "SHA256SUMS"):
        subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=point, check=True)
        for chunk in point.glob("*.zst"):
            subprocess.run(["zstd", "-tq", str(chunk)], check=True)
            found[f"{point.name[-2:]}/{chunk.name}"] = len(zstd_frames(chunk.read_bytes()))
    assert found == FRAMES


def test_it_has_every_kind_of_record():
    """What is not in it is not held by it."""
    opened = marker.open_store(str(GOLDEN))
    points = series.Series(opened, "vm1").points()
    entries = [(point, disk) for point in points for disk in point.manifest.disks]
    records = [
        (point, disk, record)
        for point, disk in entries
        for batch in reader.records(opened, "vm1", disk)
        for record in batch
    ]
    data = [(point, disk, record) for point, disk, record in records if record["kind"] == extents.DATA]
    assert any(record["kind"] == extents.ZERO for _, _, record in records)
    assert any(record["skip"] for _, _, record in data), "a part of a frame"
    assert any(not disk.chunks[record["chunk"]].path.startswith(point.id) for point, disk, record in data)
    assert any(record["stored"] > record["raw"] for _, _, record in data), "data that does not compress"
    assert any(len(disk.chunks) > 2 for _, disk in entries), "several chunk files"
    assert any(not disk.chunks and disk.name == "vdb" for _, disk in entries), "nothing dirty"
    sizes = [point.manifest.disk("vda").size for point in points]
    assert sizes != sorted(set(sizes), reverse=True) and max(sizes) > sizes[0], "a disk that grew"
    assert [point.id for point in points] != sorted(point.id for point in points)


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
    command = [sys.executable, str(DATA / "make_golden.py"), str(made)]
    subprocess.run(command, check=True, env=package_environment())
    assert json.loads(Path(f"{made}.json").read_text(encoding="utf-8")) == IMAGES
    assert verify_store(made).damages == []
    assert subprocess.run(command, capture_output=True, env=package_environment()).returncode, "it overwrites nothing"
    assert os.path.exists(made / "nbdpull.json")
