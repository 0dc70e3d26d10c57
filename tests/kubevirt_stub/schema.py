"""What the API server and KubeVirt's webhooks refuse in an object that a client sends.

Owns: the fields that each kind has, the rules of the CRDs (CEL), names and durations. A refusal is `Refused` with the
HTTP status of the real one; unknown fields, which the real one silently drops, are 400 here.
"""

import base64
import binascii
import re

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
STEP = r"([0-9]+(?:[.][0-9]*)?)(ns|us|µs|ms|s|m|h)"
DURATION = re.compile(f"({STEP})+")
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
METADATA = {"name": str, "generateName": str, "namespace": str, "labels": dict, "annotations": dict,
            "ownerReferences": list, "finalizers": list, "creationTimestamp": object}  # fmt: skip
OWNER = {"apiVersion": str, "kind": str, "name": str, "uid": str, "controller": bool, "blockOwnerDeletion": bool}
SOURCE = {"apiGroup": str, "kind": str, "name": str}
BACKUP = {"source": SOURCE, "mode": str, "pvcName": str, "skipQuiesce": bool, "forceFullBackup": bool,
          "tokenSecretRef": str, "ttlDuration": str}  # fmt: skip
CLAIM = {"accessModes": list, "resources": {"requests": dict, "limits": dict}, "storageClassName": str,
         "volumeMode": str, "volumeName": str}  # fmt: skip
TOP = {"apiVersion": str, "kind": str, "metadata": METADATA}
FIELDS = {
    "Secret": {**TOP, "type": str, "data": dict, "stringData": dict, "immutable": bool},
    "PersistentVolumeClaim": {**TOP, "spec": CLAIM},
    "VirtualMachineBackupTracker": {**TOP, "spec": {"source": SOURCE}},
    "VirtualMachineBackup": {**TOP, "spec": BACKUP},
}


class Refused(Exception):
    """A refusal. status: of HTTP; reason: Kubernetes' word for it."""

    def __init__(self, status, reason, message):
        super().__init__(message)
        self.status, self.reason = status, reason


def check(item, api_version, kind):
    """Check a new object of that kind; raise Refused."""
    if not isinstance(item, dict) or (item.get("apiVersion"), item.get("kind")) != (api_version, kind):
        raise Refused(400, "BadRequest", f"the object provided is unrecognized (must be {api_version}, {kind})")
    check_fields(item, FIELDS[kind], "")
    metadata = item.setdefault("metadata", {})
    for owner in metadata.get("ownerReferences", []):
        check_fields(owner, OWNER, "metadata.ownerReferences[0]")
        if not all(owner.get(field) for field in ("apiVersion", "kind", "name", "uid")):
            raise invalid(item, "metadata.ownerReferences", "apiVersion, kind, name and uid must not be empty")
    name = metadata.get("name") or metadata.get("generateName", "") + "xxxxx"
    if not (metadata.get("name") or metadata.get("generateName")):
        raise invalid(item, "metadata.name", "Required value: name or generateName is required")
    if not NAME.fullmatch(name) or len(name) > 253:
        raise invalid(item, "metadata.name", f"Invalid value: {name!r}: a lowercase RFC 1123 subdomain must consist of")
    CHECKS[kind](item)


def check_fields(value, fields, path):
    if not isinstance(value, dict):
        raise Refused(400, "BadRequest", f"{path} must be an object")
    for name, each in value.items():
        here = f"{path}.{name}".lstrip(".")
        if name not in fields:
            raise Refused(400, "BadRequest", f'strict decoding error: unknown field "{here}"')
        if isinstance(fields[name], dict):
            check_fields(each, fields[name], here)
        elif not isinstance(each, fields[name]) or (fields[name] is not bool and isinstance(each, bool)):
            raise Refused(400, "BadRequest", f"json: cannot unmarshal {here}: {each!r}")


def invalid(item, field, message):
    kind, name = item["kind"], item.get("metadata", {}).get("name", "")
    return Refused(422, "Invalid", f'{kind} "{name}" is invalid: {field}: {message}')


def _backup(item):
    spec = item.get("spec", {})
    _source(item, {("kubevirt.io", "VirtualMachine"), ("backup.kubevirt.io", "VirtualMachineBackupTracker")})
    if spec.get("mode", "Push") not in ("Push", "Pull"):
        raise invalid(item, "spec.mode", f'Unsupported value: "{spec["mode"]}": supported values: "Push", "Pull"')
    if not spec.get("pvcName"):
        raise invalid(item, "spec", "Invalid value: pvcName is required")
    if spec.get("mode") == "Pull" and not spec.get("tokenSecretRef"):
        raise invalid(item, "spec", "Invalid value: tokenSecretRef is required when mode is Pull")
    if "ttlDuration" in spec and not DURATION.fullmatch(spec["ttlDuration"]):
        raise invalid(item, "spec.ttlDuration", f"Invalid value: {spec['ttlDuration']!r}")
    if spec.get("mode") != "Pull":
        raise invalid(item, "spec.mode", "this stub has no push mode")


def _tracker(item):
    _source(item, {("kubevirt.io", "VirtualMachine")})


def _source(item, allowed):
    source = item.get("spec", {}).get("source")
    if source is None:
        raise invalid(item, "spec.source", "Required value")
    if (source.get("apiGroup"), source.get("kind")) not in allowed:
        raise invalid(item, "spec.source", "Invalid value: apiGroup and kind must be those of a source")
    if not source.get("name"):
        raise invalid(item, "spec.source", "Invalid value: name is required")


def _secret(item):
    for name, value in item.get("data", {}).items():
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise Refused(400, "BadRequest", f"data.{name}: illegal base64 data") from None
    for name, value in item.pop("stringData", {}).items():
        item.setdefault("data", {})[name] = base64.b64encode(value.encode()).decode()
    item.setdefault("type", "Opaque")


def _claim(item):
    spec = item.get("spec", {})
    modes = {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"}
    if not spec.get("accessModes") or not set(spec["accessModes"]) <= modes:
        raise invalid(item, "spec.accessModes", "Required value: at least 1 access mode is required")
    if not spec.get("resources", {}).get("requests", {}).get("storage"):
        raise invalid(item, "spec.resources[storage]", "Required value")
    if spec.setdefault("volumeMode", "Filesystem") not in ("Filesystem", "Block"):
        raise invalid(item, "spec.volumeMode", "Unsupported value")


CHECKS = {"Secret": _secret, "PersistentVolumeClaim": _claim, "VirtualMachineBackupTracker": _tracker,
          "VirtualMachineBackup": _backup}  # fmt: skip


def seconds(duration):
    """Return the seconds of a duration as Go writes it."""
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(STEP, duration))
