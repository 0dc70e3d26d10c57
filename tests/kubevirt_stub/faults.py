"""When which fault occurs.

Owns: the counting of requests by kind, and the rules. Kinds are "map" and "data" of the export server, "ready" of its
/exportready, and "VERB RESOURCE" of the API, such as "create virtualmachinebackups". An action is a word that the
server of that kind understands, or a function that is called before the request is answered as usual.
"""

import threading
from collections import Counter
from dataclasses import dataclass

ALWAYS = 1 << 60


@dataclass
class Rule:
    kind: str
    action: object
    arguments: tuple
    begin: int
    stop: int


class Faults:
    def __init__(self):
        self.seen = Counter()  # requests by kind, with those that went wrong
        self.done = Counter()  # what went wrong, by kind
        self._rules = []
        self._lock = threading.Lock()

    def on(self, kind, action, *arguments, after=0, times=1):
        """Do that to requests of a kind, once `after` more of them have been answered."""
        begin = self.seen[kind] + after
        self._rules.append(Rule(kind, action, arguments, begin, begin + times))

    def clear(self):
        self._rules.clear()

    def take(self, kind):
        """Count a request; return (action word or None, its arguments)."""
        with self._lock:
            number = self.seen[kind]
            self.seen[kind] += 1
            due = [rule for rule in self._rules if rule.kind == kind and rule.begin <= number < rule.stop]
            self.done[kind] += bool(due)
        for rule in due:
            if callable(rule.action):
                rule.action(*rule.arguments)
        words = [rule for rule in due if not callable(rule.action)]
        return (words[0].action, words[0].arguments) if words else (None, ())
