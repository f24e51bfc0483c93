"""`python -m graceful_close`: the lab, which nothing else in this package imports."""

import sys

from graceful_close_lab.command import main

if __name__ == "__main__":
    sys.exit(main())
