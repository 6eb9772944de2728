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
    "masked_values": ("finite", "any"),
    "memory": ("linear", "quadratic", None),
    "gate_monotone_in": ("norm", None),
}
EQUIVARIANCES = ("permutation", "shift", "flip", "transpose", "heads")
MASKS = ("boolean", "additive")
RATES = ("alibi", "retention")


@dataclass(frozen=True)
class Decay:
    """How influence falls with distance.

    Attributes:
        kind: ``"linear"`` (the logit falls linearly) or ``"exponential"`` (the weight falls by a constant ratio).
        monotone_in: the distance in which it never rises: ``"past"`` (i - j), ``"absolute"`` (``|i - j|``) or
            ``"manhattan"`` (``|dy| + |dx|``).
        placement: ``"logits"`` (added before the weights function), ``"weights"`` (multiplied after it) or
            ``"state"`` (carried by a linear recurrence).
        rates: how much the logarithm of the weight falls a step of distance, head by head: the name of a rule,
            ``"alibi"`` (the slopes of arXiv:2108.12409) or ``"retention"`` (-log(1 - 2^(-5 - h)), arXiv:2307.08621
            Eq. 8), or the numbers themselves; ``None`` if not declared.
    """

    kind: str
    monotone_in: str
    placement: str
    rates: str | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        one_of("Decay kind", self.kind, ("linear", "exponential"))
        one_of("Decay monotone_in", self.monotone_in, ("past", "absolute", "manhattan"))
        one_of("Decay placement", self.placement, ("logits", "weights", "state"))
        if isinstance(self.rates, str):
            one_of("Decay rates", self.rates, RATES)
        elif self.rates is not None and not all(isinstance(rate, int | float) and rate >= 0 for rate in self.rates):
            fail("Decay rates", f"None, a rule among {RATES}, or numbers of at least 0", repr(self.rates))


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


@dataclass(frozen=True)
class Traits:
    """What a layer promises.

    Attributes:
        domain: ``"sequence"``, (B, T, C), or ``"image"``, (B, H, W, C).
        mask: forms of mask that it takes after its inputs: ``"boolean"`` (True = may attend) and ``"additive"`` (added
            to the logits). A layer takes only the first, (B, T), True for tokens that are not padding.
        causal: output at ``t`` depends on inputs at ``<= t`` only.
        masked_values: what may stand at masked keys and at padding without reaching the output: ``"finite"`` numbers,
            or ``"any"``, NaN and infinities included, which a weight of 0 alone does not stop.
        alignment: which query meets which key where L != S: ``"upper-left"`` (query i stands at key i) or
            ``"lower-right"`` (the last query stands at the last key).
        window: number of keys that a query may see, itself included; ``None`` for all. In an image, the side of the
            square windows that attention stays in.
        shift: in an image, by how much the windows are shifted, cyclically, towards the upper left.
        normalisation: ``"row"`` (non-negative weights that sum to 1) or ``"none"``.
        empty_row: output where no key may be seen: ``"zero"``, ``"mean"`` of the values or ``"nan"``.
        gate_range: open interval of the gate.
        gate_sees: what the gate of a token is computed from: the ``"token"``, its ``"prefix"`` or the whole
            ``"window"``.
        gate_monotone_in: ``"norm"``: a token scaled up, all else equal, never has a smaller gate.
        decay: see :class:`Decay`.
        position: ``"absolute"``, ``"relative"`` or ``"none"``.
        equivariant_to: names among ``"permutation"``, ``"shift"``, ``"flip"``, ``"transpose"``, ``"heads"``.
        memory: growth with length of what it holds at one moment: ``"linear"`` or ``"quadratic"``.
        max_length: the longest sequence that it takes; ``None`` for any.
        training_differs: whether training mode changes the output, as dropout does.
        fast_path: formulation in words; ``None`` if there is none.
        published: arXiv id and equation.
    """

    domain: str = "sequence"
    causal: bool = False
    mask: tuple[str, ...] = ()
    masked_values: str = "finite"
    alignment: str | None = None
    window: int | None = None
    shift: int = 0
    normalisation: str | None = None
    empty_row: str | None = None
    gate_range: tuple[float, float] | None = None
    gate_sees: str | None = None
    gate_monotone_in: str | None = None
    decay: Decay | None = None
    position: str | None = None
    equivariant_to: tuple[str, ...] = ()
    memory: str | None = None
    max_length: int | None = None
    training_differs: bool = False
    fast_path: str | None = None
    published: str | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            one_of(f"Traits {name}", getattr(self, name), choices)
        for name in ("causal", "training_differs"):
            if not isinstance(getattr(self, name), bool):
                fail(f"Traits {name}", "True or False", repr(getattr(self, name)))
        if self.decay is not None and not isinstance(self.decay, Decay):
            fail("Traits decay", "None or a Decay", repr(self.decay))
        for name, unit in (("window", "keys"), ("max_length", "tokens")):
            number = getattr(self, name)
            if number is not None and (not _whole(number) or number < 1):
                fail(f"Traits {name}", f"None or a number of {unit} of at least 1", repr(number))
        if not _whole(self.shift) or self.shift < 0 or (self.shift and self.window is None):
            fail("Traits shift", "0, or a number of pixels of at least 1 with a window", repr(self.shift))
        for name, choices in (("equivariant_to", EQUIVARIANCES), ("mask", MASKS)):
            names = getattr(self, name)
            if not isinstance(names, tuple | list):
                fail(f"Traits {name}", f"a tuple of names among {choices}, as in ({choices[0]!r},)", repr(names))
            for each in names:
                one_of(f"Traits {name}", each, choices)
        self._check_gate_range()

    def _check_gate_range(self) -> None:
        ends = self.gate_range
        if ends is None:
            return
        pair = isinstance(ends, tuple | list) and len(ends) == 2
        if not pair or not all(isinstance(end, int | float) for end in ends) or not ends[0] < ends[1]:
            fail("Traits gate_range", "None or two numbers (low, high) with low < high", repr(ends))

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
