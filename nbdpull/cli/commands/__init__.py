"""A file a verb: its options, its call and its text. Verbs are imported when they run.

A command module has SUMMARY and EXAMPLE (for --help), `add(parser)`, which adds its options, and
`run(args, report, check)`, which returns an Outcome. It imports what is quick to import; its operation, in `run`.
"""

VERBS = (
    "pull",
    "run",
    "plan",
    "doctor",
    "cleanup",
    "release",
    "restore",
    "verify",
    "digest",
    "serve",
    "expose",
    "drill",
    "init",
    "key",
    "list",
    "status",
    "show",
    "diff",
    "usage",
    "index",
    "remove",
    "undelete",
    "prune",
    "policy",
    "pin",
    "unpin",
    "copy",
    "compare",
)
RESERVED = (*VERBS, "help")  # as a first word no name of a domain
