"""Daubechies filters of the energy gate (arXiv 2605.21842 Table 3), which the paper names and does not print."""

from __future__ import annotations

import torch

from biases.claims._judge import EXACT, reconstructed
from biases.claims.evidence import Evidence
from biases.claims.ledger import claim
from biases.gates import daubechies

FILTERS = {"db2": 2, "db4": 4}


@claim(
    id="ega-daubechies-filters",
    paper="2605.21842",
    location="Table 3",
    kind="identity",
    statement="EGA-DB2 and EGA-DB4 take their energy from fixed db2 and db4 filters.",
)
def daubechies_filters() -> Evidence:
    errors = {}
    for name, moments in FILTERS.items():
        low = torch.tensor(daubechies(moments), dtype=torch.float64)
        high = (1.0 - 2.0 * (torch.arange(len(low)) % 2)) * low.flip(0)
        shifts = [(low[: len(low) - s] * low[s:]).sum() - float(s == 0) for s in range(0, len(low), 2)]
        place = torch.arange(len(low), dtype=torch.float64)
        # Moments of order p grow as n^p; they are held against their sum of magnitudes.
        vanish = [(high * place**p).sum() / (high * place**p).abs().sum() for p in range(moments)]
        errors[name] = max(abs(x.item()) for x in (*shifts, *vanish, low.sum() - 2.0**0.5))
    return reconstructed(
        "The filters of the reconstructed gates are orthonormal to their even shifts and have 2 and 4 vanishing "
        f"moments within {max(errors.values()):.0e}. The paper prints no equation for the gate, so that the filters "
        "can be checked and its results cannot.",
        error=max(errors.values()),
        tolerance=EXACT,
        counterexample=errors,
        values=errors,
        source="biases.gates.daubechies",
    )
