"""JSON objects as dataclasses: the members that a class has, of the types that it says, and no others are kept.

What is read from a store may have been written by anybody: a value is used only after its type was looked at. Owns:
which JSON value is of which type, and how a strange one is named. Must not know: what a member means, files.
"""

from __future__ import annotations

import functools
import reprlib
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

MAX_INTEGER = (1 << 64) - 1
MAX_TEXT = 4096  # characters

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = SHORT = 80  # characters


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


_D = TypeVar("_D", bound=_Dataclass)


def short(value: object) -> str:
    """A value for a message: as Python writes it, and never longer than a line."""
    text = _SHORT.repr(value)
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."


def build(kind: type[_D], document: object) -> _D:
    """Return the dataclass `kind` made of a JSON object. Members that it has not are left out; ValueError names one
    that is missing or not of its type."""
    if type(document) is not dict:
        raise ValueError(f"{short(document)} in the place of an object")
    hints, values = _hints(kind), {}
    for field in _fields(kind):
        if field.name in document:
            values[field.name] = typed(hints[field.name], document[field.name], field.name)
        elif (field.default, field.default_factory) == (MISSING, MISSING):
            raise ValueError(f"{field.name} is missing")
    return kind(**values)


_hints, _fields = functools.lru_cache(None)(get_type_hints), functools.lru_cache(None)(fields)


def typed(hint: Any, value: Any, name: str) -> Any:
    """Return a JSON value as the type that it is to have, ValueError where it has another."""
    is_object, origin, inner = _shape(hint)
    if is_object:
        return build(hint, value) if type(value) is dict else _refuse(name, value)
    if hint is Any:
        return value
    if origin is Union:  # Optional
        return None if value is None else typed(inner[0], value, name)
    if origin is list:
        return [typed(inner[0], each, name) for each in _of(list, value, name)]
    if origin is dict:
        return {typed(inner[0], key, name): typed(inner[1], each, name) for key, each in _of(dict, value, name).items()}
    return _plain(hint, value, name)


@functools.lru_cache(None)
def _shape(hint: Any) -> tuple[bool, Any, tuple[Any, ...]]:
    """A manifest has thousands of members of a few types."""
    return is_dataclass(hint), get_origin(hint), get_args(hint)


def _of(kind: type, value: Any, name: str) -> Any:
    return value if type(value) is kind else _refuse(name, value)


def _plain(hint: Any, value: Any, name: str) -> Any:
    if hint is float:
        return value if type(value) in (int, float) else _refuse(name, value)
    fits = type(value) is hint  # a bool is an int for Python, and none in JSON
    if fits and hint is int:
        fits = 0 <= value <= MAX_INTEGER
    if fits and hint is str:
        fits = len(value) <= MAX_TEXT and "\0" not in value
    return value if fits else _refuse(name, value)


def _refuse(name: str, value: object) -> NoReturn:
    raise ValueError(f"{name} is {short(value)}")
