"""Heal files from another store while they are verified (--heal-from).

Owns: which damaged files are tried, each once in a run, and that everything healed is checked again. Must not know: how
a file is healed (repository/healing.py), which points are checked, and in which order (verify.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

from ..core import errors
from ..format import layout
from ..format.manifest import FileEntry
from ..repository import half_points, healing, series_choice
from ..repository.evidence import Damage
from ..repository.inspection import Depth, Inspector
from ..repository.part import Part
from ..repository.rolling import ONLY_WINDOWS
from ..storage.base import Store
from .options.restores import VerifyOptions as Options
from .verify_run import Run, Tally, TimeIsUp


class Healed(NamedTuple):
    """A damaged file that was replaced, and is what was stored again. domain: "" for a key file of the store."""

    domain: str
    path: str


def _why_lacking(copy: Store, target: Store) -> str:
    """Return what else may be the reason, if the copy is under another seal."""
    if copy.seal.id == target.seal.id or not target.seal.opens:
        return ""
    if target.seal.id is None:
        return " (it is sealed, and this store is not: nothing is unsealed for it)"
    if not copy.seal.opens:
        return " (it has another key: name an identity that opens it, too)"
    return " (it is under another seal: small files are made again, and frames of which the nonce is left)"


class Healer:
    """Heals files of one series, each once in a run.

    run: what is known by now; complete: whether the time sufficed; healed: the files. Its errors become warnings, as
    the findings of verify must be reported in any case.
    """

    def __init__(self, run: Run, copy: Store, options: Options, depth: Depth) -> None:
        self.run, self.complete, self.healed = run, True, list[Healed]()
        self._copy, self._options, self._depth = copy, options, depth
        self._tried: set[FileEntry] = set()
        self._doubted: dict[str, None] = {}  # paths of files that were damaged, and later sound without being healed
        self._unseen: list[str] = []  # paths of healed or doubted files that were not yet checked again in all points

    def heal(self) -> list[str]:
        """Heal the recorded damages, as far as there is time; return the paths of files that are sound without that."""
        run = self.run
        found: dict[healing.Outcome, list[healing.Tried]] = {outcome: [] for outcome in healing.Outcome}
        try:
            for each in self._each():
                found[each.outcome].append(each)
        except TimeIsUp:
            self.complete = False
        except (errors.Busy, errors.OutputError, errors.StoreError, errors.Damaged) as error:
            run.warn(f"damages of {run.target.domain} were not healed: {error}")
        for each in found[healing.Outcome.UNWRITTEN]:
            run.warn(f"a damaged file was not healed: {each.problem}")
        for each in found[healing.Outcome.HEALED]:
            if each.problem:
                run.warn(each.problem)
        if lacking := found[healing.Outcome.LACKING]:
            more = f", nor {len(lacking) - 1} more damaged files" if lacking[1:] else ""
            path, why = lacking[0].path, _why_lacking(self._copy, run.target.store)
            run.warn(f"{self._copy.root} does not have an intact {path} of {run.target.domain}{more}{why}")
        healed = [each.path for each in found[healing.Outcome.HEALED]]
        self.healed += [Healed(run.target.domain, path) for path in healed]
        self._unseen += healed
        return [each.path for each in found[healing.Outcome.SOUND]]

    def _each(self) -> Iterator[healing.Tried]:
        run, known = self.run, self.run.evidence.known
        damaged = [each for each in run.points if known.recorded(each)]
        if damaged:
            last = run.points[-1].manifest
            with half_points.writing(run.target, "verify"):
                copy = series_choice.of_domain(self._copy, last.domain, last.uuid)
                yield from healing.heal(run.target, copy, damaged, known, self._tried, self._depth.check)

    def heal_found(self, damages: list[Damage]) -> list[Damage]:
        """Heal the damages that are recorded now, and check the healed files again; for a healed directory, also
        everything that it names. Return those of these damages that remain, and new ones."""
        self._doubt(self.heal())
        while self._unseen:
            paths, self._unseen = self._unseen, []
            tally = Tally(lambda **_: None)
            depth = replace(self._depth, part=self._part_again(paths))
            self.run = Run(self.run.target, self._options, depth, tally, self.run.warnings)
            left = damages
            if self._has_looked_again(depth, {*paths}):
                left = [each for each in damages if each.path not in paths]
            wanted = {each.id for each in self.run.points} if self._options.point else None
            found = [each for each in tally.damages if wanted is None or each.point in wanted]
            damages = list(dict.fromkeys([*left, *found]))
            self._doubt(self.heal())
        bad = {each.path for each in damages}  # a file that was written may read wrong
        self.healed = [each for each in self.healed if each.path not in bad]
        if cured := [each for each in self._doubted if each not in bad]:
            more = f", and so are {len(cured) - 1} more files" if cured[1:] else ""
            self.run.warn(
                f"{cured[0]} of {self.run.target.domain} was damaged, and is intact now{more}: another run has "
                "replaced it, or its medium sometimes returns wrong data"
            )
        return damages

    def _doubt(self, sound: list[str]) -> None:
        """Have files that were damaged, and then were not, checked again. Once: a medium may read wrong for ever."""
        new = [path for path in sound if path not in self._doubted]
        self._doubted.update(dict.fromkeys(new))
        self._unseen += new

    def _part_again(self, paths: Collection[str]) -> Part:
        """Return the part to check again besides the recorded damages."""
        run = self.run
        lists_all = run.evidence.known.lists_all(run.evidence.points)
        return ONLY_WINDOWS if lists_all and all(map(layout.CHUNK_PATH.match, paths)) else Part()

    def _has_looked_again(self, depth: Depth, paths: Collection[str]) -> bool:
        """Check the recorded damages of the points in this run again, then those of other points with a damage in one
        of these files; return whether there was time."""
        run, known = self.run, self.run.evidence.known
        inspector = Inspector(run.target, depth, run.report)
        own, ids = [each for each in run.points if known.recorded(each)], {each.id for each in run.points}
        others = [each for each in run.evidence.points if each.id not in ids and known.names(each, paths)]
        try:
            for point in [*own, *others]:
                inspector.inspect(run.evidence.look(point))
        except TimeIsUp:
            self.complete = False
        finally:
            run.conclude()
        return self.complete
