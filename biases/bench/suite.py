"""Attention callables, checked and then measured beside stock attention.

The floor is ``scaled_dot_product_attention`` without any bias, causal for causal cases, timed in the same
interleaved rounds. Only the ratios to it travel between machines. Times, tokens per second and shares of the
ceiling hold for the machine, the load and the moment they were taken at; peak bytes hold for the torch
version, the device and, on the CPU, the number of threads.

A case is measured only after its results were found equal to its own float64 specification: a fast wrong
answer gets no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from biases._checks import fail, one_of, positive_int
from biases.bench._device import measured_device
from biases.bench.cases import DIRECTIONS, Case, Inputs, check, draw, floor_case
from biases.bench.ceilings import Ceilings, ceilings
from biases.bench.machine import facts
from biases.bench.memory import peak_bytes
from biases.bench.results import FLOORS, BenchResult, Measurement
from biases.bench.timing import Progress, Samples, interleaved

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def bench_attention(
    cases: Sequence[Case],
    *,
    batch: int,
    heads: int,
    length: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    direction: str = "forward",
    rounds: int = 15,
    device: str | torch.device = "cpu",
    seed: int = 0,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Check the cases, then measure the right ones and both floors.

    A result ``out`` is right if ``max|out - ref64| <= 2 (max|low - ref64| + eps(dtype) max|ref64|)``; for
    forward+backward this holds for the gradients too. The references are dense, so the check needs memory for
    float64 tensors of (B, H, L, L).

    Args:
        cases: at least one, with names of their own.
        batch: B.
        heads: H.
        length: L, of queries and keys.
        head_dim: D.
        dtype: of q, k and v.
        direction: ``"forward"`` or ``"forward+backward"``.
        rounds: timed rounds.
        device: the CPU or a CUDA device.
        seed: of q, k, v and the output's gradient: standard normal, the same on every device.
        seconds: a budget for the timed rounds, see :func:`biases.bench.interleaved`.
        progress: called as ``progress(what, done, total)``; ``what`` is ``"checking"``, then ``"timing"``.

    Returns:
        The measurements. A case that was wrong or raised is in them with its message, and the others go on.

    Raises:
        ValueError: no cases, names not unique, or an argument out of its range.
    """
    _validate(cases, batch, heads, length, head_dim, dtype, direction, rounds)
    chosen = measured_device(device)
    configuration: dict[str, Any] = {
        "batch": batch,
        "heads": heads,
        "length": length,
        "head_dim": head_dim,
        "dtype": str(dtype).removeprefix("torch."),
        "direction": direction,
        "rounds": rounds,
        "device": str(chosen),
        "seed": seed,
        "seconds": seconds,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    inputs = draw((batch, heads, length, head_dim), dtype=dtype, device=chosen, direction=direction, seed=seed)
    floors = [floor_case(name, causal=causal) for causal, name in FLOORS.items()]
    found = {floor.name: _without_times(floor, inputs, is_floor=True) for floor in floors}
    for done, case in enumerate(cases):
        found[case.name] = _without_times(case, inputs)
        if progress is not None:
            progress("checking", done + 1, len(cases))
    rates = ceilings(chosen, dtype)
    right = [case for case in (*floors, *cases) if found[case.name].status == "ok"]
    _add_times(found, right, inputs, rounds=rounds, seconds=seconds, progress=progress)
    _add_rates(found, configuration, rates)
    return BenchResult(
        configuration=configuration,
        machine=facts(),
        ceilings=rates,
        floors={floor.name: found[floor.name] for floor in floors},
        cases=tuple(found[case.name] for case in cases),
    )


def nominal_flops(batch: int, heads: int, length: int, head_dim: int, *, causal: bool, direction: str) -> int:
    """Floating-point operations of the matrix products of dense attention, over the pairs that may attend.

    Forward has two products of ``2 D`` operations a pair; backward has five, the logits being computed again.

    Raises:
        ValueError: an unknown direction.
    """
    one_of("direction", direction, DIRECTIONS)
    pairs = length * (length + 1) // 2 if causal else length * length
    products = 2 if direction == "forward" else 7
    return products * 2 * head_dim * pairs * batch * heads


def _validate(
    cases: Sequence[Case],
    batch: int,
    heads: int,
    length: int,
    head_dim: int,
    dtype: torch.dtype,
    direction: str,
    rounds: int,
) -> None:
    names = [case.name for case in cases]
    if not names:
        fail("cases", "at least one", "none")
    taken = {name for name in names if names.count(name) > 1 or name in FLOORS.values()}
    if taken:
        fail("names of the cases", f"unique ones other than {sorted(FLOORS.values())}", sorted(taken))
    sizes = {"batch": batch, "heads": heads, "length": length, "head_dim": head_dim, "rounds": rounds}
    for what, number in sizes.items():
        positive_int(what, number)
    one_of("dtype", dtype, DTYPES)
    one_of("direction", direction, DIRECTIONS)


def _without_times(case: Case, inputs: Inputs, *, is_floor: bool = False) -> Measurement:
    """Check the case, then measure its memory; the check has filled what its first call caches."""
    blank = Measurement(name=case.name, causal=case.causal, status="ok")
    try:
        if is_floor:
            inputs.step(case.build(inputs), case.parameters)
        else:
            check(case, inputs)
        peak = peak_bytes(lambda: inputs.step(case.build(inputs), case.parameters), inputs.q.device)
    except AssertionError as wrong:
        return replace(blank, status="failed", message=str(wrong))
    except Exception as error:
        return replace(blank, status="error", message=f"{type(error).__name__}: {error}")
    return replace(blank, peak_bytes=peak)


def _add_times(
    found: dict[str, Measurement],
    right: Sequence[Case],
    inputs: Inputs,
    *,
    rounds: int,
    seconds: float | None,
    progress: Progress | None,
) -> None:
    """Time what was right, floors included, in the same rounds."""
    steps = {}
    for case in right:
        try:
            steps[case.name] = partial(inputs.step, case.build(inputs), case.parameters)
        except Exception as error:
            found[case.name] = _broken(found[case.name], f"{type(error).__name__}: {error}")
    if not steps:
        return
    samples = interleaved(steps, rounds=rounds, device=inputs.q.device, seconds=seconds, progress=progress)
    for name, sample in samples.items():
        if sample.error is None:
            found[name] = replace(found[name], samples=sample)
        else:
            found[name] = _broken(found[name], sample.error)


def _broken(measurement: Measurement, message: str) -> Measurement:
    return replace(measurement, status="error", message=message, samples=Samples(error=message))


def _add_rates(found: dict[str, Measurement], configuration: dict[str, Any], rates: Ceilings) -> None:
    """Relate the times to the floors, the tokens and the ceiling."""
    shape = {name: configuration[name] for name in ("batch", "heads", "length", "head_dim", "direction")}
    for name, measurement in found.items():
        floor = found[FLOORS[measurement.causal]]
        is_floor = name == floor.name
        if not is_floor:
            measurement = replace(measurement, floor_peak_bytes=floor.peak_bytes)
        if measurement.status == "ok":
            median = measurement.samples.median
            flops = nominal_flops(**shape, causal=measurement.causal)
            compared = not is_floor and floor.status == "ok"
            measurement = replace(
                measurement,
                ratio=measurement.samples.ratio_to(floor.samples) if compared else None,
                tokens_per_second=shape["batch"] * shape["length"] / median,
                matmul_share=flops / median / rates.matmul_flops_per_second,
            )
        found[name] = measurement
