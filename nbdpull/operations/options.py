"""The options of each verb: one frozen class per verb, with every default.

Owns: every default; the command line, --help and the manual take theirs from here. It imports only core, and each
class is completed on first use, so that every verb starts at once. Must not know: what a verb does with an option, how
an option is written.

In all classes: `domain` is a name or UUID, None the only one of a store; `store` a path; `point` an id or LATEST;
`disks` are names such as vda, empty for all; `uri` is libvirt's, None for its default; `identities` are files of
identities that can open a sealed store; `as_of` is the time as of which a store is read, None: now. Times are in
seconds, sizes in bytes, rates in bytes per second; a limit of None means no limit.
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
    """Return two more than the number of cores available to us: some threads always wait for a disk."""
    return min(len(os.sched_getaffinity(0)) + 2, 16)


@late_dataclass(frozen=True)
class _IntoStore:
    """The options of every pull, whatever it reads from.

    output: the store. since: a checkpoint. on_lost_base, quiesce: a word of the class of that name. checkpoint: see the
    subclasses. exclude: disks not to pull. level: of zstd, None: the pull chooses it. max_rate_file: contains the rate,
    and is read again during the pull. group: a group of the system that may read the store. prune: apply the policy of
    the store once the point is made.
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
    """The options of a pull from libvirt.

    resume, offline: a word of the class of that name. checkpoint: name of the checkpoint to make, None: a unique name.
    socket: path where QEMU creates its socket. nbd: "tcp:HOST:PORT". tls: a folder of certificates. max_in_flight: most
    reads that QEMU gets at once.
    """

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


@late_dataclass(frozen=True)
class RunOptions:
    """The options of run; those not named here are as for pull.

    command: a program and its arguments. since: file with a token, which need not exist; token: file for the token of
    this backup. environment: of the command; stdout: a descriptor, None for ours.
    """

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
    threads: int = field(default_factory=_threads)
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class DoctorOptions:
    """The options of doctor. domain None: check only the host."""

    domain: Optional[str] = None
    uri: Optional[str] = None
    scratch_dir: str = SHARED_DIR


@late_dataclass(frozen=True)
class CleanupOptions:
    """The options of cleanup.

    output: a store, None: clean up only what this machine has recorded of the domain's runs. dry_run: remove nothing.
    """

    domain: str
    output: Optional[str] = None
    uri: Optional[str] = None
    dry_run: bool = False
    stall_timeout: float = STALL_TIMEOUT


@late_dataclass(frozen=True)
class ReleaseOptions:
    """The options of release. dry_run: remove nothing."""

    domain: str
    uri: Optional[str] = None
    dry_run: bool = False
    stall_timeout: float = STALL_TIMEOUT


@late_dataclass(frozen=True)
class _OfCluster:
    """The options of every verb for kubevirt:NAMESPACE/VM but pull. kubeconfig, context: how to reach its cluster."""

    domain: str
    kubeconfig: Optional[str] = None
    context: Optional[str] = None
    stall_timeout: float = STALL_TIMEOUT


@late_dataclass(frozen=True)
class KubevirtPlanOptions(_OfCluster):
    """The options of plan, as for pull. output None: plan for a new store."""

    output: Optional[str] = None
    full: bool = False
    disks: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class KubevirtDoctorOptions(_OfCluster):
    """The options of doctor."""


@late_dataclass(frozen=True)
class KubevirtCleanupOptions(_OfCluster):
    """The options of cleanup. output: the store, which is required. dry_run: remove nothing."""

    output: Optional[str] = None
    dry_run: bool = False


@late_dataclass(frozen=True)
class KubevirtReleaseOptions(_OfCluster):
    """The options of release. dry_run: remove nothing."""

    dry_run: bool = False


