"""Groups of parameters for optimisers with weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float, *, decay_vectors: bool) -> list[dict[str, Any]]:
    """One group of the parameters that are decayed and one of those that are not, for AdamW and its like.

    Each parameter is in one group, once, in the order of ``model.parameters()``; groups that would be empty are left
    out. What a module names in ``no_weight_decay`` is not decayed; a parameter that several modules share is exempt
    if one of them exempts it.

    Args:
        model: the module whose parameters are grouped.
        weight_decay: of the first group; the second one's is 0.
        decay_vectors: also decay parameters of fewer than two axes (biases, normalisations, scales). Swin and RMT
            (their code) do not; the authors of EGA and MoPE (theirs) do.
    """
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name in getattr(module, "no_weight_decay", ()) or (parameter.ndim < 2 and not decay_vectors)
    }
    groups = (
        {"params": [p for p in model.parameters() if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if id(p) in exempt], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]
