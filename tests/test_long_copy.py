"""Copies of one point into a bucket that take longer than the files of removed points stay there."""

import contextlib

import pytest
import stores
from copies import over, take
from hours import Hours, without_locks
from sealed import KEYS

from nbdpull.core import errors
from nbdpull.core.throttle import Throttle
from nbdpull.repository import half_points, long_copy
from nbdpull.repository.resealed_point import Resealing
from nbdpull.storage.directory import DirectoryStore


@pytest.fixture
def vm(tmp_path):
    return stores.chain(tmp_path / "store", points=1, size=3 * stores.MIB)


@pytest.fixture
def slow(monkeypatch):
    """Let 15 hours pass before each of the first three parts of a copy. Factory: whether it knows of that."""

    @contextlib.contextmanager
    def begun(knows):
        left, real = [1, 1, 1], long_copy.LongCopy.go_on

        def go_on(self, names):
            if left:
                left.pop()
                hours.let_pass(15)
            real(self, names)

        monkeypatch.setattr(long_copy, "EVERY", 0 if knows else 1e9)
        monkeypatch.setattr(long_copy.LongCopy, "go_on", go_on)
        with without_locks(DirectoryStore), Hours(DirectoryStore) as hours:
            yield hours

    return begun


def unsealed(vm, tmp_path):
    """Copy under another seal."""
    other = stores.Vm(tmp_path / "sealed", vm.name, vm.uuid, keys=KEYS)
    with half_points.writing(other.series):
        Resealing(vm.series, other.series, [], [], Throttle()).take(vm.points[0])
    return other


def unchanged(vm, tmp_path):
    other = over(vm, tmp_path / "other")
    take(vm, other, vm.points[0])
    return other


@pytest.mark.parametrize("copied", [unchanged, unsealed])
def test_it_succeeds(vm, slow, tmp_path, copied):
    with slow(True):
        other = copied(vm, tmp_path)
    assert [point.id for point in other.series.points()] == [vm.points[0].id]


@pytest.mark.parametrize("copied", [unchanged, unsealed])
def test_without_its_knowledge_it_gives_up(vm, slow, tmp_path, copied):
    with slow(False), pytest.raises(errors.Busy, match="may be removed at any moment"):
        copied(vm, tmp_path)


def test_it_gives_up_as_soon_as_it_cannot_succeed(vm, slow, tmp_path):
    """What nobody needs is not kept for a copy that has slept too long."""
    with slow(True) as hours:
        real = hours.let_pass
        hours.let_pass = lambda _: real(21)
        with pytest.raises(errors.Busy, match="may be removed at any moment"):
            unchanged(vm, tmp_path)
