"""How we reach a cluster, and our identity there: a kubeconfig, or the account of the pod that we run in.

Owns: the official library's classes for that, and turning each of their failures into one clear line. Must not know:
what the cluster is asked for.
"""

from __future__ import annotations

import logging
import os
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from ..core import errors

_MISSING = "the library kubernetes is not installed: pip install 'nbdpull[kubevirt]'"


class Login:
    """The access to a cluster.

    inside: whether we run in a pod of the cluster, using the pod's account. UsageError if there is no way to reach it,
    AccessDenied if a program that the kubeconfig names provides no credentials.
    """

    def __init__(self, kubeconfig: Optional[str], context: Optional[str]) -> None:
        config, bad_yaml, self._settings = _library()
        named = kubeconfig or os.environ.get("KUBECONFIG")
        self.inside = not (named or context or os.path.exists(os.path.expanduser("~/.kube/config")))
        try:
            with _heard():
                if self.inside:
                    config.load_incluster_config(client_configuration=self._settings)
                else:
                    config.load_kube_config(named, context, self._settings, persist_config=False)
        except (config.ConfigException, bad_yaml, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.UsageError(
                f"cannot reach the cluster: {_line(error)}; give a kubeconfig with --kubeconfig"
            ) from None
        if not urlsplit(self.host).hostname:
            raise errors.UsageError("cannot reach the cluster: the kubeconfig does not name its server")
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

    @property
    def warnings(self) -> list[str]:
        if self._settings.verify_ssl:
            return []
        return ["the cluster is not verified (insecure-skip-tls-verify): anyone on the way can pose as it"]

    def verification(self) -> dict[str, Any]:
        """Return the arguments of a connection pool that verify the cluster, and us. UsageError."""
        settings = self._settings
        try:
            context = ssl.create_default_context(cafile=settings.ssl_ca_cert)
            if settings.cert_file:
                context.load_cert_chain(settings.cert_file, settings.key_file, password=_encrypted)
        except OSError as error:  # ssl.SSLError is one
            raise errors.UsageError(
                f"cannot reach the cluster: a certificate or key of the kubeconfig cannot be used: {_line(error)}"
            ) from None
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # CAs of clusters may lack what Python 3.13 requires
        if not settings.verify_ssl:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        name = getattr(settings, "tls_server_name", None)
        named = {"server_hostname": name, "assert_hostname": name} if name else {}
        return {"ssl_context": context, "cert_reqs": context.verify_mode, **named}

    def proxy(self) -> Optional[tuple[str, str]]:
        """Return (URL, USER:PASSWORD or "") of the proxy on the way to the cluster: the kubeconfig's, or that of the
        environment. UsageError."""
        url, skipped = self._settings.proxy, getattr(self._settings, "no_proxy", None)
        if not url or (skipped and proxy_bypass_environment(urlsplit(self.host).netloc, {"no": skipped})):
            return None
        user, _, where = urlsplit(url).netloc.rpartition("@")
        if urlsplit(url).scheme not in ("http", "https"):
            raise errors.UsageError(f"cannot reach the cluster: the proxy {where} is not an http or https one")
        return f"{urlsplit(url).scheme}://{where}", unquote(user)


def _encrypted() -> str:  # OpenSSL would ask at the terminal
    raise errors.UsageError("cannot reach the cluster: the client key of the kubeconfig is encrypted")


def _library() -> tuple[Any, type[Exception], Any]:
    """Return (the library's configuration module, its error for bad YAML, settings of a new configuration); importing
    it takes a moment."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about versions that one of its dependencies prefers
            from kubernetes import client, config
            from yaml import YAMLError
    except ImportError:
        raise errors.MissingSoftware(_MISSING) from None
    return config, YAMLError, client.Configuration()


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
