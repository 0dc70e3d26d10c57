"""A domain that is off, read without a start: its images are opened beside it, and asked what QEMU would be asked.

Owns: what of a Domain and of its job there is without QEMU, which disks can be read so, and that until all is read the
domain stays off and its images what they are. No checkpoint is made, and nothing is written. Must not know: when a
domain is read so, stores.
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
    """Yield the OffDomain of a Domain that is off. instead: why it is not started, for errors by which it cannot be
    read either: Unsupported, as its images are elsewhere; MissingSoftware."""
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
    """A Domain that is off, as a pull sees it. Only disks that were looked_at can be pulled."""

    reads_images = True
    supports_checkpoints = True  # those that are there can be read

    def __init__(self, vm: domain.Domain, daemon: StorageDaemon, opened: contextlib.ExitStack, instead: str):
        """opened: what is to be closed when all is read; the daemon is in it."""
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
        """Open their images, and keep everybody from writing to them. Busy where somebody does; Unsupported."""
        with self.seam("read the definition"):
            described = domain_xml.images(self.dom.XMLDesc(0))
        with _explained(self._instead):
            found = [self._with_layers(disk, described[disk.target]) for disk in disks]
        self._require_off()  # it cannot be started any more
        return found

    def _with_layers(self, disk: Disk, images: domain_xml.Images) -> Disk:
        obstacle = images.altered or ("" if all(path for path, _ in images.chain) else "is no file and no block device")
        if obstacle:
            raise errors.Unsupported(f"disk {disk.target} of domain '{self.name}' can only be read while that runs: it "
                                     f"{obstacle}; leave it out with --exclude {disk.target}")  # fmt: skip
        places = [Place(*place) for place in images.chain]
        layers = self._layers[disk.target] = Layers(self._daemon, disk.target, places, images.is_all)
        self._opened.callback(layers.close)
        return replace(disk, size=layers.size, allocation=layers.allocation, bitmaps=layers.can_hold_bitmaps)

    @property
    def image_warnings(self) -> list[str]:  # type: ignore[override]
        saved = [_SAVED, *self._disks_of_the_saved_state()] if self.has_saved_state else []
        return [warning for layers in self._layers.values() for warning in layers.warnings] + saved

    def require_there(self) -> None:
        """JobLost where it was started, NoAnswer where libvirt's daemon is gone or hangs; nothing else."""
        try:
            state = self.guest_state()
        except errors.NbdpullError:
            if self.link.gone:
                raise
            return
        if not state.off:
            raise self._started()

    def reading(self, spec: BackupSpec) -> Reading:
        """The disks of the spec, served from their images."""
        bitmap = f"nbdpull-{spec.run_id}"
        exports = {
            target: Export(target, self._layers[target].export(base, bitmap)) for target, base in spec.disks.items()
        }
        return Reading(self, exports, self._daemon.socket)

    def _disks_of_the_saved_state(self) -> list[str]:
        """A warning where it has disks that the definition does not have: they were plugged in live before that."""
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
        """JobLost unless what was read until now is the disks as they were when they were looked at."""
        self._daemon.require_alive()
        self._require_off()
        changed = next(filter(None, (layers.changed() for layers in self._layers.values())), "")
        if changed:
            raise errors.JobLost(f"{changed} was changed while it was read: {_VOID}")

    def let_go(self) -> None:
        """Close the images: from now on the domain can be started."""
        self._opened.close()


class _NoJobs(Jobs):
    """What QEMU does cannot be in the way: it does not run."""

    def require_idle(self) -> None:
        pass

    def require_no_foreign_job(self) -> None:
        pass


class _StoredCheckpoints(Checkpoints):
    """Each bitmap of a disk that was looked at is judged as libvirt does it for a domain that runs."""

    def __init__(self, vm: domain.Domain, layers: Mapping[str, Layers]):
        super().__init__(vm)
        self._layers = layers

    def get(self, name: str) -> Checkpoint:
        found = super().get(name)
        return replace(found, disks={target: self._tells_since(target, name) for target in found.disks})

    def _tells_since(self, target: str, checkpoint: str) -> Optional[bool]:
        return self._layers[target].tells_since(checkpoint) if target in self._layers else None

    def can_define(self, checkpoint: Checkpoint, targets: Sequence[str]) -> bool:
        if not targets or not all(self._tells_since(target, checkpoint.name) for target in targets):
            return False
        self.define(replace(checkpoint, disks=dict.fromkeys(targets)))
        return True


class _Readings(Backups):
    """What a backup job does, without one."""

    def __init__(self, vm: OffDomain, jobs: Jobs, checkpoints: Checkpoints):
        super().__init__(vm, jobs, checkpoints)
        self._off = vm

    @contextlib.contextmanager
    def begun(self, spec: BackupSpec) -> Iterator[Reading]:  # type: ignore[override]
        """Serve the disks of the spec, as a backup job does; end by Reading.finish(). NotQuiesced."""
        if spec.quiesce == Quiesce.REQUIRE:
            raise errors.NotQuiesced(f"domain '{self._off.name}' is off, so no guest can be frozen: use "
                                     "--quiesce=auto")  # fmt: skip
        yield self._off.reading(spec)


class _Freeze(NamedTuple):
    """As domain_freeze.Freeze reports it."""

    consistency: str
    reason: str
    warnings: list[str]


class Reading:
    """The images being read; a backup_job.Job for who reads."""

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
