"""A domain that is off, read without a start: a storage daemon opens its images and answers in place of its QEMU.

Owns: which parts of a Domain and of its job exist without QEMU, which disks can be read in this way, and that until
everything is read the domain remains off and its images unchanged. No checkpoint is made, and nothing is written. Must
not know: when a domain is read in this way, stores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Optional

from ..core import errors
from ..core.choices import STALL_TIMEOUT, Quiesce
from ..core.errors import Check
from ..definitions import domain_xml
from ..definitions.domain_xml import Checkpoint, Disk
from ..hypervisor import domain, domain_freeze
from ..hypervisor.backup_spec import BackupSpec, Export
from ..hypervisor.backups import Backups
from ..hypervisor.checkpoints import Checkpoints
from ..hypervisor.jobs import Jobs
from ..nbd.image_layers import Layers, Place
from ..nbd.storage_daemon import StorageDaemon

OFF, SAVED_STATE = "off", "saved-state"  # why a point is no more than crash-consistent
_SAVED = ("the domain has a saved state: its disks belong to the memory in that state, which is not in the point; a "
          "guest that boots from them finds them as after a power cut")  # fmt: skip
_VOID = "what was read cannot be used, pull again"


@contextlib.contextmanager
def opened(
    vm: domain.Domain, check: Check, stall_timeout: float = STALL_TIMEOUT, instead: str = ""
) -> Iterator[OffDomain]:
    """Yield the OffDomain of a Domain that is off. instead: why it is not started, for the messages of errors. Raises
    Unsupported if its images are on another host, or MissingSoftware."""
    with contextlib.ExitStack() as opened:
        with _explained(instead):
            if vm.is_remote:
                raise errors.Unsupported(f"its images are on {vm.host}: run nbdpull there to read them")
            daemon = opened.enter_context(StorageDaemon(check, stall_timeout))
        yield OffDomain(vm, daemon, opened, instead)


@contextlib.contextmanager
def _explained(instead: str) -> Iterator[None]:
    try:
        yield
    except (errors.HypervisorError, errors.Busy, errors.AccessDenied, errors.MissingSoftware) as error:
        if not instead:
            raise
        raise type(error)(f"{instead}, and its images cannot be read either: {error}") from error


class OffDomain(domain.Domain):
    """A Domain that is off, as a pull sees it. Only disks that were passed to looked_at can be pulled."""

    reads_images = True
    supports_checkpoints = True  # existing ones can be read

    def __init__(self, vm: domain.Domain, daemon: StorageDaemon, opened: contextlib.ExitStack, instead: str):
        """opened: closed when everything is read; contains the daemon."""
        super().__init__(vm.connection, vm.dom, vm.link)
        self._daemon, self._opened, self._instead = daemon, opened, instead
        self._layers: dict[str, Layers] = {}
        self.jobs = _NoJobs(self)
        self.checkpoints = _StoredCheckpoints(self, self._layers)
        self.backups = _Readings(self, self.jobs, self.checkpoints)

    @property
    def versions(self) -> dict[str, str]:
        return {**super().versions, "qemu": self._daemon.version}

    def looked_at(self, disks: Iterable[Disk]) -> list[Disk]:
        """Open the images of disks, and lock them against writers; return the disks with facts about their images. Busy
        if another process writes to one; Unsupported."""
        with self.seam("read the definition"):
            described = domain_xml.images(self.dom.XMLDesc(0))
        with _explained(self._instead):
            found = [self._with_layers(disk, described[disk.target]) for disk in disks]
        self._require_off()  # from here on the locks prevent a start
        return found

    def _with_layers(self, disk: Disk, images: domain_xml.Images) -> Disk:
        obstacle = images.altered or ("" if all(path for path, _ in images.chain) else "is not a file or block device")
        if obstacle:
            raise errors.Unsupported(f"disk {disk.target} of domain '{self.name}' can only be read while the domain "
                                     f"runs: it {obstacle}; leave it out with --exclude {disk.target}")  # fmt: skip
        places = [Place(*place) for place in images.chain]
        layers = self._layers[disk.target] = Layers(self._daemon, disk.target, places, images.is_all)
        self._opened.callback(layers.close)
        return replace(disk, size=layers.size, allocation=layers.allocation, bitmaps=layers.can_hold_bitmaps)

    @property
    def image_warnings(self) -> list[str]:  # type: ignore[override]
        saved = [_SAVED, *self._disks_of_the_saved_state()] if self.has_saved_state else []
        return [warning for layers in self._layers.values() for warning in layers.warnings] + saved

    def require_there(self) -> None:
        """Raise JobLost if the domain was started, NoAnswer if libvirt's daemon is gone or hangs; nothing else."""
        try:
            state = self.guest_state()
        except errors.NbdpullError:
            if self.link.gone:
                raise
            return
        if not state.off:
            raise self._started()

    def reading(self, spec: BackupSpec) -> Reading:
        """Export the disks of the spec from their images."""
        bitmap = f"nbdpull-{spec.run_id}"
        exports = {
            target: Export(target, self._layers[target].export(base, bitmap)) for target, base in spec.disks.items()
        }
        return Reading(self, exports, self._daemon.socket)

    def _disks_of_the_saved_state(self) -> list[str]:
        """Return a warning if the saved state has disks that the definition lacks: they were plugged into the running
        domain only, before it was saved."""
        with self.seam("read the definition of the saved state"):
            saved = domain_xml.parse_disks(self.dom.managedSaveGetXMLDesc(0))
        defined = {(disk.target, disk.source) for disk in self.disks()}
        others = [disk for disk in saved if disk.device == "disk" and (disk.target, disk.source) not in defined]
        named = ", ".join(f"{disk.target} ({disk.source})" for disk in others)
        return [f"the saved state has disks that the definition and the point do not have: {named}"] if named else []

    def _require_off(self) -> None:
        if self.active:
            raise self._started()

    def _started(self) -> errors.NbdpullError:
        return errors.JobLost(f"domain '{self.name}' was started while its images were read: {_VOID}")

    def require_unchanged(self) -> None:
        """Raise JobLost if the domain was started, or an image changed, since its disks were passed to looked_at."""
        self._daemon.require_alive()
        self._require_off()
        changed = next(filter(None, (layers.changed() for layers in self._layers.values())), "")
        if changed:
            raise errors.JobLost(f"{changed} was changed while it was read: {_VOID}")

    def let_go(self) -> None:
        """Close the images; from now on the domain can be started."""
        self._opened.close()


