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

STEP, WIDTH, HEIGHT, MARGIN, BASE = 112, 98, 58, 12, 196
STYLE = """
svg { color: #1f2328; background: #fff; font: 12px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { color: #e6edf3; background: #0d1117; } }
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
    width = MARGIN * 2 + STEP * (len(Phase) - 1) + WIDTH
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 56 {width} {BASE + HEIGHT - 16}" '
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
        left = MARGIN + STEP * phase
        middle = left + WIDTH / 2
        name = phase.name.lower()
        again = reports[phase, phase]
        yield f'<rect x="{left}" y="{BASE}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        yield f'<text class="name" x="{middle}" y="{BASE + 19}">{_title(name)}</text>'
        yield f'<text class="count" x="{middle}" y="{BASE + 35}">{states[phase]:,} states</text>'
        if phase is not Phase.RELEASE:
            yield f'<text class="count" x="{middle}" y="{BASE + 50}">{again:,} within</text>'
    yield (
        f'<text class="count" x="{width / 2}" y="{BASE + HEIGHT + 26}">{states.total():,} states, '
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
    """A straight arrow to the next phase, an arc over those that are left out."""
    start: float = MARGIN + STEP * before + WIDTH
    end: float = MARGIN + STEP * after
    if after - before == 1:
        middle = BASE + HEIGHT / 2
        return f'<path d="M{start} {middle}H{end - 1}" marker-end="url(#to)"/>'
    start, end = start - WIDTH * 0.35, end + WIDTH * (0.15 + 0.1 * before)
    top = BASE - 26 * (after - before)
    return (
        f'<path d="M{start} {BASE}C{start} {top} {end} {top} {end} {BASE - 1}" '
        'marker-end="url(#to)"/>'
    )


if __name__ == "__main__":
    main()
