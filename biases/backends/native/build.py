"""Compiling the kernel at first use, and finding what was compiled before.

The library lies in ``$XDG_CACHE_HOME/biases`` (``~/.cache/biases``), under a name that is the hash of sources, flags,
compiler and processor. A folder that it has to be written to and cannot, or that is not named by an absolute path, is
replaced by a temporary one that lasts as long as the process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

HEADERS = ("backward", "bounds", "forward", "masks", "problem", "product", "retention", "terms", "tiles", "vector")
SOURCES = ("kernel.cpp", *(f"{name}.hpp" for name in HEADERS))
COMPILERS = ("g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fPIC")
#: seconds that a run of the compiler may take, and that one process waits for another that compiles the same
TIME_LIMIT = 120.0


class BuildError(RuntimeError):
    """There is no compiler, or none that compiles the kernel."""


def library() -> ctypes.CDLL:
    """The compiled kernel, built if need be.

    Raises:
        BuildError: no compiler, or it failed, or took too long; the message says which.
    """
    compiler = find_compiler()
    reasons = []
    for flags, link in variants():
        try:
            return ctypes.CDLL(str(_built(compiler, flags, link)))
        except (BuildError, OSError) as error:
            reasons.append(str(error))
    raise BuildError(reasons[0])


def find_compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, or the first of :data:`COMPILERS` that there is.

    Raises:
        BuildError: there is none.
    """
    wanted = shlex.split(os.environ.get("CXX", ""))
    if wanted:
        found = shutil.which(wanted[0])
        if found is None:
            raise BuildError(f"no C++ compiler: $CXX is {wanted[0]!r}, which is not there")
        return [found, *wanted[1:]]
    for name in COMPILERS:
        if (found := shutil.which(name)) is not None:
            return [found]
    raise BuildError(f"no C++ compiler: neither $CXX nor {' nor '.join(COMPILERS)}")


def variants() -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Flags of the compiler and of the linker to be tried in turn: with OpenMP, and without.

    torch brings its own OpenMP. Another one beside it would have its own threads, which fight for the same cores.
    """
    bundled = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    bundled += sorted(Path(torch.__file__).parents[1].glob("torch.libs/libgomp*.so*"))
    threads = (str(bundled[0]),) if bundled else ("-fopenmp",)
    return [(("-fopenmp",), threads), ((), ())]


def wanted_folder() -> Path | None:
    """Where compiled kernels ought to be kept; ``None`` where that would depend on the working directory."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"))
    return base / "biases" if base.is_absolute() else None


def cache_folder() -> Path:
    """:func:`wanted_folder`, made and sure to be writable, or a temporary one, the same for the whole process.

    Raises:
        BuildError: no folder can be written to, not even a temporary one.
    """
    folder = wanted_folder()
    if folder is None:
        return _temporary_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return _temporary_folder()


@functools.cache
def _temporary_folder() -> Path:
    try:
        temporary = tempfile.mkdtemp(prefix="biases-")
    except OSError as error:
        raise BuildError(f"no folder for the compiled kernel: {error}") from error
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def _built(compiler: list[str], flags: tuple[str, ...], link: tuple[str, ...]) -> Path:
    """The library for these flags, compiled if it is not there yet."""
    sources = Path(__file__).parent
    name = f"native-{_key(compiler, flags, link, sources)}.so"
    wanted = wanted_folder()
    if wanted is not None and (wanted / name).exists():
        return wanted / name
    folder = cache_folder()
    target = folder / name
    with _only_one(target):
        if target.exists():
            return target
        with tempfile.TemporaryDirectory(dir=folder) as work:
            built = Path(work, "kernel.o"), Path(work, "kernel.so")
            run_compiler([*compiler, *FLAGS, *flags, "-c", str(sources / SOURCES[0]), "-o", str(built[0])])
            run_compiler([*compiler, "-shared", "-o", str(built[1]), str(built[0]), *link])
            os.replace(built[1], target)
    return target


def _key(compiler: list[str], flags: tuple[str, ...], link: tuple[str, ...], sources: Path) -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((sources / name).read_bytes())
    version = run_compiler([*compiler, "--version"])
    for part in (*compiler, *FLAGS, *flags, *link, version, platform.platform(), _processor()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:20]


def _processor() -> str:
    """What ``-march=native`` depends on."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        wanted = ("flags", "Features", "model name", "CPU part")
        return "".join(sorted({line for line in file if line.startswith(wanted)}))
    return platform.processor()


def run_compiler(command: list[str]) -> str:
    """Its standard output.

    Raises:
        BuildError: it cannot be started, fails, or takes longer than :data:`TIME_LIMIT`.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT,
            check=False,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"C++ compiler {command[0]}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise BuildError(f"C++ compiler {command[0]} failed: {lines[0] if lines else done.returncode}")
    return done.stdout


@contextlib.contextmanager
def _only_one(target: Path) -> Iterator[None]:
    """Keeps other processes from compiling the same meanwhile; after :data:`TIME_LIMIT` they do it themselves."""
    lock = target.with_suffix(".lock")
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(lock, "w", encoding="utf-8") as file:
        stop = time.monotonic() + TIME_LIMIT
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > stop:
                    break
                time.sleep(0.05)
        yield
