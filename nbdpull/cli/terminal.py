"""How results look to a person: bars, tables and lines. Must not know: how anything is done, or the JSON output.

Names, reasons and paths come from domains and stores, and whoever wrote them may have had the terminal in mind. So a
result is a list of lines, and each goes through `plain` when it is printed (cli.py).
"""

from __future__ import annotations

import sys

from ..core.sizes import shown as size


def plain(line):
    """The line without what a terminal would obey, or show otherwise than where it stands: control characters, those
    that turn the direction of writing, line ends. They are written as Python writes them: \\x1b, \\u202e, \\n."""
    return line if line.isprintable() else "".join(map(_plain_character, line))


def _plain_character(character):
    return character if character.isprintable() else ascii(character)[1:-1]


class Bars:
    """A bar a disk on the terminal (stderr), fed with progress events; silent where stderr is no terminal."""

    def __init__(self, counter):
        """counter: the member of an event that counts the bytes moved."""
        self._counter = counter
        self._tasks: dict = {}
        self._progress = None

    def __call__(self, event=None, disk=None, **values):
        if event == "progress" and disk is not None and sys.stderr.isatty():
            progress = self._started()
            if disk not in self._tasks:
                self._tasks[disk] = progress.add_task(plain(disk), total=values["size"], moved="")
            moved = size(values[self._counter])
            progress.update(self._tasks[disk], completed=values["position"], moved=moved)

    def _started(self):
        if self._progress is None:
            from rich import console, progress

            self._progress = progress.Progress(
                progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
                progress.TaskProgressColumn(), progress.TextColumn("{task.fields[moved]}"),
                progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
                console=console.Console(stderr=True),
            )  # fmt: skip
            self._progress.start()
        return self._progress

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self._progress is not None:
            self._progress.stop()


