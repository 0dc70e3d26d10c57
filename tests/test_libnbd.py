"""Which versions of libnbd are accepted."""

import pytest

from nbdpull.core import errors
from nbdpull.nbd import libnbd


def test_versions():
    assert libnbd.library_version().count(".") == 2


@pytest.mark.parametrize("version", ["1.14.0", "1.14.2", "1.20.1", "2.0.0"])
def test_a_library_that_is_new_enough(version):
    libnbd.require_new_enough(version)


@pytest.mark.parametrize("version", ["1.13.9", "1.10.5", "0.99.1"])
def test_a_library_that_is_too_old(version):
    with pytest.raises(errors.MissingSoftware, match=f"libnbd {version} is too old for nbdpull: install 1.14 or newer"):
        libnbd.require_new_enough(version)
