"""All orders of the steps of several who work on one state, with time passing and one death anywhere.

A step is a function of (state, where its owner is: None at first, rules, name) to (the state that follows, where the
owner is then). A state is a NamedTuple with `now`. Must not know: what the state is of, what is a loss.
"""

END, LOST = "end", "lost"  # where an owner makes no step any more; and why: what he needed was not there


class _Numbers(dict):
    """{state or place: its number}. Nearly all time went into hashes of states; those of numbers take none."""

    def __init__(self):
        self.things = []

    def __missing__(self, thing):
        self.things.append(thing)
        self[thing] = number = len(self.things) - 1
        return number


def loss(who, rules, state, is_lost, ticks, without=None):
    """How something is lost in some order of the steps of `who`, a text, "" where it is in none; how many states there
    are. who: [(name, step)]. is_lost: of a state. ticks: how much time may pass. without: the state that a death
    leaves; None: as it was: then who dies is as who makes no step any more, and so as any order begins."""
    states, places = _Numbers(), _Numbers()
    start, end, lost = places[None], places[END], places[LOST]
    first = states[state], (start,) * len(who), True
    seen, steps, later = {first}, {}, {}
    waiting = [(first, ())]
    while waiting:
        (number, at, may_die), path = waiting.pop()
        if number not in later:
            now = states.things[number]
            later[number] = is_lost(now), states[now._replace(now=now.now + 1)] if now.now < ticks else None
        is_bad, tick = later[number]
        if is_bad or lost in at:
            return ", ".join(_told(path)), len(seen)
        following = [((tick, at, may_die), "tick")] if tick is not None else []
        for one, (name, step) in enumerate(who):
            here = at[one]
            if here == end:
                continue
            if (made := steps.get((number, one, here))) is None:
                after, place = step(states.things[number], places.things[here], rules, name)
                made = steps[number, one, here] = states[after], places[place]
            following.append(((made[0], (*at[:one], made[1], *at[one + 1 :]), may_die), name))
            if without and may_die and here != start:
                dead = (*at[:one], end, *at[one + 1 :])
                following.append(((states[without(states.things[number], name)], dead, False), f"{name} dies"))
        for node, step in following:
            if node not in seen:
                seen.add(node)
                waiting.append((node, (step, path)))
    return "", len(seen)


def _told(path):
    """The steps, of which each was put before those that it came after."""
    steps = []
    while path:
        step, path = path
        steps.insert(0, step)
    return steps
