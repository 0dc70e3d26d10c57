"""Numbers of bytes as people write them: 65536, 64K, 1M, 2GiB."""

import re

_SIZE = re.compile(r"(\d+)([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


def parse(text):
    """Return bytes; ValueError says what is wrong."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no size; write bytes, or 64K, 1M, 2G")
    return int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))
