"""Ceph's radosgw, the second S3 server for the tests: a monitor, one OSD in memory, and the gateway.

Owns: the smallest cluster that serves objects, and the order of its start. Must not know: what is stored there.
"""

import shutil
import subprocess
import uuid

from bed import BedError, Unavailable
from bed.address import free_port
from object_store import NOBODY, ROOT, Server

from nbdpull.core import child

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph-authtool", "monmaptool")
MEMORY = 2 << 30  # bytes of objects
# Everything below one folder, one copy of each object, few placement groups: each takes time to come up. With the paxos
# of a real cluster, which waits a second for more to propose, it is 13 s instead of 7.
SETTINGS = """
[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{mon}/0]
public addr = 127.0.0.1
ms bind ipv6 = false
ms bind msgr1 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/keyring
run dir = {folder}
admin socket = {folder}/$name.asok
log file =
log to stderr = true
mon data = {folder}/mon
mon data avail crit = 0
paxos propose interval = 0.05
paxos min wait = 0.01
mon allow pool size one = true
mon warn on pool no redundancy = false
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {memory}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
rgw rados pool pg num min = 1
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dns name =
rgw enable usage log = false
rgw run sync thread = false
rgw enable gc threads = false
rgw enable lc threads = false
"""
CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
    "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
}


class Rgw(Server):
    """The gateway, which can be paused, killed and restarted; the cluster behind it keeps running."""

    def __init__(self):
        missing = [name for name in PROGRAMS if not shutil.which(name)]
        if missing:
            raise Unavailable(f"not installed: {', '.join(missing)} (scripts/install --test installs it)")
        super().__init__()
        self._settings, self._cluster = self.folder / "ceph.conf", []
        self._mon = free_port()

    def __enter__(self):
        try:
            self._start_cluster()
        except BaseException:
            self.close()
            raise
        return super().__enter__()

    def command(self):
        return ["radosgw", "-f", "-c", self._settings, "-n", "client.rgw"]

    def _start_cluster(self):
        values = {"fsid": uuid.uuid4(), "mon": self._mon, "folder": self.folder, "memory": MEMORY, "port": self.port}
        self._settings.write_text(SETTINGS.format(**values))
        keyring, monmap, osd = self.folder / "keyring", self.folder / "monmap", str(uuid.uuid4())
        for name, granted in CAPABILITIES.items():
            caps = [word for kind, each in granted.items() for word in ("--cap", kind, each)]
            self._run("ceph-authtool", keyring, *([] if keyring.exists() else ["-C"]), "-g", "-n", name, *caps)
        address = f"[v2:127.0.0.1:{self._mon}/0]"
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", values["fsid"], monmap)
        (self.folder / "osd").mkdir()
        self._run("ceph-mon", "--mkfs", "-c", self._settings, "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._spawn("ceph-mon", "-f", "-c", self._settings, "-i", "a")
        self._run("ceph", "-c", self._settings, "osd", "new", osd, "0")
        self._run("ceph-osd", "--mkfs", "-c", self._settings, "-i", "0", "--osd-uuid", osd)
        self._spawn("ceph-osd", "-f", "-c", self._settings, "-i", "0")
        for name, (key, secret) in {"root": ROOT, "nobody": NOBODY}.items():
            self._run("radosgw-admin", "-c", self._settings, "user", "create", f"--uid={name}",
                      f"--display-name={name}", f"--access-key={key}", f"--secret-key={secret}")  # fmt: skip

    def _run(self, *words):
        done = subprocess.run([*map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise BedError(f"{words[0]}: {done.stderr[-2000:]}\n{self.log()[-2000:]}")

    def _spawn(self, *words):
        with open(self.folder / "log", "ab") as log:
            # In the root directory, as a service: Debian 13's OSD looks for its classes in a relative path.
            self._cluster.append(subprocess.Popen([*map(str, words)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                                  cwd="/", preexec_fn=child.ended_with_us()))  # fmt: skip

    def close(self):
        self.kill()
        for process in reversed(self._cluster):
            process.kill()
            process.wait()
        super().close()
