"""Where the documentation is."""

from __future__ import annotations

SITE = "https://graceful-close.github.io/graceful-close/"


def page(name: str, section: str = "") -> str:
    """The address of a page.

    Args:
        name: Of its source in `docs`, without `.md`.
        section: A heading's anchor; empty: the top.
    """
    return f"{SITE}{name}.html" + (f"#{section}" if section else "")
