"""A process that dies between two calls of the store that change files. Knows nothing of what it was doing."""

from contextlib import ExitStack, contextmanager
from unittest import mock


class Killed(BaseException):
    """Raised at a call that changes a file; from then on, the process changes nothing."""


@contextmanager
def patched(make, changes):
    """Replace methods by make(class, name); changes: {class: names of its methods}."""
    with ExitStack() as entered:
        for owner, names in changes.items():
            for name in names:
                entered.enter_context(mock.patch.object(owner, name, make(owner, name)))
        yield


def killed_at(count, do, changes):
    """Call do(), and let it die at the first change after `count` ones; return whether it died."""
    left = [count]
    with patched(lambda owner, name: _counted(owner, name, left), changes):
        try:
            do()
        except Killed:
            return True
    return False


def _counted(owner, name, left):
    real = getattr(owner, name)

    def call(self, *args, **others):
        if left[0] <= 0:
            raise Killed
        left[0] -= 1
        return real(self, *args, **others)

    return call
