"""All orders of the steps of several who work on one state, with time passing and one death anywhere.

A step is a function of (state, where its owner is: None at first, rules, name) to (the state that follows, where the
owner is then). A state is a NamedTuple with `now`. Must not know: what the state is of, what is a loss.
"""

END = "end"


def loss(who, rules, state, is_lost, ticks, without=None):
    """How something is lost in some order of the steps of `who`, a text, "" where it is in none; how many states there
    are. who: [(name, step)]. is_lost: of (state, [where each is]). ticks: how much time may pass. without: the state
    that a death leaves; None: as it was: then who dies is as who makes no step any more, and so as any order begins."""
    seen, steps = set(), {}
    waiting = [(state, (None,) * len(who), True, ())]
    while waiting:
        state, places, may_die, path = waiting.pop()
        if (state, places, may_die) in seen:
            continue
        seen.add((state, places, may_die))
        if is_lost(state, places):
            return ", ".join(_told(path)), len(seen)
        if state.now < ticks:
            waiting.append((state._replace(now=state.now + 1), places, may_die, ("tick", path)))
        for number, (name, step) in enumerate(who):
            at = places[number]
            if at == END:
                continue
            if (made := steps.get((state, name, at))) is None:
                made = steps[state, name, at] = step(state, at, rules, name)
            waiting.append((made[0], (*places[:number], made[1], *places[number + 1 :]), may_die, (name, path)))
            if without and may_die and at is not None:
                dead = (*places[:number], END, *places[number + 1 :])
                waiting.append((without(state, name), dead, False, (f"{name} dies", path)))
    return "", len(seen)


def _told(path):
    """The steps, of which each was put before those that it came after."""
    steps = []
    while path:
        step, path = path
        steps.insert(0, step)
    return steps
