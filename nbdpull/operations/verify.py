"""Verify: is everything in the store what was stored?

Owns: which points are checked, in which order and for how long; or, with --oldest, that the files proved longest ago
are checked first. With a sample, a shard or a time limit, only a part is checked, and the result says so. Must not
know: how a point is checked (see inspection.py), which file is next (rolling.py), what is recorded of a series
(verify_run.py), what is healed (verify_heal.py), libvirt, what is printed.
"""

from __future__ import annotations

import logging
import operator
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Optional

from ..core import deadline, errors, sizes
from ..core.errors import Check, Report
from ..repository import immutable, marker, series_choice
from ..repository.evidence import Damage, Evidence
from ..repository.inspection import Depth, Inspector, TooNew
from ..repository.part import Part
from ..repository.rolling import ONLY_WINDOWS, Rolling
from ..repository.series import Point
from ..storage.base import Store
from . import earlier, reading, unlocking, verify_keys
from .options.restores import VerifyOptions as Options
from .verify_heal import Healed, Healer
from .verify_run import Outcome, Run, Tally, TimeIsUp, Verdict

log = logging.getLogger("nbdpull.verify")
_UNPROVED = (
    "{} is sealed, and there is no identity: it was not proved that its manifests were made with its key, only that "
    "the files are those that they name"
)


@dataclass(frozen=True)
class Result:
    """What was checked, and every Damage and TooNew found, except for what was healed.

    domain: None if there are several; complete: whether the time sufficed for everything that should be checked;
    verdicts: of every point that should be checked; warnings: what is no damage, but should be known.
    """

    domain: Optional[str]
    points: int
    files: int
    frames: int
    raw_bytes: int
    damages: list[Damage]
    healed: list[Healed]
    too_new: list[TooNew]
    verdicts: list[Verdict]
    warnings: list[str]
    complete: bool

    @property
    def is_bad(self) -> bool:
        """Whether a point that should be checked cannot be restored, by all that is known."""
        return bool(self.damages) or any(each.is_bad for each in self.verdicts)


def verify(options: Options, report: Report = lambda **event: None, check: Check = lambda: None) -> Result:
    """Check one point with everything that it refers to, or every point (of one domain).

    What was found is recorded even if `check` ends the run.
    """
    _require_fitting(options)
    if options.as_of is not None:
        options = replace(earlier.seen(options), keep=False)
    copy = None if options.heal_from is None else marker.open_store(options.heal_from)
    opened, one = marker.open_store(options.store), (options.domain, options.point) != (None, None)
    keys = verify_keys.looked_at(opened, copy)
    unlocking.unlock(opened, options.identities)
    if copy is not None:
        _unlock(copy, opened, options)
    wanted = [series_choice.only_series(opened, options.domain)] if one else series_choice.folders(opened)
    part = ONLY_WINDOWS if options.oldest else Part(options.sample, options.shard, options.max_duration)
    threads = reading.threads(opened, options.threads)
    depth = Depth(options.level, part, threads, _until(options.max_duration, check))
    tally = Tally(report)
    runs = [Run(target, options, depth, tally) for target in wanted]
    if copy is not None:
        immutable.begin(opened)
    healers = [] if copy is None else [Healer(run, copy, options, depth) for run in runs]
    outcomes, damages = _looked_and_healed(runs, healers, options, depth, tally)
    verdicts = [each for outcome in outcomes for each in outcome.verdicts]
    none = [] if verdicts else [f"{opened.root} has no points: nothing was verified"]
    locked = [] if opened.seal.opens else [_UNPROVED.format(opened.root)]
    return Result(
        domain=outcomes[0].domain if len(outcomes) == 1 else None,
        points=tally.points,
        files=tally.files,
        frames=tally.frames,
        raw_bytes=tally.raw_bytes,
        damages=damages,
        healed=[*keys.healed, *(each for healer in healers for each in healer.healed)],
        too_new=tally.too_new,
        verdicts=verdicts,
        warnings=[
            *opened.warnings(),
            *keys.warnings,
            *(each for outcome in outcomes for each in outcome.warnings),
            *none,
            *locked,
        ],
        complete=all(outcome.complete for outcome in outcomes),
    )


