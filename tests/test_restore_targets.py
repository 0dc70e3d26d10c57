"""Restore to every kind of target: each ends equal to the point, whatever it held; thin targets stay thin; what does
not fit or is in use is refused before the first byte. Also --onto, --delta and --salvage."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import stores
from bed.device import Device
from bed.images import as_root, exported, loop_device, old_data, raw_of
from bed.machine import Disk, wait_for
from command import run_bytes, start_nbdpull
from fake_nbd import FakeServer
from stores import KIB, MIB, Vm, scribble

from nbdpull.core import errors
from nbdpull.images import qcow2
from nbdpull.nbd import nbd_target
from nbdpull.operations.restore import Options, restore
from nbdpull.targets import opening, places

SIZE = 6 * MIB


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    """Four points of vda, which grows by 64 KiB each time, and vdb."""
    rng, vm = random.Random(5), Vm(tmp_path_factory.mktemp("targets") / "store")
    vm.add_disk("vda", SIZE)
    vm.add_disk("vdb", 500 * KIB)
    for number in range(4):
        vm.grow("vda", SIZE + number * 64 * KIB)
        scribble(vm, "vda", rng, count=8)
        scribble(vm, "vdb", rng, count=2, longest=100 * KIB)
        vm.pull(frame_size=256 * KIB)
    return vm


def to(vm, where, disk="vda", **how):
    return restore(Options(str(vm.root), to={disk: str(where)}, **how))


# -- every target -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_over_an_image_of_old_data(vm, tmp_path, kind, number):
    point = vm.points[number]
    path = old_data(tmp_path / f"old.{kind}", 9 * MIB, kind)
    os.chmod(path, 0o640)
    to(vm, path, point=point.id, force=True, kind=kind)
    assert raw_of(path, kind) == vm.images[point.id]["vda"]
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path))[0] == f"old.{kind}"


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("options", [("--discard=unmap",), ()])
def test_over_an_nbd_export_of_old_data(vm, tmp_path, number, options):
    point = vm.points[number]
    image = old_data(tmp_path / "old.raw", 7 * MIB)
    with exported(image, "raw", *options) as uri:
        to(vm, uri, point=point.id, force=True)
    assert raw_of(image, "raw") == vm.images[point.id]["vda"].ljust(7 * MIB, b"\0")


@as_root
@pytest.mark.parametrize("number", [0, 3])
def test_over_a_block_device_of_old_data(vm, tmp_path, number):
    point = vm.points[number]
    image = old_data(tmp_path / "old.raw", 7 * MIB)
    with loop_device(image) as device:
        with pytest.raises(errors.OutputExists, match="--force"):
            to(vm, device)
        restore(Options(str(vm.root), device, point=point.id, disks=["vda"], force=True))
    assert raw_of(image, "raw") == vm.images[point.id]["vda"].ljust(7 * MIB, b"\0")


def test_to_stdout(vm):
    for point in (vm.points[0], vm.points[3]):
        done = run_bytes("restore", vm.root, "-o", "-", "--disk", "vda", "--point", point.id)
        assert done.returncode == 0 and done.stdout == vm.images[point.id]["vda"]


def test_stdout_takes_one_disk_and_no_json(vm):
    for words in (["-o", "-"], ["-o", "-", "--disk", "vda", "--json"], ["--to", "vda=-", "--delta"]):
        assert run_bytes("restore", vm.root, *words).returncode == 2


def test_a_reader_of_stdout_that_goes_away(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 4 * MIB)
    vm.pull()
    words = f"{sys.executable} -m nbdpull restore {vm.root} -o - | head -c 10 >/dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], env=stores.package_environment(), capture_output=True, timeout=60)
    assert done.returncode == 141 and done.stderr == b""


@contextlib.contextmanager
def started(*arguments, **how):
    """A running nbdpull; if told to end, it has to end soon."""
    process = start_nbdpull(*arguments, text=False, **{"stdout": None, **how})
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


def test_a_signal_ends_the_wait_for_a_reader_of_stdout(vm):
    """The pipe is full, and nobody reads."""
    with started("restore", vm.root, "-o", "-", "--disk", "vda", stdout=subprocess.PIPE) as process:
        first = process.stdout.read(1)  # it has begun to write: much more than a pipe holds
        assert first == vm.images[vm.points[-1].id]["vda"][:1]


def test_a_signal_ends_the_wait_for_an_nbd_server(vm, tmp_path):
    """It is stopped, even when it is asked to flush, which may take any time."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(7 * MIB)
    with exported(image) as uri:
        server = next(int(pid) for pid in subprocess.check_output(["pgrep", "-f", f"qemu-nbd.*{image}.sock"]).split())
        os.kill(server, signal.SIGSTOP)
        try:
            with started("restore", vm.root, "--to", f"vda={uri}", "--disk", "vda", "--force") as process:
                wait_for(lambda: has_socket(process.pid), "the connection to the server")
        finally:
            os.kill(server, signal.SIGCONT)


