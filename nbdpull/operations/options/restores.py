"""The options of the verbs that read the disks of a point: restore, serve and drill, verify and digest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from ...core.choices import CACHE_BYTES, LATEST, SHARED_DIR, Level


@dataclass(frozen=True)
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
    threads: Optional[int] = None
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


@dataclass(frozen=True)
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
    threads: Optional[int] = None
    identities: list[str] = field(default_factory=list)
    as_of: Optional[str] = None


@dataclass(frozen=True)
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
    threads: Optional[int] = None
    identities: list[str] = field(default_factory=list)
    as_of: Optional[str] = None


@dataclass(frozen=True)
class DigestOptions:
    """The options of digest. point: may also be ALL_POINTS. keep: record the digests in the store."""

    store: str
    domain: Optional[str] = None
    point: str = LATEST
    disks: list[str] = field(default_factory=list)
    keep: bool = True
    threads: Optional[int] = None
    identities: list[str] = field(default_factory=list)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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
