"""Facts about the machine, so that a measurement can be read later.

They explain a time; they do not make it comparable with one taken elsewhere.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


def facts() -> dict[str, Any]:
    """Describe this machine and process; the values are JSON-ready, and ``None`` where unknown.

    Returns:
        ``cpu`` (model), ``cores`` (logical), ``usable_cores`` (by this process), ``memory_bytes`` (physical),
        ``os``, ``python``, ``torch``, ``threads`` (of one operator), ``cuda_device``, ``cuda_memory_bytes``,
        ``cuda_driver``, ``cuda_version`` (that torch was built for), ``git_revision`` (of the current
        directory; ``-dirty`` is appended where tracked files differ from it) and ``date`` (UTC, ISO 8601).
    """
    cuda = _fact(torch.cuda.is_available)
    return {
        "cpu": _fact(_cpu_model),
        "cores": os.cpu_count(),
        "usable_cores": _fact(lambda: len(os.sched_getaffinity(0))),
        "memory_bytes": _fact(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cuda_device": _fact(torch.cuda.get_device_name) if cuda else None,
        "cuda_memory_bytes": _fact(_cuda_memory) if cuda else None,
        "cuda_driver": _fact(_cuda_driver) if cuda else None,
        "cuda_version": torch.version.cuda,
        "git_revision": _fact(_git_revision),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _fact(read: Callable[[], Any]) -> Any:
    """The value read, or ``None``: a missing fact must not cost a measurement."""
    try:
        return read()
    except Exception:
        return None


def _cpu_model() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or None


def _cuda_memory() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def _cuda_driver() -> str | None:
    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return lines.splitlines()[0] if lines else None


def _git_revision() -> str | None:
    return _output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _output(*command: str) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip() or None
