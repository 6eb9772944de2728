"""CONV-L: "lag" attention (arXiv 2605.26355 App. B Alg. 1): logits mixed over shifts of the keys.

With ``w = softmax(lambda)``, lambda in R^(2 L + 1) drawn from N(0, 0.02), one set a head:

    S_ij = sum over tau = -L..L of w_tau (q_i . k_{j - tau}) / sqrt(d),   keys outside the sequence being zero.

Two readings, by ``shift``:

* ``"keys"``, the equation. As it is linear in the keys, it is a convolution of the keys along time, which is how it is
  computed. **It is not causal:** negative lags put ``k_{j + L}`` into the logit of key j, so outputs see up to L later
  tokens, although the papers list it with causal models.
* ``"released"``, the effect of the released code, where the shifted block is written back to where it came from: the
  logit of key j is multiplied by the sum of the weights of the lags available at j, which is 1 except within L of the
  borders, and the weights get no gradient. The published +0.007 and +0.005 are therefore replicates of the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from biases._checks import one_of, positive_int
from biases.registry import register
from biases.traits import Traits

LEAK = "negative lags put later keys into earlier logits (arXiv 2605.26355 App. B Alg. 1)"
LENGTH_DEPENDENCE = "the lags available at a key depend on the length of the sequence"


class KeyLag(nn.Module):
    """Mixes keys over lags.

    Args:
        heads: H.
        lags: L.
        shift: ``"keys"`` or ``"released"``.
    """

    def __init__(self, heads: int, lags: int, *, shift: str = "keys") -> None:
        super().__init__()
        one_of("KeyLag shift", shift, ("keys", "released"))
        self.lags, self.shift = positive_int("KeyLag lags", lags), shift
        self.logits = nn.Parameter(torch.empty(positive_int("heads", heads), 2 * lags + 1))
        nn.init.normal_(self.logits, std=0.02)

    def weights(self) -> Tensor:
        """w, (H, 2 L + 1), from lag -L to L."""
        return torch.softmax(self.logits, -1)

    def forward(self, k: Tensor, keep: Tensor | None = None) -> Tensor:
        """Mix the keys (B, H, T, D); those that are padding by ``keep`` (B, T) do not exist."""
        length, weights = k.shape[2], self.weights().to(k.dtype)
        if self.shift == "released":
            there = k.new_ones(1, length) if keep is None else keep.to(k.dtype)
            # available[b, j, tau + L] says whether token j - tau exists.
            available = nn.functional.pad(there, (self.lags, self.lags)).unfold(1, 2 * self.lags + 1, 1).flip(-1)
            return k * torch.einsum("hl,btl->bht", weights.detach(), available)[..., None]
        if keep is not None:
            k = k.masked_fill(~keep[:, None, :, None], 0.0)
        padded = nn.functional.pad(k, (0, 0, self.lags, self.lags))
        return sum(
            (
                weights[:, index, None, None] * padded[:, :, 2 * self.lags - index :][:, :, :length]
                for index in range(2 * self.lags + 1)
            ),
            start=torch.zeros_like(k),
        )

    def extra_repr(self) -> str:
        return f"lags={self.lags}, shift={self.shift!r}"


def _traits(options: Mapping[str, Any]) -> Traits:
    return Traits(
        causal=True,
        mask=("boolean",),
        masked_values="any",
        normalisation="row",
        empty_row="zero",
        position="relative",
        memory="linear",
        fast_path="sdpa on mixed keys",
        published="2605.26355 App. B Alg. 1",
    )


def _failures(options: Mapping[str, Any]) -> Mapping[str, str]:
    if options["shift"] == "released":
        return {"prefix-consistency": LENGTH_DEPENDENCE}
    return dict.fromkeys(("future-independence", "future-gradient", "prefix-consistency"), LEAK)


def _layer(heads: int, lags: int, shift: str) -> Mapping[str, object]:
    return {"causal": True, "key_mixing": KeyLag(heads, lags, shift=shift)}


NOTES = ("The equation leaks L tokens of the future; the released code is the baseline with scaled borders.",)


@register(
    "conv-lag-4",
    family="layers",
    summary="logits mixed over lags -4..4 of the keys (CONV-L4)",
    traits=_traits,
    known_failures=_failures,
    parameters="9 * heads",
    notes=NOTES,
)
def conv_lag_4(dim: int, heads: int, *, shift: str = "keys") -> Mapping[str, object]:
    return _layer(heads, 4, shift)


@register(
    "conv-lag-8",
    family="layers",
    summary="logits mixed over lags -8..8 of the keys (CONV-L8)",
    traits=_traits,
    known_failures=_failures,
    parameters="17 * heads",
    notes=NOTES,
)
def conv_lag_8(dim: int, heads: int, *, shift: str = "keys") -> Mapping[str, object]:
    return _layer(heads, 8, shift)
