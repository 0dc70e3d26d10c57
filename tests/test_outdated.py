"""Outdated findings: what verifications leave does not grow with their number, and no less is known without them."""

import random
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from hours import Hours
from memory_store import MemoryStore
from stores import flipped, verify_store

from nbdpull.format import findings, layout
from nbdpull.operations import listing
from nbdpull.repository import half_points, outdated, removal, soundness, verdict
from nbdpull.repository.series import Series
from nbdpull.storage.directory import DirectoryStore

pytestmark = pytest.mark.usefixtures("no_threads")

DAY = 25  # hours, after which nobody reads what was listed before


def kept(vm):
    return sorted(path.name for path in vm.folder.glob("*.verify.json"))


def verified(vm):
    return [point["verified"]["verdict"] for point in listing.listing(listing.Options(str(vm.root))).points]


def test_months_of_verifications(vm):
    """The last one of each level remains, and what readers may need that know nothing later."""
    with Hours(DirectoryStore) as hours:
        for level in ["frames", *["files"] * 5] * 2:
            verify_store(vm.root, keep=True, level=level)
            hours.let_pass(DAY)
            assert len(kept(vm)) <= 4 and verified(vm) == ["ok"] * 3
        verify_store(vm.root, keep=True)
        assert {each["level"] for each in findings.load(vm.series)} == {"files", "frames"}


