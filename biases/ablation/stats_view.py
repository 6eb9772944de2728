"""An analysis, printed for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

DASH = "-"
FIXED = ("interval", "all together", "verdict")
STYLES = {"better": "green", "worse": "red", "equivalent": "cyan", "refused": "yellow"}


def show(analysis: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the arms, the declared family, what was only explored, and what is missing."""
    from rich.console import Console

    console = console or Console(highlight=False)
    _header(console, analysis)
    _arms(console, analysis)
    family = [row for row in analysis["contrasts"] if row["family"]]
    others = [row for row in analysis["contrasts"] if not row["family"]]
    if family:
        _family(console, analysis, family)
    if others:
        _exploratory(console, analysis, others)
    _gaps(console, analysis)
    _provenance(console, analysis["provenance"])


def number(value: float | None, *, sign: bool = False) -> str:
    """Four decimals, or three significant digits of what is smaller than that shows; no sign on a zero."""
    if value is None:
        return DASH
    if value and abs(value) < 5e-4:
        return f"{value:{'+' if sign else ''}.1e}"
    return f"{value:{'+' if sign else ''}z.4f}"


def interval(bounds: Sequence[float] | None, *, sign: bool = True) -> str:
    return DASH if bounds is None else " to ".join(number(bound, sign=sign) for bound in bounds)


def probability(p: float | None) -> str:
    return DASH if p is None else f"{p:.3g}"


def _table(*columns: str, right: Iterable[str] = ()) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column.endswith(FIXED)
        )
    return table


def _row(table: Table, *cells: Any) -> None:
    """Names of arms may hold what looks like markup."""
    from rich.text import Text

    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _verdict(verdict: str) -> Text:
    from rich.text import Text

    return Text(verdict, style=STYLES.get(verdict, ""))


def _note(console: Console, text: str, style: str = "dim") -> None:
    console.print(text, style=style, markup=False)


def _header(console: Console, analysis: Mapping[str, Any]) -> None:
    name = f"{analysis['study']} ({analysis['size']})" if analysis["study"] else "Two arms, not of a study"
    console.rule(name, align="left")
    if analysis["question"]:
        console.print(" ".join(analysis["question"].split()), markup=False)
    for note in analysis["notes"]:
        _note(console, f"note: {note}")
    config = analysis["config"]
    for what in ("model", "train"):
        _note(console, f"{what}: " + ", ".join(f"{key} {value}" for key, value in config[what].items() if value != {}))
    _note(console, f"data: {config['data']}; seeds: {', '.join(map(str, config['seeds']))}")


def _arms(console: Console, analysis: Mapping[str, Any]) -> None:
    confidence = f"{100 * analysis['statistics']['confidence']:g} % interval"
    arms = analysis["arms"]
    declared = analysis["statistics"]["metric"]
    measured = dict.fromkeys(name for arm in arms.values() for name in arm["metrics"])
    others = [name for name in measured if name not in (declared, "full_at_truncated")]
    console.print()
    table = _table("arm", "finished", declared, confidence, *others, right=("finished", declared, *others))
    for name, arm in arms.items():
        of, metrics = sum(arm["statuses"].values()), arm["metrics"]
        main, *means = (metrics.get(metric, {}) for metric in (declared, *others))
        cells = [number(main.get("mean")), interval(main.get("interval"), sign=False)]
        _row(table, name, f"{arm['n']} of {of}", *cells, *(number(each.get("mean")) for each in means))
    console.print(table)
    leaks = {name: arm["leak"] for name, arm in arms.items() if arm["leak"]}
    if not leaks:
        return
    console.print()
    table = _table("leak of", "mean", f"{confidence} over seeds", "sampling interval", right=("mean",))
    for name, leak in leaks.items():
        _row(
            table,
            name,
            number(leak["mean"], sign=True),
            interval(leak["interval"]),
            interval(leak["sampling_interval"]),
        )
    console.print(table)
    sampled = next(iter(leaks.values()))
    which = f"at {sampled['positions']} positions a seed"
    if sampled["available"]:
        which += f", of {sampled['available']}"
    _note(console, f"leak: loss on prefixes minus loss on whole windows, {which}")


