"""Bad input raises ``ValueError`` that states what was expected and what was got."""

from __future__ import annotations

import math
import re

import pytest
import torch

from biases import (
    ALiBi,
    CharGPT,
    Decay,
    ExponentialDecay,
    KeyBias,
    KeyGate,
    LowRankBias,
    ManhattanDecay,
    SelfAttention,
    Traits,
    attend,
    formulation,
    registry,
    set_backend,
    zoo,
)
from biases.decays import (
    alibi_slopes,
    retention_chunkwise,
    retention_parallel,
    retention_recurrent,
    retnet_log_rates,
    rmt_log_rates,
)
from biases.gates import EnergyGate, LinearEnergy, OutputGate, ValueGate
from biases.layers import KeyLag
from biases.positions import LearnedPosition, MorletPosition, Rotary, SinusoidalPosition, ThetaShift

B, H, L, D = 2, 4, 5, 8
Q = torch.zeros(B, H, L, D)
SHORT = Q[:, :, :3]
RATES = torch.full((H,), 0.5)
X = torch.zeros(2, 3, 8)
TOKENS = torch.zeros(1, 5, dtype=torch.long)


def call(q=Q, k=Q, v=Q, **options):
    return lambda: attend(q, k, v, **options)


def gpt(**options):
    return lambda: CharGPT(**{"layers": 1, "heads": 2, "dim": 8, "context": 4, **options})


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape)


ATTEND = {
    "q of rank 3": call(q=Q[0]),
    "k of rank 3": call(k=Q[0]),
    "v of rank 3": call(v=Q[0]),
    "q of integers": call(q=Q.long()),
    "q that is a list": call(q=[[0.0]]),
    "k of another width": call(k=Q[..., :4]),
    "k of another batch": call(k=Q[:1], v=Q[:1]),
    "heads of k not dividing those of q": call(k=Q[:, :3], v=Q[:, :3]),
    "v of another length": call(v=Q[:, :, :4]),
    "k of another dtype": call(k=Q.double()),
    "v of another dtype": call(v=Q.half()),
    "k on another device": call(k=Q.to("meta")),
    "v on another device": call(v=Q.to("meta")),
    "mask of numbers": call(mask=zeros(L, L)),
    "mask that is a list": call(mask=[[True]]),
    "mask of another length": call(mask=zeros(L, 4).bool()),
    "mask of rank 5": call(mask=zeros(1, B, H, L, L).bool()),
    "mask for other heads": call(mask=zeros(1, 3, L, L).bool()),
    "causal, L != S, no alignment": call(q=SHORT, causal=True),
    "ALiBi, L != S, no alignment": call(q=SHORT, bias=ALiBi(H)),
    "decay, L != S, no alignment": call(q=SHORT, decay=ExponentialDecay.from_rates(RATES)),
    "unknown alignment": call(alignment="left"),
    "unknown weights": call(weights="sofmax"),
    "unknown backend": call(backend="flash"),
    "scale 0": call(scale=0.0),
    "negative scale": call(scale=-1.0),
    "scale NaN": call(scale=math.nan),
    "infinite scale": call(scale=math.inf),
    "dropout 1": call(dropout=1.0),
    "negative dropout": call(dropout=-0.1),
    "dropout NaN": call(dropout=math.nan),
    "bias that is a tensor": call(bias=zeros(L, L)),
    "bias that is a list of tensors": call(bias=[zeros(L, L)]),
    "bias that is a number": call(bias=3),
    "decay that is a tensor": call(decay=zeros(L, L)),
    "decay that is a bias": call(decay=ALiBi(H)),
    "ALiBi for other heads": call(bias=ALiBi(3), causal=True),
    "decay before linear weights": call(weights="linear", decay=ExponentialDecay.from_rates(RATES), causal=True),
    "key gate that is a tensor": call(key_gate=zeros(B, H, L)),
    "renormalised gate with linear weights": call(weights="linear", key_gate=KeyGate(zeros(1, 1, L))),
    "formulation with unknown weights": lambda: formulation(Q, Q, Q, weights="sofmax"),
}

