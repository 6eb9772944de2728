"""Statements about one arm of a study by itself: the leak of trained EGA, and the values that training arrives at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from biases.claims.analyses import Analysis, Finding, among_sizes, analyses_of, measured, setting
from biases.claims.compared import AGREES, OPEN, OPPOSES, settled
from biases.claims.evidence import FAILS, INCONCLUSIVE, Evidence
from biases.claims.gate_training import ONE_SEED
from biases.claims.ledger import claim
from biases.claims.position_training import BOUNDARY, CONTROLS
from biases.claims.published import ALPHA, TAU, differences
from biases.positions.morlet import ADMISSIBILITY

P1, P3 = "2605.21842", "2606.01258"
GATE_SIGHT = "gate-sight"


def _place(interval: Sequence[float], low: float, high: float) -> str:
    """Agreement where the interval is wholly within [low, high], opposition where it is wholly outside."""
    if low <= interval[0] and interval[1] <= high:
        return AGREES
    return OPPOSES if interval[1] < low or interval[0] > high else OPEN


def _enough(analysis: Analysis, found: Mapping[str, Any]) -> bool:
    return found["n"] >= analysis["statistics"]["minimum_seeds"]


def _unmeasured(analysis: Analysis, what: str, found: Mapping[str, Any] | None) -> Finding:
    """The finding without an interval."""
    seeds = len(analysis["config"]["seeds"])
    if not found:
        return Finding(note=f"tells no {what}")
    return Finding(note=f"{what} of one seed of {seeds}, {found['mean']:+.4g}, no interval")


def _finished(analysis: Analysis, arm: str) -> str:
    """How many seeds of an arm did not finish, in words; empty where all did."""
    lost = {status: n for status, n in analysis["arms"][arm]["statuses"].items() if n and status != "ok"}
    return f", without {', '.join(f'{n} {status}' for status, n in lost.items())}" if lost else ""


def _finding(analysis: Analysis, found: Mapping[str, Any], evidence: Evidence) -> Finding:
    note = f"{found['n']} of {len(analysis['config']['seeds'])} seeds, no verdict"
    return Finding(evidence=evidence, decided=_enough(analysis, found), note=note)


def _few(analysis: Analysis, found: Mapping[str, Any]) -> str:
    least = analysis["statistics"]["minimum_seeds"]
    return "" if _enough(analysis, found) else f" Fewer seeds than the {least} that a verdict takes."


def _at_this_size(analysis: Analysis) -> str:
    where = differences(analysis)
    return f"size {analysis['size']}: {where}" if where else ""


@claim(
    id="ega-loss-without-the-future",
    paper=P1,
    location="section 3.2 with Table 1",
    kind="empirical",
    statement="The loss of trained EGA does not depend on later tokens, as it is strictly causal.",
)
def loss_without_the_future() -> Evidence:
    published = f"no truncated evaluation, {ONE_SEED}"
    return among_sizes(GATE_SIGHT, published, partial(_leak, published=published))


def _leak(file: str, analysis: Analysis, *, published: str) -> Finding:
    leak = analysis["arms"]["ega"]["leak"]
    if not leak or leak["interval"] is None:
        return _unmeasured(analysis, "leak", leak)
    low, high = leak["interval"]
    margin, unit = analysis["statistics"]["smallest_effect"], analysis["statistics"]["unit"]
    answer = _place(leak["interval"], -margin, margin) if _enough(analysis, leak) else OPEN
    # Strict causality is stated of every size: one size in which it is not so is enough.
    verdict, conditions = (FAILS, "") if answer == OPPOSES else settled(answer, _at_this_size(analysis), "")
    evidence = Evidence(
        verdict=verdict,
        text=f"Cut off after each token, the loss of trained EGA is {leak['mean']:+.4g} [{low:+.4g}, {high:+.4g}] "
        f"{unit} above that in whole windows, n = {leak['n']}{_finished(analysis, 'ega')}, for a smallest effect of "
        f"interest of {margin:g}.{_few(analysis, leak)} Study {GATE_SIGHT}, size {analysis['size']} "
        f"({setting(analysis)}). Published: {published}.",
        conditions=conditions,
        **measured(file, analysis, leak["interval"], leak["n"], unit),
        values={"margin": margin, "sampling interval": leak["sampling_interval"]},
    )
    return _finding(analysis, leak, evidence)


def _converges(
    file: str, analysis: Analysis, *, leaf: str, value: float, sets: Mapping[str, Sequence[float]], published: str
) -> Finding:
    """Whether a parameter of the gates of trained EGA ended about ``value``, by the mean over the heads of layer 0.

    About it is as near as the published values are.
    """
    found = {name: each for name, each in analysis["arms"]["ega"]["learned"].items() if name.rpartition(".")[2] == leaf}
    layers = sorted(found, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")])
    first = found[layers[0]] if layers else None
    if first is None or first["interval"] is None:
        return _unmeasured(analysis, leaf, first)
    low, high = first["interval"]
    margin = max(abs(each - value) for values in sets.values() for each in values)
    answer = _place(first["interval"], value - margin, value + margin) if _enough(analysis, first) else OPEN
    conditions = "layer 0, mean over heads, one start, EGA-1 where the published values are of its variants"
    unlike = _at_this_size(analysis)
    verdict, conditions = settled(answer, unlike, conditions)
    opposite = " Not as stated at this size." if answer == OPPOSES and unlike else ""
    spread = [min(each["minimum"] for each in found.values()), max(each["maximum"] for each in found.values())]
    evidence = Evidence(
        verdict=verdict,
        text=f"{leaf} of layer 0 ends at {first['mean']:.3f} [{low:.3f}, {high:.3f}], n = "
        f"{first['n']}{_finished(analysis, 'ega')}, mean over heads; about {value:g} is within {margin:.3f}, as the "
        f"published values are.{opposite}{_few(analysis, first)} Single heads of all layers and seeds span "
        f"{spread[0]:.3f} to {spread[1]:.3f}. Study {GATE_SIGHT}, size {analysis['size']} ({setting(analysis)}). "
        f"Published: {published}.",
        conditions=conditions,
        **measured(file, analysis, first["interval"], first["n"], f"value of {leaf}"),
        values={
            "by layer": {name: round(found[name]["mean"], 4) for name in layers},
            "heads": spread,
            "about": [value - margin, value + margin],
        },
    )
    return _finding(analysis, first, evidence)


@claim(
    id="ega-tau-converges",
    paper=P1,
    location="learned values",
    kind="empirical",
    statement="The threshold tau converges to about 0.35, independently of its initialisation.",
)
def tau_converges() -> Evidence:
    published = "layer 0, head 0 of EGA-C and EGA-M-F, both started at 0; none of EGA-1 itself"
    judge = partial(_converges, leaf="tau", value=0.35, sets=TAU, published=published)
    return among_sizes(GATE_SIGHT, published, judge)


@claim(
    id="ega-alpha-converges",
    paper=P1,
    location="appendix C",
    kind="empirical",
    statement="The steepness alpha converges to about 2.2.",
)
def alpha_converges() -> Evidence:
    published = "layer 0, head 0 of EGA-C, started at 2.0; none of EGA-1 itself"
    judge = partial(_converges, leaf="alpha", value=2.2, sets=ALPHA, published=published)
    return among_sizes(GATE_SIGHT, published, judge)


def product_at_the_boundary(*, arm: str) -> Evidence:
    """Evidence that the products omega sigma of an arm of ``mope-controls`` end at 5."""
    return among_sizes(CONTROLS, BOUNDARY, partial(_product, arm=arm))


def _product(file: str, analysis: Analysis, *, arm: str) -> Finding:
    """Whether the products omega sigma of an arm, as used, end at the boundary, by their mean over pairs."""
    found = analysis["arms"][arm]["learned"].get("position.product")
    if not found or found["interval"] is None:
        return _unmeasured(analysis, "product as used", found)
    low, high = found["interval"]
    margin = analysis["statistics"]["smallest_effect"]
    near = _place(found["interval"], ADMISSIBILITY - margin, ADMISSIBILITY + margin)
    answer = near if _enough(analysis, found) else OPEN
    unlike = _at_this_size(analysis)
    verdict, conditions = settled(answer, unlike, "")
    opposite = " Not as stated at this size." if answer == OPPOSES and unlike else ""
    evidence = Evidence(
        verdict=verdict,
        text=f"In arm {arm} the product as used, clamped, ends at {found['mean']:.3f} [{low:.3f}, {high:.3f}], mean "
        f"over pairs, n = {found['n']}{_finished(analysis, arm)}, single pairs from {found['minimum']:.3f} to "
        f"{found['maximum']:.3f}; the clamp keeps it from falling below 5, and at the boundary is within {margin:g} of "
        f"5.{opposite}{_few(analysis, found)} Study {CONTROLS}, size {analysis['size']} ({setting(analysis)}). "
        f"Published: {BOUNDARY}.",
        conditions=conditions,
        **measured(file, analysis, found["interval"], found["n"], "omega sigma"),
        values={"pairs": [found["minimum"], found["maximum"]], "margin": margin},
    )
    return _finding(analysis, found, evidence)


def _enter_product(id: str, statement: str, arm: str) -> None:
    claim(id=id, paper=P3, location="learned values, Table 5", kind="empirical", statement=statement)(
        partial(product_at_the_boundary, arm=arm)
    )


_enter_product(
    "mope-converges-from-elsewhere",
    "The products omega sigma converge to the boundary 5: from 10, without weight decay, they end there.",
    "product-10-no-decay",
)
_enter_product(
    "mope-converges-without-decay",
    "The products omega sigma converge to the boundary 5: without weight decay, too, they end there.",
    "no-decay",
)


@claim(
    id="mope-inversions",
    paper=P3,
    location="learned values",
    kind="empirical",
    statement="Training puts 43 of the 127 neighbouring pairs out of their order in omega.",
)
def inversions() -> Evidence:
    text = "It starts in order. The learned values of the published run are not released: Table 5 has 17 of 128 pairs."
    ours = {}
    for file, analysis in analyses_of("superadditivity"):
        omega = analysis["arms"]["ega+mope"]["learned"].get("position.omega")
        if omega:
            out = sum(b < a for a, b in pairwise(omega["elements"]))
            ours[file] = {"out of order": out, "of": len(omega["elements"]) - 1, "seeds": omega["n"]}
            text += (
                f" Of ours, in the mean over {omega['n']} seeds, which smooths, {out} of {len(omega['elements']) - 1} "
                f"are out of order (study superadditivity, size {analysis['size']}, {setting(analysis)})."
            )
    if not ours:
        text += " No results of study superadditivity are here; `biases ablate benchmarks/ablations/"
        text += "superadditivity-small.toml` makes them."
    return Evidence(verdict=INCONCLUSIVE, text=text, values=ours)
