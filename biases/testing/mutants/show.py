"""``biases mutants``: progress and tables."""

from __future__ import annotations

from collections.abc import Sequence

from biases.testing.mutants.run import Row, plan, run_mutants

_NAMES = 3


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
    from rich.table import Table

    console = Console(highlight=False)
    mutants = [row for row in rows if not row.sound]
    sound = [row for row in rows if row.sound]
    listed = [row for row in mutants if row.caught is not None or row.failed]
    if listed:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for column, share in (("mutant", 0), ("caught by", 0), ("also caught by", 3), ("fault", 4), ("source", 3)):
            table.add_column(column, ratio=share or None, no_wrap=not share, overflow="fold")
        for row in listed:
            table.add_row(
                row.name, _by(row), _also(row), _sentence(row.fault), "\n".join(row.source.replace(",", " ").split())
            )
        console.print(table)
    for row in rows:
        if not row.well:
            console.rule(f"{row.name}: {_wrong(row)}", align="left", style="red")
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
