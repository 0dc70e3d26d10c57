"""One file per verb: its options, its call and its text. A verb is imported when it runs.

A command module has SUMMARY and EXAMPLE (for --help), `add(parser)`, which adds its options, and `run(args, report,
check)`, which returns an Outcome. Its top level imports only what is quick to import; `run` imports its operation.
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
RESERVED = (*VERBS, "help")  # as a first word not the name of a domain
