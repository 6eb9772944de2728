"""RMT against the names, shapes and equations of its official code."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from vision_models import (
    COUNTS,
    close,
    generator,
    images,
    on_meta,
)

from biases.models import (
    RMT,
    StageSize,
    Swin,
    load_official,
    official_names,
    rmt,
)

STAGES = (
    StageSize(8, 2, 2, ratio=3, span=4),
    StageSize(12, 1, 3, ratio=2.5, span=5, layer_scale=True),
    StageSize(16, 2, 2, ratio=1, span=6, layer_scale=True),
)
FORMS = ("decomposed", "full", "decomposed")


def small_rmt(**options) -> RMT:
    return RMT(STAGES, forms=FORMS, **{"classes": 5, "channels": 2, "projection": 10, **options}).eval()


def official_shapes(stages, classes=1000, channels=3, projection=1024) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official state: qhfan/RMT, commit 32ea214, classfication_release/RMT.py."""

    def affine(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    def batch_norm(name, C):
        statistics = {f"{name}.running_mean": (C,), f"{name}.running_var": (C,), f"{name}.num_batches_tracked": ()}
        return {**affine(name, C), **statistics}

    found, C = {}, stages[0].dim
    widths = [channels, C // 2, C // 2, C, C]
    for place, (into, out) in enumerate(itertools.pairwise(widths)):
        found |= affine(f"patch_embed.proj.{3 * place}", out, into, 3, 3)
        found |= batch_norm(f"patch_embed.proj.{3 * place + 1}", out)
    for s, size in enumerate(stages):
        C, hidden = size.dim, int(size.ratio * size.dim)
        found |= {f"layers.{s}.Relpos.angle": (C // size.heads,), f"layers.{s}.Relpos.decay": (size.heads,)}
        for b in range(size.depth):
            block = f"layers.{s}.blocks.{b}"
            for norm in ("retention_layer_norm", "final_layer_norm"):
                found |= affine(f"{block}.{norm}", C)
            for projection_name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                found |= affine(f"{block}.retention.{projection_name}", C, C)
            found |= affine(f"{block}.retention.lepe.conv", C, 1, 5, 5)
            found |= affine(f"{block}.ffn.fc1", hidden, C)
            found |= affine(f"{block}.ffn.fc2", C, hidden)
            found |= affine(f"{block}.ffn.dwconv.conv", hidden, 1, 3, 3)
            found |= affine(f"{block}.pos.conv", C, 1, 3, 3)
            if size.layer_scale:
                found |= {f"{block}.gamma_1": (1, 1, 1, C), f"{block}.gamma_2": (1, 1, 1, C)}
        if s + 1 < len(stages):
            found |= affine(f"layers.{s}.downsample.reduction", stages[s + 1].dim, C, 3, 3)
            found |= batch_norm(f"layers.{s}.downsample.norm", stages[s + 1].dim)
    return found | affine("proj", projection, C) | batch_norm("norm", projection) | affine("head", classes, projection)


def official_state(seed: int = 0) -> dict[str, Tensor]:
    """A state of the small configuration with the official names, in float32 as released."""
    draw, state = generator(seed), {}
    for name, shape in official_shapes(STAGES, classes=5, channels=2, projection=10).items():
        noise = torch.randn(shape, generator=draw)
        state[name] = noise / math.sqrt(noise[0].numel()) if noise.ndim > 1 and "gamma" not in name else noise
        if name.endswith("running_var"):
            state[name] = 1.0 + 0.5 * noise.tanh()
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(int(100 * noise.abs()))
    for s, size in enumerate(STAGES):
        angle = 1.0 / 10000 ** torch.linspace(0, 1, size.dim // size.heads // 2)
        heads = torch.arange(size.heads, dtype=torch.float)
        state[f"layers.{s}.Relpos.angle"] = angle.repeat_interleave(2)
        state[f"layers.{s}.Relpos.decay"] = torch.log(1 - 2 ** (-2 - size.span * heads / size.heads))
    return state


def official_logits(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """RMT by its equations, in float64, from the official names."""
    state = {name: value.double() for name, value in state.items()}

    def linear(name, y):
        return F.linear(y, state[f"{name}.weight"], state[f"{name}.bias"])

    def layer_norm(name, y):
        return F.layer_norm(y, y.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def batch_norm(name, y):
        scale = state[f"{name}.weight"] / (state[f"{name}.running_var"] + 1e-5).sqrt()
        return (y - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]

    def convolution(name, y, stride=1):
        weight = state[f"{name}.weight"]
        groups = y.shape[-1] // weight.shape[1]
        y = F.conv2d(y.movedim(-1, 1), weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2, groups=groups)
        return y.movedim(1, -1)

    def masa(name, y, H, decay, form):
        B, height, width, C = y.shape
        raster = torch.arange(height * width, dtype=torch.float64).view(height, width)
        theta = 10000.0 ** -torch.linspace(0, 1, C // H // 2, dtype=torch.float64)
        turn = torch.polar(torch.ones(()).double(), raster[..., None, None] * theta)
        value = linear(f"{name}.v_proj", y)
        q, k = (linear(f"{name}.{part}", y).view(B, height, width, H, -1, 2) for part in ("q_proj", "k_proj"))
        q, k = (torch.view_as_real(torch.view_as_complex(t) * turn).flatten(-2) for t in (q, k))
        k, v = k / math.sqrt(C // H), value.view(B, height, width, H, -1)
        rows, columns = ((torch.arange(n)[:, None] - torch.arange(n)).abs() for n in (height, width))
        if form == "full":
            distance = rows[:, None, :, None] + columns[None, :, None, :]
            logits = torch.einsum("bijhd,bkmhd->bhijkm", q, k) + decay.view(-1, 1, 1, 1, 1) * distance
            weights = logits.flatten(-2).softmax(-1).view_as(logits)
            out = torch.einsum("bhijkm,bkmhd->bijhd", weights, v)
        else:
            across = torch.einsum("bijhd,bimhd->bihjm", q, k) + decay.view(-1, 1, 1) * columns
            v = torch.einsum("bihjm,bimhd->bijhd", across.softmax(-1), v)
            down = torch.einsum("bijhd,bkjhd->bjhik", q, k) + decay.view(-1, 1, 1) * rows
            out = torch.einsum("bjhik,bkjhd->bijhd", down.softmax(-1), v)
        return linear(f"{name}.out_proj", out.flatten(3) + convolution(f"{name}.lepe.conv", value))

    y = x.movedim(1, -1)
    for place, stride in ((0, 2), (3, 1), (6, 2), (9, 1)):
        y = batch_norm(f"patch_embed.proj.{place + 1}", convolution(f"patch_embed.proj.{place}", y, stride))
        y = y if place == 9 else F.gelu(y)
    for s, (size, form) in enumerate(zip(STAGES, FORMS, strict=True)):
        decay = torch.log(1 - 2 ** (-2 - size.span * torch.arange(size.heads).double() / size.heads))
        for b in range(size.depth):
            name = f"layers.{s}.blocks.{b}"
            one, two = (state.get(f"{name}.gamma_{g}", torch.ones(()).double()) for g in (1, 2))
            y = y + convolution(f"{name}.pos.conv", y)
            y = y + one * masa(
                f"{name}.retention", layer_norm(f"{name}.retention_layer_norm", y), size.heads, decay, form
            )
            hidden = F.gelu(linear(f"{name}.ffn.fc1", layer_norm(f"{name}.final_layer_norm", y)))
            y = y + two * linear(f"{name}.ffn.fc2", hidden + convolution(f"{name}.ffn.dwconv.conv", hidden))
        if s + 1 < len(STAGES):
            y = batch_norm(f"layers.{s}.downsample.norm", convolution(f"layers.{s}.downsample.reduction", y, 2))
    return linear("head", F.silu(batch_norm("norm", linear("proj", y))).mean((1, 2)))


@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
def test_official_names_and_shapes(size):
    model = on_meta(f"rmt-{size}")
    names = official_names(model)
    assert set(names) == set(model.state_dict())
    assert len(set(names.values())) == len(names)
    found = {names[name]: tuple(value.shape) for name, value in model.state_dict().items()}
    expected = official_shapes(rmt.SIZES[size]["stages"])
    constants = {name for name in expected if ".Relpos." in name}
    assert found == {name: shape for name, shape in expected.items() if name not in constants}
    learned = [n for n in expected if n not in constants and "running" not in n and "num_batches" not in n]
    assert sum(math.prod(expected[name]) for name in learned) == COUNTS[f"rmt-{size}"]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 21), (4, 9)])
def test_an_official_state_gives_the_official_logits(height, width):
    state, x = official_state(), images(2, height, width).double()
    model = load_official(small_rmt().double(), state)
    close(model(x), official_logits(state, x), roundings=5000)


def test_official_values_arrive_in_their_tensors():
    state = official_state()
    model = load_official(small_rmt(), state)
    block, official = model.stages[1].blocks[0], "layers.1.blocks.0"
    assert torch.equal(block.attention.key.weight, state[f"{official}.retention.k_proj.weight"])
    assert torch.equal(block.attention.enhancement.convolution.bias, state[f"{official}.retention.lepe.conv.bias"])
    assert torch.equal(block.norm1.weight, state[f"{official}.retention_layer_norm.weight"])
    assert torch.equal(block.feed_forward.contract.weight, state[f"{official}.ffn.fc2.weight"])
    assert torch.equal(block.scale2.weight, state[f"{official}.gamma_2"])
    assert torch.equal(model.stages[0].downsampling.norm.running_var, state["layers.0.downsample.norm.running_var"])
    assert torch.equal(model.embedding.layers[6].weight, state["patch_embed.proj.6.weight"])
    assert model.embedding.layers[10].num_batches_tracked == state["patch_embed.proj.10.num_batches_tracked"]
    assert torch.equal(model.head.output.bias, state["head.bias"])


def test_the_constants_of_an_official_state_may_be_left_out():
    state = official_state()
    bare = {name: value for name, value in state.items() if ".Relpos." not in name}
    found, expected = (load_official(small_rmt(), each).state_dict() for each in (bare, state))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def without(name):
    return lambda state: state.pop(name)


def changed(name, value):
    return lambda state: state.update({name: value(state.get(name))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("head.bias"), r"expected none missing, got 1: head\.bias$"),
        (changed("extra.weight", lambda _: torch.ones(1)), r"expected none unknown, got 1: extra\.weight$"),
        (changed("layers.3.Relpos.angle", lambda _: torch.ones(1)), r"expected none unknown, got 1: layers\.3"),
        (changed("proj.weight", lambda w: w[1:]), r"proj\.weight: expected \(10, 16\), got \(9, 16\)"),
        (changed("layers.1.Relpos.decay", lambda d: 1.001 * d), r"layers\.1\.Relpos\.decay: expected \["),
        (changed("layers.0.Relpos.angle", lambda a: a.flip(0)), r"layers\.0\.Relpos\.angle: expected \["),
        (changed("layers.0.Relpos.angle", lambda a: a[:2]), r"layers\.0\.Relpos\.angle: expected \["),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(change, message):
    state, model = official_state(), small_rmt()
    change(state)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_official(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({**official_state(), "head.bias": [0.0] * 5}, r"expected none other than tensors, got 1: head\.bias: list$"),
        ({"model": official_state()}, r"released files hold it under 'model', got a mapping with the key 'model'"),
        (list(official_state().items()), r"expected a mapping from names to tensors, got list"),
    ],
)
def test_what_is_no_official_state_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        load_official(small_rmt(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "weights"}, r"placement .*stages\.0\.blocks\.0: expected 'logits', .*got 'weights'"),
        ({"placement": "weights-renormalised"}, r"placement .*got 'weights-renormalised'"),
        ({"weights": "sigmoid-normalised"}, r"weights .*expected 'softmax', .*got 'sigmoid-normalised'"),
        ({"theta_shift": False}, r"theta_shift .*expected True, .*got False"),
        ({"order": "height-first"}, r"order .*expected 'width-first', .*got 'height-first'"),
    ],
)
def test_a_model_with_other_attention_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_official(small_rmt(attention_options=options), official_state())


def test_the_order_of_a_form_that_has_none_is_no_reason_to_refuse():
    options = {"form": "full", "order": "height-first"}
    assert load_official(small_rmt(attention_options=options), official_state())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: RMT.of("s", forms=("decomposed",) * 4),
            r"form .*stages\.3\.blocks\.0: expected 'full', .*'decomposed'",
        ),
        (lambda: RMT.of("t", forms=rmt.DECOMPOSED_TO_THE_LAST), r"form .*stages\.2\.blocks\.0: expected 'full', "),
        (lambda: RMT.of("b", initial=3.0), r"rates of decay in stages\.0\.blocks\.0: expected \["),
        (lambda: Swin.of("t"), r"expected an RMT, got Swin"),
    ],
)
def test_a_published_size_has_its_forms_and_rates(model, message):
    with torch.device("meta"):
        built = model()
    with pytest.raises(ValueError, match=message):
        load_official(built, {})


@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
def test_published_sizes_take_their_official_states(size):
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in official_shapes(rmt.SIZES[size]["stages"]).items()}
        model = RMT.of(size)
    loaded = load_official(model, {name: value for name, value in state.items() if ".Relpos." not in name})
    assert loaded is model


def test_a_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected none missing, got \d+: .* and \d+ more"):
        load_official(RMT.of("digits"), official_state())
