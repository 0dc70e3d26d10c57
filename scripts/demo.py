"""The demo: a small Linux guest on a libvirt of its own is backed up three times, restored, and compared.

Run by scripts/demo. With --iothread, the guest's disk is in an I/O thread of QEMU. It is a plain program that uses
nbdpull as you would: on the command line. The test bed (tests/bed) provides the VM; `freeze_copy` is the witness of
what the disk held, made by qemu-img and not by nbdpull.
"""

import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "tests"))

from bed import BedError, Unavailable  # noqa: E402
from bed.guest import Guest, build  # noqa: E402
from bed.libvirtd import PrivateLibvirt, cache_folder  # noqa: E402


class Failed(Exception):
    """A step of the demo failed."""


def main():
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # by way of the clean-up
    try:
        with tempfile.TemporaryDirectory(prefix="nbdpull-demo-") as folder, PrivateLibvirt() as libvirt:
            say("Getting a kernel and an agent for the guest (kept for the next time), and booting it.")
            threads = int(sys.argv[1:] == ["--iothread"])
            with Guest(libvirt, Path(folder) / "vm", build(cache_folder()), name="vm1", iothreads=threads) as vm:
                vm.wait_agent()
                tell_the_story(vm, Path(folder))
    except (Failed, BedError, Unavailable) as error:
        sys.exit(f"\nThe demo failed: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
    say(f"All images are equal. Everything the demo made is removed again. It took {time.monotonic() - started:.0f} s.")


def tell_the_story(vm, folder):
    say(f"A Linux guest is up: the VM 'vm1', with the ext4 below on its disk vda.\n{vm.run('df -h /mnt').strip()}")
    vm.start_writer()
    say("Inside the guest a program keeps writing, rewriting and deleting files, all the time from now on.")

    say("1. A first pull reads everything. It also makes a checkpoint, from which on QEMU notes what changes.")
    pull(vm, folder, "seen1.raw", "nbdpull vm1 -o store --checkpoint chk1")

    say("2. The guest writes a new file of 8 MiB ...")
    guest(vm, "dd if=/dev/urandom of=/mnt/letters bs=1M count=8 && sync")
    say("... and the second pull reads only what changed since the checkpoint chk1.")
    pull(vm, folder, "seen2.raw", "nbdpull vm1 --since chk1 -o store --checkpoint chk2")

    say("3. The guest deletes the file, trims its file system, so that the blocks are given back, and writes a note.")
    guest(vm, "rm /mnt/letters && sync && fstrim -v /mnt && echo 'all gone' > /mnt/note && sync")
    say("The third pull records what was given back as zeros, without reading it: see the column ZERO.")
    pull(vm, folder, "seen3.raw", "nbdpull vm1 --since chk2 -o store")
    vm.stop_writer()

    say("4. What the store holds now, and whether it is all intact:")
    run(folder, "nbdpull list store")
    run(folder, "nbdpull verify store")

    say("5. Each of the three points is restored, and compared with what the VM's disk held when it was made.")
    ids = points(folder)
    if len(ids) != 3:
        raise Failed(f"the store holds {len(ids)} points, not 3")
    for number, point in enumerate(ids, 1):
        run(folder, f"nbdpull restore store -o restored{number} --point {point}")
        run(folder, f"qemu-img compare -f qcow2 -F raw restored{number}/vda.qcow2 seen{number}.raw")

    if vm.job_active():
        raise Failed("the VM still has a backup job")
    say("6. The VM runs on, with no backup job left, and with the checkpoints that the next pull can start from:")
    print("   " + ", ".join(vm.checkpoints()))


def pull(vm, folder, copy, command):
    """Pull while the guest writes, and copy what the disk held at the very instant that is backed up.

    For that the guest is paused until QEMU has begun the backup: only then can anybody but QEMU know what the frozen
    image holds. It writes again while nbdpull reads. A backup without a witness needs neither pause nor copy.
    """
    show(command)
    vm.suspend()
    vm.freeze_copy("vda", folder / copy)
    process = start(folder, command)
    while process.poll() is None and not vm.qmp("query-block-jobs"):
        time.sleep(0.01)
    vm.resume()
    require_success(process, command)


def points(folder):
    """Return the ids of the points in the store, oldest first."""
    process = start(folder, "nbdpull list store --json", stdout=subprocess.PIPE)
    return [point["id"] for point in json.loads(process.communicate()[0])]


def run(folder, command):
    """Show a command line and run it; a difference, a damage or any failure ends the demo."""
    show(command)
    require_success(start(folder, command), command)


def start(folder, command, **options):
    program, *arguments = shlex.split(command)
    words = [sys.executable, "-m", "nbdpull"] if program == "nbdpull" else [program]
    return subprocess.Popen([*words, *arguments], cwd=folder, **options)


def require_success(process, command):
    if process.wait():
        raise Failed(f"exit code {process.returncode}: {command}")


def guest(vm, command):
    print(f"   vm1# {command}", flush=True)
    print("".join(f"   {line}\n" for line in vm.run(command).splitlines()), end="", flush=True)


def show(command):
    print(f"\n$ {command}", flush=True)


def say(text):
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
