"""Where a factory is written, for reports that point into the source."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Location:
    """A line of a source file.

    Attributes:
        path: relative to the root of the sources, with ``/``; absolute where the file lies elsewhere.
        line: from 1.
    """

    path: str
    line: int

    @property
    def inside(self) -> bool:
        """Whether the file is one of the sources."""
        return not Path(self.path).is_absolute()


def location_of(factory: Callable[..., Any], root: Path, module: str | None = None) -> Location | None:
    """Where ``factory`` is defined: its function or class, else the first line of its module.

    Args:
        factory: partials and decorators are looked through; of an instance it is the class.
        root: of the sources.
        module: name of the module that it was found in, where it does not say.

    Returns:
        ``None`` where there is no source, as of what is compiled.
    """
    found: Any = factory
    while isinstance(found, functools.partial):
        found = found.func
    with suppress(ValueError):
        found = inspect.unwrap(found)
    if not inspect.isroutine(found) and not inspect.isclass(found):
        found = type(found)
    with suppress(OSError, TypeError):
        return _location(inspect.getsourcefile(found), inspect.getsourcelines(found)[1], root)
    for name in (getattr(found, "__module__", None), module):
        file = getattr(sys.modules.get(str(name)), "__file__", None)
        if file is not None and file.endswith(".py"):
            return _location(file, 1, root)
    return None


def source_root() -> Path:
    """The nearest folder above the current one that holds a git repository, else the current one."""
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def project_file(root: Path) -> Location:
    """Where to point at for what has no line in the sources: the nearest ``pyproject.toml``, which may be absent."""
    here = Path.cwd().resolve()
    above = [folder for folder in (here, *here.parents) if folder.is_relative_to(root)]
    files = (folder / "pyproject.toml" for folder in above)
    return _location(str(next((file for file in files if file.is_file()), root / "pyproject.toml")), 1, root)


def _location(file: str | None, line: int, root: Path) -> Location:
    path = Path(file or "").resolve()
    if path.is_relative_to(root):
        path = path.relative_to(root)
    return Location(path.as_posix(), max(1, line))
