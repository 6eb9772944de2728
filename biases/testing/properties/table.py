"""The table of the properties, in Markdown: ``python -m biases.testing.properties.table FILE`` fills it in."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from biases._checks import fail
from biases._files import write_atomically
from biases.testing.properties import PROPERTIES

BEGIN, END = "<!-- begin properties -->", "<!-- end properties -->"


def markdown() -> str:
    """One table a family, in the order in which the properties are checked."""
    families: dict[str, list[str]] = {}
    for each in PROPERTIES.values():
        because = each.trait or "always"
        because += ", where it is asked for (`--slow`)" if each.slow else ""
        row = f"| `{each.name}` | {each.promise} | {', '.join(each.kinds)} | {because} |"
        families.setdefault(each.check.__module__, []).append(row)
    blocks = []
    for module, rows in families.items():
        heading = (importlib.import_module(module).__doc__ or module).strip().splitlines()[0].rstrip(".")
        blocks.append(
            "\n".join([f"### {heading}", "", "| property | promise | of | applies |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(blocks)


def generate(text: str) -> str:
    """``text`` with the table between its marks.

    Raises:
        ValueError: the marks are missing.
    """
    if BEGIN not in text or END not in text:
        fail("document", f"the marks {BEGIN} and {END}", "neither or one of them")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    (name,) = sys.argv[1:] if arguments is None else arguments
    path = Path(name)
    write_atomically(path, generate(path.read_text(encoding="utf-8")).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
