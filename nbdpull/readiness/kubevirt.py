"""Whether a cluster, its KubeVirt and a virtual machine are fit for pulls: what their objects show, and advice.

Owns: what is checked, and what prevents pulls. Must not know: stores, what is printed.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..core import errors
from ..kubevirt import backup, objects, ours
from ..kubevirt.cluster import Cluster
from ..kubevirt.given import Machine
from .finding import BAD, WARN, Finding, good, guarded


def found(cluster: Cluster, machine: Machine) -> Iterator[Finding]:
    """Yield the findings of all checks, each independent of the others."""
    yield from guarded("cluster", _cluster(cluster))
    yield from guarded("KubeVirt", _release(cluster))
    yield from guarded("permissions", _permissions(cluster, machine))
    yield from guarded(f"virtual machine {machine.domain}", _machine(cluster, machine))
    yield from guarded("backups", _backups(cluster, machine))


def _cluster(cluster: Cluster) -> Iterator[Finding]:
    where = "from inside" if cluster.inside else "from outside"
    for text in cluster.warnings:
        yield Finding(WARN, "verification", text, "name the cluster's CA in the kubeconfig instead")
    yield good("cluster", f"{cluster.host}, Kubernetes {cluster.version()}, {where}")


def _release(cluster: Cluster) -> Iterator[Finding]:
    try:
        installed = cluster.items(objects.INSTALLED, "")
    except errors.AccessDenied:
        yield good("KubeVirt", "its version is unknown: this account may not list kubevirts, and need not")
        return
    for each in installed:
        version, gates = objects.release(each)
        if objects.GATE in gates:
            yield good("KubeVirt", f"{version}, with the feature gate {objects.GATE}")
        else:
            yield Finding(WARN, "KubeVirt", f"{version}, whose configuration has no feature gate {objects.GATE}",
                          "versions in which backups are alpha refuse them without it: add it to "
                          "spec.configuration.developerConfiguration.featureGates")  # fmt: skip


def _permissions(cluster: Cluster, machine: Machine) -> Iterator[Finding]:
    where, all_right = f"in namespace {machine.namespace} this account may", True
    for part, rights in _RIGHTS.items():
        denied = [f"{verb} {objects.plural(kind)}" for kind, verbs in rights.items() for verb in verbs
                  if not cluster.may(verb, kind, machine.namespace)]  # fmt: skip
        if denied:
            all_right = False
            state, advice, code = _WITHOUT[part]
            yield Finding(state, "permissions", f"{where} not {', '.join(denied)}", advice, code)
    if all_right:
        yield good("permissions", f"{where} do everything that pulls need")


_RIGHTS = {
    "pull": {
        objects.VM: ["get"],
        objects.BACKUP: ["get", "list", "create", "delete"],
        objects.TRACKER: ["get", "list", "create", "delete"],
        objects.SECRET: ["create", "delete"],
    },
    "claim": {objects.CLAIM: ["get", "create", "delete"]},
    "list": {objects.SECRET: ["list"], objects.CLAIM: ["list"]},
}
_WITHOUT = {  # (state, advice, exit code)
    "pull": (BAD, "give it a role with these rights: no pull works without them", errors.AccessDenied.exit_code),
    "claim": (WARN, "give it a role with these rights, or pull with --pvc", 0),
    "list": (WARN, "give it a role with these rights: what a killed run leaves may not be found", 0),
}


def _machine(cluster: Cluster, machine: Machine) -> Iterator[Finding]:
    subject = f"virtual machine {machine.domain}"
    known = backup.require_known(cluster, machine)
    yield from guarded(subject, _able(subject, machine, known))
    for volume, source in objects.volumes(known).items():
        yield _volume(volume, source)


def _able(subject: str, machine: Machine, known: objects.Object) -> Iterator[Finding]:
    backup.require_able(machine, known)
    yield good(subject, f"running, changed block tracking {objects.tracking(known) or 'not reported'}")


def _volume(volume: str, source: str) -> Finding:
    if source:
        return good(f"volume {volume}", source)
    return Finding(WARN, f"volume {volume}", "KubeVirt backs up claims and host disks only: it is in no backup",
                   "nothing, if all of its content can be created again (cloud-init, ISO images)")  # fmt: skip


def _backups(cluster: Cluster, machine: Machine) -> Iterator[Finding]:
    trackers = cluster.items(objects.TRACKER, machine.namespace)
    running = [each for each in cluster.items(objects.BACKUP, machine.namespace)
               if objects.is_of(each, machine, trackers) and not objects.is_over(each)]  # fmt: skip
    for each in running:
        mine, name = ours.is_ours(each, machine), objects.name_of(each)
        whose = f"made by nbdpull, for store {ours.store_of(each)}" if mine else "not made by nbdpull"
        advice = "if its run has died, nbdpull cleanup with -o that store ends it" if mine else "pull when it has ended"
        yield Finding(
            WARN, f"backup {name}", f"{whose}; running: {objects.state(each, cluster.inside).conditions}", advice
        )
    if not running:
        yield good("backups", "none is running")
    for each in trackers:
        if objects.is_tracker_of(each, machine):
            latest = objects.latest_checkpoint(each) or "none"
            whose = f"store {ours.store_of(each)}" if ours.is_ours(each, machine) else "not nbdpull's"
            yield good(f"tracker {objects.name_of(each)}", f"{whose}; its next backup starts at checkpoint {latest}")
