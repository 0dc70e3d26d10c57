"""Which files a point refers to: all that its restore opens, each once, wherever it is."""

import pytest
import stores

from nbdpull.core import errors
from nbdpull.repository import references


def test_a_point_refers_to_files_of_its_own_and_of_others(tmp_path):
    vm = stores.chain(tmp_path / "store", points=3)
    first, _, last = vm.points
    found = references.of_point(vm.series, last)
    assert {entry.path.partition("/")[0] for entry in found} == {point.id for point in vm.points}
    own = {path.name for path in (vm.folder / last.id).iterdir()} - {"manifest.json"}
    assert own == {entry.path.partition("/")[2] for entry in found if entry.path.startswith(last.id)}
    assert len({entry.path for entry in found}) == len(found)
    assert [vm.series.file_flaw(entry) for entry in found] == [None] * len(found)
    assert {entry.path.partition("/")[0] for entry in references.of_point(vm.series, first)} == {first.id}


def test_a_damaged_directory_hides_only_its_own_references(tmp_path):
    """One directory is lost: a request for all fails; one for the other disk does not."""
    vm = stores.chain(tmp_path / "store", points=1)
    (point,) = vm.points
    (vm.folder / point.id / "vda.directory").unlink()
    with pytest.raises(errors.Damaged, match="vda.directory: the file is missing"):
        references.of_point(vm.series, point)
    names = {
        entry.path.partition("/")[2] for entry in references.by_directories(point, [vm.series.directory(point, "vdb")])
    }
    assert names == {"vda.directory", "vdb.directory", "vdb.index", "vdb.0000.zst", "domain.xml", "SHA256SUMS"}
