"""Restore: each point as it was, to raw and qcow2; nothing is overwritten without --force, and nothing half done is
left."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stores
from bed.device import Device
from stores import KIB, MIB, Vm, chain, package_environment, scribble, small_disk, unprivileged

from nbdpull.core import errors
from nbdpull.nbd import nbd_target
from nbdpull.operations.restore import Options, restore
from nbdpull.targets import file, new_qcow2, opening, places

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: run as root")


def raw_of(path):
    """Return the bytes of an image file, by qemu-img if it is qcow2."""
    if path.endswith(".raw"):
        return Path(path).read_bytes()
    path = os.path.abspath(path)
    raw = f"{path}.as-raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    return Path(raw).read_bytes()


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("restore") / "store")


def do(vm, folder, **how):
    return restore(Options(str(vm.root), str(folder), **how))


# -- what is restored -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("seed", range(2))
def test_every_point_of_a_random_chain(tmp_path, seed, kind):
    rng = random.Random(seed)
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", rng.choice([3 * MIB, 2 * MIB + 512]))  # qcow2 counts in sectors of 512 bytes
    for number in range(4):
        if number:
            vm.grow("vda", vm.disks["vda"].size + rng.choice([512, 100 * 512, MIB]))
        if number == 2:
            vm.add_disk("vdb", 700 * 512)
        for disk in vm.disks:
            scribble(vm, disk, rng, count=4, longest=300 * KIB)
        vm.pull()
    for point in vm.points:
        result = do(vm, tmp_path / point.id, point=point.id, kind=kind)
        assert result.point == point
        assert set(result.files) == set(vm.images[point.id])
        for disk, path in result.files.items():
            assert path == str(tmp_path / point.id / f"{disk}.{kind}")
            assert raw_of(path) == vm.images[point.id][disk]
        images = {disk: (kind, path) for disk, path in result.files.items()}
        named = stores.disks_of((tmp_path / point.id / "domain.xml").read_text())
        assert {disk: named[disk] for disk in images} == images and result.formats == dict.fromkeys(images, kind)


def test_raw_and_qcow2_are_equal_for_qemu(tmp_path):
    vm = chain(tmp_path / "store", size=2 * MIB)
    for disk in vm.disks:
        vm.grow(disk, 4 * MIB)
    vm.pull()
    raw, qcow2 = (do(vm, tmp_path / kind, kind=kind).files["vda"] for kind in ("raw", "qcow2"))
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, qcow2], check=True)
    subprocess.run(["qemu-img", "check", "-q", qcow2], check=True)


def test_the_newest_point_is_the_default(vm, tmp_path):
    result = do(vm, tmp_path / "out", kind="raw")
    assert result.point == vm.points[-1]
    assert {disk: raw_of(path) for disk, path in result.files.items()} == vm.images[vm.points[-1].id]


def test_only_some_disks(vm, tmp_path):
    result = do(vm, tmp_path / "out", kind="raw", disks=["vdb", "vdb"])
    assert sorted(os.listdir(tmp_path / "out")) == ["domain.xml", "vdb.raw"]
    assert raw_of(result.files["vdb"]) == vm.images[vm.points[-1].id]["vdb"]


def test_a_disk_that_the_point_lacks(vm, tmp_path):
    with pytest.raises(errors.NoSuchDisk, match=r"no disk vdz; it has: vda, vdb"):
        do(vm, tmp_path / "out", disks=["vda", "vdz"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_thin_stays_thin(tmp_path, kind):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 32 * MIB)
    vm.write("vda", 0, b"x" * 32 * MIB)
    vm.pull()
    vm.zero("vda", 0, 32 * MIB)
    vm.write("vda", 20 * MIB, b"y" * 64 * KIB)
    vm.pull()
    path = do(vm, tmp_path / "out", kind=kind).files["vda"]
    assert os.stat(path).st_blocks * 512 < MIB
    assert raw_of(path) == vm.images[vm.points[-1].id]["vda"]


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_of_zeros(tmp_path, kind):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 5 * MIB)
    vm.pull()
    assert raw_of(do(vm, tmp_path / "out", kind=kind).files["vda"]) == bytes(5 * MIB)


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_any_number_of_threads(tmp_path, kind, threads):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 12 * MIB)
    for at in range(0, 12 * MIB, 96 * KIB):
        vm.write("vda", at, random.Random(at).randbytes(1000) * 40)
    vm.pull()
    path = do(vm, tmp_path / "out", kind=kind, threads=threads).files["vda"]
    assert raw_of(path) == vm.images[vm.points[-1].id]["vda"]


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("name", ["2026-11-22T19:45", "a,b=c", "-d", "ü %20", "nbd:x"])
def test_folders_with_names_that_programs_mistake(tmp_path, monkeypatch, kind, name):
    """QEMU takes what is before a colon for a protocol, and what begins with a dash is an option."""
    monkeypatch.chdir(tmp_path)
    vm = Vm("store:1")
    vm.add_disk("vda", 64 * KIB)
    vm.write("vda", 100, b"abc")
    vm.pull()
    path = restore(Options("store:1", name, kind=kind)).files["vda"]
    assert raw_of(path) == vm.images[vm.points[-1].id]["vda"]


def test_a_disk_whose_name_is_a_path(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("../../vda", 1000)
    vm.pull()
    path = do(vm, tmp_path / "a" / "b", kind="raw").files["../../vda"]
    assert Path(path).parent == tmp_path / "a" / "b"
    assert sorted(os.listdir(tmp_path / "a" / "b")) == sorted([Path(path).name, "domain.xml"])


def test_progress(vm, tmp_path):
    events = []
    result = restore(Options(str(vm.root), str(tmp_path / "out"), kind="raw"), lambda **event: events.append(event))
    for disk, size in (("vda", len(vm.images[vm.points[-1].id]["vda"])), ("vdb", 300 * KIB)):
        mine = [event for event in events if event["disk"] == disk]
        positions = [event["position"] for event in mine]
        assert positions == sorted(positions) and positions[-1] == size == mine[-1]["size"]
        assert mine[-1]["written_bytes"] == result.written_bytes[disk] > 0


# -- nothing is overwritten unasked -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vda.raw", "vdb.raw", "domain.xml", "vda.raw.partial"])
def test_what_exists_is_left_alone(vm, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"mine")
    with pytest.raises(errors.OutputExists, match=f"{name} exists.*--force") as caught:
        do(vm, out, kind="raw")
    assert caught.value.exit_code == 9
    assert os.listdir(out) == [name]
    assert (out / name).read_bytes() == b"mine"


@pytest.mark.parametrize("inside", ["out", ".", "vm1", "new/vda.raw"])
def test_nothing_is_restored_into_the_store(vm, tmp_path, inside):
    """Its images would be taken for a series, or be in the way of one."""
    (tmp_path / "link").symlink_to(vm.root)
    before = sorted(Path(vm.root).rglob("*"))
    for place in (vm.root / inside, tmp_path / "link" / inside):
        how = {"to": {"vda": str(place)}} if inside.endswith("raw") else {"output": str(place)}
        with pytest.raises(errors.UsageError, match="is inside the store .*: choose a place outside it"):
            restore(Options(str(vm.root), **how))
    assert sorted(Path(vm.root).rglob("*")) == before
    do(vm, tmp_path / "store-of-images", kind="raw")


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", " ", "a\x01b", "caf\udce9"])
def test_a_name_that_libvirt_would_refuse(vm, tmp_path, name):
    """Refused before anything is written, not when everything is restored; and it is no damage of the store."""
    for define in (False, True):
        with pytest.raises(errors.UsageError, match="^--name '.*': libvirt does not accept"):
            restore(Options(str(vm.root), str(tmp_path / "out"), define=define, new_uuid=True, name=name))
    assert not (tmp_path / "out").exists()


def test_a_dangling_link_exists(vm, tmp_path):
    (tmp_path / "out").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "out" / "vda.raw")
    with pytest.raises(errors.OutputExists):
        do(vm, tmp_path / "out", kind="raw")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_force(vm, tmp_path, kind):
    out = tmp_path / "out"
    out.mkdir()
    old = b"old" * 3 * MIB
    for name in (f"vda.{kind}", f"vda.{kind}.partial", f"vdb.{kind}", "domain.xml"):
        (out / name).write_bytes(old)
    result = do(vm, out, kind=kind, force=True, point=vm.points[0].id)
    assert sorted(os.listdir(out)) == ["domain.xml", f"vda.{kind}", f"vdb.{kind}"]
    for disk, path in result.files.items():
        expected = vm.images[vm.points[0].id][disk]
        assert raw_of(path)[: len(expected)] == expected  # of a qcow2 that holds no odd number of bytes
    assert stores.disks_of((out / "domain.xml").read_text())["vda"] == (kind, str(out / f"vda.{kind}"))


def test_a_file_of_the_domain_is_replaced_as_a_whole(vm, tmp_path, monkeypatch):
    """Whatever happens on the way, either the old one exists or the new one."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "domain.xml").write_bytes(b"old")
    (out / "domain.xml").chmod(0o640)
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (seen.append((out / "domain.xml").read_bytes()), replace(*names)))
    do(vm, out, kind="raw", force=True)
    assert set(seen) == {b"old", (out / "domain.xml").read_bytes()}  # that of the disks comes after
    assert (out / "domain.xml").stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(out)) == ["domain.xml", "vda.raw", "vdb.raw"]


