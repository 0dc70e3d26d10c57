"""The options of each verb: one frozen class per verb, with every default.

Owns: every default; the command line, --help and the manual take theirs from here. It imports only core. A run imports
the one module that its verb needs: Python writes and compiles six functions for each dataclass, which takes half a
millisecond. Must not know: what a verb does with an option, how an option is written.

In all classes: `domain` is a name or UUID, None the only one of a store; `store` a path; `point` an id or LATEST;
`disks` are names such as vda, empty for all; `uri` is libvirt's, None for its default; `identities` are files of
identities that can open a sealed store; `as_of` is the time as of which a store is read, None: now. Times are in
seconds, sizes in bytes, rates in bytes per second; a limit of None means no limit.
"""
