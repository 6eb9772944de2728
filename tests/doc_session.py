"""Pages of docs/ as sessions: their blocks, run in order in one folder, and what they print beside what is shown.

A ``python`` or ``toml`` block that begins with ``# NAME`` is a file; another ``python`` block is run, and a ``text``
block after it is what it prints. A ``console`` block has commands after ``$ ``, each followed by what it prints, if
that is shown; a command ends with exit code 0 unless ``$ echo $?`` follows. ``...`` stands for anything, though not by
itself, and white space does not count. Of a ``sh`` block the lines are run that the session is given options for, to
make them small. Blocks in other languages are not run.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from biases.claims import CLAIMS
from biases.cli import main
from biases.registry import VARIANTS
from biases.testing import PROPERTIES
from biases.testing.mutants import MUTANTS, SOUND

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.S | re.M)
FILE = re.compile(r"# ([\w/]+\.(?:py|toml))\n")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: relative to the repository.
        line: where it begins.
        language: as written after the fence.
        text: what is inside.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console, each with what is shown after it; the lines of a shell script."""
        if self.language == "sh":
            return [(line, "") for line in self.text.splitlines() if line and not line.startswith("#")]
        parts = re.split(r"^\$ (.*)\n?", self.text, flags=re.M)
        return list(zip(parts[1::2], parts[2::2], strict=True))


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, without directives of Sphinx."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(str(page.relative_to(ROOT)), text[: found.start()].count("\n") + 1, found[1], found[2])
        for found in FENCE.finditer(text)
        if not found[1].startswith("{")
    ]


@contextlib.contextmanager
def apart(folder: Path) -> Iterator[None]:
    """In ``folder``, and afterwards as if nothing had been registered, imported or drawn."""
    registries = [(each, dict(each)) for each in (VARIANTS, PROPERTIES, MUTANTS, SOUND, CLAIMS)]
    path, modules, bytecode = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    environment = dict(os.environ)
    for name in ("FORCE_COLOR", "PYTEST_ADDOPTS", "TTY_COMPATIBLE"):
        os.environ.pop(name, None)
    os.environ["COLUMNS"] = "100"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))
    sys.path.insert(0, str(folder))
    # A file that is written anew within a second would be taken from its old bytecode.
    sys.dont_write_bytecode = True
    try:
        with contextlib.chdir(folder), torch.random.fork_rng(devices=[]):
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:], sys.dont_write_bytecode = path, bytecode
        for name in set(sys.modules) - modules:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
        for registry, before in registries:
            registry.clear()
            registry.update(before)


class Session:
    """One page, run.

    Attributes:
        appended: options to the lines of ``sh`` blocks that are run.
        wrong: where the page says otherwise than what happened.
    """

    def __init__(self, folder: Path, appended: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.appended = appended or {}
        self.wrong: list[str] = []

    def run(self, page: list[Block]) -> list[str]:
        """What is wrong with the page."""
        with apart(self.folder):
            printed: str | None = None
            for block in page:
                file = FILE.match(block.text)
                if block.language == "text":
                    assert printed is not None, f"{block.where}: a text block after no python block"
                    self._compare(block.where, block.text, printed)
                    printed = None
                elif file:
                    self._write(file[1], block.text)
                elif block.language == "python":
                    printed = self._python(block)
                elif block.language == "console":
                    self._console(block)
                elif block.language == "sh":
                    self._small(block)
        return self.wrong

    def run_alone(self, block: Block) -> list[str]:
        """What is wrong with a ``python`` block that stands for itself."""
        with apart(self.folder):
            self._python(block)
        return self.wrong

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.modules.pop(".".join(Path(name).with_suffix("").parts), None)
        importlib.invalidate_caches()

    def _python(self, block: Block) -> str:
        script = self.folder / "block.py"
        script.write_text(block.text, encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                runpy.run_path(str(script), run_name="__main__")
            except Exception:
                self.wrong.append(f"{block.where}: raised\n{traceback.format_exc()}")
        return printed.getvalue()

    def _console(self, block: Block) -> None:
        commands = block.commands
        code = 0
        for number, (command, shown) in enumerate(commands):
            if command == "echo $?":
                self._compare(f"{block.where}: exit code of $ {commands[number - 1][0]}", shown, f"{code}\n")
                continue
            code, printed = execute(command)
            if shown.strip():
                self._compare(f"{block.where}: $ {command}", shown, printed)
            asked = number + 1 < len(commands) and commands[number + 1][0] == "echo $?"
            if code and not asked:
                self.wrong.append(f"{block.where}: $ {command}: expected exit code 0, got {code}\n{printed}")

    def _small(self, block: Block) -> None:
        for command, _ in block.commands:
            if command in self.appended:
                code, printed = execute(f"{command} {self.appended[command]}")
                if code:
                    self.wrong.append(f"{block.where}: {command}: expected exit code 0, got {code}\n{printed}")

    def _compare(self, where: str, shown: str, printed: str) -> None:
        if "..." in shown and not shown.replace("...", "").strip():
            self.wrong.append(f"{where}: expected something beside ...")
        elif not doctest.OutputChecker().check_output(shown, printed, FLAGS):
            self.wrong.append(f"{where}: expected\n{shown}\ngot\n{printed}")


def execute(command: str) -> tuple[int, str]:
    """Exit code and output, of both streams, of a command: of ``biases`` in this process, of others in another.

    What it prints goes to the file after ``>``, if there is one.
    """
    words = shlex.split(command, comments=True)
    words, file = (words[:-2], Path(words[-1])) if words[-2:-1] == [">"] else (words, None)
    if words[0] == "biases":
        out = io.StringIO()
        told = out if file is None else io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
            try:
                code = main(words[1:])
            except SystemExit as error:
                code = int(error.code or 0)
        if file is not None:
            file.write_text(out.getvalue(), encoding="utf-8")
        return code, told.getvalue()
    assert words[0] in ("python", "mkdir"), f"expected biases, python or mkdir, got {command!r}"
    assert file is None, f"expected a file written by biases, got {command!r}"
    words[0] = sys.executable if words[0] == "python" else words[0]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280)
    return done.returncode, done.stdout
