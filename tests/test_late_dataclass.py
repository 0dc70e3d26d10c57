"""Dataclasses that are made late are those of the library."""

import dataclasses
import threading
import time
from dataclasses import dataclass, field
from typing import Optional

import pytest

from nbdpull.core import late_dataclass as module
from nbdpull.core.late_dataclass import late_dataclass


def classes(decorator):
    """(one, and one that is made of it and of what is no dataclass)"""

    @decorator(frozen=True)
    class Base:
        first: int
        many: list = field(default_factory=list)
        word: Optional[str] = None

    class Between(Base):
        @property
        def twice(self):
            return 2 * self.first

    @decorator(frozen=True)
    class Derived(Between):
        word: str = "other"
        last: bool = False

    return Base, Derived


def told(kind):
    return [(each.name, each.type, each.default) for each in dataclasses.fields(kind)]


def test_they_have_the_fields_of_dataclasses_whichever_is_asked_first():
    for late, plain in zip(classes(late_dataclass), classes(dataclass)):
        assert told(late) == told(plain)
    (late_base, late), (plain_base, plain) = classes(late_dataclass), classes(dataclass)
    assert told(late) == told(plain) and told(late_base) == told(plain_base)
    assert dataclasses.is_dataclass(classes(late_dataclass)[1])


@pytest.mark.parametrize("name", ["kind", "cls", "of"])
def test_a_field_may_have_any_name(name):
    """The first object, by name: restore --format is the field "kind"."""
    late = late_dataclass(frozen=True)(type("Late", (), {"__annotations__": {name: str}}))
    assert vars(late(**{name: "raw"})) == {name: "raw"}


def test_their_objects_are_those_of_dataclasses():
    _, late = classes(late_dataclass)
    _, plain = classes(dataclass)
    ours, theirs = late(1, ["a"], last=True), plain(1, ["a"], last=True)
    assert repr(ours) == repr(theirs) and vars(ours) == vars(theirs) and ours.twice == 2
    assert ours == late(1, ["a"], "other", True) != late(2)
    assert dataclasses.replace(ours, first=2) == late(2, ["a"], last=True)
    assert late(1).many is not late(1).many
    with pytest.raises(dataclasses.FrozenInstanceError):
        ours.first = 2
    with pytest.raises(TypeError):
        late()


def test_nothing_is_made_before_it_is_used_and_then_once(monkeypatch):
    made = []

    def slow(**how):
        def make(of):
            time.sleep(0.02)  # others come meanwhile
            made.append(of)
            return dataclass(**how)(of)

        return make

    monkeypatch.setattr(module.dataclasses, "dataclass", slow)
    base, derived = classes(late_dataclass)
    assert not made
    found = []
    threads = [threading.Thread(target=lambda: found.append(derived(1))) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == 4 * [derived(1)] and made == [derived, base]
