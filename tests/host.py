"""A host on which somebody types what nbdpull told to type, word for word."""

import subprocess

import stores


class Host:
    """What a user types there, in a folder of their own."""

    def __init__(self, bed, folder):
        self.bed, self.folder = bed, folder

    def run(self, line):
        done = subprocess.run(["bash", "-ec", line], cwd=self.folder, env=stores.package_environment(),
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def seen_by(self, name):
        """{target: the bytes of the disk} of a running domain."""
        return stores.seen_by(self.bed.virsh("dumpxml", name))
