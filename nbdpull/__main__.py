"""The entry of `nbdpull` and of `python3 -m nbdpull`."""

import sys


def main():
    from .cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
