"""Servers of one disk's content, and clients that read from them. Must not know: how the content was made.

A server's command ends with the socket that it creates, or prints its URI in a line of JSON.
"""

import json
import random
import subprocess
import time
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import measure
import nbd
import tools

from nbdpull.serving.http import auth

KINDS = ("nbdpull", "chain of 1", "nbdkit file", "qemu-nbd qcow2")
READS, READ_SIZE = 1000, 4096


def commands(folder):
    """Return {tool: (command, URI or None if the tool prints it)} for everything in the directory: stores and
    images."""
    chained, full, socket = folder / "chained", folder / "full", folder / "nbd.sock"
    raw, qcow2 = folder / "raw" / "vda.raw", folder / "qcow2" / "vda.qcow2"
    uri = f"nbd+unix:///?socket={socket}"
    return {
        "nbdpull": (tools.nbdpull("serve", chained, "--json"), None),
        "chain of 1": (tools.nbdpull("serve", full, "--json"), None),
        "nbdkit file": (["nbdkit", "-f", "-r", "-U", socket, "file", raw], uri),
        "qemu-nbd qcow2": (["qemu-nbd", "-r", "-t", "-e", "8", "-f", "qcow2", "-k", socket, qcow2], uri),
    }


@contextmanager
def server(command, environment, started=lambda pid: None):
    """Run a server while the block runs; give its URI when clients can connect. started(pid) is called once it runs."""
    words, uri = command
    output = subprocess.DEVNULL if uri else subprocess.PIPE
    process = subprocess.Popen(list(map(str, words)), stdout=output, env=environment)
    started(process.pid)
    try:
        if uri is None:
            uri = json.loads(process.stdout.readline())["exports"][0]["uri"]
        yield uri
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        Path(uri.partition("socket=")[2]).unlink(missing_ok=True)


@contextmanager
def exposed(vm, setting, path=None):
    """Run `nbdpull expose` while the block runs; give a command that reads vda from it, its pid, and QEMU's URI of vda.
    path: of a unix socket to use instead of TCP."""
    secret, header = setting.fresh("secret"), setting.fresh("header")
    secret.touch(0o600)
    header.write_text(f"{auth.NAME}: of-the-benchmark")
    secret.write_text("of-the-benchmark")
    words = tools.nbdpull("expose", vm.name, "-c", setting.bed.uri, "--token-file", secret, "--listen",
                          f"unix:{path}" if path else "127.0.0.1:0", "--json")  # fmt: skip
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, env=tools.environment())
    try:
        [export] = json.loads(process.stdout.readline())["exports"]
        server = ET.fromstring(vm.domain.backupGetXMLDesc()).find("server")
        by = ["--unix-socket", path] if path else []
        curl = ["curl", "-sSf", *by, "-H", f"@{header}", "-o", "/dev/null", export["data"]]
        yield curl, process.pid, tools.export_uri(server.get("socket"), "vda")
    finally:
        process.terminate()
        process.wait(60)


def connected(uri):
    """Return a connected libnbd handle, as soon as the server listens."""
    deadline = time.monotonic() + 10
    while True:
        handle = nbd.NBD()
        try:
            handle.connect_uri(uri)
            return handle
        except nbd.Error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def first_byte(uri, started):
    connected(uri).pread(512, 0)
    return _cost(time.monotonic() - started)


def sequential(uri, log, data):
    """Read sequentially. data: bytes of the disk that are not holes, which nbdcopy does not request."""
    connected(uri).shutdown()
    return replace(measure.run(["nbdcopy", uri, "null:"], log=log), data=data)


def at_random(uri, size):
    """Read at the same offsets for each server, in the first half, where the files are."""
    handle, offsets = connected(uri), random.Random(1)
    started = time.monotonic()
    for _ in range(READS):
        handle.pread(READ_SIZE, offsets.randrange(size // 2 // READ_SIZE) * READ_SIZE)
    return _cost(time.monotonic() - started)


def _cost(wall):
    return measure.Cost(wall=wall, cpu=0, qemu_cpu=0, peak_mib=0, size=0)
