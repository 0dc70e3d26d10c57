"""All orders of the steps of several who work on one state, with time passing and one death anywhere.

A step is a function of (state, where its owner is: None at first, rules, name) to (the state that follows, where the
owner is then). A state is a NamedTuple with `now`. Must not know: what the state is of, what is a loss.
"""

END = "end"


def loss(who, rules, state, is_lost, ticks, without=lambda state, name: state, at_once=()):
    """How something is lost in some order of the steps of `who`, a text, "" where it is in none; how many states there
    are. who: [(name, step)]. is_lost: of (state, [where each is]). ticks: how much time may pass. without: the state
    that a death leaves. at_once: places in which no time passes."""
    seen = set()
    waiting = [(state, (None,) * len(who), True, ())]
    while waiting:
        state, places, may_die, path = waiting.pop()
        if (state, places, may_die) in seen:
            continue
        seen.add((state, places, may_die))
        if is_lost(state, places):
            return ", ".join(path), len(seen)
        if state.now < ticks and not any(place and place[0] in at_once for place in places):
            waiting.append((state._replace(now=state.now + 1), places, may_die, (*path, "tick")))
        for number, (name, step) in enumerate(who):
            if places[number] == END:
                continue
            after, place = step(state, places[number], rules, name)
            waiting.append((after, (*places[:number], place, *places[number + 1 :]), may_die, (*path, name)))
            if may_die and places[number] is not None:
                dead = (*places[:number], END, *places[number + 1 :])
                waiting.append((without(state, name), dead, False, (*path, f"{name} dies")))
    return "", len(seen)
