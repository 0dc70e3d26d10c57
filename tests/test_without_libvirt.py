"""A store is read without libvirt and libnbd: on the machine that is left after the disaster.

The bindings are blocked in a process of its own, so it does not matter whether this machine has them.
"""

import json
import subprocess
import sys

import pytest
from stores import chain, package_environment

from nbdpull.repository import marker

BLOCKED = """
import sys
blocked = sys.argv.pop(1).split(",")
for name in blocked:
    sys.modules[name] = None  # an import of it is an ImportError from now on
from nbdpull.__main__ import main
main()
"""
BOTH = "libvirt,libvirt_qemu,nbd,libnbdmod"


@pytest.fixture(scope="module")
def vm(tmp_path_factory):
    return chain(tmp_path_factory.mktemp("blocked") / "store")


def run(blocked, *words):
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, blocked, *map(str, words)],
        env=package_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def good(*words):
    done = run(BOTH, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_list(vm):
    assert [point["id"] for point in json.loads(good("list", vm.root, "--json"))] == [p.id for p in vm.points]
    assert all(point.id in good("list", vm.root, "--wide") for point in vm.points)


def test_show(vm):
    assert json.loads(good("show", vm.root, "latest", "--json"))["id"] == vm.points[-1].id


def test_index(vm):
    assert all(json.loads(line)["length"] for line in good("index", vm.root, "latest", "vda").splitlines())


@pytest.mark.parametrize("options", [[], ["--quick"], ["--point", "latest"]])
def test_verify(vm, options):
    assert json.loads(good("verify", vm.root, "--json", *options).splitlines()[-1])["ok"] is True


def test_restore_of_every_point(vm, tmp_path):
    for point in vm.points:
        good("restore", vm.root, "-o", tmp_path / point.id, "--point", point.id, "--format", "raw")
        for disk, content in vm.images[point.id].items():
            assert (tmp_path / point.id / f"{disk}.raw").read_bytes() == content


def test_restore_to_qcow2(vm, tmp_path):
    good("restore", vm.root, "-o", tmp_path / "out")


def test_options_of_qcow2_need_libnbd(vm, tmp_path):
    done = run(BOTH, "restore", vm.root, "-o", tmp_path / "out", "--image-options", "cluster_size=4k")
    assert done.returncode == 8
    assert "install python3-libnbd" in done.stderr and "without options" in done.stderr
    assert not (tmp_path / "out").exists()


def test_restore_to_qcow2_needs_no_libvirt(vm, tmp_path):
    assert run("libvirt,libvirt_qemu", "restore", vm.root, "-o", tmp_path / "out").returncode == 0


@pytest.mark.parametrize(
    "blocked, package", [("libvirt", "python3-libvirt"), ("nbd", "python3-libnbd"), (BOTH, "python3-lib")]
)
def test_pull_says_what_is_missing(tmp_path, blocked, package):
    done = run(blocked, "vm1", "-o", tmp_path / "new", "--json")
    assert done.returncode == 8
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["ok"], result["exit_code"], result["code"]) == (False, 8, "missing-software")
    assert package in result["message"] and package in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_a_pull_from_kubevirt_needs_neither(tmp_path):
    """A pod of the cluster has no libvirt. Nothing listens there, which a request shows."""
    (tmp_path / "token").write_text("t")
    given = ["--http-map=http://127.0.0.1:1/exports/a/map", "--token-file", tmp_path / "token", "--type=full"]
    done = run(BOTH, "kubevirt:a/b", "-o", tmp_path / "new", *given, "--stall-timeout=0.1")
    assert (done.returncode, "cannot read the map of a" in done.stderr) == (6, True)


@pytest.mark.parametrize("library", ["kubernetes", "urllib3"])
def test_a_pull_from_kubevirt_says_what_is_missing(tmp_path, library):
    (tmp_path / "token").write_text("t")
    given = ["--http-map=http://127.0.0.1:1/exports/a/map", "--token-file", tmp_path / "token", "--type=full"]
    done = run(library, "kubevirt:a/b", "-o", tmp_path / "new", *(given if library == "urllib3" else []))
    assert done.returncode == 8
    assert "pip install 'nbdpull[kubevirt]'" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["cleanup", "-o", "store"], ["release"]], ids=lambda words: words[0])
def test_what_is_left_in_a_cluster_needs_neither(tmp_path, words):
    marker.open_or_create(str(tmp_path / "store"))
    words = [str(tmp_path / word) if word == "store" else word for word in words]
    done = run(BOTH, *words, "kubevirt:a/b", "--kubeconfig", tmp_path / "nosuch")
    assert done.returncode == 2 and "cannot reach the cluster" in done.stderr


def test_the_block_works(vm):
    program = BLOCKED.replace("from nbdpull", "import nbd\nfrom nbdpull")
    done = subprocess.run(
        [sys.executable, "-c", program, BOTH, "list", str(vm.root)], env=package_environment(), capture_output=True
    )
    assert b"ModuleNotFoundError" in done.stderr
