"""Hostile stores without end: generated, sealed again, and given to every reader.

    scripts/fuzz [--seed N] [--minutes M] [--case N]

Each reader must end with a documented exit code and a printable line for each error, within bounds of memory and time.
It must write only where a verb may, and start no program. No verdict may be too good: a store without damage
restores, and all readers return the same bytes. A seed reproduces everything that is generated; a case is one store of
it.
"""

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT / "tests"), str(PROJECT)]
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from forgery import Forgery, sound_store  # noqa: E402

from nbdpull.cli import main as cli  # noqa: E402
from nbdpull.core import errors  # noqa: E402
from nbdpull.definitions import drill_xml, host_reach  # noqa: E402
from nbdpull.format import layout, stack  # noqa: E402
from nbdpull.operations import drill  # noqa: E402
from nbdpull.pulling import base  # noqa: E402
from nbdpull.repository import half_points, image, known_frames, lookup, marker, series_choice  # noqa: E402

MIB = 1 << 20
MEMORY = 1 << 30  # bytes that a case may take
SECONDS, WALL = 60, 300  # of CPU time, and in all
SHOWN = 5000  # characters of a line: a name may have 4096
WRITTEN = 1 << 28  # bytes by all restores of a case
COMPARED = 8 * MIB  # of a disk up to which readers are compared
CODES = {0, 1} | {each.exit_code for each in vars(errors).values() if isinstance(each, type)}
OFFER = host_reach.Offer(frozenset({"/usr/bin/qemu-system-x86_64"}), frozenset({"/usr/share/OVMF"}))


class Wrong(Exception):
    """A reader broke a promise."""


# What is run


