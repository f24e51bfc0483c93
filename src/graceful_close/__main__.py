"""`python -m graceful_close`: the lab."""

import sys

from ._lab.command import main

if __name__ == "__main__":
    sys.exit(main())
