"""A host on which somebody types, word for word, the commands that nbdpull advises."""

import subprocess

import stores


class Host:
    """A shell in a directory of its own, for the commands that a user types."""

    def __init__(self, bed, folder):
        self.bed, self.folder = bed, folder

    def run(self, line):
        done = subprocess.run(["bash", "-ec", line], cwd=self.folder, env=stores.package_environment(),
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def seen_by(self, name):
        """Return {target: the bytes of the disk} of a running domain."""
        return stores.seen_by(self.bed.virsh("dumpxml", name))
