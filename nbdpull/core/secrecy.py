"""What a process does that has a secret in its memory.

Must not know: which secret.
"""

from __future__ import annotations

import resource


def begin() -> None:
    """From now on the process leaves no core where it crashes."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
