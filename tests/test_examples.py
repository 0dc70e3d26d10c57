"""The programs in examples/ do what docs/vendors.md says of them, killed at any instant, too."""

import os
import random
import signal
import subprocess
import sys

import pytest
from bed.machine import MIB
from command import PROJECT, environment
from documents import blocks

import nbdpull

pytest.importorskip("libvirt")

RAW_DELTAS = PROJECT / "examples/raw_deltas.py"


class Vendor:
    """A machine, and the example's backups of it."""

    def __init__(self, vm, folder):
        self.vm, self.deltas, self.folder = vm, folder / "deltas", folder

    def start(self):
        words = [sys.executable, RAW_DELTAS, self.vm.name, self.deltas, self.vm.bed.uri]
        return subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def backup(self):
        """What it printed, of one that has to be right."""
        frozen = self.frozen()
        output, errors = self.start().communicate(timeout=60)
        assert output, errors
        self.assert_holds(frozen)
        return output

    def frozen(self):
        return {disk: self.vm.content(disk) for disk in self.vm.disks}

    def assert_holds(self, frozen):
        for disk, content in frozen.items():
            image = self.folder / "image"
            subprocess.run(
                [sys.executable, RAW_DELTAS, "--assemble", self.deltas, disk, image], env=environment(), check=True
            )
            assert image.read_bytes() == content, disk
        assert not self.vm.job_active() and len(self.vm.checkpoints()) == 1

    def done(self):
        return len(list(self.deltas.glob("[0-9]*")))


@pytest.fixture
def vendor(machine, tmp_path):
    return Vendor(machine({"vda": 8 * MIB, "vdb": MIB}), tmp_path)


def test_the_document(machine, tmp_path):
    """The commands of docs/vendors.md as they stand there, and its program that reads by itself."""
    text = (PROJECT / "docs/vendors.md").read_text()
    vm = machine({"vda": MIB}, name="vm1")
    vm.write("vda", 0, MIB // 2, 0x21)
    (tmp_path / "examples").symlink_to(PROJECT / "examples")
    env = {**environment(), "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    for command in "".join(blocks(text, "sh")).splitlines():
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=env)
    assert (tmp_path / "vda.raw").read_bytes() == vm.content("vda")
    sketch, program = blocks(text, "python")
    compile(sketch, "vendors.md", "exec")
    kept = []
    exec(program, {"nbdpull": nbdpull, "token": None, "buffer": bytearray(512), "keep": kept.append})
    assert nbdpull.Token.loads(kept[0]).checkpoint.name in vm.checkpoints() and not vm.job_active()


def change(vm, chance):
    for _ in range(4):
        vm.write_bytes("vda", chance.randrange(7) * MIB, chance.randbytes(chance.randrange(1, 128) * 512))
    vm.write_zeroes("vda", chance.randrange(7) * MIB, 128 << 10)


def test_raw_deltas(vendor):
    chance = random.Random(1)
    for number in range(5):
        change(vendor.vm, chance)
        told = vendor.backup()
        assert told.startswith("vda: full (requested)" if number == 0 else "vda: incremental (checkpoint)")


@pytest.mark.timeout_seconds(1200)
def test_raw_deltas_killed(vendor):
    """At random instants; what is assembled is then the disks as of the last backup that counts. NBDPULL_KILLS: how
    often."""
    chance = random.Random(2)
    vendor.backup()
    counted = 0
    for _ in range(int(os.environ.get("NBDPULL_KILLS", "4"))):
        change(vendor.vm, chance)
        before, process = vendor.done(), vendor.start()
        try:
            process.wait(chance.uniform(0.1, 0.9))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        counted += vendor.done() - before
        vendor.backup()
    print(f"{counted} of them counted all the same")
