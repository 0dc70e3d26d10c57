"""Image files and devices of this host: what they are, who uses them, what qemu-img does to them."""