@late_dataclass(frozen=True)
class RestoreOptions:
    """The options of restore: what to restore, and where to.

    to: {disk: path of an image, a block device, an NBD URI, or "-"}. output: a folder, or for one disk a target as in
    `to`. kind: a word of IMAGE_KINDS, None: the format of the domain's disk. onto: the targets contain the state that a
    point without a parent builds on; the key None in `to` then means the only disk of the point. image_options: for new
    qcow2 images, as for qemu-img create -o. delta: the targets exist: write only what differs. salvage: restore
    whatever is not damaged. secrets: {disk: path of a file with the secret for its LUKS encryption}. trust_definition:
    keep every host resource that a definition names.
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
    """The options of verify.

    domain, point None: all; a point is verified with everything that it builds on. level: Level.FILES checks the sizes
    and digests of files, FRAMES the digest of every frame as well. sample: share of frames, chosen at random in each
    run; shard: (i, n), the i-th of n parts, the same in each run. oldest: verify file by file, those that were proved
    longest ago first. heal_from: a store whose files replace damaged ones if they are what was stored. keep: record the
    result in the store.
    """

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
    """The options of verify --against.

    image: a file or an NBD URI. disk None: the only one of the point. kind: a word of IMAGE_KINDS, None: detect it from
    the image's header. sample, shard: as for verify.
    """

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
    """The options of digest. point: may also be ALL_POINTS. keep: record the digests in the store."""

    store: str
    domain: Optional[str] = None
    point: str = LATEST
    disks: list[str] = field(default_factory=list)
    keep: bool = True
    threads: int = field(default_factory=_threads)
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class ServeOptions:
    """The options of serve.

    socket: path of the socket to create, port: on 127.0.0.1; without either, a socket in a new folder. writable: let
    clients write, to a layer that is thrown away. cache_bytes: for decompressed frames, for each disk. http: serve over
    HTTP instead, at HOST:PORT or unix:PATH; token_file, tls, client_ca: for HTTP, as for expose.
    """

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
    """The options of expose; those not named here are as for pull.

    listen: HOST:PORT, or unix:PATH. token_file: file with the token that clients have to send. since: file with the
    token of the previous backup, which need not exist; token_out: file for the new one. tls: a folder of certificates,
    for HTTP; client_ca: file with the certificates that verify clients. ttl: time in which a client has to confirm that
    it has the backup. nbd_tls: the option tls of pull.
    """

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
    """The options of drill.

    expect: a regular expression: the guest is up when its serial console shows a match, None: when its agent answers.
    timeout: how long that may take. work_dir: for what the guest writes. keep: record the result in the store.
    """

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
    """The options of status.

    domain: may also be a shell pattern, None: all. max_age: of the newest sound point. expect: names or UUIDs of the
    domains that must have a sound point.
    """

    store: str
    domain: Optional[str] = None
    max_age: Optional[float] = None
    expect: Optional[list[str]] = None


@late_dataclass(frozen=True)
class ShowOptions:
    """The options of show.

    point: an id is searched in all domains of the store. definition: show the definition of its domain instead.
    """

    store: str
    point: str
    domain: Optional[str] = None
    definition: bool = False
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class DiffOptions:
    """The options of diff. before, after: points of one series, in any order; disk: compare only this one."""

    store: str
    before: str
    after: str
    domain: Optional[str] = None
    disk: Optional[str] = None
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class RemoveOptions:
    """The options of remove.

    points: as for show. now: remove files at once, although others may still be reading them. dry_run: remove nothing.
    """

    store: str
    points: list[str]
    domain: Optional[str] = None
    now: bool = False
    dry_run: bool = False


@late_dataclass(frozen=True)
class UndeleteOptions:
    """The options of undelete. points: as for show; with as_of also ALL_POINTS."""

    store: str
    points: list[str]
    domain: Optional[str] = None
    as_of: Optional[str] = None


@late_dataclass(frozen=True)
class _Domains:
    """The domains of a store. domain: may also be a shell pattern, None: all."""

    store: str
    domain: Optional[str] = None


@late_dataclass(frozen=True)
class _Rules:
    """The rules of a policy. keep_…, time_zone: see repository/retention.py; None: no rule."""

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
        """The rules that were given."""
        told = {name: value for name, value in vars(self).items() if name.startswith("keep_") or name == "time_zone"}
        return {name: value for name, value in told.items() if value is not None}


@late_dataclass(frozen=True)
class _Locks:
    """The protection of new objects in an object store.

    immutable_for: how long nobody can remove what is made from now on; 0: no protection, None: unchanged. lock_mode: a
    word of LockMode, None: unchanged, or COMPLIANCE if there is none.
    """

    immutable_for: Optional[float] = None
    lock_mode: Optional[str] = None


@late_dataclass(frozen=True)
class PolicyOptions(_Locks, _Rules, _Domains):
    """The options of policy.

    domain: the name or pattern that the policy is for; without rules, the name of one domain. remove: remove the policy
    of exactly this name or pattern.
    """

    remove: bool = False


@late_dataclass(frozen=True)
class PruneOptions(_Rules, _Domains):
    """The options of prune. Without rules, the policies of the store apply.

    force: continue even if more than half of a domain's points would be removed. now, dry_run: as for remove.
    repack_below, repack_limit: see repack.Wanted; a repack_below of 0 repacks nothing.
    """

    force: bool = False
    repack_below: float = 0.5
    repack_limit: Optional[int] = None
    now: bool = False
    dry_run: bool = False
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class _TwoStores:
    """Two stores. dest: the second one. domain: may also be a shell pattern, None: all."""

    store: str
    dest: str
    domain: Optional[str] = None


@late_dataclass(frozen=True)
class CopyOptions(_Rules, _TwoStores):
    """The options of copy.

    points: ids, or ALL_POINTS; empty: the points that are newer than those of dest, and that the rules keep, if any
    are given. max_rate: of reading. dry_run: copy nothing. dest_identities: files that open dest; empty: those that
    open store. unseal: allow copies from a sealed store into a dest that is not sealed.
    """

    points: list[str] = field(default_factory=list)
    max_rate: Optional[int] = None
    max_duration: Optional[float] = None
    dry_run: bool = False
    identities: list[str] = field(default_factory=list)
    dest_identities: list[str] = field(default_factory=list)
    unseal: bool = False


@late_dataclass(frozen=True)
class CompareOptions(_TwoStores):
    """The options of compare."""


@late_dataclass(frozen=True)
class PinOptions:
    """The options of pin and unpin. point: as for show. reason: why the point is pinned."""

    store: str
    point: str
    domain: Optional[str] = None
    reason: str = ""


@late_dataclass(frozen=True)
class _Recipients:
    """The keys for a store. recipients: public keys of age or ssh; passphrase_file: file with a passphrase."""

    recipients: list[str] = field(default_factory=list)
    passphrase_file: Optional[str] = None


@late_dataclass(frozen=True)
class InitOptions(_Locks, _Recipients):
    """The options of init.

    store: the store to create; it is sealed if a recipient or passphrase is given. group: a group of the system that
    may read it.
    """

    store: str = ""
    group: Optional[str] = None


@late_dataclass(frozen=True)
class KeyOptions(_Recipients):
    """The options of key.

    action: a word of KeyAction. key: the key to remove, by its name, label or recipient. label: of a new key. force:
    remove and rotate even if no available identity opens the store afterwards.
    """

    action: str = KeyAction.LIST
    store: str = ""
    key: Optional[str] = None
    label: str = ""
    force: bool = False
    identities: list[str] = field(default_factory=list)


@late_dataclass(frozen=True)
class UsageOptions:
    """The options of usage. domain: may also be a shell pattern, None: all."""

    store: str
    domain: Optional[str] = None


@late_dataclass(frozen=True)
class IndexOptions:
    """The options of index, also with --rebuild. point: as for show; disk: a name."""

    store: str
    point: str
    disk: str
    domain: Optional[str] = None
    identities: list[str] = field(default_factory=list)