@pytest.mark.parametrize("mask", [0, 0o077])
def test_a_restored_domain_that_everybody_could_read(vm, tmp_path, mask):
    """QEMU is another user: it can enter the directory and open what libvirt gives it, and nobody else can read a
    file."""
    before = os.umask(mask)
    try:
        do(vm, tmp_path / "new" / "out", kind="qcow2")
    finally:
        os.umask(before)
    folders = [tmp_path / "new", tmp_path / "new" / "out"]
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o711] * 2
    found = {path.name: path.stat().st_mode & 0o777 for path in folders[1].iterdir()}
    assert found == dict.fromkeys(["domain.xml", "vda.qcow2", "vdb.qcow2"], 0o600)


def test_everything_is_durable_in_the_end(vm, tmp_path, monkeypatch):
    """Including the directories that were made for it."""
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    do(vm, tmp_path / "a" / "out", kind="raw")
    drafts = {f"{tmp_path}/a/out/{name}.partial" for name in ("vda.raw", "vdb.raw", "domain.xml")}
    assert drafts | {f"{tmp_path}/a/out", f"{tmp_path}/a", f"{tmp_path}"} <= set(synced)


def test_other_files_are_left_alone(vm, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    do(vm, tmp_path, kind="raw")
    assert (tmp_path / "letter.txt").read_text() == "dear"


# -- nothing half done is left ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "qcow2", "options"])
def test_an_error_on_the_way(vm, tmp_path, monkeypatch, kind):
    calls = []

    def write(self, parts):
        calls.append(parts)
        if len(calls) == 2:
            raise errors.OutputError("cannot write: Input/output error")
        return real(self, parts)

    output = {"raw": file.File, "qcow2": new_qcow2.NewQcow2, "options": nbd_target.NbdTarget}[kind]
    real = output.write
    monkeypatch.setattr(output, "write", write)
    options = {"kind": "qcow2", "image_options": "compat=1.1"} if kind == "options" else {"kind": kind}
    with pytest.raises(errors.OutputError, match="Input/output error"):
        do(vm, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_stop_on_the_way(vm, tmp_path, kind):
    seen = []

    def check():
        if seen:
            raise errors.Interrupted(15)

    with pytest.raises(errors.Interrupted):
        restore(Options(str(vm.root), str(tmp_path / "out"), kind=kind), lambda **event: seen.append(event), check)
    assert not (tmp_path / "out").exists()


@as_root
@pytest.mark.parametrize("how", [{"kind": "raw"}, {"kind": "qcow2"}, {"image_options": "compat=1.1"}])
def test_a_disk_that_is_unplugged_on_the_way(tmp_path, how):
    """And when it is plugged in again, nothing on it looks like an image."""
    vm, unplugged = noise(tmp_path), []

    def report(**_):
        if not unplugged:
            unplugged.append(device.unplug())

    with Device(tmp_path / "mount", tmp_path, 128 * MIB) as device:
        with pytest.raises(errors.OutputError, match="Input/output error") as caught:
            restore(Options(str(vm.root), str(device.folder / "out"), threads=1, **how), report)
        assert caught.value.exit_code == 9
        device.mend()
        assert not [path for path in stores.files(device.folder / "out") if path.suffix != ".partial"]


@as_root
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_that_is_full_on_the_way(tmp_path, kind):
    vm = noise(tmp_path)
    with small_disk(tmp_path / "full", 8 * MIB) as folder:
        with pytest.raises(errors.OutputFull):
            do(vm, folder / "out", kind=kind, space_check=False)
        assert not (folder / "out").exists()


@pytest.mark.parametrize("how", [["--format", "raw"], ["--format", "qcow2"], ["--image-options", "compat=1.1"]])
def test_sigkill_leaves_nothing_that_looks_whole(tmp_path, how):
    """The same command with --force completes it."""
    vm = noise(tmp_path)
    words = ["restore", str(vm.root), "-o", str(tmp_path / "out"), *how]
    process = held(*words, gate=tmp_path / "gate")
    process.kill()
    process.communicate()
    words = [sys.executable, "-m", "nbdpull", *words]
    (left,) = os.listdir(tmp_path / "out")
    assert left.endswith(".partial")
    again = subprocess.run(words, capture_output=True, env=package_environment())
    assert again.returncode == 9 and b"another restore is writing it, or was killed; use --force" in again.stderr
    subprocess.run([*words, "--force"], check=True, capture_output=True, env=package_environment())
    (image,) = (tmp_path / "out").glob("vda.*")
    assert raw_of(str(image)) == vm.images[vm.points[-1].id]["vda"]


def held(*words, gate):
    """A restore that is held after its first batch of several."""
    program = [Path(__file__).with_name("faults") / "held.py", "restoring", gate]
    process = subprocess.Popen([sys.executable, *map(str, [*program, *words])], stdout=subprocess.PIPE,
                               env=package_environment())  # fmt: skip
    assert process.stdout.readline() == b'{"event": "held"}\n'
    return process


def noise(tmp_path):
    """Return random data of several batches."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 48 * MIB)
    vm.write("vda", 0, random.Random(1).randbytes(48 * MIB))
    vm.pull(frame_size=MIB)
    return vm


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_no_image_is_left_where_a_later_one_fails(vm, tmp_path, kind):
    """Otherwise the same command would be refused the next time, because of what it left itself."""

    def report(disk, **_):
        if disk == "vdb":
            raise errors.OutputFull("cannot write: No space left on device")

    with pytest.raises(errors.OutputFull):
        restore(Options(str(vm.root), str(tmp_path / "out"), kind=kind), report)
    assert not (tmp_path / "out").exists()


def test_a_stop_while_the_chain_is_proved(vm, tmp_path):
    def check():
        raise errors.Interrupted(15)

    with pytest.raises(errors.Interrupted):
        restore(Options(str(vm.root), str(tmp_path / "out")), check=check)
    assert not (tmp_path / "out").exists()


def test_an_end_before_qemu_nbd_is_up(tmp_path):
    """A SIGTERM that it gets while it starts is lost: a caller that waits for its end then waits forever."""
    place = places.place(str(tmp_path / "vda.qcow2"), options="compat=1.1")
    for attempt in range(10):
        with pytest.raises(KeyError), opening.open_target(place, MIB, 1):
            time.sleep(attempt / 1000)
            raise KeyError
        assert os.listdir(tmp_path) == []


def test_sigkill_ends_qemu_nbd_too(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 64 * MIB)
    vm.write("vda", 0, random.Random(1).randbytes(64 * MIB))
    vm.pull()
    process = held("restore", vm.root, "-o", tmp_path / "out", "--image-options", "compat=1.1", gate=tmp_path / "gate")
    servers = ["pgrep", "-f", f"qemu-nbd.*{tmp_path}"]
    assert subprocess.run(servers, capture_output=True).stdout
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while subprocess.run(servers, capture_output=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_qemu_nbd_dies(vm, tmp_path, monkeypatch):
    """It reports a failure; so do we, and no image is left."""
    real, servers = subprocess.Popen, []

    def popen(*args, **how):
        servers.append(real(*args, **how))
        return servers[-1]

    def report(**_):
        servers[-1].kill()

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(errors.OutputError):
        restore(Options(str(vm.root), str(tmp_path / "out"), disks=["vda"], image_options="compat=1.1"), report)
    assert not (tmp_path / "out").exists()


def test_qemu_nbd_that_is_slow_to_start(vm, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    slow = folder / "qemu-nbd"
    real = subprocess.check_output(["sh", "-c", "command -v qemu-nbd"], text=True).strip()
    slow.write_text(f'#!/bin/sh\nsleep 0.3\nexec {real} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    path = do(vm, tmp_path / "out", disks=["vdb"], image_options="compat=1.1").files["vdb"]
    assert raw_of(path) == vm.images[vm.points[-1].id]["vdb"]


def test_qemu_nbd_that_does_not_start(vm, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "qemu-nbd").write_text("#!/bin/sh\necho this is broken >&2\nexit 1\n")
    (folder / "qemu-nbd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(errors.OutputError, match="this is broken"):
        do(vm, tmp_path / "out", image_options="compat=1.1")
    assert not (tmp_path / "out").exists()


def test_no_qemu(vm, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.MissingSoftware, match="qemu-img is not installed: install qemu-utils"):
        do(vm, tmp_path / "out", image_options="compat=1.1")
    assert not (tmp_path / "out").exists()
    do(vm, tmp_path / "out")


# -- outputs that cannot be written -----------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_full_disk(tmp_path, kind):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 6 * MIB)
    vm.write("vda", 0, random.Random(1).randbytes(6 * MIB))
    vm.pull()
    with small_disk(tmp_path / "small", 3 * MIB) as folder:
        with pytest.raises(errors.OutputFull, match="take 6.0 MiB, .* are free.*nothing was written"):
            do(vm, folder / "out", kind=kind)
        assert os.listdir(folder) == []
        with pytest.raises(errors.OutputFull, match="[Nn]o space left") as caught:
            do(vm, folder / "out", kind=kind, space_check=False)
        assert caught.value.exit_code == 9
        assert not (folder / "out").exists()


@as_root
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_thin_disk_needs_no_more_than_its_data(tmp_path, kind):
    """The disk is larger than the free space; its data, in the newest state, is not."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 20 * MIB)
    for at in (0, 2 * MIB):
        vm.write("vda", at + 100, random.Random(at).randbytes(2 * MIB))
        vm.pull()
    vm.zero("vda", MIB, MIB)
    vm.pull()
    with small_disk(tmp_path / "small", 4 * MIB) as folder:
        do(vm, folder / "out", kind=kind)
        with pytest.raises(errors.OutputFull, match="are free"):
            do(vm, folder / "other", kind=kind)


@as_root
def test_a_disk_that_is_full_at_the_end(tmp_path):
    """Not even a half-written domain.xml is left."""
    vm = chain(tmp_path / "store")
    with small_disk(tmp_path / "small", MIB) as folder:
        (folder / "ballast").write_bytes(b"x" * (MIB - 16 * KIB))
        with pytest.raises(errors.OutputFull):
            do(vm, folder / "out", kind="raw", disks=["vdb"], space_check=False)
        assert not (folder / "out").exists()


def test_a_file_as_folder(vm, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(errors.OutputError):
        do(vm, tmp_path / "out")


def test_no_permission(tmp_path):
    with unprivileged() as folder:
        vm = chain(folder / "store", size=300_000)
        (folder / "out").mkdir(mode=0o555)
        for kind in ("raw", "qcow2"):
            for out in (folder / "out", folder / "out" / "new"):
                with pytest.raises(errors.OutputError, match="Permission denied"):
                    do(vm, out, kind=kind)


def test_two_restores_of_one_image_at_once(vm, tmp_path):
    """The second one is refused, and does not harm the first."""
    out = tmp_path / "out"
    out.mkdir()
    with opening.open_target(places.place(str(out / "vda.raw"), "raw"), 1000, 1) as image:
        with pytest.raises(errors.OutputExists, match="another restore is writing it"):
            do(vm, out, kind="raw")
        image.write([(0, b"first")])
    assert os.listdir(out) == ["vda.raw"]
    assert (out / "vda.raw").read_bytes() == b"first" + bytes(995)


# -- stores that cannot be read ---------------------------------------------------------------------------------------


def test_no_store(tmp_path):
    with pytest.raises(errors.StoreError) as caught:
        restore(Options(str(tmp_path / "none"), str(tmp_path / "out")))
    assert caught.value.exit_code == 10
    assert not (tmp_path / "out").exists()


def test_more_than_one_domain(tmp_path):
    for name, letter in (("vm1", b"a"), ("vm/2", b"b")):
        vm = Vm(tmp_path / "store", name)
        vm.add_disk("vda", 1000)
        vm.write("vda", 0, letter)
        vm.pull()
    with pytest.raises(errors.StoreError, match="--domain"):
        do(vm, tmp_path / "out")
    for name, letter in (("vm1", b"a"), ("vm/2", b"b")):
        path = do(vm, tmp_path / letter.decode(), domain=name, kind="raw").files["vda"]
        assert raw_of(path) == letter + bytes(999)


def test_a_point_without_a_whole_image(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 100_000)
    vm.write("vda", 5, b"abc")
    vm.pull(since="elsewhere")
    with pytest.raises(errors.PartialPoint, match="not a whole image"):
        do(vm, tmp_path / "out")
    assert not (tmp_path / "out").exists()
