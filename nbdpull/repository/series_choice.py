"""The series of a store, and which of them a user or a run means.

Owns: the name of a series' domain, and the error if a name matches no series, or several. Must not know: what is in a
point.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Optional

from ..core import errors
from ..core.choices import LATEST
from ..format import layout
from ..storage.base import Store
from .series import Point, Series


def all_series(store: Store, among: Optional[list[Series]] = None) -> list[Series]:
    """Return the Series of every domain in the store that has a folder. lost+found and the like are ignored. among:
    only these series, from `folders`."""
    with ExitStack() as looking:
        return [*_named(store, folders(store) if among is None else among, looking)]


def holding(store: Store, wanted: str) -> list[tuple[Series, list[str]]]:
    """Return (Series, ids of its points that begin with `wanted`) for each series that has such points. Only the points
    of these series are read, to find the name of the domain."""
    every = folders(store)
    found = {each: names for each, names in zip(every, store.several(lambda each: each.named(wanted), every)) if names}
    return [*zip(all_series(store, [*found]), found.values())]


def folders(store: Store) -> list[Series]:
    """Return the Series of every folder in the store, with the domain's name from the folder's name: no point is
    read."""
    names = ((layout.domain_name(folder), folder) for folder in store.folders())
    return [Series(store, name, folder) for name, folder in names if name is not None]


def _named(store: Store, every: list[Series], looking: ExitStack) -> dict[Series, list[str]]:
    """Return {Series with the domain's name from its newest point: result of `newest_first`}. The name of the folder
    may be an old name of the domain, or differ from the name because not every name can be a folder's.

    looking: keeps the view of the folder open (see Store.looking) if there is only one; a view may hold a descriptor,
    or a listing of a bucket.
    """
    found: dict[Series, list[str]] = {}
    for each in every:
        names: list[str] = []
        with ExitStack() as own, suppress(errors.StoreError):  # an unreadable one hides no other
            (looking if len(every) == 1 else own).enter_context(store.looking(each.folder))
            names = each.newest_first()
            if newest := each.newest_of(names):
                each = Series(store, newest.manifest.domain, each.folder)
        found[each] = names
    return found


def _meant(store: Store, domain: Optional[str], looking: ExitStack) -> dict[Series, list[str]]:
    """Return what `_named` returns, for the series among which a domain is chosen. If a domain is named, not every
    point of all other series is read: their last points show whether they have the same name, too."""
    every = folders(store)
    if domain is not None and len(every) > 1:
        may_be = store.several(partial(_may_be, domain), every)
        some = [each for each, is_one in zip(every, may_be) if is_one]
        with ExitStack() as own:
            found = _named(store, some, own)
            if _domains(_of([*found], domain)) == 1:
                looking.enter_context(own.pop_all())
                return found
    return _named(store, every, looking)


def _may_be(domain: str, each: Series) -> bool:
    """Return whether a user may mean this series by the name or UUID of a domain."""
    if each.folder == layout.folder_name(domain):
        return True
    try:
        manifests = [point.manifest for point in each.begun_last()]
    except (errors.Damaged, errors.StoreError):
        return True
    return any(domain == one.domain or domain.lower() == one.uuid for one in manifests)


def renamed(series: Series, points: Sequence[Point]) -> Series:
    """Return the Series with the domain's name from its newest point."""
    return Series(series.store, points[-1].manifest.domain, series.folder) if points else series


def of_domain(store: Store, name: str, uuid: str) -> Series:
    """Return the Series that a pull of the domain continues: the one with its UUID, whatever the domain's name was
    then; else the one with its name, which may be new."""
    home = Series(store, name)
    known = home.uuid()
    if known == uuid or (known is None and home.load()[1]):  # unreadable points may be the domain's
        return home
    every = folders(store)
    uuids = store.several(Series.uuid, every)
    others = [Series(store, name, each.folder) for each, known in zip(every, uuids) if known == uuid]
    return max(others, key=Series.is_where_it_began, default=home)


def only_series(store: Store, domain: Optional[str] = None) -> Series:
    """Return the Series of `domain`, a name or a UUID, or of the store's only domain. StoreError lists the domains."""
    with ExitStack() as looking:
        return _only(store, [*_meant(store, domain, looking)], domain)


def only_point(
    store: Store, domain: Optional[str] = None, wanted: str = LATEST, looking: Optional[ExitStack] = None
) -> tuple[Series, Point]:
    """Return what `only_series` returns, and the point from Series.point.

    The latest point is found from the names read to choose the series, because reading a thousand points once takes
    longer than all the rest. looking: until it ends, names and sizes in the series may be returned as they were then,
    see Store.looking; None: until this function returns.
    """
    with ExitStack() as own:
        every = _meant(store, domain, looking or own)
        target = _only(store, [*every], domain)
        if len(every) > 1:
            (looking or own).enter_context(store.looking(target.folder))
        return target, target.latest_of(every[target]) if wanted == LATEST else target.point(wanted)


def _only(store: Store, every: list[Series], domain: Optional[str]) -> Series:
    found = _of(every, domain) if domain is not None else _with_points(every)
    domains = len(found) if domain is None else _domains(found)
    named = "" if domain is None else f" {domain}"
    known = f"; it has: {_names(every)}" if every else ""
    if domains > 1:
        raise errors.StoreError(f"more than one domain{named} in {store.root}{known}; choose with --domain")
    if not found:
        raise errors.StoreError(f"no domain{named or ' at all'} in {store.root}{known}")
    if len(found) == 1:
        return found[0]
    return max(found, key=lambda series: (series.uuid() is not None, series.is_at_home, series.is_where_it_began()))


def _domains(found: list[Series]) -> int:
    """Return the number of different domains of these series, as far as their UUIDs are known."""
    return len({each.uuid() for each in found} - {None})


def _with_points(every: list[Series]) -> list[Series]:
    """Return the series without folders that a failed first pull left, or that are not nbdpull's; all if no others
    exist."""
    return every if len(every) == 1 else [each for each in every if any(each.load())] or every


def _of(every: list[Series], domain: str) -> list[Series]:
    """Return the series of a domain by its name, else by its UUID or by the name that it had when the series began. A
    point must confirm that earlier name, because any folder can be renamed."""
    by_name = [series for series in every if series.domain == domain]
    folder = layout.folder_name(domain)
    return by_name or [
        series
        for series in every
        if series.uuid() == domain.lower() or (series.folder == folder and series.is_where_it_began())
    ]


def _names(every: list[Series]) -> str:
    """Return the names as text; with UUIDs if two series have the same name."""
    names = [series.domain for series in every]
    shown = [f"{each.domain} (uuid {each.uuid()})" if names.count(each.domain) > 1 else each.domain for each in every]
    return ", ".join(dict.fromkeys(shown))
