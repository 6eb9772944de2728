"""Tables of a TOML document whose every complaint names the file and the key."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from biases._checks import fail

T = TypeVar("T")


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


class Document:
    """A parsed file.

    Args:
        name: of the file, which every error begins with.
        content: its top table.
    """

    def __init__(self, name: str, content: Mapping[str, Any]) -> None:
        self.name, self.content = name, content

    def fail(self, path: str, expected: object, got: object) -> None:
        fail(f"{self.name}: {path}", expected, got)

    def known(self, path: str, table: Mapping[str, Any], keys: Iterable[str]) -> None:
        """Check that the table at ``path`` has no other keys; the nearest is named."""
        names = list(keys)
        for key in table:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                self.fail(join(path, key), f"one of the keys {', '.join(names)}", f"{key!r}{hint}")

    def check_integers(self, path: str, value: Any) -> None:
        """Check that the integers in ``value`` are of 64 bits, as TOML has them."""
        if isinstance(value, dict):
            for key, each in value.items():
                self.check_integers(join(path, key), each)
        elif isinstance(value, list):
            for index, each in enumerate(value):
                self.check_integers(f"{path}[{index}]", each)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            self.fail(path, "an integer of 64 bits", f"one of {value.bit_length()} bits")

    def typed(self, path: str, value: Any, kind: type[T], expected: str) -> T:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(path, expected, repr(value))
        return value

    def table(self, path: str, value: Any) -> dict[str, Any]:
        return self.typed(path, value, dict, "a table")

    def text(self, path: str, table: Mapping[str, Any], key: str, default: str | None = None) -> str:
        where = join(path, key)
        if key not in table and default is None:
            self.fail(where, "a text", "nothing")
        value = self.typed(where, table.get(key, default), str, "a text")
        if not value.strip():
            self.fail(where, "a text", repr(value))
        return value

    def tables(self, key: str) -> list[dict[str, Any]]:
        """An array of tables of the top."""
        values = self.typed(key, self.content.get(key, []), list, f"tables [[{key}]]")
        return [self.table(f"{key}[{index}]", value) for index, value in enumerate(values)]

    def make(self, path: str, cls: Callable[..., T], values: Mapping[str, Any], *, prefix: str) -> T:
        """A dataclass from the table at ``path``.

        Args:
            prefix: what the class's own errors begin with, followed by the field.

        Raises:
            ValueError: an unknown, missing or refused field.
        """
        self.known(path, values, [each.name for each in fields(cls)])  # type: ignore[arg-type]
        try:
            return cls(**values)
        except TypeError as error:
            # Only a field without a default can be amiss: the rest are known.
            raise ValueError(f"{self.name}: {path}: expected every key that is required, got {error}") from error
        except ValueError as error:
            raise ValueError(f"{self.name}: {self._located(path, prefix, str(error))}") from error

    @staticmethod
    def _located(path: str, prefix: str, message: str) -> str:
        rest = message.removeprefix(f"{prefix} ")
        return f"{path}: {message}" if rest == message else join(path, rest)
