"""The contents of a cluster's objects that concern a backup.

Owns: their kinds, the members of spec and status, and the three generations of a status: v1.8 has a condition for each
state, v1.9 has reasons of one condition, and after August 2026 the endpoints are in links. The object itself shows its
generation. Must not know: which objects are ours (ours.py), how they are fetched, HTTP.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, Optional

from ..core.choices import KUBEVIRT, BackupType
from .endpoint import Access, Urls
from .given import Machine

Object = dict[str, Any]

VM = "apis/kubevirt.io/v1/namespaces/{}/virtualmachines"
BACKUP = "apis/backup.kubevirt.io/v1alpha1/namespaces/{}/virtualmachinebackups"
TRACKER = "apis/backup.kubevirt.io/v1alpha1/namespaces/{}/virtualmachinebackuptrackers"
SECRET = "api/v1/namespaces/{}/secrets"  # noqa: S105
CLAIM = "api/v1/namespaces/{}/persistentvolumeclaims"
INSTALLED = "apis/kubevirt.io/v1/kubevirts"  # of all namespaces

GATE = "IncrementalBackup"

_TERMINAL = ("Done", "Complete", "Failed")


def _at(found: Any, *path: str) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def uid(found: Object) -> str:
    return str(_at(found, "metadata", "uid") or "")


def name_of(found: Object) -> str:
    return str(_at(found, "metadata", "name") or "")


def label(found: Object, name: str) -> Optional[str]:
    text = _at(found, "metadata", "labels", name)
    return text if isinstance(text, str) else None


def is_off(found: Object) -> bool:
    """Return whether a VM reports that it is off: a backup of it would wait for its start for ever."""
    return bool(_at(found, "status", "printableStatus") == "Stopped")


def tracking(found: Object) -> Optional[str]:
    """Return the state of a VM's changed block tracking, None if it is not reported."""
    state = _at(found, "status", "changedBlockTracking", "state")
    return state if isinstance(state, str) else None


def latest_checkpoint(found: Optional[Object]) -> Optional[str]:
    """Return the checkpoint that a tracker names as the start of its next backup."""
    name = _at(found, "status", "latestCheckpoint", "name")
    return name if isinstance(name, str) and name else None


def is_tracker_of(found: Object, machine: Machine) -> bool:
    return bool(_at(found, "spec", "source", "name") == machine.name)


def is_of(found: Object, machine: Machine, trackers: Iterable[Object]) -> bool:
    """Return whether a backup is of this VM, directly or through one of the trackers."""
    kind, name = _at(found, "spec", "source", "kind"), _at(found, "spec", "source", "name")
    if kind == "VirtualMachine":
        return bool(name == machine.name)
    return any(name_of(each) == name and is_tracker_of(each, machine) for each in trackers)


class State(NamedTuple):
    """The state of a backup.

    ended: how, as a text, "" while it runs; ready: whether it can be read; conditions: the latest ones, as text; type:
    of BackupType; full: volumes that are in full even if that is incremental; checkpoint: (name, seconds since 1970);
    begun: ISO 8601; quiesced: None = not reported.
    """

    uid: str
    ended: str
    ready: bool
    conditions: str
    type: Optional[str]
    full: frozenset[str]
    checkpoint: Optional[tuple[str, int]]
    begun: Optional[str]
    quiesced: Optional[tuple[bool, str]]
    access: Optional[Access]


def state(found: Object, inside: bool) -> State:
    """Return the state of a backup. inside: whether we are in the cluster, where its services can be reached."""
    status = _at(found, "status")
    status = status if isinstance(status, dict) else {}
    conditions = {str(_at(each, "type")): each for each in _list(status.get("conditions")) if isinstance(each, dict)}
    begun = _time(_at(found, "metadata", "creationTimestamp"))
    checkpoint = status.get("checkpointName")
    access = _access(status, inside)
    backup_type, full = _types(status)
    return State(
        uid=uid(found),
        ended=_ended(found, conditions),
        ready=bool(access) and _is_ready(conditions),
        conditions=_last(conditions),
        type=backup_type,
        full=full,
        checkpoint=(str(checkpoint), int(begun.timestamp()) if begun else 0) if checkpoint else None,
        begun=begun.isoformat(timespec="seconds") if begun else None,
        quiesced=_quiesced(conditions.get("Quiesced")),
        access=access,
    )


_TYPES = {"Full": BackupType.FULL, "Incremental": BackupType.INCREMENTAL}


def _types(status: Object) -> tuple[Optional[str], frozenset[str]]:
    """Return (the type of a backup, the volumes in full). KubeVirt is about to report it of each volume instead: a
    volume without the bitmap is backed up in full."""
    included = _list(status.get("includedVolumes"))
    of_volume = {str(_at(each, "volumeName")): _TYPES.get(str(_at(each, "type"))) for each in included}
    found = _TYPES.get(str(status.get("type")))
    if found is None and of_volume and all(of_volume.values()):
        found = BackupType.INCREMENTAL if BackupType.INCREMENTAL in of_volume.values() else BackupType.FULL
    return found, frozenset(name for name, of in of_volume.items() if of == BackupType.FULL)


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _time(text: Any) -> Optional[datetime]:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None


def _is_true(condition: Optional[Object]) -> bool:
    return bool(condition and condition.get("status") == "True")


