"""A comparison for people: a table for the terminal, and Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from biases._markup import cell, code
from biases.bench.compare.results import BAD, VERDICTS, Comparison, Row

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("benchmark", "base", "head", "ratio", "verdict", "why")
STYLES = {"regression": "red", "failed": "red", "improved": "green", "inconclusive": "yellow", "unsettled": "yellow"}
TIME = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "milliseconds": 1e-3, "us": 1e-6, "ns": 1e-9}
_LINE = 1000
BINARY = ("B", "KiB", "MiB", "GiB", "TiB")


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print it: a table of what was measured, and below it the reasons of what is not simply unchanged. Needs rich."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    measured = [row for row in ordered(comparison) if row.base is not None]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in COLUMNS[:-1]:
        numeric = column in ("base", "head", "ratio")
        justify: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(column, justify=justify, no_wrap=column != "benchmark", overflow="fold")
    for row in measured:
        cells = [Text(cell) for cell in _cells(row)[:-1]]
        cells[-1].stylize(STYLES.get(row.verdict, ""))
        table.add_row(*cells)
    console.print(Text(_title(comparison), style="bold"))
    if measured:
        console.print(table)
    for line in (*reasons(comparison), *notes(comparison)):
        console.print(Text(line))


def markdown(comparison: Comparison) -> str:
    """A title, a table and notes, for a comment on a change."""
    lines = [f"**{cell(_title(comparison))}**", ""]
    if any(row.base is not None for row in comparison.rows):
        lines += [f"| {' | '.join(COLUMNS)} |", "|---|--:|--:|--:|---|---|"]
    for row in (each for each in ordered(comparison) if each.base is not None):
        cells = _cells(row)
        cells[0], cells[5] = code(cells[0]), cell(cells[5], _LINE)
        cells[4] = f"**{cells[4]}**" if row.verdict in BAD else cells[4]
        lines.append(f"| {' | '.join(cells)} |")
    unmeasured = [f"* {cell(line, _LINE)}" for line in reasons(comparison, measured=False)]
    told = [f"{cell(note, _LINE)}  " for note in notes(comparison)]
    return "\n".join([*lines, "", *unmeasured, "", *told]) + "\n"


def ordered(comparison: Comparison) -> list[Row]:
    """The rows, worst verdict first."""
    return sorted(comparison.rows, key=lambda row: VERDICTS.index(row.verdict))


def reasons(comparison: Comparison, *, measured: bool = True) -> list[str]:
    """Why, one line for all benchmarks of one verdict and reason; unless ``measured``, only of those without values."""
    names: dict[tuple[str, str], list[str]] = {}
    for row in ordered(comparison):
        if row.verdict not in ("no change", "reported") and (measured or row.base is None):
            names.setdefault((row.verdict, row.reason), []).append(row.name)
    shown = {
        key: ", ".join(each[:3]) + (f" and {len(each) - 3} more" if len(each) > 3 else "")
        for key, each in names.items()
    }
    return [f"{verdict}: {shown[verdict, reason]}: {reason}" for verdict, reason in names]


def notes(comparison: Comparison) -> list[str]:
    """What the table does not say."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in comparison.summary.items())
    found = [counts or why_no_rows(comparison)]
    settings, machine = comparison.settings, comparison.machine
    if settings.get("deterministic_only"):
        found.append("Only fixed quantities were compared; times were left out.")
    if settings.get("family"):
        found.append(
            f"Ratios are head / base, medians of paired rounds; the brackets of all {settings['family']} hold "
            f"together at {settings['confidence']:.0%}. Threshold {settings['threshold']:g}."
        )
    cores = machine.get("usable_cores") or machine.get("cores") or 1
    if (machine.get("load_before") or 0) > cores / 2:
        found.append(f"Others were at work before it began: load {machine['load_before']} on {cores} cores.")
    if comparison.not_compared:
        found.append(f"Not compared, of other kinds: {', '.join(comparison.not_compared)}.")
    if comparison.interrupted:
        found.append("Interrupted: benchmarks that are not listed were not measured.")
    elif comparison.exit_code == 3:
        found.append("Nothing was measured at both sides.")
    return found


def why_no_rows(comparison: Comparison) -> str:
    """Why no benchmark is listed."""
    if comparison.interrupted:
        return "interrupted before a benchmark was measured"
    if comparison.left_out:
        return "every benchmark that matches varies, and only fixed quantities are compared"
    return "no benchmark matches"


def _title(comparison: Comparison) -> str:
    return f"{comparison.base} -> {comparison.head}"


def _cells(row: Row) -> list[str]:
    base, head = (_value(value, row.unit) for value in (row.base, row.head))
    estimate = row.estimate
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    if estimate is not None:
        ratio += f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return [row.name, base, head, ratio, row.verdict, row.reason]


def _value(value: float | None, unit: str) -> str:
    """In a unit that is easy to read."""
    if value is None:
        return ""
    if unit.lower() in TIME:
        seconds = value * TIME[unit.lower()]
        scale, name = next(
            (each for each in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= each[0]), (1e-9, "ns")
        )
        return f"{seconds / scale:.3g} {name}"
    if unit.lower() in ("b", "byte", "bytes"):
        power = min(max(int(abs(value)).bit_length() - 1, 0) // 10, len(BINARY) - 1)
        return f"{value / 1024**power:.4g} {BINARY[power]}"
    return f"{value:g}"
