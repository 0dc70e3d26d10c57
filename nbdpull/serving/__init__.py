"""Points for clients of NBD, by nbdkit and a plugin of ours."""
