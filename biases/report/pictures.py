"""What the biases of the zoo look like, computed from the zoo itself: every variant by the same probes.

For a layer: the weights that its attention gives where all queries and keys are alike (what is left is the bias), how
they fall with the distance, its gate on a sample, and the influence of every input on every output, the size of the
layer's derivative. For a position: the encoding, and the similarity of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from biases import _calls, zoo
from biases.attention import pair_weights

TOKENS, CONTEXT, WIDTH = 24, 64, 32
SIDE = 14
"""Pixels of a side of the map: two windows of the papers' 7."""
BATCH = 28
"""Outputs whose influence is computed at once."""
MOST_REGIONS = 16
"""Above it pixels see each something of their own, and there are no regions."""
SMALLEST = 1e-13
"""Share of a row's largest influence below which it is rounding."""
EMBEDDING, ROTARY = "embedding", "rotary"

Picture = dict[str, Any]


def pictures(progress: Callable[[int, int, str], None] | None = None) -> list[Picture]:
    """A picture of every layer and position of the zoo, plain JSON values; takes seconds on a CPU.

    Args:
        progress: called with (done, total, name) before each.

    Returns:
        ``name``, and what there is of: ``weights`` (head -> rows of queries), ``profile`` (head -> ``distance``,
        ``weight``), ``gate`` (head -> a value a token), ``response`` (head -> ``energy``, ``gate``), ``influence``
        (rows of outputs, or for a map ``query`` and ``values``), ``alone`` (the same with queries and keys alike),
        ``regions`` (of which shift -> values), ``encoding`` (positions x channels), ``similarity`` (positions x
        positions), ``kernel`` (``distance``, ``similarity``); ``error`` where the variant could not be drawn.
    """
    names = [*zoo.names("layer"), *zoo.names("position")]
    found = []
    for done, name in enumerate(names):
        if progress is not None:
            progress(done, len(names), name)
        found.append(picture(name))
    return found


