"""What each verb can be told: a frozen class a verb, with every default.

The one place of a default: the command line, --help and the manual have theirs from here. Knows core alone, and
what a class needs is made when it is used, so that each verb starts at once. Must not know: what a verb does with it,
how an option is written.

Said once, for all: `domain` is a name or uuid, None the only one of a store; `store` a path; `point` an id or LATEST;
`disks` are names such as vda, empty for all; `uri` is libvirt's, None for its default; `identities` are files of those
who can open a sealed store; as of `as_of`, a time, a store is read, None: now. Times are in seconds, sizes in bytes,
rates in bytes a second; a limit that is None is none.
"""

from __future__ import annotations

import os
from dataclasses import field
from typing import Any, Optional

from ..core.choices import (
    CACHE_BYTES,
    FREEZE_TIMEOUT,
    LATEST,
    SHARED_DIR,
    STALL_TIMEOUT,
    KeyAction,
    Level,
    Offline,
    OnLostBase,
    Quiesce,
    Resume,
)
from ..core.late_dataclass import late_dataclass


def _threads() -> int:
    """Two more than there are cores for us: some always wait for a disk."""
    return min(len(os.sched_getaffinity(0)) + 2, 16)


@late_dataclass(frozen=True)
class _IntoStore:
    """What every pull is told, whatever it reads from.

    output: the store. since: a checkpoint. on_lost_base, quiesce: a word of the class of that name. checkpoint: see
    there. exclude: disks not to pull. level: of zstd, None: the pull finds it. max_rate_file: holds the rate, and is
    looked at while running. group: of the system, that may read the store. prune: by the policy of the store, once the
    point is made.
    """

    domain: str
    output: str
    since: Optional[str] = None
    full: bool = False
    on_lost_base: str = OnLostBase.FULL
    checkpoint: Optional[str] = None
    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    quiesce: str = Quiesce.AUTO
    level: Optional[int] = 1
    threads: int = field(default_factory=_threads)
    max_rate: Optional[int] = None
    max_rate_file: Optional[str] = None
    dedupe: bool = True
    frame_size: int = 1 << 20
    chunk_size: int = 256 << 20
    stall_timeout: float = STALL_TIMEOUT
    max_duration: Optional[float] = None
    space_check: bool = True
    group: Optional[str] = None
    prune: bool = False
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class PullOptions(_IntoStore):
    """resume, offline: a word of the class of that name. checkpoint: name of that to make, None a unique one. socket:
    where QEMU makes its own. nbd: "tcp:HOST:PORT". tls: a folder of certificates. max_in_flight: reads that QEMU has
    to do at once."""

    resume: str = Resume.AUTO
    make_checkpoint: bool = True
    uri: Optional[str] = None
    offline: str = Offline.AUTO
    freeze_timeout: float = FREEZE_TIMEOUT
    scratch_dir: str = SHARED_DIR
    socket: Optional[str] = None
    nbd: Optional[str] = None
    tls: Optional[str] = None
    max_in_flight: Optional[int] = None
    scratch_limit: Optional[int] = None


@late_dataclass(frozen=True)
class KubevirtOptions(_IntoStore):
    """Of a pull of kubevirt:NAMESPACE/VM.

    http_map, http_data: URLs of a backup that somebody else made; token_file, ca: the files of its token and of the
    certificates that verify the server; type: of BackupType. since, checkpoint: the checkpoints that the backup begins
    at and has made. uuid: of the VM. Without http_map the cluster is asked for a backup: kubeconfig, context: how it is
    reached; pvc: name of a claim for the scratch.
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


@late_dataclass(frozen=True)
class RunOptions:
    """As of pull. command: a program and its arguments. since: file of a token, which need not be there; token: file
    for that of this backup. environment: of the command; stdout: a descriptor, None for ours."""

    domain: str
    command: list[str]
    since: Optional[str] = None
    token: Optional[str] = None
    on_lost_base: str = OnLostBase.FULL
    uri: Optional[str] = None
    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    offline: str = Offline.AUTO
    quiesce: str = Quiesce.AUTO
    freeze_timeout: float = FREEZE_TIMEOUT
    scratch_dir: str = SHARED_DIR
    scratch_limit: Optional[int] = None
    socket: Optional[str] = None
    nbd: Optional[str] = None
    tls: Optional[str] = None
    stall_timeout: float = STALL_TIMEOUT
    max_duration: Optional[float] = None
    environment: dict[str, str] = field(default_factory=dict)
    stdout: Optional[int] = None


@late_dataclass(frozen=True)
class PlanOptions:
    """As of pull. output None: as if for a new store."""

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
    threads: int = field(default_factory=_threads)
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class DoctorOptions:
    """domain None: look at the host alone."""

    domain: Optional[str] = None
    uri: Optional[str] = None
    scratch_dir: str = SHARED_DIR


@late_dataclass(frozen=True)
class CleanupOptions:
    """output: a store, None: only what this machine has noted of the domain's last run. dry_run: look only."""

    domain: str
    output: Optional[str] = None
    uri: Optional[str] = None
    dry_run: bool = False
    stall_timeout: float = STALL_TIMEOUT


