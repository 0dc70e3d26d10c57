"""Where restored disks come from: all that they are made of is proved, and what of a damaged point can be salvaged."""

import contextlib

import pytest
import stores

from nbdpull.core import errors
from nbdpull.format import layout
from nbdpull.restoring import loss, origin


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return stores.chain(tmp_path_factory.mktemp("origin") / "store")


def origin_of(vm, number=-1):
    return origin.Origin(vm.series, vm.points[number], onto=False, threads=2, check=lambda: None)


def made_from(vm, disks, number=-1):
    """Every file below the points up to that one, but for manifests and other disks, by its path in the series."""
    found = stores.files(vm.folder)
    later = [point.id for point in vm.points[number:][1:]]
    others = [disk for disk in vm.disks if disk not in disks]
    return {
        str(path.relative_to(vm.folder))
        for path in found
        if path.name != layout.MANIFEST and path.parent.name not in later and path.name.split(".")[0] not in others
    }


@pytest.mark.parametrize("disks", [["vda"], ["vda", "vdb"]])
def test_every_file_of_the_chains_is_proved_and_each_once(vm, monkeypatch, disks):
    seen, real = [], vm.series.file_flaw
    monkeypatch.setattr(vm.series, "file_flaw", lambda entry, check: seen.append(entry.path) or real(entry, check))
    origin.prove(origin_of(vm), disks, [])
    assert sorted(seen) == sorted(made_from(vm, disks)) and len(seen) > 6


def test_a_flaw_in_any_of_them_is_found(vm):
    for path in sorted(made_from(vm, ["vda"])):
        data = (vm.folder / path).read_bytes()
        for changed in (stores.flipped(data, len(data) // 2), data[:-1], None):
            with stores.damaged(vm.folder / path, changed), pytest.raises(errors.Damaged, match=f"{path}: .*--salvage"):
                origin.prove(origin_of(vm), ["vda"], [])
    origin.prove(origin_of(vm), ["vda"], [])


def test_what_a_disk_is_not_made_of_may_be_damaged(vm):
    others = made_from(vm, ["vda", "vdb"]) - made_from(vm, ["vda"])
    assert others
    with contextlib.ExitStack() as stack:
        for path in others:
            stack.enter_context(stores.damaged(vm.folder / path, b""))
        origin.prove(origin_of(vm), ["vda"], [])
        with pytest.raises(errors.Damaged):
            origin.prove(origin_of(vm), ["vda", "vdb"], [])
        with pytest.raises(errors.Damaged):
            origin.prove(origin_of(vm), [], [vm.points[0].disk("vdb").index])


def salvaged(vm, disks):
    events = []
    with contextlib.ExitStack() as opened:
        found = origin.salvaged(origin_of(vm), disks, opened, lambda **event: events.append(event))
        assert events == [{"event": "lost", **vars(each)} for each in found.lost]
        return list(found.images), found.lost


def test_a_disk_without_an_index_is_lost_as_a_whole(vm):
    assert salvaged(vm, ["vda", "vdb"]) == (["vda", "vdb"], [])
    path, size = vm.folder / vm.points[0].disk("vda").index.path, vm.points[-1].disk("vda").size
    with stores.damaged(path, b""):
        images, [lost] = salvaged(vm, ["vda", "vdb"])
        assert images == ["vdb"] and lost == loss.Loss("vda", 0, size, lost.problem)
        assert str(path) in lost.problem and "index --rebuild" in lost.problem
        with pytest.raises(errors.Damaged, match="nothing can be salvaged"):
            salvaged(vm, ["vda"])


def test_a_disk_without_its_beginning_is_not_salvaged(tmp_path):
    """Nothing of it is damaged: it never was in the store."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 1000)
    vm.pull(since="elsewhere")
    with pytest.raises(errors.NoFullPull):
        salvaged(vm, ["vda"])
