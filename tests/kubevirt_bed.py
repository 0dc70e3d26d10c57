"""The stub of KubeVirt with one VM, pulled from in this process, and questions of tests to the cluster and the store.

Owns: `ns1/vm1` and the store beside the kubeconfig. Must not know: what goes wrong. For runs by the command line see
kubevirt_play.
"""

from kubevirt_stub import CLUSTER

from nbdpull.kubevirt import backup, cluster, endpoint, given, remains
from nbdpull.operations import kubevirt, restore
from nbdpull.operations.options.pulls import KubevirtOptions
from nbdpull.operations.options.restores import RestoreOptions
from nbdpull.repository import marker, series_choice

DOMAIN = "kubevirt:ns1/vm1"
SIZE = 40 * CLUSTER
KINDS = ("virtualmachinebackups", "secrets", "persistentvolumeclaims")


def quicken(monkeypatch):
    """Shorten all waits, which a stub does not need."""
    monkeypatch.setattr(backup, "POLL", 0.01)
    monkeypatch.setattr(backup, "MAX_POLL", 0.05)
    monkeypatch.setattr(backup, "SETTLED", 1.0)
    monkeypatch.setattr(remains, "POLL", 0.01)
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    monkeypatch.setattr(cluster, "PAUSE", 0.05)


def furnished(made):
    vm = made.add_vm("ns1", "vm1", {"rootdisk": SIZE, "data": 3 * CLUSTER})
    vm.disks["rootdisk"].write(0, b"a" * 5 * CLUSTER)
    vm.disks["data"].write(CLUSTER, b"b" * CLUSTER)
    return made


def store_of(bed):
    return bed.folder / "store"


def pull(bed, **more):
    if "kubeconfig" not in more:
        more["kubeconfig"] = str(bed.kubeconfig)
    options = {"stall_timeout": 60.0, "threads": 3, **more}
    return kubevirt.kubevirt(KubevirtOptions(domain=DOMAIN, output=str(store_of(bed)), **options))


def dead_run(bed):
    """Leave the remains of a pull into the store that was killed when its backup became readable."""
    store = marker.uuid_of(marker.open_or_create(str(store_of(bed))))
    reached = cluster.Cluster(str(bed.kubeconfig), None, 3.0)
    dead = backup.Backup(reached, backup.Who(given.Machine("ns1", "vm1"), store, "20261127T000000Z-00000000"), 3.0)
    dead.begin(dead.base(), False, None, None, lambda: 1 << 20)
    dead.wait()


def disks(bed):
    return bed.controller.vms["ns1", "vm1"].disks


def require_equal(bed, name):
    """Require that the newest point restores to the disks."""
    out = bed.folder / f"out-{name}"
    restore.restore(RestoreOptions(store=str(store_of(bed)), output=str(out), kind="raw"))
    for volume, disk in disks(bed).items():
        assert (out / f"{volume}.raw").read_bytes() == bytes(disk.read()), volume


def points(bed):
    return series_choice.only_series(marker.open_store(str(store_of(bed)))).points()


def decisions(point):
    return {disk.name: (disk.mode, disk.reason) for disk in point.manifest.disks}


def both(mode, reason):
    return dict.fromkeys(("rootdisk", "data"), (mode, reason))


def left(bed):
    """Return the names of our objects in the cluster, except the tracker."""
    names = [each["metadata"]["name"] for kind in KINDS for each in bed.all(kind)]
    return [name for name in names if name.startswith("nbdpull")]
