"""Image files and devices of this host: what they are, what uses them, what qemu-img does to them."""
