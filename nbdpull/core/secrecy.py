"""What a process does while it has a secret in memory.

Must not know: which secret.
"""

from __future__ import annotations

import resource


def begin() -> None:
    """From now on, leave no core dump if the process crashes."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
