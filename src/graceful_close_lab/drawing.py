"""An exchange drawn with characters: time runs down, with the server on the left."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, NamedTuple

from .formatting import duration
from .layout import Piece, wrap
from .timeline import Arrow, Event, Kind, Side

if TYPE_CHECKING:
    from .layout import Line
    from .timeline import Exchange

_CLOCK = 8  # the width of "999.9 ms"
_LIFELINES = 3  # two lines, and the space before the first
_WIDEST = 48  # between the lifelines; a wider drawing is not easier to read. A heuristic.
_NARROWEST = 22

_STYLES = {Kind.DATA: "", Kind.ACK: "rule", Kind.FIN: "good", Kind.RST: "bad"}


class CharacterSet(NamedTuple):
    """The characters of a drawing."""

    life: str
    away: str
    home: str
    shaft: str
    right: str
    left: str
    unseen: str


ASCII = CharacterSet("|", "|", "|", "-", ">", "<", "x")
LINES = CharacterSet("│", "├", "┤", "─", "▶", "◀", "✕")


def draw(exchange: Exchange, width: int, characters: CharacterSet = ASCII) -> list[Line]:
    """Draw the exchange in lines of at most `width` characters; `width` is 33 or more.

    An arrow that ends in a cross was never seen by the receiving program.
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
        for row in _rows(event, room, characters):
            lines.append([clock, *row])
            clock = Piece(" " * (_CLOCK + 1))
    return lines


def _moment(event: Event | Arrow) -> float:
    return event.at if isinstance(event, Event) else event.sent_at


def _rows(event: Event | Arrow, room: int, characters: CharacterSet) -> list[Line]:
    life = Piece(characters.life, "rule")
    if isinstance(event, Arrow):
        shaft = Piece(_shaft(event, room, characters), _STYLES[event.kind])
        return [[shaft]]
    style = "caption" if event.kernel else ""
    text = f"kernel: {event.text}" if event.kernel else event.text
    return [
        [
            life,
            Piece(
                f" {part:<{room - 2}} "
                if event.side is Side.SERVER
                else f" {part:>{room - 2}} ",
                style,
            ),
            life,
        ]
        for part in wrap(text, room - 2)
    ]


def _shaft(arrow: Arrow, room: int, characters: CharacterSet) -> str:
    text = f" {textwrap.shorten(arrow.text, room - 6, placeholder='')} "
    unseen = arrow.seen_at is None
    if arrow.sender is Side.SERVER:
        tip = (
            f"{characters.unseen}  {characters.life}"
            if unseen
            else f"{characters.right}{characters.life}"
        )
        return characters.away + text.center(room + 1 - len(tip), characters.shaft) + tip
    tip = (
        f"{characters.life}  {characters.unseen}"
        if unseen
        else f"{characters.life}{characters.left}"
    )
    return tip + text.center(room + 1 - len(tip), characters.shaft) + characters.home
