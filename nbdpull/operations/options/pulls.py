"""The options of pull."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ...core.choices import Resume
from .jobs import Backup, Job
from .threads import threads


@dataclass(frozen=True)
class _ToStore:
    domain: str
    output: str


@dataclass(frozen=True)
class _IntoStore(Backup, _ToStore):
    """The options of every pull, whatever it reads from.

    output: the store. since: a checkpoint. checkpoint: see the subclasses. level: of zstd, None: the pull chooses it.
    max_rate_file: contains the rate, and is read again during the pull. group: a group of the system that may read the
    store. prune: apply the policy of the store once the point is made.
    """

    since: Optional[str] = None
    full: bool = False
    checkpoint: Optional[str] = None
    level: Optional[int] = 1
    threads: int = field(default_factory=threads)
    max_rate: Optional[int] = None
    max_rate_file: Optional[str] = None
    dedupe: bool = True
    frame_size: int = 1 << 20
    chunk_size: int = 256 << 20
    max_duration: Optional[float] = None
    space_check: bool = True
    group: Optional[str] = None
    prune: bool = False
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PullOptions(Job, _IntoStore):
    """The options of a pull from libvirt.

    resume: a word of the class of that name. checkpoint: name of the checkpoint to make, None: a unique name. tls: a
    folder of certificates. max_in_flight: most reads that QEMU gets at once.
    """

    resume: str = Resume.AUTO
    make_checkpoint: bool = True
    tls: Optional[str] = None
    max_in_flight: Optional[int] = None


@dataclass(frozen=True)
class KubevirtOptions(_IntoStore):
    """The options of a pull of kubevirt:NAMESPACE/VM.

    http_map, http_data: URLs of an existing backup; token_file, ca: files with its token and with the certificates that
    verify the server; type: a word of BackupType. since, checkpoint: the checkpoints that this backup starts from and
    has made. uuid: of the VM. Without http_map, the pull has the cluster make a backup: kubeconfig, context: how to
    reach the cluster; pvc: name of a claim for the scratch.
    """

    http_map: list[str] = field(default_factory=list)
    http_data: list[str] = field(default_factory=list)
    ca: Optional[str] = None
    token_file: Optional[str] = None
    type: Optional[str] = None
    uuid: Optional[str] = None
    kubeconfig: Optional[str] = None
    context: Optional[str] = None
    pvc: Optional[str] = None
