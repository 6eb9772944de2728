"""Whether Triton and a device can run the kernels at all."""

from __future__ import annotations

import os

import torch

CAPABILITY = (8, 0)
OLDEST = (3, 5)


def why_unsupported(kind: str, index: int | None) -> str | None:
    """Why no kernel can run on a device; ``None`` if kernels can.

    Args:
        kind: type of the device, ``"cuda"`` or ``"cpu"``.
        index: of the device; ``None`` for the current one.
    """
    if kind == "cpu" and not interpreted():
        return (
            "on the CPU the kernels run in Triton's interpreter only (TRITON_INTERPRET=1 before it is first imported)"
        )
    if kind == "cuda":
        capability = torch.cuda.get_device_capability(index)
        if capability < CAPABILITY:
            return f"the kernels need compute capability {CAPABILITY}, the device has {capability}"
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return None if version >= OLDEST else f"triton {triton.__version__} is older than {OLDEST[0]}.{OLDEST[1]}"


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which is decided when Triton is imported."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    from biases.backends.triton.tiles import sigmoid

    return type(sigmoid).__name__ == "InterpretedFunction"
