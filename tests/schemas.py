"""The published schemas of nbdpull's --json output, and the validation of what the tests' command lines print."""

import functools
import json
from pathlib import Path

import jsonschema

from nbdpull.cli.commands import VERBS

SCHEMA = json.loads((Path(__file__).parent.parent / "nbdpull/schemas/output.json").read_text())
DOCUMENTS = (
    "init",
    "key",
    "list",
    "status",
    "show",
    "plan",
    "doctor",
    "diff",
    "usage",
    "policy",
    "pin",
    "unpin",
    "undelete",
    "compare",
)  # one each; the others print lines
OF_THE_TESTS = ("held", "alarmed", "missed", "waited")  # events of faults/held.py


@functools.cache
def validator(name):
    """Return the validator of one definition: a verb, or a part of one."""
    assert name in SCHEMA["$defs"], f"nbdpull/schemas/output.json has no $defs/{name}: describe there what it prints"
    return jsonschema.Draft202012Validator({**SCHEMA, "anyOf": [{"$ref": f"#/$defs/{name}"}]})


def line_name(verb, line):
    """Return the name of the definition that a line should match: its error says more than 'is none of these'."""
    if verb == "index":
        return "record"
    if "code" in line and line["event"] == "result":
        return "failure"
    if verb == "verify" and line["event"] in ("result", "progress") and "disk" in line:
        return "verify.against" if line["event"] == "result" else "digest.progress"
    if verb == "serve" and "url" in line:
        return "serve.http"
    return f"{verb}.{line['event']}"


def check_line(verb, line):
    if line.get("event") in OF_THE_TESTS:
        return
    for name in dict.fromkeys((line_name(verb, line), verb)):
        error = jsonschema.exceptions.best_match(validator(name).iter_errors(line))
        assert error is None, f"not as nbdpull/schemas/output.json has it ($defs/{name}): {error.json_path}: {error}"


def check_output(words, output):
    """Validate the whole output of a command line; the last line of a killed one may be cut off."""
    verb = verb_of(words)
    if not output or not verb:
        return
    if verb in DOCUMENTS:
        error = jsonschema.exceptions.best_match(validator(verb).iter_errors(json.loads(output)))
        assert error is None, f"not as nbdpull/schemas/output.json has it ($defs/{verb}): {error.json_path}: {error}"
        return
    for line in output.splitlines(keepends=True):
        if line.endswith(("\n", b"\n")[isinstance(line, bytes)]):
            check_line(verb, json.loads(line))


def verb_of(words):
    """Return the verb of a command line that prints JSON; None if it prints none."""
    words = [*map(str, words)]
    before = words[: words.index("--")] if "--" in words else words
    first = words[0] if words else None
    prints_json = "--json" in before or (first == "index" and "--rebuild" not in before)
    if first == "help" or {"-h", "--help", "--version"} & set(before) or not prints_json:
        return None
    return first if first in VERBS else "pull"
