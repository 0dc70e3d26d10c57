"""The real client of ovirt-imageio reads the disks of points from serve --http: full, what changed, and damage."""

import json
import random
import urllib.request

import ovirt_client
import pytest
from http_points import TOKEN, served
from stores import MIB, Vm, chunks_of, damaged, flipped, scribble

pytestmark = pytest.mark.e2e  # servers


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    """A Vm with 512-byte sectors, as qcow2 has them."""
    ovirt_client.module()
    vm, rng = Vm(tmp_path_factory.mktemp("ovirt") / "store"), random.Random(1)
    vm.add_disk("vda", 3 * MIB)
    vm.write("vda", MIB, rng.randbytes(MIB))
    vm.pull()
    for size in (3 * MIB, 4 * MIB + 512):
        vm.grow("vda", size)
        scribble(vm, "vda", rng)
        vm.pull()
    return vm


def image_url(expected):
    """Return the URL as a client with the token learns it."""
    request = urllib.request.Request(expected["url"] + "/images", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        [image] = json.load(answer)["images"]
    return expected["url"] + image["path"]


def opened(events):
    return ovirt_client.module().ImageioClient(image_url(events[0]))


def test_every_point_after_the_one_before(vm, tmp_path):
    base = None
    for point in vm.points:
        expected = vm.images[point.id]["vda"]
        with served(vm, tmp_path, http="127.0.0.1:0", point=point.id) as events:
            url = image_url(events[0])
            whole = tmp_path / f"{point.id}-whole.qcow2"
            assert ovirt_client.downloaded(url, whole, None) == expected
            changed = tmp_path / f"{point.id}.qcow2"
            assert ovirt_client.downloaded(url, changed, None, base) == expected
            base = changed


def test_extents_and_reads(vm, tmp_path):
    expected = vm.images[vm.points[-1].id]["vda"]
    with served(vm, tmp_path, http="127.0.0.1:0") as events, opened(events) as client:
        assert client.size() == len(expected) and client.max_readers == 8
        for context in ("zero", "dirty"):
            reached = 0
            for extent in client.extents(context):
                assert extent.start == reached
                part = bytearray(extent.length)
                assert client.read(extent.start, part) == len(part)
                assert part == expected[extent.start :][: len(part)] and not (extent.zero and any(part))
                reached += extent.length
            assert reached == len(expected)
        with pytest.raises(Exception, match="use GET or HEAD or OPTIONS"):
            client.write(0, b"x")


def test_the_first_point_has_no_dirty_extents(vm, tmp_path):
    with served(vm, tmp_path, http="127.0.0.1:0", point=vm.points[0].id) as events, opened(events) as client:
        dirty = client.extents("dirty")
        with pytest.raises(Exception, match="does not support dirty extents"):
            next(dirty)


def test_a_wrong_ticket(vm, tmp_path):
    with served(vm, tmp_path, http="127.0.0.1:0") as events, pytest.raises(Exception, match="no such ticket"):
        ovirt_client.module().ImageioClient(events[0]["url"] + "/images/" + "0" * 64)


def test_damage_is_an_error_for_the_client(vm, tmp_path):
    chunk = vm.folder / chunks_of(vm, vm.points[0], "vda")[0].path
    with damaged(chunk, flipped(chunk.read_bytes(), 300_000)):
        with served(vm, tmp_path, http="127.0.0.1:0", point=vm.points[0].id) as events:
            url = image_url(events[0])
            with pytest.raises(Exception, match="damaged|Expected|reset|closed"):
                ovirt_client.downloaded(url, tmp_path / "image.qcow2", None)
        assert [each["event"] for each in events[1:]] == ["trouble"]
