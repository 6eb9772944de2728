"""What the biases of the zoo look like, computed from the zoo itself: every variant by the same probes.

For a layer: the weights that its attention gives where all queries and keys are alike, how they fall with the distance,
its gates on a sample, and the influence of every input on every output, the size of the layer's derivative. For a
position: the encoding, and the similarity of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biases import zoo
from biases.report import probes

TOKENS, CONTEXT, WIDTH = 24, 64, 32
SIDE = 14
"""Pixels of a side of the map: two windows of the papers' 7."""
MOST_REGIONS = 16
"""Above it pixels see each something of their own, and there are no regions."""
EMBEDDING, ROTARY = "embedding", "rotary"

Picture = dict[str, Any]


def pictures(progress: Callable[[int, int, str], None] | None = None) -> list[Picture]:
    """A picture of every layer and position of the zoo, plain JSON values; takes seconds on a CPU.

    Args:
        progress: called with (done, total, name) before each.

    Returns:
        ``name``, and what there is of: ``weights`` (head -> rows of queries), ``profile`` (head -> ``distance``,
        ``weight``), ``gate`` (head -> a value a token), ``response`` (head -> ``energy``, ``gate``), ``gates`` (what is
        multiplied -> tokens x channels, or a map of the first channel), ``mixing`` (head -> ``lag``, ``weight``),
        ``influence`` (rows of outputs, or for a map those of the pixel ``query``), ``alone`` (the same with queries and
        keys alike), ``maps`` (head and shift -> weights of ``query``), ``left`` (what the weights are made of, see
        :class:`biases.report.probes.Alike`), ``regions`` (shift -> values), ``encoding`` (positions x channels),
        ``encoded`` (``"embedding"`` or ``"rotary"``), ``similarity`` (positions x positions), ``kernel`` (``distance``,
        ``similarity``); ``error`` where the variant could not be drawn.
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
    with probes.alike() as seen:
        layer(x)
    found: Picture = {"influence": probes.influence(layer, x, range(TOKENS)), "left": seen.left}
    if mixing := probes.mixing(layer, TOKENS):
        lags, kernels = mixing
        found["mixing"] = {_head(h): {"lag": lags, "weight": _numbers(kernel)} for h, kernel in enumerate(kernels)}
    if gates := probes.gates(layer, x):
        found["gates"] = {what: _rows(gate[0]) for what, gate in gates.items()}
    if seen.weights:
        weights, gate = seen.weights[0], seen.gates[0]
        heads = weights.shape[0]
        found["weights"] = {_head(h): _rows(weights[h]) for h in _ends(heads)}
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
    found: Picture = {"query": list(query), "influence": _map(probes.influence(layer, x, [at])[0])}
    if gates := probes.gates(layer, x):
        found["gates"] = {what: _map(_numbers(gate[0, :, 0])) for what, gate in gates.items()}
    shifts: dict[str, dict[str, Any]] = {"": {}}
    if "shifted" in zoo.get(name).options:
        shifts = {"not shifted": {"shifted": False}, "shifted": {"shifted": True}}
    with probes.alike() as seen:
        found["alone"] = _map(probes.influence(layer, x, [at])[0])
        for shift, options in shifts.items():
            weights = probes.pixel_weights(zoo.trial(name, **options).double().eval(), x)
            if weights is None:
                continue
            for head in _ends(len(weights)):
                title = ", ".join(filter(None, (_head(head), shift)))
                found.setdefault("maps", {})[title] = _map(_rows(weights[head, at : at + 1])[0])
            if regions := _regions(weights[0]):
                found.setdefault("regions", {})[shift] = regions
    return {**found, "left": seen.left}


def _position(name: str) -> Picture:
    parts: Mapping[str, Any] = zoo.position(name, WIDTH, context=CONTEXT, heads=1)
    encoded = EMBEDDING if EMBEDDING in parts else ROTARY
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
        "encoded": encoded,
        "similarity": _rows(products / largest),
        "kernel": {"distance": list(range(CONTEXT)), "similarity": _numbers(torch.stack(means))},
    }


def _regions(weights: Tensor) -> list[list[float | None]] | None:
    """The map, pixels that attend to the same pixels having one number; ``None`` where all do, or there are more than
    :data:`MOST_REGIONS`."""
    numbers: dict[tuple[bool, ...], int] = {}
    found = [numbers.setdefault(tuple(row), len(numbers)) for row in (weights != 0).tolist()]
    return _map([float(each) for each in found]) if 1 < len(numbers) <= MOST_REGIONS else None


def _profile(weights: Tensor) -> dict[str, list[Any]]:
    """Weights of the last query over that of the key at its own position, by distance."""
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
    for head in _ends(len(energy)):
        order = energy[head].argsort()
        response[_head(head)] = {"energy": _numbers(energy[head][order]), "gate": _numbers(opened[head][order])}
    return {"response": response}


def _ends(heads: int) -> list[int]:
    """The first head and the last."""
    return sorted({0, heads - 1})


def _head(index: int) -> str:
    return f"head {index + 1}"


def _numbers(values: Tensor) -> list[float]:
    return [float(value) for value in values]


def _rows(values: Tensor) -> list[list[float | None]]:
    """Exact zeros, which no weight of a softmax is, stay blank."""
    return [[value or None for value in row] for row in values.tolist()]


def _map(values: list[float | None] | list[float]) -> list[list[float | None]]:
    return [list(values[row * SIDE : (row + 1) * SIDE]) for row in range(SIDE)]