class Readers:
    """All readers of a store, run on one of them. Raises Wrong if a promise is broken."""

    def __init__(self, place, rng):
        self.store, self.place, self.rng = str(place / "store"), place, rng
        self.outputs = 0
        self.last = None  # where the last restore to raw images went

    def run(self):
        self.verb("list")
        self.verb("status")
        found = []
        with suppress(ValueError):
            found = json.loads(self.verb("list", "--json")[1])
        depth = self.rng.choice([[], ["--quick"], ["--json"]])
        sound = self.verb("verify", "--no-record", *depth)[0] == 0 and depth != ["--quick"]
        for point in found:
            self.point(point["domain"], point["id"], [disk["name"] for disk in point["disks"]], sound)
        self.verb("restore", "--domain", "vm1", "-o", self.out(), *self.rng.choice([[], ["--salvage"]]))
        self.verb("digest", "--no-record", "--domain", "vm1")
        if self.rng.random() < 0.3:  # which keep a finding
            self.verb("verify", *self.rng.choice([["--sample", "50%"], ["--shard", "1/2"], []]))
            self.verb("list")
        self.what_a_pull_reads()
        if self.rng.random() < 0.1:
            self.minimal()

    def out(self):
        self.outputs += 1
        return str(self.place / "out" / str(self.outputs))

    def verb(self, verb, *words):
        """Return (exit code, standard output, standard error) of a command line in this process; raise if it fails by a
        bug."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = cli.main([verb, self.store, *words])
            except SystemExit as error:
                raise Wrong(f"{verb} {words}: {err.getvalue()}") from error
        self.judge([verb, *words], code, out.getvalue(), err.getvalue())
        return code, out.getvalue(), err.getvalue()

    def judge(self, words, code, out, err):
        if code not in CODES or "internal error" in err or "not enough memory" in err:
            raise Wrong(f"{words}: exit code {code}: {err[-500:]}")
        for line in [*err.split("\n"), *([] if "--json" in words or words[0] == "index" else out.split("\n"))]:
            if not line.isprintable() or len(line) > SHOWN:
                raise Wrong(f"{words} prints {line[:300]!r} ({len(line)} characters)")
        if code == 0 and words[0] in ("verify", "restore") and ("DAMAGE" in out or "LOST" in out):
            raise Wrong(f"{words}: damage, and exit code 0")
        if code and not (err or out):
            raise Wrong(f"{words}: exit code {code} without a word")

    def point(self, domain, point, disks, sound):
        of = ["--domain", domain, "--point", point]
        self.verb("show", point, "--domain", domain, *self.rng.choice([[], ["--json"]]))
        how = self.rng.choice([[], ["--no-verify"], ["--name", "copy", "--new-uuid"], ["--delta"], ["--onto"]])
        if how == ["--onto"] or domain == "vm3":
            return self.onto(of, disks)
        kind = self.rng.choice(["raw", "raw", "qcow2"])
        target, kind = (self.last, "raw") if how == ["--delta"] and self.last else (self.out(), kind)
        code, _, err = self.verb("restore", *of, "-o", target, "--format", kind, *how)
        if sound and not how and code not in (0, errors.OutputError.exit_code) and "has no parent here" not in err:
            raise Wrong(f"verify found no damage, and a restore of {point}: {err}")
        if code == 0 and kind == "raw":
            self.last = target
            for disk in disks:
                self.compare(domain, point, disk, Path(target) / f"{layout.encoded(disk)}.raw")
        for disk in disks[:2]:
            self.verb("index", point, disk, "--domain", domain, *self.rng.choice([[], ["--rebuild"]]))
        return None

    def onto(self, of, disks):
        image = self.place / "out" / f"base{self.outputs}"
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(bytes(MIB // 4))
        self.verb("restore", *of, "--format", "raw", "--onto", f"{disks[0] if disks else 'vda'}={image}")

    def compare(self, domain, point, disk, image):
        """Require that two readers return the same content; a target that existed before may be larger."""
        if image.stat().st_size <= COMPARED:
            held = self.ours(lambda: self.content(domain, point, disk))
            if held is not None and held != image.read_bytes()[: len(held)]:
                raise Wrong(f"{disk} at {point}: a restore and random access differ")

    def content(self, domain, point, disk):
        target = series_choice.only_series(marker.open_store(self.store), domain)
        with lookup.RandomImage(target, target.point(point), disk) as whole:
            return whole.read(0, whole.size)

    def ours(self, call):
        """Return what a function of the package returns; None if it refuses with one of our errors, as it should."""
        try:
            return call()
        except errors.NbdpullError as error:
            return self.judge(["a function"], error.exit_code, "", ascii(str(error))[:SHOWN])

    def what_a_pull_reads(self):
        """Read what a pull reads of earlier points and of dead runs; and make of a definition what a drill makes."""
        opened = self.ours(lambda: marker.open_store(self.store))
        for target in (opened and self.ours(lambda: series_choice.all_series(opened))) or []:
            for point in target.load()[0][-2:]:
                for call in (_drilled, base.stored_checkpoint, _known):
                    self.ours(lambda: call(target, point))  # noqa: B023
            for point_id in self.ours(lambda: half_points.names(target)) or []:  # noqa: B023
                announced = self.ours(lambda: half_points.announced(target, point_id))  # noqa: B023
                if announced:
                    self.ours(lambda: half_points.is_copy(target, announced))  # noqa: B023

    def minimal(self):
        """Run scripts/nbdpull-restore-min: it refuses, or returns our bytes."""
        disk, theirs, ours = self.rng.choice(["vda", "vdb"]), self.place / "out" / "minimal", self.out()
        theirs.parent.mkdir(exist_ok=True)
        command = [sys.executable, PROJECT / "scripts/nbdpull-restore-min", self.store, "vm1", "latest", disk, theirs]
        with _starting():
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=WALL / 2)
        if done.returncode not in (0, 1) or not done.stderr.rstrip("\n").isprintable():
            raise Wrong(f"nbdpull-restore-min: exit code {done.returncode}: {done.stderr[-800:]}")
        code, _, _ = self.verb("restore", "--domain", "vm1", "-o", ours, "--format", "raw", "--disk", disk)
        both = done.returncode == code == 0 and theirs.stat().st_size <= COMPARED
        if both and theirs.read_bytes() != Path(ours, f"{disk}.raw").read_bytes():
            raise Wrong(f"nbdpull-restore-min and restore differ in {disk}")


class _Disk:
    """A disk as a domain describes it."""

    def __init__(self, target):
        self.target, self.size = target, MIB


def _drilled(target, point):
    xml, _ = drill._definition(target, point)
    images = {disk.name: f"/d/{layout.encoded(disk.name)}" for disk in point.manifest.disks}
    drill_xml.has_display(xml)
    drill_xml.adapted(xml, "n", "u", images, "/d/console", {"nvram": "/d/nvram"}, OFFER)


def _known(target, point):
    for disk in point.manifest.disks:
        directory = target.directory(point, disk.name, partial=True)
        for window in directory.windows():
            known_frames.KnownFrames(directory).find(stack.data_of(window.flat()))
        held = image.DataRanges(directory)
        for start in range(0, min(directory.size, COMPARED), MIB):
            held(start, min(start + MIB, directory.size))


# What is looked at


def case(place, sound, seed, number, only=None):
    """Make one store and read it; raise Wrong if a promise is broken. only: the kind of change to make."""
    rng = random.Random(f"{seed}/{number}")
    forged = Forgery(sound.files)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        forged.change(rng, only)
    if rng.random() < 0.95:
        forged.make_right(rng)
    for name in ("store", "outside", "out"):
        (place / name).mkdir()
    (place / "outside" / "file").write_text("precious")
    forged.write(place / "store", place / "outside")
    before = _snapshot(place / "store"), _snapshot(place / "outside")
    Readers(place, rng).run()
    _require_unchanged(place, *before)


def _require_unchanged(place, store_before, outside_before):
    if _snapshot(place / "outside") != outside_before or len(os.listdir(place)) != 3:
        raise Wrong("something was written outside")
    now = _snapshot(place / "store")
    for path in {*store_before, *now}:  # a verification keeps a finding, and a lost index or directory is made again
        made = path not in store_before and path.endswith((".verify.json", ".index", ".directory"))
        if store_before.get(path) != now.get(path) and not made:
            raise Wrong(f"{path} of the store was changed")
    restored = [path.lstat() for path in (place / "out").rglob("*")]
    if not all(stat.S_ISREG(each.st_mode) or stat.S_ISDIR(each.st_mode) for each in restored):
        raise Wrong("a restore made what is neither file nor folder")
    if sum(each.st_blocks << 9 for each in restored) > WRITTEN:
        raise Wrong("restores wrote too much")


def _snapshot(root):
    """Return kind, size, time, and link target of everything below a directory."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            written = status.st_mtime_ns if not stat.S_ISDIR(status.st_mode) else 0  # findings come into folders
            link = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
            found[os.path.relpath(path, root)] = (status.st_mode, status.st_size, written, link)
    return found


