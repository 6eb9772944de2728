"""An asv-style suite: what its benchmarks are, and one call or sample of one of them."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import inspect
import itertools
import math
import os
import pickle
import pkgutil
import re
import statistics
import sys
import time
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = {"time": r"Time[A-Z_].+|time_.+", "track": r"Track[A-Z_].+|track_.+", "peakmem": r"PeakMem[A-Z_].+|peakmem_.+"}
OTHER_KINDS = r"Mem[A-Z_].+|mem_.+|Timeraw[A-Z_].+|timeraw_.+"
ADDRESS = re.compile(r"^(<.*) at 0x[\da-fA-F]+(>)$")


class Skipped(Exception):
    """The benchmark says that it does not apply here."""


class Benchmark:
    """One benchmark with one combination of its parameters, in asv's conventions.

    Attributes are looked up on the function, then an instance of its class, then its module. ``setup`` runs once; of a
    benchmark with an explicit ``number`` it runs again before every sample.
    """

    def __init__(self, name: str, kind: str, module: types.ModuleType, path: str, index: int) -> None:
        self.name, self.kind, self.module, self.path, self.index = name, kind, module, path, index
        self.sources: list[Any] = []
        self.arguments: tuple[Any, ...] = ()
        self.fresh = True

    def attribute(self, name: str, default: Any = None) -> Any:
        """Before and after :meth:`prepare`."""
        sources = self.sources or sources_of(self.module, self.path)
        return next((getattr(source, name) for source in sources if hasattr(source, name)), default)

    def as_dict(self) -> dict[str, Any]:
        """What the parent needs to know of it."""
        unit = {"time": "seconds", "peakmem": "bytes"}.get(self.kind) or str(self.attribute("unit", "unit"))
        timeout = self.attribute("timeout")
        return {
            "name": self.name,
            "kind": self.kind,
            "unit": unit,
            "timeout": None if timeout is None else float(timeout),
        }

    def prepare(self, caches: dict[str, bytes]) -> None:
        """Run ``setup_cache``, once for all benchmarks that share it, and ``setup``, on a new instance."""
        self.sources = sources_of(self.module, self.path)
        values = next(itertools.islice(combinations(self.attribute("params", ())), self.index, None), ())
        if self.attribute("skip_benchmark") or values in [tuple(each) for each in self.attribute("skip_params", ())]:
            raise Skipped("marked as skipped")
        make = self.attribute("setup_cache")
        if make is not None:
            key = f"{make.__module__}:{make.__code__.co_firstlineno}"
            if key not in caches:
                caches[key] = pickle.dumps(make())
            values = (pickle.loads(caches[key]), *values)
        self.arguments = values
        self._set_up()

    def _set_up(self) -> None:
        for source in reversed(self.sources):
            if hasattr(source, "setup"):
                source.setup(*self.arguments)
        self.fresh = True

    def _tear_down(self) -> None:
        for source in self.sources:
            if hasattr(source, "teardown"):
                source.teardown(*self.arguments)

    def finish(self) -> None:
        """Run ``teardown``, and let go of everything."""
        try:
            self._tear_down()
        finally:
            self.sources, self.arguments = [], ()
            gc.collect()

    @property
    def number(self) -> int:
        """Calls a sample that the suite asks for; 0 leaves it to the caller."""
        return int(self.attribute("number", 0))

    def seconds(self, number: int) -> float:
        """One call by the clock of the benchmark, as the mean of ``number``; the garbage collector waits."""
        if not self.fresh and self.number and any(hasattr(source, "setup") for source in self.sources):
            self._tear_down()
            self._set_up()
        clock, call, arguments = self.attribute("timer", time.perf_counter), self.sources[0], self.arguments
        self.fresh = False
        collecting = gc.isenabled()
        gc.disable()
        try:
            begin = clock()
            for _ in itertools.repeat(None, number):
                call(*arguments)
            return float(clock() - begin) / number
        finally:
            if collecting:
                gc.enable()

    def warm(self, seconds: float) -> float:
        """Call it for so long, and at least twice; returns the seconds of a call in the last, largest batch."""
        number, begin = self.number or 1, time.perf_counter()
        took = self.seconds(number)
        while True:
            number = self.number or 2 * number
            took = self.seconds(number)
            if time.perf_counter() - begin >= seconds:
                return took

    def sample(self, number: int) -> dict[str, Any]:
        """Seconds of a call; the number that a ``track`` returns, or the median of its samples; or peak bytes."""
        if self.kind == "time":
            return {"value": self.seconds(number), "sampled": True}
        value = self.sources[0](*self.arguments)
        if self.kind == "peakmem":
            return {"value": float(peak_resident()), "sampled": False}
        sampled = isinstance(value, dict)
        figure = float(statistics.median(value["samples"]) if sampled else value)
        if not math.isfinite(figure):
            raise Skipped(f"it returns {figure}")
        return {"value": figure, "sampled": sampled}


def sources_of(module: types.ModuleType, path: str) -> list[Any]:
    """The function, a new instance of its class if it has one, and the module."""
    owner, _, method = path.rpartition(".")
    if not owner:
        return [getattr(module, method), module]
    instance = getattr(module, owner)()
    return [getattr(instance, method), instance, module]


def peak_resident() -> int:
    """Peak bytes of this process; elsewhere than on Linux the system may count the process it was forked from."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def combinations(params: Any) -> Iterator[tuple[Any, ...]]:
    """The product of the parameters; a flat list is one parameter."""
    axes = list(params)
    if axes and not isinstance(axes[0], (tuple, list)):
        axes = [axes]
    return itertools.product(*axes) if axes else iter([()])


