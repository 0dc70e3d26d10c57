"""Points for NBD clients, through nbdkit and a plugin of ours, and for HTTP clients."""
