"""How we reach a cluster, and our identity there: a kubeconfig, or the account of the pod that we run in.

Owns: the official library's classes for that, and turning each of their failures into one clear line. Must not know:
what the cluster is asked for.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

from ..core import errors

_MISSING = "the library kubernetes is not installed: pip install 'nbdpull[kubevirt]'"


class Login:
    """The access to a cluster.

    inside: whether we run in a pod of the cluster, using the pod's account. UsageError if there is no way to reach it,
    AccessDenied if a program that the kubeconfig names provides no credentials.
    """

    def __init__(self, kubeconfig: Optional[str], context: Optional[str]) -> None:
        config, self._settings = _library()
        named = kubeconfig or os.environ.get("KUBECONFIG")
        self.inside = not (named or context or os.path.exists(os.path.expanduser("~/.kube/config")))
        try:
            with _heard():
                if self.inside:
                    config.load_incluster_config(client_configuration=self._settings)
                else:
                    config.load_kube_config(named, context, self._settings, persist_config=False)
        except (config.ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise errors.UsageError(
                f"cannot reach the cluster: {_line(error)}; give a kubeconfig with --kubeconfig"
            ) from None
        self._failures = (config.ConfigException, OSError, ValueError)

    @property
    def host(self) -> str:
        """https://HOST:PORT"""
        return str(self._settings.host).rstrip("/")

    def header(self) -> dict[str, str]:
        """Return the headers that identify us now: tokens are renewed. Secret, never show them."""
        try:
            with _heard():
                settings = list(self._settings.auth_settings().values())
        except self._failures as error:
            raise errors.AccessDenied(f"no credentials for the cluster: {_line(error)}") from None
        shown = [each for each in settings if each and each.get("in") == "header" and each.get("value")]
        return {each["key"]: each["value"].strip() for each in shown}  # a token's file may end with a newline

    def verification(self) -> dict[str, Any]:
        """Return the arguments of a connection pool that verify the cluster, and us."""
        settings = self._settings
        files = {"ca_certs": settings.ssl_ca_cert, "cert_file": settings.cert_file, "key_file": settings.key_file}
        name = getattr(settings, "tls_server_name", None)
        named = {"server_hostname": name, "assert_hostname": name} if name else {}
        found = {"cert_reqs": "CERT_REQUIRED" if settings.verify_ssl else "CERT_NONE", **files, **named}
        return {key: value for key, value in found.items() if value}


def _library() -> tuple[Any, Any]:
    """Return (the library's configuration module, settings of a new configuration); importing it takes a moment."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions that one of its dependencies prefers
            from kubernetes import client, config
    except ImportError:
        raise errors.MissingSoftware(_MISSING) from None
    return config, client.Configuration()


@contextmanager
def _heard() -> Iterator[None]:
    """Raise AccessDenied if the library only logs that a program provided no credentials, and would continue
    without."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear, root = Ear(logging.ERROR), logging.getLogger()
    root.addHandler(ear)
    try:
        yield
    finally:
        root.removeHandler(ear)
    if heard:
        raise errors.AccessDenied(f"no credentials for the cluster: {_line(heard[0])}")


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]
