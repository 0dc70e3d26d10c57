"""The format that the first bytes of an image show, with images made by QEMU itself."""

import os
import subprocess
from pathlib import Path

import pytest
from bed.luks import encrypted_image

from nbdpull.images import image_header


def test_encryption_is_recognized(tmp_path):
    for kind in ("luks", "qcow2"):
        head = Path(encrypted_image(tmp_path / kind, kind)).read_bytes()[: image_header.SIZE]
        found = image_header.parse(head)
        assert (found.format, found.encrypted, len(found.uuid)) == (kind, True, 36 if kind == "luks" else 0)
        assert image_header.parse(head[:4]).encrypted is False  # cut short, as of a tiny file


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vhdx", "vpc", "vdi", "qed"])
def test_formats_are_distinguished(tmp_path, kind):
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, tmp_path / "a", "8M"], check=True)
    head = (tmp_path / "a").read_bytes()[: image_header.SIZE]
    assert image_header.parse(head) == (kind, False, "")


def test_data_that_is_not_an_image():
    for head in (b"", bytes(512), os.urandom(3), b"\x55" * 512):
        assert image_header.parse(head) == ("raw", False, "")
