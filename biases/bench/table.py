"""A benchmark for people, in people-friendly units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from biases.bench.rows import Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADINGS = ("ratio", "quartiles", "time", "tok/s", "memory", "floor's", "shares")
TIMES = 4  # of the headings
LEGEND = (
    "ratio: to attention without a bias in the same rounds; only ratios travel between machines. memory: beyond the "
    "results. shares: of the measured rates of matrix products and of copies."
)


def render_rows(rows: Sequence[Row], console: Console) -> list[Table]:
    """Rows as rich tables, one for each setting, or two where one is too wide for ``console``: names stay whole."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.level, *row.setting.items()), []).append(row)
    return [table for group in groups.values() for table in _of_setting(group, console)]


def _of_setting(rows: Sequence[Row], console: Console) -> list[Table]:
    from rich.text import Text

    whole = _columns(rows, slice(0, None))
    unlimited = console.options.update(width=10_000)
    fits = console.measure(whole, options=unlimited).maximum <= console.width
    tables = [whole] if fits else [_columns(rows, slice(0, TIMES)), _columns(rows, slice(TIMES, None))]
    tables[0].title, tables[0].title_justify = Text(_title(rows)), "left"
    notes = dict.fromkeys(f"checked against the specification: {row.checked}" for row in rows if row.checked)
    for row in rows:
        if row.status != "ok":
            notes[f"{row.name}{f', {row.peer}' if row.peer else ''} {row.status}: {row.message.strip()}"] = None
    notes[LEGEND] = None
    tables[-1].caption, tables[-1].caption_justify = Text("\n".join(notes)), "left"
    return tables


def _title(rows: Sequence[Row]) -> str:
    first = rows[0].setting
    letters = {"B": "batch", "H": "heads", "L": "length", "D": "head_dim"}
    known = {letter: first[name] for letter, name in letters.items() if name in first}
    shape = f"({', '.join(known)}) = {tuple(known.values())}"
    backend = "" if rows[0].backend in ("", "auto") else f", backend {rows[0].backend}"
    return f"{rows[0].level}, {first['direction']}, {shape}, {first['dtype']} on {first['device']}{backend}"


def _columns(rows: Sequence[Row], which: slice) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("by", overflow="fold", min_width=8)
    for heading in HEADINGS[which]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        by = row.peer or ", ".join(row.formulations)
        if row.status == "ok":
            table.add_row(Text(row.name), Text(by), *_cells(row)[which])
        else:
            style = "dim" if row.status == "skipped" else "red"
            table.add_row(Text(row.name), Text(by), Text(row.status, style=style))
    return table


def _cells(row: Row) -> list[str]:
    shares = [f"{share:.0%}" for share in (row.matmul_share, row.copy_share) if share is not None]
    return [
        "" if row.ratio is None else f"{row.ratio.value:.2f}",
        "" if row.ratio is None else f"{row.ratio.low:.2f}-{row.ratio.high:.2f}",
        duration(row.samples.median),
        _rate(row.tokens_per_second),
        size(row.extra_bytes),
        size(row.floor_extra_bytes),
        ", ".join(shares),
    ]


def _rate(rate: float | None) -> str:
    if rate is None:
        return ""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= scale:
            return f"{rate / scale:.3g}{unit}"
    return f"{rate:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that they are read best in."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def size(count: int | None) -> str:
    """Bytes in the unit that they are read best in; empty without any."""
    if count is None:
        return ""
    for scale, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