def has_socket(pid):
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(each))
    return any("socket:" in each for each in found)


@pytest.mark.parametrize("options", ["cluster_size=4k", "preallocation=metadata,lazy_refcounts=on", "compat=0.10"])
def test_options_of_qcow2(vm, tmp_path, options):
    to(vm, tmp_path / "a.qcow2", image_options=options)
    assert raw_of(tmp_path / "a.qcow2", "qcow2") == vm.images[vm.points[-1].id]["vda"]
    if "4k" in options:
        output = subprocess.check_output(["qemu-img", "info", "--output=json", str(tmp_path / "a.qcow2")])
        assert json.loads(output)["cluster-size"] == 4096


def test_each_disk_to_a_place_of_its_own(vm, tmp_path):
    images = vm.images[vm.points[-1].id]
    result = restore(Options(str(vm.root), str(tmp_path / "out"), to={"vdb": str(tmp_path / "b.raw")}))
    assert raw_of(tmp_path / "b.raw", "raw") == images["vdb"]
    assert raw_of(tmp_path / "out" / "vda.qcow2", "qcow2") == images["vda"]
    assert result.files["vdb"] == str(tmp_path / "b.raw")
    assert sorted(os.listdir(tmp_path / "out")) == ["domain.xml", "vda.qcow2", "vda.qcow2.as-raw"]


def test_thin_stays_thin_on_a_target_of_old_data(tmp_path):
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 16 * MIB)
    vm.write("vda", 5 * MIB, b"y" * 64 * KIB)
    vm.pull()
    image = old_data(tmp_path / "old.raw", 16 * MIB)
    with exported(image, "raw", "--discard=unmap") as uri:
        to(vm, uri, force=True)
    assert os.stat(image).st_blocks * 512 < MIB


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_a_target_that_is_too_small(vm, tmp_path):
    """Sizes are checked before the first byte of any disk is written."""
    image = old_data(tmp_path / "old.raw", MIB)
    before = Path(image).read_bytes()
    with exported(image) as uri, pytest.raises(errors.OutputError, match="has 1.0 MiB .1048576 bytes., the disk needs"):
        restore(Options(str(vm.root), to={"vdb": str(tmp_path / "b.raw"), "vda": uri}, force=True))
    assert Path(image).read_bytes() == before
    assert not (tmp_path / "b.raw").exists()


@as_root
@pytest.mark.parametrize("how", [{"output": "out"}, {"to": {"vda": "a.raw"}}, {"to": {"vda": "a.raw"}, "delta": True}])
def test_a_raw_image_larger_than_a_file_can_be(tmp_path, monkeypatch, how):
    """Refused before the first byte, with the limit and the way out; nothing is left, not even an empty directory."""
    vm = Vm(tmp_path / "store")
    vm.xml = stores.domain_xml({"vda": "raw"})
    vm.pull_zeros("vda", 60 << 40)
    with Device(tmp_path / "mount", tmp_path, 64 * MIB) as device:
        monkeypatch.chdir(device.folder)
        if how.get("delta"):
            Path("a.raw").touch()
        before = sorted(device.folder.rglob("*"))
        with pytest.raises(errors.OutputError) as caught:
            restore(Options(str(vm.root), **how))
        info = str(caught.value)
        [limit] = re.findall(r"it would be a file of 60.0 TiB, and none can be larger than (\S+ TiB)", info)
        assert "--format qcow2" in info and sorted(device.folder.rglob("*")) == before
        with open("largest", "wb") as file:  # the figure is right, to the tenth that is shown
            file.truncate(int((float(limit.split()[0]) - 0.1) * (1 << 40)))
            with pytest.raises(OSError, match="File too large"):
                file.truncate(int((float(limit.split()[0]) + 0.1) * (1 << 40)))
        os.unlink("largest")
        if not how.get("delta"):
            result = restore(Options(str(vm.root), **how, kind="qcow2"))
            info = subprocess.check_output(["qemu-img", "info", "--output=json", result.files["vda"]])
            assert json.loads(info)["virtual-size"] == 60 << 40
        os.chdir(tmp_path)


