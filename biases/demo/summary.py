"""What the demo prints at its end."""

from __future__ import annotations

from collections import Counter
from typing import Any

from biases.demo.run import Demo

BUSY = 1.5


def signed(value: float) -> str:
    """Four decimals with a sign, which what rounds to zero has not."""
    text = f"{value:+.4f}"
    return text if float(text) else "0.0000"


def show(demo: Demo) -> None:
    """Print findings, tables and the leak's counterexample."""
    from rich.console import Console

    console = Console(highlight=False)
    _verification(console, demo)
    _benchmark(console, demo.results.get("bench", {}).get("rows", []))
    _ablation(console, demo.results.get("ablation", {}))
    for failure in demo.failures:
        console.print(f"FAILED  {failure}", style="bold red", markup=False)
    if demo.interrupted:
        console.print("Interrupted: what was finished is kept, and the next run goes on from it.", style="yellow")
    console.print(f"\nThe page with all of it: {demo.page}", style="bold", markup=False)


def _verification(console: Any, demo: Demo) -> None:
    results = demo.results.get("verification", {}).get("results", [])
    if not results:
        return
    counts = Counter(result["status"] for result in results)
    subjects = len({result["subject"] for result in results})
    tally = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.most_common())
    console.rule("Verification", align="left")
    console.print(f"{len(results)} checks of {subjects} layers: {tally}.")
    if demo.leak is not None:
        console.print("\nThe published EGA calls itself strictly causal. Its counterexample:", style="bold")
        console.print(demo.leak["message"], markup=False, soft_wrap=True)
        console.print("To see it alone:", style="bold")
        console.print(demo.leak["reproduce"], markup=False, style="dim", soft_wrap=True)


def _benchmark(console: Any, rows: list[dict[str, Any]]) -> None:
    timed = {(row["name"], row["direction"]): row for row in rows if row["status"] == "ok"}
    if not timed:
        return
    from rich.table import Table

    directions = list(dict.fromkeys(row["direction"] for row in rows))
    table = Table("bias", *directions, "peak memory", box=None, pad_edge=False)
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = [timed.get((name, direction)) for direction in directions]
        times = [f"{c['ratio']:.2f} ({c['ratio_low']:.2f} to {c['ratio_high']:.2f})" if c else "-" for c in cells]
        memory = f"{cells[0]['peak_bytes'] / cells[0]['floor_peak_bytes']:.1f}" if cells[0] else "-"
        table.add_row(name, *times, memory)
    console.rule("Benchmark: 1.00 is stock attention without a bias, in the same run", align="left")
    console.print(table)
    if any(row["ratio_high"] > BUSY * row["ratio_low"] for row in timed.values()):
        console.print("Quartiles far apart: the machine was busy, and the ratios are too high.", style="yellow")
    console.print(
        '"plain" is the same bias by dense formulas. Median and quartiles of interleaved rounds.', style="dim"
    )


def _ablation(console: Any, ablation: dict[str, Any]) -> None:
    rows = [*ablation.get("contrasts", [])]
    if ablation.get("interaction"):
        rows.append(ablation["interaction"])
    if not rows:
        return
    from rich.table import Table

    table = Table(
        "contrast (nats per character)", "mean", "95 % interval", "n", "p", "verdict", box=None, pad_edge=False
    )
    for row in rows:
        interval = "" if row["interval"] is None else " to ".join(map(signed, row["interval"]))
        p = "" if row["p_sign_flip"] is None else f"{row['p_sign_flip']:.3f}"
        table.add_row(row["name"], signed(row["mean"]), interval, str(row["n"]), p, row["verdict"])
    console.rule("Ablation: validation loss in nats per character, paired by seed", align="left")
    console.print(table)
    console.print(
        f"p: exact sign-flip; the smallest attainable with n = {rows[0]['n']} is {rows[0]['p_smallest']:.3f}."
    )
    for arm, values in ablation["arms"].items():
        if values.get("leak_interval"):
            low, high = values["leak_interval"]
            console.print(
                f"loss on prefixes minus loss on whole windows, {arm}: {signed(low)} to {signed(high)}", markup=False
            )
