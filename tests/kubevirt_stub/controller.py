"""How a backup proceeds: KubeVirt's controller, with the QEMU job that it drives.

Owns: `Vm` with its one job, and the steps from a new object to its end, one a tick. The trap is here: when a job ends
without a failure, for whatever reason, the tracker's latestCheckpoint moves, although nobody may have read anything.
Must not know: HTTP. It holds the condition of the objects while it works.
"""

import base64
import threading
import time
import uuid
from dataclasses import dataclass, field

from . import status as words
from .disks import Disk
from .objects import now
from .schema import seconds

BACKUPS, TRACKERS, EXPORTS = "virtualmachinebackups", "virtualmachinebackuptrackers", "virtualmachineexports"
FINALIZER = "backup.kubevirt.io/vmbackup-protection"
TICK = 0.004
DEFAULT_TTL = "2h"


@dataclass
class Export:
    """The pod that answers, and the tunnel to it."""

    backup: str
    token: bytes
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    ready: bool = False


@dataclass
class Job:
    """A pull backup of QEMU: what it shows, and how it ended ("", "completed", or why it failed)."""

    backup: str
    type: str
    checkpoint: str
    start: str
    volumes: dict  # {volume: Frozen}
    quiesced: str
    until: float
    export: Export = None
    ended: str = ""


class Vm:
    def __init__(self, namespace, name, sizes):
        self.namespace, self.name = namespace, name
        self.disks = {volume: Disk(size) for volume, size in sizes.items()}
        self.running = self.tracking = self.agent = True
        self.job = None

    @property
    def targets(self):
        return {name: f"vd{chr(ord('a') + index)}" for index, name in enumerate(self.disks)}

    def lose_bitmaps(self):
        for disk in self.disks.values():
            disk.bitmaps.clear()