TERMS = {
    "KeyBias of rank 1": lambda: KeyBias(zeros(L)),
    "KeyBias of another length": call(bias=KeyBias(zeros(B, H, 4))),
    "KeyBias of another batch": call(bias=KeyBias(zeros(3, H, L))),
    "KeyBias for other heads": call(bias=KeyBias(zeros(B, 3, L))),
    "KeyGate of rank 1": lambda: KeyGate(zeros(L)),
    "KeyGate of another length": call(key_gate=KeyGate(zeros(B, H, 4))),
    "KeyGate of another batch": call(key_gate=KeyGate(zeros(3, H, L))),
    "KeyGate for other heads": call(key_gate=KeyGate(zeros(B, 3, L))),
    "KeyGate with negative eps": lambda: KeyGate(zeros(1, 1, L), eps=-1.0),
    "KeyGate with eps NaN": lambda: KeyGate(zeros(1, 1, L), eps=math.nan),
    "KeyGate with eps, not renormalised": lambda: KeyGate(zeros(1, 1, L), renormalise=False, eps=0.1),
    "LowRankBias of two ranks": lambda: LowRankBias(zeros(H, L, 2), zeros(H, L, 3)),
    "LowRankBias of another length": call(bias=LowRankBias(zeros(H, 4, 2), zeros(H, L, 2))),
    "LowRankBias at an offset": call(
        q=SHORT, bias=LowRankBias(zeros(H, 3, 2), zeros(H, L, 2)), alignment="lower-right"
    ),
    "no slopes": lambda: alibi_slopes(0),
    "half a head": lambda: alibi_slopes(2.5),
    "heads that are a truth value": lambda: alibi_slopes(True),
    "unknown rule of slopes": lambda: alibi_slopes(4, "pres"),
    "balanced slopes of odd heads": lambda: alibi_slopes(3, balanced=True),
    "negative slope": lambda: ALiBi(torch.tensor([0.5, -0.5])),
    "slope NaN": lambda: ALiBi(torch.tensor([math.nan])),
    "infinite slope": lambda: ALiBi(torch.tensor([math.inf])),
    "slopes of rank 2": lambda: ALiBi(zeros(2, 2)),
    "slopes of integers": lambda: ALiBi(torch.tensor([1, 2])),
    "slopes in a list": lambda: ALiBi([0.5, 0.25]),
    "growing decay": lambda: ExponentialDecay(torch.tensor([0.1])),
    "log rate NaN": lambda: ExponentialDecay(torch.tensor([math.nan])),
    "log rate of minus infinity": lambda: ExponentialDecay(torch.tensor([-math.inf])),
    "log rates of rank 2": lambda: ExponentialDecay(zeros(2, 2)),
    "unknown placement": lambda: ExponentialDecay(zeros(2), placement="logit"),
    "rate 0": lambda: ExponentialDecay.from_rates(torch.tensor([0.0])),
    "rate above 1": lambda: ExponentialDecay.from_rates(torch.tensor([1.5])),
    "rate NaN": lambda: ExponentialDecay.from_rates(torch.tensor([math.nan])),
    "RMT rates of no heads": lambda: rmt_log_rates(0),
    "RMT rates from 0": lambda: rmt_log_rates(4, 0.0),
    "RMT rates from infinity": lambda: rmt_log_rates(4, math.inf),
    "RMT rates of negative span": lambda: rmt_log_rates(4, 2.0, -1.0),
    "RMT rates of infinite span": lambda: rmt_log_rates(4, 2.0, math.inf),
    "RetNet rates of no heads": lambda: retnet_log_rates(0),
    "map without rows": lambda: ManhattanDecay(0, 3, 2),
    "map of fractional height": lambda: ManhattanDecay(2.0, 3, 2),
    "map without heads": lambda: ManhattanDecay(2, 3, 0),
    "growing Manhattan decay": lambda: ManhattanDecay(2, 3, torch.tensor([0.1])),
    "Manhattan log rate of minus infinity": lambda: ManhattanDecay(2, 3, torch.tensor([-math.inf])),
    "unknown Manhattan placement": lambda: ManhattanDecay(2, 3, 4, placement="after"),
    "map of other tokens": call(decay=ManhattanDecay(2, 3, H)),
    "map for other heads": call(decay=ManhattanDecay(1, L, 3)),
    "map of fewer queries than keys": call(q=SHORT, decay=ManhattanDecay(1, L, H), alignment="lower-right"),
}

