"""What exists at a place: how much space it takes, how it begins; the check waits for nobody and changes nothing."""

import os

import pytest

from nbdpull.core import errors
from nbdpull.images import qcow2
from nbdpull.targets import existing
from nbdpull.targets.places import DEVICE, EXISTING, NEW, STDOUT, Place


def never():
    raise AssertionError("nobody is waited for")


def test_room_of_a_raw_image_is_its_size(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(12345))
    for kind in (EXISTING, DEVICE):
        assert existing.room(Place(kind, str(path)), never) == 12345


def test_read_only_images_have_no_room(tmp_path):
    with pytest.raises(errors.OutputError, match=f"^cannot open {tmp_path}"):
        existing.room(Place(EXISTING, str(tmp_path)), never)


@pytest.mark.parametrize("content", [b"", b"QFI", bytes(4096)])
def test_a_raw_image_is_not_taken_for_a_qcow2_one(tmp_path, content):
    """By its bytes, before any program is asked: a guest could have written what qemu-img would find there."""
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(errors.UsageError, match="image is not a qcow2 image; use --format raw if it is a raw one"):
        existing.room(Place(EXISTING, str(path), "qcow2"), never)


def test_first_bytes(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"0123456789")
    for kind in (NEW, EXISTING, DEVICE):
        assert existing.first_bytes(Place(kind, str(path)), 4, never) == b"0123"
        assert existing.first_bytes(Place(kind, str(path)), 40, never) == b"0123456789"


def test_special_files_have_no_first_bytes(tmp_path):
    """A FIFO without a writer would never answer."""
    os.mkfifo(tmp_path / "fifo")
    os.mkdir(tmp_path / "folder")
    for path in ("fifo", "folder", "none"):
        assert existing.first_bytes(Place(NEW, str(tmp_path / path)), 4, never) == b""
    assert existing.first_bytes(Place(STDOUT, "-"), 4, never) == b""


def test_qcow2_is_recognized_by_its_first_bytes(tmp_path, monkeypatch):
    path = tmp_path / "image"
    layout = qcow2.Layout(1 << 20)
    with open(path, "wb") as image:
        for offset, data in layout.finish():
            image.seek(offset)
            image.write(data)
    monkeypatch.setattr(existing.qemu_img, "virtual_size", lambda path, kind: (path, kind))
    assert existing.room(Place(EXISTING, str(path), "qcow2"), never) == (str(path), "qcow2")
