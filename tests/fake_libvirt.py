"""What libvirt does not do on demand: an error of a chosen code, an object with some methods replaced.

A test module that imports this is skipped if libvirt's bindings are missing.
"""

import pytest

libvirt = pytest.importorskip("libvirt")


class Meddled:
    """A libvirt object with some methods replaced; without a real object, these are its only methods."""

    def __init__(self, real=None, **methods):
        self._real = real
        self.__dict__.update(methods)

    def __getattr__(self, name):
        return getattr(self._real, name)


def error_of(code, number=-1):
    """Return the exception that libvirt raises for a code, and the errno that it reports with a system error."""
    error = libvirt.libvirtError("failed")
    error.args = ("libvirt's words\nin lines",)
    error.err = (code, 10, error.args[0], 2, None, None, None, number, -1)
    return error


def raising(error):
    def call(*_args):
        raise error

    return call
