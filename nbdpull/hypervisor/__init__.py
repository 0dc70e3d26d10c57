"""libvirt, and the QEMU that runs a domain.

From below: `bindings` imports libvirt, `libvirt_error` translates what it raises, `domain_link` gives every call a
deadline, `connection` makes a connection, `handle` is one domain of it. On the handle stand the parts of a `domain`:
`checkpoints`, `jobs`, `power`, and `backups` with what one backup is (`backup_spec`, `backup_job`, `backup_traces`).
`domain_thaw` and `socket_guard` are programs, which outlive a nbdpull that was killed; `guard` is what both are.
"""
