"""Serve: every NBD client reads a point as it was, through sockets and ports, and nothing is left behind."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from contextlib import contextmanager
from pathlib import Path

import identities
import pytest
import sealed
from bed.address import free_port
from bed.guest import ext4_image
from bed.machine import wait_for
from command import nbdpull, start_nbdpull
from stores import KIB, MIB, Vm, chain, chunks_of, damaged, flipped, index_of, package_environment

from nbdpull.core import errors
from nbdpull.crypto import identity_files, keys
from nbdpull.repository import keyring
from nbdpull.serving import nbd_server

DEBUGFS = shutil.which("debugfs", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


@contextmanager
def served(vm, *options, wait=20):
    """Run `nbdpull serve --json`; give the event "serving"."""
    process = start_nbdpull("serve", vm.root, "--json", *options)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        about = json.loads(line)
        about["process"] = process
        about["uri"] = {each["disk"]: each["uri"] for each in about.get("exports", [])}
        yield about
    finally:
        process.terminate()
        process.communicate(timeout=wait)


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def failure(vm, *options):
    """Return the exit code and the line on stderr of a serve that fails."""
    done = nbdpull("serve", vm.root, *options, timeout=30)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


def copied(uri, path):
    run("nbdcopy", uri, path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("serve") / "store", points=5, size=4 * MIB + 512)


def test_every_point_of_a_chain_by_every_client(vm, tmp_path):
    for number, point in enumerate(vm.points):
        expected = vm.images[point.id]
        with served(vm, "--point", point.id) as about:
            assert (about["event"], about["point"], about["domain"]) == ("serving", point.id, vm.name)
            for disk, uri in about["uri"].items():
                assert copied(uri, tmp_path / f"{number}{disk}") == expected[disk]
            raw = tmp_path / f"{number}vda"
            assert "identical" in run("qemu-img", "compare", "-f", "raw", "-F", "raw", about["uri"]["vda"], raw)


def test_nbdinfo_sees_exports_and_holes(tmp_path):
    vm = Vm(tmp_path)
    vm.add_disk("vda", 4 * MIB)
    vm.add_disk("vdb", 64 * KIB)
    vm.write("vda", MIB, random.Random(1).randbytes(128 * KIB))
    vm.pull()
    vm.zero("vda", MIB, 64 * KIB)
    vm.pull()
    with served(vm) as about:
        listing = run("nbdinfo", "--list", "--json", about["uri"]["vda"])
        exports = {each["export-name"]: each for each in json.loads(listing)["exports"]}
        assert set(exports) == {"vda", "vdb"}
        assert exports["vda"]["is_read_only"] and exports["vda"]["can_multi_conn"]
        assert exports["vda"]["export-size"] == 4 * MIB
        found = [(e["offset"], e["length"], e["type"]) for e in json.loads(run("nbdinfo", "--map", "--json",
                                                                              about["uri"]["vda"]))]  # fmt: skip
        assert found == [(0, MIB + 64 * KIB, 3), (MIB + 64 * KIB, 64 * KIB, 0),
                         (MIB + 128 * KIB, 4 * MIB - MIB - 128 * KIB, 3)]  # fmt: skip
        default = about["uri"]["vda"].replace("/vda?", "?")
        assert run("nbdinfo", "--size", default).strip() == str(4 * MIB)


def test_the_overlay_line_works_as_printed(vm, tmp_path):
    with served(vm) as about:
        line = about["exports"][0]["overlay"]
        subprocess.run(line, shell=True, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
        overlay = tmp_path / "vda-overlay.qcow2"
        run("qemu-io", "-f", "qcow2", "-c", "write -P 0x77 4096 4096", overlay)
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, tmp_path / "raw")
        expected = bytearray(vm.images[vm.points[-1].id]["vda"])
        expected[4096:8192] = b"\x77" * 4096
        assert (tmp_path / "raw").read_bytes()[: len(expected)] == bytes(expected)


def test_writes_are_discarded(vm, tmp_path):
    expected = {disk: bytearray(data) for disk, data in vm.images[vm.points[-1].id].items()}
    steps = {
        "vda": [("write -P 0x66", 0, MIB, 0x66), ("write -P 0x66", 3 * MIB - 1024, 2048, 0x66),
                ("write -z", MIB + 4096, 300 * KIB, 0), ("discard", 64 * KIB, 64 * KIB, 0)],
        "vdb": [("write -P 0x77", 290 * KIB, 10 * KIB, 0x77)],
    }  # fmt: skip
    with served(vm, "--writable") as about:
        for disk, uri in about["uri"].items():
            run("qemu-io", "-f", "raw", *(f"-c{what} {at} {size}" for what, at, size, _ in steps[disk]), uri)
            for _, at, size, value in steps[disk]:
                expected[disk][at : at + size] = bytes([value]) * size
            assert copied(uri, tmp_path / disk) == expected[disk]
    with served(vm) as about:
        assert copied(about["uri"]["vda"], tmp_path / "2") == vm.images[vm.points[-1].id]["vda"]
        done = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 4k", about["uri"]["vda"]], capture_output=True)
        assert done.returncode == 1


def test_a_port(vm, tmp_path):
    port = free_port()
    with served(vm, "--port", port, "--disk", "vdb") as about:
        assert about["uri"] == {"vdb": f"nbd://127.0.0.1:{port}/vdb"}
        assert copied(about["uri"]["vdb"], tmp_path / "1") == vm.images[vm.points[-1].id]["vdb"]
        code, message = failure(vm, "--port", port)
        assert code == 9 and "in use" in message


def test_many_clients_some_of_which_are_killed(tmp_path):
    """They have many requests in flight, whose replies nobody reads any more."""
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 32 * MIB)
    vm.write("vda", 0, random.Random(1).randbytes(32 * MIB))
    vm.pull(frame_size=MIB)
    expected = vm.images[vm.points[-1].id]["vda"]
    with served(vm, "--cache", "1M") as about:
        uri = about["uri"]["vda"]
        copies = [subprocess.Popen(["nbdcopy", uri, str(tmp_path / str(n))]) for n in range(5)]
        for attempt in range(20):
            client = subprocess.Popen(["nbdcopy", "--requests=64", uri, "null:"])
            time.sleep(0.02 + attempt / 400)
            client.kill()
            client.wait()
        assert [copy.wait(60) for copy in copies] == [0] * 5
        assert all((tmp_path / str(n)).read_bytes() == expected for n in range(5))
        assert about["process"].poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_by_a_signal_and_leaves_nothing(vm, tmp_path, number):
    with served(vm, "--socket", tmp_path / "s") as about:
        assert "s" in os.listdir(tmp_path)
        about["process"].send_signal(number)
        out, err = about["process"].communicate(timeout=20)
        assert about["process"].returncode == 0 and err == ""
        assert json.loads(out)["ok"]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [["--socket", "here"], []])
def test_nbdkit_does_not_outlive_nbdpull(vm, tmp_path, monkeypatch, options):
    """Its socket is removed, too, with the directory that was made for one: the same command works again."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with served(vm, *options) as about:
        client = subprocess.Popen(["nbdcopy", about["uri"]["vda"], "-"], stdout=subprocess.PIPE)  # that never reads on
        assert client.stdout.read(1) is not None and len(os.listdir()) == 1
        about["process"].kill()
        about["process"].wait()
        wait_for(lambda: os.listdir() == [], "end of nbdkit and its socket")
        client.kill()
        client.communicate()


