"""What is compared: two states of a git repository, and where the suite is in one of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biases._checks import fail

CONFIGURATIONS = ("asv.conf.json", "asv.conf.jsonc")
# A hook that runs this tool sets these for its own repository.
LOCAL = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


@dataclass(frozen=True)
class State:
    """One side of a comparison.

    Attributes:
        label: as the user named it; ``"working tree"`` for the files as they are.
        commit: full hash; of the working tree, that of its HEAD.
        dirty: whether the working tree differs from ``commit`` and its differences are measured.
    """

    label: str
    commit: str
    dirty: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"label": self.label, "commit": self.commit, "dirty": self.dirty}

    def __str__(self) -> str:
        return f"{self.label} ({self.commit[:10]}{', with changes' if self.dirty else ''})"


def clean_environment() -> dict[str, str]:
    """This process's, without what names a git repository."""
    return {name: value for name, value in os.environ.items() if name not in LOCAL}


def git(folder: Path, *arguments: str) -> str:
    """The output of a git command.

    Raises:
        ValueError: git cannot be run, or it fails; the message is git's.
    """
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False)
    except OSError as error:
        fail("git", "an executable on the path", error)
    if done.returncode:
        raise ValueError(f"git {' '.join(arguments)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


class Repository:
    """A git repository with a working tree.

    Args:
        folder: any folder inside of it.

    Raises:
        ValueError: it is not inside a git repository with a working tree.
    """

    def __init__(self, folder: str | os.PathLike[str] = ".") -> None:
        path = Path(folder)
        if not path.is_dir():
            fail("repository", "an existing folder", path)
        try:
            self.root = Path(git(path, "rev-parse", "--show-toplevel").rstrip("\n")).resolve()
        except ValueError:
            fail("repository", "a folder inside a git repository with a working tree", path.resolve())

    def resolve(self, revision: str) -> State:
        """The commit that a branch, tag, hash or expression such as ``HEAD~2`` names.

        Raises:
            ValueError: it names none.
        """
        try:
            if not revision or revision.startswith("-"):
                raise ValueError
            commit = git(self.root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
        except ValueError:
            fail("revision", f"a commit of {self.root}", repr(revision))
        return State(revision, commit)

    def working_tree(self) -> State:
        """The files as they are: tracked ones, changed or not, and untracked ones that are not ignored.

        Raises:
            ValueError: there is no commit yet.
        """
        return State("working tree", self.resolve("HEAD").commit, bool(self.changes()))

    def changes(self) -> list[str]:
        """Paths at which the working tree differs from HEAD; submodules and nested repositories are left out."""
        tracked = git(self.root, "diff", "--name-only", "--no-renames", "--ignore-submodules", "-z", "HEAD")
        untracked = git(self.root, "ls-files", "--others", "--exclude-standard", "-z")
        return [path for path in (tracked + untracked).split("\0") if path and not path.endswith("/")]


def find_suite(tree: Path, chosen: str | None) -> tuple[str, float | None]:
    """The folder of the suite, relative to the tree, and the timeout that asv's configuration gives to a benchmark.

    Without a choice it is the ``benchmark_dir`` of ``asv.conf.json``, at the root or one folder below, or else
    ``benchmarks``.

    Raises:
        ValueError: there is none.
    """
    configurations = [path for name in CONFIGURATIONS for path in (tree / name, *sorted(tree.glob(f"*/{name}")))]
    configuration = next((path for path in configurations if path.is_file()), None)
    settings = _read(configuration) if configuration else {}
    if chosen is not None:
        folder = tree / chosen
    elif configuration is not None:
        folder = configuration.parent / str(settings.get("benchmark_dir", "benchmarks"))
    else:
        folder = tree / "benchmarks"
    if not folder.is_dir() or not any(folder.rglob("*.py")):
        asked = chosen or os.path.relpath(folder, tree)
        fail("suite", "a folder with asv-style benchmarks in the head revision (--suite DIR)", repr(asked))
    timeout = settings.get("default_benchmark_timeout")
    return os.path.relpath(folder, tree), float(timeout) if timeout else None


def _read(configuration: Path) -> dict[str, Any]:
    """JSON with comments and trailing commas, as asv takes it."""
    string = r'"(?:\\.|[^"\\])*"'
    text = configuration.read_text(encoding="utf-8")
    text = re.sub(rf"({string})|//[^\n]*|/\*.*?\*/", lambda found: found[1] or "", text, flags=re.S)
    text = re.sub(rf"({string})|,(?=\s*[}}\]])", lambda found: found[1] or "", text)
    try:
        settings = json.loads(text)
    except ValueError as error:
        fail(configuration.name, "JSON, with comments", error)
    return settings if isinstance(settings, dict) else {}
