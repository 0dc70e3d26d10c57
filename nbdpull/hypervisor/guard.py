"""What domain_thaw and socket_guard share: processes that protect a guest if nbdpull is killed.

Owns: ignoring the signals that end the parent, and a connection of its own to libvirt. It imports nothing from the
package, so that it starts fast. Must not know: what it guards against.
"""

import signal
from typing import Any

import libvirt

GONE = (libvirt.VIR_ERR_NO_DOMAIN,)


def begin() -> None:
    """Ignore the signals that end the parent, and libvirt's messages on stderr. Call this first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


def look_up(uri: str, uuid: str) -> Any:
    """Return the domain, None if the daemon does not answer but may come back.

    Raises libvirt's error if the domain is gone.
    """
    try:
        return libvirt.open(uri).lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() in GONE:
            raise
        return None


def is_connected(dom: Any) -> bool:
    try:
        return dom is not None and bool(dom.connect().getLibVersion() > 0)
    except libvirt.libvirtError:
        return False
