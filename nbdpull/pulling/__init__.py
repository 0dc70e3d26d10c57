"""What a pull is made of: what a disk starts from, its way into files, what dead runs left, the room for scratch."""
