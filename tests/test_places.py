"""The place that a text on the command line names for a disk."""

import os

import pytest

from nbdpull.core import errors
from nbdpull.targets import places
from nbdpull.targets.places import EXISTING, NBD, NEW, STDOUT, Place, place

URI = "nbd+unix:///?socket=/run/x"


@pytest.mark.parametrize(
    "args, is_what",
    [
        (("-",), Place(STDOUT, "-")),
        (("-", "raw"), Place(STDOUT, "-")),
        ((URI,), Place(NBD, URI)),
        (("nbds://host/export",), Place(NBD, "nbds://host/export")),
        (("/i/vda.img",), Place(NEW, "/i/vda.img", "qcow2")),
        (("/i/vda.img", "raw"), Place(NEW, "/i/vda.img", "raw")),
        (("/i/../j/vda",), Place(NEW, "/j/vda", "qcow2")),
        (("/i/vda", "qcow2", "compat=0.10,x=on"), Place(NEW, "/i/vda", "qcow2", "compat=0.10,x=on")),
        (("/i/vda", "raw", "", True), Place(EXISTING, "/i/vda", "raw")),
        (("/i/vda", "raw", "", False, "/secret"), Place(NEW, "/i/vda", "raw", "", "/secret")),
        (("/i/vda", "raw", "iter-time=10", False, "/secret"), Place(NEW, "/i/vda", "raw", "iter-time=10", "/secret")),
        (("/dev/shm/vda",), Place(NEW, "/dev/shm/vda", "qcow2")),
    ],
)  # fmt: skip
def test_parsed_places(args, is_what):
    assert place(*args) == is_what


def test_not_a_link_is_replaced_but_what_it_names(tmp_path):
    (tmp_path / "image").touch()
    (tmp_path / "link").symlink_to("image")
    (tmp_path / "dangling").symlink_to("none")
    assert place(str(tmp_path / "link")).path == str(tmp_path / "image")
    assert place(str(tmp_path / "dangling")).path == str(tmp_path / "dangling")


def test_a_relative_path_is_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place("sub/vda").path == f"{tmp_path}/sub/vda"


@pytest.mark.parametrize(
    "args, says",
    [
        (("-", "qcow2"), "-: only raw data can be written there"),
        ((URI, "qcow2"), "only raw data can be written there"),
        ((URI, None, "compat=0.10"), "only raw data can be written there"),
        (("-", None, "", False, "/secret"), "-: what is written there cannot be encrypted"),
        ((URI, None, "", False, "/secret"), "cannot be encrypted"),
        (("/dev/nvme9n9",), "/dev/nvme9n9: there is no block device of that name"),
        (("/i/../dev/x",), "there is no block device of that name"),
        (("/i/vda", "raw", "compat=0.10"), "are for qcow2, not for raw"),
        (("/i/vda", None, "lazy_refcounts=on, backing_file=/x"), "backing_file is refused"),
        (("/i/vda", None, "size=1G"), "size is refused"),
        (("/i/vda", None, "data_file=/x"), "data_file is refused"),
        (("/i/vda", None, "backing_fmt=raw"), "backing_fmt is refused"),
        (("/i/vda", "raw", "size=1", False, "/secret"), "size is refused"),
    ],
)
def test_invalid_places(args, says):
    with pytest.raises(errors.UsageError, match=says):
        place(*args)


@pytest.mark.parametrize(
    "text, raw", [("-", True), (URI, True), ("nbd:", False), ("./-", False), ("/dev/null", False), ("/none", False)]
)
def test_places_that_take_raw_bytes_only(text, raw):
    """A character device is refused."""
    assert places.is_raw(text) is raw


@pytest.mark.parametrize(
    "there, words",
    [
        (Place(NEW, "/a,b", "qcow2"), ["-f", "qcow2", "/a,b"]),
        (Place(places.DEVICE, "/dev/x"), ["-f", "raw", "/dev/x"]),
        (Place(NEW, "/a,b", "qcow2", "", "/s,t"),
         ["--object", "secret,id=secret0,file=/s,,t", "--image-opts",
          "driver=qcow2,encrypt.key-secret=secret0,file.driver=file,file.filename=/a,,b"]),
        (Place(places.DEVICE, "/dev/x", "raw", "", "/s"),
         ["--object", "secret,id=secret0,file=/s", "--image-opts",
          "driver=luks,key-secret=secret0,file.driver=host_device,file.filename=/dev/x"]),
    ],
)  # fmt: skip
def test_arguments_for_qemu_programs(there, words):
    """A comma in a path would begin another option."""
    assert there.image == words


def test_block_sizes():
    assert [places.block_size(Place(NEW, "/x", kind)) for kind in ("qcow2", "raw")] == [65536, 4096]


def test_a_block_device_by_a_link(tmp_path, monkeypatch):
    monkeypatch.setattr(places.stat, "S_ISBLK", lambda mode: True)
    path = tmp_path / "by-id"
    path.touch()
    assert place(str(path)) == Place(places.DEVICE, str(path))
    os.unlink(path)
    assert not places.is_device(str(path))
