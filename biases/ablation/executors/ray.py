"""Cells on the nodes of a Ray cluster; the driver alone writes results, so the nodes share no file system with it.

A cell is deterministic: when the node or the worker that trains it dies, Ray trains it again elsewhere. Workers end
with the driver.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures import wait as wait_for
from types import ModuleType
from typing import Any

from biases._checks import fail, positive_int
from biases.ablation.executors import Unit, UnitDied, Work
from biases.ablation.kinds import Data
from biases.ablation.results import Result

RETRIES = 5
"""How often a unit is tried again after the death of its worker or node: enough for nodes that come and go, and few
enough that a cell that kills its worker ends."""

CHECK_SECONDS = 120.0
"""Time a node has to start a worker when the cluster is opened."""

EVENTS = 10_000
"""Events kept until the driver asks; the oldest are dropped."""


class _Events:
    """An actor on the driver's node, which therefore lives as long as the run."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque(maxlen=EVENTS)

    def put(self, event: dict[str, Any]) -> None:
        self._kept.append(event)

    def take(self) -> list[dict[str, Any]]:
        events = list(self._kept)
        self._kept.clear()
        return events


def _train(work: Work, cells: Unit, threads: int, data: Any, events: Any) -> list[Result]:
    import ray
    import torch

    def tell(event: dict[str, Any]) -> None:
        # What is told may be lost; a cell must not fail by it.
        with contextlib.suppress(ray.exceptions.RayError):
            events.put.remote(event)

    torch.set_num_threads(threads)
    return work(cells, data, tell)


def _for_nodes() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What Ray sends by value, being local to this function: a node without this package can then say so."""

    def describe() -> dict[str, str]:
        """What of a node decides the numbers."""
        try:
            import torch

            from biases.ablation._provenance import code_fingerprint
        except ImportError as error:
            return {"biases": f"none that can be imported ({error})"}
        # Builds of one release for processors and for accelerators may meet in a cluster.
        return {"code of biases": code_fingerprint(), "torch": torch.__version__.partition("+")[0]}

    def run(expected: dict[str, str], pickled: bytes, data: list[Any], events: Any) -> tuple[dict[str, str], Any]:
        found = describe()
        if found != expected:
            return found, None
        import pickle

        import ray

        return found, pickle.loads(pickled)(ray.get(data[0]), events)

    return describe, run


class RayExecutor:
    """Runs units of cells as Ray tasks; use :func:`open_ray`."""

    def __init__(self, ray: ModuleType, data: Data, work: Work, cpus: int, gpus: float) -> None:
        self._ray, self._cpus, self._gpus = ray, cpus, gpus
        # The driver may have no GPU, so the device is the nodes' to choose; Ray shows each task its own.
        self._work = functools.partial(work, device="cuda") if gpus else work
        try:
            ray.cloudpickle.dumps(self._work)
        except Exception as error:
            raise ValueError(f"build: expected a function that can be pickled, got {work} ({error})") from error
        self._describe, run = _for_nodes()
        self._expected = self._describe()
        self._check_nodes()
        self._run = ray.remote(run).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)
        here = ray.get_runtime_context().get_node_id()
        self._events = ray.remote(_Events).options(num_cpus=0, **self._only_on(here)).remote()
        self._data = ray.put(data)
        self._flying: dict[Future[list[Result]], Any] = {}

    @property
    def slots(self) -> int:
        """Units that the living nodes hold at once, at least 1: nodes come and go."""
        return max(1, sum(map(self._capacity, self._nodes())))

    def submit(self, cells: Unit) -> Future[list[Result]]:
        """Train ``cells`` together on one node.

        The future's errors: ``ValueError``, the node has other code than the driver; ``UnitDied``, its workers or nodes
        died as often as Ray tried; ``BrokenExecutor``, Ray itself failed; whatever the work raised.
        """
        unit = functools.partial(_train, self._work, cells, self._cpus)
        task = self._run.remote(self._expected, self._ray.cloudpickle.dumps(unit), [self._data], self._events)
        future: Future[list[Result]] = Future()
        future.set_running_or_notify_cancel()
        self._flying[future] = task
        task.future().add_done_callback(functools.partial(self._deliver, cells, future))
        return future

    def events(self) -> Iterator[dict[str, Any]]:
        """What the workers have told since the last call."""
        try:
            yield from self._ray.get(self._events.take.remote(), timeout=5)
        except self._ray.exceptions.RayError:
            return

    def close(self, *, finish: bool) -> None:
        """End the tasks, after the work they are at or at once."""
        if finish:
            wait_for(list(self._flying))
        for task in list(self._flying.values()):
            self._ray.cancel(task, force=True)
        self._ray.kill(self._events)

    def _deliver(self, cells: Unit, future: Future[list[Result]], done: Future[Any]) -> None:
        self._flying.pop(future, None)
        error, known = done.exception(), self._ray.exceptions
        if isinstance(error, known.RayError) and not isinstance(error, known.RayTaskError):
            names = ", ".join(cell.id for cell in cells)
            lost = BrokenExecutor(f"Ray lost {names} ({error})")
            if isinstance(error, known.WorkerCrashedError | known.NodeDiedError | known.OutOfMemoryError):
                lost = UnitDied(
                    f"Ray gave up on {names}, having replaced a worker or node that died up to {RETRIES} times, often "
                    f"for want of memory ({error})"
                )
            lost.__cause__ = error
            future.set_exception(lost)
        elif error is not None:
            future.set_exception(error)
        else:
            found, results = done.result()
            try:
                self._check_code("a Ray node", found)
            except ValueError as mismatch:
                future.set_exception(mismatch)
            else:
                future.set_result(results)

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _capacity(self, node: dict[str, Any]) -> int:
        """Units that fit on a node while nothing else does; resources are exact to 1e-4."""
        there = node["Resources"]
        needs = (("CPU", self._cpus), ("GPU", self._gpus))
        return min(math.floor(there.get(name, 0) / need + 1e-4) for name, need in needs if need)

    def _only_on(self, node: str) -> dict[str, Any]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}

    def _check_nodes(self) -> None:
        """Refuse before anything is run; a node that joins later is checked by each unit it is given."""
        nodes = self._nodes()
        if not any(map(self._capacity, nodes)):
            have = [{name: node["Resources"].get(name, 0) for name in ("CPU", "GPU")} for node in nodes]
            fail("Ray cluster", f"a node with {self._cpus} CPUs and {self._gpus} GPUs for a cell", f"nodes with {have}")
        probe = self._ray.remote(self._describe)
        asked = {probe.options(num_cpus=0, **self._only_on(node["NodeID"])).remote(): node for node in nodes}
        answered, silent = self._ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_SECONDS)
        for task in answered:
            # A node that died since it was listed gets no cells.
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._check_code(f"Ray node {asked[task]['NodeManagerAddress']}", self._ray.get(task))
        if silent:
            names = ", ".join(asked[task]["NodeManagerAddress"] for task in silent)
            raise TimeoutError(f"no worker started within {CHECK_SECONDS:g} s on the Ray nodes {names}")

    def _check_code(self, node: str, found: dict[str, str]) -> None:
        if found != self._expected:
            expected, got = (", ".join(f"{k} {v}" for k, v in there.items()) for there in (self._expected, found))
            fail(node, f"{expected}, as here", got)


def _wanted(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or "local"


def _check_reachable(address: str) -> None:
    """Refuse what is no address, and one where nothing listens, which Ray would try for many minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        fail("Ray address", "HOST:PORT, or 'auto' on a machine of the cluster", repr(address))
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"Ray cluster {address}: {error}") from error


