"""A store with random operations, and a model in memory of what must be in the store after each of them.

Pulls, removals, prunes, pins, verifications and slow readers, in any order, in a real directory, by the package's own
operations. Each may die at any call that changes a file, as with SIGKILL, and the next ones continue from there. After
each operation, every remaining point shows the bytes that it was made of, every file that is referred to exists, and no
unreferenced file has remained for longer than readers are given.

A new operation is one more method in DEEDS. It updates the model after its work; `_settle` determines what an operation
that died has done. Must not know: libvirt; what a pull does before and after writing its files.
"""

import os
import random
from contextlib import contextmanager
from unittest import mock

import numpy
from stores import KIB, MIB, Vm, directory_of, scribble, shown, verify_store

from nbdpull.core import errors
from nbdpull.format import layout, manifest, moved
from nbdpull.operations import pin, prune, remove, unpin
from nbdpull.operations.options.points import PinOptions, RemoveOptions
from nbdpull.operations.options.stores import PruneOptions
from nbdpull.repository import grace, half_points, live_frames, pins, removal
from nbdpull.repository.image import Image
from nbdpull.repository.series import Point

HOUR = 3600.0
CHANGES = ("link", "unlink", "rename", "mkdir", "rmdir", "write", "fsync", "open")  # of os; open: if it creates


class Killed(BaseException):
    """The process is dead: nothing catches this, and nothing can be cleaned up."""


class Death:
    """Raises Killed before call number `at` that changes a file, and before every later one; None: never. calls: the
    number of such calls."""

    def __init__(self, at):
        self._at, self.calls = at, 0

    @contextmanager
    def waiting(self):
        with mock.patch.multiple(os, **{name: self._before(name, getattr(os, name)) for name in CHANGES}):
            yield

    def _before(self, name, real):
        def call(*args, **others):
            if name != "open" or args[1] & os.O_CREAT:
                if self._at is not None and self.calls >= self._at:
                    raise Killed
                self.calls += 1
            return None if name == "fsync" else real(*args, **others)  # fsync takes most of the time, and shows nothing

        return call


