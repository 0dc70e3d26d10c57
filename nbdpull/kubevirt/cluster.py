"""The API of a cluster: objects are read, listed, created and deleted.

Owns: requests, how long they are retried, and what answers mean. Must not know: how to log in, what the objects are
for.

The official library finds the cluster and logs in, for which there are many ways (login). The few requests are our own,
as its classes for objects take half a second to import, and change from version to version.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Optional
from urllib.parse import quote, urlencode

from ..core import errors
from ..core.errors import Check
from .endpoint import is_unverified
from .login import Login

TIMEOUT = 30.0  # seconds for one request
PAUSE = 0.5  # seconds before a retry
_REVIEWS = "authorization.k8s.io/v1"
_PASSING = (429, 500, 502, 503, 504)

Object = dict[str, Any]


class Refused(errors.HypervisorError):
    """The cluster refuses an object; the message says why."""


class Exists(errors.HypervisorError):
    """An object of that name exists."""


class Cluster:
    """A cluster that we are logged in to.

    inside: whether we run in a pod of it, using the pod's account. check() is called often. A request that fails in a
    way that may pass is retried for stall_timeout seconds.
    """

    def __init__(
        self, kubeconfig: Optional[str], context: Optional[str], stall_timeout: float, check: Check = lambda: None
    ) -> None:
        self._stall_timeout, self._check = stall_timeout, check
        self._login = Login(kubeconfig, context)
        self._pool = _pool(self._login)

    @property
    def inside(self) -> bool:
        return self._login.inside

    @property
    def host(self) -> str:
        return self._login.host

    @property
    def warnings(self) -> list[str]:
        """What the user should know of the way to the cluster."""
        return self._login.warnings

    def version(self) -> str:
        """Return the version of Kubernetes."""
        return str((self._object("GET", "version") or {}).get("gitVersion"))

    def may(self, verb: str, kind: str, namespace: str) -> bool:
        """Return whether we have that permission. kind: as for get."""
        group = kind.split("/")[1] if kind.startswith("apis/") else ""
        wanted = {"namespace": namespace, "verb": verb, "group": group, "resource": kind.rpartition("/")[2]}
        review = {"apiVersion": _REVIEWS, "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": wanted}}
        found = self._object("POST", f"apis/{_REVIEWS}/selfsubjectaccessreviews", review) or {}
        return bool((found.get("status") or {}).get("allowed"))

    def heed(self, check: Check = lambda: None) -> None:
        """From now on, call this check instead: clean-up must not be stopped by what stopped the run."""
        self._check = check

    def get(self, kind: str, namespace: str, name: str) -> Optional[Object]:
        """Return the object, None if it does not exist. kind: a path with {} for the namespace."""
        return self._object("GET", f"{kind.format(namespace)}/{quote(name)}", missing=True)

    def items(self, kind: str, namespace: str, labels: Mapping[str, str] = {}) -> list[Object]:  # noqa: B006
        query = {"labelSelector": ",".join(f"{name}={value}" for name, value in labels.items())} if labels else {}
        path = kind.format(namespace) + (f"?{urlencode(query)}" if query else "")
        found = self._object("GET", path) or {}
        return [each for each in found.get("items") or [] if isinstance(each, dict)]

    def create(self, kind: str, namespace: str, body: Object) -> Object:
        """Create an object. Refused, Exists. If an answer was lost, the object may exist: then it has our labels."""
        try:
            return self._object("POST", kind.format(namespace), body) or {}
        except Exists:
            found = self.get(kind, namespace, body["metadata"]["name"])
            labels = (found or {}).get("metadata", {}).get("labels") or {}
            if found and body["metadata"]["labels"].items() <= labels.items():  # a webhook may have added some
                return found
            raise

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object; it need not exist."""
        self._object("DELETE", f"{kind.format(namespace)}/{quote(name)}", missing=True)

    def _object(self, method: str, path: str, body: Optional[Object] = None, missing: bool = False) -> Optional[Object]:
        began = time.monotonic()
        while True:
            status, found, why = self._answer(method, path, body)
            # A conflict over something else, such as a quota, passes.
            if status is None or status in _PASSING or (status == 409 and found.get("reason") == "Conflict"):
                if time.monotonic() - began > self._stall_timeout:
                    raise errors.HypervisorError(f"the cluster does not answer: {why}")
                self.pause(PAUSE)
                continue
            if status == 404 and missing:
                return None
            if status < 300:
                return found
            raise _refused(status, path, why)

    def _answer(self, method: str, path: str, body: Optional[Object]) -> tuple[Optional[int], Object, str]:
        """Return (status, None if there was no answer; its JSON object; the reason for a failure)."""
        import urllib3

        headers = {"Accept": "application/json", "Content-Type": "application/json", **self._login.header()}
        url = f"{self._login.host}/{path}"
        data = json.dumps(body).encode() if body is not None else None
        try:
            answer = self._pool.request(method, url, body=data, headers=headers, retries=False, redirect=False,
                                        timeout=urllib3.Timeout(connect=10, read=TIMEOUT))  # fmt: skip
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if is_unverified(error):
                raise errors.HypervisorError(
                    f"{self.host} cannot be verified: {error.__cause__ or error}; the kubeconfig must have its CA"
                ) from None
            return None, {}, " ".join(str(error.__cause__ or error).rpartition(">: ")[2].split())[:200]
        found: Object = {}
        with suppress(ValueError):
            parsed = json.loads(answer.data or b"{}")
            found = parsed if isinstance(parsed, dict) else {}
        if answer.status < 300 and not found:  # such as a proxy's page
            return None, {}, "the answer is not a JSON object"
        return answer.status, found, str(found.get("message") or f"status {answer.status}")[:500]

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left, 0.1))


def _refused(status: int, path: str, why: str) -> errors.NbdpullError:
    kind = path.partition("?")[0].split("/")[-1]
    if status < 400:
        return errors.HypervisorError(f"the cluster redirects (status {status}), which is not followed: wrong server?")
    if status == 401:
        return errors.AccessDenied("the cluster refuses the credentials (status 401): they have expired, or are wrong")
    if status == 403:
        return errors.AccessDenied(f"the cluster does not allow it: {why}")
    if status == 404:
        return errors.Unsupported(
            f"the cluster has no {kind}: {why} (KubeVirt 1.8 or newer has backups, with its feature gate "
            "IncrementalBackup)"
        )
    if status == 409:
        return Exists(f"the object already exists in the cluster: {why}")
    return Refused(f"the cluster refuses the object: {why}")


def _pool(login: Login) -> Any:
    import urllib3

    if login.warnings:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    proxy = login.proxy()
    if proxy is None:
        return urllib3.PoolManager(**login.verification())
    headers = urllib3.make_headers(proxy_basic_auth=proxy[1] or None)
    return urllib3.ProxyManager(proxy[0], proxy_headers=headers, **login.verification())
