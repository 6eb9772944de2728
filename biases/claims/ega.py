"""EGA and lag attention: definitions and properties that arXiv 2605.21842 and arXiv 2605.26355 state."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biases import zoo
from biases.attention import attend, pair_weights
from biases.claims._judge import judged
from biases.claims.evidence import Evidence, decided
from biases.claims.ledger import claim
from biases.gates.energy import gate_specification
from biases.gates.energy_conv import ConvolutionEnergy

P1, P2 = "2605.21842", "2605.26355"
DIM, HEADS, TOKENS = 16, 2, 16
ROUNDING = 1e-12


def _layer(name: str) -> Any:
    """A layer of the zoo in float64, its gates' parameters away from their start."""
    layer: Any = zoo.layer(name, DIM, HEADS).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def _tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _heads(projection: nn.Module, x: Tensor) -> Tensor:
    return projection(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _change_before_the_last(run: Any, x: Tensor) -> tuple[float, int]:
    """Largest change of an earlier output when the last token changes by 1, and at which token."""
    other = x.clone()
    other[:, -1] += 1.0
    with torch.no_grad():
        change = (run(other) - run(x)).abs().amax((0, 2))[:-1]
    return change.max().item(), int(change.argmax())


@claim(
    id="ega-causal",
    paper=P1,
    location="section 3.2; also 2605.26355 section 2.2",
    kind="invariance",
    statement='EGA is "strictly causal", as the energy of token j is computed from token j alone.',
)
def causal() -> Evidence:
    x = _tokens(1, TOKENS, DIM)
    change, where = _change_before_the_last(_layer("ega"), x)
    without, _ = _change_before_the_last(_layer("ega-prefix"), x)
    return judged(
        text=f"Changing token {TOKENS - 1} of {TOKENS} changes the output at token {where} by {change:.3g}: mean and "
        "deviation of the energies are taken over the whole window, later tokens included. With statistics over the "
        f"prefix of each key (`ega-prefix`) the change is {without:.3g}.",
        error=change,
        tolerance=ROUNDING,
        counterexample={"tokens": TOKENS, "changed token": TOKENS - 1, "output that changed": where, "by": change},
        source='zoo.layer("ega", 16, 2), float64',
        values={"change with prefix statistics": without},
    )


@claim(
    id="ega-rows-sum-to-one",
    paper=P1,
    location="section 3.2, Eq. 4",
    kind="identity",
    statement="The gated weights are renormalised: every row is non-negative, sums to 1 and gives later keys nothing.",
)
def rows_sum_to_one() -> Evidence:
    layer, x = _layer("ega"), _tokens(2, TOKENS, DIM)
    with torch.no_grad():
        gate = layer.key_gate(x)
        weights = pair_weights(_heads(layer.query, x), _heads(layer.key, x), key_gate=gate, causal=True)
    error = max((weights.sum(-1) - 1).abs().max().item(), weights.triu(1).abs().max().item(), -weights.min().item())
    return judged(
        text=f"Row sums differ from 1 by at most {error:.2g} over {2 * HEADS * TOKENS} rows. The epsilon of the "
        "denominator is taken in its limit 0.",
        error=max(error, 0.0),
        tolerance=ROUNDING,
    )


@claim(
    id="ega-gate-after-softmax",
    paper=P1,
    location="section 3.2, Eq. 4; Algorithm 1",
    kind="identity",
    statement="EGA multiplies the softmax weights by a gate of the key, z-normalised, and renormalises each row.",
)
def gate_after_softmax() -> Evidence:
    layer, x = _layer("ega"), _tokens(2, TOKENS, DIM)
    with torch.no_grad():
        q, k, v = (_heads(p, x) for p in (layer.query, layer.key, layer.value))
        energy = layer.key_gate.energy(x).squeeze(2)
        g = gate_specification(energy, layer.key_gate.tau[:, 0], layer.key_gate.alpha[:, 0], "window")
        hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(hidden, -math.inf)
        gated = scores.softmax(-1) * g[:, :, None, :]
        equation = gated / gated.sum(-1, keepdim=True) @ v
        as_bias = (scores + g.log()[:, :, None, :]).softmax(-1) @ v
        ours = attend(q, k, v, key_gate=layer.key_gate(x), causal=True)
    error = max((ours - equation).abs().max().item(), (as_bias - equation).abs().max().item())
    return judged(
        text="Eq. 4 written out, the zoo's layer and softmax(S + log g), an additive bias of the key, agree to "
        f"{error:.2g}: EGA is attention with a learned bias per key, which stock kernels can run.",
        error=error,
        tolerance=ROUNDING,
    )


@claim(
    id="ega-gate-multiplies-logits",
    paper=P2,
    location="Eq. 10 beside Eq. 5",
    kind="identity",
    statement="Eq. 10, where the gate multiplies the logit, and Eq. 5, where it multiplies the weight, define the same "
    "weights: both are called EGA.",
)
def gate_multiplies_logits() -> Evidence:
    layer, x = _layer("ega"), _tokens(1, TOKENS, DIM)
    with torch.no_grad():
        q, k = _heads(layer.query, x), _heads(layer.key, x)
        gate = layer.key_gate(x)
        hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        logits = (scores * gate.log.exp()[:, :, None, :]).masked_fill(hidden, -math.inf)
        difference = (logits.softmax(-1) - pair_weights(q, k, key_gate=gate, causal=True)).abs()
    head, i, j = (int(n) for n in torch.unravel_index(difference[0].argmax(), difference[0].shape))
    error = difference.max().item()
    return judged(
        text=f"On the same inputs the two equations give weights that differ by up to {error:.2g}. The released code "
        "follows Eq. 5, and so does `ega`.",
        error=error,
        tolerance=ROUNDING,
        counterexample={"head": head, "query": i, "key": j, "difference of the weights": error},
    )


@claim(
    id="ega-gate-range",
    paper=P1,
    location="section 3.2",
    kind="theorem",
    statement="The gate lies in the open interval (0, 1).",
)
def gate_range() -> Evidence:
    layer: Any = zoo.layer("ega", DIM, HEADS).double()
    x = _tokens(1, 256, DIM)
    x[0, 0] = 40 * layer.key_gate.energy.projection.weight[0].detach() / 0.02
    with torch.no_grad():
        g = layer.key_gate(x).log.exp()
        single = layer.float().key_gate(x.float()).log.exp()
    inside = bool((g > 0).all() and (g < 1).all())
    values = {"smallest": g.min().item(), "largest": g.max().item(), "largest in float32": single.max().item()}
    text = (
        f"In float64 the gates of a window of 256 tokens with one outlier span {g.min():.3g} to 1 - "
        f"{1 - g.max().item():.2g}; in float32 the largest is {single.max().item():.9g}, as z can reach sqrt(255) = 16 "
        "and alpha starts at 2."
    )
    conditions = "as real numbers; float32 rounds a gate with alpha (z - tau) above 17 to 1"
    return decided(text, inside, values, conditions=conditions)


@claim(
    id="ega-bias-is-learned",
    paper=P1,
    location="section 3.2; Algorithm 1 omits it",
    kind="identity",
    statement="The bias b of the energy e = w . x + b has an effect.",
)
def bias_is_learned() -> Evidence:
    layer, x = _layer("ega"), _tokens(2, TOKENS, DIM)
    layer(x).square().sum().backward()
    projection = layer.key_gate.energy.projection
    weight, bias = (p.grad.abs().max().item() for p in (projection.weight, projection.bias))
    text = (
        f"The gradient of b is {bias:.2g} where that of w is {weight:.2g}: the normalisation subtracts the mean "
        "energy, and b with it. Its 48 parameters have no effect and receive weight decay only."
    )
    return decided(text, bias > 1e-9 * weight, {"gradient of b": bias, "gradient of w": weight})


@claim(
    id="ega-reflect-padding-causal",
    paper=P1,
    location="section 3.2",
    kind="invariance",
    statement="A left pad of length 2 L in reflect mode makes the filters of the energy causal.",
)
def reflect_padding_causal() -> Evidence:
    x, filters = _tokens(1, TOKENS, DIM), ConvolutionEnergy(DIM, HEADS).double()
    length, at = 7, 3
    convolution = filters.convolutions[filters.lengths.index(length)]

    def filtered(mode: str, pad: int) -> float:
        """Largest change of an output before token ``at`` when it changes by 1; outputs are aligned with their tokens.

        What is padded beyond ``length - 1`` is seen by no output.
        """
        other = x.clone()
        other[:, at] += 1.0
        padded = (F.pad(y.mT, (pad, 0), mode=mode) for y in (x, other))
        with torch.no_grad():
            before, after = (convolution(y)[..., -TOKENS:][..., :at] for y in padded)
        return (after - before).abs().max().item()

    reflected, zeros = filtered("reflect", 2 * length), filtered("constant", length - 1)
    return judged(
        text=f"Padded by {2 * length} in reflect mode, changing token {at} changes an output before it by "
        f"{reflected:.2g} (length {length}): "
        f"reflected samples are later samples. Padded with zeros, as released, the change is {zeros:.2g}.",
        error=reflected,
        tolerance=ROUNDING,
        counterexample={"changed token": at, "filter length": length, "change before it": reflected},
        values={"change with zeros": zeros},
    )


@claim(
    id="ega-conv-lag-causal",
    paper=P2,
    location="beside appendix B, Algorithm 1",
    kind="control",
    statement="Is lag attention, masked after the mixing of the lags and compared with causal models, causal itself?",
)
def conv_lag_causal() -> Evidence:
    change, where = _change_before_the_last(_layer("conv-lag-4"), _tokens(1, TOKENS, DIM))
    return judged(
        text=f"Changing token {TOKENS - 1} changes the output at token {where} by {change:.2g}: a negative lag puts "
        "the logit of a later key into that of an earlier one, which the mask leaves.",
        error=change,
        tolerance=ROUNDING,
        counterexample={"tokens": TOKENS, "changed token": TOKENS - 1, "output that changed": where, "by": change},
    )


@claim(
    id="ega-conv-lag-mixes-lags",
    paper=P2,
    location="appendix B, Algorithm 1 (CONV-L4, CONV-L8)",
    kind="control",
    statement="Does the released shift mix logits over lags -L..L, in the interior, more than L keys from the borders?",
)
def conv_lag_mixes() -> Evidence:
    length, lags = 24, 4
    layer: Any = zoo.layer("conv-lag-4[shift=released]", DIM, HEADS).double()
    x = _tokens(1, length, DIM)
    with torch.no_grad():
        layer.key_mixing.logits.normal_(std=2.0)
        k = _heads(layer.key, x)
        inside = (layer.key_mixing(k, None) - k)[:, :, lags:-lags].abs().max().item()
    layer(x).square().sum().backward()
    gradient = layer.key_mixing.logits.grad
    learned = gradient is not None and gradient.abs().max().item() > 0
    text = (
        f"With random lag weights the released shift changes no logit of a key {lags} or more tokens from the borders "
        f"(by {inside:.2g}), and the weights get {'a' if learned else 'no'} gradient: the shifted block is written "
        "back to where it came from. Both models are the baseline; +0.007 and +0.005 nats are the noise of one run."
    )
    return decided(
        text,
        inside > ROUNDING or learned,
        {"change inside": inside},
        counterexample={"lags": lags, "change inside": inside, "gradient": None},
    )
