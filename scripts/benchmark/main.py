"""The benchmark's command line: which scenarios, how often, and where the result goes."""

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

import plot  # noqa: E402
import report  # noqa: E402
from bed.libvirtd import PrivateLibvirt  # noqa: E402
from scenarios import SCENARIOS, Setting  # noqa: E402


def main():
    args = _arguments()
    results = {}
    with PrivateLibvirt() as bed, tempfile.TemporaryDirectory(prefix="nbdpull-bench-", dir=args.folder) as folder:
        setting = Setting(bed, folder, args.scale, args.threads)
        for name in args.scenario:
            costs, began = defaultdict(list), time.monotonic()
            for tool, cost in SCENARIOS[name](setting, args.rounds):
                costs[tool].append(cost)
            results[name] = report.medians(costs)
            print(report.table(f"{name}: {_about(name, args.scale)}", results[name]))
            print(f"  ({time.monotonic() - began:.0f} s with all that was made for it)\n", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    if args.plot:
        Path(args.plot).write_text(plot.svg(results))
    slower = report.regressions(results, json.loads(Path(args.compare).read_text())) if args.compare else []
    for line in slower:
        print(f"REGRESSION {line}")
    missed = [name for name, rows in results.items() if any(map(report.is_missed, rows.values()))]
    if missed:
        print(f"more than is wanted: {', '.join(missed)}")
    return 1 if slower or missed else 0


def _about(name, scale):
    text = " ".join(SCENARIOS[name].__doc__.split())
    return text if scale == 1 else f"{text} At scale {scale:g}."


def _arguments(words=None):
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure nbdpull beside its peers. Medians of paired rounds; ratios are nbdpull over the other.",
    )
    parser.add_argument(
        "scenario", nargs="*", help=f"of: {', '.join(SCENARIOS)}; or years for all of those (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that each tool runs, in turn (default: 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the disks, 1 is 8 GiB with 4 GB of files")
    parser.add_argument("--threads", type=int, help="of nbdpull (default: its own)")
    parser.add_argument("--folder", help="where the runs write (default: the temporary folder)")
    parser.add_argument("--json", metavar="FILE", help="write the medians there")
    parser.add_argument("--plot", metavar="FILE", help="draw wall times and sizes there, as SVG")
    parser.add_argument("--compare", metavar="FILE", help="an earlier --json; exit 1 where nbdpull got 15 %% slower")
    args = parser.parse_args(words)
    unknown = [name for name in args.scenario if not _named(name)]
    if unknown:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    args.scenario = [each for name in args.scenario for each in _named(name)] or list(SCENARIOS)
    return args


def _named(name):
    """Return the scenario with this name, or all whose names begin so."""
    return [name] if name in SCENARIOS else [each for each in SCENARIOS if each.startswith(f"{name}-")]


if __name__ == "__main__":
    sys.exit(main())
