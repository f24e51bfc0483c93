"""The page on platforms has the present data."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_page_on_platforms_is_up_to_date() -> None:
    written = runpy.run_path(str(DOCS / "platforms.py"))["page"]()
    kept = (DOCS / "platforms.md").read_text(encoding="utf-8")
    assert kept == written, "run: python docs/platforms.py"
