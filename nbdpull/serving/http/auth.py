"""The token that a client shows: its file, and the comparison.

Owns: what a token may be, and that it is in no message. Must not know: what it opens.
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

_TOKEN = re.compile(rb"[\x21-\x7e]+")  # what a header can carry as it is


class Token:
    """A secret. It never shows itself."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def is_shown(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Whether a request has it, in one of the three places; headers: by names in lower case."""
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        shown = [headers.get(NAME, ""), query.get(NAME, ""), bearer.strip() if kind.lower() == "bearer" else ""]
        # A list: each is compared, so that the time tells nothing.
        return any([hmac.compare_digest(each.encode("utf-8", "replace"), self._secret) for each in shown])

    def ticket(self, name: str) -> str:
        """What opens that one volume where it stands in a path. It tells nothing of the token."""
        return hmac.new(self._secret, b"nbdpull ticket " + name.encode("utf-8", "replace"), "sha256").hexdigest()


def read(path: str) -> Token:
    """The token in a file: one line of visible ASCII. UsageError where there is none, or others may read it."""
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