class _NoJobs(Jobs):
    """The jobs of a domain without QEMU: there are none that could be in the way."""

    def require_idle(self) -> None:
        pass

    def require_no_foreign_job(self) -> None:
        pass


class _StoredCheckpoints(Checkpoints):
    """The checkpoints of a domain that is off. The bitmaps of disks that were passed to looked_at are judged by the
    rule that libvirt applies to a running domain."""

    def __init__(self, vm: domain.Domain, layers: Mapping[str, Layers]):
        super().__init__(vm)
        self._layers = layers

    def get(self, name: str) -> Checkpoint:
        found = super().get(name)
        return replace(found, disks={target: self._records_since(target, name) for target in found.disks})

    def _records_since(self, target: str, checkpoint: str) -> Optional[bool]:
        return self._layers[target].records_since(checkpoint) if target in self._layers else None

    def can_define(self, checkpoint: Checkpoint, targets: Sequence[str]) -> bool:
        if not targets or not all(self._records_since(target, checkpoint.name) for target in targets):
            return False
        self.define(replace(checkpoint, disks=dict.fromkeys(targets)))
        return True


class _Readings(Backups):
    """A replacement for backup jobs: reads images without a job."""

    def __init__(self, vm: OffDomain, jobs: Jobs, checkpoints: Checkpoints):
        super().__init__(vm, jobs, checkpoints)
        self._off = vm

    @contextlib.contextmanager
    def begun(self, spec: BackupSpec) -> Iterator[Reading]:  # type: ignore[override]
        """Export the disks of the spec, as a backup job does; to end that, call Reading.finish(). NotQuiesced."""
        if spec.quiesce == Quiesce.REQUIRE:
            raise errors.NotQuiesced(f"domain '{self._off.name}' is off, so no guest can be frozen: use "
                                     "--quiesce=auto")  # fmt: skip
        yield self._off.reading(spec)


class _Freeze(NamedTuple):
    """The same members as domain_freeze.Freeze."""

    consistency: str
    reason: str
    warnings: list[str]


class Reading:
    """Images that are being read; for readers, the same as a backup_job.Job."""

    checkpoint = None

    def __init__(self, vm: OffDomain, exports: dict[str, Export], socket: str):
        self._vm = vm
        self.exports, self.socket = exports, socket
        self.scratch_files: list[str] = []
        self.finished = False
        self.freeze = _Freeze(domain_freeze.CRASH_CONSISTENT, SAVED_STATE if vm.has_saved_state else OFF, [])

    def require_alive(self) -> None:
        self._vm.require_unchanged()

    def finish(self) -> None:
        self.require_alive()
        self._vm.let_go()
        self.finished = True
