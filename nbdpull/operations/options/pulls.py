"""The options of the verbs that reach a running domain: pull, run, expose, and those around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ...core.choices import FREEZE_TIMEOUT, SHARED_DIR, STALL_TIMEOUT, Offline, OnLostBase, Quiesce, Resume
from .threads import threads


@dataclass(frozen=True)
class _Backup:
    """The options of every backup of a domain, whatever it is read from and whoever receives it.

    disks, exclude: disks to back up, or to leave out. on_lost_base, quiesce: a word of the class of that name.
    """

    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    on_lost_base: str = OnLostBase.FULL
    quiesce: str = Quiesce.AUTO
    stall_timeout: float = STALL_TIMEOUT


@dataclass(frozen=True)
class _Job:
    """The options of every backup job of libvirt.

    offline: a word of the class of that name. scratch_limit: most bytes that QEMU may keep in scratch_dir. socket: path
    where QEMU creates its socket. nbd: "tcp:HOST:PORT".
    """

    uri: Optional[str] = None
    offline: str = Offline.AUTO
    freeze_timeout: float = FREEZE_TIMEOUT
    scratch_dir: str = SHARED_DIR
    scratch_limit: Optional[int] = None
    socket: Optional[str] = None
    nbd: Optional[str] = None


@dataclass(frozen=True)
class _ToStore:
    domain: str
    output: str


@dataclass(frozen=True)
class _IntoStore(_Backup, _ToStore):
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
class PullOptions(_Job, _IntoStore):
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


@dataclass(frozen=True)
class _ToCommand:
    domain: str
    command: list[str]


@dataclass(frozen=True)
class RunOptions(_Job, _Backup, _ToCommand):
    """The options of run.

    command: a program and its arguments. since: file with a token, which need not exist; token: file for the token of
    this backup. tls: a folder of certificates. environment: of the command; stdout: a descriptor, None for ours.
    """

    since: Optional[str] = None
    token: Optional[str] = None
    tls: Optional[str] = None
    max_duration: Optional[float] = None
    environment: dict[str, str] = field(default_factory=dict)
    stdout: Optional[int] = None


@dataclass(frozen=True)
class _ToClients:
    domain: str
    listen: str
    token_file: str


@dataclass(frozen=True)
class ExposeOptions(_Job, _Backup, _ToClients):
    """The options of expose.

    listen: HOST:PORT, or unix:PATH. token_file: file with the token that clients have to send. since: file with the
    token of the previous backup, which need not exist; token_out: file for the new one. tls: a folder of certificates,
    for HTTP; client_ca: file with the certificates that verify clients. ttl: time in which a client has to confirm that
    it has the backup. nbd_tls: the option tls of pull.
    """

    since: Optional[str] = None
    token_out: Optional[str] = None
    tls: Optional[str] = None
    client_ca: Optional[str] = None
    ttl: float = 7200.0
    nbd_tls: Optional[str] = None


@dataclass(frozen=True)
class PlanOptions:
    """The options of plan, as for pull. output None: plan for a new store."""

    domain: str
    output: Optional[str] = None
    since: Optional[str] = None
    full: bool = False
    uri: Optional[str] = None
    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    scratch_dir: str = SHARED_DIR
    socket: Optional[str] = None
    nbd: Optional[str] = None
    tls: Optional[str] = None
    threads: int = field(default_factory=threads)
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DoctorOptions:
    """The options of doctor. domain None: check only the host."""

    domain: Optional[str] = None
    uri: Optional[str] = None
    scratch_dir: str = SHARED_DIR


@dataclass(frozen=True)
class CleanupOptions:
    """The options of cleanup.

    output: a store, None: clean up only what this machine has recorded of the domain's runs. dry_run: remove nothing.
    """

    domain: str
    output: Optional[str] = None
    uri: Optional[str] = None
    dry_run: bool = False
    stall_timeout: float = STALL_TIMEOUT


@dataclass(frozen=True)
class ReleaseOptions:
    """The options of release. dry_run: remove nothing."""

    domain: str
    uri: Optional[str] = None
    dry_run: bool = False
    stall_timeout: float = STALL_TIMEOUT


@dataclass(frozen=True)
class _OfCluster:
    """The options of every verb for kubevirt:NAMESPACE/VM but pull. kubeconfig, context: how to reach its cluster."""

    domain: str
    kubeconfig: Optional[str] = None
    context: Optional[str] = None
    stall_timeout: float = STALL_TIMEOUT


@dataclass(frozen=True)
class KubevirtPlanOptions(_OfCluster):
    """The options of plan, as for pull. output None: plan for a new store."""

    output: Optional[str] = None
    full: bool = False
    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class KubevirtDoctorOptions(_OfCluster):
    """The options of doctor."""


@dataclass(frozen=True)
class KubevirtCleanupOptions(_OfCluster):
    """The options of cleanup. output: the store, which is required. dry_run: remove nothing."""

    output: Optional[str] = None
    dry_run: bool = False


@dataclass(frozen=True)
class KubevirtReleaseOptions(_OfCluster):
    """The options of release. dry_run: remove nothing."""

    dry_run: bool = False
