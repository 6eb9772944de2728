"""Seeds that advance together: each comes out as it would alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ablation_models import TEXT, Trainable
from torch import nn

from biases import registry
from biases.ablation import Cell, ModelConfig, TrainConfig, train_cell
from biases.ablation.together import train_together
from biases.ablation.training import build_model

MODEL = ModelConfig(attention="ega", layers=1, heads=2, dim=16, context=10, dropout=0.0)
TRAIN = TrainConfig(
    steps=4,
    batch=3,
    warmup=2,
    learning_rate=1e-3,
    evaluate_every=2,
    evaluation_windows=4,
    truncated_positions=12,
)
SEEDS = (3, 0, 7)


def cells(model=MODEL, train=TRAIN, seeds=SEEDS):
    return [Cell("arm", seed, model, train, "words") for seed in seeds]


def double(cell, vocab):
    return build_model(cell, vocab).double()


def flat(value):
    """The numbers in an outcome by where they are, and everything else as it is."""
    if isinstance(value, dict):
        return {f"{key}.{where}": x for key, each in value.items() for where, x in flat(each).items()}
    if isinstance(value, list):
        return flat(dict(enumerate(value)))
    return {"": value}


def assert_alike(found, expected, **tolerance):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for where, value in expected.items():
        wanted = pytest.approx(value, **tolerance) if isinstance(value, float) else value
        assert found[where] == wanted, where


def compare(of, build=build_model, **tolerance):
    together = train_together(of, TEXT, build=build)
    for cell, outcome in zip(of, together, strict=True):
        assert_alike(outcome, train_cell(cell, TEXT, build=build), **tolerance)
    return together


@pytest.mark.parametrize("attention", registry.names("layer", "sequence"))
def test_in_double_precision_every_layer_trains_as_it_does_alone(attention):
    # Rounding is 1e-16. The filters of ega-db2 and its kin have gradients of up to 1e7, which amplify it.
    compare(cells(replace(MODEL, attention=attention), seeds=(3, 0)), double, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("position", registry.names("position"))
def test_in_double_precision_every_position_trains_as_it_does_alone(position):
    compare(cells(replace(MODEL, attention="standard", position=position)), double, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("attention", ["standard", "alibi", "ega", "retention"])
def test_in_single_precision_losses_agree_over_tens_of_updates(attention):
    # 1e-7 a rounding; over 40 updates it was seen to grow to less than 1e-5.
    train = replace(TRAIN, steps=40, evaluate_every=10)
    compare(cells(replace(MODEL, attention=attention), train), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("attention", ["standard", "ega", "conv-lag-4", "swat"])
def test_each_seed_drops_what_it_drops_alone(attention):
    model = replace(MODEL, attention=attention, dropout=0.3)
    outcomes = compare(cells(model), double, rel=1e-9, abs=1e-10)
    assert len({outcome["curve"][-1]["train"] for outcome in outcomes}) == len(SEEDS)


def test_a_seed_does_not_depend_on_those_beside_it():
    model = replace(MODEL, dropout=0.3)
    pair = train_together(cells(model, seeds=(7, 1)), TEXT, build=double)
    three = train_together(cells(model), TEXT, build=double)
    assert_alike(pair[0], three[2], rel=1e-12, abs=1e-13)


def test_gradients_are_clipped_seed_by_seed():
    # With this bound every gradient is clipped, so that a norm over all seeds would show.
    clipped, free = (cells(train=replace(TRAIN, clip=clip, learning_rate=1e-2)) for clip in (1e-9, None))
    one = compare(clipped, double, rel=1e-9, abs=1e-10)
    other = compare(free, double, rel=1e-9, abs=1e-10)
    assert one[0]["metrics"]["full"] != pytest.approx(other[0]["metrics"]["full"], rel=1e-4)


class Root(nn.Module):
    """A factor whose gradient is infinite at a root of 0."""

    def __init__(self, norm, start):
        super().__init__()
        self.norm, self.root = norm, nn.Parameter(torch.tensor(start))

    def forward(self, x):
        return self.norm(x) * (1 + self.root.sqrt())


def spoiled(value):
    """Models of which that of seed 0 starts from ``value``, the others from 1."""

    def build(cell, vocab):
        model = build_model(cell, vocab)
        model.norm = Root(model.norm, value if cell.seed == 0 else 1.0)
        return model.double()

    return build


@pytest.mark.parametrize(("value", "at"), [(float("nan"), 0), (0.0, 2)])
def test_a_seed_that_diverges_leaves_the_others_as_they_are(value, at):
    outcomes = compare(cells(), spoiled(value), rel=1e-9, abs=1e-10)
    assert [outcome["status"] for outcome in outcomes] == ["ok", "diverged", "ok"]
    assert outcomes[1]["metrics"] == {"diverged_at": at}
    assert outcomes[1]["learned"] == {}


def test_training_ends_when_every_seed_has_diverged():
    events = []
    outcomes = train_together(cells(seeds=(0,)), TEXT, build=spoiled(float("nan")), progress=events.append)
    assert [outcome["status"] for outcome in outcomes] == ["diverged"]
    assert outcomes[0]["metrics"] == {"diverged_at": 0}
    assert events == []


def test_events_are_those_of_each_seed_alone():
    together, alone = [], {}
    train_together(cells(), TEXT, build=double, progress=together.append)
    for cell in cells():
        alone[cell.id] = []
        train_cell(cell, TEXT, build=double, progress=alone[cell.id].append)
    for name, events in alone.items():
        assert_alike([event for event in together if event["id"] == name], events, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_bfloat16_updates_agree_and_are_not_those_of_float32(dropout):
    model, train = replace(MODEL, dropout=dropout), replace(TRAIN, precision="bfloat16")
    # A rounding to 8 bits may fall on either side, 4e-3 of an activation; losses were seen to move by less than 2e-5.
    low = compare(cells(model, train), rel=2e-4, abs=2e-4)
    high = train_together(cells(model), TEXT)
    assert low[0]["curve"][-1]["train"] != high[0]["curve"][-1]["train"]
    assert low[0]["curve"][0]["validation"] == high[0]["curve"][0]["validation"]


def test_the_random_state_of_the_caller_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_together(cells(replace(MODEL, dropout=0.2)), TEXT)
    assert torch.equal(torch.get_rng_state(), before)


class Outside(Trainable):
    """Uses its scale past the module that holds it."""

    def __init__(self, vocab):
        super().__init__()
        self.embedding, self.scale = nn.Embedding(vocab, vocab), nn.Parameter(torch.ones(()))
        self.kept = [self.scale]

    def forward(self, tokens):
        return self.embedding(tokens) * self.kept[0]


class Noisy(Outside):
    def forward(self, tokens):
        return self.embedding(tokens) * self.scale * torch.rand(len(tokens), 1, 1)


class Branching(Outside):
    def forward(self, tokens):
        x = self.embedding(tokens) * self.scale
        return x if x.sum() > 0 else 2 * x


@pytest.mark.parametrize(
    ("kind", "expected"), [(Outside, "scale"), (Noisy, "random"), (Branching, "data-dependent control flow")]
)
def test_models_that_cannot_be_vectorised_over_are_refused(kind, expected):
    with pytest.raises(ValueError, match=f"cells that advance together: .*{expected}"):
        train_together(cells(), TEXT, build=lambda cell, vocab: kind(vocab))


def test_cells_of_several_configurations_are_refused():
    with pytest.raises(ValueError, match="cells that advance together"):
        train_together([*cells(), Cell("other", 1, MODEL, TRAIN, "words")], TEXT)
    with pytest.raises(ValueError, match="at least one"):
        train_together([], TEXT)


def test_precision_is_part_of_the_identity_only_where_it_is_not_the_default():
    (cell,) = cells(seeds=(0,))
    assert "precision" not in cell.config["train"]
    low = replace(cell, train=replace(TRAIN, precision="bfloat16"))
    assert low.id != cell.id
    assert Cell.from_config(low.config) == low
    with pytest.raises(ValueError, match="precision"):
        replace(TRAIN, precision="float8")


def benchmark(out, *arguments):
    script = Path(__file__).parent.parent / "benchmarks" / "together.py"
    command = [sys.executable, str(script), "--quick", "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_the_benchmark_times_every_way(tmp_path):
    out = tmp_path / "together.json"
    done = benchmark(out, "--only", "tiny")
    assert done.returncode == 0, done.stderr
    sizes = json.loads(out.read_text())["sizes"]
    assert set(sizes) == {"tiny/standard", "tiny/ega"}
    for size in sizes.values():
        seconds = size["seconds_per_update_and_seed"]
        assert set(seconds) == {"one", "two", "together", "two-together"}
        assert all(len(each["seconds"]) == size["size"]["rounds"] for each in seconds.values())
        gain = seconds["one"]["seconds"][0] / seconds["together"]["seconds"][0]
        found = size["gains"]["one/together"]
        assert found["rounds"] == 2
        other = seconds["one"]["seconds"][1] / seconds["together"]["seconds"][1]
        assert found["value"] == pytest.approx((gain + other) / 2)


def test_the_benchmark_counts_what_a_missing_device_leaves_out(tmp_path):
    done = benchmark(tmp_path / "together.json", "--device", "cuda:99")
    assert done.returncode == 3
    assert "7 sizes skipped" in done.stderr
    assert not (tmp_path / "together.json").exists()
