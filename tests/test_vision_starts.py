"""Where the parameters of image backbones start from, and which of them are decayed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from vision_models import (
    DIGITS,
    GATED,
    on_meta,
)

from biases import zoo
from biases.ablation.training import initialise
from biases.layers.swin import SwinAttention
from biases.models import (
    parameter_groups,
)


def started(name: str, built_under: int, seed: int = 0, **options) -> dict[str, Tensor]:
    """Parameters as the trainings of the ablation start them, by name."""
    with torch.random.fork_rng():
        torch.manual_seed(built_under)
        model = zoo.model(name, **options)
    initialise(model, seed)
    return dict(model.named_parameters())


def shared(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name in one.keys() & other.keys() if one[name].shape == other[name].shape}


@pytest.mark.parametrize("name", DIGITS)
def test_whatever_starts_at_random_says_how(name):
    """What is not drawn anew from the seed is the same in models built under different random states."""
    one, other = started(name, 1), started(name, 2)
    assert one.keys() == other.keys()
    assert [n for n in one if not torch.equal(one[n], other[n])] == []
    different = started(name, 1, seed=1)
    linear_weights = [n for n, m in on_meta(name).named_modules() if isinstance(m, nn.Linear)]
    assert all(not torch.equal(one[f"{n}.weight"], different[f"{n}.weight"]) for n in linear_weights)


@pytest.mark.parametrize("other", [f"{name}[size=digits]" for name in GATED])
def test_models_of_one_seed_share_what_has_the_same_name_and_shape(other):
    one, two = started("rmt-digits", 0), started(other, 0)
    same = shared(one, two)
    assert {"embedding.layers.0.weight", "embedding.layers.0.bias", "stages.1.blocks.1.attention.key.weight"} <= same
    assert [n for n in sorted(same) if not torch.equal(one[n], two[n])] == []


def test_arms_of_one_seed_share_what_has_the_same_name_and_shape():
    arms = [
        started("gated-swinrmt-retention[size=digits]", 0, attention_options={"gate_granularity": granularity})
        for granularity in ("elementwise", "headwise")
    ]
    same = shared(*arms)
    assert arms[0].keys() == arms[1].keys()
    assert len(same) < len(arms[0])
    assert [n for n in sorted(same) if not torch.equal(arms[0][n], arms[1][n])] == []


@pytest.mark.parametrize("name", DIGITS)
def test_models_start_as_declared(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.model(name)
    drawn = {n: model.initial_std(n) for n, _ in model.named_parameters() if model.initial_std(n) is not None}
    expected = {}
    for n, module in model.named_modules():
        if isinstance(module, nn.Linear):
            expected[f"{n}.weight"] = 0.02
            assert module.bias is None or torch.count_nonzero(module.bias) == 0
        if isinstance(module, nn.Conv2d):
            area = module.in_channels // module.groups * math.prod(module.kernel_size)
            expected[f"{n}.weight"] = expected[f"{n}.bias"] = 1 / math.sqrt(3 * area)
        if isinstance(module, SwinAttention):
            expected[f"{n}.relative_position"] = 0.02
    assert drawn == pytest.approx(expected, rel=1e-12)
    kinds = {n: ("table" if n.endswith("position") else value.ndim) for n, value in model.named_parameters()}
    for kind in {kinds[n] for n in drawn}:
        parts = [
            p.detach().flatten() / drawn[n] for n, p in model.named_parameters() if n in drawn and kinds[n] == kind
        ]
        values = torch.cat(parts)
        # Five standard errors of the estimate.
        assert values.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * values.numel())), kind


@pytest.mark.parametrize("groups", [1, 16])
def test_convolutions_have_the_variance_that_pytorch_gives_them(groups):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Conv2d(64, 256, 3, groups=groups)
    model = zoo.model("rmt-digits")
    model.embedding.layers[0] = plain
    for name, value in plain.named_parameters():
        # The fourth moment of a uniform is 9/5 of its squared variance: five standard errors.
        error = 5 * math.sqrt((9 / 5 - 1) / 4 / value.numel())
        assert value.std().item() == pytest.approx(model.initial_std(f"embedding.layers.0.{name}"), rel=error)


@pytest.mark.parametrize("name", DIGITS)
def test_parameter_groups_cover_every_parameter_once(name):
    model = zoo.model(name)
    decayed, kept = model.parameter_groups(0.05)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    grouped = [id(p) for group in (decayed, kept) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = {id(p): n for n, p in model.named_parameters()}
    assert all(p.ndim > 1 for p in decayed["params"])
    assert {names[id(p)] for p in kept["params"]} >= {n for n in names.values() if n.endswith("bias") or ".norm" in n}


def test_tables_of_relative_position_are_not_decayed():
    model = zoo.model("swin-digits")
    decayed, kept = ({id(p) for p in group["params"]} for group in model.parameter_groups(0.05))
    tables = [p for n, p in model.named_parameters() if n.endswith("relative_position")]
    assert len(tables) == 4
    assert {id(p) for p in tables} <= kept - decayed


class Sharing(nn.Module):
    """Two modules that share a matrix, of which one exempts it, a matrix of its own and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.exempting = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.exempting.weight = self.plain.weight
        self.exempting.no_weight_decay = ("weight",)
        self.matrix = nn.Parameter(torch.ones(2, 2))


@pytest.mark.parametrize("decay_vectors", [False, True])
def test_groups_of_any_module(decay_vectors):
    model = Sharing()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = {
        group["weight_decay"]: [names[id(p)] for p in group["params"]]
        for group in parameter_groups(model, 0.3, decay_vectors=decay_vectors)
    }
    bias = ["plain.bias"]
    assert groups == {
        0.3: ["matrix", *(bias if decay_vectors else [])],
        0.0: ["plain.weight", *([] if decay_vectors else bias)],
    }


def test_empty_groups_are_left_out():
    (group,) = parameter_groups(nn.Linear(2, 2, bias=False), 0.3, decay_vectors=False)
    assert group["weight_decay"] == 0.3
    assert parameter_groups(nn.Identity(), 0.3, decay_vectors=False) == []
