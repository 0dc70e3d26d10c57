"""Every file of a store, damaged in every region: verify finds it, and restore returns the right bytes or none."""

import random

import pytest
from stores import SMALL, chain, chunks_of, damaged, directory_of, files, flipped, restored, verify_store, zstd_frames

from nbdpull.core import errors

pytestmark = pytest.mark.usefixtures("no_threads")


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    """Three points, each with several chunk files of vda and one of vdb. Tests that damage it repair it. needed: for
    each path, the points that refer to it."""
    vm = chain(tmp_path_factory.mktemp("verify") / "store", **SMALL)
    vm.needed = {path: [] for path in files(vm.root)}
    for point in vm.points:
        own = [point.id + "/" + name for name in ("manifest.json", "SHA256SUMS")]
        named = [
            *point.manifest.all_files(),
            *(each for disk in vm.disks for each in directory_of(vm, point, disk).files),
        ]
        for path in {vm.root / "nbdpull.json", *(vm.folder / name for name in [*own, *(each.path for each in named)])}:
            vm.needed[path].append(point)
    assert all(vm.needed.values())
    return vm


def problems(vm, **how):
    return verify_store(vm.root, **how).damages


FRAMED = (".zst", ".index", ".directory")


def boundaries(path, data):
    """Return sizes to truncate a file to: at the start of every frame of a zstd file, and beside it."""
    cuts = {0, 1, len(data) // 2, len(data) - 1}
    if path.suffix == ".zst":
        for _, start, stop in zstd_frames(data):
            cuts |= {start, (start + stop) // 2}
    return sorted(cut for cut in cuts if 0 <= cut < len(data))


def places(path, data, rng):
    """Return bytes to flip: in every frame of a zstd file the first, the last and one between, else some."""
    if path.suffix not in FRAMED:
        return sorted(rng.sample(range(len(data)), 5) + [0, len(data) - 1])
    return [at for _, start, stop in zstd_frames(data) for at in (start, rng.randrange(start, stop), stop - 1)]


def assert_found(vm, path, tmp_path, what, thorough=True):
    """Require that the damage is found, and that the newest point which needs the file is not restored, unless the
    damaged part of a chunk file is in none of the image's frames, or no image is made from the file. thorough: verify
    finds the damage in the whole store, with --quick, too; all points that need the file are known to be damaged, and
    the others restore as before."""
    owner = path.parent.name
    mine = {} if thorough or path.suffix != ".zst" else {"domain": vm.name, "point": owner}
    for quick in (False, True) if thorough else (False,):
        try:
            found = verify_store(vm.root, level="files" if quick else "frames", **mine)
        except errors.Damaged as error:
            assert path.name == "nbdpull.json" and str(path) in str(error), what
        else:
            assert_reported(path, found.damages, what)
            bad = {each.point for each in found.verdicts if each.is_bad}
            assert bad == {point.id for point in vm.needed[path]} or not thorough, what
    newest = vm.needed[path][-1]
    sound = [{}, vm.images[newest.id]] if path.suffix == ".zst" and path.exists() else [{}]
    if path.name == "SHA256SUMS":
        sound = [vm.images[newest.id]]
    assert restored(vm, newest, tmp_path / "out") in sound, what
    for point in vm.points if thorough else ():
        if point not in vm.needed[path]:
            assert restored(vm, point, tmp_path / "out") == vm.images[point.id], what


def assert_reported(path, found, what):
    mine = [damage for damage in found if str(path) in damage.problem]
    assert mine, what
    assert path.parent.name in {damage.point for damage in mine}, what
    if path.suffix in FRAMED:
        assert path.name.partition(".")[0] in {damage.disk for damage in mine}, what


def kind_of(path):
    return path.name if path.suffix in (".json", ".xml", "") else path.suffix


def paths_of_kind(vm, kind):
    found = [path for path in files(vm.root) if kind_of(path) == kind]
    assert found
    return found


KINDS = [".zst", ".index", ".directory", "manifest.json", "nbdpull.json", "SHA256SUMS", "domain.xml"]


def test_every_file_is_of_a_kind_that_is_tested(vm):
    assert {kind_of(path) for path in files(vm.root)} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_truncation_at_every_boundary(vm, tmp_path, kind):
    for path in paths_of_kind(vm, kind):
        data = path.read_bytes()
        for size in boundaries(path, data):
            with damaged(path, data[:size]):
                what = f"{path} cut to {size} of {len(data)} bytes"
                assert_found(vm, path, tmp_path, what, thorough=size == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_in_every_region(vm, tmp_path, kind):
    rng = random.Random(kind)
    for path in paths_of_kind(vm, kind):
        data = path.read_bytes()
        for at in places(path, data, rng):
            bit = rng.randrange(8)
            with damaged(path, flipped(data, at, bit)):
                assert_found(vm, path, tmp_path, f"bit {bit} of byte {at} of {path}", thorough=at == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_surplus_bytes_at_the_end(vm, tmp_path, kind):
    for path in paths_of_kind(vm, kind):
        with damaged(path, path.read_bytes() + b"\n"):
            assert_found(vm, path, tmp_path, f"{path} with a byte more")


@pytest.mark.parametrize("kind", [".zst", ".index", ".directory", "SHA256SUMS", "domain.xml"])
def test_a_file_that_is_gone(vm, tmp_path, kind):
    for path in paths_of_kind(vm, kind):
        with damaged(path, None):
            assert_found(vm, path, tmp_path, f"{path} is gone")


def test_zeros_where_data_was(vm, tmp_path):
    """As some file systems leave it after a power cut."""
    for path in files(vm.root):
        size = path.stat().st_size
        with damaged(path, path.read_bytes()[: size // 2] + bytes(size - size // 2)):
            assert_found(vm, path, tmp_path, f"the second half of {path} is zeros")


def test_swapped_files(vm, tmp_path):
    one, two = (vm.folder / chunk.path for chunk in chunks_of(vm, vm.points[0], "vda")[:2])
    first, second = one.read_bytes(), two.read_bytes()
    with damaged(one, second), damaged(two, first):
        assert_found(vm, one, tmp_path, "two chunk files changed places")


def test_the_store_is_as_it_was_before(vm, tmp_path):
    """The tests above have repaired what they damaged."""
    assert problems(vm) == []
    for point in vm.points:
        assert restored(vm, point, tmp_path / "out") == vm.images[point.id]
