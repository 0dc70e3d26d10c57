"""A store that an attacker can write to: whatever is in it, each verb ends soon, with one line and a known exit
code."""

import fcntl
import os
import shutil
import signal

import pytest
import stores
import strange
from stores import KIB

from nbdpull.cli import main as cli
from nbdpull.core import errors
from nbdpull.format import layout

STORE, DAMAGE = errors.StoreError.exit_code, errors.Damaged.exit_code


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store with two points of vm1, and one of vm2."""
    root = tmp_path_factory.mktemp("hostile") / "store"
    vm = stores.Vm(root)
    vm.add_disk("vda", 100 * KIB)
    for at in (0, 50 * KIB):
        vm.write("vda", at, os.urandom(4 * KIB))
        vm.pull()
    other = stores.Vm(root, "vm2", uuid="4e3fce45-4f53-4fa7-bb32-11f34168b82b")
    other.add_disk("vda", 10 * KIB)
    other.pull()
    assert cli.main(["verify", str(root), "--quiet"]) == 0  # which leaves a finding
    return vm


@pytest.fixture
def place(original, tmp_path):
    """A copy of it to be spoiled."""
    shutil.copytree(original.root, tmp_path / "store", symlinks=True)
    return tmp_path / "store"


def run(capsys, words):
    """Return (exit code, standard output, lines on standard error) of one command line."""
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert "internal error" not in err and "Traceback" not in err
    return code, out, err.splitlines()


def replaced(path, kind):
    """Put something strange in the place of a file or a directory; a link leads to what was there, outside the
    store."""
    outside = path.parents[len(path.parts) - path.parts.index("store") - 1] / "outside"
    path.rename(outside)
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "folder":
        path.mkdir()
    else:
        strange.FILES[kind](path)


def path_of(place, original, what):
    first, second = (place / "vm1" / point.id for point in original.points)
    return {
        "marker": place / "nbdpull.json",
        "series": place / "vm1",
        "first point": first,
        "second point": second,
        "first manifest": first / "manifest.json",
        "second manifest": second / "manifest.json",
        "directory": second / "vda.directory",
        "index": second / "vda.index",
        "chunk file": first / "vda.0000.zst",
        "definition": second / "domain.xml",
    }[what]


FILES = ["marker", "first manifest", "second manifest", "directory", "index", "chunk file", "definition"]
FOLDERS = ["series", "first point", "second point"]
CASES = [(what, kind) for what in FILES for kind in strange.FILES if kind != "link to itself"]
CASES += [(what, kind) for what in FOLDERS for kind in ("link", "dangling link")]


@pytest.mark.timeout_seconds(30)
@pytest.mark.parametrize("what, kind", CASES)
def test_special_files(original, place, tmp_path, capsys, what, kind):
    """It is damage of that point, or of that series, and hides no other."""
    replaced(path_of(place, original, what), kind)
    expected = STORE if what == "marker" else DAMAGE
    code, out, err = run(capsys, ["list", place])
    if what in ("directory", "index", "chunk file", "definition"):
        assert (code, err) == (0, [])
    else:
        assert code == expected and len(err) == 1
    assert ("vm2" in out) is (what != "marker")
    code, out, err = run(capsys, ["verify", place, "--no-record"])
    assert code == expected and (what == "marker" or out.startswith("DAMAGE"))
    for number, options in enumerate([(), ("--no-verify",), ("--salvage",)]):
        out = tmp_path / f"out{number}"
        code, _, err = run(capsys, ["restore", place, "--domain", "vm1", "-o", out, "--format", "raw", *options])
        assert code == expected and len(err) <= 1
        made = {path.name for path in out.glob("*")}
        assert made <= {"vda.raw", "domain.xml"} if "--salvage" in options else not made
    if what != "marker":
        assert run(capsys, ["restore", place, "--domain", "vm2", "-o", tmp_path / "other"])[0] == 0


@pytest.mark.parametrize(
    "disk", ["../../evil", "..", ".", "/etc/evil", "a/b", "\n", "-x", "~", "con.qcow2", "vda.index"]
)
def test_a_restore_stays_in_its_folder_whatever_a_disk_is_called(tmp_path, capsys, disk):
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk(disk, 10 * KIB)
    vm.write(disk, 0, b"x" * KIB)
    vm.files = {"tpm...": b"x", "tpm.%2F": b"x", "nvram": b"x", "notes": b"x"}
    vm.pull()
    out = tmp_path / "a" / "out"
    for kind in ("raw", "qcow2"):
        assert run(capsys, ["restore", vm.root, "-o", out, "--format", kind, "--force"])[0] == 0
    made = {path.name for path in out.iterdir()}
    images = {f"{layout.encoded(disk)}.raw", f"{layout.encoded(disk)}.qcow2"}
    assert made == {"domain.xml", "nvram", "tpm...", "tpm.%2F", *images}
    assert sorted(os.listdir(tmp_path)) == ["a", "store"] and os.listdir(tmp_path / "a") == ["out"]


def test_nothing_that_a_definition_names_is_opened(tmp_path, capsys):
    """A lease on the file would be broken by that."""
    named = tmp_path / "a.iso"
    named.write_bytes(bytes(40_000))
    kinds = ("cdrom", "floppy", "disk")
    disks = "".join(
        f"<disk type='file' device='{kind}'><source file='{named}'/><target dev='sd{number}'/></disk>"
        for number, kind in enumerate(kinds)
    )
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 10 * KIB)
    vm.xml = f"<domain><name>vm1</name><os><loader>{named}</loader><kernel>{named}</kernel></os><devices>{disks}"
    vm.xml += f"<emulator>{named}</emulator><rng><backend model='random'>{named}</backend></rng></devices></domain>"
    vm.pull()
    held = os.open(named, os.O_RDWR)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        for options in ([], ["--name", "copy", "--new-uuid"], ["--disk", "vda"]):
            words = ["restore", vm.root, "-o", tmp_path / f"out{len(options)}", "--format", "raw", *options]
            code, _, err = run(capsys, words)
            assert code == 0 and str(named) in "".join(err)
        for words in (["verify", vm.root], ["show", vm.root, "latest"], ["list", vm.root], ["digest", vm.root]):
            assert run(capsys, words)[0] == 0
        assert fcntl.fcntl(held, fcntl.F_GETLEASE) == fcntl.F_WRLCK
    finally:
        os.close(held)
        signal.signal(signal.SIGIO, before)


def test_a_definition_that_libvirt_will_not_have_hides_no_disk(tmp_path, capsys):
    """A prefix that is not bound; or more than libvirt accepts."""
    for xml in ("<domain><name>vm1</name><not:bound/></domain>", f"<domain>{'<a/>' * (1 << 20)}</domain>"):
        vm = stores.Vm(tmp_path / f"store{len(xml)}")
        vm.add_disk("vda", 10 * KIB)
        vm.xml = xml
        vm.pull()
        code, _, _ = run(capsys, ["restore", vm.root, "-o", tmp_path / f"out{len(xml)}", "--format", "raw"])
        assert code == 0
        assert sorted(os.listdir(tmp_path / f"out{len(xml)}")) == ["domain.xml", "vda.raw"]


@pytest.mark.parametrize("words", [["--name", "copy", "--new-uuid"], ["--define"]])
def test_a_definition_without_a_name_is_invalid(tmp_path, capsys, words):
    """libvirt never writes one. The disks can be restored nevertheless, as with any other text that is no
    definition."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 10 * KIB)
    vm.xml = "<domain type='qemu'><uuid>3e3fce45-4f53-4fa7-bb32-11f34168b82b</uuid><devices/></domain>"
    vm.pull()
    code, _, err = run(capsys, ["restore", vm.root, "-o", tmp_path / "out", "-c", "test:///default", *words])
    said = f"domain.xml of point {vm.points[0].id} is not a domain definition"
    assert (code, err) == (DAMAGE, [f"nbdpull: {said}"])
    assert not (tmp_path / "out").exists()
    code, _, err = run(capsys, ["restore", vm.root, "-o", tmp_path / "out", "--format", "raw"])
    assert code == 0 and err == ["nbdpull: warning: domain.xml is not a domain definition: it is unchanged"]


