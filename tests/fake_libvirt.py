"""What libvirt does not do on demand: an error of a chosen code, an object of which some methods are replaced.

A test module that imports this is skipped where libvirt's bindings are missing.
"""

import pytest

libvirt = pytest.importorskip("libvirt")


class Meddled:
    """A libvirt object, some of its methods replaced; without a real one these are all that it has."""

    def __init__(self, real=None, **methods):
        self._real = real
        self.__dict__.update(methods)

    def __getattr__(self, name):
        return getattr(self._real, name)


def error_of(code, number=-1):
    """What libvirt raises: code, and the errno that it tells with a system error."""
    error = libvirt.libvirtError("failed")
    error.args = ("libvirt's words\nin lines",)
    error.err = (code, 10, error.args[0], 2, None, None, None, number, -1)
    return error


def raising(error):
    def call(*_args):
        raise error

    return call
