"""The token that a client presents: its file, and the comparison.

Owns: which tokens are valid, and that no message contains the token. Must not know: what it gives access to.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from collections.abc import Mapping

from ...core import errors

NAME = "x-kubevirt-export-token"  # of a header, and of a query parameter
MIN_LENGTH, MAX_LENGTH = 8, 1024  # characters

_TOKEN = re.compile(rb"[\x21-\x7e]+")  # what a header can carry unchanged


class Token:
    """A secret. It is never shown."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def is_shown(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Return whether a request presents it, in one of the three places. headers: by names in lower case."""
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        shown = [headers.get(NAME, ""), query.get(NAME, ""), bearer.strip() if kind.lower() == "bearer" else ""]
        # A list: each is compared, so that the time reveals nothing.
        return any([hmac.compare_digest(each.encode("utf-8", "replace"), self._secret) for each in shown])

    def ticket(self, name: str) -> str:
        """Return what gives access to that volume when it is part of a path. It reveals nothing of the token."""
        return hmac.new(self._secret, b"nbdpull ticket " + name.encode("utf-8", "replace"), "sha256").hexdigest()


def read(path: str) -> Token:
    """Return the token in a file: one line of visible ASCII. UsageError if there is none, or others may read it."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MAX_LENGTH + 3).rstrip(b"\r\n")
    except OSError as error:
        raise errors.UsageError(f"--token-file {path}: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IWOTH):
        raise errors.UsageError(f"--token-file {path}: every user of this host may read or write it: chmod 600 {path}")
    if not MIN_LENGTH <= len(text) <= MAX_LENGTH or not _TOKEN.fullmatch(text):
        raise errors.UsageError(
            f"--token-file {path}: put one line of {MIN_LENGTH} to {MAX_LENGTH} visible ASCII characters, without "
            "spaces, into it: openssl rand -hex 32"
        )
    return Token(text)