RETENTION = {
    "k of another length": lambda: retention_parallel(Q, SHORT, Q, RATES),
    "v of another length": lambda: retention_parallel(Q, Q, SHORT, RATES),
    "v of another dtype": lambda: retention_chunkwise(Q, Q, Q.double(), RATES),
    "no tokens": lambda: retention_recurrent(Q[:, :, :0], Q[:, :, :0], Q[:, :, :0], RATES),
    "rates for other heads": lambda: retention_recurrent(Q, Q, Q, RATES[:3]),
    "rate above 1": lambda: retention_recurrent(Q, Q, Q, 3 * RATES),
    "rate NaN": lambda: retention_recurrent(Q, Q, Q, math.nan * RATES),
    "a rate that is a number": lambda: retention_parallel(Q, Q, Q, 0.5),
    "chunk 0": lambda: retention_chunkwise(Q, Q, Q, RATES, chunk=0),
    "chunk of 2.5": lambda: retention_chunkwise(Q, Q, Q, RATES, chunk=2.5),
    "scale NaN": lambda: retention_parallel(Q, Q, Q, RATES, scale=math.nan),
}

POSITIONS = {
    "rotary of odd width": lambda: Rotary(5),
    "rotary of base 0": lambda: Rotary(4, base=0.0),
    "rotary of infinite base": lambda: Rotary(4, base=math.inf),
    "unknown pairing": lambda: Rotary(4, pairing="pairs"),
    "rotary on another width": lambda: Rotary(4)(zeros(1, 1, 3, 6)),
    "rotary on rank 3": lambda: Rotary(4)(zeros(1, 3, 4)),
    "theta shift of odd width": lambda: ThetaShift(5),
    "MoPE of odd width": lambda: MorletPosition(7),
    "MoPE on another width": lambda: MorletPosition(8)(zeros(1, 3, 6)),
    "MoPE of unknown constraint": lambda: MorletPosition(8, constraint="clamp"),
    "MoPE of unknown initialisation": lambda: MorletPosition(8, initialisation="mine"),
    "MoPE of product 0": lambda: MorletPosition(8, product=0.0),
    "MoPE of infinite product": lambda: MorletPosition(8, product=float("inf")),
    "MoPE of context 0": lambda: MorletPosition(8, initialisation="free", context=0),
    "sinusoidal of odd width": lambda: SinusoidalPosition(7),
    "sinusoidal on another width": lambda: SinusoidalPosition(8)(zeros(1, 3, 6)),
    "sinusoidal of negative amplitude": lambda: SinusoidalPosition(8, amplitude=-1.0),
    "sinusoidal of base 0": lambda: SinusoidalPosition(8, base=0.0),
    "learned on another width": lambda: LearnedPosition(8, 4)(zeros(1, 3, 6)),
    "learned beyond the context": lambda: LearnedPosition(8, 4)(zeros(1, 5, 8)),
    "learned without a context": lambda: LearnedPosition(8, 0),
}

