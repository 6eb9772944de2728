"""The contrasts of a study as a picture: means with their intervals beside zero and the margin, as SVG.

Its colours are of middle lightness, to be read on white and on black.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.study_tables import verdict
from biases.ablation.stats_view import interval, number

WIDTH = 960
LEFT, RIGHT = 330, 640  # of the axis; contrasts stand before it, numbers and verdicts behind it
WRAP = 48
LINE, PAD, TITLE, AXIS = 15, 9, 26, 30
INK, LINES, ACCENT, BAND = "#737b85", "#8b949e", "#3f7fd0", "#8b949e"
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def forest(analysis: Mapping[str, Any]) -> str:
    """One panel a unit; the declared family with filled marks, what was only explored with hollow ones.

    Contrasts without a mean are named, with what stands in their place.
    """
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for row in analysis["contrasts"]:
        panels.setdefault(row["unit"], []).append(row)
    top, parts = 8, []
    for unit, rows in panels.items():
        drawn, height = _panel(unit, rows, top)
        parts += drawn
        top += height
    percent = f"{100 * analysis['statistics']['confidence']:g} %"
    legend = f"Thick: {percent} interval of each by itself. Thin: all of the family together. Hollow: explored, not "
    parts.append(_text(10, top + 8, legend + "tested. Shaded: within the margin of equivalence.", size=11))
    height = top + 20
    title = escape(f"Contrasts of {analysis['study']}, size {analysis['size']}")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
    return "\n".join([head + f'role="img" font-family="{FONT}">', f"<title>{title}</title>", *parts, "</svg>", ""])


def _panel(unit: str, rows: Sequence[Mapping[str, Any]], top: int) -> tuple[list[str], int]:
    low, high = _range(rows)

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    parts, y = [_text(LEFT, top + 14, unit, size=12, weight=600)], top + TITLE
    begin = y
    marks = []
    for row in rows:
        lines = textwrap.wrap(row["name"], WRAP)
        height = LINE * len(lines) + PAD
        middle = y + height / 2
        first = middle - LINE * (len(lines) - 1) / 2 + 4
        parts += [_text(10, first + LINE * index, line) for index, line in enumerate(lines)]
        if row["margin"] is not None:
            left, right = (max(LEFT, min(RIGHT, x(sign * row["margin"]))) for sign in (-1, 1))
            shape = f'x="{left:.1f}" y="{y:.1f}" width="{right - left:.1f}" height="{height}"'
            parts.append(f'<rect {shape} fill="{BAND}" opacity="0.22"/>')
        marks += _mark(row, x, middle)
        y += height
    axis = [_line(x(0), begin, x(0), y, LINES, 1, ' stroke-dasharray="3 3"'), _line(LEFT, y, RIGHT, y, LINES, 1)]
    for tick in _ticks(low, high):
        axis += [_line(x(tick), y, x(tick), y + 4, LINES, 1)]
        axis += [_text(x(tick), y + 17, f"{tick:.6g}", size=11, anchor="middle")]
    return [*parts, *axis, *marks], int(y + AXIS - top)


def _mark(row: Mapping[str, Any], x: Any, y: float) -> list[str]:
    told = [_text(WIDTH - 10, y + 4, verdict(row), weight=600 if row["family"] else 400, anchor="end")]
    if row["mean"] is None:
        return told
    colour = ACCENT if row["family"] else LINES
    parts = []
    for bounds, width in ((row["interval_simultaneous"], 1), (row["interval"], 3)):
        if bounds is not None:
            parts.append(_line(x(bounds[0]), y, x(bounds[1]), y, colour, width))
    # A hollow mark hides no line: the page behind it may be white or black.
    fill = colour if row["family"] else "none"
    parts.append(f'<circle cx="{x(row["mean"]):.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}"/>')
    bounds = "" if row["interval"] is None else f" [{interval(row['interval']).replace(' to ', ', ')}]"
    return [*parts, _text(RIGHT + 14, y + 4, f"{number(row['mean'], sign=True)}{bounds}", size=11), *told]


def _range(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Zero and all that is drawn, with some room; margins only where they are no more than twice as wide."""
    values = [0.0]
    for row in rows:
        values += [row["mean"], *(row["interval"] or ()), *(row["interval_simultaneous"] or ())]
    known = [value for value in values if value is not None]
    reach = max(map(abs, known))
    margins = [row["margin"] for row in rows if row["margin"] is not None]
    known += [sign * margin for margin in margins for sign in (-1, 1) if not reach or margin <= 2 * reach]
    low, high = min(known), max(known)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, three to six."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [index * step for index in range(first, last + 1)]


def _text(x: float, y: float, text: str, *, size: int = 12, weight: int = 400, anchor: str = "start") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text {where} fill="{INK}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, more: str = "") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{more}/>'
