"""A SeaweedFS of several volume servers, with each object on two of them, of which one can be killed.

Must not know: what is stored there.
"""

import json
import subprocess
import urllib.request

from bed.address import free_port
from object_store import SeaweedFS

from nbdpull.core import child

SERVERS = 3


class SeaweedCluster(SeaweedFS):
    """Master, filer and gateway run in one process; the volume servers are processes of their own."""

    variables = {"WEED_MASTER_VOLUME_GROWTH_COPY_2": "3"}  # by default a bucket begins with six

    def __init__(self):
        super().__init__()
        self._volumes = []

    def command(self):
        return [*super().command(), "-volume=false", "-master.defaultReplication=001"]

    def start(self):
        self.spawn()
        while len(self._volumes) < SERVERS:
            self._volumes.append(self._spawn_volumes(len(self._volumes)))
        self.wait()

    def _spawn_volumes(self, number):
        folder = self.folder / f"volumes-{number}"
        folder.mkdir()
        words = {
            "dir": folder,
            "master": f"127.0.0.1:{self._ports['master.port']}.{self._ports['master.port.grpc']}",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "port": free_port(),
            "port.grpc": free_port(),
            "max": 100,
        }
        self._ports[f"volume.{number}.grpc"] = words["port.grpc"]
        self.note_sockets()
        line = [self._weed, "-logtostderr=true", "volume", *(f"-{name}={each}" for name, each in words.items())]
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                                    preexec_fn=child.ended_with_us())  # fmt: skip

    def _has_volumes(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['master.port']}/dir/status") as answer:
            centers = json.load(answer)["Topology"]["DataCenters"] or ()
        nodes = [node for center in centers for rack in center["Racks"] or () for node in rack["DataNodes"] or ()]
        return len(nodes) == SERVERS

    def kill_volumes(self, number):
        """Kill one volume server (SIGKILL), without a restart."""
        self._volumes[number].kill()
        self._volumes[number].wait()

    def close(self):
        self.kill()
        for number, _ in enumerate(self._volumes):
            self.kill_volumes(number)
        super().close()
