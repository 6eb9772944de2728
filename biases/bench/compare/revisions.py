"""What is compared: two states of a git repository, and where the suite is in one of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from contextlib import suppress
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


def _project(folder: Path, root: Path) -> str:
    """A package on the path would hide modules of the standard library by its own, as ``types``."""
    while folder != root and (folder / "__init__.py").is_file():
        folder = folder.parent
    return os.path.relpath(folder, root)


class Repository:
    """A git repository with a working tree.

    Args:
        folder: any folder inside of it.

    Attributes:
        root: of the working tree.
        project: from where modules are imported: ``folder``, or the nearest above it that is no package; relative to
            the root.

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
        self.project = _project(path.resolve(), self.root)

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
            fail("revision", f"a commit of {self.root}", f"{revision!r}{self._why_not_there(revision)}")
        return State(revision, commit)

    def _why_not_there(self, revision: str) -> str:
        """Of a revision that names no commit: what a clone may lack."""
        if git(self.root, "rev-parse", "--is-shallow-repository").strip() == "true":
            hint = "`git fetch --unshallow`, or in CI `fetch-depth: 2` of actions/checkout for HEAD^1, 0 for all"
            return f"; the clone is shallow and has not all of the history: {hint}"
        if revision.startswith("HEAD") and len(revision) > len("HEAD"):
            with suppress(ValueError):
                if len(git(self.root, "rev-list", "--max-count=1", "--parents", "HEAD").split()) == 1:
                    return "; HEAD is the first commit, and has none before it"
        return ""

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


def find_configuration(tree: Path, project: str = ".") -> Path | None:
    """The ``asv.conf.json`` of ``project``, a folder of the tree, or else of the tree; there or one folder below."""
    for folder in (tree / project, tree):
        for name in CONFIGURATIONS:
            paths = (folder / name, *sorted(folder.glob(f"*/{name}")))
            found = next((path for path in paths if path.is_file()), None)
            if found is not None:
                return found
    return None


def find_suite(tree: Path, chosen: str | None, project: str = ".") -> tuple[str, float | None]:
    """The folder of the suite, relative to the tree, and the timeout that asv's configuration gives to a benchmark.

    Args:
        tree: files of a revision.
        chosen: the suite, relative to ``project`` or to the tree. Without a choice it is ``benchmarks`` in ``project``
            where no configuration is nearer, the ``benchmark_dir`` of :func:`find_configuration`, or ``benchmarks``.
        project: folder of the tree, relative to it.

    Raises:
        ValueError: there is none.
    """
    configuration = find_configuration(tree, project)
    settings = _read(configuration) if configuration else {}
    if chosen is not None:
        folders = [tree / project / chosen, tree / chosen]
    elif configuration is not None and configuration.is_relative_to(tree / project):
        folders = [configuration.parent / str(settings.get("benchmark_dir", "benchmarks"))]
    else:
        above = configuration.parent / str(settings.get("benchmark_dir", "benchmarks")) if configuration else None
        folders = [tree / project / "benchmarks", above or tree / "benchmarks"]
    folder = next((each for each in folders if _holds_modules(each)), None)
    if folder is None:
        asked = chosen or os.path.relpath(folders[-1], tree)
        fail("suite", "a folder with asv-style benchmarks in the head revision (--suite DIR)", repr(asked))
    timeout = settings.get("default_benchmark_timeout")
    return os.path.relpath(folder, tree), float(timeout) if timeout else None


def _holds_modules(folder: Path) -> bool:
    return folder.is_dir() and any(folder.rglob("*.py"))


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