@late_dataclass(frozen=True)
class ReleaseOptions:
    """dry_run: look only."""

    domain: str
    uri: Optional[str] = None
    dry_run: bool = False
    stall_timeout: float = STALL_TIMEOUT


@late_dataclass(frozen=True)
class _OfCluster:
    """Of a verb that looks at kubevirt:NAMESPACE/VM. kubeconfig, context: how its cluster is reached."""

    domain: str
    kubeconfig: Optional[str] = None
    context: Optional[str] = None
    stall_timeout: float = STALL_TIMEOUT


@late_dataclass(frozen=True)
class KubevirtPlanOptions(_OfCluster):
    """As of pull. output None: as if for a new store."""

    output: Optional[str] = None
    full: bool = False
    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class KubevirtDoctorOptions(_OfCluster):
    """What is looked at."""


@late_dataclass(frozen=True)
class KubevirtCleanupOptions(_OfCluster):
    """output: the store. dry_run: look only."""

    output: Optional[str] = None
    dry_run: bool = False


@late_dataclass(frozen=True)
class KubevirtReleaseOptions(_OfCluster):
    """dry_run: look only."""

    dry_run: bool = False


@late_dataclass(frozen=True)
class RestoreOptions:
    """What to restore, and to where.

    output: a folder, or for one disk what `to` may name: {disk: path of an image, a block device, an NBD URI, or "-"}.
    kind: of IMAGE_KINDS, or None, what the domain's disk is. onto: the targets hold the state that a point without a
    parent builds on; None as a disk of `to` is then the point's only one. image_options: of new qcow2 images, as of
    qemu-img create -o. delta: the targets exist: write only what differs. salvage: restore what is not damaged.
    secrets: {disk: path of a file with the secret that it is to be encrypted by}, by LUKS. trust_definition: keep what
    a definition names of the host, whatever it is.
    """

    store: str
    output: Optional[str] = None
    domain: Optional[str] = None
    point: str = LATEST
    disks: list[str] = field(default_factory=list)
    kind: Optional[str] = None
    force: bool = False
    threads: int = field(default_factory=_threads)
    to: dict[Optional[str], str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    image_options: str = ""
    verify: bool = True
    space_check: bool = True
    onto: bool = False
    delta: bool = False
    salvage: bool = False
    define: bool = False
    name: Optional[str] = None
    new_uuid: bool = False
    trust_definition: bool = False
    uri: Optional[str] = None
    identities: list[str] = field(default_factory=list)
    as_of: Optional[str] = None

    @property
    def in_place(self) -> bool:
        return self.onto or self.delta


@late_dataclass(frozen=True)
class VerifyOptions:
    """domain, point None: all; a point is looked at with all that it builds on. level: Level.FILES are their
    sizes and digests, FRAMES the digest of every frame as well. sample: share of frames, by chance, anew in each run;
    shard: (i, n), the i-th of n parts, in each run the same. oldest: file by file, first those that were proved longest
    ago. heal_from: a store whose files replace those that are damaged, where they are what was stored. keep: record in
    the store what was found."""

    store: str
    domain: Optional[str] = None
    point: Optional[str] = None
    level: str = Level.FRAMES
    sample: Optional[float] = None
    shard: Optional[tuple[int, int]] = None
    oldest: bool = False
    heal_from: Optional[str] = None
    max_duration: Optional[float] = None
    keep: bool = True
    threads: int = field(default_factory=_threads)
    identities: list[str] = field(default_factory=list)
    as_of: Optional[str] = None


@late_dataclass(frozen=True)
class AgainstOptions:
    """image: a file or an NBD URI. disk None: the only one of the point. kind: of IMAGE_KINDS, None: as the image's
    beginning says. sample, shard: as of verify."""

    store: str
    image: str
    domain: Optional[str] = None
    point: str = LATEST
    disk: Optional[str] = None
    kind: Optional[str] = None
    sample: Optional[float] = None
    shard: Optional[tuple[int, int]] = None
    max_duration: Optional[float] = None
    threads: int = field(default_factory=_threads)
    identities: list[str] = field(default_factory=list)
    as_of: Optional[str] = None


@late_dataclass(frozen=True)
class DigestOptions:
    """point: also ALL_POINTS. keep: record the digests in the store."""

    store: str
    domain: Optional[str] = None
    point: str = LATEST
    disks: list[str] = field(default_factory=list)
    keep: bool = True
    threads: int = field(default_factory=_threads)
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class ServeOptions:
    """socket: path of one to make, port: of 127.0.0.1; without both a socket in a new folder. writable: let clients
    write, to a layer that is thrown away. cache_bytes: for decompressed frames, of each disk. http: over HTTP instead,
    HOST:PORT or unix:PATH; token_file, tls, client_ca: for that."""

    store: str
    domain: Optional[str] = None
    point: str = LATEST
    disks: list[str] = field(default_factory=list)
    socket: Optional[str] = None
    port: Optional[int] = None
    http: Optional[str] = None
    token_file: Optional[str] = None
    tls: Optional[str] = None
    client_ca: Optional[str] = None
    writable: bool = False
    cache_bytes: int = CACHE_BYTES
    identities: list[str] = field(default_factory=list)
    as_of: Optional[str] = None


@late_dataclass(frozen=True)
class ExposeOptions:
    """listen: HOST:PORT, or unix:PATH. token_file: what clients have to show. since: a file with the token of the
    backup before, which need not be there; token_out: one for the new one. tls: a folder of certificates, for HTTP;
    client_ca: a file. ttl: how long a client has until he says that he has it. nbd_tls: what is tls of pull. All else
    as there."""

    domain: str
    listen: str
    token_file: str
    since: Optional[str] = None
    token_out: Optional[str] = None
    tls: Optional[str] = None
    client_ca: Optional[str] = None
    ttl: float = 7200.0
    uri: Optional[str] = None
    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    on_lost_base: str = OnLostBase.FULL
    offline: str = Offline.AUTO
    quiesce: str = Quiesce.AUTO
    freeze_timeout: float = FREEZE_TIMEOUT
    scratch_dir: str = SHARED_DIR
    scratch_limit: Optional[int] = None
    socket: Optional[str] = None
    nbd: Optional[str] = None
    nbd_tls: Optional[str] = None
    stall_timeout: float = STALL_TIMEOUT


@late_dataclass(frozen=True)
class DrillOptions:
    """expect: a regular expression; the guest is ready when its serial console shows it, None: when its agent answers.
    timeout: how long that may take. work_dir: for what the guest writes. keep: record the result in the store."""

    store: str
    domain: Optional[str] = None
    point: str = LATEST
    uri: Optional[str] = None
    expect: Optional[str] = None
    timeout: float = 300.0
    work_dir: str = SHARED_DIR
    keep: bool = True
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class ListOptions:
    store: str
    domain: Optional[str] = None
    as_of: Optional[str] = None


@late_dataclass(frozen=True)
class StatusOptions:
    """domain: also a pattern of the shell, None: all. max_age: of the newest sound point. expect: names
    or uuids of the domains that are to have one."""

    store: str
    domain: Optional[str] = None
    max_age: Optional[float] = None
    expect: Optional[list[str]] = None


@late_dataclass(frozen=True)
class ShowOptions:
    """point: an id is looked for in all domains of the store. definition: show that of its domain instead."""

    store: str
    point: str
    domain: Optional[str] = None
    definition: bool = False
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class DiffOptions:
    """before, after: points of one series, in any order; disk: only that one."""

    store: str
    before: str
    after: str
    domain: Optional[str] = None
    disk: Optional[str] = None
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class RemoveOptions:
    """points: as of show. now: files go at once, though somebody may still read them. dry_run: only tell."""

    store: str
    points: list[str]
    domain: Optional[str] = None
    now: bool = False
    dry_run: bool = False


@late_dataclass(frozen=True)
class UndeleteOptions:
    """points: as of show; with as_of also ALL_POINTS."""

    store: str
    points: list[str]
    domain: Optional[str] = None
    as_of: Optional[str] = None


@late_dataclass(frozen=True)
class _Domains:
    """domain: also a pattern of the shell, None: all."""

    store: str
    domain: Optional[str] = None


@late_dataclass(frozen=True)
class _Rules:
    """keep_…, time_zone: see repository/retention.py; None: no rule."""

    keep_last: Optional[int] = None
    keep_hourly: Optional[int] = None
    keep_daily: Optional[int] = None
    keep_weekly: Optional[int] = None
    keep_monthly: Optional[int] = None
    keep_yearly: Optional[int] = None
    keep_within: Optional[float] = None
    time_zone: Optional[str] = None

    @property
    def rules(self) -> dict[str, Any]:
        """Those that were told."""
        told = {name: value for name, value in vars(self).items() if name.startswith("keep_") or name == "time_zone"}
        return {name: value for name, value in told.items() if value is not None}


@late_dataclass(frozen=True)
class _Locks:
    """immutable_for: so long nobody can remove what is made in an object store, from then on; 0: not at all, None: as
    it is. lock_mode: a word of the class of that name, None: as it is, or COMPLIANCE."""

    immutable_for: Optional[float] = None
    lock_mode: Optional[str] = None


@late_dataclass(frozen=True)
class PolicyOptions(_Locks, _Rules, _Domains):
    """domain: of those that the policy is for; without rules, the name of one. remove: the policy of just that."""

    remove: bool = False


@late_dataclass(frozen=True)
class PruneOptions(_Rules, _Domains):
    """Without rules those of the store count. force: also where more than half of a domain's points would go. now,
    dry_run: as of remove. repack_below, repack_limit: see repack.Wanted; 0: nothing is repacked."""

    force: bool = False
    repack_below: float = 0.5
    repack_limit: Optional[int] = None
    now: bool = False
    dry_run: bool = False
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class _TwoStores:
    """dest: a store. domain: also a pattern of the shell, None: all."""

    store: str
    dest: str
    domain: Optional[str] = None


@late_dataclass(frozen=True)
class CopyOptions(_Rules, _TwoStores):
    """points: ids, or ALL_POINTS; empty: those that are newer than what dest has, and which the rules keep, where there
    are any. max_rate: of what is read. dry_run: only tell. dest_identities: files that open dest; empty: those that
    open store. unseal: what is sealed may be copied into a dest that is not."""

    points: list[str] = field(default_factory=list)
    max_rate: Optional[int] = None
    max_duration: Optional[float] = None
    dry_run: bool = False
    identities: list[str] = field(default_factory=list)
    dest_identities: list[str] = field(default_factory=list)
    unseal: bool = False


@late_dataclass(frozen=True)
class CompareOptions(_TwoStores):
    """What is compared."""


@late_dataclass(frozen=True)
class PinOptions:
    """point: as of show. reason: why it is to stay."""

    store: str
    point: str
    domain: Optional[str] = None
    reason: str = ""


@late_dataclass(frozen=True)
class _Recipients:
    """recipients: public keys of age or ssh that are to open a store; passphrase_file: of a passphrase that is to."""

    recipients: list[str] = field(default_factory=list)
    passphrase_file: Optional[str] = None


@late_dataclass(frozen=True)
class InitOptions(_Locks, _Recipients):
    """store: to be made; sealed, where somebody is to open it. group: of the system, that may read it."""

    store: str = ""
    group: Optional[str] = None


@late_dataclass(frozen=True)
class KeyOptions(_Recipients):
    """action: a word of KeyAction. key: that is to be removed, by its name, label or recipient. label: of a new one.
    force: remove and rotate even where no identity at hand opens the store afterwards."""

    action: str = KeyAction.LIST
    store: str = ""
    key: Optional[str] = None
    label: str = ""
    force: bool = False
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class UsageOptions:
    """domain: also a pattern of the shell, None: all."""

    store: str
    domain: Optional[str] = None


@late_dataclass(frozen=True)
class IndexOptions:
    """As of show. disk: its name."""

    store: str
    point: str
    disk: str
    domain: Optional[str] = None
    identities: list[str] = field(default_factory=list)
