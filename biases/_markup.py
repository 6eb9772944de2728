"""Text of anybody's in XML and Markdown: nothing in it breaks the form of what it stands in."""

from __future__ import annotations

import re

LONGEST = 200
_READ = 4000
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def printable(text: str) -> str:
    """Without the control characters that XML 1.0 has no form for, and surrogates, which UTF-8 has none for."""
    return _UNPRINTABLE.sub("?", text)


def cell(text: str, longest: int = LONGEST) -> str:
    """One line of Markdown, of a table too, in which nothing is markup; what is longer than ``longest`` is cut."""
    line = _line(text)
    line = line if len(line) <= longest else f"{line[:longest]}..."
    return re.sub(r"([\\`*_\[\]<>|~&#])", r"\\\1", line)


def code(text: str) -> str:
    """One line of code in Markdown, of a table too."""
    line = _line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{line}{space}{fence}".replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(printable(text[:_READ]).split())
