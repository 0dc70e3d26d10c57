"""A backup whose endpoint somebody else created, as given on the command line: volumes, token, certificates.

Owns: the syntax of volumes and URLs, and which are refused; the files of the token and of the certificates. Must not
know: how an endpoint is read, the cluster.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Optional
from urllib.parse import urlsplit

from ..core import errors
from ..core.choices import KUBEVIRT
from .endpoint import TOKEN_HEADER, Access, Urls

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z", re.ASCII)
_PLACE = "{volume}"
_OF_KUBEVIRT = re.compile(r"/exports/([^/]+)/(?:map|data)\Z")
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}\Z", re.ASCII)
MAX_FILE = 1 << 20  # bytes of a token or of certificates


class Machine(NamedTuple):
    """A VirtualMachine object."""

    namespace: str
    name: str

    @property
    def domain(self) -> str:
        """The name of its series."""
        return f"{self.namespace}/{self.name}"


def machine(domain: str) -> Machine:
    """Parse kubevirt:NAMESPACE/VM; UsageError."""
    namespace, slash, name = domain[len(KUBEVIRT) :].partition("/")
    if not (domain.startswith(KUBEVIRT) and slash and _NAME.match(namespace) and _NAME.match(name)):
        raise errors.UsageError(f"{domain!r} is not a virtual machine of KubeVirt: write kubevirt:NAMESPACE/VM")
    return Machine(namespace, name)


def access(maps: Sequence[str], datas: Sequence[str], names: Sequence[str], ca: Optional[str]) -> Access:
    """Return the Access for these URLs (see `_named`). names: the volumes that {volume} in a URL stands for.

    UsageError.
    """
    found = {option: dict(_each(option, texts, names)) for option, texts in (("map", maps), ("data", datas))}
    for volume in found["map"]:
        if volume not in found["data"]:
            if datas:
                raise errors.UsageError(f"--http-data has no URL for volume {volume}")
            found["data"][volume] = _data_beside(found["map"][volume])
    strange = sorted(set(found["data"]) - set(found["map"]))
    if strange:
        raise errors.UsageError(f"--http-map has no URL for volume {strange[0]}")
    return Access({name: Urls(url, found["data"][name]) for name, url in found["map"].items()}, ca)


def _each(option: str, texts: Sequence[str], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for text in texts:
        for name, url in _named(option, text, names):
            if name in seen:
                raise errors.UsageError(f"--http-{option} has two URLs for volume {name}")
            seen.add(name)
            _require_url(option, url)
            yield name, url


def _named(option: str, text: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return [(volume, URL), …] for VOLUME=URL, for a URL of KubeVirt's form, or for one with {volume}, for each of the
    names."""
    if not text.startswith(("https://", "http://")):
        name, equals, url = text.partition("=")
        if not (name and equals):
            raise errors.UsageError(f"--http-{option} {text!r}: give a URL, or VOLUME=URL")
        return [(name, url)]
    if _PLACE in text:
        if not names:
            raise errors.UsageError(f"--http-{option} {text!r}: name the volumes that {_PLACE} stands for with --disk")
        return [(name, text.replace(_PLACE, name)) for name in names]
    _require_url(option, text)  # else its path cannot be told
    match = _OF_KUBEVIRT.search(urlsplit(text).path)
    if match is None:
        raise errors.UsageError(f"--http-{option} {text!r} does not name the volume: write VOLUME=URL")
    return [(match[1], text)]


def _require_url(option: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # as a resolver does
        known = parts.scheme in ("http", "https") and host and (parts.port or 1)
    except ValueError:  # UnicodeError is one
        known = None
    if not known or parts.fragment or not url.isprintable() or " " in url:
        raise errors.UsageError(f"--http-{option} {url!r} is not an http or https URL")
    if parts.username or parts.password or TOKEN_HEADER in parts.query.lower():
        raise errors.UsageError(
            f"--http-{option}: a URL with a secret in it shows in the process list: use --token-file"
        )


def _data_beside(url: str) -> str:
    path, mark, query = url.partition("?")
    if not path.endswith("/map"):
        raise errors.UsageError(f"--http-data is missing: {url!r} does not end in /map, so it is unknown")
    return f"{path[: -len('map')]}data{mark}{query}"


def unencrypted(found: Access) -> list[str]:
    """Return a warning for each host that is reached without encryption."""
    every = [urlsplit(url) for urls in found.volumes.values() for url in urls]
    hosts = {parts.hostname or "" for parts in every if parts.scheme != "https"}
    return [f"the token and the disks go to {host} unencrypted (http)" for host in sorted(hosts - _LOCAL)]


_LOCAL = {"localhost", "127.0.0.1", "::1"}


class Token(NamedTuple):
    """The token of an endpoint. text: secret, never show it."""

    text: str
    warnings: list[str]


def token(path: str) -> Token:
    """Read the token from a file; UsageError."""
    text = _file("--token-file", path).decode("ascii", "replace").strip()
    if not _TOKEN.match(text):
        raise errors.UsageError(f"--token-file {path} has no token: one line of printable ASCII")
    with _readable("--token-file", path):
        mode = os.stat(path).st_mode
    others = stat.S_IMODE(mode) & 0o077 if stat.S_ISREG(mode) else 0
    return Token(text, [f"others can read the token in {path}: chmod 600"] if others else [])


def certificates(path: Optional[str]) -> Optional[str]:
    """Read PEM certificates from a file; UsageError."""
    if path is None:
        return None
    text = _file("--ca", path).decode("utf-8", "replace")
    if not text.strip():  # which would stand for the system's
        raise errors.UsageError(f"--ca {path} has no certificates")
    return text


def _file(option: str, path: str) -> bytes:
    with _readable(option, path), open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise errors.UsageError(f"{option} {path} is larger than {MAX_FILE} bytes")
    return data


@contextmanager
def _readable(option: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.UsageError(f"{option} {path} cannot be read: {error.strerror}") from None


def wanted(
    volumes: Collection[str], names: Sequence[str], exclude: Collection[str], absent: Collection[str] = ()
) -> list[str]:
    """Return the volumes to pull; NoSuchDisk, NothingToBackUp. absent: other volumes, which may be excluded."""
    for name in [*names, *(each for each in exclude if each not in absent)]:
        if name not in volumes:
            raise errors.NoSuchDisk(f"the backup has no volume {name}; it has: {', '.join(volumes)}")
    found = [each for each in volumes if (not names or each in names) and each not in exclude]
    if not found:
        raise errors.NothingToBackUp("no volume is left to pull")
    return found