def labels(params: Any) -> list[str]:
    """``(a, b)`` for each combination, without memory addresses; equal ones are numbered."""
    seen: dict[str, int] = {}
    found = []
    for values in combinations(params):
        inside = ", ".join(ADDRESS.sub(r"\1\2", repr(value)) for value in values)
        label = f"({inside})" if values else ""
        seen[label] = seen.get(label, -1) + 1
        found.append(f"{label} #{seen[label]}" if seen[label] else label)
    return found


def discover(suite: Path) -> tuple[dict[str, Benchmark], dict[str, Any]]:
    """The benchmarks of a suite by name, and what to tell the parent of them and of what could not be read."""
    found: dict[str, Benchmark] = {}
    broken: dict[str, str] = {}
    other: list[str] = []
    for module_path, module in load_modules(suite):
        if isinstance(module, str):
            broken[module_path or "__init__"] = module
            continue
        for path, kind in _members(module):
            full = f"{module_path}.{path}" if module_path else path
            if not kind:
                other.append(full)
                continue
            try:
                benchmark = Benchmark(full, kind, module, path, 0)
                for index, label in enumerate(labels(benchmark.attribute("params", ()))):
                    found[full + label] = Benchmark(full + label, kind, module, path, index)
            except Exception as error:
                broken[full] = describe(error)
    return found, {"benchmarks": [each.as_dict() for each in found.values()], "broken": broken, "other": other}


def load_modules(suite: Path) -> Iterator[tuple[str, types.ModuleType | str]]:
    """The modules of a suite by their path below it, each loaded or what prevents that.

    The package is built by hand, so that a folder without ``__init__.py`` is not merged with a namesake elsewhere.
    """
    init = suite / "__init__.py"
    package = types.ModuleType(suite.name)
    package.__path__ = [str(suite)]
    package.__file__ = str(init)
    sys.modules[suite.name] = package
    if init.exists():
        try:
            exec(compile(init.read_bytes(), str(init), "exec"), package.__dict__)
        except (Exception, SystemExit) as error:
            yield "", describe(error)
            return
    yield "", package
    yield from _submodules(package)


def _submodules(package: types.ModuleType) -> Iterator[tuple[str, types.ModuleType | str]]:
    for entry in sorted(pkgutil.iter_modules(package.__path__), key=lambda each: each.name):
        full = f"{package.__name__}.{entry.name}"
        if entry.name == "__main__":
            continue
        try:
            module = importlib.import_module(full)
        except (Exception, SystemExit) as error:
            yield full.partition(".")[2], describe(error)
            continue
        yield full.partition(".")[2], module
        if entry.ispkg:
            yield from _submodules(module)


def _members(module: types.ModuleType) -> Iterator[tuple[str, str]]:
    """``function`` or ``Class.method``, and its kind, which is empty where it is not one measured here."""
    for name, value in sorted(vars(module).items()):
        if name.startswith("_"):
            continue
        if inspect.isfunction(value):
            yield from ((name, kind) for kind in _kinds(name))
        elif inspect.isclass(value) and not inspect.isabstract(value):
            for method, _ in inspect.getmembers(value, inspect.isfunction):
                yield from ((f"{name}.{method}", kind) for kind in _kinds(method))


def _kinds(name: str) -> list[str]:
    found = [kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name)]
    return found or ([""] if re.fullmatch(OTHER_KINDS, name) else [])


def describe(error: BaseException) -> str:
    """``Type: message (file:line)`` of the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
