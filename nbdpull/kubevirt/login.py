"""How a cluster is reached, and who we are there: a kubeconfig, or the account of the pod that we run in.

Owns: the official library's classes for it, and that what goes wrong there is one clear line. Must not know: what is
asked of the cluster.
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
    """inside: whether we are in the cluster, which its own account says. UsageError where there is no way to it,
    AccessDenied where a program that the kubeconfig names gives no credentials."""

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
                f"no way to the cluster: {_line(error)}; name a kubeconfig with --kubeconfig"
            ) from None
        self._failures = (config.ConfigException, OSError, ValueError)

    @property
    def host(self) -> str:
        """https://HOST:PORT"""
        return str(self._settings.host).rstrip("/")

    def header(self) -> dict[str, str]:
        """Who we are, as of now: tokens are renewed. Never to be shown."""
        try:
            with _heard():
                told = list(self._settings.auth_settings().values())
        except self._failures as error:
            raise errors.AccessDenied(f"no credentials for the cluster: {_line(error)}") from None
        shown = [each for each in told if each and each.get("in") == "header" and each.get("value")]
        return {each["key"]: each["value"].strip() for each in shown}  # a token's file may end with a newline

    def verification(self) -> dict[str, Any]:
        """Of the cluster, and of us: arguments of a pool of connections."""
        settings = self._settings
        files = {"ca_certs": settings.ssl_ca_cert, "cert_file": settings.cert_file, "key_file": settings.key_file}
        name = getattr(settings, "tls_server_name", None)
        named = {"server_hostname": name, "assert_hostname": name} if name else {}
        found = {"cert_reqs": "CERT_REQUIRED" if settings.verify_ssl else "CERT_NONE", **files, **named}
        return {key: value for key, value in found.items() if value}


def _library() -> tuple[Any, Any]:
    """(its configuration, a new one's settings); it takes a moment to import."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which versions of others a library of its own likes
            from kubernetes import client, config
    except ImportError:
        raise errors.MissingSoftware(_MISSING) from None
    return config, client.Configuration()


@contextmanager
def _heard() -> Iterator[None]:
    """AccessDenied where the library only logs that a program gave no credentials, and would go on without any."""
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
