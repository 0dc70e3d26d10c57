"""Where each disk of a restore goes, and in which format: from the options, from the name, or from the definition.

Owns: the names of new images, and the rule that a restored disk has the format that its domain expects. Must not know:
points, how a target is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from ..core import errors
from ..definitions.domain_xml import Disk
from ..format import layout
from ..images.image_header import LUKS, QCOW2, RAW
from ..targets import places

_BY_NAME = {".raw": RAW, ".qcow2": QCOW2}


@dataclass(frozen=True)
class Destinations:
    """Where the disks go.

    output: a folder, or any target that `to` may name; to: {disk: target}; kind: QCOW2, RAW, or None: see `_format`;
    options: of new qcow2 images; in_place: the images exist already; disks: those of the domain's definition, by
    target; secrets: {disk: path of a file with the secret that encrypts the restored disk}.
    """

    output: Optional[str]
    to: Mapping[str, str]
    kind: Optional[str] = None
    options: str = ""
    in_place: bool = False
    disks: Mapping[str, Disk] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Optional[str]:
        """The folder for the domain's other files, None if they are not restored."""
        return None if self.output is None or self.is_one_place else self.output

    @property
    def is_one_place(self) -> bool:
        """Whether `output` takes one disk only."""
        return self.output is not None and places.is_raw(self.output)

    def text(self, disk: str) -> str:
        """Return where a disk goes, as the user would write it. UsageError if no target is given."""
        if disk in self.to:
            return self.to[disk]
        if self.output is None:
            raise errors.UsageError(f"no target for disk {disk}: give -o, or --to {disk}=TARGET")
        if self.is_one_place:
            return self.output
        kind = self.kind or self._usual(disk) or QCOW2
        ending = LUKS if kind == RAW and disk in self.secrets else kind
        return os.path.join(self.output, f"{layout.encoded(disk)}.{ending}")

    def place(self, disk: str) -> places.Place:
        """Return the places.Place of a disk; UsageError if its domain would expect another format there."""
        text = self.text(disk)
        known, secret = self.disks.get(disk), self.secrets.get(disk)
        if secret:
            _require_usable(disk, known, secret)
        place = places.place(text, self._format(disk, text), self.options, self.in_place, secret)
        if known and is_at(known, place.path) and place.format != known.format and self.folder is None:
            raise errors.UsageError(
                f"disk {disk} of the domain is {known.format} at {place.path}, and would be read as that even if it "
                f"were {place.format}: restore to another path, or also to a directory with -o, which gets a fitting "
                "definition"
            )
        return place

    def _format(self, disk: str, text: str) -> Optional[str]:
        """Return the format of a file: the one that the user gave, else that of this file in the domain's definition,
        else that of the name's ending, else that of the domain's disk. None if none of them defines it."""
        if self.kind or places.is_raw(text):
            return self.kind
        own = self._usual(disk) if is_at(self.disks.get(disk), text) else None
        return own or _BY_NAME.get(os.path.splitext(text)[1]) or self._usual(disk)

    def _usual(self, disk: str) -> Optional[str]:
        known = self.disks.get(disk)
        if self.options and disk not in self.secrets:
            return QCOW2
        return known.format if known and known.format in (RAW, QCOW2) else None

    def warnings(self, disk: str, place: places.Place) -> list[str]:
        """Return warnings about the format and the encryption of the restored disk."""
        return [*self._of_format(disk, place), *self._of_encryption(disk, place)]

    def _of_encryption(self, disk: str, place: places.Place) -> Iterator[str]:
        known = self.disks.get(disk)
        if place.secret and known:  # a secret without a definition is refused
            yield f"disk {disk} is encrypted: the domain starts if libvirt has the secret {known.secret} for it"
            if Path(place.secret).read_bytes().endswith(b"\n"):
                yield f"{place.secret} ends in a newline, which is taken as part of the secret"
        elif known and known.encrypted:
            how = f"--encrypt-disk {disk}=FILE encrypts it"
            yield f"disk {disk} was encrypted on its host and is restored unencrypted; {how}"

    def _of_format(self, disk: str, place: places.Place) -> Iterable[str]:
        """Return a warning about a format that neither the user nor the domain's definition chose."""
        chosen = self.kind or (disk in self.to and os.path.splitext(place.path)[1] in _BY_NAME) or self._usual(disk)
        if chosen or place.kind != places.NEW:
            return []
        known = self.disks.get(disk)
        why = f"is {known.format} in the domain's definition" if known else "is not in the domain's definition"
        return [f"disk {disk} {why}: it is restored as {place.format} (see --format)"]


def _require_usable(disk: str, known: Optional[Disk], secret: str) -> None:
    if not (known and known.encrypted):
        raise errors.UsageError(
            f"--encrypt-disk {disk}: the domain's definition has no encryption for it, and no secret"
        )
    try:
        if not os.path.getsize(secret) or not os.path.isfile(secret):
            raise errors.UsageError(f"--encrypt-disk {disk}: {secret} holds no secret")
    except OSError as error:
        raise errors.UsageError(f"--encrypt-disk {disk}: cannot read {secret}: {error.strerror}") from error


def is_as(known: Optional[Disk], place: places.Place) -> bool:
    """Return whether the Disk of a definition is at this Place, with the same format and encryption."""
    if known is None or not is_at(known, place.path):
        return False
    return (known.format, known.encrypted) == (place.format, bool(place.secret))


def is_at(known: Optional[Disk], path: str) -> bool:
    """Return whether the Disk of a definition is at this path. None: the definition has no such disk."""
    return known is not None and bool(known.source) and os.path.realpath(known.source) == os.path.realpath(path)
