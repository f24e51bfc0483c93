"""`graceful-close` and `python -m graceful_close`: the lab, which nothing else here imports."""

import sys


def main() -> int:
    """Run the command that `sys.argv` names, and give its exit code."""
    from graceful_close_lab.command import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
