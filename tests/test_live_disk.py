"""How a disk of a running job is read: the reads and connections at once, and an export of the wrong size."""

import contextlib
import random
from types import SimpleNamespace

import pytest

pytest.importorskip("nbd")
pytest.importorskip("libvirt")

from nbdpull.core import errors, extents  # noqa: E402
from nbdpull.hypervisor.backup_spec import Export  # noqa: E402
from nbdpull.nbd import source  # noqa: E402
from nbdpull.pulling import live_disk  # noqa: E402
from nbdpull.pulling.live_disk import Known, Live, Reading  # noqa: E402


def test_all_threads_together_keep_the_limit():
    chance = random.Random(4)
    for _ in range(300):
        threads, limit = chance.randint(1, 64), chance.randint(1, 4096)
        each = Reading(threads, limit).reads_at_once()
        assert 1 <= each <= source.MAX_BATCH_READS
        assert each * threads <= limit or each == 1  # a thread cannot read less than once
        assert each == source.MAX_BATCH_READS or (each + 1) * threads > limit  # nor is anything of it left
    assert Reading(4).reads_at_once() == source.MAX_BATCH_READS


def test_all_disks_together_keep_the_limit_of_the_server():
    for threads in range(1, 40):
        for disks in range(1, 60):
            for reading, most in ((Reading(threads), source.READERS), (Reading(threads, readers=8), 8)):
                each = reading.connections(disks)
                assert 1 <= each <= min(threads, most) + 1  # one is for the map
                assert each * disks <= source.MAX_CONNECTIONS or each == 1


@pytest.fixture
def opened(monkeypatch):
    """Open a disk of 4096 bytes whose export has `size` bytes; return what the Source was called with."""
    calls = []

    @contextlib.contextmanager
    def fake(*args, **named):
        calls.append((args, named))
        yield SimpleNamespace(size=fake.size)

    monkeypatch.setattr(source, "Source", fake)

    def call(size=4096):
        fake.size = size
        job = SimpleNamespace(exports={"vda": Export("vda", "a-bitmap")}, require_alive=lambda: None)
        live = Live("/run/socket", job, Reading(2, 8, stall_timeout=7.0))
        disk = SimpleNamespace(target="vda", size=4096, layered=True)
        known = Known(512, held="what it had", again=extents.of([(0, 512, 0)]))
        with live_disk.opened(disk, live, known, None):
            pass
        [(args, named)] = calls
        return args, named

    return call


def test_what_is_known_of_a_disk_reaches_its_source(opened):
    args, named = opened()
    assert args[:5] == ("/run/socket", "vda", "a-bitmap", 4, 7.0)
    assert (named["dirty_from"], named["held"], named["layered"]) == (512, "what it had", True)
    assert named["again"].tolist() == [(0, 512, 0)] and named["connections"] == 3


@pytest.mark.parametrize("size", [4095, 4608])
def test_an_export_of_another_size(opened, size):
    with pytest.raises(errors.SourceError, match=f"disk vda is 4096 bytes, its export {size}"):
        opened(size)
