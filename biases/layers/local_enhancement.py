"""Local context enhancement (RMT, arXiv 2309.11523 Eq. 7): a depthwise convolution of the values, beside attention."""

from __future__ import annotations

from torch import Tensor, nn

from biases._checks import fail, feature_map, positive_int


def local_enhancement(what: str, dim: int, kernel: int) -> LocalEnhancement | None:
    """The ``enhancement`` of a layer named ``what``: a convolution of ``kernel`` x ``kernel``, or ``None`` for 0.

    Raises:
        ValueError: a kernel that is neither 0 nor a positive odd integer; ``False`` is no 0.
    """
    if kernel == 0 and isinstance(kernel, int) and not isinstance(kernel, bool):
        return None
    return LocalEnhancement(dim, positive_int(f"{what} enhancement (0 for none)", kernel))


class LocalEnhancement(nn.Module):
    """Depthwise convolution with zero padding: (B, H, W, C) -> the same.

    Args:
        dim: C.
        kernel: odd side of the kernel; 5 in RMT's code.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, dim: int, kernel: int = 5) -> None:
        super().__init__()
        if positive_int("LocalEnhancement kernel", kernel) % 2 == 0:
            fail("LocalEnhancement kernel", "an odd integer", kernel)
        self.dim = positive_int("LocalEnhancement dim", dim)
        self.convolution = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        feature_map("LocalEnhancement x", x, self.dim)
        return self.convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
