"""The context manager of everything that the tests start."""


class Started:
    """Something that `with` starts with `start`, and ends with `close`, also if the start fails."""

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc):
        self.close()
