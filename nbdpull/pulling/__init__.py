"""The parts of a pull: what a disk starts from, its way into files, what dead runs left, the space for scratch."""