@pytest.mark.parametrize("how", [{"output": "file/out"}, {"output": "file"}, {"to": {"vda": "none/a.raw"}},
                                 {"output": "out", "to": {"vda": "none/a.raw"}}])  # fmt: skip
def test_no_image_can_be_made_there(vm, tmp_path, monkeypatch, how):
    """Before the files are verified, which may take hours."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"mine")
    monkeypatch.setattr("nbdpull.repository.series.Series.file_flaw", lambda *_: pytest.fail("a file was proved"))
    with pytest.raises(errors.OutputError):
        restore(Options(str(vm.root), **how))
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("how", [{"output": "closed/out"}, {"to": {"vda": "closed/a.raw"}}])
def test_no_image_may_be_made_there(monkeypatch, how):
    with stores.unprivileged() as folder:
        vm = stores.chain(folder / "store")
        (folder / "closed").mkdir(0o500)
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            with pytest.raises(errors.OutputError, match="Permission denied"):
                restore(Options(str(vm.root), **how))
        assert os.listdir(folder / "closed") == []


def test_no_empty_folder_is_left(vm, tmp_path, monkeypatch):
    """None that was made; what existed before stays, and so does one that holds something by now."""

    def fail(**_):
        raise errors.OutputError("cannot write")

    for name in ("a/b/c", "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        with pytest.raises(errors.OutputError, match="cannot write"):
            restore(Options(str(vm.root), str(tmp_path / name)), fail)
    assert os.listdir(tmp_path) == ["there"]

    def fill(**_):
        (tmp_path / "a/b/c/mine").write_bytes(b"")
        fail()

    with pytest.raises(errors.OutputError, match="cannot write"):
        restore(Options(str(vm.root), str(tmp_path / "a/b/c")), fill)
    assert os.listdir(tmp_path / "a/b/c") == ["mine"]


def test_a_read_only_export(vm, tmp_path):
    image = old_data(tmp_path / "old.raw", 7 * MIB)
    with exported(image, "raw", "-r") as uri, pytest.raises(errors.OutputError, match="read-only"):
        to(vm, uri, force=True)


@pytest.mark.parametrize("option", ["backing_file=data,backing_fmt=raw", "data_file=data", "size=1M"])
def test_options_that_name_another_file_or_size(vm, tmp_path, monkeypatch, option):
    """Old data would show through, or be overwritten without --force."""
    monkeypatch.chdir(tmp_path)
    old_data("data", 7 * MIB)
    with pytest.raises(errors.UsageError, match=f"--image-options: {option.partition('=')[0]} is refused"):
        to(vm, "a.qcow2", image_options=f"cluster_size=64k,{option}")
    assert os.listdir() == ["data"] and set(Path("data").read_bytes()) == {0xEE}


@pytest.mark.parametrize("how", ["to", "output"])
def test_a_block_device_that_is_not_there(vm, how):
    """A file in /dev would be an image in memory, and taken for the device."""
    path = f"/dev/nbdpull-{os.getpid()}"
    with pytest.raises(errors.UsageError, match="no block device"):
        restore(Options(str(vm.root), **({"output": path} if how == "output" else {"to": {"vda": path}})))
    assert not os.path.lexists(path)


def test_a_file_that_is_not_an_image_is_never_replaced(vm, tmp_path):
    os.mkfifo(tmp_path / "a.raw")
    with pytest.raises(errors.OutputExists, match="not a regular file"):
        to(vm, tmp_path / "a.raw", force=True)
    assert (tmp_path / "a.raw").is_fifo() and os.listdir(tmp_path) == ["a.raw"]


def test_an_uri_that_no_server_answers(vm, tmp_path):
    with pytest.raises(errors.OutputError, match="cannot connect"):
        to(vm, f"nbd+unix:///?socket={tmp_path}/none", force=True)


@pytest.mark.parametrize("how", [
    {"to": {"vda": "x"}, "onto": True, "delta": True}, {}, {"to": {"vda": "x"}, "define": True},
    {"to": {"vda": "x.raw"}, "image_options": "cluster_size=4k"}, {"to": {"vda": "nbd://h/"}, "kind": "qcow2"},
    {"to": {"vda": "x", "vdb": "x"}}, {"output": "-"}, {"to": {None: "x"}, "onto": True},
])  # fmt: skip
def test_contradictions(vm, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UsageError) as caught:
        restore(Options(str(vm.root), **how))
    assert caught.value.exit_code == 2
    assert os.listdir(tmp_path) == []


# -- --onto -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_onto_an_image_of_the_base(tmp_path, kind):
    """Two points on top of a checkpoint elsewhere, with growth and zeroes; unchanged data is left alone."""
    rng, vm = random.Random(7), Vm(tmp_path / "store")
    vm.add_disk("vda", SIZE)
    vm.write("vda", 0, rng.randbytes(SIZE))
    base = tmp_path / f"base.{kind}"
    (tmp_path / "base").write_bytes(vm.disks["vda"].content.tobytes())
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, tmp_path / "base", base], check=True)
    vm.disks["vda"].dirty[:] = False
    vm.zero("vda", MIB, 300 * KIB)
    vm.pull(since="elsewhere")
    vm.grow("vda", SIZE + MIB)
    scribble(vm, "vda", rng)
    point = vm.pull()
    done = run_bytes("restore", vm.root, "--onto", base, "--format", kind)
    assert done.returncode == 0, done.stderr
    assert raw_of(base, kind) == vm.images[point.id]["vda"]


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_since_into_an_empty_store_and_onto_a_copy_of_the_base(private_libvirt, machine, tmp_path, kind):
    """What changed since somebody's checkpoint, on top of the disk as it was then."""
    vm = machine({"vda": 8 * MIB})
    vm.write("vda", 0, 6 * MIB, 0x11)
    vm.create_checkpoint("theirs")
    vm.freeze_copy("vda", tmp_path / "base.raw")
    vm.write("vda", MIB, 100 * KIB, 0x22)
    vm.write_zeroes("vda", 2 * MIB, MIB, unmap=True)
    vm.discard("vda", 4 * MIB, MIB)
    vm.resize("vda", 9 * MIB)
    vm.write("vda", 8 * MIB, 64 * KIB, 0x33)
    done = run_bytes("pull", vm.name, "-c", private_libvirt.uri, "-o", tmp_path / "store", "--since", "theirs")
    assert done.returncode == 0, done.stderr
    base = tmp_path / f"copy.{kind}"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, tmp_path / "base.raw", base], check=True)
    assert run_bytes("restore", tmp_path / "store", "-o", tmp_path / "out").returncode == 11  # alone it is no image
    done = run_bytes("restore", tmp_path / "store", "--onto", f"vda={base}", "--format", kind, "--json")
    assert done.returncode == 0, done.stderr
    # What changed, what it grew by; and what is zero or at the end of the data: nobody knows what it was then.
    assert json.loads(done.stdout.splitlines()[-1])["written_bytes"]["vda"] == 6 * MIB + 128 * KIB
    assert raw_of(base, kind) == vm.content("vda")


