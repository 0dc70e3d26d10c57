"""libnbd's Python bindings, and what their version means. The only file that imports them.

Owns: that they exist, and are new enough. Must not know: what a handle is used for.
"""

from __future__ import annotations

from ..core import errors

try:
    import nbd as nbd
except ImportError as error:  # the package called "nbd" on PyPI is something else
    raise errors.MissingSoftware(
        "libnbd's Python bindings are not installed: install python3-libnbd (Debian, Ubuntu, Fedora, RHEL), and run "
        "nbdpull with the distribution's own python3 (a restore to raw images, or to new qcow2 images without options, "
        "needs none)"
    ) from error

OLDEST = (1, 14)  # older bindings read only into buffers of their own
_TLS_MENDED = {(1, 18): 5, (1, 20): 2}  # first patch with the fix in the stable branches; all later branches have it


def library_version() -> str:
    return str(nbd.NBD().get_version())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])


def require_new_enough(version: str) -> None:
    if _numbers(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise errors.MissingSoftware(f"libnbd {version} is too old for nbdpull: install {oldest} or newer")


def tls_is_verified(version: str) -> bool:
    """Return whether this libnbd checks a TLS server's certificate without the gaps of CVE-2024-7383, found in
    mid-2024."""
    major, minor, patch = _numbers(version)
    if (major, minor) in _TLS_MENDED:
        return patch >= _TLS_MENDED[major, minor]
    return (major, minor) > max(_TLS_MENDED)


require_new_enough(library_version())
