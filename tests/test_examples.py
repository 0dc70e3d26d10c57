"""The programs in examples/ do what docs/vendors.md says, even if they are killed at any instant."""

import contextlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import time

import command
import pytest
from bed.machine import MIB
from command import PROJECT, environment
from documents import blocks

import nbdpull

pytest.importorskip("libvirt")

RAW_DELTAS = PROJECT / "examples/raw_deltas.py"
KILLS = int(os.environ.get("NBDPULL_KILLS", "4"))


class Vendor:
    """A machine, and the example's backups of it."""

    def __init__(self, vm, folder):
        self.vm, self.deltas, self.folder = vm, folder / "deltas", folder
        self.took = 1.0  # seconds, the last backup

    def start(self):
        words = [sys.executable, RAW_DELTAS, self.vm.name, self.deltas, self.vm.bed.uri]
        return subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def backup(self):
        """Make a backup, which has to succeed; return its output."""
        frozen, began = self.frozen(), time.monotonic()
        output, errors = self.start().communicate(timeout=60)
        self.took = time.monotonic() - began
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

    def killed(self, chance):
        """Kill a backup at a random instant; return whether it counts nevertheless."""
        before, process = self.done(), self.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, self.took))
        process.kill()
        process.communicate()
        return self.done() - before

    def failing(self, place):
        """Make a backup with the example's sink, which fails at that place."""
        sink = Failing(place, self.deltas)
        base = sink.token()
        with pytest.raises(OSError, match=place):
            nbdpull.backup(nbdpull.Options(self.vm.name, since=base, uri=self.vm.bed.uri), sink)
        assert not self.vm.job_active()
        assert self.vm.checkpoints() == ([base.checkpoint.name] if base else [])  # and none of those that were killed

    def done(self):
        return len(list(self.deltas.glob("[0-9]*")))