@pytest.mark.parametrize("again", [False, True], ids=["one", "two points"])
def test_a_disk_that_was_shrunk_and_grown_since_a_foreign_checkpoint(machine, tmp_path, again):
    """It is zero there, with clean bits, and it is unknown whether it was so at the checkpoint."""
    vm = machine({"vda": 4 * MIB})
    vm.write("vda", 0, 4 * MIB, 0x11)
    vm.create_checkpoint("theirs")
    base = vm.freeze_copy("vda", tmp_path / "base.raw")
    pull = ["pull", vm.name, "-c", vm.bed.uri, "-o", tmp_path / "store", "--json", "--since"]

    def made(since):
        done = run_bytes(*pull, since, "--checkpoint", f"after-{since}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])["details"]["disks"][0]

    if again:
        made("theirs")
    vm.resize("vda", 2 * MIB)
    vm.resize("vda", 4 * MIB)
    vm.write("vda", MIB, 64 * KIB, 0x22)
    disk = made("after-theirs" if again else "theirs")
    assert (disk["mode"], disk["dirty_bytes"], disk["zero_bytes"]) == ("incremental", 64 * KIB, 2 * MIB)
    done = run_bytes("restore", tmp_path / "store", "--onto", f"vda={base}", "--format", "raw")
    assert done.returncode == 0, done.stderr
    assert base.read_bytes() == vm.content("vda")


def test_data_uncovered_again_since_a_foreign_checkpoint(machine, tmp_path):
    """The last cluster holds data past the end of a disk that was shrunk before, with clean bits."""
    vm = machine({"vda": 4 * MIB})
    vm.write("vda", 0, 4 * MIB, 0x11)
    vm.resize("vda", 2 * MIB + 512)
    vm.create_checkpoint("theirs")
    base = vm.freeze_copy("vda", tmp_path / "base.raw")
    vm.resize("vda", 4 * MIB)
    done = run_bytes("pull", vm.name, "-c", vm.bed.uri, "-o", tmp_path / "store", "--since", "theirs")
    assert done.returncode == 0, done.stderr
    done = run_bytes("restore", tmp_path / "store", "--onto", f"vda={base}", "--format", "raw")
    assert done.returncode == 0, done.stderr
    assert base.read_bytes() == vm.content("vda")


def test_a_disk_that_was_shrunk_since_a_foreign_checkpoint(machine, tmp_path):
    """The image keeps its size, and nothing that was cut off remains in it."""
    vm = machine({"vda": 4 * MIB})
    vm.write("vda", 0, 4 * MIB, 0x11)
    vm.create_checkpoint("theirs")
    base = vm.freeze_copy("vda", tmp_path / "base.raw")
    vm.resize("vda", 2 * MIB + 512)
    done = run_bytes("pull", vm.name, "-c", vm.bed.uri, "-o", tmp_path / "store", "--since", "theirs")
    assert done.returncode == 0, done.stderr
    done = run_bytes("restore", tmp_path / "store", "--onto", f"vda={base}", "--format", "raw")
    assert done.returncode == 0, done.stderr
    assert base.read_bytes() == vm.content("vda").ljust(4 * MIB, b"\0")


def test_a_request_is_left_as_it_was(tmp_path):
    """The only disk, for which no name was given, got its name in the request."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", MIB)
    vm.pull()
    request = Options(str(vm.root), to={None: str(tmp_path / "a.raw")}, kind="raw", force=True)
    for _ in range(2):
        assert restore(request).files == {"vda": str(tmp_path / "a.raw")}
        assert request.to == {None: str(tmp_path / "a.raw")} and request.disks == []


def test_a_disk_with_two_targets(tmp_path):
    """One of them without its name, so that the command line cannot notice it."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", KIB)
    vm.pull()
    with pytest.raises(errors.UsageError, match="disk vda has two targets"):
        restore(Options(str(vm.root), to={None: str(tmp_path / "a"), "vda": str(tmp_path / "b")}, kind="raw"))
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def test_onto_is_for_points_without_a_full_pull(vm, tmp_path):
    image = old_data(tmp_path / "a.qcow2", 7 * MIB, "qcow2")
    before = Path(image).read_bytes()
    with pytest.raises(errors.UsageError, match="leave --onto out"):
        to(vm, image, onto=True)
    assert Path(image).read_bytes() == before