class Controller:
    def __init__(self, generation, objects, urls):
        """urls(export, volume, outside) returns the URLs of data and map, and the certificate: see Cluster."""
        self.generation, self.objects, self.urls = generation, objects, urls
        self.vms = {}
        self.held = False  # no export becomes ready
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self):
        self._stopped = True
        self._thread.join()

    def _run(self):
        while not self._stopped:
            with self.objects.changed:
                for backup in sorted(self.objects.all(BACKUPS), key=self._owns_a_job):
                    self._advance(backup)
                    self.objects.update(BACKUPS, backup)
            time.sleep(TICK)

    def _owns_a_job(self, backup):
        """Return whether a backup owns a job: such backups come last, as they take the job with them."""
        return self.vm_of(backup["metadata"]["namespace"], backup["metadata"]["name"]) is not None

    # What a test does to a backup that is under way

    def vm_of(self, namespace, backup_name):
        return next((vm for vm in self.vms.values()
                     if vm.namespace == namespace and vm.job and vm.job.backup == backup_name), None)  # fmt: skip

    def job(self):
        """The one running job."""
        with self.objects.changed:
            (found,) = [vm.job for vm in self.vms.values() if vm.job]
            return found

    def end_ttl(self):
        job = self.job()
        job.until = 0
        self._wait(lambda: job.ended)

    def fail(self, message="block device I/O error"):
        self.job().ended = message

    def recreate_export(self):
        """Delete the object of the export; the controller creates another one."""
        with self.objects.changed:
            job = self.job()
            old, job.export = job.export, None
        self._wait(lambda: job.ended or job.export not in (None, old))

    def _wait(self, condition):
        until = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < until, "the controller does not get there"
            time.sleep(TICK)

    # The steps

    def _advance(self, backup):
        status = backup.setdefault("status", {})
        if self.generation.is_terminal(status):
            if backup["metadata"].get("deletionTimestamp"):
                backup["metadata"].pop("finalizers", None)
            return
        tracker, source = self._source(backup)
        if source is None:
            self.generation.initializing(status, f"BackupTracker {backup['spec']['source']['name']} does not exist")
            return
        vm = self.vms.get((backup["metadata"]["namespace"], source))
        job = vm.job if vm else None
        if job is None:
            self._start(backup, status, vm, tracker, source)
        elif job.backup != backup["metadata"]["name"] and not self.generation.confuses:
            return  # it waits
        elif job.ended:
            self._complete(backup, status, vm, tracker)
        elif job.backup == backup["metadata"]["name"]:
            self._go_on(backup, status, vm)
        else:
            self._confuse(status, vm)

    def _source(self, backup):
        """Return (the tracker or None, the name of the VM or None if the tracker is missing)."""
        source = backup["spec"]["source"]
        if source["kind"] == "VirtualMachine":
            return None, source["name"]
        tracker = self.objects.get(TRACKERS, backup["metadata"]["namespace"], source["name"])
        return tracker, tracker and tracker["spec"]["source"]["name"]

    def _start(self, backup, status, vm, tracker, source):
        metadata = backup["metadata"]
        if metadata.get("deletionTimestamp"):
            self.generation.failed(status, "DeletedDuringInit", "backup was deleted during initialization")
            return
        if status.get("type"):
            self.generation.failed(status, "SourceLost", "VMI backup status was lost")
            return
        reason = self._obstacle(backup, vm, source)
        if reason is not None:
            if reason:
                self.generation.initializing(status, reason)
            return
        if FINALIZER not in metadata.setdefault("finalizers", []):
            metadata["finalizers"].append(FINALIZER)  # and the claim is attached, which takes a while
            return
        self._begin(backup, status, vm, tracker)

    def _obstacle(self, backup, vm, source):
        """Return why it cannot begin yet; "" if the controller only logs that; None if it can."""
        namespace, claim = backup["metadata"]["namespace"], backup["spec"]["pvcName"]
        found = self.objects.get("persistentvolumeclaims", namespace, claim)
        if vm is None:
            return f"VM {namespace}/{source} doesnt exist"
        if not vm.running:
            return f"vm {source} is not running, cannot do backup"
        if not vm.disks:
            return f"vm {source} has no volumes to backup"
        if not vm.tracking:
            return f"vm {source} has no ChangedBlockTracking, cannot start backup"
        if found is None:
            return f"PVC {namespace}/{claim} doesnt exist"
        return "" if found["spec"].get("volumeMode") == "Block" else None

    def _begin(self, backup, status, vm, tracker):
        spec, metadata = backup["spec"], backup["metadata"]
        latest = ((tracker or {}).get("status") or {}).get("latestCheckpoint") or {}
        since = None if spec.get("forceFullBackup") else latest.get("name")
        start = metadata["creationTimestamp"]
        stamp = start.rstrip("Z").replace("T", "_").replace(":", "-")
        checkpoint = f"{metadata['name']}-{stamp}".lower()
        if since and any(since not in disk.bitmaps for disk in vm.disks.values()):
            return  # libvirt refuses, the controller logs it and tries again for ever
        volumes = {name: disk.freeze(checkpoint, since, self.generation.merged) for name, disk in vm.disks.items()}
        quiesced = "Skipped" if spec.get("skipQuiesce") else "Succeeded" if vm.agent else "Failed"
        until = time.monotonic() + seconds(spec.get("ttlDuration", DEFAULT_TTL))
        backup_type = "Incremental" if since else "Full"
        vm.job = Job(metadata["name"], backup_type, checkpoint, start, volumes, quiesced, until)
        self.generation.started(status, backup_type)

    def _go_on(self, backup, status, vm):
        job = vm.job
        if not vm.running:
            vm.job = None
            self.generation.failed(status, "SourceUnhealthy", "VMI is not in a running state: Failed")
        elif backup["metadata"].get("deletionTimestamp"):
            self._abort(status, job, words.ABORTING)
        elif time.monotonic() >= job.until:
            self._abort(status, job, f"pull mode backup TTL has expired: {words.ABORTING}")
        elif job.export is None:
            self.generation.preparing(status)
            job.export = Export(job.backup, self._token(backup))
        elif not status.get("includedVolumes"):
            self.generation.included(status, vm.targets, job.checkpoint, job.quiesced)
        elif not job.export.ready:
            self._make_ready(backup, status, job)
        else:
            job.export.token = self._token(backup) or job.export.token  # the mounted secret follows

    def _abort(self, status, job, reason):
        self.generation.aborting(status, reason)
        job.ended = "completed"

    def _token(self, backup):
        secret = self.objects.get("secrets", backup["metadata"]["namespace"], backup["spec"]["tokenSecretRef"])
        return base64.b64decode((secret or {}).get("data", {}).get("token", ""))

    def _make_ready(self, backup, status, job):
        job.export.token = job.export.token or self._token(backup)
        if self.held or not job.export.token:
            return  # without the secret, the pod does not start
        job.export.ready = True
        self.generation.export_sent(status, job.export.uid)
        links = [self._link(backup, job, outside) for outside in (False, True)]
        self.generation.ready(status, *links)

    def _link(self, backup, job, outside):
        found = {name: self.urls(backup["metadata"]["namespace"], job.export, name, outside) for name in job.volumes}
        if None in found.values():
            return None
        volumes = [{"volumeName": name, "dataEndpoint": f"{url}/data", "mapEndpoint": f"{url}/map"}
                   for name, (url, _) in found.items()]  # fmt: skip
        return {"cert": next(iter(found.values()))[1], "volumes": volumes}

    def _confuse(self, status, vm):
        """Mistake the job of another backup for this one's, as the controller does; its launcher refuses to export
        it."""
        if not status.get("includedVolumes"):
            self.generation.preparing(status)
            self.generation.included(status, vm.targets, vm.job.checkpoint, vm.job.quiesced)

    def _complete(self, backup, status, vm, tracker):
        """End a job, also for the backups that were taken for its owners."""
        job = vm.job
        failed = job.ended != "completed"
        if tracker and not failed:
            self.move(tracker, job.checkpoint, vm, job.start)
        if failed:
            self.generation.failed(status, "Failed", job.ended)
        else:
            warning = "the guest agent is not connected" if job.quiesced == "Failed" else ""
            self.generation.completed(status, vm.targets, job.checkpoint if tracker else None, warning)
        if job.backup == backup["metadata"]["name"]:
            vm.job = None

    def move(self, tracker, checkpoint, vm, start=None):
        volumes = self.generation.volumes(vm.targets)
        latest = {"name": checkpoint, "creationTime": start or now(), "volumes": volumes}
        tracker.setdefault("status", {})["latestCheckpoint"] = latest
        self.objects.update(TRACKERS, tracker)
