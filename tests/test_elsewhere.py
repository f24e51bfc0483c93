"""The other places: each is run by a session, and once a week."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOXFILE = ROOT / "noxfile.py"
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
    named = set(re.findall(r'"([^"\s]+)"', NOXFILE.read_text(encoding="utf-8")))
    assert places() <= named


@pytest.mark.skipif(not WEEKLY.exists(), reason="the sdist has no workflows")
def test_every_place_is_tried_once_a_week() -> None:
    tried = re.findall(r"^ {10}- (\S+)$", WEEKLY.read_text(encoding="utf-8"), re.MULTILINE)
    assert {*tried} - {"pyodide"} == places()


@pytest.mark.skipif(sys.platform != "linux", reason="the places are made on Linux")
def test_a_place_that_cannot_be_had_is_told_apart_from_a_broken_promise(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "elsewhere", "--work", tmp_path, "gvisor"],
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},  # without apt-get
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.stderr.startswith("gvisor cannot be had here: ")
    assert f"UNAVAILABLE = {told.returncode}\n" in NOXFILE.read_text(encoding="utf-8")
