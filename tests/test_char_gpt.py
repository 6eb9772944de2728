"""CharGPT: the parameter counts of the papers, initialisation, weight decay, causality."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from biases import CharGPT, specification, zoo

BASELINE = 4_816_640
PUBLISHED = {
    "baseline": ({}, BASELINE),
    "EGA-1 of 2605.21842": ({"attention": "ega", "attention_options": {"mixing": True}}, BASELINE + 12_480),
    "EGA-1 of 2605.26355": ({"attention": "ega"}, BASELINE + 12_432),
    "EGA-2": ({"attention": "ega-2"}, BASELINE + 24_960),
    "EGA-4": ({"attention": "ega-4"}, BASELINE + 49_920),
    "EGA-C": ({"attention": "ega-conv"}, BASELINE + 1_377_216),
    "EGA-M": ({"attention": "ega-morlet"}, BASELINE + 960),
    "EGA with MoPE": ({"attention": "ega", "position": "mope"}, 4_763_792),
    "MoPE": ({"position": "mope"}, BASELINE - 65_536 + 256),
    "rotary beside learned": ({"position": "rotary", "absolute_too": True}, BASELINE),
    "rotary alone": ({"position": "rotary"}, BASELINE - 65_536),
}
SMALL = {"vocab": 11, "context": 12, "layers": 2, "heads": 2, "dim": 16, "dropout": 0.0}


def build(seed: int = 0, **options) -> CharGPT:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CharGPT(**options)


def small(seed: int = 0, **options) -> CharGPT:
    return build(seed, **{**SMALL, **options}).eval()


def characters(length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(11, (2, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("published", PUBLISHED)
def test_parameters_are_those_of_the_papers(published):
    options, expected = PUBLISHED[published]
    assert sum(p.numel() for p in CharGPT(**options).parameters()) == expected


def test_the_head_is_the_embedding():
    model = small()
    assert sum(p.shape == (11, 16) for p in model.parameters()) == 1
    hidden = []
    model.norm.register_forward_hook(lambda module, args, out: hidden.append(out))
    logits = model(characters())
    assert torch.equal(logits, hidden[0] @ model.embedding.weight.T)


@pytest.mark.parametrize("position", zoo.names("position"))
def test_logits_do_not_see_later_characters(position):
    model = small(position=position)
    tokens = characters()
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 3) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert (after[:, 7:] - before[:, 7:]).abs().max() > 1e-3


def test_published_ega_lets_the_future_through():
    """Mean and deviation of the energies are taken over the whole window (arXiv 2605.21842 Eq. 4)."""
    tokens = characters()
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 3) % 11

    def moved(attention):
        model = small(attention=attention)
        for parameter in model.parameters():
            parameter.data.mul_(5.0)
        return (model(tokens) - model(changed))[:, :-1].abs().max().item()

    assert moved("ega") > 1e-3
    assert moved("ega-prefix") < 1e-5


@pytest.mark.parametrize("attention", zoo.names("layer", "sequence"))
def test_every_layer_fits_into_the_model(attention):
    model = small(attention=attention)
    logits = model(characters(9))
    assert logits.shape == (2, 9, 11)
    nn.functional.cross_entropy(logits.flatten(0, 1), characters(9, 1).flatten()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("attention", zoo.names("layer", "image"))
def test_layers_for_images_are_refused(attention):
    with pytest.raises(ValueError, match=rf"CharGPT attention '{attention}': expected a layer for sequences"):
        small(attention=attention)


def test_rotary_turns_every_layer_and_nothing_else_does():
    assert all(block.attention.rotary is not None for block in small(position="rotary").blocks)
    assert all(block.attention.rotary is None for block in small().blocks)


def test_absolute_too_adds_both_encodings():
    """The released PE-ROPE keeps the learned absolute encoding (arXiv 2605.26355, released code)."""
    both = small(position="rotary", absolute_too=True)
    assert both.absolute.weight.shape == (12, 16)
    assert both.position is None
    alone = small(position="rotary")
    missing = alone.load_state_dict(both.state_dict(), strict=False)
    assert missing.unexpected_keys == ["absolute.weight"]
    assert (alone(characters()) - both(characters())).abs().max() > 1e-4


def test_a_sequence_beyond_the_context_is_refused():
    model = small()
    assert model(characters(12)).shape == (2, 12, 11)
    with pytest.raises(ValueError, match="expected at most 12 of them, got 13"):
        model(characters(13))


@pytest.mark.parametrize("options", [{}, {"attention": "ega"}, {"position": "mope"}])
def test_initial_std_says_what_was_drawn(options):
    """Embeddings, encodings and linear weights start from N(0, 0.02), linear biases from 0 (arXiv 2605.21842)."""
    model = build(layers=1, vocab=65, **options)
    for name, parameter in model.named_parameters():
        std = model.initial_std(name)
        if std is None:
            continue
        assert std == 0.02
        # Five standard errors of the estimate.
        assert parameter.std().item() == pytest.approx(std, rel=5 / (2 * parameter.numel()) ** 0.5), name
    drawn = {name for name, _ in model.named_parameters() if model.initial_std(name) is not None}
    assert "embedding.weight" in drawn
    assert "blocks.0.mlp.0.weight" in drawn
    assert ("position.weight" in drawn) == ("position" not in options)
    assert not any("norm" in name or name.endswith("bias") for name in drawn)
    biases = [m.bias for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None]
    assert biases
    assert all(torch.count_nonzero(b) == 0 for b in biases)


def test_scale_init_follows_the_released_code():
    """Queries and keys of head h from N(0, 0.02 (1 + (h mod 4) / 4)), values from N(0, 0.02); every other linear weight
    keeps PyTorch's default, uniform within 1 / sqrt(C) (arXiv 2605.26355, released code)."""
    model = build(layers=1, attention="scale-init")
    attention, mlp = model.blocks[0].attention, model.blocks[0].mlp
    for projection in (attention.query, attention.key):
        found = projection.weight.view(8, -1).std(-1).tolist()
        assert found == pytest.approx([0.02 * (1 + h % 4 / 4) for h in range(8)], rel=0.05)
    assert attention.value.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for linear in (attention.output, mlp[0], mlp[2]):
        limit = linear.in_features**-0.5
        assert linear.weight.abs().max().item() <= limit
        assert linear.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
        assert torch.count_nonzero(linear.bias) == 0
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.initial_std("blocks.0.mlp.0.weight") is None