@pytest.mark.parametrize("words", [[], ["--name", "copy", "--new-uuid"]])
def test_a_disk_that_was_plugged_into_a_domain_without_devices(tmp_path, capsys, words):
    """libvirt accepts such a domain; what it writes always has some."""
    vm = stores.Vm(tmp_path / "store")
    vm.add_disk("vda", 10 * KIB)
    vm.xml = "<domain type='qemu'><name>vm1</name></domain>"
    vm.files = {layout.LIVE_XML: stores.domain_xml({"vda": "raw"}).encode()}
    vm.pull()
    code, _, err = run(capsys, ["restore", vm.root, "-o", tmp_path / "out", *words])
    assert (code, err) == (0, [])
    assert stores.disks_of((tmp_path / "out/domain.xml").read_text()) == {"vda": ("raw", str(tmp_path / "out/vda.raw"))}


@pytest.mark.usefixtures("nbdkit")
@pytest.mark.timeout_seconds(30)
@pytest.mark.parametrize("what", ["marker", "series", "second point", "second manifest", "index"])
@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_every_reader_refuses_it(original, place, capsys, what, kind):
    path = path_of(place, original, what)
    if path.is_dir() and kind == "FIFO":
        return
    replaced(path, kind)
    point = ["latest", "--domain", "vm1"]
    for words in (["index", place, *point[:1], "vda", *point[1:]], ["digest", place, *point[1:], "--no-record"],
                  ["serve", place, *point[1:]], ["drill", place, *point[1:]], ["show", place, *point]):  # fmt: skip
        code, out, err = run(capsys, words)
        if what == "index" and words[0] == "show":
            assert code == 0
        elif words[0] != "drill":
            assert (code, out, len(err)) == (STORE if what == "marker" else DAMAGE, "", 1), words
