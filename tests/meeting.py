"""Several processes at once in one bucket, which pull, prune, repack, and copy points back, and what goes wrong.

Each may pause or die at any request that changes something. The rules of a bucket count in hours (repository/grace.py);
here an hour lasts some seconds, so that weeks pass in minutes. On a machine so busy that a process waits longer than
the two hours of the margin, the result proves nothing.
"""

import collections
import contextlib
import json
import multiprocessing
import os
import random
import time

import numpy
import stores
from copies import take
from stores import KIB

from nbdpull.core import errors
from nbdpull.format import layout
from nbdpull.repository import grace, half_points, live_frames, lookup, references, removal, repack
from nbdpull.storage.s3_client import Bucket

SIZE, KEPT = 600 * KIB, 6
DIED = 9
MADE = ("pulled", "brought back")  # events


class Meeting:
    """A bucket and the processes that use it. url: of the store; folder: a directory for the notes of the processes;
    hour: the seconds that an hour lasts here."""

    def __init__(self, url, folder, hour):
        self.url, self.folder, self.hour = url, folder, hour
        self._may_pause = False

    # -- notes

    def note(self, event, **what):
        with open(self.folder / "events", "a") as file:
            file.write(json.dumps({"event": event, **what}) + "\n")

    def events(self):
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.folder / "events").read_text().splitlines()]
        return []

    # -- the roles, each of which is repeated

    def pull(self, rng):
        vm = stores.Vm(self.url)
        for name in half_points.names(vm.series):
            if not half_points.why_in_use(vm.series, name, half_points.announced(vm.series, name)):
                half_points.give_to_sweep(vm.series, name)
        heads, refused = vm.series.heads()
        sequence, points = half_points.next_sequence(vm.series, heads, refused), vm.series.points()
        base = points[-1] if points and rng.random() < 0.9 else None
        vm.add_disk("vda", SIZE)
        if base:
            disk = vm.disks["vda"]
            disk.content[:], disk.kind[:] = numpy.load(self.folder / f"{base.id}.npy"), stores.extents.DATA
            disk.dirty[:], vm.points = False, [base]
        stores.scribble(vm, "vda", rng, count=25, longest=40 * KIB)
        name = layout.new_point_id()
        numpy.save(self.folder / f"{name}.npy", vm.disks["vda"].content)
        vm.pull(
            "last" if base else "nothing", point_id=name, sequence=sequence, chunk_size=20 * KIB, frame_size=4 * KIB
        )
        self.note("pulled", point=name)

    def prune(self, rng):
        series = stores.Vm(self.url).series
        points = series.points()
        for point in points[: -KEPT if rng.random() < 0.9 else -1]:
            self.note("removes", point=point.id)
            removal.remove(series, point)
        swept = removal.sweep(series, emptied=lambda: repack.emptied(series))
        found = repack.repack(series, repack.Wanted(0.7))
        self.note("pruned", freed=swept.freed, moved=found.moved)

    def copy(self, rng):
        """Mirror all points, and copy some back that were removed."""
        vm, mirror = stores.Vm(self.url), stores.Vm(self.folder / "mirror")
        known = {point.id for point in mirror.series.points()}
        self._may_pause = False
        take(vm, mirror, *[point for point in vm.series.points() if point.id not in known])
        self._may_pause = True
        gone = [point for point in mirror.series.points() if not vm.series.has_point(point.id)]
        for point in rng.sample(gone, min(3, len(gone))):
            take(mirror, vm, point)
            self.note("brought back", point=point.id)

    def _work(self, role, seed):
        """Repeat a role until the end, and die now and then."""
        rng = random.Random(seed)
        for name in ("GRACE", "MARGIN", "COUNTED_ON", "MARKED"):
            setattr(grace, name, getattr(grace, name) / 3600 * self.hour)
        live_frames.FILE_COST, live_frames.FRAME_COST = 10, 1
        for name in ("put", "delete"):
            setattr(Bucket, name, self._pausing(getattr(Bucket, name), rng))
        while not (self.folder / "end").exists():
            self._may_pause = True
            try:
                getattr(self, role)(rng)
            except errors.NbdpullError as error:
                self.note("refused", role=role, why=str(error))
            self._may_pause = False
            time.sleep(rng.uniform(0, 2))

    def _pausing(self, real, rng):
        def call(*args, **others):
            chance = rng.random() if self._may_pause else 1
            if chance < 0.003:
                self.note("dies")
                os._exit(DIED)
            elif chance < 0.012:
                self.note("stands")
                time.sleep(rng.uniform(5, 35) * self.hour)
            elif chance < 0.3:
                time.sleep(rng.uniform(0, 0.3))
            return real(*args, **others)

        return call

    # -- flaws

    def made(self):
        """Return the ids of points whose makers reported success: a maker that dies earlier has not checked for
        concurrent writers."""
        return {each["point"] for each in self.events() if each["event"] in MADE}

    def flaws(self):
        """Return the flaws of points that were made and still exist."""
        series, made = stores.Vm(self.url).series, self.made()
        found = {point.id: self._flaws(series, point) for point in series.points() if point.id in made}
        return [flaw for name, flaws in found.items() if flaws and series.has_point(name) for flaw in flaws]

    def _flaws(self, series, point):
        try:
            flaws = [*filter(None, map(series.size_flaw, references.of_point(series, point)))]
            with lookup.RandomImage(series, point, "vda") as image:
                is_right = image.read(0, image.size) == numpy.load(self.folder / f"{point.id}.npy").tobytes()
        except errors.NbdpullError as error:
            return [str(error)]
        return flaws if is_right else [*flaws, f"{point.id} shows other bytes"]

    def lost(self):
        """Return, at the end, points that were made and not removed but are missing, and numbers that two points
        share."""
        points, made = stores.Vm(self.url).series.points(), self.made()
        removed = {each["point"] for each in self.events() if each["event"] == "removes"}
        numbers = collections.Counter(point.manifest.sequence for point in points if point.id in made)
        missing = made - removed - {point.id for point in points}
        return [*missing, *(number for number, count in numbers.items() if count > 1)]

    def meet(self, seconds, roles):
        """Run the roles for that many seconds; return everything that went wrong."""
        stores.Vm(self.url)
        context, seeds, found = multiprocessing.get_context("fork"), iter(range(1 << 30)), []

        def begun(role):
            new = context.Process(target=self._work, args=(role, next(seeds)))
            new.start()
            return new

        working, end = [(role, begun(role)) for role in roles], time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                time.sleep(min(4, seconds / 2))
                working = [(role, each if each.is_alive() else begun(role)) for role, each in working]
                found += self.flaws()
        finally:
            (self.folder / "end").touch()
            for _, each in working:
                each.join(10)  # a process that pauses for longer is killed
                each.kill()
                each.join()
        return [*found, *self.flaws(), *self.lost()]
