"""JSON objects as dataclasses: only the members of a class, with their declared types, are kept.

Anybody may have written what is read from a store, so a value is used only after its type was checked. Owns: which JSON
value has which type, and how to report a wrong one. Must not know: what a member means, files.
"""

from __future__ import annotations

import functools
import re
import reprlib
from dataclasses import MISSING, fields, is_dataclass
from typing import (
    Any,
    Callable,
    ClassVar,
    NoReturn,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

MAX_INTEGER = (1 << 64) - 1
MAX_TEXT = 4096  # characters
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # surrogates: bytes of a command line that are not UTF-8

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = SHORT = 80  # characters


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


_D = TypeVar("_D", bound=_Dataclass)
_Read = Callable[[Any, str], Any]  # (value, name of the member) -> the value; ValueError


def short(value: object) -> str:
    """Format a value for a message: as Python writes it, and never longer than a line."""
    text = _SHORT.repr(value)
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."


def flaw_of_text(text: str) -> str:
    """Return why a text that a user gave cannot be written as JSON that every reader accepts, "" if it can."""
    if len(text) > MAX_TEXT:
        return f"has more than {MAX_TEXT} characters"
    return "is not text in UTF-8" if _NO_TEXT.search(text) else ""


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object that json has parsed, as its object_pairs_hook; ValueError if a member is given twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member twice")
    return found


def build(kind: type[_D], document: object) -> _D:
    """Return the dataclass `kind` made from a JSON object.

    Members that it does not have are dropped. ValueError names a member that is missing or has the wrong type.
    """
    if type(document) is not dict:
        raise ValueError(f"{short(document)} instead of an object")
    values = {}
    for name, needed, read in _members(kind):
        if name in document:
            values[name] = read(document[name], name)
        elif needed:
            raise ValueError(f"{name} is missing")
    return kind(**values)


@functools.lru_cache(None)
def _members(kind: type[_Dataclass]) -> list[tuple[str, bool, _Read]]:
    """Return (name, whether it has no default, the function that reads it) for each member of a dataclass."""
    hints = get_type_hints(kind)
    return [
        (field.name, (field.default, field.default_factory) == (MISSING, MISSING), _reader(hints[field.name]))
        for field in fields(kind)
    ]


def typed(hint: Any, value: Any, name: str) -> Any:
    """Return a JSON value as the type that it should have, ValueError if it has another."""
    return _reader(hint)(value, name)


@functools.lru_cache(None)
def _reader(hint: Any) -> _Read:
    """Return the function that `typed` uses for one type: a manifest has thousands of members of a few types."""
    origin, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return lambda value, name: build(cast(Any, hint), value) if type(value) is dict else _refuse(name, value)
    if hint is Any:
        return lambda value, name: value
    if origin is Union:  # Optional
        read = _reader(inner[0])
        return lambda value, name: None if value is None else read(value, name)
    if origin is list:
        read = _reader(inner[0])
        return lambda value, name: [read(each, name) for each in _of(list, value, name)]
    if origin is dict:
        key, read = map(_reader, inner)
        return lambda value, name: {key(k, name): read(each, name) for k, each in _of(dict, value, name).items()}
    return {float: _number, int: _integer, str: _text}.get(hint) or functools.partial(_plain, hint)


def _of(kind: type, value: Any, name: str) -> Any:
    return value if type(value) is kind else _refuse(name, value)


def _plain(hint: Any, value: Any, name: str) -> Any:
    return value if type(value) is hint else _refuse(name, value)  # a bool is an int in Python, but not in JSON


def _number(value: Any, name: str) -> Any:
    return value if type(value) in (int, float) else _refuse(name, value)


def _integer(value: Any, name: str) -> Any:
    return value if type(value) is int and 0 <= value <= MAX_INTEGER else _refuse(name, value)


def _text(value: Any, name: str) -> Any:
    return value if type(value) is str and len(value) <= MAX_TEXT and "\0" not in value else _refuse(name, value)


def _refuse(name: str, value: object) -> NoReturn:
    raise ValueError(f"{name} is {short(value)}")