class Play:
    """A store and its model. points: {id: {disk: (bytes, mask of the bytes in the point)}}; removed: {id: time of
    removal by the play's clock}."""

    def __init__(self, folder, seed, mortality=0.3, keys=None):
        """keys: StoreKeys that the store is sealed with."""
        self.chance, self.mortality = random.Random(seed), mortality
        self.vm = Vm(folder / "store", keys=keys)
        self.vm.add_disk("vda", 2 * MIB + 1234)
        self.vm.add_disk("vdb", 300 * KIB)
        self.points, self.pinned, self.removed = {}, set(), {}
        self.waived = set()  # removed points whose readers need not be waited for
        self.highest = 0  # the highest number that any point ever had
        self.base = None  # the point since which dirty bytes are recorded
        self.readers = []
        self.hours, self.deeds = 0.0, []
        self.deaths = 0

    # -- steps

    def step(self):
        deeds, weights = zip(*DEEDS)
        deed = self.chance.choices(deeds, weights)[0]
        self.deeds.append(deed.__name__)
        small = mock.patch.multiple(live_frames, FILE_COST=10, FRAME_COST=1)  # so that files of some KiB are repacked
        with mock.patch.object(half_points, "seconds_removed", self._seconds_removed), small:
            deed(self)
            self.check()

    def _seconds_removed(self, series, name):
        return (self.hours - self.removed.get(name, self.hours)) * HOUR

    def killable(self, work, at=None):
        """Run an operation, which may die; return whether it was completed."""
        if at is None and self.chance.random() < self.mortality:
            at = int(self.chance.random() ** 2 * 60)
        death = Death(at)
        try:
            with death.waiting():
                work()
            return True
        except Killed:
            self.deaths += 1
            self.deeds.append(f"died at {at}")
            return False
        finally:
            self._settle()

    def _settle(self):
        """Update the model from the store, which may contain all or nothing of an interrupted operation."""
        self.pinned = {point.id for point in self.vm.series.points() if pins.of_point(self.vm.series, point)}
        there = {point.id for point in self.vm.series.points()}
        for point in [*self.points]:
            if point not in there:
                del self.points[point]
                self.removed[point] = self.hours
        assert there == {*self.points}
        self.vm.points = self.vm.series.points()
        self.highest = max([self.highest, *(point.manifest.sequence for point in self.vm.points)])

    # -- what a guest does, and time

    def write(self):
        for name in self.vm.disks:
            scribble(self.vm, name, self.chance, count=self.chance.randrange(4), longest=300 * KIB)

    def wait(self):
        self.hours += self.chance.choice([1, 6, 12, 25])

    # -- what nbdpull does

    def pull(self):
        self.write()
        held = {name: (disk.content.tobytes(), None) for name, disk in self.vm.disks.items()}
        self._pull("last" if self.base in self.points else "nothing, alike", held)

    def pull_partial(self):
        dirty = {name: disk.dirty.copy() for name, disk in self.vm.disks.items()}
        held = {name: (disk.content.tobytes(), dirty[name]) for name, disk in self.vm.disks.items()}
        self._pull("elsewhere", held)
        for name, mask in dirty.items():
            self.vm.disks[name].dirty[:] = mask

    def _pull(self, since, held):
        whole = [point for point in self.vm.series.points() if not point.manifest.partial]
        by_id = {point.id: point for point in whole}
        point_id = layout.new_point_id()
        how = {"frame_size": self.chance.choice([64 * KIB, MIB]), "chunk_size": self.chance.choice([100 * KIB, MIB]),
               "dedupe": self.chance.random() < 0.7}  # fmt: skip
        if since == "last":
            self.vm.points = [by_id[self.base]]
        elif not whole and since != "elsewhere":
            since = "nothing"
        else:
            self.vm.points = whole

        def work():
            for name in half_points.names(self.vm.series):  # as a pull does first
                if not removal.why_stays(self.vm.series, name):
                    half_points.remove(self.vm.series, name)
            number = half_points.next_sequence(self.vm.series, *self.vm.series.heads())
            assert number > self.highest, "a number is used again"
            self.vm.pull(since, point_id, sequence=number, **how)

        self.points[point_id] = held  # unless the point does not exist, see _settle
        done = self.killable(work)
        if point_id not in self.points:
            del self.removed[point_id]  # it never existed
        elif since != "elsewhere":
            self.base = point_id
        if done:
            assert point_id in self.points and not half_points.names(self.vm.series)

    def remove(self):
        now = self.chance.random() < 0.3
        chosen = [point for point in self.points if point not in self.pinned and self.chance.random() < 0.4]
        if chosen:
            options = RemoveOptions(str(self.vm.root), chosen, now=now)
            self._sweeping(lambda: remove.remove(options), now)

    def remove_pinned(self):
        for point in self.pinned:
            try:
                remove.remove(RemoveOptions(str(self.vm.root), [point], now=True))
            except errors.UsageError:
                continue
            raise AssertionError("a pinned point was removed")

    def prune(self):
        if not self.vm.folder.exists():
            return
        now = self.chance.random() < 0.3
        rules = self.chance.choice([{"keep_last": 1}, {"keep_last": 3}, {"keep_daily": 2}])
        how = {"repack_below": self.chance.choice([0, 0.5, 0.9]), "repack_limit": self.chance.choice([None, MIB])}
        options = PruneOptions(str(self.vm.root), **rules, **how, force=True, now=now)
        newest = self.vm.points[-1:]
        self._sweeping(lambda: prune.prune(options), now)
        assert all(point.id in self.points for point in newest), "the newest point was pruned"

    def _sweeping(self, work, now):
        pinned = {*self.pinned}
        if now:
            self.readers.clear()  # they are not waited for
        done = self.killable(work)
        self.waived |= {*self.removed} if now else set()
        assert pinned <= self.pinned, "a pinned point was removed"
        if done:
            self._require_swept(0 if now else grace.GRACE)

    def pin(self):
        if self.points:
            point = self.chance.choice([*self.points])
            done = self.killable(lambda: pin.pin(PinOptions(str(self.vm.root), point)))
            assert point in self.pinned or not done

    def unpin(self):
        if self.pinned:
            point = min(self.pinned)
            self.killable(lambda: unpin.unpin(PinOptions(str(self.vm.root), point)))

    def verify(self):
        if self.points:
            self.killable(lambda: self._require_sound(verify_store(self.vm.root, keep=True)))

    @staticmethod
    def _require_sound(found):
        assert not found.is_bad

    # -- readers

    def begin_to_read(self):
        if self.points:
            point = self.vm.series.point(self.chance.choice([*self.points]))
            image = Image(self.vm.series, point, "vda", partial=True)
            self.readers.append((image, self.points[point.id]["vda"], self.hours))

    def end_reading(self):
        """Finish one reader. If it is within its time, it must find all bytes."""
        if self.readers:
            image, held, since = self.readers.pop(0)
            if self.hours - since < grace.GRACE / HOUR:
                require_shown(shown(image), held)

    # -- what must hold

    def check(self):
        """Check every point, whatever was done and has died, and those that were removed a short time ago."""
        for point in self.vm.points:
            for name, held in self.points[point.id].items():
                with Image(self.vm.series, point, name, partial=True) as image:
                    require_shown(shown(image), held)
        late = [name for name in self._late(grace.GRACE) if name not in self.waived]
        needed = self._needed([*self.vm.points, *map(self._removed_point, late)])
        missing = [path for path in sorted(needed) if not self._holds(path)]
        assert not missing, f"referred to and gone: {missing}"

    def _holds(self, path):
        """Return whether a file exists, or was moved."""
        return (self.vm.folder / path).exists() or (self.vm.folder / moved.path_of(path)).exists()

    def _late(self, grace):
        """Return the ids of points removed so recently that they may still be read, or restored to the store."""
        removed = half_points.removed(self.vm.series)
        return [name for name in removed if self._seconds_removed(None, name) < grace]

    def _needed(self, points):
        """Return the paths of all files that these points refer to."""
        named = [entry for point in points for entry in point.manifest.all_files()]
        directories = [directory_of(self.vm, point, name) for point in points for name in point.disks]
        return {entry.path for entry in [*named, *(each for found in directories for each in found.files)]}

    def _moved(self, points):
        """Return the paths of the tables of moved frames for the files of these points, and of the files that these
        tables name."""
        found = set()
        for directory in [directory_of(self.vm, point, name) for point in points for name in point.disks]:
            for entry in directory.files:
                table = moved.read(self.vm.store, self.vm.series.folder, entry)
                found |= {moved.path_of(entry.path), *(each.path for each in table.files)} if table else set()
        return found

    def _require_swept(self, grace):
        """Require that a completed sweep left of removed points only what existing or recently removed points need, and
        all of that."""
        late = self._late(grace)
        points = [*self.vm.points, *filter(self._is_readable, map(self._removed_point, late))]
        needed = self._needed(points) | self._moved(points)
        for name in {*half_points.removed(self.vm.series), *half_points.repacked(self.vm.series)} - {*late}:
            files = {f"{name}/{file}" for file in os.listdir(self.vm.folder / name)}
            files -= {f"{name}/{half_points.REMOVED}", f"{name}/{layout.REPACKED}"}
            assert files or self._tells_highest(name), f"nothing is needed of {name}, and its folder is there"
            assert files <= needed, f"nothing refers to {sorted(files - needed)}"

    def _tells_highest(self, name):
        """Return whether only this removed point records the highest number that any point had."""
        numbers = [point.manifest.sequence for point in self.vm.series.points()]
        return self._removed_point(name).manifest.sequence == self.highest > max(numbers, default=0)

    def _removed_point(self, name):
        data = (self.vm.folder / name / half_points.REMOVED).read_bytes()
        return Point(manifest.decode(data, name, self.vm.store.seal), "")

    def _is_readable(self, point):
        """Return whether the directories of a removed point still exist: its files may have been removed at once, at
        least in part."""
        return all((self.vm.folder / disk.directory.path).exists() for disk in point.manifest.disks)

    def end(self):
        """Remove all points, and require that nothing remains but the record of the highest number."""
        for point in self.pinned:
            unpin.unpin(PinOptions(str(self.vm.root), point))
        self.readers.clear()
        for name in half_points.names(self.vm.series):
            half_points.remove(self.vm.series, name)
        if self.points:
            remove.remove(RemoveOptions(str(self.vm.root), [*self.points], now=True))
        else:
            removal.sweep(self.vm.series, 0)
        assert all(map(self._tells_highest, self.vm.store.folders(self.vm.series.folder)))


def require_shown(found, held):
    """Require that an image shows these bytes. found: from `shown`; held: (bytes, mask of those in the point, None:
    all)."""
    content, known = found
    expected, mask = numpy.frombuffer(held[0], "u1"), held[1]
    if mask is None:
        assert (content == expected).all()
    else:
        assert (known == mask).all() and (content[mask] == expected[mask]).all()


DEEDS = [(Play.write, 2), (Play.wait, 3), (Play.pull, 6), (Play.pull_partial, 1), (Play.remove, 3), (Play.prune, 2),
         (Play.remove_pinned, 1), (Play.pin, 1), (Play.unpin, 1), (Play.verify, 1), (Play.begin_to_read, 3),
         (Play.end_reading, 3)]  # fmt: skip
