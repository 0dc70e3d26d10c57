"""Whether a pull fits: what could only fail later is refused before anything is started."""

from types import SimpleNamespace

import pytest

from nbdpull.core import errors
from nbdpull.format import layout, writer
from nbdpull.pulling import fit

MIB = 1 << 20


def disks(*sizes, allocation=0):
    return [SimpleNamespace(target=f"vd{n}", size=size, allocation=allocation) for n, size in enumerate(sizes)]


def test_a_disk_that_the_format_cannot_hold():
    fit.require_readable(disks(layout.MAX_DISK), 1, "store/vm1")
    with pytest.raises(errors.Unsupported, match="^disk vd1 is larger than .* leave it out with --exclude$"):
        fit.require_readable(disks(1, layout.MAX_DISK + 1), 1, "store/vm1")


def test_the_last_point_that_there_can_be():
    fit.require_readable([], (1 << 64) - 1, "store/vm1")
    with pytest.raises(errors.StoreError, match="a point in store/vm1 .*2.64 - 1.: choose another directory for -o"):
        fit.require_readable([], 1 << 64, "store/vm1")


@pytest.mark.parametrize("sizes", [[0], [1], [layout.MAX_CHUNK_FILES], [layout.MAX_CHUNK_FILES + 1], [1 << 50, 12345]])
def test_chunk_files_are_never_more_than_a_manifest_holds(sizes):
    least = writer.least_chunk_size(sizes)
    assert least * layout.MAX_CHUNK_FILES >= sum(sizes) > (least - 1) * layout.MAX_CHUNK_FILES


@pytest.mark.parametrize(
    "allocated, free, fits",
    [
        ([], 0, True),
        ([0], 0, True),
        ([5 * MIB], 5 * MIB, True),  # all of it
        ([5 * MIB], 5 * MIB - 1, False),
        ([100 * MIB], 16 * MIB, True),  # what is kept free
        ([100 * MIB], 16 * MIB - 1, False),
        ([600 * MIB, 400 * MIB], 100 * MIB, True),  # a tenth
        ([600 * MIB, 400 * MIB], 100 * MIB - 1, False),
        ([1 << 50], None, True),  # the store does not know
    ],
)
def test_a_full_pull_that_cannot_fit(allocated, free, fits):
    store = SimpleNamespace(free_bytes=lambda: free, path=lambda: "/backup")
    in_full = [disk for each in allocated for disk in disks(1 << 60, allocation=each)]
    if fits:
        fit.require_store(store, in_full)
    else:
        with pytest.raises(
            errors.OutputFull, match="^cannot write to /backup: No space left on device .*--no-space-check$"
        ):
            fit.require_store(store, in_full)