def _unlock(copy: Store, opened: Store, options: Options) -> None:
    """Unlock the store to heal from, if the identities open it: under another seal, it has other files."""
    if copy.seal.id is not None and copy.seal.id == opened.seal.id:
        copy.seal = opened.seal
    elif copy.seal.id is not None and opened.seal.opens:
        with suppress(errors.KeyNeeded):
            unlocking.unlock(copy, options.identities)


def _require_fitting(options: Options) -> None:
    if options.oldest and (options.point or options.sample or options.shard or not options.keep):
        raise errors.UsageError(
            "--oldest relies on the records of all files: it takes no --point, --sample, --shard, --no-record"
        )
    if options.heal_from is not None and options.as_of is not None:
        raise errors.UsageError("--as-of only reads: bring points back with nbdpull undelete, then heal them")
    if options.heal_from is not None and not options.keep:
        raise errors.UsageError("--heal-from relies on the records: it takes no --no-record")


def _looked_and_healed(
    runs: list[Run], healers: list[Healer], options: Options, depth: Depth, tally: Tally
) -> tuple[list[Outcome], list[Damage]]:
    """Check and heal the series; return (their outcomes, the damages that remain)."""
    for healer in healers:  # recorded damages first: at the end, a time limit might never leave time for them
        healer.heal()
    outcomes = _by_files(runs, depth, tally) if options.oldest else [_by_points(run, depth, tally) for run in runs]
    damages = tally.damages
    for healer in healers:
        damages = healer.heal_found(damages)
    if healers:
        outcomes = [each.run.outcome(each.complete and old.complete) for each, old in zip(healers, outcomes)]
    return outcomes, damages


def _until(seconds: Optional[float], check: Check) -> Check:
    is_over = deadline.after(seconds)

    def check_both() -> None:
        check()
        if is_over():
            raise TimeIsUp

    return check_both


def _by_points(run: Run, depth: Depth, tally: Tally) -> Outcome:
    """Check all points of a series, or the one that was asked for."""
    complete = True
    try:
        _look(run.points, run.evidence, Inspector(run.target, depth, run.report), depth, tally)
    except TimeIsUp:
        complete = False
    finally:  # even if the user ends the run, damage that was seen is recorded
        run.conclude()
    return run.outcome(complete)


def _by_files(runs: list[Run], depth: Depth, tally: Tally) -> list[Outcome]:
    """Check the files of several series, those that were proved longest ago first."""
    rolling = [Rolling(run.evidence, depth, run.report) for run in runs]
    complete = True
    try:
        while left := [each for each in rolling if each.next is not None]:
            min(left, key=lambda each: each.next or "").go_on()
    except TimeIsUp:
        complete = False
    finally:
        ledgers = [each.conclude() for each in rolling]
        for run, proved in zip(runs, ledgers):
            run.conclude(proved)
    tally.points += sum(each.points for each in rolling)
    if not complete and not any(ledgers):
        runs[0].warn("the time was too short to prove a single file: the next run will get no further")
    return [run.outcome(complete) for run in runs]


def _look(points: list[Point], evidence: Evidence, inspector: Inspector, depth: Depth, tally: Tally) -> None:
    if depth.part.max_duration is not None:  # first what was checked longest ago: else no run would reach the end
        points = sorted(points, key=evidence.known.last_look)
    for point in points:
        depth.check()
        tally.points += 1
        before, began = tally.counts, time.monotonic()
        inspector.inspect(evidence.look(point))
        files, frames, size, damages = map(operator.sub, tally.counts, before)
        log.info(
            "point %s: %d files, %d frames (%s), damages: %d, %.1f s",
            point.id, files, frames, sizes.shown(size), damages, time.monotonic() - began,
        )  # fmt: skip
