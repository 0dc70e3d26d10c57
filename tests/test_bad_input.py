"""Commands that must fail: each with its message and its exit code, and leaving nothing behind.

`Before` proves of every failing pull: no job, checkpoints and bitmaps as before, no scratch file, no socket, no point,
whole or in part. Must not know: the inside of the package, except in the two places where the world has to be faked
(missing bindings, an old libvirt), and the seal of a document that a later version would have made.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bed.machine import MIB, Disk, Machine, wait_for
from command import PROJECT, environment, last_event, nbdpull
from witness import SINCE, Before, Witness, assert_refused, dirty, modes

from nbdpull.core import process
from nbdpull.format import layout
from nbdpull.repository import announcement

libvirt = pytest.importorskip("libvirt")

USAGE, DOMAIN, CHECKPOINT, BUSY, HYPERVISOR, DENIED, SOFTWARE, OUTPUT, STORE, DAMAGE = range(2, 12)
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can mount and become somebody else")


@pytest.fixture(scope="module")
def shared(private_libvirt, tmp_path_factory):
    """A machine with a foreign checkpoint, for all commands that leave it unchanged."""
    disks = {"vda": 2 * MIB, "vdb": Disk(MIB, "raw")}
    with Machine(private_libvirt, tmp_path_factory.mktemp("images"), disks, name="bad-input") as vm:
        vm.create_checkpoint("foreign")
        vm.write("vda", 0, MIB, 0x11)
        yield vm


@pytest.fixture
def witness(shared, tmp_path):
    """A witness of the shared machine; a test that makes points removes their checkpoints."""
    yield Witness(shared, tmp_path / "w")
    for name in set(shared.checkpoints()) - {"foreign"}:
        shared.delete_checkpoint(name)


# -- the domain -------------------------------------------------------------------------------------------------------


def test_no_such_domain(witness):
    result = assert_refused(witness, DOMAIN, "no-such-domain", "no domain 'nowhere'", domain="nowhere")
    assert "bad-input" in result["message"]  # which do exist
    assert not witness.store.exists()


def test_domain_not_running(machine, tmp_path):
    vm = machine({"vda": MIB})
    vm.create_checkpoint("foreign")
    witness = Witness(vm, tmp_path / "w")
    point = witness.pull()
    vm.stop()
    for options in ([], ["--full"], ["--since", "foreign"], ["--since", point["checkpoint"]], ["--since", "none"]):
        assert_refused(witness, DOMAIN, "domain-not-running", [vm.name, "is not running"], "--offline=refuse", *options)
    assert not vm.active


def test_unknown_disk(witness):
    for option in ("--disk", "--exclude"):
        result = assert_refused(witness, DOMAIN, "no-such-disk", "no disk vdz", option, "vdz", "--disk", "vda")
        assert "vda, vdb" in result["message"]
    assert not witness.store.exists()


def test_no_disk_left(witness):
    message = ["domain bad-input has no disk left to back up", "vda, vdb"]
    assert_refused(witness, DOMAIN, "nothing-to-back-up", message, "--exclude", "vda", "--exclude", "vdb")
    assert_refused(witness, DOMAIN, "nothing-to-back-up", message, "--disk", "vda", "--exclude", "vda")


def test_domain_with_nothing_but_a_drive(machine, tmp_path):
    """Read-only disks and empty drives hold no data of the guest; naming an empty drive is an error of its own."""
    vm = machine({"vda": MIB})
    path = vm.disks["vda"].path
    vm.stop()
    drive = "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>"
    plain = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    readonly = plain.replace("<target dev='vda'", "<readonly/><target dev='vda'").replace("</disk>", f"</disk>{drive}")
    vm.bed.connection().defineXML(readonly)
    vm.start()
    witness = Witness(vm, tmp_path / "w")
    assert_refused(witness, DOMAIN, "nothing-to-back-up", "(it has: vda, hda)")
    assert_refused(witness, DOMAIN, "no-such-disk", "hda of domain", "--disk", "hda")
    assert path.exists()


# -- the checkpoint ---------------------------------------------------------------------------------------------------


def test_no_such_checkpoint(witness):
    result = assert_refused(witness, CHECKPOINT, "no-such-checkpoint", "no checkpoint 'chk9'", "--since", "chk9")
    assert "foreign" in result["message"]  # those that do exist
    assert not witness.store.exists()  # a name that was mistyped makes no store
    witness.pull("--checkpoint", "mine")
    result = assert_refused(witness, CHECKPOINT, "no-such-checkpoint", "'chk9'", "--since", "chk9")
    assert "foreign" in result["message"] and "mine" in result["message"]


def test_checkpoint_that_exists(witness):
    for made in (False, True):
        assert_refused(witness, CHECKPOINT, "checkpoint-exists", "already has a checkpoint 'foreign'",
                       "--checkpoint", "foreign")  # fmt: skip
        assert witness.store.exists() == made
        witness.pull()


@pytest.mark.parametrize("name", [".x", "a/b", "a b", "", "\u00e4"])
def test_impossible_name_of_a_checkpoint(witness, name):
    assert_refused(witness, USAGE, "usage", f"checkpoint name '{name}'", "--checkpoint", name)
    assert not witness.store.exists()


def test_checkpoint_requested_where_none_is_possible(witness):
    """A raw disk cannot have one. Without --checkpoint this is no error: then none was requested."""
    assert_refused(witness, HYPERVISOR, "unsupported", "--checkpoint mine cannot be made",
                   "--checkpoint", "mine", "--disk", "vdb")  # fmt: skip
    assert not witness.store.exists()
    assert witness.pull("--disk", "vdb")["checkpoint"] is None


# -- somebody else's job ----------------------------------------------------------------------------------------------


def test_another_backup_job_is_active(witness, tmp_path):
    """Noticed before the job is started: libvirt itself would wait for 30 s."""
    vm = witness.vm
    backup = tmp_path / "backup.xml"
    backup.write_text(f"<domainbackup mode='pull'><server transport='unix' socket='{vm.bed.folder}/foreign'/>"
                      f"<disks><disk name='vda' backup='yes' type='file'><scratch file='{tmp_path}/scratch'/></disk>"
                      "</disks></domainbackup>")  # fmt: skip
    vm.bed.virsh("backup-begin", vm.name, backup)
    theirs = vm.domain.backupGetXMLDesc()
    checkpoints = vm.checkpoints()
    for options in ([], ["--since", "foreign"], ["--full", "--disk", "vdb"]):
        started = time.monotonic()
        done = nbdpull(*witness.words(*options))
        assert time.monotonic() - started < 10
        assert (done.returncode, last_event(done.stdout)["code"]) == (BUSY, "busy")
        assert "already has a backup job, not started by nbdpull" in done.stderr
        assert vm.domain.backupGetXMLDesc() == theirs and vm.checkpoints() == checkpoints
    assert not witness.store.exists() and os.listdir(witness.scratch) == []
    vm.bed.virsh("domjobabort", vm.name)
    wait_for(lambda: not vm.job_active(), "end of the job")
    assert "Job type:         None" in vm.bed.virsh("domjobinfo", vm.name)
    witness.pull("--no-checkpoint")


def test_block_job_is_active(witness, tmp_path):
    vm = witness.vm
    target = f"<disk type='file'><source file='{tmp_path}/copy'/><driver type='qcow2'/></disk>"
    vm.domain.blockCopy("vda", target, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    try:
        assert_refused(witness, BUSY, "busy", ["disk vda", "block job"])
    finally:
        vm.domain.blockJobAbort("vda")
        wait_for(lambda: not vm.domain.blockJobInfo("vda"), "end of the block job")


# -- the output -------------------------------------------------------------------------------------------------------


def test_output_cannot_become_a_store(witness, tmp_path):
    (tmp_path / "file").write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    for store, exit_code, code in [
        (tmp_path / "file", OUTPUT, "output-exists"),
        (tmp_path / "file" / "below", OUTPUT, "output"),
        (folder, STORE, "store"),
        ("/proc/nowhere", OUTPUT, "output"),
        (tmp_path / ("x" * 300), OUTPUT, "output"),
    ]:
        witness.store = Path(store)
        assert_refused(witness, exit_code, code, str(store))
    assert (tmp_path / "file").read_text() == "precious" and os.listdir(folder) == ["precious"]


def test_output_is_not_writable(witness, tmp_path):
    """For a new directory and an existing store. Only a read-only file system stops root."""
    place = tmp_path / "place"
    place.mkdir()
    witness.store = place / "store"
    witness.pull("--no-checkpoint")
    with unwritable(place):
        assert_refused(witness, OUTPUT, "output", f"cannot write to {place}/store")
        witness.store = place / "another"
        assert_refused(witness, OUTPUT, "output", f"cannot create the folder {place}/another")


@contextlib.contextmanager
def unwritable(folder):
    if os.geteuid() == 0:
        with mounted(folder, "--bind", "-o", "ro", source=folder):
            yield
    else:
        with mode(folder / "store", 0o500), mode(folder, 0o500):
            yield


@contextlib.contextmanager
def mounted(folder, *options, source="none"):
    """Mount something at a directory, in the bed's namespace: `with mounted(folder, "-t", "tmpfs", "-o",
    "size=1m")`."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(source), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def mode(path, wanted):
    """Change the mode of a path inside the block."""
    before = os.stat(path).st_mode
    os.chmod(path, wanted)
    try:
        yield
    finally:
        os.chmod(path, before)


@as_root
@pytest.mark.parametrize("room", [8, 20, 36, 100, 600])
def test_output_on_a_full_disk(witness, tmp_path, room):
    """Full at the store's marker, at the first chunk file, or in the middle of it: KiB free."""
    place = tmp_path / "place"
    witness.vm.write_bytes("vda", 0, os.urandom(MIB))
    with mounted(place, "-t", "tmpfs", "-o", f"size={room}k"):
        witness.store = place / "store"
        assert_refused(witness, OUTPUT, "output-full", ["No space left on device", str(place)], "--no-space-check")
        assert_refused(witness, OUTPUT, "output-full", ["No space left on device", str(place)])


@as_root
def test_disk_that_fills_up_between_points(witness, tmp_path):
    """The committed point and its checkpoint survive the failed run, and are the base of the next one."""
    vm, place = witness.vm, tmp_path / "place"
    with mounted(place, "-t", "tmpfs", "-o", "size=8m"):
        witness.store = place / "store"
        first = witness.pull()
        vm.write_bytes("vda", MIB // 2, os.urandom(MIB))
        free = os.statvfs(place)
        (place / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - MIB // 2))
        assert_refused(witness, OUTPUT, "output-full", ["No space left on device", "free space"])
        witness.assert_verified()
        witness.assert_restores(first["id"])
        (place / "ballast").unlink()
        second = witness.pull()
        assert (second["parent"], modes(second)["vda"], dirty(second)["vda"]) == (first["id"], SINCE, MIB)
        witness.assert_restores()


# -- the store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"format": "nbdpull/3"}, {"requires": ["encryption"]}])
def test_store_of_a_future_format(witness, change):
    witness.pull()
    marker = witness.store / "nbdpull.json"
    rewrite(marker, change)
    word = next(iter(change.values()))
    word = word if isinstance(word, str) else word[0]
    assert_refused(witness, STORE, "format-too-new", [word, "use a newer nbdpull"])
    for words in (["restore", witness.store, "-o", witness.folder / "out"], ["verify", witness.store],
                  ["list", witness.store], ["show", witness.store, "latest"]):  # fmt: skip
        done = nbdpull(*words)
        assert done.returncode == STORE and word in done.stderr and "use a newer nbdpull" in done.stderr
    assert not (witness.folder / "out").exists()


def rewrite(path, change):
    """Change members of a sealed document, with a right seal, as a later version might write them."""
    document = json.loads(path.read_bytes())
    document.pop("digest")
    path.write_bytes(layout.seal({**document, **change}))


def test_point_of_a_future_format(witness):
    """Only that point is refused; its series continues with a full point."""
    first = witness.pull()
    witness.vm.write("vda", 0, 512, 0x22)
    second = witness.pull()
    rewrite(next(witness.store.glob(f"*/{second['id']}/manifest.json")), {"requires": ["encryption"]})
    out = witness.folder / "out"
    for point in ("latest", second["id"]):
        done = nbdpull("restore", witness.store, "-o", out, "--point", point)
        assert done.returncode == STORE and "encryption" in done.stderr and not out.exists()
    assert nbdpull("verify", witness.store).returncode == STORE
    witness.assert_restores(first["id"])
    third = witness.pull()
    assert modes(third)["vda"][0] == "full" and "encryption" in str(witness.result["warnings"])
    manifests = witness.store.glob("*/*/manifest.json")
    sequences = {path.parent.name: json.loads(path.read_text())["sequence"] for path in manifests}
    assert sequences[third["id"]] > sequences[second["id"]], "a later nbdpull reads both"
    witness.assert_restores(third["id"])


def test_the_folder_of_another_point_is_gone(witness):
    """Its files are needed, its manifest is not."""
    first = witness.pull()
    witness.vm.write("vda", 0, 512, 0x23)
    second = witness.pull()
    folder = next(witness.store.glob(f"*/{first['id']}"))
    aside = folder.rename(witness.folder / "aside")
    out = witness.folder / "out"
    for words in (["restore", witness.store, "-o", out], ["restore", witness.store, "-o", out, "--disk", "vda"]):
        done = nbdpull(*words)
        assert done.returncode == DAMAGE and not out.exists()
        assert f"{first['id']}/vda" in done.stderr and "the file is missing" in done.stderr
    done = nbdpull("verify", witness.store, "--json")
    assert done.returncode == DAMAGE and any(
        damage["point"] == second["id"] and first["id"] in damage["problem"]
        for damage in last_event(done.stdout)["damages"]
    )
    shutil.copytree(aside, folder)  # a copy is as good
    witness.assert_restores()
    witness.assert_verified()


def test_folder_of_another_vm_of_the_same_name(private_libvirt, tmp_path):
    """An incremental on top of a stranger's points would be garbage that verifies."""
    with Machine(private_libvirt, tmp_path / "one", {"vda": MIB}, name="twin") as vm:
        first = Witness(vm, tmp_path / "w1")
        first.pull("--checkpoint", "daily")
    with Machine(private_libvirt, tmp_path / "two", {"vda": MIB}, name="twin") as other:
        other.create_checkpoint("daily")
        witness = Witness(other, tmp_path / "w2")
        witness.store = first.store
        for options in ([], ["--full"], ["--since", "daily"]):
            assert_refused(witness, STORE, "other-domain", [first.vm.uuid, other.uuid, "another store"], *options)
        first.assert_restores()


def test_no_store_and_no_point(witness):
    out = witness.folder / "out"
    witness.pull("--no-checkpoint")
    empty = witness.folder / "empty"
    empty.mkdir()
    for words, message in [
        ([witness.folder / "nowhere"], "no such directory"),
        ([empty], "is not an nbdpull store"),
        ([witness.store, "--point", "20200101T000000Z-00000000"], "no point 20200101T000000Z-00000000"),
        ([witness.store, "--point", "../.."], "no point ../.."),
        ([witness.store, "--domain", "other"], "no domain other"),
    ]:
        done = nbdpull("restore", *words, "-o", out)
        assert done.returncode == STORE and message in done.stderr, words
        assert not out.exists()
    done = nbdpull("restore", witness.store, "-o", out, "--disk", "vdz")
    assert done.returncode == DOMAIN and "has no disk vdz" in done.stderr and not out.exists()


def test_restore_overwrites_nothing_unasked(witness):
    witness.pull("--no-checkpoint")
    for name in ("vda.raw", "vdb.raw", "domain.xml"):
        out = witness.folder / name
        out.mkdir()
        (out / name).write_text("precious")
        words = ["restore", witness.store, "-o", out, "--format", "raw"]
        done = nbdpull(*words)
        assert done.returncode == OUTPUT and f"{out / name} exists" in done.stderr
        assert os.listdir(out) == [name] and (out / name).read_text() == "precious"
        assert nbdpull(*words, "--force").returncode == 0
        assert (out / "vda.raw").read_bytes() == witness.content()["vda"]


@as_root
@pytest.mark.parametrize(
    "options, message",
    [((), "the images take 2.0 MiB"), (("--no-space-check",), "No space left on device")],
    ids=["looked for", "not looked for"],
)
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_restore_to_a_full_disk(witness, tmp_path, kind, options, message):
    witness.vm.write_bytes("vda", 0, os.urandom(2 * MIB))
    witness.pull("--no-checkpoint")
    place = tmp_path / "place"
    with mounted(place, "-t", "tmpfs", "-o", "size=1200k"):
        done = nbdpull("restore", witness.store, "-o", place / "out", "--format", kind, *options)
        assert done.returncode == OUTPUT and message in done.stderr, done.stderr
        assert [path.name for path in place.rglob("*") if path.is_file()] == []


def test_a_point_after_which_none_can_come(witness):
    """Its sequence number is the highest that a manifest may have: this is reported before the job, not after it."""
    made = witness.pull()
    rewrite(next(witness.store.glob(f"*/{made['id']}/manifest.json")), {"sequence": (1 << 64) - 1})
    assert_refused(witness, STORE, "store", ["sequence number (2^64 - 1)", "another directory"])


def test_links_in_a_store_are_not_written_through(witness, tmp_path):
    """Neither in the place of a series nor of a point: the target of the link is left alone."""
    first = witness.pull()
    folder, outside = next(path for path in witness.store.iterdir() if path.is_dir()), tmp_path / "outside"
    (folder / "20300101T000000Z-aaaaaa").symlink_to(tmp_path)
    point = witness.pull()
    assert "20300101T000000Z-aaaaaa" in str(witness.result["warnings"])
    assert (folder / "20300101T000000Z-aaaaaa").is_symlink() and point["parent"] == first["id"]
    os.mkfifo(folder / "20300101T000000Z-aaaaaa.fifo")  # is nobody's
    (folder / "20300101T000000Z-bbbbbb").mkdir()
    os.mkfifo(folder / "20300101T000000Z-bbbbbb" / "run.json")
    assert_refused(witness, DAMAGE, "damaged", "run.json: cannot be read: it is a FIFO, not a file")
    folder.rename(outside)
    folder.symlink_to(outside)
    held = sorted(path for path in outside.rglob("*"))
    for options in ([], ["--full"]):
        assert_refused(witness, OUTPUT, "output", [str(folder), "symbolic link"], *options)
    assert sorted(path for path in outside.rglob("*")) == held


def test_a_forged_announcement(witness, tmp_path):
    """It names a dead run, in the store: it only allows the removal of the half point itself."""
    made = witness.pull()
    folder, run_id = next(path for path in witness.store.iterdir() if path.is_dir()), "20300101T000000Z-aaaaaa"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    announced = announcement.Announcement(
        id=run_id, domain=witness.vm.name, uuid=witness.vm.uuid, store=str(tmp_path), folder="precious",
        process=replace(process.of(), pid=1, started=1), begun="2026-11-22T19:45:00+00:00",
    )  # fmt: skip
    (folder / run_id).mkdir()
    (folder / run_id / "run.json").write_bytes(announcement.encode(announced))
    point = witness.pull()
    assert (precious / "file").read_text() == "mine" and point["parent"] == made["id"]
    assert not (folder / run_id).exists()


# -- software and permissions -----------------------------------------------------------------------------------------

BLOCKED = "import sys; sys.modules[{!r}] = None; from nbdpull.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("module, package", [("libvirt", "python3-libvirt"), ("nbd", "python3-libnbd")])
def test_bindings_are_not_installed(witness, module, package):
    assert_refused(witness, SOFTWARE, "missing-software", ["not installed", package], run=program(BLOCKED, module))
    assert not witness.store.exists()


def program(source, *values):
    """Return a `run` for assert_refused: Python with this program in place of -m nbdpull."""

    def run(*words):
        command = [sys.executable, "-c", source.format(*values), *map(str, words)]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)

    return run


def test_programs_are_not_installed(witness):
    """A qcow2 with options needs QEMU's tools, other images do not."""
    witness.pull("--no-checkpoint")
    nothing = {**environment(), "PATH": "/nonexistent"}
    words = ["restore", witness.store, "-o", witness.folder / "out"]
    done = nbdpull(*words, "--image-options", "cluster_size=4k", env=nothing)
    assert done.returncode == SOFTWARE and "qemu-utils" in done.stderr
    assert not list(witness.folder.glob("out/*"))
    assert nbdpull(*words, env=nothing).returncode == 0


OLD = """import sys, libvirt; libvirt.virConnect.getLibVersion = lambda _: 7_005_000
from nbdpull.cli.main import main; sys.exit(main(sys.argv[1:]))"""


def test_libvirt_is_too_old_for_incrementals(witness):
    """An old daemon is simulated by the version that it reports. Without --since it suffices for full points."""
    old = program(OLD)
    assert_refused(witness, HYPERVISOR, "unsupported", ["--since foreign", "libvirt 7.6", "QEMU 6.1"],
                   "--since", "foreign", run=old)  # fmt: skip
    assert_refused(witness, HYPERVISOR, "unsupported", "--checkpoint mine", "--checkpoint", "mine", run=old)
    held = witness.content()
    for reason in ("first-point", "no-checkpoint-support"):
        done = old(*witness.words())
        assert done.returncode == 0, done.stderr
        point = witness.made(last_event(done.stdout), held)
        assert modes(point)["vda"] == ("full", reason) and point["checkpoint"] is None
    assert witness.vm.checkpoints() == ["foreign"]
    witness.assert_restores()


def test_no_hypervisor(witness):
    before = Before(witness)
    done = nbdpull(witness.vm.name, "-o", witness.store, "-c", "qemu:///nowhere")
    assert done.returncode == HYPERVISOR and "cannot connect to libvirt at qemu:///nowhere" in done.stderr
    assert done.stderr.count("\n") == 1  # libvirt prints nothing of its own
    before.assert_same()


def as_nobody(*words):
    def drop():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)
        places = {"NBDPULL_STATE_DIR": folder, "XDG_RUNTIME_DIR": folder}
        return nbdpull(*words, preexec_fn=drop, cwd="/", env={**environment(), **places})


@pytest.fixture
def witness_for_nobody(witness):
    """A Witness whose directory, unlike pytest's own, everybody can enter; the same must hold for Python and the
    project."""
    tried = as_nobody("--version")
    if tried.returncode:
        pytest.skip(f"nobody can run nothing in {PROJECT}: {tried.stderr[-300:]}")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Witness(witness.vm, Path(folder) / "w")


@as_root
def test_no_permission_for_libvirt(witness_for_nobody):
    witness = witness_for_nobody
    result = assert_refused(witness, DENIED, "access-denied", ["permission denied", "group libvirt"], run=as_nobody)
    assert witness.vm.bed.uri in result["message"] and not witness.store.exists()


@as_root
def test_no_permission_for_the_nbd_socket(witness_for_nobody):
    """libvirt admits its group; QEMU's socket is for QEMU's user and for root."""
    witness = witness_for_nobody
    witness.folder.chmod(0o777)
    run = Path("/run/libvirt")
    with mode(run, 0o755), mode(run / "libvirt-sock", 0o777):
        result = assert_refused(witness, DENIED, "access-denied", "NBD socket", run=as_nobody)
        assert "as root" in result["message"]


@as_root
def test_no_permission_for_the_output(witness_for_nobody):
    """Refused before the job is started: libvirt would admit nobody."""
    witness = witness_for_nobody
    witness.pull("--no-checkpoint")
    run = Path("/run/libvirt")
    with mode(run, 0o755), mode(run / "libvirt-sock", 0o777):
        assert_refused(witness, OUTPUT, "output", f"cannot write to {witness.store}", run=as_nobody)
        witness.store = witness.folder / "new"
        assert_refused(witness, OUTPUT, "output", f"cannot create the folder {witness.store}", run=as_nobody)


@as_root
def test_no_permission_for_the_store(witness_for_nobody):
    witness = witness_for_nobody
    witness.pull("--no-checkpoint")
    assert as_nobody("list", witness.store).returncode == STORE
    subprocess.run(["chmod", "-R", "a+rX", witness.store], check=True)
    with mode(next(path for path in witness.store.iterdir() if path.is_dir()), 0o700):
        for words in (["verify", witness.store], ["list", witness.store],
                      ["restore", witness.store, "-o", witness.folder / "out"]):  # fmt: skip
            done = as_nobody(*words)
            assert done.returncode == STORE and "Permission denied" in done.stderr
    assert as_nobody("verify", witness.store).returncode == 0


# -- places and words -------------------------------------------------------------------------------------------------


def test_scratch_where_qemu_cannot_make_it(witness, tmp_path):
    nowhere = tmp_path / "nowhere"
    assert_refused(witness, HYPERVISOR, "hypervisor", ["cannot start a backup", str(nowhere)],
                   "--scratch-dir", nowhere)  # fmt: skip


def test_impossible_socket_path(witness, tmp_path):
    precious = Path(witness.vm.bed.folder) / "precious"
    precious.write_text("x")
    assert_refused(witness, OUTPUT, "output-exists", f"socket {precious} exists", "--socket", precious)
    assert precious.read_text() == "x"
    assert_refused(witness, USAGE, "usage", "absolute path", "--socket", "relative")
    assert_refused(witness, USAGE, "usage", "107 bytes", "--socket", "/" + "x" * 107)
    assert_refused(witness, HYPERVISOR, "hypervisor", "cannot start a backup", "--socket", "/nowhere/socket")


@pytest.mark.parametrize("options, message", [
    (["--since", "foreign", "--full"], "not allowed with"),
    (["--checkpoint", "x", "--no-checkpoint"], "not allowed with"),
    (["--json", "--quiet"], "not allowed with"),
    (["--level", "0"], "from 1 to 19"),
    (["--level", "x"], "from 1 to 19"),
    (["--threads", "0"], "from 1 to 64"),
    (["--frame-size", "2M"], "64K, 128K"),
    (["--frame-size", "100000"], "64K, 128K"),
    (["--chunk-size", "12Q"], "is not a size"),
    (["--no-such-option"], "unknown option --no-such-option"),
])  # fmt: skip
def test_wrong_usage(witness, options, message):
    before = Before(witness)
    done = nbdpull(witness.vm.name, "-o", witness.store, *options)
    assert done.returncode == USAGE and message in done.stderr and "Traceback" not in done.stderr
    before.assert_same()
    assert not witness.store.exists()


@pytest.mark.parametrize("words", [[], ["bad-input"], ["pull"], ["restore"], ["verify"], ["show", "x"]])
def test_missing_arguments(words):
    done = nbdpull(*words)
    assert done.returncode == USAGE and done.stdout == "" and "; see nbdpull help" in done.stderr
    assert len(done.stderr.splitlines()) == 1