def _connect(ray: ModuleType, address: str | None) -> bool:
    """Connect to a cluster, unless the caller has; whether the connection is to be ended here."""
    if ray.is_initialized():
        connected = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", connected):
            fail("Ray address", f"{connected}, which this process is connected to", repr(address))
        return False
    address = _wanted(address)
    if address not in ("local", "auto"):
        _check_reachable(address)
    started: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **started)
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise ConnectionError(f"Ray cluster {address}: {error}") from error
    return True


@contextlib.contextmanager
def open_ray(
    data: Data, work: Work, *, address: str | None = None, cpus: int = 1, gpus: float = 0
) -> Iterator[RayExecutor]:
    """An executor on a Ray cluster, whose tasks are ended at once if the block is left by an exception.

    A process that is connected to Ray uses, and keeps, that connection.

    Args:
        data: sent to each node once.
        work: ``work(cells, data, progress)``, run on a node with ``cpus`` threads; with ``gpus``, called with
            ``device="cuda"`` too.
        address: ``"HOST:PORT"`` of a cluster that this machine is part of, or ``"auto"`` for the one that runs here. By
            default ``$RAY_ADDRESS``, else a cluster of this machine alone is started for the time of the block.
        cpus, gpus: of each unit; less than one GPU is a share of one.

    Raises:
        ModuleNotFoundError: Ray is not installed; the message names the extra that brings it.
        ValueError: no node has ``cpus`` and ``gpus``, or a node has no ``biases``, or other code or another release of
            PyTorch than this process; ``work`` cannot be pickled.
        ConnectionError: there is no such cluster, or Ray refused.
        TimeoutError: a node does not start a worker.
    """
    positive_int("cpus", cpus)
    number = isinstance(gpus, int | float) and not isinstance(gpus, bool) and math.isfinite(gpus)
    if not number or gpus < 0 or (gpus > 1 and gpus != int(gpus)):
        fail("gpus", "a whole number of at least 0, or a share of one GPU", repr(gpus))
    if _wanted(address) == "local" and "ray" not in sys.modules:
        # Ray listens on every interface; before 2.60 it asks for a token only if told to, when it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ModuleNotFoundError as error:
        text = f"cells on Ray need ray ({error}): pip install 'attention-biases[ray]'"
        raise ModuleNotFoundError(text, name=error.name) from error
    connected_here = _connect(ray, address)
    try:
        executor = RayExecutor(ray, data, work, cpus, gpus)
        try:
            yield executor
            executor.close(finish=True)
        except BaseException:
            executor.close(finish=False)
            raise
    finally:
        if connected_here:
            ray.shutdown()
