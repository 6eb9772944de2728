"""``biases list``: the zoo for machines and for people."""

from __future__ import annotations

import json
import re
from typing import Any

from biases import zoo

ARXIV = re.compile(r"\d{4}\.\d{4,5}")


def show_all(kind: str | None, as_json: bool) -> bool:
    """Print every variant of a kind; whether there was one."""
    rows = [{**row, "formulations": zoo.fast_paths(row["name"])} for row in zoo.table(kind)]
    if as_json:
        print(json.dumps(rows, indent=1))
        return bool(rows)
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, share in (("name", None), ("what", 3), ("fast path", 2), ("here", 1), ("arXiv", 1)):
        table.add_column(column, ratio=share, no_wrap=share is None)
    for row in rows:
        mark = " *" if row["known_failures"] else ""
        papers = " ".join(dict.fromkeys(ARXIV.findall(row["paper"] or "")))
        here = (row["formulations"] or {}).get("cpu", "")
        table.add_row(row["name"] + mark, row["summary"], row["fast_path"] or "", here, papers)
    console = Console()
    console.print(table)
    console.print("* breaks a promise of its paper: `biases list NAME` says which", highlight=False)
    console.print("here: what attention on this CPU uses (float32)", highlight=False)
    return True


def show_one(name: str, as_json: bool) -> None:
    """Print one variant in full.

    Raises:
        ValueError: unknown name, or options with which it cannot be built.
    """
    row = _row(name)
    print(json.dumps(row, indent=1) if as_json else _describe(row))


def _row(name: str) -> dict[str, Any]:
    variant = zoo.get(name)
    # Traits and known failures are functions of the options and do not check them.
    built = zoo.trial(name) if "[" in name else None
    base = next(row for row in zoo.table() if row["name"] == name.partition("[")[0])
    traits = variant.traits.as_dict()
    row = {**base, "name": name, "options": dict(variant.options), "traits": traits}
    row["fast_path"] = traits["fast_path"]
    if built is not None and variant.kind == "model":
        row["parameters"] = f"{sum(parameter.numel() for parameter in built.parameters()):,}"
    return {**row, "formulations": zoo.fast_paths(name), "known_failures": dict(variant.known_failures)}


def _describe(row: dict[str, Any]) -> str:
    """One variant in full, for people."""
    lines = [f"{row['name']}: {row['summary']}"]
    for key in ("kind", "family", "paper", "parameters", "fast_path"):
        if row[key] is not None:
            lines.append(f"  {key.replace('_', ' '):<12}{row[key]}")
    for device, used in (row["formulations"] or {}).items():
        lines.append(f"    {device:<22}{used}")
    for key in ("options", "traits", "known_failures"):
        entries = {name: value for name, value in row[key].items() if key == "options" or value not in (None, ())}
        if entries:
            lines.append(f"  {key.replace('_', ' ')}")
            lines += [f"    {name:<22}{value}" for name, value in entries.items()]
    lines += [f"  note: {note}" for note in row["notes"]]
    if "[" in row["name"]:
        what = "summary and notes" if row["kind"] == "model" else "summary, parameters and notes"
        lines.append(f"  ({what} speak of the default options)")
    return "\n".join(lines)
