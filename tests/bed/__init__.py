"""The test bed: a private libvirt, and throw-away VMs on it.

Import it as ``bed`` with tests/ on the path: pytest puts it there, a script does it by
``sys.path.insert(0, "<project>/tests")``. Nothing in here knows nbdpull: the bed has to stay usable as the independent
witness of what a disk held.
"""


class Unavailable(Exception):
    """A part of the bed is missing on this machine; the text says which, and how to get it."""


class BedError(Exception):
    """The bed was told to do something and could not."""
