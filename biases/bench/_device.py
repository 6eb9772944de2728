"""The device argument shared by the measuring tools."""

from __future__ import annotations

import torch

from biases._checks import fail, one_of


def measured_device(device: str | torch.device) -> torch.device:
    """The device as a ``torch.device``.

    Raises:
        ValueError: it is no CPU or CUDA device, or there is no CUDA device here.
    """
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        fail("device", "a CPU or CUDA device such as 'cpu' or 'cuda:0'", repr(device))
    one_of("device", chosen.type, ("cpu", "cuda"))
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        fail(
            "device",
            f"one of the {torch.cuda.device_count()} CUDA devices of this machine",
            repr(str(chosen)),
        )
    return chosen
