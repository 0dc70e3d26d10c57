"""A running cluster: its API server, its export servers, its VMs; and everything that a test does to it.

Owns: the ports and what can be reached on them. `reach`: "outside" (the proxy's long paths; in-cluster names are
reported, too, and do not resolve here), or "inside" (an export server of its own, no route from outside).
"""

import base64
import json
from collections import Counter

from . import tls
from .api import KINDS, ApiHandler
from .controller import BACKUPS, TRACKERS, Controller, Vm
from .exports import ExportHandler
from .faults import Faults
from .objects import Objects
from .status import GENERATIONS

BEARER = "eyJhbGciOiJSUzI1NiJ9.stub"
SCRATCH = "scratch"  # a claim that each namespace has
KUBECONFIG = """apiVersion: v1
kind: Config
clusters:
- name: stub
  cluster:
    server: {server}
    {ca}
users:
- name: nbdpull
  user:
    {user}
contexts:
- name: stub
  context:
    cluster: stub
    namespace: {namespace}
    user: nbdpull
current-context: stub
"""


class Cluster:
    def __init__(self, generation, folder, reach="outside", system_ca=False):
        """folder: for the kubeconfig. system_ca: the external link has an empty certificate."""
        self.generation, self.reach, self.system_ca = GENERATIONS[generation], reach, system_ca
        self.folder = folder
        self.namespaces = set()
        self.forbidden = set()  # {(verb, resource)}
        self.without = set()  # groups of objects that it does not know
        self.gates = ["Snapshot", "IncrementalBackup"]
        self.bearer = BEARER
        self.complaints = []  # what a client did wrong
        self.log = []  # "VERB RESOURCE" of what was done to objects
        self.largest = Counter()  # the longest range that was asked for, of "map" and "data"
        self.longest = 0  # a longer one is cut, as by a router in front; 0: none
        self.faults = Faults()
        self.objects = Objects()
        self.stopped = False
        self._pairs = tls.pairs()[1]

    def __enter__(self):
        self._api = tls.Server(ApiHandler, self._pairs[0], self)
        self._open_exports(self._pairs[1])
        self.controller = Controller(self.generation, self.objects, self._urls)
        return self

    def __exit__(self, *_):
        self.stopped = True
        self.controller.stop()
        self._api.stop()
        self._exports.stop()

    def complain(self, text):
        self.complaints.append(text)

    # What a client finds

    def add_vm(self, namespace, name, sizes):
        """Add a running VM with these disks {volume: bytes}; the namespace gets a claim for scratch."""
        vm = Vm(namespace, name, sizes)
        self.namespaces.add(namespace)
        self.add_claim(namespace, SCRATCH)
        for volume in sizes:
            self.add_claim(namespace, f"{name}-{volume}", "Block")
        volumes = [{"name": each, "persistentVolumeClaim": {"claimName": f"{name}-{each}"}} for each in sizes]
        devices = {"disks": [{"name": each, "disk": {"bus": "virtio"}} for each in sizes]}
        spec = {"domain": {"devices": devices}, "volumes": volumes}
        tracking = {"changedBlockTracking": {"state": "Enabled"}}
        status = {"created": True, "ready": True, "printableStatus": "Running", **tracking}
        template = {"runStrategy": "Always", "template": {"spec": spec}}
        self.create("VirtualMachine", namespace, name, spec=template, status=status)
        self.create("VirtualMachineInstance", namespace, name, spec=spec, status={"phase": "Running", **tracking})
        self.controller.vms[namespace, name] = vm
        return vm

    def add_claim(self, namespace, name, mode="Filesystem"):
        if not self.objects.get("persistentvolumeclaims", namespace, name):
            spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeMode": mode}
            self.create("PersistentVolumeClaim", namespace, name, spec=spec)

    def create(self, kind, namespace, name, **others):
        """Create an object without any check."""
        (group, version, resource), _ = next(item for item in KINDS.items() if item[1][0] == kind)
        head = {"apiVersion": f"{group}/{version}".lstrip("/"), "kind": kind, "metadata": {"name": name}}
        self.objects.create(resource, namespace, {**head, **others})

    @property
    def kubeconfig(self):
        ca = base64.b64encode(self._pairs[0].bundle.encode()).decode()
        return self._kubeconfig(f"certificate-authority-data: {ca}", f"token: {self.bearer}")

    @property
    def kubeconfig_of_files(self):
        """Return a kubeconfig that names files beside it."""
        (self.folder / "ca.pem").write_text(self._pairs[0].bundle)
        (self.folder / "bearer").write_text(f"{self.bearer}\n")
        return self._kubeconfig("certificate-authority: ca.pem", "tokenFile: bearer")

    @property
    def kubeconfig_of_a_program(self):
        """Return a kubeconfig that names the program `plugin` beside it, which returns the credentials."""
        (self.folder / "ca.pem").write_text(self._pairs[0].bundle)
        program = {"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin", "interactiveMode": "Never"}
        return self._kubeconfig("certificate-authority: ca.pem", f"exec: {json.dumps(program)}")

    @property
    def api_url(self):
        return self._api.url

    def _kubeconfig(self, ca, user):
        path = self.folder / "kubeconfig"
        namespace = min(self.namespaces, default="default")
        path.write_text(KUBECONFIG.format(server=self._api.url, ca=ca, user=user, namespace=namespace))
        return path

    @property
    def ca_paths(self):
        """Return the paths of the CA certificates of the API and of the exports."""
        return self._pairs[0].bundle_path, self._exports.pair.bundle_path

    # What a test asks

    def current_job(self):
        jobs = [vm.job for vm in self.controller.vms.values() if vm.job]
        return jobs[0] if len(jobs) == 1 else None

    def job_of(self, namespace, name):
        vm = self.controller.vm_of(namespace, name)
        return vm and vm.job

    def all(self, resource):
        return self.objects.all(resource)

    @property
    def backups(self):
        return [item["metadata"]["name"] for item in self.all(BACKUPS)]

    def status(self, namespace, name):
        return (self.objects.get(BACKUPS, namespace, name) or {}).get("status") or {}

    def ready(self, namespace, name):
        """Wait until a backup reports its URLs; return (type, certificate, {volume: (URL of the map, URL of the
        data)})."""
        self.wait(lambda: self.generation.is_ready(self.status(namespace, name)))
        return self.generation.links(self.status(namespace, name))

    @property
    def trackers(self):
        """Return {name of a tracker: the name of its latest checkpoint or None}."""
        return {item["metadata"]["name"]: item.get("status", {}).get("latestCheckpoint", {}).get("name")
                for item in self.all(TRACKERS)}  # fmt: skip

    # What a test does

    def start_backup(self, namespace, name, source, kind="VirtualMachineBackupTracker", **others):
        """Start a backup as another program would. others: members of its spec."""
        group = "kubevirt.io" if kind == "VirtualMachine" else "backup.kubevirt.io"
        spec = {"source": {"apiGroup": group, "kind": kind, "name": source}, "mode": "Pull", "pvcName": SCRATCH,
                "tokenSecretRef": "theirs", **others}  # fmt: skip
        self.create("VirtualMachineBackup", namespace, name, spec=spec)
        self.wait(lambda: self.job_of(namespace, name))

    def end_backup(self, namespace, name):
        with self.objects.changed:
            self.objects.delete(BACKUPS, namespace, name)
        self.wait(lambda: name not in self.backups)

    def foreign_backup(self, namespace, tracker, name="theirs"):
        """Make a complete backup as another program would, with our tracker."""
        self.start_backup(namespace, name, tracker)
        self.end_backup(namespace, name)

    def recreate_export(self):
        """Replace the export server: another port, another certificate; the old ones are gone."""
        old = self._exports
        self._open_exports(self._pairs[2])
        old.stop()
        self.controller.recreate_export()

    def wait(self, condition, seconds=10):
        with self.objects.changed:
            assert self.objects.changed.wait_for(condition, seconds), "the cluster does not get there"

    # Ports

    def _open_exports(self, pair):
        self._exports = tls.Server(ExportHandler, pair, self)

    def _urls(self, namespace, export, volume, outside):
        """Return (URL without /map or /data, certificate), or None if there is no such route."""
        pair = self._exports.pair
        if outside and self.reach == "outside":
            base = f"{self._exports.url}/api/export.kubevirt.io/v1/namespaces/{namespace}/virtualmachineexports"
            return f"{base}/{export.backup}/exports/{volume}", "" if self.system_ca else pair.leaf
        if outside:
            return None
        host = self._exports.url if self.reach == "inside" else f"https://virt-export-{export.backup}.{namespace}.svc"
        return f"{host}/exports/{volume}", pair.bundle + self._pairs[0].bundle
