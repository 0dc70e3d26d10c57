"""The text of the documents, for tests that compare the program with them."""

import re
from pathlib import Path

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()


def blocks(text, kind):
    """Return the contents of the fenced blocks of a kind."""
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def section(text, heading):
    """Return the text below a heading, up to the next heading of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n", text, re.MULTILINE)
    assert found, f"no section {heading!r}"
    rest = text[found.end() :]
    stop = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: stop.start()] if stop else rest


def table(text):
    """Return the rows of the first table in a text, as lists of cells, without the heading."""
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell):
    """Return the texts in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)
