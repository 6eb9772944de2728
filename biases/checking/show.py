"""Results for people: a table of the subjects, after everything that went wrong."""

from __future__ import annotations

from collections.abc import Sequence

from biases.testing.result import BAD, COLUMNS, Result, summary, unchecked


def show(results: Sequence[Result]) -> None:
    """Print everything that went wrong, with its script, then a table of the subjects. Needs rich."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("subject", overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for subject in dict.fromkeys(result.subject for result in results):
        counts = summary(result for result in results if result.subject == subject)
        table.add_row(Text(subject), *(str(counts[key]) for key in COLUMNS.values()))
    for result in results:
        if result.status in BAD:
            title = Text(f"{result.subject}: {result.property} {result.status}")
            console.rule(title, align="left", style="red")
            console.print(result.message, markup=False, soft_wrap=True)
            if result.reproduce:
                console.print("\nTo see it alone:", style="bold")
                console.print(result.reproduce, markup=False, style="dim", soft_wrap=True)
    console.print(table)
    for subject, reasons in unchecked(results).items():
        console.print(f"{subject}: nothing was checked", style="bold", markup=False)
        for reason in reasons:
            console.print(f"  {reason}", markup=False, soft_wrap=True)
