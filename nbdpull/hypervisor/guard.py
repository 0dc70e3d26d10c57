"""A process that guards a guest where nbdpull is killed: what the programs domain_thaw and socket_guard have in common.

Owns: that it is deaf to the signals that end its parent, and its own connection to libvirt. It imports nothing of the
package, so that it starts fast. Must not know: what is guarded.
"""

import signal
from typing import Any

import libvirt

GONE = (libvirt.VIR_ERR_NO_DOMAIN,)


def begin() -> None:
    """To be called first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    libvirt.registerErrorHandler(lambda _context, _error: None, None)


def look_up(uri: str, uuid: str) -> Any:
    """The domain, None where the daemon does not answer, which may come back; an error where the domain is gone."""
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
