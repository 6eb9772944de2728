"""The zoo: what is in it, how it is named, built and described."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch

from biases import SelfAttention, Traits, registry, set_backend, specification, zoo
from biases.gates import EnergyGate
from biases.testing import PROPERTIES

LAYERS = [
    "standard",
    "ega",
    "ega-prefix",
    "ega-token",
    "ega-2",
    "ega-4",
    "ega-conv",
    "ega-morlet",
    "ega-db2",
    "ega-db4",
    "conv-lag-4",
    "conv-lag-8",
    "scale-init",
    "mq-e",
    "mq-ep",
    "mq-ef",
    "alibi",
    "alibi-symmetric",
    "retention",
    "swat",
    "g1",
    "g1-headwise",
    "swiglu-value",
]
IMAGE_LAYERS = ["manhattan", "manhattan-decomposed", "swin", "gated-swin-retention", "gated-swin-swat"]
POSITIONS = ["none", "learned", "sinusoidal", "rotary", "mope", "mope-free"]
MODELS = [
    "char-gpt",
    "rmt-t",
    "rmt-s",
    "rmt-b",
    "rmt-l",
    "rmt-digits",
    "swin-t",
    "swin-s",
    "swin-b",
    "swin-digits",
    "gated-swinrmt-retention",
    "gated-swinrmt-swat",
]
WIDTHS = [(16, 2), (24, 3), (6, 1), (32, 8)]
# Maps smaller than a window, larger, and of one pixel.
MAPS = [(5, 8), (9, 3), (1, 1)]

# Parameters beyond those of standard attention, from the equations, for width C and H heads.
EXTRA_PARAMETERS = {
    "standard": lambda C, H: 0,
    "ega": lambda C, H: H * (C + 3),
    "ega[mixing=True]": lambda C, H: H * (C + 4),
    "ega-prefix": lambda C, H: H * (C + 3),
    "ega-token": lambda C, H: H * (C + 3),
    "ega-2": lambda C, H: 2 * H * (C + 4),
    "ega-4": lambda C, H: 4 * H * (C + 4),
    "ega-conv": lambda C, H: H * sum(2 * C * length + 2 + 3 for length in (3, 7, 15, 31)),
    "ega-morlet": lambda C, H: H * 4 * (2 + 3),
    "ega-db2": lambda C, H: H * 4 * 3,
    "ega-db4": lambda C, H: H * 4 * 3,
    "mq-e": lambda C, H: H * (20 + 2),
    "mq-ep": lambda C, H: H * (20 + 3),
    "mq-ef": lambda C, H: H * (20 + 3),
    "conv-lag-4": lambda C, H: H * 9,
    "conv-lag-8": lambda C, H: H * 17,
    "scale-init": lambda C, H: 0,
    "alibi": lambda C, H: 0,
    "alibi-symmetric": lambda C, H: 0,
    "retention": lambda C, H: C * C,
    "swat": lambda C, H: 0,
    "swat[normalise=True,slopes=negative,window=None]": lambda C, H: 0,
    "g1": lambda C, H: C * C + C,
    "g1-headwise": lambda C, H: H * (C + 1),
    "swiglu-value": lambda C, H: C * C,
}


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def arxiv_ids(text: str | None) -> list[str]:
    return re.findall(r"\b\d{4}\.\d{5}\b", text or "")


def test_every_promised_name_is_registered():
    assert set(LAYERS) <= set(zoo.names("layer", "sequence"))
    assert set(IMAGE_LAYERS) <= set(zoo.names("layer", "image"))
    assert set(POSITIONS) <= set(zoo.names("position"))
    assert set(MODELS) <= set(zoo.names("model"))


def test_names_are_unique_kebab_case_and_sorted():
    names = zoo.names()
    assert names == sorted(set(names))
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    assert names == sorted(zoo.names("layer") + zoo.names("position") + zoo.names("model"))
    assert zoo.names(domain="sequence") == [n for n in names if zoo.get(n).traits.domain == "sequence"]
    assert zoo.names("layer") == sorted(zoo.names("layer", "sequence") + zoo.names("layer", "image"))


@pytest.mark.parametrize("name", zoo.names())
def test_every_variant_describes_itself(name):
    variant = zoo.get(name)
    assert variant.name == name
    assert variant.summary
    assert "\n" not in variant.summary
    assert variant.parameters
    assert all(note.endswith(".") for note in variant.notes)
    assert isinstance(variant.traits, Traits)
    read = json.loads(json.dumps(variant.traits.as_dict()))
    assert read["causal"] is variant.traits.causal
    assert os.path.basename(os.path.dirname(zoo.source_file(name))) == variant.family


@pytest.mark.parametrize("name", [name for name in zoo.names() if name != "none"])
def test_every_variant_cites_its_paper(name):
    assert arxiv_ids(zoo.get(name).traits.published), zoo.get(name).traits.published


@pytest.mark.parametrize("name", zoo.names("layer"))
def test_known_failures_name_properties_and_give_reasons(name):
    for failure, reason in zoo.get(name).known_failures.items():
        assert failure in PROPERTIES
        assert len(reason.split()) >= 8, reason


@pytest.mark.parametrize(
    "name", ["ega", "ega-2", "ega-4", "ega-conv", "ega-morlet", "ega-db2", "mq-e", "mq-ep", "mq-ef"]
)
def test_published_gates_are_called_causal_and_fail_it(name):
    """The trait is the papers' claim; that it does not hold is a known failure that cites the claim."""
    published, repaired = zoo.get(name), zoo.get(f"{name}[statistics=prefix]")
    assert published.traits.causal
    assert published.traits.gate_sees == "window"
    assert arxiv_ids(published.known_failures["future-independence"])
    assert repaired.traits.gate_sees == "prefix"
    assert not repaired.known_failures