@pytest.mark.parametrize("position", zoo.names("position"))
@pytest.mark.parametrize("attention", ["standard", "ega", "mq-ep"])
def test_parameter_groups_cover_every_parameter_once(position, attention):
    model = small(attention=attention, position=position)
    groups = model.parameter_groups(0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()}
    torch.optim.AdamW(groups)


@pytest.mark.parametrize(
    ("position", "options", "exempt"),
    [
        ("learned", {}, set()),
        ("mope", {}, set()),
        ("mope", {"weight_decay": False}, {"position.log_omega", "position.log_sigma"}),
        ("mope-free", {}, {"position.log_omega", "position.log_sigma"}),
        (
            "mope-free",
            {"learned_centre": True},
            {"position.log_omega", "position.log_sigma", "position.centre"},
        ),
    ],
)
def test_only_free_morlet_positions_escape_weight_decay(position, options, exempt):
    """The authors decayed every parameter; the free variant exempts its wavelets."""
    model = small(position=position, position_options=options)
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in model.parameter_groups(0.1) for p in group["params"]}
    assert {name for name, value in decay.items() if value == 0.0} == exempt
    assert {value for name, value in decay.items() if name not in exempt} == {0.1}


def test_dropout_acts_in_training_only():
    model = build(**{**SMALL, "dropout": 0.5})
    tokens = characters()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("attention", ["standard", "ega", "alibi", "retention", "mq-ef", "swat[window=5]"])
def test_the_model_agrees_with_its_specification(attention):
    """float32 on the fast path against float64 on the reference: two blocks round some hundred times."""
    model = small(attention=attention)
    expected = specification(model)(characters())
    error = (model(characters()).double() - expected).abs().max().item()
    assert error <= 500 * torch.finfo(torch.float32).eps * max(1.0, expected.abs().max().item())


def test_the_state_can_be_stored_and_loaded():
    model, other = small(0, attention="ega", position="mope"), small(1, attention="ega", position="mope")
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(characters()), other(characters()))
