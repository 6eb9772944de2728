"""What ``biases ci`` is to do: lines of arguments of ``biases check``, a base, options of ``biases compare``."""

from __future__ import annotations

import argparse
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from biases._checks import fail, one_of, positive_int
from biases.bench.compare.command import add_arguments as add_compare_arguments
from biases.bench.compare.command import options_of
from biases.checking.command import add_arguments as add_check_arguments

CONFIG = "pyproject.toml"
TABLE = "[tool.biases.ci]"
KEYS = ("check", "base", "compare")


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        checks: line -> its arguments, parsed.
        base: the revision to compare with; ``None`` where nothing is to be compared.
        compare: options of the comparison, parsed.
    """

    checks: dict[str, argparse.Namespace]
    base: str | None
    compare: argparse.Namespace


def plan_of(options: argparse.Namespace) -> Plan:
    """From the arguments of ``biases ci``, and for those that are missing or empty from the table of the file.

    Raises:
        ValueError: an unusable file, line or option, or neither something to check nor something to compare with.
    """
    table = read_table(options.config)
    lines = [line.strip() for text in options.check for line in text.splitlines() if line.strip()]
    lines = lines or table.get("check", [])
    base = options.base or table.get("base")
    words = options.compare or table.get("compare", "")
    if not lines and not base:
        fail(f"--check and --base, or {TABLE}", "something to check or to compare with", "neither")
    if words and not base:
        fail("--base", "a revision, as there are options of a comparison", "none")
    checks = {line: _parsed("check", line, add_check_arguments, _try_check) for line in lines}
    return Plan(checks, base or None, _parsed("compare", words, add_compare_arguments, options_of))


def read_table(path: str | None) -> dict[str, Any]:
    """The table ``[tool.biases.ci]`` of a TOML file: ``check``, a list of lines, and texts ``base`` and ``compare``.

    Args:
        path: ``None`` or empty = ``pyproject.toml``, which may be absent.

    Raises:
        ValueError: no such file, no TOML, an unknown key or a value of another kind.
    """
    file = Path(path or CONFIG)
    if not path and not file.exists():
        return {}
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"configuration {str(file)!r}", "a readable file", error.strerror or str(error))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fail(f"configuration {str(file)!r}", "TOML", str(error))
    table: Any = content
    for name in ("tool", "biases", "ci"):
        table = table.get(name, {})
        if not isinstance(table, dict):
            fail(f"{file}: {TABLE}", "a table", type(table).__name__)
    for key, value in table.items():
        one_of(f"{file}: {TABLE} key", key, KEYS)
        texts = value if key == "check" else [value]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            fail(f"{file}: {TABLE} {key}", "a list of strings" if key == "check" else "a string", repr(value))
    return table


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _try_check(options: argparse.Namespace) -> None:
    """Refuse what a check would, as far as that needs neither its targets nor a file.

    Raises:
        ValueError: unusable traits, options, widths, properties or counts.
    """
    from biases.testing import PROPERTIES, Traits, kinds
    from biases.testing.targets import parse_options, parse_traits, parse_widths

    # A factory may have traits of its own, such as the window that a shift needs.
    parse_traits(options.trait, Traits(window=1))
    parse_options(options.option)
    parse_widths(options.widths or ())
    for name in options.property or ():
        one_of("property", name, PROPERTIES)
    if options.kind is not None:
        one_of("--as", options.kind, kinds.KINDS)
    positive_int("--max-examples", options.max_examples)


def _parsed(
    command: str,
    words: str,
    add: Callable[[argparse.ArgumentParser], None],
    try_out: Callable[[argparse.Namespace], object],
) -> argparse.Namespace:
    """The arguments of a command that are written in one text, with quotes as in a shell.

    Args:
        command: whose they are.
        words: the text.
        add: adds the arguments of the command to a parser.
        try_out: raises ValueError for values that the command would refuse.

    Raises:
        ValueError: the command does not take them; the text is named.
    """
    parser = _Parser(add_help=False)
    add(parser)
    try:
        options = parser.parse_args(shlex.split(words))
        try_out(options)
        return options
    except ValueError as error:
        raise ValueError(f"--{command} {words!r}: {error}") from None
