"""How results look to a person: bars, tables and lines. Must not know: how anything is done, or the JSON output.

Names, reasons and paths come from domains and stores, and may have been written to attack a terminal. So a result is a
list of lines, and each passes through `plain` when it is printed (output.py). What only one verb shows is in its file
in commands/.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from ..core.choices import Level
from ..core.sizes import shown as size

COLUMNS = 80  # of a line that a person reads


def plain(line: str) -> str:
    """Escape what a terminal would interpret, or show in another place: control characters, characters that change the
    writing direction, line ends. They are written as Python writes them: \\x1b, \\u202e, \\n."""
    return line if line.isprintable() else "".join(map(_plain_character, line))


def _plain_character(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class Bars:
    """A bar for each disk on the terminal (stderr), or for each domain if disks do not matter, fed with progress
    events.

    Silent if stderr is not a terminal.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[Any, float]] = {}  # by disk or domain: the bar, and its start time
        self._progress: Any = None

    def __call__(self, event: str, disk: Optional[str] = None, domain: Optional[str] = None, **values: Any) -> None:
        name = disk or domain
        if event == "progress" and name is not None and "size" in values and sys.stderr.isatty():
            progress = self._started()
            if name not in self._tasks:
                self._tasks[name] = progress.add_task(plain(name), total=values["size"], moved=""), time.monotonic()
            task, began = self._tasks[name]
            progress.update(task, completed=values["position"], moved=_moved(values, time.monotonic() - began))

    def _started(self) -> Any:
        if self._progress is None:
            from rich import console, progress

            self._progress = progress.Progress(
                progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
                progress.TaskProgressColumn(), progress.TextColumn("{task.fields[moved]}"),
                progress.TimeRemainingColumn(),
                console=console.Console(stderr=True),
            )  # fmt: skip
            self._progress.start()
        return self._progress

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def rate(count: float, seconds: float) -> str:
    """Return a rate, always in MiB/s, so that rates can be compared."""
    return f"{count / max(seconds, 1e-3) / (1 << 20):.1f} MiB/s"


def _moved(values: dict[str, Any], seconds: float) -> str:
    """Return what was read or written so far, and how fast, counting only bytes that were moved, not skipped ones."""
    if "read_bytes" in values:
        read = values["read_bytes"]
        return f"{size(read)} read, {size(values['stored_bytes'])} stored, {rate(read, seconds)}"
    return f"{size(values['written_bytes'])}, {rate(values['written_bytes'], seconds)}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Align rows of texts as lines; without colours, so that a pipe and a terminal show the same."""
    lines = [[plain(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(headings))]
    return [
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(line, widths)).rstrip() for line in lines
    ]


def folded(head: str, text: str) -> list[str]:
    """Break a text at spaces into lines of 80 columns, the later ones indented; a longer word, such as a path, stays
    whole."""
    import textwrap

    return textwrap.wrap(
        plain(text), COLUMNS, initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes: none for combining characters, two for wide ones."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF") for each in text)


def disks(point: dict[str, Any]) -> list[str]:
    """Return a table of the disks of a described point."""
    headings = ("DISK", "MODE", "REASON", "SIZE", "DIRTY", "READ", "STORED")
    counts = ("size", "dirty_bytes", "read_bytes", "stored_bytes")
    return table(
        headings,
        [(d["name"], mode(d["mode"]), d["reason"], *(size(d[count]) for count in counts)) for d in point["disks"]],
    )


def mode(name: str) -> str:
    """Return the mode of a disk, for a table."""
    return "incr" if name == "incremental" else name


def parent(point: dict[str, Any]) -> str:
    return (point["parent"] or "-") + (" (partial)" if point["partial"] else "")


_VERDICTS = {"ok": "", "partial": "part", "damaged": "DAMAGED", "failed": "FAILED"}


def finding(found: Optional[dict[str, Any]]) -> str:
    """Return the date, and any bad verdict in capitals; a verdict on a part, or only on files, is marked."""
    if not found:
        return "-"
    word = _VERDICTS.get(found["verdict"], found["verdict"])
    if not word and found.get("level") == Level.FILES:
        word = Level.FILES
    return " ".join(filter(None, [(found["when"] or "")[:10], word]))


def short_finding(found: Optional[dict[str, Any]]) -> str:
    """Return `finding` in at most 16 characters: a bad verdict without the date."""
    bad = found and _VERDICTS.get(found["verdict"], "")
    return bad if bad and bad.isupper() else finding(found)


def proof(verified: Optional[dict[str, Any]]) -> str:
    """Return what verifications found about a point, in 9 characters: the age of the oldest proof of its files."""
    if not verified:
        return "-"
    if word := _VERDICTS[verified["verdict"]]:
        return word
    return " ".join([age(verified["age"]), *([Level.FILES] if verified["level"] == Level.FILES else [])])


def age(seconds: float) -> str:
    """Return an age in three or four characters; a time slightly in the future counts as now."""
    for unit, length, most in (("m", 60, 90), ("h", 3600, 48)):
        if abs(seconds) < most * length:
            return f"{round(seconds / length)}{unit}"
    return f"{round(seconds / 86400)}d"


def part(looked: dict[str, Any]) -> str:
    sample, shard = looked["sample"], looked["shard"]
    shown = [f"{100 * sample:g} %"] if sample else []
    return "".join(f" {each}" for each in [*shown, *(["{}/{}".format(*shard)] if shard else [])])


def omitted(point: dict[str, Any]) -> list[str]:
    """Return lines about what of the domain a described point lacks."""
    found = point["not_in_point"] or []
    return [f"not in it: {each['what']}{_in_brackets(each['path'])}, which {each['why']}" for each in found]


def _in_brackets(text: Optional[str]) -> str:
    return f" ({text})" if text else ""


def count(number: int, what: str) -> str:
    """Return a count with its noun: 1 point, 2 points."""
    return f"{number} {what}{'' if number == 1 else 's'}"
