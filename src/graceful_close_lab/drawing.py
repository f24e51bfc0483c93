"""An exchange drawn with characters: time goes down, server on the left, client on the right."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

from .formatting import duration
from .layout import Piece, wrap
from .story import Arrow, Event, Kind, Side

if TYPE_CHECKING:
    from .layout import Line
    from .story import Exchange

_CLOCK = 8  # what "999.9 ms" takes
_LIFELINES = 3  # the two, and the space before the first
_WIDEST = 48  # between the lifelines; more is no easier to read. Arbitrary.
_NARROWEST = 22

_STYLES = {Kind.DATA: "", Kind.ACK: "rule", Kind.FIN: "good", Kind.RST: "bad"}


class Ink(NamedTuple):
    """The characters that lines are made of."""

    life: str
    away: str
    home: str
    shaft: str
    right: str
    left: str
    unseen: str


ASCII = Ink("|", "|", "|", "-", ">", "<", "x")
LINES = Ink("│", "├", "┤", "─", "▶", "◀", "✕")


def draw(exchange: Exchange, width: int, ink: Ink = ASCII) -> list[Line]:
    """The exchange as lines of at most `width` characters, if there are 33 or more.

    An arrow that ends in a cross was never seen by the program that it was sent to.
    """
    room = min(max(width - _CLOCK - _LIFELINES, _NARROWEST), _WIDEST)
    head = f"{'':{_CLOCK}} {Side.SERVER.value}{Side.CLIENT.value:>{room + 2 - len('server')}}"
    lines: list[Line] = [[Piece(head, "heading")]]
    events: list[Event | Arrow] = [*exchange.events, *exchange.arrows]
    shown = ""
    for event in sorted(events, key=_moment):
        at = duration(_moment(event))
        clock = Piece(f"{'' if at == shown else at:>{_CLOCK}} ", "caption")
        shown = at
        for row in _rows(event, room, ink):
            lines.append([clock, *row])
            clock = Piece(" " * (_CLOCK + 1))
    return lines


def _moment(event: Event | Arrow) -> float:
    return event.at if isinstance(event, Event) else event.sent_at


def _rows(event: Event | Arrow, room: int, ink: Ink) -> list[Line]:
    life = Piece(ink.life, "rule")
    if isinstance(event, Arrow):
        shaft = Piece(_shaft(event, room, ink), _STYLES[event.kind])
        return [[shaft]]
    style = "caption" if event.kernel else ""
    text = f"kernel: {event.text}" if event.kernel else event.text
    return [
        [
            life,
            Piece(
                f" {said:<{room - 2}} "
                if event.side is Side.SERVER
                else f" {said:>{room - 2}} ",
                style,
            ),
            life,
        ]
        for said in wrap(text, room - 2)
    ]


def _shaft(arrow: Arrow, room: int, ink: Ink) -> str:
    text = f" {textwrap.shorten(arrow.text, room - 6, placeholder='')} "
    unseen = arrow.seen_at is None
    if arrow.sender is Side.SERVER:
        tip = f"{ink.unseen}  {ink.life}" if unseen else f"{ink.right}{ink.life}"
        return ink.away + text.center(room + 1 - len(tip), ink.shaft) + tip
    tip = f"{ink.life}  {ink.unseen}" if unseen else f"{ink.life}{ink.left}"
    return tip + text.center(room + 1 - len(tip), ink.shaft) + ink.home
