"""The other places: each is run by a session, and once a week."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEEKLY = ROOT / ".github" / "workflows" / "elsewhere.yml"


def places() -> set[str]:
    listed = subprocess.run(
        [sys.executable, "-m", "elsewhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {line.split()[0] for line in listed.stdout.splitlines()}


def test_every_place_has_a_session() -> None:
    named = set(re.findall(r'"([^"\s]+)"', (ROOT / "noxfile.py").read_text(encoding="utf-8")))
    assert places() <= named


@pytest.mark.skipif(not WEEKLY.exists(), reason="the sdist has no workflows")
def test_every_place_is_tried_once_a_week() -> None:
    tried = re.findall(r"^ {10}- (\S+)$", WEEKLY.read_text(encoding="utf-8"), re.MULTILINE)
    assert {*tried} - {"pyodide"} == places()
