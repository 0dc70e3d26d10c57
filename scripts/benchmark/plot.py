"""Results as one SVG: bars of wall time and of size, a group for each scenario. Written by hand: a chart needs no
library.

Must not know: how anything was measured.
"""

from html import escape

WIDTH, LABEL, BAR, GAP = 900, 260, 16, 26
COLOURS = {"nbdpull": "#1f77b4"}
OTHER, LIMIT = "#ff7f0e", "#999999"


def svg(results):
    """Return the text of an SVG file; results: {scenario: {tool: {"wall": s, "size": bytes, …}}}."""
    parts, y = [], GAP
    for scenario, rows in results.items():
        costs = {tool: row for tool, row in rows.items() if "wall" in row}
        if costs:
            parts.append(_text(10, y, scenario, "bold"))
            y = _bars(parts, y + 8, costs)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _bars(parts, y, costs):
    longest, largest = (max(row[figure] for row in costs.values()) for figure in ("wall", "size"))
    for tool, row in costs.items():
        colour = COLOURS.get(tool, LIMIT if tool.startswith("limit") else OTHER)
        parts.append(_text(20, y + BAR - 4, tool))
        _bar(parts, LABEL, y, row["wall"] / longest if longest else 0, colour, f"{row['wall']:.2f} s")
        if row["size"]:
            _bar(parts, LABEL + 330, y, row["size"] / largest, colour, f"{row['size'] / 1e6:.1f} MB")
        y += BAR + 2
    return y + GAP


def _bar(parts, x, y, share, colour, label):
    width = max(1, 220 * share)
    parts.append(f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{colour}"/>')
    parts.append(_text(x + width + 5, y + BAR - 4, label))


def _text(x, y, text, weight="normal"):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}">{escape(text)}</text>'
