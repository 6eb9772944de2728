"""The temporary folder of a comparison: a worktree for each side, the suite, and what cleans all of it up."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from biases._checks import fail
from biases.bench.compare import child, janitor
from biases.bench.compare.revisions import Repository, State, clean_environment, find_configuration, find_suite

# Compiled code that is found again by a name or a path rather than by its content must not pass between the sides.
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "NUMBA_CACHE_DIR", "PYTHON_EGG_CACHE")


class Workspace:
    """A context manager that leaves nothing behind, also where this process is killed.

    Both trees have paths of equal length, as the length of the environment moves a program's stack and with it its
    speed.

    Args:
        repository: whose files are compared.

    Attributes:
        sources: folders of a tree that modules are imported from, nearest first.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.sources = list(dict.fromkeys((repository.project, ".")))

    def __enter__(self) -> Workspace:
        # In a session of its own, so that Ctrl-C in a terminal does not reach it.
        self._janitor = subprocess.Popen(
            [sys.executable, "-I", str(janitor.__file__), str(self.repository.root), tempfile.gettempdir()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
            cwd="/",
            start_new_session=True,
        )
        try:
            assert self._janitor.stdout is not None
            made = self._janitor.stdout.readline().rstrip("\n")
            if not made:
                raise OSError(f"could not make a folder in {tempfile.gettempdir()}")
            self.folder = Path(made).resolve()
            # Copied now: a change of the checkout during a long comparison must not change how it measures.
            tools = self.folder / "tools" / "measured_side"
            shutil.copytree(Path(str(child.__file__)).parent, tools, ignore=_compiled)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._janitor.communicate()

    def tell(self, message: str) -> None:
        """Tell the janitor.

        Raises:
            OSError: it has ended, so that nothing would be cleaned up.
        """
        assert self._janitor.stdin is not None
        try:
            self._janitor.stdin.write(message + "\n")
            self._janitor.stdin.flush()
        except BrokenPipeError:
            raise OSError(f"the process that is to remove {self.folder} has ended") from None

    def check_out(self, side: str, state: State) -> Path:
        """A worktree of ``state``, with the differences of the user's working tree if it is that one.

        Raises:
            ValueError: git could not make it; the message is git's.
        """
        tree = self.folder / side
        self.tell(f"worktree {tree}")
        # Hooks of the user, such as post-checkout, are for the user's checkouts.
        command = ["git", "-c", "core.hooksPath=/dev/null", "-C", str(self.repository.root)]
        command += ["worktree", "add", "--quiet", "--detach", str(tree), state.commit]
        self._run(command, self.folder, f"worktree of {state}")
        for path in self.repository.changes() if state.dirty else ():
            _take(self.repository.root / path, tree / path)
        return tree

    def prepare(self, tree: Path, command: str) -> None:
        """Run a command of the user in a tree, as to build an extension in place.

        Raises:
            ValueError: it fails.
        """
        self._run(shlex.split(command), tree, "--prepare", env=self.environment(tree))

    def _run(self, command: list[str], folder: Path, what: str, env: dict[str, str] | None = None) -> None:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=env or clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            fail(what, "a command that can be run", error)
        self.tell(f"started {process.pid}")
        output, _ = process.communicate()
        self.tell(f"ended {process.pid}")
        if process.returncode:
            raise ValueError(f"{what}: {shlex.join(command)}: exit code {process.returncode}: {output.strip()[-2000:]}")

    def copy_suite(self, tree: Path, chosen: str | None) -> tuple[Path, float | None]:
        """A copy of the suite that lies apart from both trees, and the timeout of its configuration.

        Args:
            tree: that of head.
            chosen: a folder relative to the project or the root of the repository, which is then taken from ``tree``,
                or an absolute one elsewhere; ``None`` looks for it. See :func:`find_suite`.

        Raises:
            ValueError: there is none.
        """
        root, project = self.repository.root, self.repository.project
        if chosen is not None and os.path.isabs(chosen) and _inside(root, Path(chosen)):
            chosen, project = os.path.relpath(Path(chosen).resolve(), root), "."
        relative, timeout = find_suite(tree, chosen, project)
        configuration = find_configuration(tree, project)
        if configuration is not None:
            self.sources = list(dict.fromkeys((*self.sources, os.path.relpath(configuration.parent, tree))))
        source = tree / relative
        copy = self.folder / "suite" / source.resolve().name.replace(".", "_")
        shutil.copytree(source, copy, ignore=_compiled, ignore_dangling_symlinks=True)
        return copy, timeout

    def environment(self, tree: Path) -> dict[str, str]:
        """What a process of this side sees: its tree first, with the folders of its own that modules are imported from,
        and its own caches of compiled code."""
        environment = clean_environment()
        root = self.repository.root
        given = [Path(entry) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
        mapped = [tree / path.resolve().relative_to(root) if _inside(root, path) else path for path in given]
        own = [tree / folder / source for folder in self.sources for source in (".", "src")]
        environment["PYTHONPATH"] = os.pathsep.join(map(str, [*filter(Path.is_dir, own), *mapped]))
        caches = self.folder / f"{tree.name}-caches"
        for name in CACHES:
            environment[name] = str(caches / name.lower())
        return environment


def _inside(root: Path, path: Path) -> bool:
    resolved = path.resolve()
    return resolved == root or root in resolved.parents


def _compiled(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]


def _take(source: Path, target: Path) -> None:
    """Make ``target`` what ``source`` is: a file, a link, or nothing."""
    if target.is_symlink() or target.exists():
        if target.is_dir() and not target.is_symlink():
            return
        target.unlink()
    if source.is_symlink() or source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)