def _family(console: Console, analysis: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    statistics, size = analysis["statistics"], analysis["family"]["size"]
    console.print()
    console.rule(
        f"The declared family: {size} contrast{'s' if size > 1 else ''}, in {statistics['unit']}", align="left"
    )
    if analysis["family"]["redeclared"]:
        which = ", ".join(analysis["family"]["redeclared"])
        told = "what is declared after results were seen confirms nothing"
        _note(console, f"declared otherwise when the folder was begun ({which}): {told}", "yellow")
    percent = f"{100 * statistics['confidence']:g} %"
    table = _table("#", "contrast", "mean", f"{percent} interval", "n", "p (Holm)", "verdict", right=("mean", "n"))
    for index, row in enumerate(rows, 1):
        _row(
            table,
            str(index),
            _name(row, analysis),
            number(row["mean"], sign=True),
            interval(row["interval"]),
            str(row["n"]),
            probability(row["p_holm"]),
            _verdict(row["verdict"]),
        )
    console.print(table)
    console.print()
    columns = ("n", "d_z", "p", "least p", "margin", "TOST", "power", "seeds")
    table = _table("#", *(["all together"] if size > 1 else []), *columns, right=columns)
    for index, row in enumerate(rows, 1):
        _row(
            table,
            str(index),
            *([interval(row["interval_simultaneous"])] if size > 1 else []),
            str(row["n"]),
            *(probability(row[key]) for key in ("effect_size", "p_sign_flip", "p_holm_smallest", "margin")),
            probability(row["p_equivalence_holm"]),
            DASH if row["power"] is None else f"{row['power']:.2f}",
            DASH if row["required_seeds"] is None else str(row["required_seeds"]),
        )
    console.print(table)
    for index, row in enumerate(rows, 1):
        _note(console, f"{index}: {row['reason']}" + _dropped(row))
    _note(console, _legend(statistics, size))


def _legend(statistics: Mapping[str, Any], size: int) -> str:
    percent = f"{100 * statistics['confidence']:g} %"
    told = [
        f"{percent} interval: Student's t, of each contrast by itself. p: two-sided sign-flip test over the paired "
        f"seeds. p (Holm): adjusted for {'the one contrast' if size == 1 else f'all {size} contrasts'}; least p: what "
        "it cannot fall below with so many seeds. TOST: p (Holm) of two one-sided t tests for "
        "equivalence within the margin. d_z: mean by standard deviation over seeds.",
        "power: chance to find a difference of the margin with these seeds; seeds: how many "
        f"{100 * statistics['power']:g} % of it would take. Both take the observed spread for the true one.",
    ]
    if size > 1:
        told.append(
            f"all together: intervals that cover all {size} means with {percent} (Bonferroni). A verdict rests on p "
            "(Holm) and the interval by itself; Holm can claim a difference whose interval all together includes 0."
        )
    return "\n".join(told)


def _name(row: Mapping[str, Any], analysis: Mapping[str, Any]) -> str:
    own = []
    if row["metric"] != analysis["statistics"]["metric"]:
        own.append(row["metric"])
    if row["unit"] not in (None, analysis["statistics"].get("unit")):
        own.append(f"in {row['unit']}")
    return row["name"] + (f" ({', '.join(own)})" if own else "")


def _dropped(row: Mapping[str, Any]) -> str:
    """Seeds that a contrast does without, as these are no random ones where an arm failed."""
    told = ""
    if row["dropped"]:
        by_reason: dict[str, list[str]] = {}
        for each in row["dropped"]:
            by_reason.setdefault(each["why"], []).append(str(each["seed"]))
        told = "; without seeds " + ", ".join(f"{' '.join(seeds)} ({why})" for why, seeds in by_reason.items())
    if row["mixed"]:
        told += f"; arms of {row['mixed']} seeds were run by different code, versions or devices"
    return told


def _exploratory(console: Console, analysis: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    console.print()
    console.rule("Exploratory: not declared before the run, intervals only", align="left")
    percent = f"{100 * analysis['statistics']['confidence']:g} %"
    table = _table("contrast", "mean", f"{percent} interval", "d_z", "n", right=("mean", "d_z", "n"))
    for row in rows:
        _row(
            table,
            _name(row, analysis),
            number(row["mean"], sign=True),
            interval(row["interval"]),
            probability(row["effect_size"]),
            str(row["n"]),
        )
    console.print(table)
    for row in rows:
        if _dropped(row):
            _note(console, f"{row['name']}{_dropped(row)}")


def _gaps(console: Console, analysis: Mapping[str, Any]) -> None:
    failed, missing = analysis["failed"], analysis["missing"]
    if failed or missing or analysis["left_out"] or analysis["other_results"]:
        console.print()
    for cell in failed:
        text = f"{cell['status']}: {cell['arm']}, seed {cell['seed']} ({cell['id']}): {cell['error']}"
        _note(console, text, "red")
    if missing:
        arms: dict[str, list[str]] = {}
        for cell in missing:
            arms.setdefault(cell["arm"], []).append(str(cell["seed"]))
        told = "; ".join(f"{arm}, seeds {' '.join(seeds)}" for arm, seeds in arms.items())
        _note(console, f"not run yet: {told}", "yellow")
    for arm in analysis["left_out"]:
        _note(console, f"left out: {arm['arm']}: {arm['why']}")
    if analysis["other_results"]:
        _note(console, f"{analysis['other_results']} other results in the folder are not of this study", "yellow")


def _provenance(console: Console, provenance: Mapping[str, Any]) -> None:
    console.print()
    for what in ("git", "code", "devices", "data"):
        told = ", ".join(f"{value} ({count})" for value, count in provenance[what].items())
        if told:
            _note(console, f"{what}: {told}")
    versions = [f"{name} {' and '.join(values)}" for name, values in provenance["versions"].items()]
    _note(console, f"{', '.join(versions)}; {provenance['cells']} cells, {provenance['seconds']:.0f} s of training")
