"""Boots of the Linux guest from one disk, until its agent answers. Must not know: where the disk comes from."""

import subprocess
import time
from pathlib import Path

import measure
from bed.guest import Guest
from bed.machine import Disk


def until_agent(setting, parts, kind, backing, started):
    """Boot from a new overlay; return the cost since `started`."""
    folder = setting.fresh("guest")
    folder.mkdir()
    overlay = Path(folder) / "overlay.qcow2"
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", str(backing), str(overlay)]
    subprocess.run(words, check=True)
    with Guest(setting.bed, folder, parts, {"vda": Disk(path=overlay)}) as vm:
        vm.wait_agent()
        return measure.Cost(wall=time.monotonic() - started, cpu=0, qemu_cpu=0, peak_mib=0, size=0)
