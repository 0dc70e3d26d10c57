"""Keys of age and ssh for the tests, in tests/data/identities, and their paths."""

from pathlib import Path

FOLDER = Path(__file__).parent / "data" / "identities"


def path(name):
    return str(FOLDER / name)


def data(name):
    return (FOLDER / name).read_bytes()


def recipient(name):
    """Return the public key of the identity `name`, as one word."""
    return (FOLDER / f"{name}.pub").read_text().strip()
