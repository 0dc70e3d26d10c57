"""How long the path of a unix socket may be.

Owns: that number, which is Linux's. Must not know: whose socket it is.
"""

from __future__ import annotations

import os

PATH_MAX = 107  # bytes: sun_path, less its NUL


def fits(path: str) -> bool:
    """Whether a unix socket can have this path."""
    return len(os.fsencode(path)) <= PATH_MAX
