"""What a disk of a backup starts from, by a token and by a point, decided on a simulated disk: whatever happened to it,
the new image is that of the disk.

The real things, checkpoints, bitmaps and images, are in test_base.py. Here are all mixtures of what can happen to them.
"""

import random
from dataclasses import dataclass, field

import pytest

from nbdpull.definitions.domain_xml import Checkpoint, Disk
from nbdpull.format.manifest import FULL, INCREMENTAL
from nbdpull.pulling.token import Before, Made, Token

base = pytest.importorskip("nbdpull.pulling.base")
token_base = pytest.importorskip("nbdpull.pulling.token_base")

GONE, SEEDS = "?", range(600)


@dataclass
class World:
    """A disk, one letter a block, since the last backup: what its bitmap has recorded, what libvirt knows of the
    checkpoint, and what the backup holds (GONE: it cannot be read)."""

    chance: random.Random
    content: list = field(default_factory=list)
    image: str = "/images/1"
    held: list = field(default_factory=list)
    dirty: set = field(default_factory=set)
    format: str = "qcow2"
    bitmaps: bool = True
    facts: dict = field(default_factory=dict)  # of base.Base
    kept: bool = True  # whether the backup has the disk
    libvirt: dict = field(default_factory=dict)  # {name: Checkpoint}
    is_there: bool = True  # the bitmap that a forgotten checkpoint is given back by

    def __post_init__(self):
        self.content = [self.letter() for _ in range(self.chance.randrange(2, 9))]
        self.before, self.size = Before(len(self.content), self.image), len(self.content)
        self.held = [*self.content]
        self.made = Made("c", "20261122T194500Z-7f3a9c04", 7, ["vda"])
        self.checkpoint = token_base.as_checkpoint(self.made)
        self.libvirt = {"c": self.with_bitmap(True)}

    def letter(self):
        return self.chance.choice("abcdefgh")

    def with_bitmap(self, is_good, created=7):
        description = self.checkpoint.description
        return Checkpoint("c", created, description, {} if is_good is None else {"vda": is_good}, "")

    # -- what happens

    def write(self):
        for _ in range(3):
            at = self.chance.randrange(len(self.content))
            self.content[at] = self.letter()
            self.dirty.add(at)

    def grow(self):
        """No bit is set there. (What was cut off before would be zero: a source finds that by itself.)"""
        if len(self.content) == self.size:
            self.content += [self.letter() for _ in range(2)]

    def shrink(self):
        if len(self.content) == self.size:
            del self.content[-1]

    def replace(self):
        self.image, self.content, self.dirty = "/images/2", [self.letter() for _ in self.content], set()

    def lose_bitmap(self):
        self.lose(False)

    def lose_disk(self):
        self.lose(None)

    def lose(self, is_good):
        self.dirty, self.is_there = set(), False
        self.libvirt = {name: self.with_bitmap(is_good, each.creation_time) for name, each in self.libvirt.items()}

    def forget(self):
        self.libvirt = {}

    def begin_anew(self):
        """Somebody deletes the checkpoint and makes another one of its name."""
        self.dirty = set()
        self.libvirt = {"c": self.with_bitmap(True, 8)}

    def another_format(self):
        self.format, self.dirty = "raw", set()

    def old_format(self):
        self.bitmaps, self.dirty = False, set()

    # -- and what the backup may be

    def leave_out(self):
        self.kept, self.held = False, [GONE] * self.size

    def damage(self):
        self.held[-1] = GONE
        what = self.chance.choice(["broken", "damaged", "bad"])
        if what == "bad":  # of which all is known: it is read again
            self.facts["bad"] = {"vda": frozenset({"file"})}
            self.dirty.add(self.size - 1)
        else:
            self.facts[what] = frozenset({"vda"})

    # -- what nbdpull sees

    @property
    def disk(self):
        named = {"target": "vda", "type": "file", "source": self.image, "format": self.format, "device": "disk"}
        others = dict.fromkeys(["readonly", "transient", "shareable", "empty"], False)
        return Disk(**named, bus="virtio", **others, size=len(self.content), bitmaps=self.bitmaps)

    def has(self, name):
        return name in self.libvirt

    def get(self, name):
        return self.libvirt[name]

    def names(self):
        return [*self.libvirt]

    def give_back(self, checkpoint):
        """As libvirt, which looks for the bitmap."""
        if self.is_there:
            self.libvirt = {checkpoint.name: self.with_bitmap(True)}
        return self.is_there

    uuid, name, supports_checkpoints = "u", "vm1", True

    @property
    def checkpoints(self):
        return self

    def image_of(self, choice):
        """What the new backup shows."""
        if choice.start("vda") is None:
            return self.content
        below = [*self.held, *[GONE] * len(self.content)][: len(self.content)]
        for at in {*self.dirty, *range(choice.dirty_from(self.disk), len(self.content))}:
            below[at : at + 1] = self.content[at : at + 1]
        return below


TO_A_DISK = [World.write, World.write, World.grow, World.shrink, World.replace, World.lose_bitmap, World.lose_disk,
             World.another_format, World.old_format]  # fmt: skip


def played(seed, *more):
    world = World(random.Random(seed))
    for each in world.chance.sample([*TO_A_DISK, *more], world.chance.randrange(4)):
        each(world)
    return world


def chosen(world):
    known = base.Base(world.libvirt["c"], None, {"vda": world.before} if world.kept else {}, **world.facts)
    return base.Choice(known, {"vda": base.decide(world.disk, known, "")})


def test_no_chosen_base_is_wrong():
    modes = []
    for seed in SEEDS:
        world = played(seed, World.leave_out, World.damage)
        choice = chosen(world)
        assert world.image_of(choice) == world.content, (seed, choice.decisions)
        modes.append(choice.decisions["vda"][0])
    assert min(map(modes.count, (INCREMENTAL, FULL))) > 100


def test_no_token_leads_to_a_wrong_base():
    modes = []
    for seed in SEEDS:
        world = played(seed, World.forget, World.begin_anew)
        token = Token("u", world.made.run, world.made, {"vda": world.before})
        choice = token_base.choose(world, [world.disk], Token.loads(token.dumps()))
        assert world.image_of(choice) == world.content, (seed, choice.decisions)
        assert choice.given_back == ["c"] * bool(choice.given_back)
        modes.append(choice.decisions["vda"][0])
    assert min(map(modes.count, (INCREMENTAL, FULL))) > 100


def test_a_base_is_used_where_it_is_right():
    """A full backup is never wrong, and would be easy."""
    for happened in ([], [World.write], [World.grow], [World.write, World.grow]):
        world = World(random.Random(1))
        for each in happened:
            each(world)
        assert chosen(world).start("vda") == "c"
        token = Token("u", world.made.run, world.made, {"vda": world.before})
        assert token_base.choose(world, [world.disk], token).start("vda") == "c"
    world.forget()
    choice = token_base.choose(world, [world.disk], token)
    assert (choice.start("vda"), choice.given_back) == ("c", ["c"])
