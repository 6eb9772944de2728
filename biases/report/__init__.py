"""The dashboard: verification, benchmarks, ablations, claims and a gallery of the zoo on one offline HTML page."""

from __future__ import annotations

from biases.report.page import MAX_BYTES, render, write

__all__ = ["MAX_BYTES", "render", "write"]