def test_damage_that_persists_and_ends(vm):
    path = max(vm.folder.glob("*/*.zst"), key=lambda path: path.stat().st_size)
    sound = path.read_bytes()
    path.write_bytes(flipped(sound, len(sound) // 2))
    with Hours(DirectoryStore) as hours:
        for number in range(8):
            verify_store(vm.root, keep=True)
            hours.let_pass(DAY)
            if number == 1:
                removal.remove(vm.series, vm.points[0])  # its damage is recorded for ever
            assert "damaged" in verified(vm) and len(kept(vm)) <= 4
        path.write_bytes(sound)
        for _ in range(3):
            verify_store(vm.root, keep=True)
            hours.let_pass(DAY)
            assert verified(vm) == ["ok"] * 2
    assert len(kept(vm)) <= 3


def test_a_removal_that_is_undone(vm):
    verify_store(vm.root, keep=True)
    first, *others = vm.points
    with Hours(DirectoryStore) as hours:
        for point in others:
            verify_store(vm.root, keep=True, point=point.id)
        hours.let_pass(DAY)
        removal.remove(vm.series, first)
        verify_store(vm.root, keep=True, point=others[0].id)
        folder = vm.folder / first.id
        (folder / half_points.REMOVED).rename(folder / layout.MANIFEST)
        assert verified(vm) == ["ok"] * 3


def test_a_run_that_keeps_nothing_removes_nothing(vm):
    with Hours(DirectoryStore) as hours:
        for keep in (True, True, False):
            verify_store(vm.root, keep=keep)
            hours.let_pass(DAY)
    assert len(kept(vm)) == 2


def test_a_finding_removed_while_it_is_read_is_not_lost(vm, monkeypatch):
    """Prune removes nothing if a finding cannot be read."""
    verify_store(vm.root, keep=True)
    (vm.folder / "20200101T000000Z-aaaaaa.verify.json").write_bytes(b"")
    assert len(soundness.of_series(vm.series).lost) == 1
    real = findings.names
    (vm.folder / "20200101T000000Z-aaaaaa.verify.json").unlink()
    monkeypatch.setattr(findings, "names", lambda target: ["20200101T000000Z-aaaaaa.verify.json", *real(target)])
    assert soundness.of_series(vm.series).lost == []


# -- whatever is done -------------------------------------------------------------------------------------------------


class Model:
    """A series without data, in which verifications, some at once, find anything.

    ever: all findings ever kept; points: all that ever were, by id; passed: hours since the beginning.
    """

    def __init__(self, seed):
        self.chance, self.store, self.passed = random.Random(seed), MemoryStore(), 0.0
        self.store.make_folder("vm1")
        self.series = Series(self.store, "vm1")
        self.ever, self.points, self.running, self.listed, self._made = [], {}, [], [], {}
        self._immutable, self.store.has_locks = self.chance.random() < 0.3, self.chance.random() < 0.5
        self.store.seconds_since_change = lambda path, anew=False: (self.passed - self._made[path]) * 3600
        self._remove, self.store.remove_file = self.store.remove_file, self._removed
        for _ in range(3):
            self.pull()

    def _removed(self, path):
        if not (self._immutable and self.chance.random() < 0.3):
            self._remove(path)

    def existing(self):
        return [point for point in self.points.values() if self.series.has_point(point.id)]

    def load(self):
        return findings.load(self.series)

    def pull(self):
        point = SimpleNamespace(id=layout.new_point_id(), sha256=f"{len(self.points):064}")
        self.store.make_folder(f"vm1/{point.id}")
        self.store.publish(f"vm1/{point.id}/{layout.MANIFEST}", b"")
        self.points[point.id] = point

    def remove(self):
        if len(self.existing()) > 1:
            self._rename(self.chance.choice(self.existing()), layout.MANIFEST, half_points.REMOVED)

    def undo(self):
        """Undo a removal, as long as its files are sure to be there."""
        for point in self.points.values():
            made = self._made.get(f"vm1/{point.id}/{half_points.REMOVED}")
            if not self.series.has_point(point.id) and self.passed - made <= 24:
                return self._rename(point, half_points.REMOVED, layout.MANIFEST)

    def _rename(self, point, name, new):
        self.store.rename(f"vm1/{point.id}/{name}", f"vm1/{point.id}/{new}")
        self._made[f"vm1/{point.id}/{new}"] = self.passed

    def begin(self):
        known = self.load()
        self.running.append((known, self.existing(), verdict.Known(self.existing(), known)))

    def end(self):
        if self.running:
            self._end(*self.running.pop(self.chance.randrange(len(self.running))))

    def _end(self, known, points, recorded, whole=False):
        parts = [{}, {}, {"sample": 0.1}, {"shard": [self.chance.randrange(1, 3), 2]}]
        part = {} if whole else self.chance.choice(parts)
        level = "frames" if whole else self.chance.choice(verdict.Level.WORDS)
        wanted = points if whole else self.chance.sample(points, self.chance.randrange(1, len(points) + 1))
        self.keep([self._entry(point, recorded, whole) for point in wanted], level=level, **part)
        outdated.remove(self.series, known)

    def _entry(self, point, known, whole):
        likely = 1 if whole else self.chance.choice([0, 0.5, 1])
        settles = [each.finding for each in known.recorded(point) if self.chance.random() < likely]
        damages = 0 if whole else self.chance.choice([0, 0, 1])
        settles += known.settled(point) if whole or self.chance.random() < 0.5 else []
        about = {"complete": whole or self.chance.random() < 0.8, **({"settles": settles} if settles else {})}
        return {**findings.entry(point), "verdict": "", "damages": damages, **about}

    def keep(self, entries, **about):
        clock = self.passed if self.chance.random() < 0.8 else self.chance.choice([self.passed - 30, 1e7])
        when = datetime(2020, 1, 1, tzinfo=timezone.utc) + timedelta(hours=clock)
        about = {"when": when.isoformat(timespec="milliseconds"), "who": f"run {len(self.ever)}", **about}
        path = findings.record(self.series, findings.VERIFY, points=entries, **about)
        self._made[path] = self.passed
        name = path.rpartition("/")[2].partition(".")[0]
        [document] = [each for each in self.load() if each["id"] == name]
        self.ever.append(document)

    def end_all(self):
        """Verify everything, as often as a chain of settled damage may be long."""
        self._immutable = False
        for _ in range(len(self.ever) + 3):
            self.passed += DAY
            known = self.load()
            self._end(known, self.existing(), verdict.Known(self.existing(), known), whole=True)

    def check(self):
        """Require that all who read now, or have listed the findings within a day, know what all findings ever kept
        show."""
        self.listed.append((self.passed, {each["id"] for each in self.load()}, len(self.ever)))
        self.listed = [each for each in self.listed if self.passed - each[0] <= 24]
        for _, names, count in [*self.listed[-1:], *self.listed[:4]]:
            self._require_same([each for each in self.load() if each["id"] in names], self.ever[:count])

    def needless(self):
        """Return the findings that neither are dated in the future, nor report damage that counts, nor settle any of a
        removed point: nobody can check it again."""
        points, here, found = self.points.values(), {each.id for each in self.existing()}, self.load()
        known, names = verdict.Known(points, self.ever), {each["id"] for each in found}
        needed = {each.finding for point in points for each in known.recorded(point)}
        for each in found:
            gone = [about for about in each["points"] if about["point"] not in here]
            needed |= {each["id"]} if any(not names.isdisjoint(about.get("settles", [])) for about in gone) else set()
        return [each for each in found if each["id"] not in needed and each["when"] < findings.now()["when"]]

    def _require_same(self, found, ever):
        left, full = (verdict.Known(self.points.values(), sorted(each, key=age)) for each in (found, ever))
        for point in self.points.values():
            assert left.recorded(point) == full.recorded(point)
        for point in self.existing():
            assert left.verdict(point) == full.verdict(point) and left.last_look(point) == full.last_look(point)


def age(document):
    return document["when"], document["id"]


@pytest.mark.parametrize("seed", range(8))
def test_removal_of_findings_loses_no_knowledge(seed):
    model = Model(seed)
    for _ in range(60):
        deeds = [model.begin] * 4 + [model.end] * 4 + [model.pull] + [model.remove, model.undo] * 2
        model.chance.choice(deeds)()
        model.check()
        model.passed += model.chance.choice([0, 1, 7, 26])
    model.end_all()
    model.check()
    assert len(model.needless()) <= 3
