"""What ``python -m benchmarks.gpu`` checks and measures: operators of the zoo, and those of families it has none of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from biases import ALiBi, ExponentialDecay, KeyBias, KeyGate, ManhattanDecay
from biases._calls import Call
from biases.backends import choice
from biases.bench.operators import Operator
from biases.bench.workloads import Setting, Workload, from_calls, prepare, record
from biases.decays import rmt_log_rates

ADDITIVE = {"forward": 1.10, "forward+backward": 1.15}
SIGMOID = {"forward": 1.30, "forward+backward": 1.30}


def _tensors(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    shape = (setting.batch, setting.heads, setting.length, setting.head_dim)
    q, k, v = (setting.draw(*shape, offset=n) for n in range(3))
    return q, k, v


def _logits(setting: Setting) -> Tensor:
    """A number a key and head, (B, H, L), float32."""
    return setting.draw(setting.batch, setting.heads, setting.length, offset=3).float()


def _gate(setting: Setting, *, renormalise: bool) -> dict[str, Any]:
    return {"key_gate": KeyGate(F.logsigmoid(_logits(setting)).requires_grad_(), renormalise=renormalise)}


def _rates(setting: Setting) -> Tensor:
    return rmt_log_rates(setting.heads).to(setting.device, torch.float32)


def _sigmoid(setting: Setting) -> dict[str, Any]:
    decay = ExponentialDecay(_rates(setting) / setting.length, symmetric=True, placement="weights")
    return {"weights": "sigmoid", "bias": ALiBi(setting.heads, symmetric=True), "decay": decay}


def _documents(setting: Setting) -> dict[str, Any]:
    """Tokens see those of their own document, a quarter of the length each, by a mask over pairs."""
    document = torch.arange(setting.length, device=setting.device) // max(1, setting.length // 4)
    return {"bias": ALiBi(setting.heads, symmetric=True), "mask": document[:, None] == document}


def _after(setting: Setting) -> dict[str, Any]:
    return {"decay": ExponentialDecay(_rates(setting) / setting.length, symmetric=True, placement="weights")}


OWN: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "gate-folded": lambda s: _gate(s, renormalise=False),
    "key-bias": lambda s: {"bias": KeyBias(_logits(s))},
    "alibi-learned": lambda s: {"bias": ALiBi((-_rates(s)).requires_grad_(), symmetric=True)},
    "manhattan-learned": lambda s: {"decay": ManhattanDecay(s.side, s.side, _rates(s).requires_grad_())},
    "window": lambda s: {"causal": True, "window": max(1, s.length // 8)},
    "documents": _documents,
    "sigmoid-decay": _sigmoid,
    "decay-after": _after,
}
"""Name -> the options of ``attend``."""


@dataclass(frozen=True)
class Subject:
    """One thing to check and measure.

    Attributes:
        name: of the zoo at this ``level`` of :mod:`biases.bench.workloads`, or of :data:`OWN`.
        level: ``"operator"`` or ``"layer"``.
        image: its length is the number of pixels of a square map.
        bars: direction -> largest ratio to the floor that the project asks for; empty where it asks for none.
        side: of its map, whatever length is asked for: for kernels that take small maps only.
        kind: the family of a layer whose attention is one call of ``attend_decomposed``.
    """

    name: str
    level: str = "operator"
    image: bool = False
    bars: dict[str, float] | None = None
    side: int | None = None
    kind: str | None = None

    @property
    def label(self) -> str:
        """What names it in results."""
        parts = [self.name, *([] if self.level == "operator" else [self.level])]
        return "/".join([*parts, *([] if self.side is None else [f"{self.side}x{self.side}"])])

    def length(self, asked: int) -> int:
        """The length it is run at where ``asked`` is that of the others."""
        return asked if self.side is None else self.side**2

    def workload(self, setting: Setting, backend: str) -> Workload:
        if self.name in OWN:
            return from_calls(self.name, self.calls(setting), setting, backend=backend)
        return prepare(self.level, self.name, setting, backend=backend)

    def calls(self, setting: Setting) -> list[Call]:
        """The calls of ``attend``."""
        if self.name in OWN:
            return [(_tensors(setting), OWN[self.name](setting))]
        return record(self.name, setting)

    def family(self, setting: Setting) -> str | None:
        """The one family of :data:`biases.backends.choice.FAMILIES` of all its calls; ``None`` for most layers."""
        if self.level != "operator":
            return self.kind
        with torch.set_grad_enabled(setting.backward):
            calls = self.calls(setting)
            found = {choice.family(Operator.of(call, seed=None).problem) for call in calls}
        return found.pop() if len(found) == 1 else None


SUBJECTS = (
    Subject("standard", bars=ADDITIVE),
    Subject("gate-folded", bars=ADDITIVE),
    Subject("key-bias", bars=ADDITIVE),
    Subject("ega-token", bars=ADDITIVE),
    Subject("alibi", bars=ADDITIVE),
    Subject("alibi-symmetric", bars=ADDITIVE),
    Subject("alibi-learned", bars=ADDITIVE),
    Subject("window"),
    Subject("manhattan", image=True, bars=ADDITIVE),
    Subject("manhattan-learned", image=True, bars=ADDITIVE),
    Subject("sigmoid-decay", bars=SIGMOID),
    Subject("swat"),
    Subject("decay-after"),
    Subject("documents"),
    Subject("retention"),
    Subject("swin", image=True),
    Subject("gated-swin-retention", image=True),
    Subject("gated-swin-swat", image=True),
    Subject("manhattan-decomposed", level="layer", image=True),
    # Small maps and windows, which one kernel takes through both passes: in the layer, as what the kernel saves lies
    # between two calls of attend.
    Subject("manhattan-decomposed", level="layer", image=True, side=14, kind="decomposed"),
    Subject("manhattan-decomposed", level="layer", image=True, side=16, kind="decomposed"),
    Subject("gated-swin-retention", level="layer", image=True),
    Subject("gated-swin-swat", level="layer", image=True),
)
