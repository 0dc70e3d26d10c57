"""A point that is made while a verification runs: no unchecked point counts as verified, and no damage of its files is
lost."""

import itertools
import random
import shutil

import pytest
import stores
from stores import KIB, flipped

from nbdpull.core import errors
from nbdpull.format import findings
from nbdpull.operations import copy, listing, status
from nbdpull.operations.verify import Options, verify
from nbdpull.pulling import held_series
from nbdpull.repository import crossing, evidence, inspection, soundness, verdict
from nbdpull.repository.evidence import Evidence
from nbdpull.repository.part import Part


@pytest.fixture(scope="module")
def pulled(tmp_path_factory):
    vm = stores.Vm(tmp_path_factory.mktemp("crossing") / "store")
    vm.add_disk("vda", 200 * KIB)
    vm.write("vda", 0, random.Random(1).randbytes(200 * KIB))
    vm.pull(chunk_size=60 * KIB, batch_size=64 * KIB)
    return vm


@pytest.fixture
def vm(pulled, tmp_path):
    return pulled.copy(tmp_path / "store")


def damage(vm, number=1):
    """Damage a file of the first point; return its path."""
    entry = stores.chunks_of(vm, vm.points[0], "vda")[number]
    path = vm.folder / entry.path
    path.write_bytes(flipped(path.read_bytes(), entry.size // 4))
    return entry.path


def verdicts(vm):
    found = listing.listing(listing.Options(str(vm.root))).points
    return [each["verified"] and each["verified"]["verdict"] for each in found]


def pull(vm):
    vm.write("vda", 0, b"%d" % len(vm.points))
    return vm.pull()


def pulls_at_the_first_look(vm, monkeypatch):
    real, made = inspection.Inspector.inspect, []

    def inspect(inspector, look):
        if not made:
            made.append(pull(vm))
        real(inspector, look)

    monkeypatch.setattr(inspection.Inspector, "inspect", inspect)


@pytest.mark.parametrize("options", [{}, {"level": "files"}, {"oldest": True}], ids=str)
def test_unchecked_files_are_not_verified(vm, monkeypatch, options):
    pulls_at_the_first_look(vm, monkeypatch)
    found = verify(Options(str(vm.root), **options))
    assert not found.is_bad and found.warnings == [] and verdicts(vm) == ["ok", None]
    [domain] = status.status(status.Options(str(vm.root))).domains
    assert (domain["verified"]["point"], domain["newest"]["id"]) == (vm.points[0].id, vm.points[1].id)


@pytest.mark.parametrize("options", [{}, {"level": "files"}, {"oldest": True}], ids=str)
def test_a_damage_is_one_of_a_point_that_came_meanwhile(vm, monkeypatch, options):
    """It was not recorded for that point: the point counted as sound, and the next pull built on the damaged file."""
    path = damage(vm)
    pulls_at_the_first_look(vm, monkeypatch)
    found = verify(Options(str(vm.root), **options))
    new = vm.points[1]
    assert found.is_bad and verdicts(vm) == ["damaged"] * 2 and soundness.of_series(vm.series).sound == []
    [warning] = found.warnings
    assert f"point {new.id} of vm1, which was made while a verification ran" in warning
    assert verdict.Known([new], findings.load(vm.series)).damaged_files(new, "vda") == {path}
    monkeypatch.undo()
    (vm.folder / path).write_bytes(flipped((vm.folder / path).read_bytes(), (vm.folder / path).stat().st_size // 4))
    verify(Options(str(vm.root)))
    assert verdicts(vm) == ["ok"] * 2


def test_damage_that_a_point_does_not_need_is_not_its_damage(vm, monkeypatch):
    damage(vm)
    vm.write("vda", 0, random.Random(2).randbytes(200 * KIB))
    pulls_at_the_first_look(vm, monkeypatch)
    assert verify(Options(str(vm.root))).warnings == [] and verdicts(vm) == ["damaged", None]


@pytest.mark.parametrize("is_told", [True, False])
def test_what_a_pull_did_not_know_when_it_began(vm, monkeypatch, is_told):
    """Even if a finding does not list the damaged files. The series is held as by any pull."""
    if not is_told:
        monkeypatch.setattr(evidence, "MAX_PLACES", 0)
    with held_series.holding(vm.series) as held:
        pass
    path = damage(vm)
    assert verify(Options(str(vm.root))).is_bad
    new = pull(vm)
    assert verdicts(vm) == ["damaged", None]
    [warning] = held.found_since(new)
    assert new.id in warning and verdicts(vm) == ["damaged"] * 2
    files = verdict.Known([new], findings.load(vm.series)).damaged_files(new, "vda")
    assert files == ({path} if is_told else None)
    with held_series.holding(vm.series) as held:
        pass
    assert held.found_since(new) == []


@pytest.mark.parametrize("offset, length", [(-1, 1), (1 << 62, 1), (0, 1 << 62), (1 << 62, 1 << 62), (190 * KIB, 0)])
def test_a_finding_of_any_numbers_fails_no_pull(vm, offset, length):
    """Anyone who can write to a store can write findings."""
    with held_series.holding(vm.series) as held:
        pass
    new, path = pull(vm), stores.chunks_of(vm, vm.points[0], "vda")[1].path
    place = {"disk": "vda", "path": path, "offset": offset, "length": length, "problem": None}
    about = {**findings.entry(vm.points[0]), "verdict": "damaged", "damages": 1, "places": [place]}
    findings.record(vm.series, findings.VERIFY, level="frames", points=[about])
    assert len(held.found_since(new)) == (offset >= 0 and length != 0)


def test_unreadable_findings_fail_no_pull(vm, monkeypatch):
    with held_series.holding(vm.series) as held:
        pass

    def broken(*args):
        raise errors.StoreError("it is away")

    monkeypatch.setattr(crossing.findings, "names", broken)
    [warning] = held.found_since(vm.points[0])
    assert "it is away" in warning


def test_a_copy_counts_on_a_file_that_is_found_damaged_meanwhile(vm, tmp_path, monkeypatch):
    """In DEST."""
    dest = vm.copy(tmp_path / "dest")
    new, real = pull(vm), copy.Incoming.take

    def take(*args):
        taken = real(*args)
        damage(dest)
        monkeypatch.setattr(crossing, "warn_of_points", lambda *about: [])
        assert verify(Options(str(dest.root), point=vm.points[0].id)).is_bad
        return taken

    damaged = soundness.of_series(dest.series)
    monkeypatch.setattr(copy.Incoming, "take", take)
    [domain] = copy.copy(copy.Options(str(vm.root), str(dest.root))).domains
    assert damaged.damaged == [] and soundness.of_series(dest.series).damaged == [vm.points[0].id, new.id]


ORDERS = [[number in first for number in range(6)] for first in itertools.combinations(range(6), 3)]


def verification(vm):
    """Return the steps of a verification."""
    evidence = Evidence(vm.series, verdict.FILES, Part())
    look = inspection.Inspector(vm.series, inspection.Depth(verdict.FILES, Part(), 1, lambda: None), lambda found: None)
    yield
    look.inspect(evidence.look(vm.points[0]))
    finding = evidence.conclude([])
    findings.kept(vm.series, findings.VERIFY, **finding)
    yield
    crossing.warn_of_points(vm.series, [point.id for point in evidence.points], finding)
    yield


def pulling(vm):
    with held_series.holding(vm.series) as held:
        known = verdict.Known(vm.series.points(), findings.load(vm.series))
        vm.bad = known.damaged_files(vm.points[0], "vda")
    yield
    new = pull(vm)
    yield
    held.found_since(new)
    yield


def test_a_copy_that_fails_has_reported_the_points_before(vm, tmp_path, monkeypatch):
    """It reported all of them at its end: an error before that hid the damage."""
    dest = vm.copy(tmp_path / "dest")
    new, real = [pull(vm), pull(vm)], copy.Incoming.take

    def take(self, point, *args):
        if point.id == new[1].id:
            raise errors.OutputFull("no room")
        taken = real(self, point, *args)
        damage(dest)
        with monkeypatch.context() as patch:
            patch.setattr(crossing, "warn_of_points", lambda *about: [])
            assert verify(Options(str(dest.root), point=vm.points[0].id)).is_bad
        return taken

    monkeypatch.setattr(copy.Incoming, "take", take)
    [domain] = copy.copy(copy.Options(str(vm.root), str(dest.root))).domains
    assert isinstance(domain.problem, errors.OutputFull) and new[0].id in domain.warnings[0]
    assert soundness.of_series(dest.series).damaged == [vm.points[0].id, new[0].id]


@pytest.mark.parametrize("left_out", ["", "warn_of_points", "warn_of_findings"])
def test_in_whatever_order_they_meet(vm, tmp_path, monkeypatch, left_out):
    """The new point does without the damaged file, or is damaged; if one of them does not look, some orders lose the
    damage."""
    damage(vm)
    if left_out:
        monkeypatch.setattr(crossing, left_out, lambda *about: [])
    lost = 0
    for order in ORDERS:
        twin = vm.copy(tmp_path / "twin")
        runs = {True: verification(twin), False: pulling(twin)}
        for who in order:
            next(runs[who])
        is_bad = inspection_of(twin, twin.points[1])
        known = soundness.of_series(twin.series).damaged
        assert twin.points[0].id in known and (is_bad or twin.points[1].id not in known)
        lost += is_bad and twin.points[1].id not in known
        shutil.rmtree(twin.root)
        if lost:
            break
    assert bool(lost) == bool(left_out)


def inspection_of(vm, point):
    """Return whether it refers to a damaged file."""
    return any(map(vm.series.file_flaw, stores.directory_of(vm, point, "vda").files))
