"""All orders of the steps of several actors on one state, with time passing and one death anywhere.

A step is a function of (state, place of its actor: None at first, rules, name) that returns (next state, next place). A
state is a NamedTuple with `now`. Must not know: what the state represents, what a loss is.
"""

END, LOST = "end", "lost"  # places of an actor that takes no more steps; LOST: as something that it needed was missing


class _Numbers(dict):
    """{state or place: its number}. Hashing states took nearly all of the time; hashing numbers takes none."""

    def __init__(self):
        self.things = []

    def __missing__(self, thing):
        self.things.append(thing)
        self[thing] = number = len(self.things) - 1
        return number


def loss(who, rules, state, is_lost, ticks, without=None):
    """Return (order, count): an order of the steps of `who` that loses something, as text, "" if there is none; and the
    number of states visited. who: [(name, step)]. is_lost: function of a state. ticks: how much time may pass. without:
    function that returns the state after a death; None: a death leaves the state unchanged, and so equals an actor that
    takes no more steps, which every order includes."""
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
    """Return the steps of a path, which is a linked list with the last step first, from first to last."""
    steps = []
    while path:
        step, path = path
        steps.insert(0, step)
    return steps
