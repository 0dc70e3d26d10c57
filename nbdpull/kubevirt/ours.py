"""Our objects in a cluster: what a run creates, and how it is recognized later.

Owns: their names, labels and spec. Must not know: what their status says, how objects are fetched and created, HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from .given import Machine
from .objects import Object, label

_GROUP, _OF_VM = "backup.kubevirt.io", "kubevirt.io"
_LABELS = {"app.kubernetes.io/managed-by": "nbdpull"}
_STORE, _RUN, _TRACKER = "nbdpull/store", "nbdpull/run", "nbdpull/tracker"
_TIME = len("20261122T194500Z")  # of a run id, which is in capitals
_MAX_NAME = 63  # characters allowed in a name of any kind


def run_name(run_id: str) -> str:
    """Return the name of the objects of one run."""
    return f"nbdpull-{run_id.lower()}"


def tracker_name(machine: Machine, store: str) -> str:
    """Return the name of the tracker for a VM and a store: two stores that shared one would move each other's base."""
    name = f"nbdpull-{machine.name}-{store[:8]}"
    if len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(machine.name.encode()).hexdigest()[:8]
    return f"nbdpull-{machine.name[:36].rstrip('.-')}-{digest}-{store[:8]}"


def labels(store: Optional[str] = None, run_id: Optional[str] = None, tracker: Optional[str] = None) -> dict[str, str]:
    """Return the labels of our objects. store: uuid of the store, None = any; tracker: name of the one that a run
    uses."""
    more = {_STORE: store, _RUN: run_id and run_id.lower(), _TRACKER: tracker}
    return {**_LABELS, **{name: value for name, value in more.items() if value}}


def _object(version: str, kind: str, name: str, labelled: Mapping[str, str], **members: Any) -> Object:
    metadata = {"name": name, "labels": dict(labelled)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **members}


def tracker(machine: Machine, name: str, labelled: Mapping[str, str]) -> Object:
    source = {"apiGroup": _OF_VM, "kind": "VirtualMachine", "name": machine.name}
    return _object(f"{_GROUP}/v1alpha1", "VirtualMachineBackupTracker", name, labelled, spec={"source": source})


def secret(name: str, labelled: Mapping[str, str], token: str) -> Object:
    data = {"token": base64.b64encode(token.encode()).decode()}
    return _object("v1", "Secret", name, labelled, type="Opaque", data=data)


def claim(name: str, labelled: Mapping[str, str], size: int) -> Object:
    """Return a claim for the scratch of a backup."""
    spec = {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "resources": {"requests": {"storage": str(size)}}}  # fmt: skip
    return _object("v1", "PersistentVolumeClaim", name, labelled, spec=spec)


class Wish(NamedTuple):
    """What we request of a backup. seconds: the time it may take, None = KubeVirt's default."""

    tracker: str
    full: bool
    skip_quiesce: bool
    seconds: Optional[float]
    pvc: str


def backup(name: str, labelled: Mapping[str, str], wish: Wish) -> Object:
    """Return a backup object. Its secret has the same name."""
    spec: Object = {
        "source": {"apiGroup": _GROUP, "kind": "VirtualMachineBackupTracker", "name": wish.tracker},
        "mode": "Pull",
        "tokenSecretRef": name,
        "pvcName": wish.pvc,
    }
    if wish.full:
        spec["forceFullBackup"] = True
    if wish.skip_quiesce:
        spec["skipQuiesce"] = True
    if wish.seconds:
        spec["ttlDuration"] = f"{math.ceil(wish.seconds)}s"
    return _object(f"{_GROUP}/v1alpha1", "VirtualMachineBackup", name, labelled, spec=spec)


# Who owns an object


def store_of(found: Object) -> Optional[str]:
    """Return the uuid of the store that an object of ours belongs to."""
    return label(found, _STORE)


def run_of(found: Object) -> Optional[str]:
    """Return the id of the run that created it."""
    run = label(found, _RUN)
    return run if run is None else run[:_TIME].upper() + run[_TIME:]


def is_ours(found: Object, machine: Machine) -> bool:
    """Return whether nbdpull created it for this VM, for any store."""
    store = store_of(found)
    return store is not None and label(found, _TRACKER) == tracker_name(machine, store)
