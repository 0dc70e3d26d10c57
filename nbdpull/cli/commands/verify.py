"""verify: check a store for damage, or compare an image with a point."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from ...core import errors
from ...core.choices import IMAGE_KINDS, Level
from ...core.errors import Check, Report
from ...core.sizes import shown as size
from ...operations.options.restores import AgainstOptions
from ...operations.options.restores import VerifyOptions as Options
from .. import terminal, types, usage
from ..output import Outcome

SUMMARY = "check a store for damage"
EXAMPLE = "verify dir/"


def add(parser: usage.Parser) -> None:
    usage.add_store(parser, Options)
    usage.add(parser, Options, "--domain", metavar="D", help="only this domain")
    usage.add(parser, Options, "--point", metavar="ID", help="only this point, and everything that it refers to")
    level = parser.add_mutually_exclusive_group()
    usage.add(level, Options, "--level", choices=Level.WORDS,
              help="files: sizes and digests of files; frames: of every frame as well")  # fmt: skip
    level.add_argument(
        "--quick", dest="level", action="store_const", const=Level.FILES, help="the same as --level files"
    )
    usage.add(level, AgainstOptions, "--against", dest="image", metavar="IMAGE",
              help="compare this image file or NBD URI with the point")  # fmt: skip
    usage.add(parser, AgainstOptions, "--disk", metavar="D",
              help="with --against: the disk, if the point has more than one")  # fmt: skip
    usage.add(parser, AgainstOptions, "--format", dest="kind", choices=IMAGE_KINDS,
              help="with --against: format of the image (default: by its first bytes)")  # fmt: skip
    usage.add(parser, Options, "--oldest", action="store_true",
              help="file by file, least recently checked first: use it with --max-duration")  # fmt: skip
    usage.add(parser, Options, "--sample", metavar="P%", type=types.share,
              help="check this share, chosen at random in each run")  # fmt: skip
    usage.add(parser, Options, "--shard", metavar="I/N", type=types.shard,
              help="check part I of N; I always selects the same data")  # fmt: skip
    usage.add(parser, Options, "--max-duration", metavar="T", type=types.duration,
              help="stop after this time: 90s, 15m, 2h")  # fmt: skip
    usage.add(parser, Options, "--heal-from", metavar="STORE",
              help="replace damaged and missing files by intact ones from this store")  # fmt: skip
    usage.add_as_of(parser, Options)
    usage.add_no_record(parser, Options)
    usage.add_readers(parser, Options)
    usage.add_identities(parser, Options)
    usage.add_output(parser)


def run(args: Namespace, report: Report, check: Check) -> Outcome:
    if hasattr(args, "image"):
        if hasattr(args, "oldest") or hasattr(args, "heal_from"):
            raise errors.UsageError("--oldest and --heal-from are for the files of a store, not for --against")
        return _against(args, report, check)
    if hasattr(args, "disk") or hasattr(args, "kind"):
        raise errors.UsageError("--disk and --format are for --against")
    from ...operations import verify

    options = usage.options(Options, args)
    found = verify.verify(options, report, check)
    values = {
        "points": found.points,
        "files": found.files,
        "frames": found.frames,
        "raw_bytes": found.raw_bytes,
        "level": options.level,
        "sample": options.sample,
        "shard": options.shard,
        "oldest": options.oldest,
        "complete": found.complete,
        "damages": [vars(damage) for damage in found.damages],
        "healed": [each._asdict() for each in found.healed],
        "verdicts": [each._asdict() for each in found.verdicts],
        "too_new": [vars(each) for each in found.too_new],
    }
    refused = errors.FormatTooNew.exit_code if found.too_new else 0
    code = errors.Damaged.exit_code if found.is_bad else refused
    return Outcome(values, _lines(values), code, domain=found.domain, warnings=found.warnings)


def _lines(values: dict[str, Any]) -> Iterator[str]:
    """Yield what was found, and the resulting verdict on each point."""
    damages = values["damages"]
    for damage in damages:
        where = " ".join(damage[name] for name in ("point", "disk") if damage[name])
        yield f"DAMAGE {where}: {damage['problem']}"
    for each in values["healed"]:
        yield f"HEALED {each['path']} of {each['domain']}" if each["domain"] else f"HEALED {each['path']}"
    reported = {damage["point"] for damage in damages}
    for each in values["verdicts"]:
        if each["verdict"] == "damaged" and each["point"] not in reported:
            yield f"DAMAGED {each['point']}: refers to damaged data, found at {each['when']}"
    yield from (f"TOO NEW {each['point']}: {each['problem']}" for each in values["too_new"])
    looked = ", ".join(terminal.count(values[f"{what}s"], what) for what in ("point", "file", "frame"))
    found = terminal.count(len(damages), "damage") if damages else "no damage"
    part = " in the part that was checked" if terminal.part(values) or not values["complete"] else ""
    yield f"{looked} ({size(values['raw_bytes'])}): {found}{part}"
    if not values["complete"]:
        yield "The time limit was reached before everything was checked."
    if values["oldest"] and values["verdicts"]:
        yield _oldest(values["verdicts"])


def _oldest(verdicts: list[dict[str, Any]]) -> str:
    """Return how far all runs together have progressed."""
    unproved = [each["point"] for each in verdicts if each["verdict"] in (None, "partial")]
    if unproved:
        return f"Not all files of {terminal.count(len(unproved), 'point')} of {len(verdicts)} have been checked yet."
    oldest = min((each["when"] for each in verdicts if each["verdict"] == "ok"), default="")
    return f"The oldest check is from {oldest[:16].replace('T', ' ')} UTC." if oldest else "No point is sound."


def _against(args: Namespace, report: Report, check: Check) -> Outcome:
    from ...operations import against

    options = usage.options(AgainstOptions, args)
    found = against.against(options, report, check)
    values = {
        "point": found.point.id,
        "disk": found.disk,
        "equal": found.equal,
        "sample": options.sample,
        "shard": options.shard,
        "complete": found.complete,
        "size": found.size,
        "compared_bytes": found.compared_bytes,
        "differences": [{"offset": offset, "length": length} for offset, length in found.differences],
    }
    code = errors.Differs.exit_code if found.differences else 0
    return Outcome(values, _compared(options.image, values), code, domain=found.domain)


def _compared(image: str, values: dict[str, Any]) -> Iterator[str]:
    for each in values["differences"]:
        yield f"DIFFERS bytes {each['offset']} to {each['offset'] + each['length']}"
    disk = "disk {disk} at point {point}".format(**values)
    looked = f"{size(values['compared_bytes'])} of {size(values['size'])}"
    if values["equal"] is None:
        yield f"{image}: no difference from {disk} in the part that was checked ({looked})"
    else:
        part = "" if values["complete"] else f"; only a part was checked ({looked})"
        yield f"{image} {'equals' if values['equal'] else 'differs from'} {disk}{part}"
