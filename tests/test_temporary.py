"""Temporary files: what happens where there is no room for any."""

import os
import tempfile

import pytest
from command import answered

from nbdpull.core import command, errors, temporary, unix_socket
from nbdpull.nbd import qemu_nbd


@pytest.fixture
def full(monkeypatch):
    """The directories for temporary files are full, as is usual when the root file system is."""

    def no_directory():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", no_directory)


def test_a_file_and_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary.file() as file:
        assert os.listdir(tmp_path) == [] and file.write(b"x") == 1
    folder = temporary.folder()
    assert os.path.dirname(folder) == str(tmp_path) and os.stat(folder).st_mode & 0o777 == 0o700


def test_a_directory_that_vanished(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    for create in (temporary.file, temporary.folder):
        with pytest.raises(errors.OutputError, match="^cannot create a (file|folder) in .*gone: "):
            create()


@pytest.mark.parametrize(
    "create",
    [temporary.file, temporary.folder, unix_socket.nameless, command.handed([]).__enter__,
     qemu_nbd.serving([]).__enter__],
)  # fmt: skip
def test_there_is_no_room(full, create):
    with pytest.raises(errors.OutputError, match="^no directory for temporary files can be written .* TMPDIR$"):
        create()


def test_serve_says_so(full, vm, capsys):
    code, _, said = answered(capsys, "serve", vm.root, "--disk", "vda")
    assert code == 9 and said.startswith("nbdpull: no directory for temporary files") and said.count("\n") == 1