LAYERS = {
    "heads not dividing the width": lambda: SelfAttention(10, 4),
    "no heads": lambda: SelfAttention(8, 0),
    "no width": lambda: SelfAttention(0, 1),
    "dropout 1": lambda: SelfAttention(8, 2, dropout=1.0),
    "unknown backend": lambda: SelfAttention(8, 2, backend="flash"),
    "unknown weights": lambda: SelfAttention(8, 2, weights="sofmax"),
    "bias that is a tensor": lambda: SelfAttention(8, 2, bias=zeros(3, 3)),
    "decay that is a tensor": lambda: SelfAttention(8, 2, decay=zeros(3, 3)),
    "key gate that is no module": lambda: SelfAttention(8, 2, key_gate=KeyGate(zeros(1, 1, 3))),
    "output gate that is a function": lambda: SelfAttention(8, 2, output_gate=torch.sigmoid),
    "x of rank 2": lambda: SelfAttention(8, 2)(X[0]),
    "x of another width": lambda: SelfAttention(8, 2)(zeros(2, 3, 9)),
    "x of integers": lambda: SelfAttention(8, 2)(X.long()),
    "keep of numbers": lambda: SelfAttention(8, 2)(X, zeros(2, 3)),
    "keep of another length": lambda: SelfAttention(8, 2)(X, zeros(2, 4).bool()),
    "bias for other heads": lambda: SelfAttention(8, 2, bias=ALiBi(4))(X),
    "rotary of another width": lambda: SelfAttention(8, 2, rotary=Rotary(8))(X),
    "set_backend without attention": lambda: set_backend(torch.nn.Linear(2, 2), "auto"),
    "set_backend to an unknown one": lambda: set_backend(SelfAttention(8, 2), "flash"),
    "output gate, heads not dividing": lambda: OutputGate(10, 4),
    "output gate of unknown granularity": lambda: OutputGate(8, 4, granularity="rowwise"),
    "output gate of unknown activation": lambda: OutputGate(8, 4, activation="tanh"),
    "output gate on other heads": lambda: OutputGate(8, 4)(zeros(1, 2, 3, 4), zeros(1, 3, 8)),
    "output gate from another width": lambda: OutputGate(8, 4)(zeros(1, 4, 3, 2), zeros(1, 3, 6)),
    "output gate from another length": lambda: OutputGate(8, 4)(zeros(1, 4, 3, 2), zeros(1, 1, 8)),
    "value gate from another width": lambda: ValueGate(8)(zeros(1, 3, 8), zeros(1, 3, 6)),
    "value gate without a width": lambda: ValueGate(0),
    "energy gate of unknown statistics": lambda: EnergyGate(LinearEnergy(8, 2), 2, 1, statistics="batch"),
    "energy gate of two scales unmixed": lambda: EnergyGate(LinearEnergy(8, 2, 2), 2, 2, mixing=False),
    "energy gate on rank 2": lambda: EnergyGate(LinearEnergy(8, 2), 2, 1)(X[0]),
    "no lags": lambda: KeyLag(2, 0),
    "unknown shift": lambda: KeyLag(2, 2, shift="values"),
}

NAMES = {
    "unknown layer": lambda: zoo.layer("standart", 8, 2),
    "unknown option": lambda: zoo.layer("ega", 8, 2, statistic="prefix"),
    "unknown option in the name": lambda: zoo.get("ega[size=1]"),
    "unknown value in the name": lambda: zoo.layer("ega[statistics=prefx]", 8, 2),
    "unclosed bracket": lambda: zoo.get("ega[statistics=prefix"),
    "option without a value": lambda: zoo.get("ega[statistics]"),
    "option without a name": lambda: zoo.get("ega[=prefix]"),
    "layer that is a position": lambda: zoo.layer("learned", 8, 2),
    "position that is a layer": lambda: zoo.position("ega", 8, context=4, heads=2),
    "model that is a layer": lambda: zoo.model("ega"),
    "unknown option of a model": lambda: zoo.model("char-gpt", depth=3),
    "unknown option of a position": lambda: zoo.position("mope", 8, context=4, heads=2, width=3),
    "factory of an unknown name": lambda: zoo.factory("nope"),
    "factory of a position": lambda: zoo.factory("mope")(8, 2),
    "layer, heads not dividing": lambda: zoo.layer("ega", 10, 4),
    "rotary, heads not dividing": lambda: zoo.position("rotary", 10, context=4, heads=4),
    "rotary of odd head width": lambda: zoo.position("rotary", 12, context=4, heads=4),
    "MoPE of odd width": lambda: zoo.position("mope", 9, context=4, heads=3),
    "sinusoidal of odd width": lambda: zoo.position("sinusoidal", 9, context=4, heads=3),
    "retention of odd head width": lambda: zoo.layer("retention", 6, 2),
    "name taken": lambda: registry.register("ega", family="gates", summary="", traits=Traits(), parameters="0"),
    "unknown kind": lambda: registry.register(
        "new", kind="gate", family="gates", summary="", traits=Traits(), parameters="0"
    ),
}

