"""What the device can do at most, measured: matrix products and copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from biases._checks import positive_int
from biases.bench._device import measured_device
from biases.bench.timing import interleaved


@dataclass(frozen=True)
class Ceilings:
    """Rates of the best of several rounds.

    Attributes:
        matmul_flops_per_second: of ``torch.mm`` on square matrices, 2 n^3 operations each. For half precision on the
            CPU the larger of its rate and float32's, in which attention may compute.
        copy_bytes_per_second: of ``Tensor.copy_``, bytes read and bytes written together.
        matmul_size: n.
        copy_bytes: size of the buffer copied.
        dtype: that was asked for, as in ``"float32"``.
        matmul_dtype: of the matrices of this rate.
    """

    matmul_flops_per_second: float
    copy_bytes_per_second: float
    matmul_size: int
    copy_bytes: int
    dtype: str
    matmul_dtype: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dict(vars(self))


def ceilings(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    size: int | None = None,
    copy_bytes: int | None = None,
    rounds: int = 5,
) -> Ceilings:
    """Measure the ceilings under the present settings (threads, ``torch.set_float32_matmul_precision``).

    Args:
        device: the CPU or a CUDA device.
        dtype: floating dtype of the matrices.
        size: their side; 1024 on the CPU and 8192 on CUDA if ``None``.
        copy_bytes: size of the buffer copied; 64 MiB on the CPU and 1 GiB on CUDA if ``None``, beyond the
            caches.
        rounds: the best of so many counts.

    Raises:
        ValueError: a size, number of bytes or of rounds below 1, or a device that cannot be measured.
        RuntimeError: the device has no matrix product of this dtype, or too little memory.
    """
    chosen = measured_device(device)
    on_cuda = chosen.type == "cuda"
    n = positive_int("size", (8192 if on_cuda else 1024) if size is None else size)
    total = positive_int("copy_bytes", (1 << 30 if on_cuda else 1 << 26) if copy_bytes is None else copy_bytes)
    halves = (torch.float16, torch.bfloat16)
    products = {
        each: _product(n, each, chosen) for each in (dtype, torch.float32)[: 1 + (dtype in halves and not on_cuda)]
    }
    source = torch.full((total,), 1, dtype=torch.uint8, device=chosen)
    target = torch.full_like(source, 2)
    samples = interleaved(
        {**{f"matmul in {each}": run for each, run in products.items()}, "copy": lambda: target.copy_(source)},
        rounds=rounds,
        warmup=1,
        device=chosen,
    )
    for what, sample in samples.items():
        if sample.error is not None:
            raise RuntimeError(f"ceiling of {what} on {chosen}: {sample.error}")
    shortest = {each: min(samples[f"matmul in {each}"].seconds) for each in products}
    fastest = min(shortest, key=shortest.__getitem__)
    return Ceilings(
        matmul_flops_per_second=2 * n**3 / shortest[fastest],
        copy_bytes_per_second=2 * total / min(samples["copy"].seconds),
        matmul_size=n,
        copy_bytes=total,
        dtype=str(dtype).removeprefix("torch."),
        matmul_dtype=str(fastest).removeprefix("torch."),
    )


def _product(n: int, dtype: torch.dtype, device: torch.device) -> Callable[[], torch.Tensor]:
    # Not zeros: some processors multiply zeros faster, and pages never written to share one zero page.
    a, b = (torch.full((n, n), 0.5, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)
