"""What the operating system says about a file that is being written."""

import pytest

from nbdpull.core import errors, os_error


def test_a_directory_that_vanished_is_named_and_not_the_file(tmp_path):
    """A share was unmounted, or a store removed, while it was written: the file is not what is missing."""
    path = str(tmp_path / "store" / "vm1" / "vda.index")
    with pytest.raises(errors.OutputError) as caught, os_error.translated("create", path), open(path, "x"):
        pass
    assert str(caught.value) == f"cannot create {path}: there is no directory {tmp_path / 'store'}"


def test_a_file_that_is_missing_from_its_directory(tmp_path):
    path = str(tmp_path / "image")
    with pytest.raises(errors.OutputError) as caught, os_error.translated("open", path), open(path):
        pass
    assert str(caught.value) == f"cannot open {path}: No such file or directory"
