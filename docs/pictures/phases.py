"""Draw phases.svg from every reachable state of the machine: `python docs/pictures/phases.py`.

The states are those that tests/test_teardown_exhaustive.py looks at. It takes a minute.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent.parent / "tests"))

from machine_space import Phase, Space
from test_teardown_exhaustive import CASES

STEP, WIDTH, HEIGHT, LEFT, TOP = 62, 216, 42, 12, 10
STYLE = """
svg { color: #1f2937; background: #fff; font: 12px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { color: #e5e7eb; background: #131416; } }
text { fill: currentColor; text-anchor: middle; }
.name { font-weight: 600; }
.count { opacity: .75; font-size: 11px; }
rect { fill: none; stroke: currentColor; }
path { fill: none; stroke: currentColor; opacity: .55; }
marker path { fill: currentColor; stroke: none; opacity: 1; }
"""


def main() -> None:
    states: Counter[Phase] = Counter()
    reports: Counter[tuple[Phase, Phase]] = Counter()
    for case in CASES:
        within, between = Space(case).phases()
        states += within
        reports += between
    picture = "\n".join(_drawn(states, reports)) + "\n"
    (HERE / "phases.svg").write_text(picture, encoding="utf-8")
    print(f"{states.total():,} states, {reports.total():,} reports, {len(CASES)} cases")


def _drawn(states: Counter[Phase], reports: Counter[tuple[Phase, Phase]]) -> Iterator[str]:
    bottom = TOP + STEP * (len(Phase) - 1) + HEIGHT
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="400" viewBox="0 0 400 {bottom + 44}" '
        f'role="img" aria-label="The phases of a close, and the transitions between them">'
    )
    yield f"<style>{STYLE}</style>"
    yield (
        '<marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z"/></marker>'
    )
    for before, after in sorted(pair for pair in reports if pair[0] < pair[1]):
        yield _arrow(before, after)
    for phase in Phase:
        top, middle = TOP + STEP * phase, LEFT + WIDTH / 2
        counts = f"{states[phase]:,} states"
        if phase is not Phase.RELEASE:
            counts += f", {reports[phase, phase]:,} within"
        yield f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        yield f'<text class="name" x="{middle}" y="{top + 18}">{_title(phase.name.lower())}</text>'
        yield f'<text class="count" x="{middle}" y="{top + 34}">{counts}</text>'
    yield (
        f'<text class="count" x="200" y="{bottom + 28}">{states.total():,} states, '
        f"{reports.total():,} transitions in {len(CASES)} cases; none leads back</text>"
    )
    yield "</svg>"


def _title(name: str) -> str:
    return {
        "our_fin": "our FIN",
        "peer_first": "peer first",
        "close_notify": "close_notify",
        "acknowledgement": "all acked?",
    }.get(name, name)


def _arrow(before: Phase, after: Phase) -> str:
    """A straight arrow to the next phase, an arc around those that are left out."""
    start: float = TOP + STEP * before + HEIGHT
    end: float = TOP + STEP * after
    if after - before == 1:
        return f'<path d="M{LEFT + WIDTH / 2} {start}V{end - 1}" marker-end="url(#to)"/>'
    start, end = start - HEIGHT * 0.35, end + HEIGHT * (0.15 + 0.1 * before)
    right = LEFT + WIDTH
    far = right + 30 * (after - before)
    return (
        f'<path d="M{right} {start}C{far} {start} {far} {end} {right + 1} {end}" '
        'marker-end="url(#to)"/>'
    )


if __name__ == "__main__":
    main()
