"""libvirt, and the QEMU that runs a domain.

Bottom up: `bindings` imports libvirt, `libvirt_error` translates its errors, `domain_link` gives every call a deadline,
`connection` opens a connection, `handle` is one domain of that connection. The parts of a `domain` build on the handle:
`checkpoints`, `jobs`, `power`, and `backups`, with the parts of one backup (`backup_spec`, `backup_job`,
`backup_traces`). `domain_thaw` and `socket_guard` are programs that outlive a killed nbdpull; `guard` is what they
share.
"""
