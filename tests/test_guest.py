"""A real guest: Linux with an ext4 that it writes to while it is pulled, and that boots again from the restored images.

Owns: what a point of a running guest must contain: what was synced before the pull, and a sound file system once its
journal is replayed. Must not know: the inside of the package.
"""

import os
import shutil
import subprocess

import pytest
from bed.guest import Guest, ext4_image
from bed.machine import MIB, Disk, wait_for
from command import last_event, nbdpull
from witness import SINCE, Witness, dirty, modes, stopped_in_the_middle

pytest.importorskip("libvirt")


def tool(name, *words):
    """Run a program of e2fsprogs; return its output and exit code."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return subprocess.run([path, *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def replay_and_check(image):
    """Only the journal may have to be replayed: after that, a full check finds nothing to repair."""
    replayed = tool("e2fsck", "-y", "-E", "journal_only", image)
    assert replayed.returncode in (0, 1), replayed.stdout  # 1: something was done
    checked = tool("e2fsck", "-f", "-n", image)
    assert checked.returncode == 0, checked.stdout


def file_of(image, path, folder):
    """Return the bytes of a file in an ext4 image, read by debugfs: without mount or root."""
    copy = folder / "dumped"
    done = tool("debugfs", "-R", f"dump {path} {copy}", image)
    assert copy.exists(), done.stderr
    try:
        return copy.read_bytes()
    finally:
        copy.unlink()


def synced_file(guest, path, size):
    """Have the guest write a file of random bytes and sync it; return the SHA-256 that the guest computes."""
    guest.run(f"dd if=/dev/urandom of={path} bs=1k count={size} 2>/dev/null && sync")
    return guest.run(f"sha256sum {path}").split()[0]


def sha256(data):
    return subprocess.run(["sha256sum"], input=data, capture_output=True, check=True).stdout.split()[0].decode()


def pull_while_it_writes(witness):
    """Make one point; require that the guest writes after the first reads and before the last ones."""
    guest = witness.vm
    with stopped_in_the_middle(witness) as process:
        # what the job copied to scratch: the guest wrote where it had something
        wait_for(lambda: guest.domain.jobStats()["disk_temp_used"] > MIB, "writes of the guest during the pull")
        assert guest.job_active() and guest.running
    assert process.returncode == 0, process.problem
    result = last_event(process.output)
    assert not guest.job_active() and guest.checkpoints() == [result["details"]["checkpoint"]]
    assert os.listdir(witness.scratch) == []
    return result["details"]


@pytest.mark.timeout_seconds(300)
def test_points_of_a_guest_that_keeps_writing(guest, tmp_path, private_libvirt, guest_parts):
    witness = Witness(guest, tmp_path / "w")
    guest.start_writer()
    files, points = {}, []
    for n, size in enumerate([700, 3000, 1]):
        if n:
            guest.run(f"dd if=/dev/urandom of=/mnt/ballast{n} bs=1M count=12")  # something to read for a while
        files[f"kept{n}"] = synced_file(guest, f"/mnt/kept{n}", size)
        points.append(pull_while_it_writes(witness))
        assert guest.running
        if n:
            assert modes(points[-1]) == {"vda": SINCE} and points[-1]["parent"] == points[-2]["id"]
            assert dirty(points[-1])["vda"]  # how much depends on how long the guest wrote
    guest.stop_writer()
    witness.assert_verified()

    for n, point in enumerate(points):
        out = tmp_path / f"out{n}"
        done = nbdpull("restore", witness.store, "-o", out, "--point", point["id"], "--format", "raw")
        assert done.returncode == 0, done.stderr
        image = out / "vda.raw"
        replay_and_check(image)
        for name in list(files)[: n + 1]:
            assert sha256(file_of(image, f"/{name}", tmp_path)) == files[name], f"{name} in point {n}"
        for name in list(files)[n + 1 :]:  # written after the point was made
            assert "File not found" in tool("debugfs", "-R", f"stat /{name}", image).stderr

    done = nbdpull("restore", witness.store, "-o", tmp_path / "boot")
    assert done.returncode == 0, done.stderr
    guest.destroy()
    assert_boots(private_libvirt, guest_parts, tmp_path, files)


def assert_boots(bed, parts, folder, files):
    """Require that a guest boots from the restored image, and reads and writes its files."""
    disks = {"vda": Disk(path=folder / "boot" / "vda.qcow2")}
    with Guest(bed, folder / "again", parts, disks=disks) as again:
        again.wait_agent()
        assert "/dev/vda /mnt ext4 rw" in again.run("cat /proc/mounts")
        for name, digest in files.items():
            assert again.run(f"sha256sum /mnt/{name}").split()[0] == digest
        again.run("echo alive > /mnt/alive && sync")
        assert again.run("cat /mnt/alive") == "alive\n"
        witness = Witness(again, folder / "w-again")  # and it can be pulled in its turn
        assert modes(witness.pull("--no-checkpoint")) == {"vda": ("full", "first-point")}


def pull_standing(witness):
    """Pull a guest that is paused meanwhile: an ext4 writes to its superblock by itself."""
    witness.vm.suspend()
    try:
        return witness.pull()
    finally:
        witness.vm.resume()


@pytest.mark.timeout_seconds(180)
def test_two_file_systems_of_a_quiet_guest(private_libvirt, guest_parts, tmp_path):
    """Deleted, trimmed and overwritten files, across a restart: equal byte for byte, and both file systems clean."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "old").write_bytes(os.urandom(3 * MIB))
    folder = tmp_path / "guest"
    folder.mkdir()
    second = ext4_image(folder / "vdb.qcow2", 64 * MIB, files)
    with Guest(private_libvirt, folder, guest_parts, disks={"vdb": Disk(path=second)}) as guest:
        guest.wait_agent()
        witness = Witness(guest, tmp_path / "w")
        pull_standing(witness)
        guest.run("rm /mnt2/old; echo new > /mnt2/new; sync; fstrim /mnt2")
        guest.run("dd if=/dev/zero of=/mnt/zeros bs=1M count=4 2>/dev/null; sync")
        digest = synced_file(guest, "/mnt2/kept", 500)
        second_point = pull_standing(witness)
        assert modes(second_point) == {"vda": SINCE, "vdb": SINCE}
        guest.shutdown()
        guest.start()
        guest.wait_agent()
        third = pull_standing(witness)
        assert modes(third) == {"vda": SINCE, "vdb": SINCE}
        witness.assert_restores()
        restored = witness.restored(third["id"])
        image = tmp_path / "vdb.raw"
        image.write_bytes(restored["vdb"])
        replay_and_check(image)
        assert sha256(file_of(image, "/kept", tmp_path)) == digest
        assert file_of(image, "/new", tmp_path) == b"new\n"