def assert_runs(layer, *shape):
    """A layer maps (B, T, C) or (B, H, W, C) to the same, and has finite gradients."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = layer(x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.isfinite().all()
    out.square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", zoo.names("layer", "sequence"))
@pytest.mark.parametrize(("dim", "heads"), WIDTHS)
def test_every_layer_builds_and_runs(name, dim, heads):
    assert_runs(zoo.layer(name, dim, heads), 2, 5, dim)


@pytest.mark.parametrize("name", zoo.names("layer", "image"))
@pytest.mark.parametrize(("dim", "heads"), WIDTHS)
def test_every_image_layer_builds_and_runs(name, dim, heads):
    layer = zoo.layer(name, dim, heads)
    for height, width in MAPS:
        assert_runs(layer, 2, height, width, dim)


@pytest.mark.parametrize("name", zoo.names("layer"))
def test_backend_and_specification_reach_every_layer(name):
    """A backend given to the builder, or set later, is that of the attention inside, and the specification agrees."""
    layer = zoo.layer(name, 16, 2).eval()
    shape = (2, 7, 16) if name in zoo.names(domain="sequence") else (2, 5, 6, 16)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    exact = specification(layer)
    assert all(parameter.dtype == torch.float64 for parameter in exact.parameters())
    assert {part.backend for part in exact.modules() if hasattr(part, "backend")} == {"reference"}
    expected = exact(x.double())
    scale = 200 * torch.finfo(torch.float32).eps * max(1.0, expected.abs().max().item())
    assert (layer(x).double() - expected).abs().max().item() <= scale
    assert (set_backend(layer, "dense")(x).double() - expected).abs().max().item() <= scale
    built = zoo.layer(name, 16, 2, backend="dense")
    assert {part.backend for part in built.modules() if hasattr(part, "backend")} == {"dense"}


@pytest.mark.parametrize("name", zoo.names("layer"))
def test_dropout_is_taken_or_refused(name):
    """Layers assembled here take it; finished modules say so if they do not."""
    if isinstance(zoo.layer(name, 16, 2), SelfAttention):
        assert zoo.layer(name, 16, 2, dropout=0.25).dropout == 0.25
    else:
        with pytest.raises(ValueError, match=rf"dropout of {name}: expected 0, as the layer takes none, got 0.25"):
            zoo.layer(name, 16, 2, dropout=0.25)
    with pytest.raises(ValueError, match=r"dropout: expected a probability in \[0, 1\), got 1.5"):
        zoo.layer(name, 16, 2, dropout=1.5)
    with pytest.raises(ValueError, match="backend: expected one of"):
        zoo.layer(name, 16, 2, backend="flash")


def test_set_backend_needs_attention_inside():
    with pytest.raises(ValueError, match=r"expected a module with an attention layer inside.*got Linear"):
        set_backend(torch.nn.Linear(2, 2), "dense")


@pytest.mark.parametrize("name", EXTRA_PARAMETERS)
@pytest.mark.parametrize(("dim", "heads"), WIDTHS)
def test_layers_have_the_parameters_of_their_equations(name, dim, heads):
    extra = parameters(zoo.layer(name, dim, heads)) - parameters(zoo.layer("standard", dim, heads))
    assert extra == EXTRA_PARAMETERS[name](dim, heads)


@pytest.mark.parametrize("name", zoo.names("position"))
def test_every_position_builds(name):
    placed = zoo.position(name, 16, context=8, heads=2)
    assert len(placed) == (0 if name == "none" else 1)
    x = torch.zeros(1, 8, 16)
    if "embedding" in placed:
        assert placed["embedding"](x).shape == x.shape
        assert placed["embedding"](x).isfinite().all()


@pytest.mark.parametrize(
    ("written", "base", "options"),
    [
        ("ega", "ega", {"statistics": "window", "mixing": False}),
        ("ega[statistics=prefix]", "ega", {"statistics": "prefix", "mixing": False}),
        ("ega[statistics=prefix, mixing=True]", "ega", {"statistics": "prefix", "mixing": True}),
        ("ega[ mixing = True ]", "ega", {"statistics": "window", "mixing": True}),
        ("ega[]", "ega", {"statistics": "window", "mixing": False}),
        ("rotary[base=500.0,pairing=half]", "rotary", {"base": 500.0, "pairing": "half"}),
    ],
)
def test_names_carry_options(written, base, options):
    variant = zoo.get(written)
    assert variant.options == options
    assert variant.make is zoo.get(base).make


@pytest.mark.parametrize(
    ("written", "option", "value"),
    [
        (
            "gated-swinrmt-retention[size=digits,attention_options={'gate_granularity':'headwise','theta_shift':'axis'}]",
            "attention_options",
            {"gate_granularity": "headwise", "theta_shift": "axis"},
        ),
        ("rmt-digits[attention_options={'weights': 'a,]b'}, classes=3]", "attention_options", {"weights": "a,]b"}),
        ('rmt-digits[attention_options={"order": "it\'s"},classes=3]', "attention_options", {"order": "it's"}),
        ("rmt-digits[attention_options=[('a', (1, 2))],classes=3]", "attention_options", [("a", (1, 2))]),
        (
            "char-gpt[attention=ega[statistics=prefix,mixing=True],dim=64]",
            "attention",
            "ega[statistics=prefix,mixing=True]",
        ),
        (
            "rmt-digits[attention_options={'form':'full','order':'x'},]",
            "attention_options",
            {"form": "full", "order": "x"},
        ),
    ],
)
def test_values_may_hold_commas_in_brackets_and_quotes(written, option, value):
    given = {"size": "digits", "classes": 3, "dim": 64}
    variant = zoo.get(written)
    base = zoo.get(written.partition("[")[0])
    changed = {name: found for name, found in variant.options.items() if found != base.options[name]}
    assert changed.pop(option) == value
    assert all(found == given[name] for name, found in changed.items())
    assert len(changed) == (not written.endswith(",]"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("swin[window=4", "expected name[option=value, ...]"),
        ("swin[window=4]]", "expected brackets in pairs, got ']'"),
        ("swin[window=(4]", "expected a closing ), got none"),
        ("swin[window=(4}]", "expected brackets in pairs, got '}'"),
        ("swin[window='4]", "expected a closing ', got none"),
        ("swin[window=4]shifted[True]", "expected brackets in pairs, got ']'"),
        ("swin[window]", "expected option=value, got 'window'"),
        ("swin[window={4,5},5]", "expected option=value, got '5'"),
    ],
)
def test_names_that_do_not_close_are_refused(written, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        zoo.get(written)


@pytest.mark.parametrize("name", [*LAYERS, *IMAGE_LAYERS, *POSITIONS, *MODELS])
def test_every_name_can_be_tried(name):
    state = torch.get_rng_state()
    found = zoo.trial(name)
    assert torch.equal(torch.get_rng_state(), state)
    if name in POSITIONS:
        assert isinstance(found, dict)
    else:
        assert isinstance(found, torch.nn.Module)
        assert all(p.is_meta == (name in MODELS) for p in found.parameters())


@pytest.mark.parametrize("attention", LAYERS)
def test_trials_of_models_need_no_values(attention):
    assert all(p.is_meta for p in zoo.trial(f"char-gpt[attention={attention},layers=1]").parameters())


@pytest.mark.parametrize("position", POSITIONS)
def test_trials_of_models_need_no_values_of_positions(position):
    assert all(p.is_meta for p in zoo.trial(f"char-gpt[position={position},layers=1]").parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gated-swinrmt-swat[size=digitz]", "did you mean 'digits'?"),
        ("rmt-digits[classes=0]", "expected an integer of at least 1, got 0"),
        ("swin[window=-1]", "expected an integer of at least 1, got -1"),
        ("manhattan[placement=foo]", "got 'foo'"),
        ("manhattan[initial=x]", "expected "),
        ("rotary[pairing=quarter]", "got 'quarter'"),
        ("char-gpt[position_options=3]", "expected options that it can be built with, got "),
        ("rmt-t[drop_path=2]", "expected a probability in [0, 1), got 2"),
    ],
)
def test_a_trial_finds_options_that_do_not_work(name, message):
    zoo.get(name)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        zoo.trial(name)
    assert "\n" not in str(refused.value)


def test_a_trial_needs_one_width_that_fits():
    assert zoo.trial("standard", [(7, 2), (8, 2)]).query.in_features == 8
    with pytest.raises(ValueError, match="multiple of heads=2, got 7"):
        zoo.trial("standard", [(7, 2), (9, 2)])
    with pytest.raises(ValueError, match="at least one pair"):
        zoo.trial("standard", [])


def test_an_option_in_the_name_reaches_the_layer():
    gate = zoo.layer("ega[statistics=prefix,mixing=True]", 8, 2).key_gate
    assert isinstance(gate, EnergyGate)
    assert gate.statistics == "prefix"
    assert gate.scale_w is not None
    assert zoo.layer("ega[statistics=prefix]", 8, 2, statistics="none").key_gate.statistics == "none"
    assert zoo.get("ega").options["statistics"] == "window"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("egaa", "'ega'"), ("alibii", "'alibi'"), ("standart", "'standard'"), ("conv-lag-5", "'conv-lag-4'")],
)
def test_unknown_names_suggest_near_ones(wrong, near):
    with pytest.raises(ValueError, match="did you mean") as raised:
        zoo.get(wrong)
    assert near in str(raised.value).partition("did you mean")[2]


def test_unknown_options_suggest_near_ones():
    with pytest.raises(ValueError, match=r"did you mean 'statistics'"):
        zoo.get("ega[statistic=prefix]")


def test_a_factory_carries_name_and_traits():
    make = zoo.factory("ega[statistics=prefix]")
    assert make.__name__ == "ega[statistics=prefix]"
    assert make.traits == zoo.get("ega[statistics=prefix]").traits
    assert make(8, 2).key_gate.statistics == "prefix"
    assert make(8, 2, statistics="none").key_gate.statistics == "none"


def test_models_are_built_by_name():
    model = zoo.model("char-gpt", layers=1, dim=16, heads=2, context=8, vocab=5, attention="alibi", position="none")
    assert model(torch.tensor([[0, 1, 4]])).shape == (1, 3, 5)
    options = zoo.model("char-gpt[layers=1,dim=16,heads=2]")
    assert len(options.blocks) == 1


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="expected a name not yet registered"):
        registry.register("ega", family="gates", summary="again", traits=Traits(), parameters="0")
