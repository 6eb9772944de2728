"""What full and decomposed Manhattan attention cost, counted and not timed, over square and oblong maps.

    python benchmarks/decomposed_cost.py
    python benchmarks/decomposed_cost.py --maps 14x14 28x28 14x56 --window 7 --out costs.json

Counted are the floating-point operations of the matrix products of the attention core (scores and aggregation, forward,
without projections), by ``torch.utils.flop_counter``, and the largest tensor that any operation makes. Operations are
counted on the dense backend, where every product is an operation of its own: the fused kernel does the same products,
but a counter sees one call. The largest tensor is counted on both backends.

The expectation, for N = H W pixels of width C in windows of M x M, in operations (2 a multiply-add):

    full                 4 N^2 C           (arXiv 2309.11523 Eq. 5)
    decomposed           4 N (H + W) C     (Eq. 6): N^(3/2) on square maps, and not linear, as the paper calls it
    windowed             4 N M^2 C
    windowed-decomposed  8 N M C           (our composition of the two)

The largest tensor of the decomposed forms is held against a bound: N max(T, C) numbers on the dense backend, with T the
longest line, max(H, W) or M, and N C on the fast path, which holds no weights.

Exit code 0: every count is the expected one, and no tensor exceeds its bound; 1: one does, or is not.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from biases import ManhattanDecay, attend
from biases._files import write_atomically
from biases.ablation._provenance import git_revision, versions
from biases.axial import attend_decomposed
from biases.decays import rmt_log_rates
from biases.windows import Windows

MAPS = ("7x7", "14x14", "28x28", "56x56", "7x28", "28x7", "14x56", "56x14", "7x112", "112x7")
EXPECTED = {
    "full": lambda h, w, m: h * w,
    "decomposed": lambda h, w, m: h + w,
    "windowed": lambda h, w, m: m * m,
    "windowed-decomposed": lambda h, w, m: 2 * m,
}
# The longest line of the forms whose largest tensor is bounded by lines.
LONGEST_LINE = {
    "decomposed": lambda h, w, m: max(h, w),
    "windowed-decomposed": lambda h, w, m: m,
}
RESULTS = Path(__file__).parent / "results" / "decomposed_cost.json"


class Largest(TorchDispatchMode):
    """The most elements in the storage of any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


def run(form: str, qkv: list[Tensor], window: int, backend: str) -> Tensor:
    """The attention core of one head on maps (B, H, W, D), or on their windows: (B, 1, ...)."""
    rates = rmt_log_rates(1)
    if form.startswith("windowed"):
        height, width = qkv[0].shape[1:3]
        cut = Windows.of(height, width, window, rule="divisor")
        qkv = [cut.partition(x) for x in qkv]
    q, k, v = (x[:, None] for x in qkv)
    decay = ManhattanDecay(q.shape[2], q.shape[3], rates)
    if form.endswith("decomposed"):
        return attend_decomposed(q, k, v, decay=decay.axes()[0], backend=backend)
    return attend(*(x.flatten(2, 3) for x in (q, k, v)), decay=decay, backend=backend)


def tensor_bound(form: str, height: int, width: int, dim: int, window: int) -> dict[str, int] | None:
    """How many numbers the largest tensor may hold, by backend; ``None`` where nothing is claimed."""
    if form not in LONGEST_LINE:
        return None
    line, tokens = LONGEST_LINE[form](height, width, window), height * width
    return {"dense": tokens * max(line, dim), "auto": tokens * dim}


def measure(form: str, height: int, width: int, dim: int, window: int) -> dict[str, Any]:
    """Counts of one form on one map, for one head of width ``dim``."""
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(1, height, width, dim, generator=generator) for _ in range(3)]
    with FlopCounterMode(display=False) as counter:
        run(form, qkv, window, "dense")
    largest = {}
    for backend in ("dense", "auto"):
        with Largest() as mode:
            run(form, qkv, window, backend)
        largest[backend] = mode.numel
    tokens, flops = height * width, counter.get_total_flops()
    return {
        "form": form,
        "height": height,
        "width": width,
        "flops": flops,
        "flops_per_token_and_channel": flops / (tokens * dim),
        "expected_per_token_and_channel": 4 * EXPECTED[form](height, width, window),
        "largest_tensor": largest,
        "largest_tensor_bound": tensor_bound(form, height, width, dim, window),
    }


def complaints(row: dict[str, Any]) -> list[str]:
    """What is not as expected in a row, in words."""
    found, where = [], f"{row['form']} on {row['height']} x {row['width']}"
    got, expected = row["flops_per_token_and_channel"], row["expected_per_token_and_channel"]
    if got != expected:
        found.append(f"{where}: {got:g} operations a token and channel, expected {expected}")
    for backend, bound in (row["largest_tensor_bound"] or {}).items():
        numel = row["largest_tensor"][backend]
        if numel > bound:
            found.append(
                f"{where}: largest tensor of {numel:,} numbers on backend {backend}, expected at most {bound:,}"
            )
    return found


def growth(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Exponent of the number of pixels in the operations on square maps, by least squares of the logarithms."""
    exponents = {}
    for form in EXPECTED:
        square = [row for row in rows if row["form"] == form and row["height"] == row["width"]]
        if len(square) > 1:
            tokens = [math.log(row["height"] * row["width"]) for row in square]
            slope, _ = np.polyfit(tokens, [math.log(row["flops"]) for row in square], 1)
            exponents[form] = round(float(slope), 6)
    return exponents


def side_pair(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, as in 14x56, got {text!r}")
    return int(height), int(width)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=side_pair, nargs="+", default=[side_pair(each) for each in MAPS], metavar="HxW")
    parser.add_argument("--dim", type=int, default=32, help="width of the head (default: 32, as in RMT)")
    parser.add_argument("--window", type=int, default=7, help="side of the windows, dividing all sides (default: 7)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the counts are written (JSON)")
    options = parser.parse_args()
    if options.dim < 1 or options.window < 1 or any(n % options.window for pair in options.maps for n in pair):
        parser.error("--dim and --window must be at least 1, and the window must divide the sides of all maps")
    with torch.no_grad():
        rows = [
            measure(form, height, width, options.dim, options.window)
            for form in EXPECTED
            for height, width in options.maps
        ]
    wrong = [complaint for row in rows for complaint in complaints(row)]
    summary = {
        "schema": 1,
        "configuration": {
            "maps": [f"{height}x{width}" for height, width in options.maps],
            "heads": 1,
            "head_dim": options.dim,
            "window": options.window,
            "dtype": "float32",
            "flops_counted_on": "dense backend, matrix products of the forward pass, 2 a multiply-add",
        },
        "versions": versions(),
        "revision": git_revision(),
        "exponent_of_pixels_on_square_maps": growth(rows),
        "unexpected": len(wrong),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, (json.dumps(summary, indent=1) + "\n").encode())
    for row in rows:
        per_token, largest = row["flops_per_token_and_channel"], row["largest_tensor"]
        print(
            f"{row['form']:<20} {row['height']:>4} x {row['width']:<4} {per_token:>8.0f} operations a token and channel"
            f"   largest tensor {largest['dense']:>10,} dense {largest['auto']:>10,} fast"
        )
    print("exponent of the number of pixels on square maps:", growth(rows))
    for complaint in wrong:
        print(f"unexpected: {complaint}", file=sys.stderr)
    if not wrong:
        print("all operations as expected, and the largest tensors of the decomposed forms within their bounds")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
