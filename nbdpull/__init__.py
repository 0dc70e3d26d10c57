"""nbdpull: pull-mode incremental backups of libvirt/QEMU virtual machines.

What __all__ names is for other programs, and is kept by semantic versioning from 0.2 on; all else is private. Each name
is loaded when it is first used, so that a program that wants one of them does not need what others need.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.disk import Disk as Disk
    from .api.disk import Extent as Extent
    from .api.job import Job as Job
    from .api.job import open_backup as open_backup
    from .api.options import Options as Options
    from .api.push import DiskResult as DiskResult
    from .api.push import DiskSink as DiskSink
    from .api.push import Result as Result
    from .api.push import Sink as Sink
    from .api.push import backup as backup
    from .core.errors import NbdpullError as NbdpullError
    from .pulling.token import Token as Token

__version__ = "0.1.0"
__all__ = [
    "Disk",
    "DiskResult",
    "DiskSink",
    "Extent",
    "Job",
    "NbdpullError",
    "Options",
    "Result",
    "Sink",
    "Token",
    "backup",
    "open_backup",
]

_HOMES = {
    "Disk": "api.disk",
    "DiskResult": "api.push",
    "DiskSink": "api.push",
    "Extent": "api.disk",
    "Job": "api.job",
    "NbdpullError": "core.errors",
    "Options": "api.options",
    "Result": "api.push",
    "Sink": "api.push",
    "Token": "pulling.token",
    "backup": "api.push",
    "open_backup": "api.job",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'nbdpull' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nbdpull.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return what help() and a prompt's completion list, although it is not loaded yet."""
    return sorted({*globals(), *__all__})
