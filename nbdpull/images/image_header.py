"""What the first bytes of an image or a device show: its format, and whether it is encrypted.

Owns: the magic numbers of the formats that a restore may meet, and the few header fields that matter to it. Must not
know: what will be written.
"""

from __future__ import annotations

from typing import NamedTuple

SIZE = 512  # bytes that decide
RAW, LUKS, QCOW2 = "raw", "luks", "qcow2"
_LUKS = b"LUKS\xba\xbe"
_LUKS_UUID = slice(168, 208)  # the same in both versions of LUKS
_QCOW2 = b"QFI\xfb"
_OTHERS = ((0, b"QED\0", "qed"), (0, b"KDMV", "vmdk"), (0, b"vhdxfile", "vhdx"), (0, b"conectix", "vpc"),
           (64, b"\x7f\x10\xda\xbe", "vdi"))  # fmt: skip


DISC_SIZE = 32768 + 6  # bytes that show whether a file is the image of an optical disc
_DISC = (b"CD001", b"BEA01")  # ISO 9660, UDF


def is_disc(head: bytes) -> bool:
    """Return whether the first DISC_SIZE bytes are those of a disc's file system."""
    return head[DISC_SIZE - 5 : DISC_SIZE] in _DISC


class Header(NamedTuple):
    """The facts in a header.

    format: LUKS, QCOW2, another format's name, or RAW if nothing indicates one; encrypted: a secret is needed to read
    the content; uuid: of LUKS, unique to each header.
    """

    format: str
    encrypted: bool = False
    uuid: str = ""


def read(path: str) -> Header:
    """Read the Header of a file; OSError."""
    with open(path, "rb") as file:
        return parse(file.read(SIZE))


def parse(head: bytes) -> Header:
    """Parse the first SIZE bytes, or fewer if there are no more."""
    if head.startswith(_LUKS):
        return Header(LUKS, True, head[_LUKS_UUID].rstrip(b"\0").decode("ascii", "replace"))
    if head.startswith(_QCOW2):
        return Header(QCOW2, bool(int.from_bytes(head[32:36], "big")))
    return Header(next((name for at, magic, name in _OTHERS if head.startswith(magic, at)), RAW))
