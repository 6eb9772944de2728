"""What ran a cell: versions, revision, device."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

DISTRIBUTION = "attention-biases"
ROOMS = ("backends", "positions", "decays", "gates", "layers", "models", "ablation")
MODULES = ("_calls.py", "attention.py", "axial.py", "registry.py", "windows.py", "zoo.py")
SOURCES = (".py", ".cpp", ".hpp")
DECIDE_NOTHING = (
    *("_document", "_locks", "_provenance", "_run", "analysis", "arm_table", "arms", "command", "comparisons"),
    *("contrasts", "grid", "progress", "results", "run_view", "stats_command", "stats_view", "study", "study_folder"),
)
"""Modules of this room that choose, keep, judge or show trainings; all others count as deciding numbers."""


@dataclass(frozen=True)
class Source:
    """What the running code was read from; read it before a training, during which files may be changed.

    Attributes:
        git: see :func:`git_revision`.
        code: see :func:`code_fingerprint`.
    """

    git: str | None
    code: str


def read_source() -> Source:
    return Source(git_revision(), code_fingerprint())


def versions(code: str | None = None) -> dict[str, str | None]:
    """Versions of what decides the numbers; ``biases`` is ``None`` where it is not installed.

    Args:
        code: the fingerprint, if it was read before.
    """
    try:
        own: str | None = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        own = None
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "biases": own,
        "code": code or code_fingerprint(),
    }


@functools.cache
def code_fingerprint() -> str:
    """First 12 hex digits of the SHA-256 of the source that decides the numbers: of models and of their training."""
    package = Path(__file__).resolve().parent.parent
    left_out = {package / "ablation" / f"{name}.py" for name in DECIDE_NOTHING}
    left_out |= set((package / "ablation" / "executors").glob("*.py"))
    files = [package / name for name in MODULES]
    rooms = (path for room in ROOMS for path in (package / room).rglob("*") if path.suffix in SOURCES)
    files += [path for path in rooms if path not in left_out]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@functools.cache
def git_revision() -> str | None:
    """The commit of the checkout that this package runs from, ``-dirty`` if changed since; else ``None``."""
    here = Path(__file__).resolve()
    tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name)
    if tracked is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def device_name(device: str) -> str:
    """The model of the accelerator or processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
