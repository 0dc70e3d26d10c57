"""nbdpull/schemas/output.json: it agrees with the manual and the program, and refuses everything else."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import schemas
from documents import code, section, table

from nbdpull.cli.commands import VERBS
from nbdpull.cli.output import SCHEMA as VERSION
from nbdpull.core import errors

PROJECT = Path(__file__).parent.parent
MANUAL = (PROJECT / "docs/nbdpull.1.md").read_text()
DEFINITIONS = schemas.SCHEMA["$defs"]
DOCUMENTS = {
    "a point": "point",
    "verified of a point": "verified",
    "a status": "status",
    "an empty store": "init",
    "object_store of an empty store": "object-store",
    "keys of a store": "key",
    "a policy": "policy",
    "points brought back": "undelete",
    "a usage": "usage",
    "a comparison": "compare",
    "a plan": "plan",
    "a record": "record",
}
SAMPLES = [json.loads(line) for line in (PROJECT / "tests/data/output.jsonl").read_text().splitlines()]


def headings():
    """Return {heading of a table of members in the manual: its definition}."""
    found = {"event result of a failure": "failure", **DOCUMENTS}
    for event, verb, option in re.findall(r"^### event (\S+) of (\S+)(?: --(\S+))?$", MANUAL, re.MULTILINE):
        if option:
            found[f"event {event} of {verb} --{option}"] = f"{verb}.{option}"
        elif verb != "a":
            found[f"event {event} of {verb}"] = f"{verb}.{event}"
    return found


def resolved(schema):
    while "$ref" in schema:
        schema = DEFINITIONS[schema["$ref"].rpartition("/")[2]]
    return schema


def types(schema):
    """Return the names of the JSON types that it allows."""
    schema = resolved(schema)
    if "anyOf" in schema:
        return {name for each in schema["anyOf"] for name in types(each)}
    if "type" in schema:
        return {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
    names = {str: "string", bool: "boolean", int: "integer", type(None): "null"}
    return {names[type(value)] for value in schema.get("enum", [schema.get("const")])}


def members(schema):
    """Return {path: schema} of an object, as in the tables of the manual, with the lists of objects themselves."""
    found = {}
    for name, each in resolved(schema)["properties"].items():
        found[name] = each
        items = resolved(each).get("items", {})
        if "properties" in resolved(items):
            found.update({f"{name}[].{inner}": inside for inner, inside in members(items).items()})
    return found


@pytest.mark.parametrize("heading", headings())
def test_the_members_are_those_of_the_manual(heading):
    name = headings()[heading]
    assert name in DEFINITIONS, f"nbdpull/schemas/output.json has no $defs/{name} for the manual's {heading!r}"
    found, rows = members(DEFINITIONS[name]), {code(row[0])[0]: row[1] for row in table(section(MANUAL, heading))}
    if "event" in found:
        found = {path: schema for path, schema in found.items() if path not in ("time", "schema", "domain")}
        assert list(found)[0] == "event"
    for path, words in rows.items():
        assert path in found, f"$defs/{name} lacks {path}"
        assert types(found[path]) == {word.partition(" of ")[0] for word in words.split(" or ")}, (name, path)
    lists = {path.partition("[].")[0] for path in rows if "[]" in path}
    documented = {path for path in found if "[]" not in path and path not in lists}
    documented |= {path for path in found if path.partition("[].")[0] in lists and "[]" in path}
    assert documented == set(rows), f"the manual's {heading!r} and $defs/{name}"


def test_each_verb_has_one():
    missing = [verb for verb in VERBS if verb not in DEFINITIONS]
    assert not missing, f"describe in nbdpull/schemas/output.json ($defs) what these print with --json: {missing}"
    assert [each["$ref"] for each in schemas.SCHEMA["anyOf"]] == [f"#/$defs/{verb}" for verb in VERBS]


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(schemas.SCHEMA)
    text = json.dumps(schemas.SCHEMA)
    used = set(re.findall(r"#/\$defs/([\w.-]+)\"", text))
    assert used == set(DEFINITIONS), "each is of use, and each that is referred to is there"


def test_its_codes_match_the_program():
    classes, found = [errors.NbdpullError], set()
    while classes:
        kind = classes.pop()
        found.add(kind.code)
        classes += kind.__subclasses__()
    assert set(DEFINITIONS["failure-code"]["enum"]) == found
    reasons = {code(row[0])[0] for row in table(section(MANUAL, "REASON CODES"))}
    assert set(DEFINITIONS["reason"]["anyOf"][0]["enum"]) == reasons - {"FORMAT-has-no-bitmaps"}
    consistent = {code(row[0])[0] for row in table(section(MANUAL, "CONSISTENCY"))}
    assert set(DEFINITIONS["consistency-reason"]["enum"]) == consistent | {""}
    assert {each["properties"]["schema"]["const"] for each in lines().values()} == {VERSION}


def lines():
    return {name: each for name, each in DEFINITIONS.items() if "event" in each.get("properties", {})}


def ids(sample):
    return f"{sample['verb']} {sample['is']}"


def test_each_line_and_document_has_a_sample():
    """Samples of real runs, in tests/data/output.jsonl: {"verb": …, "is": the definition, "value": what was
    printed}."""
    documents = {
        "init",
        "key",
        "list",
        "status",
        "show",
        "plan",
        "doctor",
        "record",
        "diff",
        "usage",
        "policy",
        "pinned",
        "undelete",
        "compare",
    }
    wanted = {*lines(), *documents} - {"loss"}
    assert {sample["is"] for sample in SAMPLES} == wanted


@pytest.mark.parametrize("sample", SAMPLES, ids=ids)
def test_a_sample_is_right_and_a_made_up_or_missing_member_is_not(sample):
    for name in (sample["is"], sample["verb"]):
        schemas.validator(name).validate(sample["value"])
    valid = schemas.validator(sample["is"]).is_valid
    top = sample["value"][0] if isinstance(sample["value"], list) else sample["value"]
    for name in top:
        value = copy.deepcopy(sample["value"])
        changed = value[0] if isinstance(value, list) else value
        before = changed.pop(name)
        assert not valid(value), f"without {name}"
        changed[name] = [{}, {}] if not isinstance(before, list) else 1.5
        assert not valid(value), f"another type of {name}"
        changed[name] = before
        changed["made_up"] = None
        assert not valid(value)
