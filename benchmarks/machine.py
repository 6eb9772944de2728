"""A name for this machine that keeps unlike measurements apart.

asv's own machine file knows neither the GPU nor its driver, nor the version of torch and its threads, and all results
of a machine form one series; so these are in the name, and so is the CPU, which suites run on beside a GPU, too.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from typing import Any

NOISE = re.compile(r"\((?:r|tm|c)\)|@.*|\b(?:nvidia|cpu|processor|\d+-core)\b", re.IGNORECASE)


def machine_name(facts: Mapping[str, Any]) -> str:
    """Such as ``intel-xeon-2c-torch2.13.0-2t``, 2 cores that may be used and an operator on 2 threads, or, with a GPU,
    ``h100-80gb-hbm3-driver570.86-cuda12.8-intel-xeon-16c-torch2.13.0-8t``.

    Args:
        facts: as from :func:`biases.bench.facts`; what is unknown is left out of the name.

    Returns:
        Lower-case letters, digits, dots and hyphens: a folder's name everywhere.
    """
    # What follows the plus, as in 2.13.0+cpu, says again what the GPU's part of the name says or leaves out.
    software = [f"torch{str(facts['torch']).partition('+')[0]}", facts.get("threads") and f"{facts['threads']}t"]
    cores = facts.get("usable_cores") or facts.get("cores")
    host = [facts.get("cpu") or platform.machine(), cores and f"{cores}c"]
    gpu, driver, cuda = (facts.get(name) for name in ("cuda_device", "cuda_driver", "cuda_version"))
    device = [gpu, driver and f"driver{driver}", cuda and f"cuda{cuda}"] if gpu else []
    return "-".join(_slug(part) for part in (*device, *host, *software) if part)


def asv_machine(facts: Mapping[str, Any]) -> dict[str, str]:
    """What asv records about a machine, as its command line takes it."""
    return {
        "machine": machine_name(facts),
        "os": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "cpu": str(facts.get("cpu") or "unknown"),
        "num_cpu": str(facts.get("usable_cores") or facts.get("cores") or "unknown"),
        "ram": f"{facts['memory_bytes']} bytes" if facts.get("memory_bytes") else "unknown",
    }


def _slug(text: object) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", NOISE.sub(" ", str(text)).lower()).strip("-.")