def _is_ready(conditions: Mapping[Any, Object]) -> bool:
    progressing = conditions.get("Progressing")
    by_reason = _is_true(progressing) and _at(progressing, "reason") == "ExportReady"
    return by_reason or _is_true(conditions.get("ExportReady"))


def _ended(found: Object, conditions: Mapping[Any, Object]) -> str:
    """Return how a backup ended or is about to end, "" if neither."""
    for name in _TERMINAL:
        if _is_true(conditions.get(name)):
            return f"it has ended ({_shown(conditions[name])})"
    aborting = next((conditions[name] for name in ("Aborting", "Deleting") if _is_true(conditions.get(name))), None)
    progressing = conditions.get("Progressing")
    if aborting is None and _is_true(progressing) and _at(progressing, "reason") == "Aborting":
        aborting = progressing
    if aborting:
        return f"it is being aborted ({_shown(aborting)})"
    return "it is being deleted" if _at(found, "metadata", "deletionTimestamp") else ""


def release(found: Object) -> tuple[str, list[str]]:
    """Return (the running version, the feature gates in the configuration) of a KubeVirt object."""
    gates = _list(_at(found, "spec", "configuration", "developerConfiguration", "featureGates"))
    return str(_at(found, "status", "observedKubeVirtVersion") or "an unknown version"), list(map(str, gates))


def plural(kind: str) -> str:
    """Return the name of a kind as permissions use it: the last word of its path."""
    return kind.rpartition("/")[2]


def is_over(found: Object) -> bool:
    """Return whether nothing of the backup is running any more."""
    conditions = _list(_at(found, "status", "conditions"))
    return any(isinstance(each, dict) and each.get("type") in _TERMINAL and _is_true(each) for each in conditions)


def _shown(condition: Object) -> str:
    words = (str(word) for word in map(condition.get, ("type", "reason", "message")) if word)
    return ": ".join(dict.fromkeys(words))[:300]


def _last(conditions: Mapping[Any, Object]) -> str:
    true = [each for each in conditions.values() if _is_true(each)] or list(conditions.values())
    return "; ".join(map(_shown, true)) or "it has no status"


def _quiesced(condition: Optional[Object]) -> Optional[tuple[bool, str]]:
    return (_is_true(condition), str(condition.get("reason") or "")) if condition else None


def _access(status: Object, inside: bool) -> Optional[Access]:
    """Return where all volumes of a backup are; None until every volume has an endpoint."""
    names = {str(_at(each, "volumeName")) for each in _list(status.get("includedVolumes"))}
    links = status.get("links")
    ways = ("internal", "external") if inside else ("external", "internal")
    for link in [*(_at(links, way) for way in ways), None]:
        cert = _at(link, "cert") if link else status.get("endpointCert")
        volumes = _list(_at(link, "volumes") if link else status.get("includedVolumes"))
        found = {str(each["volumeName"]): Urls(str(each["mapEndpoint"]), str(each["dataEndpoint"])) for each in volumes
                 if isinstance(each, dict) and each.get("mapEndpoint") and each.get("dataEndpoint")}  # fmt: skip
        if found and names <= set(found):
            return Access(found, str(cert) if cert else None)
    return None


def _volumes(machine_object: Object) -> dict[str, Object]:
    volumes = _list(_at(machine_object, "spec", "template", "spec", "volumes"))
    return {str(_at(each, "name")): each for each in volumes}


def claims(machine_object: Object) -> dict[str, str]:
    """Return {volume: claim} of a VM."""
    found = {}
    for name, volume in _volumes(machine_object).items():
        claimed = _at(volume, "persistentVolumeClaim", "claimName") or _at(volume, "dataVolume", "name")
        if claimed:
            found[name] = str(claimed)
    return found


def sources(machine: Machine, machine_object: Object, known: Mapping[str, Optional[Object]]) -> dict[str, str]:
    """Return {volume: the source that a point records for it} of a VM. known: the claims.

    A claim that was deleted and created again, as by an in-place restore, has the same name but other content, which no
    bitmap shows; its uid differs.
    """
    found = {}
    for name, claim in claims(machine_object).items():
        made = known.get(name)
        found[name] = f"{KUBEVIRT}{machine.namespace}/{claim}" + (f" {uid(made)}" if made else "")
    return found


def volumes(machine_object: Object) -> dict[str, str]:
    """Return {volume: a description of its kind} of a VM; "" if KubeVirt does not back it up."""
    claimed = claims(machine_object)
    return {
        name: f"claim {claimed[name]}" if name in claimed else "host disk" if _at(volume, "hostDisk") else ""
        for name, volume in _volumes(machine_object).items()
    }


_UNITS = {"": 1, "m": 1e-3, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
          "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60}  # fmt: skip


def capacity(found: Optional[Object]) -> int:
    """Return the bytes of a claim, 0 if it does not say."""
    text = _at(found, "status", "capacity", "storage") or _at(found, "spec", "resources", "requests", "storage") or "0"
    digits = str(text).rstrip("mkKMGTPEi")
    try:
        return math.ceil(float(digits) * _UNITS[str(text)[len(digits) :]])
    except (KeyError, ValueError, OverflowError):
        return 0


def stored(machine_object: Object) -> bytes:
    """Return a VM as a file of a point, without what only its cluster needs."""
    metadata = {name: value for name, value in machine_object["metadata"].items() if name != "managedFields"}
    return json.dumps({**machine_object, "metadata": metadata}, indent=1, sort_keys=True).encode() + b"\n"