def table(headings, rows):
    """Rows of texts as aligned lines; without colours, so that a pipe and a terminal show the same."""
    lines = [[plain(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def disks(point):
    """The disks of a described point."""
    headings = ("DISK", "MODE", "REASON", "SIZE", "DIRTY", "ZERO", "READ", "STORED")
    counts = ("size", "dirty_bytes", "zero_bytes", "read_bytes", "stored_bytes")
    return table(
        headings, [(d["name"], d["mode"], d["reason"], *(size(d[count]) for count in counts)) for d in point["disks"]]
    )


def restored(result):
    """The disks of a restore: what of each was written, how fast, and where it is."""
    rows = []
    for disk, written in result["written_bytes"].items():
        rate = f"{size(result['sizes'][disk] / max(result['seconds'], 1e-3))}/s"
        rows.append((disk, size(result["sizes"][disk]), size(written), rate, result["files"][disk]))
    return table(("DISK", "SIZE", "WRITTEN", "RATE", "TARGET"), rows)


def plan(told):
    """What a pull would read."""
    headings = ("DISK", "MODE", "REASON", "SIZE", "DIRTY", "ZERO", "DATA", "EXTENTS", "STORED ABOUT")
    counts = ("size", "dirty_bytes", "zero_bytes", "data_bytes")
    rows = [
        (d["name"], d["mode"], d["reason"], *(size(d[count]) for count in counts), str(d["extents"]),
         size(d["stored_bytes_estimate"])) for d in told["disks"]
    ]  # fmt: skip
    since = f"since {told['since']}" if told["since"] else "in full"
    return [f"{told['domain']}, {since}:", "", *table(headings, rows), "", f"about {told['seconds']} s"]


def doctor(findings):
    """What was looked at, and what to do about it."""
    lines = []
    for each in findings:
        lines.append(f"{each['state']:5} {each['subject']}: {each['text']}")
        lines += [f"      -> {each['advice']}"] if each["advice"] else []
    return lines


def points(described):
    """Points as a table, one line each."""
    headings = ("DOMAIN", "POINT", "AS OF", "PARENT", "CHECKPOINT", "DISKS", "STORED", "VERIFIED", "DRILLED")
    return table(headings, [_point_row(point) for point in described])


def _point_row(point):
    shown = ",".join(f"{disk['name']}:{disk['mode']}" for disk in point["disks"])
    stored = size(sum(disk["stored_bytes"] for disk in point["disks"]))
    point = {**point, "parent": _parent(point), "as_of": point["as_of"] or f"before {point['created']}"}
    named = (point[name] or "-" for name in ("domain", "id", "as_of", "parent", "checkpoint"))
    return (*named, shown, stored, _finding(point.get("verified")), _finding(point.get("drilled")))


def _parent(point):
    return (point["parent"] or "-") + (" (partial)" if point["partial"] else "")


_VERDICTS = {"ok": "", "partial": "part", "damaged": "DAMAGED", "base-damaged": "BASE DAMAGED", "failed": "FAILED"}


def _finding(found):
    """When, and in capitals what was not well. A verdict of a part, or of the files alone, says so."""
    if not found:
        return "-"
    word = _VERDICTS.get(found["verdict"], found["verdict"])
    if not word and found.get("level") == "files":
        word = "files"
    return " ".join(filter(None, [(found["when"] or "")[:10], word]))


def _verification(found):
    """All that is known by verifications."""
    yield _finding(found)
    if not found:
        return
    if found["damaged"]:
        yield f"damage on record: {', '.join(found['damaged'])}"
    if last := found["last"]:
        yield f"last look: {last['when']}, {last['level']}{_part(last)}, by {last['who']}"
    covered = found["covered"]
    yield "everything seen since: " + ", ".join(f"{level} {covered[level] or 'never'}" for level in covered)


def _part(looked):
    sample, shard = looked["sample"], looked["shard"]
    shown = [f"{100 * sample:g} %"] if sample else []
    return "".join(f" {each}" for each in [*shown, *(["{}/{}".format(*shard)] if shard else [])])


def verified(outcome):
    """What a verification found, and what of it follows for each point."""
    lines = [_damage(damage) for damage in outcome["damages"]]
    told = {damage["point"] for damage in outcome["damages"]}
    for each in outcome["verdicts"]:
        others = [name for name in each["damaged"] if name != each["point"]]
        if each["verdict"] == "base-damaged":
            lines.append(f"BASE DAMAGED {each['point']}: cannot be restored, as it builds on {', '.join(others)}")
        elif each["verdict"] == "damaged" and each["point"] not in told:
            lines.append(f"ON RECORD {each['point']}: damaged, found at {each['when']} and not looked at again")
    lines += [f"TOO NEW {each['point']}: {each['problem']}" for each in outcome["too_new"]]
    looked = "{points} points, {files} files, {frames} frames".format(**outcome) + f" ({size(outcome['raw_bytes'])})"
    count = len(outcome["damages"])
    part = " in the part looked at" if _part(outcome) or not outcome["complete"] else ""
    lines.append(f"{looked}: {f'{count} damages' if count else 'no damage'}{part}")
    return lines + ([] if outcome["complete"] else ["The time was up before everything was looked at."])


def compared(image, outcome):
    """What a comparison of an image with a disk of a point found."""
    lines = ["DIFFERS bytes {} to {}".format(each["offset"], each["offset"] + each["length"])
             for each in outcome["differences"]]  # fmt: skip
    disk = "disk {disk} at point {point}".format(**outcome)
    looked = f"{size(outcome['compared_bytes'])} of {size(outcome['size'])}"
    if outcome["equal"] is None:
        return [f"{image}: no difference from {disk} in the part looked at ({looked})"]
    part = "" if outcome["complete"] else f"; only a part was looked at ({looked})"
    return lines + [f"{image} {'equals' if outcome['equal'] else 'differs from'} {disk}{part}"]


def _damage(damage):
    where = " ".join(damage[name] for name in ("point", "disk") if damage[name])
    return f"DAMAGE {where}: {damage['problem']}"


def show(point):
    """One point, whole."""
    members = ("id", "domain", "uuid", "as_of", "created", "since", "checkpoint", "parent", "consistency")
    point = {**point, "parent": _parent(point)}
    lines = [f"{name + ':':13}{point[name] if point[name] is not None else '-'}" for name in members]
    labels = ["verified:"]
    for text in _verification(point["verified"]):
        lines.append(f"{labels.pop() if labels else '':13}{text}")
    lines.append(f"{'drilled:':13}{_finding(point['drilled'])}")
    return [*lines, "", *disks(point), *(["", *omitted(point)] if point["not_in_point"] else [])]


def omitted(point):
    """What of the domain is not in a described point."""
    found = point["not_in_point"] or []
    return [f"not in it: {each['what']}{_in_brackets(each['path'])}, it {each['why']}" for each in found]


def _in_brackets(text):
    return f" ({text})" if text else ""


def serving(about):
    """What serve has begun to serve, and how to use it."""
    lines = [f"{about['domain']} at point {about['point']}:"]
    lines += [f"{each['disk']}  {size(each['size'])}  {each['uri']}" for each in about["exports"]]
    return [*lines, "", *(each["overlay"] for each in about["exports"]), "", "Ctrl-C ends it."]
