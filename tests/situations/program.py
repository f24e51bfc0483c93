"""A situation as a program that plays it."""

from __future__ import annotations

from .axes import Situation

_TEMPLATE = """\
# PYTHONPATH=tests python this_program.py        (Linux; root, where the peer is a script)
from situations import Situation, complaints_once, laid

situation = Situation({choices})
with laid() as lab:
    print(lab.play(situation))
    for complaint in complaints_once(lab, situation):
        print(complaint)
"""


def program(situation: Situation, complaints: list[str]) -> str:
    """The source of it, after what is wrong."""
    said = "".join(f"# {complaint}\n" for complaint in complaints)
    choices = ", ".join(f"{axis}={choice!r}" for axis, choice in situation.chosen.items())
    return said + _TEMPLATE.format(choices=choices)
