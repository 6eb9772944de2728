"""Second part of the demo: what each bias costs beside attention without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from biases import ALiBi, ExponentialDecay, KeyGate, attend
from biases.bench import Case, Row, Setting, bench_attention, facts
from biases.bench.cases import DIRECTIONS
from biases.decays import retnet_log_rates

SHAPE: dict[str, Any] = {"batch": 1, "heads": 4, "length": 1024, "head_dim": 64}
ROUNDS = 9


def cases(heads: int, length: int) -> dict[str, tuple[bool, dict[str, Any], tuple[Tensor, ...]]]:
    """Name -> (causal, arguments of ``attend``, tensors that get gradients)."""
    logits = torch.randn(1, heads, length, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def gated(renormalise: bool) -> dict[str, Any]:
        # Built anew for every call, as the gate's own gradient is part of the price.
        return {"key_gate": lambda like: KeyGate(F.logsigmoid(logits.to(like.dtype)), renormalise), "causal": True}

    retention = ExponentialDecay(retnet_log_rates(heads), placement="weights")
    return {
        "ega": (True, gated(True), (logits,)),
        "gate, not renormalised": (True, gated(False), (logits,)),
        "alibi": (True, {"bias": ALiBi(heads), "causal": True}, ()),
        "alibi-symmetric": (False, {"bias": ALiBi(heads, symmetric=True)}, ()),
        "retention": (True, {"decay": retention, "weights": "linear", "causal": True}, ()),
    }


def benchmark(*, rounds: int = ROUNDS, progress: Callable[[int, int, str], None]) -> Iterator[dict[str, Any]]:
    """Time the fast path and the plain formulas of each bias; yields all rows so far, as the report takes them."""
    listed = []
    for name, (causal, options, parameters) in cases(SHAPE["heads"], SHAPE["length"]).items():
        reference = _call(options, "reference")
        dense = _call(options, "dense")
        for label, run in ((name, _call(options, "auto")), (f"{name}, plain", dense)):
            listed.append(Case(label, reference, run, low=dense, causal=causal, parameters=parameters))
    rows: list[dict[str, Any]] = []
    floors: dict[str, Any] = {}
    for index, direction in enumerate(DIRECTIONS):
        progress(index, len(DIRECTIONS), direction)
        setting = Setting(**SHAPE, direction=direction)
        for case, row in zip(listed, bench_attention(listed, setting, rounds=rounds), strict=True):
            rows.append(_row(row, case.causal))
            if row.floor.seconds:
                name = "floor-causal" if case.causal else "floor"
                floor = Row(name, row.level, row.setting, samples=row.floor, peak_bytes=row.floor_peak_bytes)
                floors[f"{name}, {direction}"] = _row(floor, case.causal)
        yield {
            "config": {
                **setting.as_dict(),
                "direction": ", ".join(DIRECTIONS[: index + 1]),
                "rounds": rounds,
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
            },
            "machine": facts(),
            "rows": rows,
            "floor": floors,
        }
    progress(len(DIRECTIONS), len(DIRECTIONS), "")


def _call(options: dict[str, Any], backend: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        built = {name: value(q) if callable(value) else value for name, value in options.items()}
        return attend(q, k, v, backend=backend, **built)

    return run


def _row(row: Row, causal: bool) -> dict[str, Any]:
    """One measurement, flat."""
    samples, ratio = row.samples, row.ratio
    timed = row.status == "ok"
    return {
        "name": row.name,
        "causal": causal,
        "direction": row.setting["direction"],
        "length": row.setting["length"],
        "seconds_median": samples.median if timed else None,
        "seconds_low": samples.low if timed else None,
        "seconds_high": samples.high if timed else None,
        "ratio": ratio.value if ratio else None,
        "ratio_low": ratio.low if ratio else None,
        "ratio_high": ratio.high if ratio else None,
        "peak_bytes": row.peak_bytes,
        "floor_peak_bytes": row.floor_peak_bytes,
        "status": row.status,
        "message": row.message,
    }