# -- --delta ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_delta_writes_only_what_differs(vm, tmp_path, kind):
    path, point = tmp_path / f"vda.{kind}", vm.points[-1]
    to(vm, path, kind=kind)
    assert to(vm, path, delta=True, kind=kind).written_bytes == {"vda": 0}
    subprocess.run(["qemu-io", "-f", kind, "-c", "write -q -P 0xee 1000000 5000", str(path)], check=True)
    assert 0 < to(vm, path, delta=True, kind=kind).written_bytes["vda"] <= 12 * KIB
    assert raw_of(path, kind) == vm.images[point.id]["vda"]


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_delta_from_any_point_to_any_other(vm, tmp_path, kind):
    path, order = tmp_path / f"vda.{kind}", [3, 0, 2, 1, 3]
    to(vm, path, point=vm.points[1].id, kind=kind)
    for number in order:
        point = vm.points[number]
        result = to(vm, path, point=point.id, delta=True, kind=kind)
        image = vm.images[point.id]["vda"]
        found = raw_of(path, kind)
        assert found[: len(image)] == image and not any(found[len(image) :])  # it was larger once
        assert result.written_bytes["vda"] < len(image)


def test_an_answer_of_the_target_that_is_too_short(tmp_path):
    """What is taken to be there already is not written: so nothing may be taken for it that was not reported."""

    def truth(_context, _offset, length):
        return [(length, 0)]

    path = str(tmp_path / "fake")
    server = FakeServer(path, MIB, truth, read=lambda offset, length: bytes(length // 2), read_only=False)
    opened = nbd_target.NbdTarget(lambda handle: handle.aio_connect_unix(path), "fake", 1)
    with server, opened, pytest.raises(errors.OutputError, match="cannot read fake"):
        opened.read(0, 65536)


def test_delta_over_nbd(vm, tmp_path):
    image = old_data(tmp_path / "old.raw", 7 * MIB)
    with exported(image) as uri:
        assert to(vm, uri, delta=True).written_bytes["vda"] == 7 * MIB
        assert to(vm, uri, delta=True).written_bytes["vda"] == 0
    assert raw_of(image, "raw") == vm.images[vm.points[-1].id]["vda"].ljust(7 * MIB, b"\0")


def test_delta_onto_a_file_that_is_not_an_image(vm, tmp_path):
    (tmp_path / "a.img").write_bytes(bytes(8 * MIB))
    with pytest.raises(errors.UsageError, match="is not a qcow2 image; use --format raw"):
        to(vm, tmp_path / "a.img", delta=True, kind="qcow2")
    with pytest.raises(errors.OutputError, match="No such file"):
        to(vm, tmp_path / "none.qcow2", delta=True)


@pytest.mark.parametrize("how", [{"delta": True}, {"force": True}])
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_the_image_of_a_running_vm_is_refused(vm, machine, kind, how):
    """It is neither changed while the VM uses it, nor replaced, so that the VM would write to a file without a name."""
    running = machine({"vda": Disk(SIZE, kind)})
    running.write("vda", 0, MIB)
    path = running.disks["vda"].path
    before = path.read_bytes(), path.stat().st_ino
    with pytest.raises(errors.Busy, match="shut it down first"):
        to(vm, path, kind=kind, **how)
    assert (path.read_bytes(), path.stat().st_ino) == before


@as_root
@pytest.mark.parametrize("how", [{"delta": True}, {"force": True}])
def test_a_device_that_qemu_uses_is_refused(vm, tmp_path, how):
    with loop_device(old_data(tmp_path / "device.raw", 8 * MIB)) as device:
        user = subprocess.Popen(["qemu-io", "-f", "raw", device], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            user.stdin.write(b"write -P 0xee 0 4k\n")
            user.stdin.flush()
            while b"wrote" not in user.stdout.readline():
                assert user.poll() is None
            with pytest.raises(errors.Busy, match="shut it down first"):
                to(vm, device, **how)
        finally:
            user.communicate()
    assert set((tmp_path / "device.raw").read_bytes()) == {0xEE}


def test_the_next_pull_has_what_a_rollback_wrote(private_libvirt, machine, tmp_path):
    """A rolled back qcow2 keeps its bitmaps, and they record the rollback: so the series continues."""
    vm = machine({"vda": 8 * MIB})
    root = tmp_path / "store"
    pull = ["pull", vm.name, "-c", private_libvirt.uri, "-o", root, "--quiet"]
    vm.write("vda", 0, MIB, 1)
    assert run_bytes(*pull).returncode == 0
    first = vm.content("vda")
    vm.write("vda", 512 * KIB, 2 * MIB, 2)
    assert run_bytes(*pull).returncode == 0
    vm.stop()
    points = json.loads(run_bytes("list", root, "--json").stdout)
    done = run_bytes("restore", root, "--point", points[0]["id"], "--delta", "--to", f"vda={vm.disks['vda'].path}")
    assert done.returncode == 0, done.stderr
    vm.start()
    assert vm.content("vda") == first
    assert run_bytes(*pull).returncode == 0
    last = json.loads(run_bytes("list", root, "--json").stdout)[-1]
    assert last["disks"][0]["mode"] == "incremental"
    assert run_bytes("restore", root, "-o", "-").stdout == first


# -- damage -----------------------------------------------------------------------------------------------------------


def damaged_chunk(vm, number=1):
    """A chunk file of vda in a middle point with a flipped bit, in the middle of its data."""
    path = next(p for p in stores.files(vm.folder / vm.points[number].id) if p.name == "vda.0000.zst")
    data = path.read_bytes()
    magic, start, stop = [frame for frame in stores.zstd_frames(data) if frame[0] == 0xFD2FB528][2]
    return stores.damaged(path, stores.flipped(data, (start + stop) // 2))


@pytest.mark.parametrize("how", [{}, {"verify": False}])
def test_damage_is_refused(vm, tmp_path, how):
    with damaged_chunk(vm), pytest.raises(errors.Damaged):
        restore(Options(str(vm.root), str(tmp_path / "out"), **how))
    assert not list(tmp_path.rglob("*.qcow2*"))


@pytest.mark.parametrize("kind", ["raw", "qcow2", "nbd", "delta"])
def test_salvage(vm, tmp_path, kind):
    """Everything but the lost ranges is that of the point; they read as zero, even where old data was."""
    path = tmp_path / "a.img"
    with contextlib.ExitStack() as stack:
        where, options = path, ["--format", "raw" if kind == "delta" else kind]
        if kind in ("nbd", "delta"):
            old_data(path, 7 * MIB)
            options = ["--force"] if kind == "nbd" else ["--delta", "--format", "raw"]
        if kind == "nbd":
            where = stack.enter_context(exported(str(path)))
        stack.enter_context(damaged_chunk(vm))
        done = run_bytes("restore", vm.root, "--to", f"vda={where}", "--salvage", "--json", *options)
    assert done.returncode == 11, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    expected = bytearray(vm.images[vm.points[-1].id]["vda"].ljust(7 * MIB if kind in ("nbd", "delta") else 0, b"\0"))
    for lost in result["lost"]:
        assert lost["disk"] == "vda" and "not what was stored" in lost["problem"]
        expected[lost["offset"] : lost["offset"] + lost["length"]] = bytes(lost["length"])
    assert 0 < sum(lost["length"] for lost in result["lost"]) <= 256 * KIB
    assert raw_of(path, "qcow2" if kind == "qcow2" else "raw") == expected


def test_salvage_with_an_index_lost(vm, tmp_path):
    """The other disk is restored; nothing is known of this one, and no image of it is made."""
    with stores.damaged(stores.index_of(vm, vm.points[-1], "vda"), None):
        done = run_bytes("restore", vm.root, "-o", tmp_path / "out", "--salvage", "--format", "raw")
    assert done.returncode == 11 and b"LOST vda: bytes 0 to" in done.stdout
    assert sorted(os.listdir(tmp_path / "out")) == ["domain.xml", "vdb.raw"]
    assert raw_of(tmp_path / "out" / "vdb.raw", "raw") == vm.images[vm.points[-1].id]["vdb"]


def test_salvage_with_a_directory_lost(vm, tmp_path):
    """The other disk is restored, and the result names no image that does not exist."""
    point = vm.points[-1]
    with stores.damaged(vm.folder / point.manifest.disk("vda").directory.path, None):
        words = ["restore", vm.root, "--format", "raw", "--json"]
        assert run_bytes(*words, "-o", tmp_path / "refused").returncode == 11
        done = run_bytes(*words, "-o", tmp_path / "out", "--salvage")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    result, lost = events[-1], [event for event in events if event["event"] == "lost"]
    assert (done.returncode, result["exit_code"], list(result["files"])) == (11, 11, ["vdb"])
    assert [(each["disk"], each["offset"], each["length"]) for each in lost] == [
        ("vda", 0, len(vm.images[point.id]["vda"]))
    ]
    assert sorted(os.listdir(tmp_path / "out")) == ["domain.xml", "vdb.raw"] and not (tmp_path / "refused").exists()
    assert raw_of(tmp_path / "out" / "vdb.raw", "raw") == vm.images[point.id]["vdb"]


def test_salvage_without_a_point_before(tmp_path):
    """There is nothing to salvage: no point needs another one's manifest."""
    vm = stores.chain(tmp_path / "store")
    for point in vm.points[:-1]:
        (vm.folder / point.id / "manifest.json").unlink()
    assert run_bytes("restore", vm.root, "-o", tmp_path / "out", "--format", "raw").returncode == 0
    for disk, content in vm.images[vm.points[-1].id].items():
        assert raw_of(tmp_path / "out" / f"{disk}.raw", "raw") == content


def test_salvage_without_a_file_of_the_domain(vm, tmp_path):
    """It is reported like a lost range, when it is found and in the end."""
    with stores.damaged(vm.folder / vm.points[-1].id / "domain.xml", b"<domain/>"):
        done = run_bytes("restore", vm.root, "-o", tmp_path / "out", "--salvage", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    said = [event for event in events if event["event"] == "lost"]
    every = ("event", "time", "schema", "domain")  # line has these
    lost = [{name: event[name] for name in event if name not in every} for event in said]
    assert done.returncode == 11 and events[-1]["lost"] == lost
    assert [(each["disk"], each["offset"], each["length"]) for each in lost] == [(None, None, None)]
    assert sorted(os.listdir(tmp_path / "out")) == ["vda.qcow2", "vdb.qcow2"]


@pytest.mark.parametrize("options", [[], ["--no-verify"]])
def test_a_damaged_file_of_the_domain_is_refused_first(vm, tmp_path, options):
    """Even with --no-verify: these files have no digests of frames that would show it later."""
    with stores.damaged(vm.folder / vm.points[-1].id / "domain.xml", b"<domain/>"):
        done = run_bytes("restore", vm.root, "-o", tmp_path / "out", *options)
    assert done.returncode == 11 and b"nothing was restored" in done.stderr and done.stderr.count(b"\n") == 1
    assert not (tmp_path / "out").exists()


def damaged_frame(vm, disk):
    """Inside the block, one bit of a visible frame in a chunk file of the newest point is flipped."""
    directory = stores.directory_of(vm, vm.points[-1], disk)
    record = next(directory.windows()).flat()[0]
    path = vm.folder / directory.files[record["chunk"]].path
    return stores.damaged(path, stores.flipped(path.read_bytes(), int(record["position"]) + int(record["stored"]) - 1))


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_damaged_frame_leaves_no_new_image(vm, tmp_path, kind):
    """It is found when it should be written: an existing image stays, and a sound disk gets no image either."""
    (tmp_path / "vdb").write_bytes(b"old")
    with damaged_frame(vm, "vda"), pytest.raises(errors.Damaged, match="vda.*nothing was restored .*--salvage"):
        to = {"vda": str(tmp_path / "vda"), "vdb": str(tmp_path / "vdb")}
        restore(Options(str(vm.root), to=to, force=True, kind=kind))
    assert [path.name for path in tmp_path.iterdir()] == ["vdb"] and (tmp_path / "vdb").read_bytes() == b"old"


def test_nothing_is_written_over_where_a_frame_is_damaged(vm, tmp_path):
    """Not even of a sound disk, or if the other one is to be a new image."""
    image, other = (Path(old_data(tmp_path / name, 9 * MIB)) for name in ("one", "two"))
    before, delta = image.read_bytes(), {"delta": True, "kind": "raw"}
    with damaged_frame(vm, "vda"), exported(str(other), "raw") as uri:
        for to, how in (
            ({"vda": str(image)}, delta),
            ({"vdb": str(image), "vda": uri}, delta),
            ({"vdb": uri, "vda": str(tmp_path / "new")}, {"force": True}),
        ):
            with pytest.raises(errors.Damaged, match="SHA-256.*nothing was restored"):
                restore(Options(str(vm.root), to=to, **how))
        assert run_bytes("restore", vm.root, "-o", "-", "--disk", "vda").stdout == b""
    assert image.read_bytes() == before == other.read_bytes() and not (tmp_path / "new").exists()


def test_no_verify_reads_no_file_twice(vm, tmp_path, monkeypatch):
    monkeypatch.setattr("nbdpull.repository.series.Series.file_flaw", lambda *_: pytest.fail("a file was proved"))
    to(vm, tmp_path / "a.raw", verify=False)
    assert raw_of(tmp_path / "a.raw", "raw") == vm.images[vm.points[-1].id]["vda"]


# -- qcow2 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_qcow2_of_any_size(tmp_path, seed):
    """Sparse data all over images of up to 3 TiB, read by QEMU itself."""
    rng = random.Random(seed)
    size = rng.choice([64 * KIB, 513 * MIB, 3 << 40]) + 512 * rng.randrange(1000)
    path = tmp_path / "a.qcow2"
    parts = {}
    for block in {0, (size - 1) // MIB, *(rng.randrange(size // MIB + 1) for _ in range(60))}:
        start = block * MIB + rng.randrange(16) * 32 * KIB
        stop = min(start + rng.randrange(1, 9) * 37 * 512, (block + 1) * MIB, size)
        parts.update({start: rng.randbytes(stop - start)} if start < stop else {})
    with opening.open_target(places.place(str(path)), size, 1) as image:
        for start in rng.sample(sorted(parts), len(parts)):
            image.write([(start, parts[start])])
        image.flush()
    subprocess.run(["qemu-img", "check", "-q", str(path)], check=True)
    extents = json.loads(subprocess.check_output(["qemu-img", "map", "--output=json", str(path)]))
    mapped = {
        extent["start"] // qcow2.CLUSTER + n
        for extent in extents if extent["data"]
        for n in range(-(-extent["length"] // qcow2.CLUSTER))
    }  # fmt: skip
    touched = [qcow2.clusters(start, len(data)) for start, data in parts.items()]
    assert mapped == {first + n for first, count in touched for n in range(count)}
    with open(path, "rb") as file:
        for extent in extents:
            if not extent["data"]:
                continue
            file.seek(extent["offset"])
            content = bytearray(extent["length"])
            for start, data in parts.items():
                if extent["start"] <= start < extent["start"] + extent["length"]:
                    content[start - extent["start"] : start - extent["start"] + len(data)] = data
            assert file.read(extent["length"]).ljust(extent["length"], b"\0") == content
