"""The door of `check/`: `python -m models.check --help`. The only file of this room that knows who stands above it."""

import sys

from check.command import main

if __name__ == "__main__":
    sys.exit(main())
