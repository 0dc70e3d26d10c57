"""libvirt's Python bindings, or one clear line that says how to get them.

Owns: their import. Every module that calls libvirt imports it from here, in any order. Must not know: what it is called
for.
"""

from ..core import errors

try:
    import libvirt
    import libvirt_qemu
except ImportError as error:
    raise errors.MissingSoftware(
        "the Python bindings of libvirt are not installed: install python3-libvirt (Debian, Fedora) and run the "
        "distribution's python3, or libvirt-python (PyPI)"
    ) from error

__all__ = ["libvirt", "libvirt_qemu"]