MODELS = {
    "heads not dividing": gpt(dim=9),
    "no vocabulary": gpt(vocab=0),
    "no layers": gpt(layers=0),
    "no context": gpt(context=0),
    "unknown attention": gpt(attention="standart"),
    "unknown position": gpt(position="learnt"),
    "unknown option of the attention": gpt(attention_options={"size": 1}),
    "unknown option of the position": gpt(position_options={"size": 1}),
    "attention that is a position": gpt(attention="learned"),
    "dropout 1": gpt(dropout=1.0),
    "dropout above 1": gpt(dropout=1.5),
    "unknown backend": gpt(backend="flash"),
    "rotary of odd head width": gpt(dim=6, position="rotary"),
    "MoPE of odd width": gpt(dim=9, heads=3, position="mope"),
    "tokens that are numbers": lambda: gpt()()(zeros(1, 3)),
    "tokens of rank 1": lambda: gpt()()(TOKENS[0, :3]),
    "tokens beyond the context": lambda: gpt()()(TOKENS),
}

TRAITS = {
    "unknown domain": lambda: Traits(domain="text"),
    "unknown position": lambda: Traits(position="rotary"),
    "unknown symmetry": lambda: Traits(equivariant_to=("time",)),
    "causal that is a number": lambda: Traits(causal=1),
    "window 0": lambda: Traits(window=0),
    "decay that is a word": lambda: Traits(decay="linear"),
    "unknown trait": lambda: Traits().but(size=1),
    "decay of unknown kind": lambda: Decay("cubic", "past", "logits"),
    "decay in an unknown distance": lambda: Decay("linear", "euclid", "logits"),
    "decay at an unknown place": lambda: Decay("linear", "past", "output"),
}

TABLE = {
    f"{group}: {name}": bad
    for group, calls in {
        "attend": ATTEND,
        "terms": TERMS,
        "retention": RETENTION,
        "positions": POSITIONS,
        "layers": LAYERS,
        "names": NAMES,
        "models": MODELS,
        "traits": TRAITS,
    }.items()
    for name, bad in calls.items()
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_states_expected_and_got(name):
    with pytest.raises(ValueError, match=r"expected .*got ") as raised:
        TABLE[name]()
    assert type(raised.value) is ValueError
    assert re.match(r"\S", str(raised.value))


def test_the_good_calls_beside_the_bad_ones_pass():
    """What the table varies is right to begin with."""
    assert attend(Q, Q, Q).shape == Q.shape
    assert attend(SHORT, Q, Q, causal=True, alignment="lower-right").shape == SHORT.shape
    assert attend(Q, Q, Q, decay=ManhattanDecay(1, L, H)).shape == Q.shape
    assert retention_chunkwise(Q, Q, Q, RATES, chunk=2).shape == Q.shape
    assert SelfAttention(8, 2)(X, zeros(2, 3).bool()).shape == X.shape
    assert gpt()()(TOKENS[:, :4]).shape == (1, 4, 65)
    assert OutputGate(8, 4)(zeros(1, 4, 3, 2), zeros(1, 3, 8)).shape == (1, 4, 3, 2)


def test_negative_slopes_are_accepted_where_asked_for():
    slopes = torch.tensor([0.5, -0.5])
    assert ALiBi(slopes, allow_negative=True).slopes is slopes
    assert (ALiBi(4, balanced=True).slopes < 0).sum() == 2


@pytest.mark.parametrize(("value", "near"), [("sofmax", "softmax"), ("sigmod", "sigmoid"), ("lineer", "linear")])
def test_a_near_miss_is_suggested(value, near):
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        attend(Q, Q, Q, weights=value)
