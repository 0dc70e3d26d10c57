"""What `with` does to all that the tests start."""


class Started:
    """Begins with `start`, and ends with `close`, also where the start fails."""

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc):
        self.close()