def test_text_for_a_person(vm):
    process = subprocess.Popen([sys.executable, "-m", "nbdpull", "serve", str(vm.root)], stdout=subprocess.PIPE,
                               text=True, env=package_environment())  # fmt: skip
    lines = [process.stdout.readline() for _ in range(6)]
    process.terminate()
    process.communicate(timeout=20)
    assert vm.points[-1].id in lines[0]
    assert re.search(r"^vda .* nbd\+unix:///vda\?socket=/", lines[1])
    assert lines[4].startswith("qemu-img create -f qcow2 -F raw -b ")


def test_bad_input(vm, tmp_path):
    assert failure(vm, "--disk", "vdz") == (
        3, f"nbdpull: point {vm.points[-1].id} has no disk vdz; it has: vda, vdb\n")  # fmt: skip
    assert failure(vm, "--point", "20200101T000000Z-aaaaaa")[0] == 10
    assert failure(vm, "--domain", "nobody")[0] == 10
    (tmp_path / "there").touch()
    assert failure(vm, "--socket", tmp_path / "there")[0] == 9
    assert failure(vm, "--socket", tmp_path / "no folder" / "s")[0] == 9
    assert failure(vm, "--socket", tmp_path / ("x" * 100))[0] == 2


def test_damage(vm, tmp_path):
    point = vm.points[0]
    index = index_of(vm, vm.points[-1], "vda")
    with damaged(index, flipped(index.read_bytes(), 30)):
        code, message = failure(vm)
        assert code == 11 and "vda.index" in message
    chunk = vm.folder / chunks_of(vm, point, "vda")[0].path
    with damaged(chunk, chunk.read_bytes()[:200]), served(vm, "--point", point.id) as about:
        done = subprocess.run(["nbdcopy", about["uri"]["vda"], "null:"], capture_output=True, text=True)
        assert done.returncode == 1
        assert copied(about["uri"]["vdb"], tmp_path / "1") == vm.images[point.id]["vdb"]
        events = [json.loads(about["process"].stdout.readline())]
        assert events[0]["event"] == "trouble" and "cut short" in events[0]["message"]


