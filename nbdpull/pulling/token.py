"""A token: the state that a later backup starts from, kept by the program that keeps the data.

Owns: the content of a token, and its text. Must not know: libvirt, how a base is chosen by a token.
"""

from __future__ import annotations

import base64
import json
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Optional

from ..core import errors, members
from ..format import layout

_PREFIX = "nbdpull-token-1:"
MAX_TEXT = 1 << 20  # characters
_MAX_DOCUMENT = 1 << 24  # bytes


@dataclass(frozen=True)
class Made:
    """A checkpoint as it was made. run: id of the backup; created: seconds since the epoch; disks: targets of the disks
    that it includes."""

    name: str
    run: str
    created: int
    disks: list[str]


@dataclass(frozen=True)
class Before:
    """A disk as it was backed up. size: bytes; source: the name of its image."""

    size: int
    source: str


@dataclass(frozen=True)
class Token:
    """The information that a committed backup leaves for the next one. It is opaque: store the text of `dumps()`, and
    pass what `loads` returns for it to the next backup. It contains no secret, and is useless without the domain.

    domain: uuid; run: id of the backup; checkpoint: None if none could be made, then the next backup is full; older:
    checkpoints of ours that could not be deleted yet.
    """

    domain: str
    run: str
    checkpoint: Optional[Made]
    disks: dict[str, Before]
    older: list[Made] = field(default_factory=list)

    def dumps(self) -> str:
        """Return the token as one line of ASCII text."""
        data = zlib.compress(json.dumps(asdict(self)).encode())
        return _PREFIX + base64.urlsafe_b64encode(data).decode()

    @property
    def made(self) -> list[Made]:
        """All checkpoints in the token."""
        return [*([self.checkpoint] if self.checkpoint else []), *self.older]

    @classmethod
    def loads(cls, text: str) -> Token:
        """Return the token in a text; UsageError if there is none, or one of a later form."""
        if not isinstance(text, str):
            raise errors.UsageError("not a token of nbdpull: give back the text that dumps() returned")
        text = text.strip()
        if text.startswith(_PREFIX) and len(text) <= MAX_TEXT:
            with suppress(ValueError, zlib.error):
                inflate = zlib.decompressobj()
                data = inflate.decompress(base64.urlsafe_b64decode(text[len(_PREFIX) :]), _MAX_DOCUMENT)
                found = members.build(cls, layout.parse_object(data))
                if inflate.eof and layout.POINT_ID.match(found.run):
                    return found
        if text.startswith("nbdpull-token-") and not text.startswith(_PREFIX):
            raise errors.UsageError("the token is from a newer nbdpull: use that version, or begin with a full backup")
        raise errors.UsageError("not a token of nbdpull: its text has to be complete and unchanged")
