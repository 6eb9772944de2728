"""Energy-gated attention: counts, costs and results that arXiv 2605.21842 and arXiv 2605.26355 state."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from biases import zoo
from biases.claims import cost, schedule
from biases.claims._judge import judged
from biases.claims.evidence import CONDITIONAL, INCONCLUSIVE, Evidence, counted, decided
from biases.claims.ledger import claim
from biases.gates.energy import gate_specification
from biases.gates.energy_morlet import MorletFilters

P1, P2 = "2605.21842", "2605.26355"
DIM, HEADS, TOKENS = 16, 2, 16
PUBLISHED_HEADS, PUBLISHED_DIM = 6 * 8, 256


def _parameters(attention: str, position: str = "learned", **options: Any) -> int:
    model = zoo.model("char-gpt", attention=attention, position=position, attention_options=options)
    return sum(parameter.numel() for parameter in model.parameters())


@claim(
    id="ega-baseline-parameters",
    paper=P1,
    location="section 4.1, Table 1",
    kind="count",
    statement="The baseline GPT has 4,816,640 parameters.",
)
def baseline_parameters() -> Evidence:
    found = {"parameters": _parameters("standard")}
    text = f"The model of section 4.1, head tied to the embedding of 65 characters, has {found['parameters']:,}."
    return counted(text, {"parameters": 4_816_640}, found)


@claim(
    id="ega-parameters",
    paper=P1,
    location="Table 1",
    kind="count",
    statement="EGA-1 adds 12,480 parameters.",
)
def parameters() -> Evidence:
    base = _parameters("standard")
    found = {"added": _parameters("ega", mixing=True) - base, "added, no scale weight": _parameters("ega") - base}
    return counted(
        f"{found['added']:,} with w, b, tau, alpha and a scale weight for each of 48 heads; the scale weight of a "
        f"single scale has no effect. Without it, as in the released code of the later papers, "
        f"{found['added, no scale weight']:,}.",
        {"added": 12_480},
        found,
        conditions="counting a scale weight a head that does nothing",
    )


@claim(
    id="ega-parameters-per-head",
    paper=P1,
    location="section 3.2",
    kind="count",
    statement='EGA adds "d + 2 parameters per head".',
)
def parameters_per_head() -> Evidence:
    base, heads = _parameters("standard"), PUBLISHED_HEADS
    found = {"per head": (_parameters("ega") - base) // heads}
    published = 12_480 // heads
    return counted(
        f"There are {found['per head']} a head (w, b, tau, alpha) at d = {PUBLISHED_DIM}. The paper's own total of "
        f"12,480 over {heads} heads is {published} = d + {published - PUBLISHED_DIM}.",
        {"per head": PUBLISHED_DIM + 2},
        found,
    )


@claim(
    id="ega-variants-parameters",
    paper=P1,
    location="Table 1",
    kind="count",
    statement="EGA-2 adds 24,960 parameters, EGA-4 49,920, EGA-C 1,377,216, EGA-M-F 960; no model is above 6.2 M.",
)
def variants_parameters() -> Evidence:
    stated = {"ega-2": 24_960, "ega-4": 49_920, "ega-conv": 1_377_216, "ega-morlet": 960}
    base = _parameters("standard")
    found = {name: _parameters(name) - base for name in stated}
    found["above 6.2 M"] = sum(base + added > 6_200_000 for added in found.values())
    text = f"All four counts are found; the largest model, EGA-C, has {base + found['ega-conv']:,}."
    return counted(text, {**stated, "above 6.2 M": 0}, found)


@claim(
    id="ega-no-measurable-cost",
    paper=P1,
    location="stated without a table",
    kind="empirical",
    statement='EGA has "no measurable computational cost".',
)
def no_measurable_cost() -> Evidence:
    measured = cost.load()
    ratio, rounds = measured["ratio"], measured["rounds"]
    low, high = ratio["low"], ratio["high"]
    text = (
        f"Forward and backward, the layer `ega` takes {ratio['median']:.3f} of the time of the layer `standard` "
        f"(interval of the median [{low:.3f}, {high:.3f}], {rounds} interleaved rounds), both on the backend "
        f"{measured['backend']}, {measured['setting']}, on {measured['device']}. The paper gives no measurement."
    )
    verdict, conditions = INCONCLUSIVE, ""
    if high <= 1 + cost.NOTICEABLE:
        less = f"by less than {cost.NOTICEABLE:.0%}, " if low > 1 else ""
        verdict, conditions = CONDITIONAL, f"{less}this package's layers and backend, {measured['setting']}"
    elif low > 1:
        text += " Here the cost can be measured; the statement names no setting that this could be held against."
    return Evidence(
        verdict=verdict,
        text=text,
        conditions=conditions,
        interval=(low, high),
        seeds=rounds,
        repeated="rounds",
        size="one layer",
        unit="time of ega over that of standard",
        values={"extra operations": measured["extra_operations"], "median": ratio["median"]},
        source=f"biases/claims/data/{cost.FILE.name}, by `python -m biases.claims.cost` at {measured['revision']}",
    )


@claim(
    id="ega-morlet-admissible",
    paper=P1,
    location="Table 3 (EGA-M-F)",
    kind="theorem",
    statement="With omega sigma >= 5 the Morlet filters of the gate are admissible, that is band-pass with zero mean.",
)
def morlet_admissible() -> Evidence:
    filters = MorletFilters(HEADS).double()
    impulse = torch.zeros(1, 64, DIM, dtype=torch.float64)
    impulse[0, 31] = 1.0
    with torch.no_grad():
        taps = torch.complex(*filters.parts(impulse))[0, 0, :, 31:62]
    share = (taps.sum(-1).abs() / taps.abs().sum(-1)).tolist()
    # A Morlet wavelet that is not cut off has exp(-12.5), 3.7e-6, of its peak at frequency 0.
    by_length = {str(length): round(each, 4) for length, each in zip(filters.lengths, share, strict=True)}
    return judged(
        text=f"The response at frequency 0 is {min(share):.2f} to {max(share):.2f} of the largest possible one for the "
        "four lengths: the envelope is wider than the filter, which is cut off after half a period, so all are "
        "low-pass.",
        error=max(share),
        tolerance=1e-3,
        counterexample={"share at frequency 0, by length": by_length},
    )


@claim(
    id="ega-fixed-bases-suboptimal",
    paper=P1,
    location="section 4.5, Table 3",
    kind="method",
    statement="Wavelet bases gain nothing over the baseline, so a learned projection is the better choice of energy.",
)
def fixed_bases_suboptimal() -> Evidence:
    x = F.layer_norm(torch.randn(2, TOKENS, DIM, dtype=torch.float64), (DIM,))
    differences = {}
    for name in ("ega-morlet", "ega-db2", "ega-db4"):
        layer: Any = zoo.layer(name, DIM, HEADS).double()
        with torch.no_grad():
            gated = layer(x)
            layer.key_gate = None
            differences[name] = (gated - layer(x)).abs().max().item()
    constant = max(differences.values()) < 1e-9
    text = (
        "These gates filter the channel mean, which a LayerNorm makes 0 at initialisation: there the layers differ "
        f"from attention without a gate by {max(differences.values()):.2g}. They start without a signal, so that their "
        "result says little about bases. (The Daubechies gates are our reconstruction; the paper prints none.)"
    )
    if constant:
        return Evidence(verdict=INCONCLUSIVE, text=text, values=differences)
    return Evidence(verdict=CONDITIONAL, text=text, conditions="as published", values=differences)


@claim(
    id="ega-36-percent-of-tokens",
    paper=P1,
    location="learned values of tau",
    kind="count",
    statement="At tau = 0.35 about 36 % of the tokens pass the gate.",
)
def share_of_tokens() -> Evidence:
    tau = torch.full((1, 1), 0.35, dtype=torch.float64)
    alpha = torch.full((1,), 2.2, dtype=torch.float64)
    tail = 0.5 * math.erfc(0.35 / math.sqrt(2))

    def share(energy: Tensor) -> float:
        return (gate_specification(energy[None, None], tau[0], alpha, "window") > 0.5).double().mean().item()

    quantiles = torch.erfinv(2 * (torch.arange(256, dtype=torch.float64) + 0.5) / 256 - 1)
    one_in_ten = torch.zeros(250, dtype=torch.float64)
    one_in_ten[::10] = 1.0
    shares = {"normal energies": share(quantiles), "one token in ten stands out": share(one_in_ten)}
    shares["one in ten sinks"] = share(-one_in_ten)
    text = (
        f"1 - Phi(0.35) = {tail:.4f}, and of 256 normal quantiles {100 * shares['normal energies']:.1f} % pass (gate "
        f"above 1/2). Where one token in ten stands out {100 * shares['one token in ten stands out']:.0f} % pass, "
        f"where one in ten sinks {100 * shares['one in ten sinks']:.0f} %. The number is a Gaussian tail, not a "
        "measurement."
    )
    as_stated = abs(shares["normal energies"] - 0.36) < 0.01 and abs(tail - 0.363) < 5e-4
    return decided(text, as_stated, shares, conditions="the energies of a window are normally distributed")


@claim(
    id="ega-alpha-travel",
    paper=P1,
    location="appendix C",
    kind="theorem",
    statement="The steepness alpha went from 5.0 to about 2.2 in training.",
)
def alpha_travel() -> Evidence:
    end, stated = schedule.lowest(5.0), 2.2
    return judged(
        text=f"With the published schedule no gradients whatever bring alpha from 5.0 below {end:.2f}: the updates "
        f"move a parameter by at most {schedule.farthest():.2f} in all and weight decay leaves "
        f"{100 * schedule.decay_factor():.1f} % of it. In the released code alpha starts at 2.0.",
        error=max(0.0, end - stated),
        tolerance=0.05,
        counterexample={"start": 5.0, "lowest end": round(end, 3), "stated": stated},
    )
