"""A VM, a store, and faults in between: runs the real command line, holds it at a phase, and reports what it leaves.

Must not know: the inside of the package. (held.py, which runs in the other process, does.)
"""

import json
import os
import shutil
from pathlib import Path

import command
from command import HELD, nbdpull, start_nbdpull


class Rig:
    """One VM that is pulled into one store. `pull` makes a good pull; `start` starts one that a fault will hit."""

    def __init__(self, vm, folder, scratch=None):
        self.vm, self.folder = vm, Path(folder)
        self.store, self.out = self.folder / "store", self.folder / "out"
        self.scratch = Path(scratch or self.folder / "scratch")
        self.scratch.mkdir(parents=True, exist_ok=True)

    def words(self, *options):
        return [
            "pull",
            "-o",
            str(self.store),
            "--json",
            "-c",
            self.vm.bed.uri,
            "--scratch-dir",
            str(self.scratch),
            *map(str, options),
            "--",
            self.vm.name,
        ]

    def run(self, *words, timeout=100):
        return nbdpull(*words, timeout=timeout, env=environment())

    def pull(self, *options):
        """Pull, which has to succeed; return the result."""
        done = self.run(*self.words(*options))
        assert done.returncode == 0, done.stdout + done.stderr
        return result(done.stdout)

    def start(self, *options, phase=None, words=None, reached=True, child=False):
        """Start a pull, or another command line, in the background, held when it reaches the phase, until `release`. It
        is an error if it ends before that. child: start it as a child of this process, which can leave it a zombie."""
        self.gate = self.folder / "gate"
        self.gate.unlink(missing_ok=True)
        program = [HELD, phase, self.gate] if phase else ["-m", "nbdpull"]
        words = words or self.words(*options)
        self.process = start_nbdpull(*words, program=program, child=child, env=environment())
        if phase and reached:
            self.wait_event("held")
        return self.process

    def wait_event(self, name):
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"no event {name}: {self.process.stderr.read()}")

    def release(self):
        self.gate.touch()

    def end(self, timeout=60):
        """Release what was started, and wait for its end; return (exit code, its result object or None)."""
        self.release()
        out, err = self.process.communicate(timeout=timeout)
        last = result(out) if out.strip() else None
        return self.process.returncode, last if last and last["event"] == "result" else None, err

    def cleanup(self, *options):
        done = self.run("cleanup", self.vm.name, "-o", self.store, "-c", self.vm.bed.uri, "--json", *options)
        return done.returncode, result(done.stdout)

    # Witnesses

    def points(self):
        """Return [{"id", "checkpoint"}, …] of the committed points, oldest first, read from the files themselves."""
        found = [json.loads(path.read_text()) for path in self.store.glob("*/*/manifest.json")]
        return [
            {"id": each["point"], "checkpoint": (each["checkpoint"] or {}).get("name")}
            for each in sorted(found, key=lambda each: each["sequence"])
        ]

    def assert_clean(self, checkpoints=None):
        """Require that there is no job, file, checkpoint or directory except those of committed points, and the guest
        is as before."""
        points = self.points()
        self.assert_domain_clean([p["checkpoint"] for p in points][-1:] if checkpoints is None else checkpoints)
        folders = {path.name for path in self.store.glob("*/*") if path.is_dir()}
        assert folders == {point["id"] for point in points}
        assert not list(self.store.glob("*/*/run.json")) and self.journals() == []

    def journals(self):
        """Return the paths of the journals of the VM's runs on this machine."""
        return sorted(Path(os.environ["NBDPULL_STATE_DIR"], self.vm.uuid).glob("*"))

    def assert_domain_clean(self, checkpoints):
        """Require the same of everything outside the store."""
        assert not self.vm.job_active()
        assert os.listdir(self.scratch) == []
        assert self.vm.checkpoints() == checkpoints
        for disk in self.vm.disks:
            assert set(self.vm.bitmaps(disk)) <= set(checkpoints)

    def assert_next_is_right(self, *options, others=()):
        """Require that the next pull succeeds, everything verifies, and the point restores to exactly the live disks.
        others: checkpoints that exist beside that of the newest point."""
        held = self.contents()
        made = self.pull(*options)
        self.assert_restores(held)
        self.assert_clean([*others, made["details"]["checkpoint"]])
        return made

    def contents(self):
        """Return {disk: its current bytes}."""
        return {disk: self.vm.content(disk) for disk in self.vm.disks}

    def assert_restores(self, held, point="latest"):
        """Require that everything verifies, and that the point restores to exactly what its disks held."""
        done = self.run("verify", self.store)
        assert done.returncode == 0, done.stdout + done.stderr
        shutil.rmtree(self.out, ignore_errors=True)
        done = self.run("restore", self.store, "-o", self.out, "--format", "raw", "--point", point)
        assert done.returncode == 0, done.stderr
        for disk, content in held.items():
            assert (self.out / f"{disk}.raw").read_bytes() == content, f"{disk} differs"


def environment():
    return {**command.environment(), "NBDPULL_DEBUG": "1"}


def result(text):
    return json.loads(text.splitlines()[-1])
