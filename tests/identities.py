"""Keys of age and ssh for the tests, in tests/data/identities, and where they are."""

from pathlib import Path

FOLDER = Path(__file__).parent / "data" / "identities"


def path(name):
    return str(FOLDER / name)


def data(name):
    return (FOLDER / name).read_bytes()


def recipient(name):
    """The public key that belongs to the identity `name`, as a word."""
    return (FOLDER / f"{name}.pub").read_text().strip()