def test_a_disk_too_large_for_memory(vm, tmp_path, monkeypatch):
    """As with an attacker's index: one line, and not the log of another program."""
    lines = ["from nbdpull.repository import lookup", "def fail(*_, **__):", " raise MemoryError",
             "lookup.RandomImage.{} = fail"]  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    hook = tmp_path / "sitecustomize.py"
    hook.write_text("\n".join(lines).format("__init__"))
    with pytest.raises(errors.NbdpullError, match=f"^{errors.NO_MEMORY}$"):
        nbd_server.Server(nbd_server.Request(str(vm.root)))
    hook.write_text("\n".join(lines).format("read_into"))
    with nbd_server.Server(nbd_server.Request(str(vm.root))) as server:
        uri = next(each.uri for each in server.exports if each.disk == "vda")
        assert subprocess.run(["nbdcopy", uri, "null:"], capture_output=True).returncode == 1
        assert server.troubles() == [errors.NO_MEMORY]


def test_a_read_that_fails_by_an_internal_error(vm, tmp_path, monkeypatch):
    """It was an I/O error that only nbdkit's log had: a drill whose guest came up in spite of it passed."""
    lines = ["from nbdpull.repository import lookup", "def fail(*_, **__):", " raise IndexError('off by one')",
             "lookup.RandomImage.read_into = fail"]  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    with nbd_server.Server(nbd_server.Request(str(vm.root))) as server:
        uri = next(each.uri for each in server.exports if each.disk == "vda")
        assert subprocess.run(["nbdcopy", uri, "null:"], capture_output=True).returncode == 1
        assert server.troubles() == ["internal error: IndexError: off by one"]


def test_missing_software(vm, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.MissingSoftware, match="nbdkit-plugin-python"):
        nbd_server.Server(nbd_server.Request(str(vm.root)))


def test_each_of_ten_points_is_the_live_disk_of_its_time(machine, private_libvirt, tmp_path):
    rng, store, frozen = random.Random(10), tmp_path / "store", []
    vm = machine({"vda": 24 * MIB})
    for number in range(10):
        vm.write_bytes("vda", rng.randrange(23) * MIB + 4096, rng.randbytes(700 * KIB))
        vm.write_zeroes("vda", rng.randrange(360) * 64 * KIB, 192 * KIB, unmap=True)
        words = ["pull", vm.name, "-c", private_libvirt.uri, "-o", store, "--json"]
        done = nbdpull(*words)
        assert done.returncode == 0, done.stderr
        output = done.stdout
        point = json.loads(output.splitlines()[-1])["details"]
        assert point["disks"][0]["mode"] == ("incremental" if number else "full")
        frozen.append((point["id"], vm.freeze_copy("vda", tmp_path / f"{number}.raw")))
    assert len({path.read_bytes() for _, path in frozen}) == 10
    for point, path in frozen:
        with served(types.SimpleNamespace(root=store), "--point", point) as about:
            compared = run("qemu-img", "compare", "-f", "raw", "-F", "raw", about["uri"]["vda"], path)
            assert "Images are identical." in compared


