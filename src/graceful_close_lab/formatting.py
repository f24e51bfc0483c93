"""The format of numbers, in tables and in drawings."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Format a time in a few characters."""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
