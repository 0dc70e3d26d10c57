"""Points that are decoded on demand: the result is as if all were decoded, but few are."""

from dataclasses import replace

import pytest
from stores import Vm, ids, resealed

from nbdpull.core import errors
from nbdpull.format import layout, manifest
from nbdpull.pulling import held_series
from nbdpull.repository import half_points
from nbdpull.repository.points import Points


@pytest.fixture
def vm(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 64 << 10)
    for _ in range(4):
        vm.pull()
    return vm


@pytest.fixture
def decoded(monkeypatch):
    """Return the ids of the decoded points, in order."""
    found, real = [], manifest.decode
    monkeypatch.setattr(manifest, "decode", lambda *about: found.append(real(*about).point) or real(*about))
    return found


def points_of(vm):
    return Points(vm.series, vm.series.heads()[0])


def manifest_of(vm, point):
    return vm.folder / point.id / layout.MANIFEST


def test_they_equal_the_result_of_load(vm):
    found = points_of(vm)
    assert [*found.newest_first()] == [*reversed(vm.series.points())] and found.newest == vm.points[-1]
    assert (found.ids, len(found)) == ({*ids(vm)}, 4)
    assert [found.get(point.id) for point in vm.points] == vm.points and found.get("20200101T000000Z-aaaaaa") is None


def test_only_the_accessed_point_is_decoded(vm, decoded):
    found = points_of(vm)
    found.require_of(vm.uuid)
    assert half_points.next_sequence(vm.series, *vm.series.heads()) == 5 and decoded == []
    assert found.newest == found.newest == vm.points[-1] and decoded == [vm.points[-1].id]


def test_no_series_has_none():
    found = Points()
    assert (found.newest, len(found), found.get("x"), [*found.newest_first()]) == (None, 0, None, [])
    found.require_of("whatever")


def test_a_point_that_cannot_be_read_is_refused_and_its_number_counts(vm):
    path = manifest_of(vm, vm.points[-1])
    path.write_bytes(path.read_bytes().replace(b'"sequence": 4', b'"sequence": 9'))
    heads, refused = vm.series.heads()
    assert {*refused} == {vm.points[-1].id} == {*vm.series.load()[1]}
    assert Points(vm.series, heads).newest == vm.points[-2]
    assert half_points.next_sequence(vm.series, heads, refused) == 11


def test_a_manifest_that_is_intact_and_refused_all_the_same_is_as_if_it_were_not_there(vm):
    """Its number is taken."""
    strange = replace(vm.points[-1].manifest, created="yesterday")
    manifest_of(vm, vm.points[-1]).write_bytes(manifest.encode(strange))
    heads, refused = vm.series.heads()
    found = Points(vm.series, heads)
    assert refused == {} and {*vm.series.load()[1]} == {vm.points[-1].id}
    assert found.newest == vm.points[-2] and [*found.newest_first()] == [*reversed(vm.points[:-1])]
    assert half_points.next_sequence(vm.series, heads, refused) == 5
    assert {*found.refused} == {vm.points[-1].id}


def test_a_pull_reports_a_manifest_that_it_found_to_be_invalid(vm):
    """Not at its beginning, because no manifest was decoded then."""
    manifest_of(vm, vm.points[-1]).write_bytes(manifest.encode(replace(vm.points[-1].manifest, created="yesterday")))
    with held_series.holding(vm.series) as held:
        assert held.warnings == held.late_warnings() == []
        assert held.points.newest == vm.points[-2]
        [reported] = held.late_warnings()
    assert reported.startswith("a point of the series is ignored: ") and vm.points[-1].id in reported


@pytest.mark.parametrize("number", range(4))
def test_each_is_of_the_domain(vm, number):
    heads, (uuid, other) = vm.series.heads()[0], (vm.uuid, "00000000-0000-0000-0000-000000000001")
    heads[number] = heads[number]._replace(uuid=other)
    resealed(vm, vm.points[number], uuid=other)
    with pytest.raises(errors.OtherDomain, match="points of another domain, vm1"):
        Points(vm.series, heads).require_of(uuid)
    assert {*vm.series.heads()[1]} == {*vm.series.load()[1]} == {point.id for point in vm.points}
