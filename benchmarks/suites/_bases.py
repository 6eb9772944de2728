"""The kinds of benchmark, each abstract so that asv discovers only the suites made of them.

``setup`` does nothing but look up the workload of the parameters, as asv_runner calls it before each timed call. The
versions are set by hand: asv would otherwise hash these few lines and miss what they call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from biases.bench import peak_bytes

from . import _common, _counts


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread an operator inside this context; a resident process goes on with as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Suite(ABC):
    """Where the workloads come from, and their sizes."""

    version = "1"
    timeout = 600
    param_names = ("bias", *_common.AXES[1:])
    batch = 1
    heads = 8
    head_dim = 64

    @property
    @abstractmethod
    def level(self) -> str:
        """One of :data:`biases.bench.workloads.LEVELS`."""

    def workload(self, *where: Any, checked: bool = False) -> Any:
        """The workload at ``where``."""
        find = _common.checked if checked else _common.prepared
        return find(self.level, self.batch, self.heads, self.head_dim, *where)


class CpuLatency(Suite):
    """Time of one call on the CPU, with as many threads as torch chooses."""

    rounds = 2
    repeat = (3, 10, 4.0)
    warmup_time = 0.1

    def setup(self, *where: Any) -> None:
        self.run = self.workload(*where, checked=True).run

    def time_call(self, *where: Any) -> None:
        self.run()


class CudaLatency(Suite):
    """Time of one call on CUDA, as samples between events."""

    def setup(self, *where: Any) -> None:
        self.run = self.workload(*where, checked=True).run

    def track_call(self, *where: Any) -> dict[str, Any]:
        # asv gives any result of this form the statistics of its own times.
        return {"samples": _common.cuda_samples(self.run), "number": 1}

    track_call.unit = "seconds"  # type: ignore[attr-defined]


class Counts(Suite):
    """What does not depend on the machine's load, with one thread on the CPU."""

    def setup(self, *where: Any) -> None:
        self.device = torch.device(where[_common.AXES.index("device")])
        self.made = self.workload(*where)
        self.run = self.made.run
        # What a first call caches is not counted.
        with one_thread():
            self.run()

    def track_peak_bytes(self, *where: Any) -> int:
        with one_thread():
            return peak_bytes(self.run, self.device)

    def track_allocated_bytes(self, *where: Any) -> int:
        with one_thread():
            return _counts.allocated_bytes(self.run, self.device)

    def track_operations(self, *where: Any) -> int:
        # Attention counts by its formula, so that another formulation of it changes nothing.
        return self.made.flops()

    def track_operators(self, *where: Any) -> int:
        with one_thread():
            return _counts.operators(self.run)

    track_peak_bytes.unit = track_allocated_bytes.unit = "bytes"  # type: ignore[attr-defined]
    track_operations.unit = "operations"  # type: ignore[attr-defined]
    track_operators.unit = "operators"  # type: ignore[attr-defined]


class PeakBytes(Suite):
    """The most bytes held at one moment, on CUDA."""

    def setup(self, *where: Any) -> None:
        self.run = self.workload(*where).run
        self.run()

    def track_peak_bytes(self, *where: Any) -> int:
        torch.cuda.empty_cache()
        return peak_bytes(self.run, "cuda")

    track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]


class Kernels(Suite):
    """Kernels launched on CUDA."""

    def setup(self, *where: Any) -> None:
        self.run = self.workload(*where).run

    def track_kernels(self, *where: Any) -> int:
        return _counts.kernels(self.run)

    track_kernels.unit = "kernels"  # type: ignore[attr-defined]


class GraphBreaks(Suite):
    """Where a compiler would fall back to Python."""

    def setup(self, *where: Any) -> None:
        self.run = self.workload(*where).run

    def track_graph_breaks(self, *where: Any) -> int:
        return _counts.graph_breaks(self.run)

    track_graph_breaks.unit = "breaks"  # type: ignore[attr-defined]
