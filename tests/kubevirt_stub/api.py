"""The Kubernetes API as HTTP: get, list, watch, create, delete, and changes of metadata, with a bearer token.

Owns: paths and verbs, `Status` errors, admission (one backup a source at a time), what is noted as a complaint.
schema.py owns what an object may contain. Only what a backup client needs is here; everything else is refused and
noted.
"""

import json
import re
import time
from dataclasses import dataclass
from hmac import compare_digest
from urllib.parse import parse_qsl, urlsplit

from . import schema
from .schema import Refused
from .tls import Handler

PATH = re.compile(r"/(?:api/(v1)|apis/([a-z.]+)/(v1|v1alpha1))/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(/status)?")
KINDS = {  # {(group, version, resource): (kind, whether a client may change it)}
    ("", "v1", "secrets"): ("Secret", True),
    ("", "v1", "persistentvolumeclaims"): ("PersistentVolumeClaim", True),
    ("kubevirt.io", "v1", "virtualmachines"): ("VirtualMachine", False),
    ("kubevirt.io", "v1", "virtualmachineinstances"): ("VirtualMachineInstance", False),
    ("backup.kubevirt.io", "v1alpha1", "virtualmachinebackups"): ("VirtualMachineBackup", True),
    ("backup.kubevirt.io", "v1alpha1", "virtualmachinebackuptrackers"): ("VirtualMachineBackupTracker", True),
}
PARAMETERS = {
    "GET": {"pretty", "resourceVersion", "resourceVersionMatch", "labelSelector", "fieldSelector", "limit", "continue",
            "watch", "timeoutSeconds", "allowWatchBookmarks", "sendInitialEvents"},
    "POST": {"pretty", "fieldManager", "fieldValidation", "dryRun"},
    "PUT": {"pretty", "fieldManager", "fieldValidation", "dryRun"},
    "PATCH": {"pretty", "fieldManager", "fieldValidation", "dryRun", "force"},
    "DELETE": {"pretty", "propagationPolicy", "gracePeriodSeconds", "dryRun", "orphanDependents"},
}  # fmt: skip
DELETE_OPTIONS = {"apiVersion", "kind", "propagationPolicy", "gracePeriodSeconds", "preconditions", "dryRun"}
REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed", 409: "Conflict",
           410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}  # fmt: skip
ALONE = {  # paths that are none of objects in a namespace
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": "_review",
    "/apis/kubevirt.io/v1/kubevirts": "_installed",
}
ATTRIBUTES = {"namespace": str, "verb": str, "group": str, "version": str, "resource": str, "subresource": str,
              "name": str}  # fmt: skip
REVIEW = {"apiVersion": str, "kind": str, "metadata": dict, "spec": {"resourceAttributes": ATTRIBUTES}}
GATE = "IncrementalBackup"
MERGE = "application/merge-patch+json"
LONGEST_WATCH = 30


@dataclass
class Target:
    """The object or list that a request addresses."""

    group: str
    version: str
    resource: str
    kind: str
    writable: bool
    namespace: str
    name: str

    @property
    def api_version(self):
        return f"{self.group}/{self.version}".lstrip("/")

    @property
    def called(self):
        group = f".{self.group}" if self.group else ""
        return f'{self.resource}{group} "{self.name}"'


def status_of(code, reason, message, success=False):
    outcome = "Success" if success else "Failure"
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": outcome, "message": message,
            "reason": reason, "code": code}  # fmt: skip


