"""Compiling the native kernel: what is cached and where, and what happens without a compiler."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from biases import attend, formulation
from biases.backends import native
from biases.backends.native import arguments, build, plan

Q = torch.zeros(1, 1, 4, 4)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes ``$CXX`` a shell script of these lines; returns how often it was run, but for its version."""

    def make(*lines: str):
        script, log = tmp_path / "c++", tmp_path / "log"
        log.touch()
        version = 'if [ "$1" = --version ]; then echo one; exit; fi'
        script.write_text("\n".join(["#!/bin/sh", version, f"echo run >> {log}", *lines, ""]))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(script))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return lambda: len(log.read_text().splitlines())

    return make


WRITES = 'while [ "$1" != -o ]; do shift; done; echo library > "$2"'


@pytest.fixture
def untried(monkeypatch):
    """As in a process that has not tried to build the kernel."""
    monkeypatch.setattr(plan, "_failure", None)
    arguments.kernel.cache_clear()
    yield
    arguments.kernel.cache_clear()


def test_a_compiled_kernel_is_kept(compiler, tmp_path):
    """The second time nothing is compiled; other flags make another library."""
    runs = compiler(WRITES)
    first = build._built(build.find_compiler(), (), ())
    assert (first.read_text(), runs()) == ("library\n", 2)
    assert first.parent == tmp_path / "cache" / "biases"
    assert build._built(build.find_compiler(), (), ()) == first
    assert runs() == 2
    assert build._built(build.find_compiler(), ("-fopenmp",), ()) != first
    assert runs() == 4
    assert not [x for x in first.parent.iterdir() if x.is_dir()]


def test_several_that_want_it_at_once_compile_it_once(compiler):
    runs = compiler("sleep 0.2", WRITES)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: build._built(build.find_compiler(), (), ()), range(4)))
    assert len(set(found)) == 1
    assert runs() == 2


def test_a_cache_that_cannot_be_written_to_is_replaced(monkeypatch, tmp_path):
    """A file stands where the folder ought to be; one temporary folder serves the process, and goes with it."""
    (tmp_path / "biases").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = build.cache_folder()
    assert folder.is_dir()
    assert tmp_path not in folder.parents
    assert build.cache_folder() == folder


@pytest.mark.parametrize(("cache", "home"), [("cache", "/nowhere"), ("", "~nobody-of-this-name")])
def test_nothing_is_kept_below_the_working_directory(monkeypatch, tmp_path, cache, home):
    """Relative names of the cache, or a home that is not known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", home)
    assert build.wanted_folder() is None
    assert build.cache_folder().is_absolute()
    assert not list(tmp_path.iterdir())


def test_a_library_in_a_folder_that_cannot_be_written_to_is_used(compiler, monkeypatch):
    """As in an image whose cache was filled when it was made."""
    runs = compiler(WRITES)
    first = build._built(build.find_compiler(), (), ())
    monkeypatch.setattr(build, "cache_folder", lambda: pytest.fail("a folder to write to was asked for"))
    assert build._built(build.find_compiler(), (), ()) == first
    assert runs() == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("echo 'kernel.cpp:1: error: no such thing' >&2; exit 1",), "failed: kernel.cpp:1: error: no such thing"),
        (("exec sleep 60",), "timed out"),
        ((WRITES,), "invalid ELF header|too short|not a mach-o"),
    ],
    ids=["fails", "hangs", "writes nonsense"],
)
def test_a_compiler_that_does_not_work_is_a_reason(compiler, untried, monkeypatch, lines, message):
    """Nothing is raised by ``auto``; a kernel asked for by name is refused with the compiler's own words."""
    monkeypatch.setattr(build, "TIME_LIMIT", 0.5)
    monkeypatch.delenv("BIASES_NATIVE", raising=False)
    runs = compiler(*lines)
    ready, reason = native.available()
    assert not ready
    with pytest.raises(ValueError, match=f"attend backend 'native'.*({message})"):
        attend(Q, Q, Q, weights="sigmoid", backend="native")
    tried = runs()
    assert formulation(Q, Q, Q, weights="sigmoid").name == "tiles"
    assert attend(Q, Q, Q, weights="sigmoid").shape == Q.shape
    assert native.available() == (False, reason)
    assert runs() == tried


def test_no_compiler_is_a_reason(untried, monkeypatch):
    monkeypatch.delenv("BIASES_NATIVE", raising=False)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert native.available() == (False, "no C++ compiler: $CXX is '/nowhere/c++', which is not there")
    plan._failure = None
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    assert native.available() == (False, "no C++ compiler: neither $CXX nor g++ nor clang++")


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("BIASES_NATIVE", "0")
    assert native.available() == (False, "switched off by BIASES_NATIVE=0")
    assert formulation(Q, Q, Q, weights="sigmoid").name == "tiles"
    with pytest.raises(ValueError, match="switched off by BIASES_NATIVE=0"):
        attend(Q, Q, Q, backend="native")


IMPORTING = """
import os, sys
import biases, biases.cli
from biases.backends import native

log, cache = sys.argv[1:]
print(len(open(log).readlines()), os.path.exists(cache))
native.available()
print(len(open(log).readlines()), os.path.exists(cache))
"""


def test_importing_compiles_nothing(compiler, tmp_path):
    """Neither the package nor its command line runs the compiler; asking for the kernel does, once with OpenMP."""
    compiler("exit 1")
    environment = {name: value for name, value in os.environ.items() if name != "BIASES_NATIVE"}
    command = [sys.executable, "-c", IMPORTING, str(tmp_path / "log"), str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 False", "2 True"]


@pytest.mark.skipif(not native.available()[0], reason=f"no native kernel here: {native.available()[1]}")
def test_it_shares_the_threads_of_torch():
    """One OpenMP runtime in the process: a second would have threads of its own, which fight for the same cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc/self/maps, where loaded libraries are listed")
    arguments.kernel()
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "/" in line}
    runtimes = {Path(path).resolve() for path in loaded if "gomp" in path or "iomp" in path or "libomp" in path}
    own = Path(torch.__file__).parent
    # Other packages may have brought their own into this process.
    others = {path for path in runtimes if "site-packages" in path.parts and own not in path.parents}
    assert len(runtimes - others) <= 1
