"""The examples of the manual run verbatim and in order, each in the directory of those before it.

Owns: what replaces the places, ids and times of the manual, and which of its examples other modules test.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import command
import pytest
from bed.address import is_listening
from bed.machine import MIB, Machine, wait_for
from documents import PROJECT, blocks
from kubevirt_stub import CLUSTER, Cluster

MANUAL = (PROJECT / "docs/nbdpull.1.md").read_text()
OF = {  # what is in a block of examples that are run against something else, or by another module
    "s3://": "bucket", "kubevirt:": "cluster", "age-keygen": "test_key.py", "case $?": "test_status.py",
    "qemu-img": "test_pull_disks.py",
}  # fmt: skip
VM = {"apiGroup": "kubevirt.io", "kind": "VirtualMachine", "name": "db"}
DRILL = "nbdpull drill"  # boots what it restored: test_drill.py has a guest, and runs these lines


def examples(of=""):
    """Return the lines of all blocks of one kind."""
    lines = []
    for block in blocks(MANUAL, "sh"):
        if next((kind for word, kind in OF.items() if word in block), "") == of:
            lines += block.splitlines()
    return [line for line in lines if not line.startswith(DRILL)]


def points(store):
    return sorted(path.parent.name for path in Path(store).glob("*/*/manifest.json"))


def run(line):
    """Run a command in this directory, and in this process if it is only nbdpull."""
    words = shlex.split(line)
    if words[0] == "nbdpull" and not {">", "|"} & {*words}:
        return command.said(*words[1:])
    environment = {**command.environment(), "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    return subprocess.run(line, shell=True, env=environment, check=True, capture_output=True, text=True).stdout


def served(line, socket):
    """Run a command that continues until it is stopped."""
    with command.start_nbdpull(*shlex.split(line)[1:]) as process:
        try:
            wait_for(lambda: is_listening(socket), "the export")
        finally:
            process.terminate()


@pytest.fixture
def vm1(private_libvirt, tmp_path):
    with Machine(private_libvirt, tmp_path / "images", dict.fromkeys(("vda", "vdb", "vdc"), MIB), name="vm1") as vm:
        vm.write("vda", 0, 65536, 0x55)
        vm.create_checkpoint("chk3")
        vm.write("vda", 65536, 65536, 0x66)
        yield vm


def test_the_examples(vm1, tmp_path, monkeypatch):
    for name in ("srv", "usb", "work"):
        (tmp_path / name).mkdir()
    folder = tmp_path / "work"
    monkeypatch.chdir(folder)
    (folder / "take-blocks").write_text("#!/bin/sh\n")
    (folder / "take-blocks").chmod(0o755)
    places = {"/srv/scratch": tmp_path / "srv", "/mnt/usb": tmp_path / "usb", "qemu:///system": vm1.bed.uri,
              "/run/vm1.sock": tmp_path / "vm1.sock", "yesterday 18:00": "today"}  # fmt: skip
    lines = examples()
    assert len(lines) > 25
    for line in lines:
        [first, *_] = points(folder / "dir") or [""]
        stand_ins = {**places, "20261122T194500Z-7f3a9c04": first, "20261122T1945": first[:-1]}
        for text, stand_in in stand_ins.items():
            line = line.replace(text, str(stand_in))
        if line.startswith("nbdpull serve "):
            served(line, tmp_path / "vm1.sock")
        else:
            run(line)
    assert (folder / "out-vda/vda.raw").read_bytes() == vm1.content("vda")
    assert points(tmp_path / "usb/store") and not vm1.job_active()


def test_the_examples_of_a_bucket(vm1, locking_store, tmp_path, monkeypatch):
    """The store is created first."""
    monkeypatch.chdir(tmp_path)
    command.said("vm1", "-o", tmp_path / "dir")
    lines = sorted(examples("bucket"), key=lambda line: not line.startswith(("nbdpull init ", "nbdpull policy ")))
    assert len(lines) > 7
    for line in lines:
        run(line.replace("s3://backups/vms", locking_store.url).replace("yesterday", "today"))
    assert (tmp_path / "out/vda.qcow2").exists()


VENDORS = "https://backup.prod.svc/exports/"  # where a backup that somebody else has made can be read


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    with Cluster("main", tmp_path) as made:
        vm = made.add_vm("prod", "db", {"root": 4 * CLUSTER, "data": CLUSTER})
        vm.disks["root"].write(0, b"a" * CLUSTER)
        made.create("VirtualMachineBackupTracker", "prod", "theirs", spec={"source": VM})
        made.create("Secret", "prod", "theirs", data={"token": "c2VjcmV0"})
        (tmp_path / "token").write_text("secret\n")
        (tmp_path / "token").chmod(0o600)
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
        monkeypatch.chdir(tmp_path)
        yield made


def test_the_examples_of_a_cluster(cluster, tmp_path):
    for number, line in enumerate(examples("cluster")):
        if VENDORS not in line:
            run(line)
            continue
        cluster.start_backup("prod", f"b{number}", "theirs")
        _, cert, urls = cluster.ready("prod", f"b{number}")
        (tmp_path / "ca.pem").write_text(cert)
        [exports] = {at_map.removesuffix(f"{name}/map") for name, (at_map, _) in urls.items()}
        run(line.replace(VENDORS, exports))
        cluster.end_backup("prod", f"b{number}")
    assert number >= 6 and cluster.complaints == []
