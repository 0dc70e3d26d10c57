"""The test bed: a private libvirt, and throw-away VMs on it.

Import it as ``bed`` with tests/ on the path: pytest puts it there; a script calls ``sys.path.insert(0,
"<project>/tests")``. Nothing in here knows nbdpull: the bed has to remain an independent witness of what a disk held.
"""


class Unavailable(Exception):
    """A part of the bed is missing on this machine; the text names it, and says how to get it."""


class BedError(Exception):
    """The bed could not do what a test asked for."""
