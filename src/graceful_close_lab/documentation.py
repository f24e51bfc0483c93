"""The address of the documentation."""

from __future__ import annotations

SITE = "https://graceful-close.github.io/graceful-close/"


def page(name: str, section: str = "") -> str:
    """Return the address of a page.

    Args:
        name: The name of the page's source in `docs`, without `.md`.
        section: The anchor of a heading; empty: the top of the page.
    """
    return f"{SITE}{name}.html" + (f"#{section}" if section else "")
