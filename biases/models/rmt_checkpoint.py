"""Official RMT checkpoints (qhfan/RMT, commit 32ea214, ``classfication_release/RMT.py``): names, and loading.

Parameters and the statistics of batch normalisation correspond one to one, with equal shapes:

| here | official |
|---|---|
| ``embedding.layers.I`` | ``patch_embed.proj.I`` |
| ``stages.S.blocks.B.position.convolution`` | ``layers.S.blocks.B.pos.conv`` |
| ``stages.S.blocks.B.norm1``, ``norm2`` | ``layers.S.blocks.B.retention_layer_norm``, ``final_layer_norm`` |
| ``stages.S.blocks.B.attention.query``, ``key``, ``value``, ``output`` | ``layers.S.blocks.B.retention.q_proj``, ... |
| ``stages.S.blocks.B.attention.enhancement.convolution`` | ``layers.S.blocks.B.retention.lepe.conv`` |
| ``stages.S.blocks.B.feed_forward.expand``, ``contract`` | ``layers.S.blocks.B.ffn.fc1``, ``fc2`` |
| ``stages.S.blocks.B.feed_forward.convolution`` | ``layers.S.blocks.B.ffn.dwconv.conv`` |
| ``stages.S.blocks.B.scale1.weight``, ``scale2.weight`` | ``layers.S.blocks.B.gamma_1``, ``gamma_2`` |
| ``stages.S.downsampling.convolution``, ``norm`` | ``layers.S.downsample.reduction``, ``norm`` |
| ``head.projection``, ``norm``, ``output`` | ``proj``, ``norm``, ``head`` |

The official state also holds two buffers a stage, ``layers.S.Relpos.angle`` and ``layers.S.Relpos.decay``: constants of
the configuration, which are computed here and kept in no state. They are compared, not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from biases._checks import fail
from biases.decays.exponential import rmt_log_rates
from biases.layers.manhattan import ManhattanAttention
from biases.models.backbone import Block, Stage
from biases.models.rmt import RMT, SIZES

_OUTSIDE_BLOCKS = (
    (r"embedding\.layers\.", "patch_embed.proj."),
    (r"head\.projection\.", "proj."),
    (r"head\.norm\.", "norm."),
    (r"head\.output\.", "head."),
    (r"stages\.(\d+)\.downsampling\.convolution\.", r"layers.\1.downsample.reduction."),
    (r"stages\.(\d+)\.downsampling\.norm\.", r"layers.\1.downsample.norm."),
)
_IN_BLOCK = {
    "position.convolution.": "pos.conv.",
    "norm1.": "retention_layer_norm.",
    "norm2.": "final_layer_norm.",
    "attention.query.": "retention.q_proj.",
    "attention.key.": "retention.k_proj.",
    "attention.value.": "retention.v_proj.",
    "attention.output.": "retention.out_proj.",
    "attention.enhancement.convolution.": "retention.lepe.conv.",
    "feed_forward.expand.": "ffn.fc1.",
    "feed_forward.contract.": "ffn.fc2.",
    "feed_forward.convolution.": "ffn.dwconv.conv.",
    "scale1.weight": "gamma_1",
    "scale2.weight": "gamma_2",
}
_RULES = (
    *_OUTSIDE_BLOCKS,
    *(
        (rf"stages\.(\d+)\.blocks\.(\d+)\.{re.escape(here)}", rf"layers.\1.blocks.\2.{there}")
        for here, there in _IN_BLOCK.items()
    ),
)
SHOWN = 5
PUBLISHED = ("t", "s", "b", "l")


def official_names(model: RMT) -> dict[str, str]:
    """The official name of every entry of ``model.state_dict()``."""
    return {name: _official(name) for name in model.state_dict()}


def load_official(model: RMT, state: Mapping[str, Tensor]) -> RMT:
    """Load an official state into ``model``, in place; returns it.

    Args:
        model: of the size and with the number of classes of the state.
        state: what the official ``state_dict()`` gives (the released files hold it under ``"model"``). Values are
            converted to the dtype and device of the model.

    Raises:
        ValueError: no RMT, or one whose attention is not the official one (decay added to the logits, softmax, theta
            shift, width first; in a published size also its forms and rates of decay); names missing or unknown,
            values that are no tensors, shapes that differ, or constants of decay and theta shift other than those of
            the model, by more than the rounding of float32. Nothing is loaded then.
    """
    _check_model(model)
    _check_state(state)
    ours = model.state_dict()
    names = official_names(model)
    constants = _constants(model)
    expected = set(names.values())
    _none("names of the official state", "missing", expected - state.keys())
    _none("names of the official state", "unknown", state.keys() - expected - constants.keys())
    wrong = [
        f"{official}: expected {tuple(ours[name].shape)}, got {tuple(state[official].shape)}"
        for name, official in names.items()
        if ours[name].shape != state[official].shape
    ]
    _none("shapes of the official state", "different", wrong)
    for name in constants.keys() & state.keys():
        _compare(f"constants of the official state, {name}", constants[name], state[name])
    model.load_state_dict({name: state[official] for name, official in names.items()})
    return model


def _check_model(model: RMT) -> None:
    """Its parameters have the official names and shapes whatever the attention does with them."""
    if not isinstance(model, RMT):
        fail("model for an official state of RMT", "an RMT", type(model).__name__)
    forms, rates = _published(model)
    for s, stage in enumerate(model.stages):
        for b, block in enumerate(cast(Iterable[Block], cast(Stage, stage).blocks)):
            attention = cast(ManhattanAttention, block.attention)
            found = {
                "placement": (attention.decay.placement, "logits"),
                "weights": (attention.weights, "softmax"),
                "theta_shift": (attention.theta_shift is not None, True),
                "order": (attention.order if attention.form == "decomposed" else "width-first", "width-first"),
                "form": (attention.form, forms[s] if forms else attention.form),
            }
            for option, (got, expected) in found.items():
                if got != expected:
                    what = f"{option} of the attention in stages.{s}.blocks.{b}"
                    fail(what, f"{expected!r}, as in the official model", repr(got))
            if rates:
                _compare(f"rates of decay in stages.{s}.blocks.{b}", rates[s], attention.decay.log_rates)


def _published(model: RMT) -> tuple[Sequence[str], list[Tensor]]:
    """Forms and logarithms of the rates of the published size that has the model's widths, depths and heads, if any."""
    blocks = [cast(Sequence[Block], cast(Stage, stage).blocks) for stage in model.stages]
    layers = [cast(ManhattanAttention, stage[0].attention) for stage in blocks]
    ours = [(layer.dim, len(stage), layer.heads) for layer, stage in zip(layers, blocks, strict=True)]
    for size in PUBLISHED:
        stages = SIZES[size]["stages"]
        if ours == [(stage.dim, stage.depth, stage.heads) for stage in stages]:
            return SIZES[size]["forms"], [rmt_log_rates(stage.heads, span=stage.span) for stage in stages]
    return (), []