def picture(name: str) -> Picture:
    """The picture of one variant, see :func:`pictures`."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            kind, domain = zoo.get(name).kind, zoo.get(name).traits.domain
            draw = _position if kind == "position" else _image if domain == "image" else _sequence
            return {"name": name, **draw(name)}
    # One variant that cannot be drawn is no reason to go without the page.
    except Exception as error:
        return {"name": name, "error": f"{type(error).__name__}: {error}"}


def _sequence(name: str) -> Picture:
    layer = zoo.trial(name).double().eval()
    x = torch.randn(1, TOKENS, layer.dim, dtype=torch.float64)
    with _alike() as calls:
        layer(x)
    found: Picture = {"influence": _influence(layer, x, range(TOKENS))}
    if calls:
        weights, gate = calls[0]
        heads = weights.shape[0]
        shown = sorted({0, heads - 1})
        found["weights"] = {_head(h): _rows(weights[h]) for h in shown}
        found["profile"] = {_head(h): _profile(weights[h]) for h in range(heads)}
        if gate is not None:
            found["gate"] = {_head(h): _numbers(gate[h].exp()) for h in range(len(gate))}
            found |= _response(layer, x)
    return found


def _image(name: str) -> Picture:
    layer = zoo.trial(name).double().eval()
    x = torch.randn(1, SIDE, SIDE, layer.dim, dtype=torch.float64)
    query = (SIDE // 2 - 2, SIDE // 2 + 1)
    at = query[0] * SIDE + query[1]
    found: Picture = {"query": list(query), "influence": _map(_influence(layer, x, [at])[0])}
    with _alike():
        found["alone"] = _map(_influence(layer, x, [at])[0])
        shifts: dict[str, dict[str, Any]] = {"": {}}
        if "shifted" in zoo.get(name).options:
            shifts = {"not shifted": {"shifted": False}, "shifted": {"shifted": True}}
        for title, options in shifts.items():
            each = zoo.trial(name, **options).double().eval()
            if None in _influence(each, x, [at])[0] and (regions := _regions(each, x)):
                found.setdefault("regions", {})[title] = regions
    return found


def _position(name: str) -> Picture:
    parts: Mapping[str, Any] = zoo.position(name, WIDTH, context=CONTEXT, heads=1)
    if EMBEDDING in parts:
        encoding = parts[EMBEDDING](torch.zeros(1, CONTEXT, WIDTH))[0]
    elif ROTARY in parts:
        encoding = parts[ROTARY](torch.ones(1, 1, CONTEXT, WIDTH))[0, 0]
    else:
        return {}
    products = encoding.double() @ encoding.double().T
    largest = products.diagonal().mean()
    means = [products.diagonal(distance).mean() / largest for distance in range(CONTEXT)]
    return {
        "encoding": _rows(encoding),
        "similarity": _rows(products / largest),
        "kernel": {"distance": list(range(CONTEXT)), "similarity": _numbers(torch.stack(means))},
    }


@contextmanager
def _alike() -> Iterator[list[tuple[Tensor, Tensor | None]]]:
    """Inside this context queries and keys of ``attend`` are all alike, with ``scale q . k = 1``.

    The list gets, for each call, the weights of the first example, (H, L, S), and the logarithm of its gate, (H, S) or
    ``None``.
    """
    calls: list[tuple[Tensor, Tensor | None]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, *, backend: str, dropout: float, **options: Any) -> Tensor:
        # Derivatives reach the values and the gates alone.
        q, k = (torch.ones_like(each) / each.shape[-1] ** 0.5 for each in (q, k))
        weights = pair_weights(q, k, **{**options, "scale": 1.0})
        gate = options["key_gate"]
        calls.append((weights[0].detach(), None if gate is None else gate.log[0].detach()))
        return (weights @ v.double()).to(v.dtype)

    with _calls.replaced(attend):
        yield calls


def _influence(layer: nn.Module, x: Tensor, outputs: Iterable[int]) -> list[list[float | None]]:
    """Size of the derivative of each output by each input over the row's largest, ``None`` where it is zero.

    Args:
        x: (1, T, C) or (1, H, W, C).
        outputs: tokens or pixels, in raster order.
    """
    wanted, rows = list(outputs), []
    for start in range(0, len(wanted), BATCH):
        some = torch.tensor(wanted[start : start + BATCH])
        # An example for each output: one derivative of their sum has them all.
        with torch.enable_grad():
            inputs = x.expand(len(some), *x.shape[1:]).clone().requires_grad_()
            result = layer(inputs).flatten(1, -2)[torch.arange(len(some)), some]
            weights = torch.randn(result.shape[-1], dtype=result.dtype)
            (slopes,) = torch.autograd.grad((result @ weights).sum(), inputs)
        sizes = slopes.flatten(1, -2).norm(dim=-1)
        rows += _shares(sizes)
    return rows


def _shares(sizes: Tensor) -> list[list[float | None]]:
    shares = sizes / sizes.amax(-1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)
    return [[value if value > SMALLEST else None for value in row] for row in shares.tolist()]


def _regions(layer: nn.Module, x: Tensor) -> list[list[float | None]] | None:
    """The map, pixels that see the same pixels having one number; ``None`` above :data:`MOST_REGIONS`."""
    numbers: dict[tuple[bool, ...], int] = {}
    found: list[float | None] = []
    for row in range(SIDE):
        for influence in _influence(layer, x, range(row * SIDE, (row + 1) * SIDE)):
            found.append(numbers.setdefault(tuple(value is not None for value in influence), len(numbers)))
        if len(numbers) > MOST_REGIONS:
            return None
    return _map(found)


def _profile(weights: Tensor) -> dict[str, list[Any]]:
    """Weights of the last query that sees a key before it, over that of the nearest, by distance."""
    row = weights[-1].flip(0)
    nearest = row[0].abs().clamp(min=torch.finfo(row.dtype).tiny)
    known = [(d, float(value / nearest)) for d, value in enumerate(row) if float(value) != 0.0]
    return {"distance": [d for d, _ in known], "weight": [share for _, share in known]}


def _response(layer: nn.Module, x: Tensor) -> Picture:
    """The gate against the standardised energy that it is a function of, for gates of one energy a head."""
    from biases.gates.energy import EnergyGate, standardise

    gate = getattr(layer, "key_gate", None)
    if not isinstance(gate, EnergyGate) or gate.scales != 1:
        return {}
    energy = standardise(gate.energy(x), gate.statistics)[0, :, 0]
    opened = gate.log_gate(x)[0].exp()
    response = {}
    for head in sorted({0, len(energy) - 1}):
        order = energy[head].argsort()
        response[_head(head)] = {"energy": _numbers(energy[head][order]), "gate": _numbers(opened[head][order])}
    return {"response": response}


def _head(index: int) -> str:
    return f"head {index + 1}"


def _numbers(values: Tensor) -> list[float]:
    return [float(value) for value in values]


def _rows(values: Tensor) -> list[list[float | None]]:
    """Exact zeros, which no weight of a softmax is, stay blank."""
    return [[value or None for value in row] for row in values.tolist()]


def _map(values: list[float | None] | list[float]) -> list[list[float | None]]:
    return [list(values[row * SIDE : (row + 1) * SIDE]) for row in range(SIDE)]
