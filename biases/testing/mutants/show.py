"""``biases mutants``: progress and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from biases.testing.mutants.run import Row, plan, run_mutants

if TYPE_CHECKING:
    from rich.table import Table

_NAMES = 3
_WIDE = 140
"""Columns from which on the table has room for sentences beside two names."""


def follow(
    names: Sequence[str] | None,
    properties: Sequence[str] | None,
    max_examples: int = 25,
    seed: int = 0,
    slow: bool = False,
) -> list[Row]:
    """:func:`~biases.testing.mutants.run_mutants` with progress on standard error."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    # Bad arguments are to raise before a bar is drawn.
    plan(names, properties, max_examples)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("mutants", total=None)

        def advance(done: int, total: int, row: Row) -> None:
            bars.update(task, completed=done, total=total, description=row.name)

        return run_mutants(names, properties, max_examples, seed, advance, slow)


def show(rows: Sequence[Row]) -> None:
    """Print what caught each mutant, then everything that is not as it should be, then the counts."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    mutants = [row for row in rows if not row.sound]
    sound = [row for row in rows if row.sound]
    listed = [row for row in mutants if row.caught is not None or row.failed]
    if listed and console.width >= _WIDE:
        console.print(_table(listed))
    elif listed:
        for row in listed:
            console.print(Text(row.name, style="bold"))
            for line in _lines(row):
                console.print(Padding(Text(line), (0, 0, 0, 2)))
    for row in rows:
        if not row.well:
            console.rule(row.name, align="left", style="red")
            console.print(_wrong(row), markup=False)
            if row.message:
                console.print(row.message, markup=False, soft_wrap=True)
    asked = [row for row in mutants if row.caught is not None]
    caught = sum(bool(row.caught) for row in asked)
    console.print(f"{caught} of {len(asked)} mutants caught by the property that names their fault")
    if left := len(mutants) - len(asked):
        console.print(
            f"{left} more were not put to that property: it takes seconds an example (--slow), or others were asked"
        )
    passed = sum(row.well for row in sound)
    if sound:
        console.print(f"{passed} of {len(sound)} sound subjects passed all that they were put to")


def _table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, share in (("mutant", 0), ("caught by", 0), ("also caught by", 3), ("fault", 4), ("source", 3)):
        table.add_column(column, ratio=share or None, no_wrap=not share, overflow="fold")
    for row in rows:
        table.add_row(row.name, _by(row), _also(row), _sentence(row.fault), "\n".join(_sources(row)))
    return table


def _lines(row: Row) -> list[str]:
    """What :func:`_table` has of a mutant beside its name."""
    by = [f"caught by {_by(row)}" if row.caught is not False else _by(row)] if _by(row) else []
    also = [f"also by {_also(row)}"] if row.also else []
    return ["; ".join([*by, *also]), _sentence(row.fault), *_sources(row)]


def _sources(row: Row) -> list[str]:
    return row.source.replace(",", " ").split()


def _by(row: Row) -> str:
    if row.caught is None:
        return ""
    return row.caught_by if row.caught else f"NOT {row.caught_by}"


def _also(row: Row) -> str:
    more = len(row.also) - _NAMES
    return ", ".join(row.also[:_NAMES]) + (f" and {more} more" if more > 0 else "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _wrong(row: Row) -> str:
    if row.sound:
        return f"sound, and it failed {', '.join(row.failed + row.errors)}"
    return f"{row.caught_by} did not catch it by a wrong answer: {row.fault}"