def raw_deltas():
    spec = importlib.util.spec_from_file_location("raw_deltas", RAW_DELTAS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Failing(raw_deltas().Deltas):
    """The example's sink on a disk that is full at its second piece, or at the commit."""

    def __init__(self, place, root):
        super().__init__(root)
        self.place = place

    def open(self, disk):
        delta = super().open(disk)
        write, pieces = delta.data, iter([False, self.place == "data"])

        def data(offset, view):
            if next(pieces, False):
                raise OSError("no room for data")
            write(offset, view)

        delta.data = data
        return delta

    def commit(self, token):
        if self.place == "commit":
            raise OSError("no room to commit")
        super().commit(token)


def run_example(*words, **variables):
    env = {**environment(), "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", **variables}
    return subprocess.run(list(map(str, words)), env=env, capture_output=True, text=True, timeout=60)


def test_pull_in_bash(machine, tmp_path):
    vm, store = machine({"vda": MIB}), tmp_path / "store"
    words = [PROJECT / "examples/pull.sh", vm.name, store, "--connect", vm.bed.uri]
    for mode in ("full", "incremental"):
        vm.write("vda", 0, MIB // 4, 0x31 if mode == "full" else 0x32)
        done = run_example(*words)
        assert done.returncode == 0, done.stderr
        point = json.loads(done.stdout)
        assert point["disks"] == [{"name": "vda", "mode": mode, "size": MIB}]
        assert f"vda: {mode} (" in done.stderr
    assert nbdpull_restored(store, tmp_path) == vm.content("vda")
    done = run_example(*words[:1], "nobody", *words[2:])
    assert (done.returncode, done.stdout) == (3, "") and done.stderr.count("no-such-domain: ") == 1


def nbdpull_restored(store, folder):
    done = command.nbdpull("restore", store, "-o", folder / "out", "--format", "raw")
    assert done.returncode == 0, done.stderr
    return (folder / "out/vda.raw").read_bytes()


@pytest.fixture(scope="module")
def http_client(tmp_path_factory):
    """The C program, compiled as docs/vendors.md says."""
    program = tmp_path_factory.mktemp("client") / "http_client"
    source = PROJECT / "examples/http_client.c"
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", program, source, "-lcurl", "-ljansson"], check=True)
    return program


class Keeper:
    """Images of a machine that the C program keeps up to date."""

    def __init__(self, vm, program, folder):
        self.vm, self.program, self.token = vm, program, folder / "token"
        self.images = {disk: folder / f"{disk}.raw" for disk in vm.disks}
        self.secret = folder / "secret"
        self.secret.write_text("0123456789abcdef")
        self.secret.chmod(0o600)

    def exposing(self, *words):
        since = ["--since", self.token] if self.token.exists() else []
        words = [self.vm.name, "--connect", self.vm.bed.uri, "--token-file", self.secret, *words, *since]
        return command.start_nbdpull("expose", *words, "--json")

    def take(self, url, **variables):
        named = [f"{disk}={image}" for disk, image in self.images.items()]
        return run_example(self.program, url, self.secret, *named, **variables)

    def taken(self, process, url, **variables):
        """Require that what is exposed was taken over correctly."""
        done = self.take(url, **variables)
        assert process.wait(60) == done.returncode == 0, done.stderr
        self.token.write_text(done.stdout)
        for disk, image in self.images.items():
            assert image.read_bytes() == self.vm.content(disk), disk


def test_http_client_in_c(machine, http_client, tmp_path):
    mine = Keeper(machine({"vda": 4 * MIB, "vdb": MIB}), http_client, tmp_path)
    for mode in ("full", "incremental"):
        mine.vm.write("vda", MIB, MIB, 0x41 if mode == "full" else 0x42)
        mine.vm.write("vdb", 0, MIB // 2, 0x43)
        if mode == "incremental":
            mine.vm.write_zeroes("vda", MIB, MIB // 2)
        with mine.exposing("--listen", f"unix:{tmp_path}/sock") as process:
            exports = command.next_event(process, "exposing")["exports"]
            assert {each["mode"] for each in exports} == {mode}
            mine.taken(process, f"unix:{tmp_path}/sock")


def test_http_client_in_c_by_tls(machine, http_client, tmp_path):
    """A server whose CA is another one, or is not named, or whose name is another one, is refused."""
    mine = Keeper(machine({"vda": MIB}), http_client, tmp_path)
    mine.vm.write("vda", 0, MIB // 2, 0x44)
    for who in ("server", "other"):
        certificate(tmp_path, who)
    with mine.exposing("--listen", "127.0.0.1:0", "--tls", tmp_path) as process:
        url = command.next_event(process, "exposing")["url"]
        assert url.startswith("https://127.0.0.1:")
        for why, address, variables in (
            ("certificate", url, {"CURL_CA_BUNDLE": tmp_path / "other-cert.pem"}),
            ("certificate", url, {}),
            ("certificate", url.replace("127.0.0.1", "localhost"), {"CURL_CA_BUNDLE": tmp_path / "server-cert.pem"}),
            ("http://127.0.0.1", url.replace("https", "http"), {}),
        ):
            done = mine.take(address, **variables)
            assert done.returncode == 1 and why in done.stderr and process.poll() is None, why
        mine.taken(process, url, CURL_CA_BUNDLE=tmp_path / "server-cert.pem")


def certificate(folder, who):
    """Create who-cert.pem and who-key.pem in folder: valid for 127.0.0.1, with a CA of its own."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-subj", f"/CN={who}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2",
                    "-keyout", folder / f"{who}-key.pem", "-out", folder / f"{who}-cert.pem"],
                   check=True, capture_output=True)  # fmt: skip


def test_http_client_in_c_fails_without_the_token(http_client, tmp_path):
    done = run_example(http_client, f"unix:{tmp_path}/sock", tmp_path / "secret", f"vda={tmp_path}/vda.raw")
    assert done.returncode == 1 and "secret: has no token" in done.stderr
    (tmp_path / "secret").write_text("0123456789abcdef")
    done = run_example(http_client, f"unix:{tmp_path}/sock", tmp_path / "secret", f"vda={tmp_path}/vda.raw")
    assert done.returncode == 1 and "/exports/vda/map" in done.stderr


@pytest.fixture
def vendor(machine, tmp_path):
    return Vendor(machine({"vda": 8 * MIB, "vdb": MIB}), tmp_path)


def test_the_document(machine, tmp_path, monkeypatch):
    """The commands of docs/vendors.md verbatim, and its program that reads by itself."""
    text = (PROJECT / "docs/vendors.md").read_text()
    vm = machine({"vda": MIB}, name="vm1")
    vm.write("vda", 0, MIB // 2, 0x21)
    (tmp_path / "examples").symlink_to(PROJECT / "examples")
    env = {**environment(), "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    for line in "".join(blocks(text, "sh")).splitlines():
        subprocess.run(line, shell=True, check=True, cwd=tmp_path, env=env)
    assert (tmp_path / "vda.raw").read_bytes() == vm.content("vda")
    parts = [(tmp_path / name).read_bytes() for name in ("first.part", "second.part")]
    assert b"".join(parts) == vm.content("vda") and json.loads((tmp_path / "vda.map").read_text())["size"] == MIB
    assert nbdpull.Token.loads((tmp_path / "token").read_text()).checkpoint.name in vm.checkpoints()
    sketch, program, schema = blocks(text, "python")
    compile(sketch, "vendors.md", "exec")
    kept, image = [], bytearray(MIB)

    def keep(disk, offset, data):
        image[offset : offset + len(data)] = data

    exec(program, {"nbdpull": nbdpull, "token": None, "keep": keep, "keep_token": kept.append})
    assert nbdpull.Token.loads(kept[0]).checkpoint.name in vm.checkpoints() and not vm.job_active()
    assert image == vm.content("vda")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pull.jsonl").write_text(json.dumps(sample("pull.result")))
    checks = {}
    exec(schema, checks)
    assert checks["check"].is_valid(sample("pull.result")) and not checks["check"].is_valid(sample("restore.result"))


def sample(name):
    """Return the samples of it in tests/data/output.jsonl."""
    found = map(json.loads, (PROJECT / "tests/data/output.jsonl").read_text().splitlines())
    return next(each["value"] for each in found if each["is"] == name)


def change(vm, chance):
    for _ in range(4):
        vm.write_bytes("vda", chance.randrange(7) * MIB, chance.randbytes(chance.randrange(1, 128) * 512))
    vm.write_zeroes("vda", chance.randrange(7) * MIB, 128 << 10)


def test_raw_deltas(vendor):
    chance = random.Random(1)
    for number in range(5):
        change(vendor.vm, chance)
        reported = vendor.backup()
        assert reported.startswith("vda: full (requested)" if number == 0 else "vda: incremental (checkpoint)")


@pytest.mark.timeout_seconds(1200)
def test_raw_deltas_killed(vendor):
    """At random instants; the assembled images are then the disks as of the last backup that counts. NBDPULL_KILLS: how
    often."""
    chance = random.Random(2)
    vendor.backup()
    counted = 0
    for _ in range(KILLS):
        change(vendor.vm, chance)
        counted += vendor.killed(chance)
        vendor.backup()
    print(f"{counted} of them counted all the same")


@pytest.mark.timeout_seconds(1200)
def test_raw_deltas_of_a_guest_that_writes(guest, tmp_path):
    """Five increments; before each, backups that are killed, and two whose sink fails."""
    vendor, chance = Vendor(guest, tmp_path), random.Random(3)
    guest.start_writer()
    counted = 0
    for _ in range(5):
        counted += sum(vendor.killed(chance) for _ in range((KILLS + 4) // 5))
        for place in ("data", "commit"):
            vendor.failing(place)
        guest.suspend()  # else the disk is another one before it can be compared
        vendor.backup()
        guest.resume()
    assert guest.run("true") == ""
    print(f"{counted} of them counted all the same")
