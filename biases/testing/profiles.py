"""Hypothesis profiles of this project's own tests: ``dev``, ``ci`` (derandomised) and ``nightly``."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings


def load_profile() -> str:
    """Register the profiles and load the one named by ``HYPOTHESIS_PROFILE`` (default ``ci``); returns its name."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    common: dict[str, Any] = {"deadline": None, "suppress_health_check": checks}
    settings.register_profile("ci", derandomize=True, database=None, print_blob=True, max_examples=30, **common)
    settings.register_profile("dev", max_examples=30, **common)
    settings.register_profile("nightly", max_examples=1000, **common)
    name = os.environ.get("HYPOTHESIS_PROFILE", "ci")
    settings.load_profile(name)
    return name
