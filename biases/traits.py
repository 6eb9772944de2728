"""Traits: the conventions of an attention layer, as values that a machine can read.

Properties are selected by traits, never by class. A trait left at ``None`` is not declared, and no property that
needs it is run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from biases._checks import fail, one_of

CHOICES: dict[str, tuple[object, ...]] = {
    "domain": ("sequence", "image"),
    "alignment": ("upper-left", "lower-right", None),
    "normalisation": ("row", "none", None),
    "empty_row": ("zero", "mean", "nan", None),
    "gate_sees": ("token", "prefix", "window", None),
    "position": ("absolute", "relative", "none", None),
}


@dataclass(frozen=True)
class Decay:
    """How influence falls with distance.

    Attributes:
        kind: ``"linear"`` (the logit falls linearly) or ``"exponential"`` (the weight falls by a constant ratio).
        monotone_in: the distance in which it never rises: ``"past"`` (i - j), ``"absolute"`` |i - j| or
            ``"manhattan"`` |dy| + |dx|.
        placement: ``"logits"`` (added before the weights function), ``"weights"`` (multiplied after it) or
            ``"state"`` (carried by a linear recurrence).
    """

    kind: str
    monotone_in: str
    placement: str

    def __post_init__(self) -> None:
        one_of("Decay kind", self.kind, ("linear", "exponential"))
        one_of("Decay monotone_in", self.monotone_in, ("past", "absolute", "manhattan"))
        one_of("Decay placement", self.placement, ("logits", "weights", "state"))


@dataclass(frozen=True)
class Traits:
    """What a layer promises.

    Attributes:
        domain: ``"sequence"``, (B, T, C), or ``"image"``, (B, H, W, C).
        causal: output at ``t`` depends on inputs at ``<= t`` only.
        alignment: which query meets which key where L != S: ``"upper-left"`` (query i stands at key i) or
            ``"lower-right"`` (the last query stands at the last key).
        window: number of keys that a query may see, itself included; ``None`` for all.
        normalisation: ``"row"`` (non-negative weights that sum to 1) or ``"none"``.
        empty_row: output where no key may be seen: ``"zero"``, ``"mean"`` of the values or ``"nan"``.
        gate_range: open interval of the gate.
        gate_sees: what the gate of a token is computed from: the ``"token"``, its ``"prefix"`` or the whole
            ``"window"``.
        decay: see :class:`Decay`.
        position: ``"absolute"``, ``"relative"`` or ``"none"``.
        equivariant_to: names among ``"permutation"``, ``"shift"``, ``"flip"``, ``"transpose"``.
        fast_path: formulation in words; ``None`` if there is none.
        published: arXiv id and equation.
    """

    domain: str = "sequence"
    causal: bool = False
    alignment: str | None = None
    window: int | None = None
    normalisation: str | None = None
    empty_row: str | None = None
    gate_range: tuple[float, float] | None = None
    gate_sees: str | None = None
    decay: Decay | None = None
    position: str | None = None
    equivariant_to: tuple[str, ...] = ()
    fast_path: str | None = None
    published: str | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            one_of(f"Traits {name}", getattr(self, name), choices)
        if not isinstance(self.causal, bool):
            fail("Traits causal", "True or False", repr(self.causal))
        if self.decay is not None and not isinstance(self.decay, Decay):
            fail("Traits decay", "None or a Decay", repr(self.decay))
        if self.window is not None and (not isinstance(self.window, int) or self.window < 1):
            fail("Traits window", "None or a number of keys of at least 1", repr(self.window))
        for name in self.equivariant_to:
            one_of("Traits equivariant_to", name, ("permutation", "shift", "flip", "transpose"))

    def but(self, **changes: Any) -> Traits:
        """A copy with some traits changed."""
        for name in changes:
            one_of("trait", name, [f.name for f in fields(self)])
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.decay is not None:
            values["decay"] = {f.name: getattr(self.decay, f.name) for f in fields(self.decay)}
        return values