def _check_state(state: Mapping[str, Tensor]) -> None:
    if not isinstance(state, Mapping):
        fail("official state", "a mapping from names to tensors", type(state).__name__)
    if "model" in state:
        expected = "what the official state_dict() gives; the released files hold it under 'model'"
        fail("official state", expected, "a mapping with the key 'model'")
    others = [f"{name}: {type(value).__name__}" for name, value in state.items() if not isinstance(value, Tensor)]
    _none("values of the official state", "other than tensors", others)


def _official(name: str) -> str:
    for here, there in _RULES:
        official, found = re.subn(f"^{here}", there, name)
        if found:
            return official
    return fail("name in RMT's state", "one that the official state has too", name)


def _constants(model: RMT) -> dict[str, Tensor]:
    """What the official buffers of each stage hold: angles (D,), each twice, and ``log gamma`` (H,); float64."""
    found = {}
    for number, stage in enumerate(model.stages):
        block = cast(Stage, stage).blocks[0]
        attention = cast(ManhattanAttention, cast(Block, block).attention)
        found[f"layers.{number}.Relpos.decay"] = attention.decay.log_rates
        if attention.theta_shift is not None:
            angles = attention.theta_shift.frequencies()
            found[f"layers.{number}.Relpos.angle"] = angles.repeat_interleave(2)
    return found


def _compare(name: str, expected: Tensor, got: Tensor) -> None:
    found = got.detach().to(device=expected.device, dtype=torch.float64)
    tolerance = 16 * torch.finfo(torch.float32).eps
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        fail(name, expected.tolist(), found.tolist())


def _none(what: str, problem: str, found: set[str] | list[str]) -> None:
    if found:
        listed = sorted(found)
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        fail(what, f"none {problem}", f"{len(listed)}: {', '.join(listed[:SHOWN])}{more}")
