"""Costs as tables and as JSON. Must not know: how they were measured."""

import statistics


def medians(measured):
    """Return {tool: [dataclass of figures, …]} as {tool: {figure: median, "spread": [least, most]}}.

    The spread is that of the wall time, of a writer's p99, or of a figure. What is not a number is that of the last
    round.
    """
    return {tool: _median(each) for tool, each in measured.items()}


def _median(each):
    columns = {name: [getattr(one, name) for one in each] for name in vars(each[0])}
    result = {name: statistics.median(values) if isinstance(values[0], (int, float)) else values[-1]
              for name, values in columns.items()}  # fmt: skip
    chief = next(columns[name] for name in ("wall", "p99", "value") if name in columns)
    return {**result, "spread": [min(chief), max(chief)]}


def table(scenario, rows):
    if all("value" in row for row in rows.values()):
        return figure_table(scenario, rows)
    return cost_table(scenario, rows) if "wall" in rows["nbdpull"] else view_table(scenario, rows)


def figure_table(scenario, rows):
    """Return figures and their limits as text."""
    lines = [scenario, f"  {'':26}{'median':>9}   {'spread':>17}  wanted"]
    for what, row in rows.items():
        least, most = (f"{each:.3g}" for each in row["spread"])
        lines.append(f"  {what:26}{row['value']:9.4g} {row['unit']:4}{f'{least}–{most}':>15}  {_wanted(row)}".rstrip())
    return "\n".join(lines)


def _wanted(row):
    if row["at_most"] is None:
        return ""
    return f"at most {row['at_most']:g}: {'MISSED' if is_missed(row) else 'kept'}"


def is_missed(row):
    """Return whether a figure exceeds its limit."""
    return row.get("at_most") is not None and row["value"] > row["at_most"]


def view_table(scenario, rows):
    """Return what a writer experienced, in milliseconds of a write, p99 also as a ratio to that without a backup; and
    the size of scratch after each quarter of the time."""
    lines = [scenario, f"  {'':26}{'p50 ms':>8}{'p99 ms':>8}{'spread':>15}{'p99 ratio':>11}{'p99.9 ms':>10}"
             f"{'writes/s':>10}{'writes':>8}{'took s':>8}  scratch, MiB after each quarter"]  # fmt: skip
    for tool, row in rows.items():
        spread = f"{row['spread'][0]:.2f}–{row['spread'][1]:.2f}"
        ratio = f"{row['p99'] / rows['no backup']['p99']:.2f}" if "no backup" in rows else ""
        lines.append(
            f"  {tool:26}{row['p50']:8.2f}{row['p99']:8.2f}{spread:>15}{ratio:>11}{row['p999']:10.2f}"
            f"{row['rate']:10.0f}{row['count']:8.0f}{row['seconds']:8.1f}  {_quarters(row['growth'])}"
        )
    return "\n".join(lines)


def _quarters(growth):
    """Return the maximum of [(seconds, bytes), …] up to a quarter, a half, three quarters and the end, in MiB."""
    sizes = [size >> 20 for _, size in growth]
    if not any(sizes):
        return ""
    begun = sizes[next(at for at, size in enumerate(sizes) if size) :]
    return " ".join(str(max(begun[: max(1, len(begun) * part // 4)])) for part in (1, 2, 3, 4))


def cost_table(scenario, rows, ours="nbdpull"):
    """Return one scenario as text: medians, and our times and size as a ratio to each other tool's."""
    lines = [f"{scenario}", f"  {'':26}{'wall s':>8}{'spread':>15}{'cpu s':>8}{'qemu s':>8}"
             f"{'MiB peak':>10}{'MB':>8}{'GB/s':>7}{'wall ratio':>12}{'cpu ratio':>11}{'size ratio':>12}"]  # fmt: skip
    for tool, row in rows.items():
        spread = f"{row['spread'][0]:.2f}–{row['spread'][1]:.2f}"
        ratios = _ratios(rows[ours], row) if tool != ours else ""
        lines.append(
            f"  {tool:26}{row['wall']:8.2f}{spread:>15}{row['cpu']:8.2f}{row['qemu_cpu']:8.2f}{row['peak_mib']:10.0f}"
            f"{row['size'] / 1e6:8.1f}{_rate(row)}{ratios}"
        )
    return "\n".join(lines)


def _rate(row):
    return f"{row['data'] / row['wall'] / 1e9:7.2f}" if row["data"] else f"{'':7}"


def _ratios(ours, theirs):
    """Return the ratios in the columns of their figures; blank if there is nothing to compare."""
    columns = (("wall", 12), ("cpu", 11), ("size", 12))
    return "".join(
        f"{ours[name] / theirs[name]:{width}.2f}" if theirs[name] and ours[name] else " " * width
        for name, width in columns
    )


def regressions(now, before, allowed=0.15):
    """Return lines that say where nbdpull's wall time, as a ratio to another tool's in the same run, grew too much.

    Ratios, because two runs are never on the same machine; without another tool, the plain wall time.
    """
    found = []
    for scenario, rows in now.items():
        for tool in rows:
            new, old = _wall_against(now, scenario, tool), _wall_against(before, scenario, tool)
            if new and old and new > old * (1 + allowed):
                found.append(f"{scenario}: {new:.2f} against {tool}, was {old:.2f}")
    return found


def _wall_against(results, scenario, tool):
    rows = results.get(scenario, {})
    if tool not in rows or "wall" not in rows.get("nbdpull", {}):
        return None
    if tool == "nbdpull":
        return rows["nbdpull"]["wall"] if len(rows) == 1 else None
    return rows["nbdpull"]["wall"] / rows[tool]["wall"]
