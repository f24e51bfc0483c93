"""The source of a program that plays one situation."""

from __future__ import annotations

from .axes import Situation

_TEMPLATE = """\
# PYTHONPATH=tests python this_program.py        (Linux; as root if the peer is a script)
from situations import Situation, complaints_once, open_lab

situation = {situation}
with open_lab() as lab:
    print(lab.play(situation))
    for complaint in complaints_once(lab, situation):
        print(complaint)
"""


def program(situation: Situation, complaints: list[str]) -> str:
    """Return the source, with the complaints as a comment before it."""
    said = "".join(f"# {complaint}\n" for complaint in complaints)
    return said + _TEMPLATE.format(situation=situation)
