"""Attention callables of one's own, checked and then timed beside stock attention and beside one another.

The floor is ``scaled_dot_product_attention`` without any bias, causal for causal cases, timed in the same interleaved
rounds. Only the ratios to it travel between machines. Times, tokens per second and shares of the ceilings hold for the
machine, the load and the moment they were taken at; peak bytes hold for the torch version, the device and, on the CPU,
the number of threads.

A case is timed only after its results were found equal to its own float64 specification: a fast wrong answer gets no
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch

from biases._checks import fail, positive_int
from biases.bench import operators
from biases.bench.cases import Case
from biases.bench.ceilings import ceilings
from biases.bench.operators import Operator
from biases.bench.rounds import together
from biases.bench.rows import Row
from biases.bench.timing import Progress
from biases.bench.workloads import Setting, Workload


def bench_attention(
    cases: Sequence[Case],
    setting: Setting,
    *,
    rounds: int = 15,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Check the cases, then time the right ones and their floors in the same rounds.

    A result ``out`` is right if ``max|out - ref64| <= 2 (max|low - ref64| + eps(dtype) max|ref64|)``; for
    forward+backward this holds for the gradients too. All queries are compared and the references are dense, so the
    check needs memory for float64 tensors of (B, H, L, L).

    Args:
        cases: at least one, with names of their own.
        setting: sizes of q, k, v, their dtype, device and seed, and the direction; see
            :class:`~biases.bench.Setting`.
        rounds: timed rounds.
        seconds: a budget for the timed rounds, see :func:`biases.bench.interleaved`.
        progress: called as ``progress(what, done, total)``; ``what`` is ``"checking"``, then ``"timing"``.

    Returns:
        A row a case, in the order given. A case that was wrong or raised has its message, and the others go on.

    Raises:
        ValueError: no cases, names not unique, or rounds below 1.
    """
    names = [case.name for case in cases]
    if not names:
        fail("cases", "at least one", "none")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fail("names of the cases", "unique ones", twice)
    positive_int("rounds", rounds)
    shape = (setting.batch, setting.heads, setting.length, setting.head_dim)
    q, k, v = (setting.draw(*shape, offset=n) for n in range(3))
    seed = setting.seed + 3 if setting.backward else None
    with torch.set_grad_enabled(setting.backward):
        plain = {
            causal: Operator.of(((q, k, v), {"causal": causal}), seed=seed)
            for causal in dict.fromkeys(case.causal for case in cases)
        }
        floors = {causal: each.floor() for causal, each in plain.items()}
    workloads = [_workload(case, setting, plain[case.causal], floors[case.causal]) for case in cases]
    stated = setting.as_dict()
    rows = [
        Row(each.name, each.level, stated, causal=each.causal, backend="", checked=each.checked) for each in workloads
    ]
    rates = ceilings(setting.device, setting.torch_dtype)
    return together(list(zip(rows, workloads, strict=True)), rates, rounds=rounds, seconds=seconds, progress=progress)


def _workload(case: Case, setting: Setting, plain: Operator, floor: Operator) -> Workload:
    """The case on the inputs of ``plain``, attention without a bias."""

    def build() -> Operator:
        function = case.build(plain.q, plain.k, plain.v)
        return replace(plain, options={}, learned=case.parameters, function=function)

    built = cache(build)
    return Workload(
        name=case.name,
        level="operator",
        setting=setting,
        causal=case.causal,
        run=lambda: built().run(),
        floor=floor.run,
        check=lambda: operators.check_function(built(), case.reference, case.low or case.reference, case.name),
        checked="all queries",
        tokens=setting.batch * setting.length,
        flops=plain.flops,
        traffic=replace(plain, learned=case.parameters).traffic(),
        formulations=lambda: (),
        weighed=lambda: build().run(),
    )