class ApiHandler(Handler):
    def _any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self._authenticate()
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            if parts.path == "/version":
                return self._send(200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"})
            if parts.path in ALONE:
                return self._send(*getattr(self, ALONE[parts.path])(body))
            self._handle(self._target(parts.path), query, body)
        except Refused as error:
            if error.status in (400, 405, 415, 422) and not isinstance(error, Denied):
                self.cluster.complain(f"{self.command} {self.path}: {error.status} {error}")
            self._send(error.status, status_of(error.status, error.reason, str(error)))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _any

    @property
    def cluster(self):
        return self.server.cluster

    @property
    def objects(self):
        return self.server.cluster.objects

    def _send(self, code, item):
        self.answer(code, json.dumps(item).encode(), "application/json")

    def _authenticate(self):
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not compare_digest(given.encode(), self.cluster.bearer.encode()):
            raise Refused(401, "Unauthorized", "Unauthorized")

    def _target(self, path):
        match = PATH.fullmatch(path)
        core, group, version, namespace, resource, name, subresource = match.groups() if match else [None] * 7
        key = (group or "", core or version, resource)
        if not match or key not in KINDS:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if group in self.cluster.without:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        if subresource:
            raise Refused(403, "Forbidden", f"{resource}/status is the controller's")
        return Target(*key, *KINDS[key], namespace, name)

    def _handle(self, target, query, body):
        verb = self._verb(target, query)
        for name in set(query) - PARAMETERS[self.command]:
            raise Refused(400, "BadRequest", f"unknown parameter {name!r}")
        word, _ = self.cluster.faults.take(f"{verb} {target.resource}")
        if isinstance(word, int) and verb != "watch":
            raise Refused(word, REASONS[word], f"the stub was asked for {word}")
        if word == "reset":
            return self.reset()
        if (verb, target.resource) in self.cluster.forbidden:
            user = 'User "system:serviceaccount:backup:nbdpull"'
            raise Refused(403, "Forbidden", f'{target.called.partition(" ")[0]} is forbidden: {user} cannot {verb} '
                          f'resource "{target.resource}" in API group "{target.group}" in the namespace '
                          f'"{target.namespace}"')  # fmt: skip
        if verb == "watch":
            return self._watch(target, query, word)
        code, item = getattr(self, f"_{verb}")(target, query, body)
        self.cluster.log.append(f"{verb} {target.resource}")
        return self.reset() if word == "lost" else self._send(code, item)

    def _verb(self, target, query):
        watches = query.get("watch", "") in ("1", "true", "True")
        verbs = {"GET": "get" if target.name else "watch" if watches else "list", "POST": "create", "PUT": "replace",
                 "DELETE": "delete", "PATCH": "patch"}  # fmt: skip
        verb = verbs.get(self.command)
        if verb is None or (verb == "create") == bool(target.name) and verb not in ("get", "watch", "list"):
            raise Refused(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        if not target.writable and verb not in ("get", "list", "watch"):
            raise Refused(403, "Forbidden", f"{target.resource} is forbidden: cannot {verb}")
        return verb

    def _review(self, body):
        """Answer what the account may do."""
        item = self._parsed(body, {"application/json"})
        schema.check_fields(item, REVIEW, "")
        wanted = item["spec"]["resourceAttributes"]
        known = {(group, resource) for group, _, resource in KINDS}
        if self.command != "POST" or (wanted["group"], wanted["resource"]) not in known:
            raise Refused(400, "BadRequest", f"a review of {wanted}")
        allowed = (wanted["verb"], wanted["resource"]) not in self.cluster.forbidden
        return 201, {**item, "status": {"allowed": allowed}}

    def _installed(self, body):
        """Return the KubeVirt object itself, in whatever namespace."""
        if ("list", "kubevirts") in self.cluster.forbidden:
            raise Refused(403, "Forbidden", "kubevirts.kubevirt.io is forbidden: cannot list at the cluster scope")
        spec = {"configuration": {"developerConfiguration": {"featureGates": self.cluster.gates}}}
        status = {"phase": "Deployed", "observedKubeVirtVersion": self.cluster.generation.release}
        item = {"metadata": {"name": "kubevirt", "namespace": "kubevirt"}, "spec": spec, "status": status}
        return 200, {"apiVersion": "kubevirt.io/v1", "kind": "KubeVirtList", "items": [item]}

    # -- reading

    def _found(self, target):
        item = self.objects.get(target.resource, target.namespace, target.name)
        if item is None:
            raise Refused(404, "NotFound", f"{target.called} not found")
        return item

    def _get(self, target, query, body):
        return 200, self._found(target)

    def _list(self, target, query, body):
        with self.objects.changed:
            items = [item for item in self.objects.all(target.resource, target.namespace) if selected(item, query)]
            version = str(self.objects.version)
        return 200, {"apiVersion": target.api_version, "kind": f"{target.kind}List",
                     "metadata": {"resourceVersion": version}, "items": items}  # fmt: skip

    def _watch(self, target, query, word):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if word == "cut":
            return self.reset()
        if word == 410:
            self._event("ERROR", status_of(410, "Expired", "too old resource version"))
            return self.wfile.write(b"0\r\n\r\n")
        since = int(query.get("resourceVersion") or 0)
        until = time.monotonic() + min(float(query.get("timeoutSeconds") or LONGEST_WATCH), LONGEST_WATCH)
        if not since:
            with self.objects.changed:
                for item in self.objects.all(target.resource, target.namespace):
                    if selected(item, query):
                        self._event("ADDED", item)
                since = self.objects.version
        while time.monotonic() < until and not self.cluster.stopped:
            events, since = self.objects.wait(since, 0.1)
            for event in events:
                of_it = (event.resource, event.namespace) == (target.resource, target.namespace)
                if of_it and selected(event.item, query):
                    self._event(event.kind, event.item)
        return self.wfile.write(b"0\r\n\r\n")

    def _event(self, kind, item):
        line = json.dumps({"type": kind, "object": item}).encode() + b"\n"
        self.wfile.write(b"%x\r\n" % len(line) + line + b"\r\n")

    # -- writing

    def _parsed(self, body, wanted):
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        if kind not in wanted:
            raise Refused(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {kind!r}")
        try:
            return json.loads(body)
        except ValueError as error:
            raise Refused(400, "BadRequest", f"the object provided is no JSON: {error}") from None

    def _create(self, target, query, body):
        item = self._parsed(body, {"application/json"})
        schema.check(item, target.api_version, target.kind)
        metadata = item["metadata"]
        if metadata.setdefault("namespace", target.namespace) != target.namespace:
            raise Refused(400, "BadRequest", "the namespace of the provided object does not match the request")
        if target.namespace not in self.cluster.namespaces:
            raise Refused(404, "NotFound", f'namespaces "{target.namespace}" not found')
        with self.objects.changed:
            if target.kind == "VirtualMachineBackup":
                self._admit(item, target)
            if self.objects.get(target.resource, target.namespace, metadata.get("name")):
                called = target.called.partition(" ")[0]
                raise Refused(409, "AlreadyExists", f'{called} "{metadata["name"]}" already exists')
            return 201, self.objects.create(target.resource, target.namespace, item)

    def _admit(self, item, target):
        """Act as KubeVirt's webhook, which is called before the API server finds that a name is taken."""
        if GATE not in self.cluster.gates:
            self._deny(f"{GATE} feature gate not enabled")
        for other in self.objects.all(target.resource, target.namespace):
            name = other["metadata"]["name"]
            if name == item["metadata"].get("name"):
                self._deny(f'VirtualMachineBackup "{name}" already exists')
            terminal = self.cluster.generation.is_terminal(other.get("status", {}))
            if other["spec"]["source"] == item["spec"]["source"] and not terminal:
                self._deny(f'VirtualMachineBackup "{name}" in progress for source')

    def _deny(self, message):
        webhook = "virtualmachinebackup-validator.kubevirt.io"
        raise Denied(422, "Invalid", f'admission webhook "{webhook}" denied the request: {message}')

    def _delete(self, target, query, body):
        options = self._parsed(body, {"application/json"}) if body else {}
        schema.check_fields(options, dict.fromkeys(DELETE_OPTIONS, object), "")
        with self.objects.changed:
            uid = self._found(target)["metadata"]["uid"]
            wanted = (options.get("preconditions") or {}).get("uid", uid)
            if wanted != uid:
                raise Refused(409, "Conflict", f"the UID in the precondition ({wanted}) does not match ({uid})")
            left = self.objects.delete(target.resource, target.namespace, target.name)
        return 200, left or status_of(200, "", "", success=True)

    def _patch(self, target, query, body):
        changes = self._parsed(body, {MERGE})
        with self.objects.changed:
            return self._changed(target, merged(self._found(target), changes))

    def _replace(self, target, query, body):
        item = self._parsed(body, {"application/json"})
        with self.objects.changed:
            old = self._found(target)
            if item.get("metadata", {}).get("resourceVersion", "") not in ("", old["metadata"]["resourceVersion"]):
                raise Refused(409, "Conflict", "the object has been modified; please apply your changes to the latest")
            return self._changed(target, {**item, "status": old["status"]} if "status" in old else item)

    def _changed(self, target, item):
        old = self._found(target)
        if target.group and item.get("spec") != old.get("spec"):
            raise Refused(422, "Invalid", f'{target.kind} "{target.name}" is invalid: spec is immutable after creation')
        if item.get("status") != old.get("status"):
            raise Refused(400, "BadRequest", "the status is a subresource, and the controller's")
        return 200, self.objects.update(target.resource, item)


class Denied(Refused):
    """A refusal because of the state of the cluster, not of the request: no reason for a complaint."""


def merged(value, changes):
    """Return the merge of two objects by RFC 7396."""
    if not isinstance(changes, dict):
        return changes
    value = dict(value) if isinstance(value, dict) else {}
    for name, change in changes.items():
        if change is None:
            value.pop(name, None)
        else:
            value[name] = merged(value.get(name), change)
    return value


def selected(item, query):
    metadata = item["metadata"]
    for selector in filter(None, query.get("fieldSelector", "").split(",")):
        name, _, value = selector.replace("==", "=").partition("=")
        if name not in ("metadata.name", "metadata.namespace"):
            raise Refused(400, "BadRequest", f"field label not supported: {name}")
        if metadata[name.partition(".")[2]] != value:
            return False
    for selector in filter(None, query.get("labelSelector", "").split(",")):
        name, _, value = selector.replace("==", "=").partition("=")
        if metadata.get("labels", {}).get(name) != value:
            return False
    return True
