"""The state that each disk of a pull starts from: the checkpoint of a committed point, or nothing.

Owns: the rule that a base is never wrong. An incremental is allowed only if the checkpoint is the very one made with a
point of our store (or one that the user named), its bitmap has recorded without a gap, and the disk is the one that the
point holds. In doubt a disk is pulled in full, with a reason code. If libvirt lost the metadata of a checkpoint
(transient or migrated domain), the checkpoint is defined again from the XML in the point; libvirt then checks each
bitmap.

Must not know: NBD, how a backup runs, what is printed.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from ..core import errors
from ..core.errors import Check
from ..definitions import domain_xml
from ..definitions.domain_xml import Checkpoint, Disk
from ..format import findings, layout
from ..format.manifest import FULL, INCREMENTAL, CheckpointEntry
from ..repository import series, verdict
from ..repository.points import Points
from .token import Before

if TYPE_CHECKING:  # Proof is also used where libvirt is not installed
    from ..hypervisor import domain

Decision = tuple[str, str]  # mode, reason

# Reasons for which a disk is pulled in full although an incremental was expected: --on-lost-base applies to these.
LOST = {
    "checkpoint-lost": "the checkpoint of the newest point is gone",
    "checkpoint-replaced": "the checkpoint of the newest point was replaced",
    "chain-broken": "what the newest point has of it cannot be read",
    "parent-damaged": "the point that it would build on is damaged, and not all of the damage is known",
    "bitmap-lost": "its bitmap is missing or invalid, as after a crash of QEMU or of the host",
    "source-changed": "it has another image now",
    "shrunk": "it is smaller than it was",
}


@dataclass(frozen=True)
class Base:
    """The state that incremental disks start from.

    point: the one made with the checkpoint, None if the series has none; before: the disks at that time, by target,
    None if unknown.
    """

    checkpoint: Checkpoint
    point: Optional[series.Point]
    before: Optional[Mapping[str, Before]] = None
    whole: frozenset[str] = frozenset()  # disks of the point that are whole images, except for the files in `bad`
    broken: frozenset[str] = frozenset()  # disks of the point whose directory cannot be read
    damaged: frozenset[str] = frozenset()  # disks in which a verification found more damage than it recorded
    bad: Mapping[str, frozenset[str]] = field(default_factory=dict)  # damaged and missing files of the others, by disk

    def size(self, target: str) -> Optional[int]:
        """Return the size of a disk at that time, in bytes; None if unknown."""
        known = self.before.get(target) if self.before else None
        return known.size if known else None


@dataclass(frozen=True)
class Choice:
    """What each disk starts from.

    base: None if every disk is pulled in full; decisions: (mode, reason) by target; like: if base is None, the newest
    point with which the disks are compared, so that data that is stored already is not stored again.
    """

    base: Optional[Base]
    decisions: dict[str, Decision]
    warnings: list[str] = field(default_factory=list)
    given_back: list[str] = field(default_factory=list)  # checkpoints that libvirt had lost and that were redefined
    like: Optional[Base] = None

    @property
    def parent(self) -> Optional[series.Point]:
        """The Point over which the new one is laid, or None."""
        known = self.base or self.like
        return known.point if known else None

    def below(self, target: str) -> Optional[series.Point]:
        """Return the Point over which one disk is laid, or None. A disk that is pulled in full is laid only over an
        intact whole image."""
        known = self.base or self.like
        if self.start(target) or known is None or target in known.whole - known.damaged:
            return self.parent
        return None

    def bad(self, target: str) -> frozenset[str]:
        """Return the paths of the damaged and missing files of the point over which a disk is laid."""
        known = self.base or self.like
        return known.bad.get(target, frozenset()) if known else frozenset()

    @property
    def since(self) -> Optional[str]:
        """The name of the checkpoint that incrementals start from; None if there are none, or if it is unknown."""
        return (self.base.checkpoint.name or None) if self.base else None

    @property
    def is_foreign(self) -> bool:
        """Whether incrementals start from a checkpoint of which only the name is known."""
        return self.base is not None and self.base.before is None

    def start(self, target: str) -> Optional[str]:
        """Return the name of the checkpoint that a disk starts from; None if it is pulled in full."""
        incremental = self.base and self.decisions[target][0] == INCREMENTAL
        return self.base.checkpoint.name if self.base and incremental else None

    def dirty_from(self, disk: Disk) -> int:
        """Return the offset from which the bitmap is meaningless: the part by which a disk grew has no bits set, and no
        base either."""
        before = self.base.size(disk.target) if self.base else None
        return min(before, disk.size) if before is not None else disk.size

    def whole_parent(self, target: str) -> Optional[series.Point]:
        """Return the Point with the whole image that an incremental of this disk changes, or None."""
        return self.parent if self.base and target in self.base.whole and self.start(target) else None

    def described(self, disks: Iterable[Disk]) -> list[dict[str, Any]]:
        """Return the disks as the event "start" lists them."""
        return [
            {"name": disk.target, "size": disk.size, "mode": mode, "reason": reason}
            for disk in disks
            for mode, reason in [self.decisions[disk.target]]
        ]

    @property
    def lost(self) -> dict[str, str]:
        """{target: reason} of the disks that are pulled in full because their base was lost."""
        return {target: reason for target, (_, reason) in self.decisions.items() if reason in LOST}

    def lost_warnings(self) -> list[str]:
        return [
            f"disk {target} is read in full although an incremental was expected: {LOST[reason]} ({reason})"
            for target, reason in self.lost.items()
        ]

    def require_not_lost(self) -> None:
        """Raise CheckpointUnusable if the base of a disk was lost."""
        lost = [f"{target} ({reason})" for target, reason in self.lost.items()]
        if lost:
            raise errors.CheckpointUnusable(
                f"no usable base for an incremental of {', '.join(lost)}: --on-lost-base=full pulls in full"
            )


def choose(
    vm: domain.Domain,
    target: Optional[series.Series],
    points: Points,
    disks: list[Disk],
    since: Optional[str] = None,
    full: bool = False,
    check: Check = lambda: None,
) -> Choice:
    """Decide what each Disk of `disks` starts from.

    points: those of the Series `target`; since: name of the checkpoint to start from, None: that of the newest point
    that has one. check() is called while files are verified. NoSuchCheckpoint and Unsupported are raised only for a
    checkpoint named by `since`.
    """
    finder = _Finder(vm, target, points, disks, check)
    base, why_none = (None, "requested") if full else finder.named(since) if since is not None else finder.newest()
    base = base and finder.looked_through(base)
    decisions = {disk.target: decide(disk, base, why_none) for disk in disks}
    like = None
    if all(mode == FULL for mode, _ in decisions.values()):
        base, like = None, finder.sound(base if base and base.whole else finder.like())
    if base:
        finder.warn_of_partial(base, decisions)
    choice = Choice(base, decisions, finder.warnings, finder.given_back, like)
    choice.warnings.extend(choice.lost_warnings())
    return choice


def decide(disk: Disk, base: Optional[Base], why_none: str) -> Decision:
    """Return (mode, reason) for one disk. base: if None, the reason is `why_none`."""
    if disk.format != "qcow2":
        return FULL, f"{disk.format}-has-no-bitmaps" if base or why_none in LOST else why_none
    if disk.bitmaps is False:
        return FULL, "qcow2-v2-has-no-bitmaps" if base or why_none in LOST else why_none
    if base is None:
        return FULL, why_none
    if disk.target not in base.checkpoint.disks:
        return FULL, "not-in-checkpoint"
    if not base.checkpoint.disks[disk.target]:
        return FULL, "bitmap-lost"
    if base.before is None:
        return INCREMENTAL, "checkpoint"
    return _decide_by_before(disk, base, base.before.get(disk.target))


def _decide_by_before(disk: Disk, base: Base, before: Optional[Before]) -> Decision:
    if before is None:
        return FULL, "not-in-parent"
    if before.source != disk.source:
        return FULL, "source-changed"
    if before.size > disk.size:
        return FULL, "shrunk"
    if disk.target in base.broken:
        return FULL, "chain-broken"
    if disk.target in base.damaged:
        return FULL, "parent-damaged"
    if base.bad.get(disk.target):
        return INCREMENTAL, "healed"
    return INCREMENTAL, "grown" if before.size < disk.size else "checkpoint"


def of_point(checkpoint: Checkpoint, point: series.Point) -> Base:
    """Return the Base of a checkpoint that was made with a Point. Its files are not checked yet, see Proof."""
    return Base(checkpoint, point, {disk.name: Before(disk.size, disk.source) for disk in point.manifest.disks})


def why_unfit(checkpoint: Checkpoint, disks: list[Disk]) -> str:
    """Return the reason code if a checkpoint cannot be the base of any of the disks, "" if it can."""
    if any(checkpoint.disks.get(disk.target) for disk in disks):
        return ""
    return "bitmap-lost" if any(disk.target in checkpoint.disks for disk in disks) else "not-in-checkpoint"


class _Stored(NamedTuple):
    """What the store has of a disk of a point.

    is_whole: not only the changes since a state that is not stored; flaw: why the disk cannot be used at all, or "";
    bad: why some of its files cannot be used, by path.
    """

    is_whole: bool
    flaw: str = ""
    bad: Mapping[str, str] = {}


class Proof:
    """What the store says about a base, whoever made its checkpoint. warnings: what the operator should know about the
    base."""

    def __init__(self, target: Optional[series.Series], check: Check) -> None:
        self._target, self._check = target, check
        self.warnings: list[str] = []

    @property
    def _series(self) -> series.Series:
        """The series, for callers that have one of its points."""
        if self._target is None:
            raise errors.StoreError("there is no store yet")
        return self._target

    def looked_through(self, base: Base) -> Base:
        """Return the Base with what is known of its files: a point laid over a lost file could not be restored."""
        if base.point is None:
            return base
        with self._series.store.looking(self._series.folder):
            return self._looked_through(base, base.point)

    def _looked_through(self, base: Base, point: series.Point) -> Base:
        every = findings.load(self._series)
        self.warnings += findings.left_out(self._series, every)
        known = verdict.Known([point], every)
        recorded = {disk: known.damaged_files(point, disk) for disk in point.disks}
        disks = {disk: self._stored(point, disk, paths or {}) for disk, paths in recorded.items()}
        found = replace(
            base,
            whole=frozenset(disk for disk, stored in disks.items() if stored.is_whole),
            broken=frozenset(disk for disk, stored in disks.items() if stored.flaw),
            damaged=frozenset(disk for disk, paths in recorded.items() if paths is None),
            bad={disk: frozenset(stored.bad) for disk, stored in disks.items() if stored.bad},
        )
        self._warn_of_damage(point, disks, found.damaged, known)
        return found

    def _warn_of_damage(
        self, point: series.Point, disks: Mapping[str, _Stored], damaged: Collection[str], known: verdict.Known
    ) -> None:
        for disk, stored in disks.items():
            if flaw := stored.flaw or ("it has more damage than is recorded" if disk in damaged else ""):
                self.warnings.append(f"no new point builds on disk {disk} of point {point.id}: {flaw}")
            elif stored.bad:
                first, *more = stored.bad.values()
                others = f", and {len(more)} more files" if more else ""
                self.warnings.append(
                    f"disk {disk} of point {point.id} is damaged ({first}{others}): the data of the damaged "
                    "files is read again, and the new point does not use them"
                )
        if known.recorded(point) and not damaged and not any(each.flaw or each.bad for each in disks.values()):
            self.warnings.append(f"point {point.id} is damaged, but the new point does not use the damaged parts")

    def _stored(self, point: series.Point, disk: str, recorded: Collection[str]) -> _Stored:
        """Check the files of a disk; of chunk files, only the sizes. recorded: paths of files recorded as damaged."""
        try:
            found = self._series.directory(point, disk, partial=True)
        except errors.Failure as error:
            return _Stored(is_whole=False, flaw=str(error))
        bad = {}
        for entry in found.files:
            if entry.path in recorded:
                flaw: Optional[str] = f"{entry.path}: damage is recorded"
            elif layout.CHUNK_PATH.match(entry.path):
                flaw = self._series.size_flaw(entry)
            else:
                flaw = self._series.file_flaw(entry, self._check)
            bad.update({entry.path: flaw} if flaw else {})
        return _Stored(is_whole=found.whole, bad=bad)


class _Finder(Proof):
    """A search for a base."""

    def __init__(
        self,
        vm: domain.Domain,
        target: Optional[series.Series],
        points: Points,
        disks: list[Disk],
        check: Check,
    ) -> None:
        super().__init__(target, check)
        self._vm, self._points, self._disks = vm, points, disks
        self.given_back: list[str] = []

    def named(self, name: str) -> tuple[Base, str]:
        """Return (Base of the checkpoint of this name, "")."""
        if not self._vm.supports_checkpoints:
            raise errors.Unsupported(
                f"--since {name}: this libvirt or QEMU is too old for checkpoints (libvirt 7.6 and QEMU 6.1 have them)"
            )
        if name not in self._vm.checkpoints.names():
            for point, made in _with_checkpoint(self._points.newest_first()):
                if made.name == name and self._given_back(point, name):
                    break
        checkpoint = self._vm.checkpoints.get(name)
        made_with = self._points.get(checkpoint.run_id or "")
        if made_with and is_of(made_with, checkpoint):
            return of_point(checkpoint, made_with), ""
        return Base(checkpoint, None), ""

    def _warn_of_another_store(self) -> None:
        """Warn if a backup of this domain is elsewhere: the store may be a mount point without its disk."""
        if self._target is None or not self._vm.supports_checkpoints:
            return
        made = [each.name for each in self._vm.checkpoints.known() if each.run_id]
        if made:
            self.warnings.append(
                f"this is the first point of the domain here, but the backup that made its checkpoint {made[-1]} is "
                "elsewhere: if it should be here, check that the store is mounted"
            )

    def newest(self) -> tuple[Optional[Base], str]:
        """Return (Base of the newest point whose checkpoint still exists, "") or (None, why there is none).

        Points without whole images are considered only if there are no others: a series must not continue with points
        that cannot be restored by themselves.
        """
        if self._points.newest is None:
            self._warn_of_another_store()
            return None, "first-point"
        if not self._vm.supports_checkpoints:
            return None, "no-checkpoint-support"
        existing = set(self._vm.checkpoints.names())
        none = None, "no-checkpoint"
        newest_first = self._points.newest_first() if self._newest_whole() is None else self._whole()
        for number, (point, made) in enumerate(_with_checkpoint(newest_first)):
            base, why = self._of_point(point, made.name, existing)
            if base:
                return base, ""
            none = none if number else (None, why)  # report why the newest one is unusable
        return none

    def like(self) -> Optional[Base]:
        """Return the newest point with whole images, with which disks that are read in full are compared; or None."""
        newest = self._newest_whole()
        if newest is None or not {disk.target for disk in self._disks} & {*newest.disks}:
            return None
        return self.looked_through(of_point(Checkpoint("", 0, "", {}, ""), newest))

    def sound(self, like: Optional[Base]) -> Optional[Base]:
        """Return `like` if it has an intact image of any of the disks, else None."""
        sound = like.whole - like.damaged if like else frozenset()
        return like if sound & {disk.target for disk in self._disks} else None

    def _whole(self) -> Iterator[series.Point]:
        """Return the points with whole images of all their disks, the newest first."""
        return (point for point in self._points.newest_first() if not point.manifest.partial)

    def _newest_whole(self) -> Optional[series.Point]:
        return next(self._whole(), None)

    def warn_of_partial(self, base: Base, decisions: dict[str, Decision]) -> None:
        """Warn if the next point will be partial, in a series that has points with whole images."""
        partial = base.point.manifest.partial if base.point else set(decisions)
        chosen = [target for target, (mode, _) in decisions.items() if mode == INCREMENTAL and target in partial]
        if chosen and (whole := self._newest_whole()):
            self.warnings.append(
                f"the new point holds only what changed on {', '.join(chosen)} since {base.checkpoint.name}, and the "
                f"store has no whole image of that time: it is partial, and latest stays {whole.id}"
            )

    def _of_point(self, point: series.Point, name: str, existing: Container[str]) -> tuple[Optional[Base], str]:
        """Return (Base of a point with a checkpoint, "") or (None, why it cannot be a base). existing: names of
        checkpoints."""
        if name not in existing and not self._given_back(point, name):
            return None, "checkpoint-lost"
        checkpoint = self._vm.checkpoints.get(name)
        if not is_of(point, checkpoint):
            return None, "checkpoint-replaced"
        if why := why_unfit(checkpoint, self._disks):
            return None, why
        return of_point(checkpoint, point), ""

    def _given_back(self, point: series.Point, name: str) -> bool:
        """Define a checkpoint that libvirt lost again, from the XML in the point; return whether that succeeded."""
        xml = stored_checkpoint(self._series, point)
        if xml is None or not self._vm.checkpoints.redefine(xml):
            return False
        self.given_back.append(name)
        self.warnings.append(f"libvirt had lost checkpoint {name}; it was defined again from point {point.id}")
        return True


def _with_checkpoint(points: Iterable[series.Point]) -> Iterator[tuple[series.Point, CheckpointEntry]]:
    return ((point, point.manifest.checkpoint) for point in points if point.manifest.checkpoint)


def stored_checkpoint(target: series.Series, point: series.Point) -> Optional[str]:
    """Return the checkpoint definition that a Point of the Series contains; None if it has none, or if that defines
    another checkpoint: anybody who can write to the store may have written it."""
    try:
        xml = (target.read_file(point, layout.CHECKPOINT_XML) or b"").decode()
        return xml if is_of(point, domain_xml.parse_checkpoint(xml, with_size=False)) else None
    except (errors.Damaged, ValueError):
        return None


def is_of(point: series.Point, checkpoint: Checkpoint) -> bool:
    """Return whether this is the very checkpoint made with the point, not one of the same name from another time.

    Comparing the time is not enough: it is in whole seconds, and a name can be reused within one.
    """
    made = point.manifest.checkpoint
    return made is not None and (
        (made.name, made.creation_time, point.id) == (checkpoint.name, checkpoint.creation_time, checkpoint.run_id)
    )
