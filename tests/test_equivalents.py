"""The list of changes that no test can notice quotes lines and functions that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import graceful_close

_LIST = Path(__file__).parent.parent / "mutation" / "equivalents.toml"
_PACKAGE = Path(graceful_close.__file__).parent

EQUIVALENTS: dict[str, list[dict[str, Any]]] = tomllib.loads(_LIST.read_text("utf-8"))


def squeezed(text: str) -> str:
    """Return the text without white space: a quote has a statement of several lines in one."""
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("module", EQUIVALENTS)
def test_each_change_quotes_a_line_of_a_function_that_exists(module: str) -> None:
    package = _PACKAGE / module
    files = sorted(package.glob("*.py")) if package.is_dir() else [package.with_suffix(".py")]
    source = "".join(file.read_text("utf-8") for file in files)
    for change in (change for kind in EQUIVALENTS[module] for change in kind["changes"]):
        name, line = change.partition(" -> ")[0].split(": ", 1)
        assert f"def {name.rpartition('.')[2]}(" in source, change
        assert squeezed(line) in squeezed(source), change
