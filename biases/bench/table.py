"""A benchmark for people, in people-friendly units."""

from __future__ import annotations

from typing import TYPE_CHECKING

from biases.bench.results import BenchResult, Measurement

if TYPE_CHECKING:
    from rich.table import Table


def render(result: BenchResult) -> Table:
    """The result as a rich table, to be printed by a ``rich.console.Console``. Needs rich."""
    from rich.table import Table
    from rich.text import Text

    c = result.configuration
    shape = tuple(c[name] for name in ("batch", "heads", "length", "head_dim"))
    processor = result.machine["cpu" if c["device"] == "cpu" else "cuda_device"] or c["device"]
    table = Table(
        title=f"{c['direction']}, (B, H, L, D) = {shape}, {c['dtype']} on {processor}",
    )
    notes = [
        "Ratios are to stock attention without a bias in the same rounds (quartiles in brackets); "
        "only ratios travel between machines."
    ]
    table.add_column("attention", no_wrap=True)
    for heading in ("ratio", "time", "tokens/s", "peak memory", "floor's", "of matmul rate"):
        table.add_column(heading, justify="right")
    for measurement in (*result.floors.values(), *result.cases):
        if measurement.status == "ok":
            table.add_row(Text(measurement.name), *_cells(measurement))
        else:
            table.add_row(Text(measurement.name), Text(measurement.status, style="red"))
            notes.append(f"{measurement.name} {measurement.status}: {measurement.message.strip()}")
    table.caption = Text("\n".join(notes))
    table.caption_justify = "left"
    return table


def _cells(m: Measurement) -> list[str]:
    ratio = "" if m.ratio is None else f"{m.ratio.value:.2f} ({m.ratio.low:.2f}-{m.ratio.high:.2f})"
    return [
        ratio,
        _seconds(m.samples.median),
        "" if m.tokens_per_second is None else f"{m.tokens_per_second:,.0f}",
        _bytes(m.peak_bytes),
        _bytes(m.floor_peak_bytes),
        "" if m.matmul_share is None else f"{m.matmul_share:.0%}",
    ]


def _seconds(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _bytes(count: int | None) -> str:
    if count is None:
        return ""
    for scale, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
