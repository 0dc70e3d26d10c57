"""The Linux guest without its boot: saved once when its agent answers, and restored for each test.

A boot takes 4 s of CPU, because QEMU translates every instruction; a restore takes a tenth of that. libvirt restores a
domain only under its own name and UUID, so a libvirt runs only one such guest at a time.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from bed.guest import Guest
from bed.libvirtd import libvirt
from bed.machine import Disk


@dataclass(frozen=True)
class Saved:
    """libvirt's file of the memory, and a copy of vda from the same moment."""

    state: Path
    disk: Path
    name: str
    uuid: str


def save(guest, folder):
    """Save a guest that has no disk but vda, and end its QEMU; return the Saved."""
    guest.run("sync")  # nothing that the boot has left comes to the disk later
    saved = Saved(Path(folder) / "state", Path(folder) / "vda.qcow2", guest.name, guest.uuid)
    guest.domain.save(str(saved.state))
    shutil.copyfile(guest.disks["vda"].path, saved.disk)
    return saved


class SavedGuest(Guest):
    """A Guest with the hardware of the saved one. Its first start is the restore; each later one is a boot."""

    def __init__(self, bed, folder, parts, saved):
        self._saved = saved
        Path(folder).mkdir(parents=True)
        copy = Path(folder) / "vda.qcow2"
        shutil.copyfile(saved.disk, copy)
        super().__init__(bed, folder, parts, {"vda": Disk(path=copy)}, name=saved.name)

    def start(self):
        if not self._saved:
            super().start()
            return
        state, self._saved = self._saved.state, None
        xml = self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)  # which has this guest's paths
        self.bed.connection().restoreFlags(str(state), xml, libvirt.VIR_DOMAIN_SAVE_RUNNING)
        self.wait_agent()
        self.run(f"date -s @{int(time.time())}")

    def _xml(self):
        xml = super()._xml()
        return xml.replace("</name>", f"</name><uuid>{self._saved.uuid}</uuid>", 1) if self._saved else xml