def test_single_files_by_nbdfuse(tmp_path):
    """As in the manual; and then with any program that reads a file system in a file."""
    if not (shutil.which("nbdfuse") and os.access("/dev/fuse", os.R_OK | os.W_OK)):
        pytest.skip("nbdfuse is not installed, or /dev/fuse is not for us")
    tree, mount = tmp_path / "tree", tmp_path / "mount"
    (tree / "folder").mkdir(parents=True)
    mount.mkdir()
    (tree / "folder/letter").write_text("precious\n")
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", 8 * MIB)
    vm.write("vda", 0, ext4_image(tmp_path / "fs.raw", 8 * MIB, tree).read_bytes())
    vm.pull()
    with served(vm, "--socket", tmp_path / "s"):
        process = subprocess.Popen(["nbdfuse", str(mount / "vda"), "--unix", str(tmp_path / "s")])
        try:
            wait_for(lambda: (mount / "vda").exists(), "nbdfuse's mount")
            assert (mount / "vda").stat().st_size == 8 * MIB
            assert "precious" in run(DEBUGFS, "-R", "cat /folder/letter", mount / "vda")
        finally:
            process.terminate()
            process.wait(20)
    assert os.listdir(mount) == []


def test_a_chain_of_thirty(tmp_path):
    vm = chain(tmp_path / "store", points=30, size=500_000)
    with served(vm) as about:
        assert copied(about["uri"]["vda"], tmp_path / "1") == vm.images[vm.points[-1].id]["vda"]


def test_memory_stays_within_the_limit_of_the_cache(tmp_path):
    """Frames are allocated and freed in many threads; nbdkit does not keep a share of the freed memory for each of
    them."""
    size, cache = 160 * MIB, 24 * MIB
    vm = Vm(tmp_path / "store")
    vm.add_disk("vda", size)
    vm.write("vda", 0, random.Random(5).randbytes(size))
    vm.pull(frame_size=MIB)
    with served(vm, "--cache", cache) as about:
        children = f"/proc/{about['process'].pid}/task/{about['process'].pid}/children"
        nbdkit = Path(children).read_text().split()[0]
        before = peak(nbdkit)
        run("nbdcopy", "-C", "4", "-T", "4", about["uri"]["vda"], "null:")
        assert peak(nbdkit) - before < cache + 24 * MIB


def peak(pid):
    """Return the most memory that a process had, in bytes."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * KIB


# -- of a sealed store ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    return sealed.filled(tmp_path_factory.mktemp("sealed") / "store")


def seen_of(pid):
    """Return arguments and environment of a process and of those that it started."""
    found = b""
    for name in ("cmdline", "environ"):
        found += Path(f"/proc/{pid}/{name}").read_bytes()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return found + b"".join(map(seen_of, children))


def test_serve_passes_the_key_to_nbdkit_in_secret(closed, tmp_path):
    master = keyring.open_master(closed.store, identity_files.given([identities.path("age1")])).master
    process = start_nbdpull("serve", closed.root, "--json", "--identity", identities.path("age1"))
    try:
        about = json.loads(process.stdout.readline())
        assert about["event"] == "serving", about
        uri = about["exports"][0]["uri"]
        subprocess.run(["nbdcopy", uri, tmp_path / "raw"], check=True, timeout=60)
        shown = seen_of(process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert (tmp_path / "raw").read_bytes() == closed.images[closed.points[-1].id]["vda"]
    assert b"nbdkit" in shown
    secrets = (master, master.hex().encode(), keys.text_of(master).encode(), identities.data("age1").strip())
    assert not any(secret in shown for secret in secrets)


def test_serve_without_an_identity_says_so(closed):
    done = nbdpull("serve", closed.root, timeout=30)
    assert done.returncode == 16 and re.search(r"is sealed: name an identity that opens it", done.stderr)
    done = nbdpull("serve", closed.root, "--identity", identities.path("age2"), timeout=30)
    assert done.returncode == 16 and "does not open for" in done.stderr