_STARTS = {"subprocess.Popen", "os.exec", "os.system", "os.posix_spawn", "os.fork", "os.forkpty"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_allowed = []  # while the fuzz itself starts something


@contextmanager
def _starting():
    _allowed.append(True)
    try:
        yield
    finally:
        _allowed.pop()


def _watch(place):
    """Forbid starting programs, and opening files for writing outside of that place."""

    def look(event, arguments):
        if event in _STARTS and not _allowed:
            raise Wrong(f"a reader starts something: {event} {arguments}")
        if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & _WRITES and not _allowed:
            path = os.path.abspath(arguments[0])  # a mere name is one within an open folder of the store
            if arguments[0].startswith("/") and not path.startswith((f"{place}/", os.devnull)):
                raise Wrong(f"a reader opens {path} for writing")

    sys.addaudithook(look)


# How it is run


def _in_a_child(sound, seed, number, only):
    """Run one case in a process of its own; return what is wrong as text, "" if nothing is."""
    place = Path(tempfile.mkdtemp(prefix="nbdpull-fuzz-"))
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        text = ""
        try:
            _bound()
            _watch(place)
            case(place, sound, seed, number, only)
            if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) > MEMORY:
                text = f"it took {peak >> 20} MiB"
        except BaseException:
            text = traceback.format_exc()
        finally:
            os.write(writing, text[-50000:].encode("utf-8", "replace"))
            os._exit(0)
    os.close(writing)
    try:
        return _awaited(child, reading)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _bound():
    """Limit memory and time of this process."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limit = now + MEMORY + (64 * 8 * MIB)  # and the stacks of threads
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    signal.signal(signal.SIGXCPU, _tell_where)
    os.environ["NBDPULL_DEBUG"] = "1"  # a fault of ours is raised


def _tell_where(_number, frame):
    raise Wrong(f"it takes more than {SECONDS} s of CPU time: " + "".join(traceback.format_stack(frame)[-6:]))


def _awaited(child, done):
    """Return what a child writes until it ends, and how it ended, if not by itself."""
    deadline, text = time.monotonic() + WALL, b""
    with os.fdopen(done, "rb") as pipe:
        os.set_blocking(done, False)
        while time.monotonic() < deadline:
            text += pipe.read() or b""
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                text += pipe.read() or b""
                return text.decode() + ("" if os.WIFEXITED(status) else f"\nkilled by signal {os.WTERMSIG(status)}")
            time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"it hangs: no end within {WALL} s"


def campaign(seed, seconds=None, count=None, enough=None, log=print, only=None):
    """Run cases until the time is up, or a number of them was run or was wrong; return {number: what is wrong}."""
    sound, wrong, number = _sound(seed), {}, 0
    deadline = time.monotonic() + seconds if seconds is not None else float("inf")
    while time.monotonic() < deadline and number != count and (enough is None or len(wrong) < enough):
        if text := _in_a_child(sound, seed, number, only):
            wrong[number] = text
            log(f"seed {seed} case {number}:\n{text}")
        number += 1
    log(f"seed {seed}: {number} stores, {len(wrong)} wrong")
    return wrong


def _sound(seed):
    """Return a Forgery in which nothing is forged, with a finding of each kind."""
    with tempfile.TemporaryDirectory(prefix="nbdpull-fuzz-") as folder, redirect_stdout(io.StringIO()):
        vm = sound_store(Path(folder), seed)
        assert cli.main(["verify", folder]) == cli.main(["digest", folder, "--domain", "vm1", "--point", "all"]) == 0
        about = {"point": vm.points[-1].id, "manifest_sha256": vm.points[-1].sha256, "verdict": "ok", "seconds": 1.5}
        drilled = {"kind": "drill", "when": "2026-11-22T19:45:00.000+00:00", "who": "me", "points": [about]}
        sealed = layout.seal({"format": layout.FORMAT, "requires": [], **drilled})
        vm.store.publish("vm1/20261122T194500Z-7f3a9c04.drill.json", sealed)
        sound = Forgery.of(folder)
    return Forgery({_steady(path): data for path, data in sound.files.items()})


def _steady(path):
    """Give findings, whose names contain time and chance, names that a seed reproduces."""
    kind = path.rpartition(".json")[0].rpartition(".")[2]
    name = f"20261122T194500Z-{kind.encode().hex()[:8]}.{kind}.json"
    return f"{path.partition('/')[0]}/{name}" if kind in ("verify", "digest") else path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--case", type=int, help="only this store of the seed, and without bounds")
    args = parser.parse_args()
    if args.case is not None:
        os.environ["NBDPULL_DEBUG"] = "1"
        with tempfile.TemporaryDirectory(prefix="nbdpull-fuzz-") as folder:
            case(Path(folder), _sound(args.seed), args.seed, args.case)
        return 0
    print(f"seed {args.seed}", flush=True)
    return 1 if campaign(args.seed, 60 * args.minutes, log=lambda text: print(text, flush=True)) else 0


if __name__ == "__main__":
    sys.exit(main())
