"""Which checkpoints and bitmaps of a domain are nbdpull's, and which bitmaps belong to no checkpoint."""

import errno
from types import SimpleNamespace

import pytest

pytest.importorskip("libvirt")

from nbdpull.pulling import strays  # noqa: E402

RUN = "20261122T194500Z-7f3a9c0d11223344"
OTHER = "20261123T194500Z-0000000000000000"
OURS, OTHERS = f"nbdpull-{RUN}", f"nbdpull-{OTHER}"


@pytest.mark.parametrize(
    "name, run",
    [(OURS, RUN), (RUN, ""), ("nbdpull-", ""), ("nbdpull-daily", ""), (f"x{OURS}", ""), (f"nbdpull-{RUN}/x", "")],
)
def test_a_name_contains_the_run(name, run):
    """A user may call a bitmap nbdpull-daily: it is not ours."""
    assert strays.run_of(name) == run


def test_checkpoints_of_nbdpull_under_any_name():
    known = [SimpleNamespace(name=name, run_id=run) for name, run in [("a", RUN), ("b", None), (OURS, None)]]
    vm = SimpleNamespace(checkpoints=SimpleNamespace(known=lambda: known))
    assert [each.name for each in strays.checkpoints(vm)] == ["a"]


def disk(target, source="/i/{}", **changes):
    fields = {"format": "qcow2", "type": "file", "empty": False, **changes}
    return SimpleNamespace(target=target, source=source.format(target), **fields)


def layer(*bitmaps):
    return {"format-specific": {"data": {"bitmaps": [{"name": name} for name in bitmaps]}}}


@pytest.fixture
def images(monkeypatch):
    """images[path] = layers, top first, or an OSError; `looked`: those that were read."""
    fields = {}

    def layers(path, kind, seconds, check):
        assert kind == "qcow2"
        if isinstance(fields[path], OSError):
            raise fields[path]
        return fields[path]

    monkeypatch.setattr(strays.guest_files, "layers", layers)
    return fields


def orphans(*disks, owned=(), remote=False):
    checkpoints = SimpleNamespace(names=lambda: list(owned))
    found, flaws = strays.orphans(SimpleNamespace(checkpoints=checkpoints, disks=lambda: disks, is_remote=remote))
    return {(each.name, each.run): each.disks for each in found}, flaws


def test_bitmaps_of_nbdpull_without_a_checkpoint(images):
    """In any layer, reported once for each disk; bitmaps of others and of existing checkpoints are not reported."""
    images["/i/vda"] = [layer(OURS, "theirs"), {}, layer(OURS, OTHERS)]
    images["/i/vdb"] = [layer(OTHERS, "nbdpull-daily")]
    both = orphans(disk("vda"), disk("vdb"))
    assert both == ({(OURS, RUN): ["vda"], (OTHERS, OTHER): ["vda", "vdb"]}, [])
    assert orphans(disk("vda"), disk("vdb"), owned=[OTHERS]) == ({(OURS, RUN): ["vda"]}, [])


@pytest.mark.parametrize("changes", [{"format": "raw"}, {"type": "network"}, {"empty": True}])
def test_images_that_cannot_hold_bitmaps_are_not_read(images, changes):
    assert orphans(disk("vda", **changes)) == ({}, [])


def test_images_of_another_machine_are_not_read(images):
    assert orphans(disk("vda"), remote=True) == ({}, [])


def test_an_unreadable_image_hides_no_other(images):
    images["/i/vda"] = OSError(errno.EIO, "Input/output error", "/i/vda")
    images["/i/vdb"] = [layer(OURS)]
    found, flaws = orphans(disk("vda"), disk("vdb"))
    assert found == {(OURS, RUN): ["vdb"]}
    assert flaws == ["the bitmaps of disk vda cannot be read: /i/vda: Input/output error"]
