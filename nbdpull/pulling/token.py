"""A token: what a later backup starts from, in the keeping of whoever has the data.

Owns: what a token says, and its text. Must not know: libvirt, how a base is chosen by one.
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
    """A checkpoint as it was made. run: id of the backup; created: seconds since the epoch; disks: that it covers."""

    name: str
    run: str
    created: int
    disks: list[str]


@dataclass(frozen=True)
class Before:
    """A disk as it was backed up. size: bytes; source: what names its image."""

    size: int
    source: str


@dataclass(frozen=True)
class Token:
    """What a backup that was committed leaves for the next one. Opaque: keep `dumps()`, and give back what `loads`
    makes of it. It has no secret, and is worth nothing without the domain.

    domain: uuid; run: id of the backup; checkpoint: None where there could be none, so that the next one is full;
    older: checkpoints of ours that could not be dropped yet.
    """

    domain: str
    run: str
    checkpoint: Optional[Made]
    disks: dict[str, Before]
    older: list[Made] = field(default_factory=list)

    def dumps(self) -> str:
        """The token as one line of ASCII text."""
        data = zlib.compress(json.dumps(asdict(self)).encode())
        return _PREFIX + base64.urlsafe_b64encode(data).decode()

    @property
    def made(self) -> list[Made]:
        """All checkpoints that it knows of."""
        return [*([self.checkpoint] if self.checkpoint else []), *self.older]

    @classmethod
    def loads(cls, text: str) -> Token:
        """The token of a text; UsageError where it is none, or one of a later form."""
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
            raise errors.UsageError("the token is of a later nbdpull: use that, or begin with a full backup")
        raise errors.UsageError("not a token of nbdpull: give back the text that dumps() returned, unchanged")
