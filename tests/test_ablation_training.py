"""Training and evaluating one cell."""

import json
from dataclasses import replace

import pytest
import torch
from ablation_models import FAST, LEAKY, SMALL, TEXT, MeanModel, build, cell
from torch import nn

from biases.ablation import ModelConfig, TrainConfig, train_cell
from biases.ablation._loop import learning_rate
from biases.ablation.evaluation import (
    evaluation_windows,
    full_losses,
    measure_leak,
    sample_positions,
    truncated_losses,
)
from biases.ablation.training import build_model, generator, initialise, training_batch


class TestEvaluation:
    def test_windows_are_consecutive_and_targets_follow(self):
        tokens = torch.arange(25)
        inputs, targets = evaluation_windows(tokens, 4)
        assert inputs.shape == (6, 4)
        assert torch.equal(inputs.flatten(), torch.arange(24))
        assert torch.equal(targets, inputs + 1)
        assert evaluation_windows(torch.arange(24), 4)[0].shape == (5, 4)

    def test_fewer_windows_are_evenly_spaced(self):
        inputs, _ = evaluation_windows(torch.arange(41), 4, 5)
        assert inputs[:, 0].tolist() == [0, 8, 16, 24, 32]
        assert evaluation_windows(torch.arange(41), 4, 99)[0].shape == (10, 4)

    def test_too_few_tokens_are_refused(self):
        with pytest.raises(ValueError, match="at least context \\+ 1 = 5 tokens, got 4"):
            evaluation_windows(torch.arange(4), 4)

    def test_sampled_pairs_are_distinct_and_in_range(self):
        pairs = sample_positions(3, 4, 12, torch.Generator().manual_seed(0))
        assert sorted(map(tuple, pairs.tolist())) == [(w, t) for w in range(3) for t in range(4)]
        assert len(sample_positions(3, 4, 5, torch.Generator().manual_seed(0))) == 5

    def test_prefix_losses_match_a_loop_and_differ_from_the_window_only_for_a_leak(self):
        inputs, targets = evaluation_windows(TEXT.validation, 12, 4)
        pairs = sample_positions(4, 12, 48, torch.Generator().manual_seed(0))
        for config, leaks in ((SMALL, False), (LEAKY, True)):
            torch.manual_seed(0)
            model = MeanModel(len(TEXT.vocabulary), config).train()
            got = truncated_losses(model, inputs, targets, pairs, batch=3, device="cpu")
            for (window, t), loss in zip(pairs.tolist(), got.tolist(), strict=True):
                logits = model.eval()(inputs[window : window + 1, : t + 1])[0, -1]
                assert loss == pytest.approx(nn.functional.cross_entropy(logits, targets[window, t]).item(), abs=1e-5)
            full = full_losses(model, inputs, targets, batch=3, device="cpu")[pairs[:, 0], pairs[:, 1]]
            last = pairs[:, 1] == 11
            assert torch.allclose(got[last], full[last], atol=1e-5)
            assert torch.allclose(got, full, atol=1e-5) is not leaks

    def test_mode_is_restored(self):
        model = MeanModel(len(TEXT.vocabulary), SMALL).train()
        full_losses(model, *evaluation_windows(TEXT.validation, 12), batch=2, device="cpu")
        assert model.training


class TestTraining:
    def test_schedule(self):
        config = TrainConfig(steps=10, warmup=4, learning_rate=1.0)
        rates = [learning_rate(config, step) for step in range(1, 11)]
        assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
        assert rates[6] == pytest.approx(0.5)
        assert rates[-1] == pytest.approx(0.0)
        constant = replace(config, schedule="constant")
        assert [learning_rate(constant, step) for step in (4, 10)] == [1.0, 1.0]

    def test_batches_are_windows_of_the_text(self):
        x, y = training_batch(TEXT.train, 12, 64, generator(0, "batches"))
        assert x.shape == y.shape == (64, 12)
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert all(TEXT.decode(row) in TEXT.decode(TEXT.train) for row in y)
        shortest, _ = training_batch(torch.arange(13), 12, 8, generator(0, "batches"))
        assert torch.equal(shortest, torch.arange(12).expand(8, 12))

    def test_arms_start_equal_where_names_and_shapes_agree(self):
        models = []
        for attention in ("prefix-mean", "wider"):
            torch.manual_seed(0)
            model = MeanModel(len(TEXT.vocabulary), replace(SMALL, attention=attention))
            initialise(model, 7)
            models.append(model)
        for name in ("embedding.weight", "head.weight"):
            a, b = (model.get_parameter(name) for model in models)
            assert torch.equal(a, b)
            assert a.std().item() == pytest.approx(0.5, rel=0.2)
        first = models[0].get_parameter("head.weight").clone()
        assert not torch.equal(first, models[0].get_parameter("embedding.weight"))
        initialise(models[0], 8)
        assert not torch.equal(first, models[0].get_parameter("head.weight"))

    def test_parameters_without_a_declared_std_are_left(self):
        model = MeanModel(len(TEXT.vocabulary), replace(SMALL, attention="wider"))
        before = model.extra.clone()
        initialise(model, 0)
        assert torch.equal(before, model.extra)

    def test_arms_of_a_seed_see_the_same_batches(self, monkeypatch):
        from biases.ablation import training

        seen = []

        def record(*args):
            batch = training_batch(*args)
            seen.append(batch[0])
            return batch

        monkeypatch.setattr(training, "training_batch", record)
        for attention, seed in (("prefix-mean", 0), ("wider", 0), ("prefix-mean", 1)):
            model = replace(SMALL, attention=attention, dropout=0.2)
            train_cell(cell(seed=seed, model=model), TEXT, build=build)
        a, b, other = torch.stack(seen).split(6)
        assert torch.equal(a, b)
        assert not torch.equal(a, other)

    def test_training_learns_is_repeatable_and_leaves_the_random_state(self):
        config = replace(FAST, steps=60, evaluate_every=25)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first = train_cell(cell(train=config, model=replace(SMALL, dropout=0.1)), TEXT, build=build)
        assert torch.equal(before, torch.get_rng_state())
        second = train_cell(cell(train=config, model=replace(SMALL, dropout=0.1)), TEXT, build=build)
        assert first == second
        assert first["status"] == "ok"
        assert [point["step"] for point in first["curve"]] == [0, 25, 50, 60]
        assert first["curve"][-1]["validation"] == first["metrics"]["full"]
        assert first["metrics"]["full"] < first["curve"][0]["validation"] - 0.3
        assert first["metrics"]["windows"] == 8
        assert first["metrics"]["parameters"] == 2 * 8 * len(TEXT.vocabulary)

    def test_leak_is_zero_for_a_causal_model_and_found_in_a_leaking_one(self):
        causal = train_cell(cell(), TEXT, build=build)["metrics"]
        leaky = train_cell(cell(model=LEAKY), TEXT, build=build)["metrics"]
        assert causal["positions"] == leaky["positions"] == 40
        assert causal["leak"] == pytest.approx(0, abs=1e-5)
        assert abs(leaky["leak"]) > 1e-3
        assert leaky["leak_standard_error"] > 0
        for m in (causal, leaky):
            assert m["leak"] == pytest.approx(m["truncated"] - m["full_at_truncated"], abs=1e-9)

    def test_truncated_loss_can_be_left_out_or_taken_at_one_position(self):
        without = train_cell(cell(train=replace(FAST, truncated_positions=0)), TEXT, build=build)["metrics"]
        assert "leak" not in without
        one = train_cell(cell(train=replace(FAST, truncated_positions=1)), TEXT, build=build)["metrics"]
        assert "leak" in one
        assert not one.keys() & {"leak_standard_error", "leak_low", "leak_high", "truncated_low", "truncated_high"}

    def test_intervals_of_the_sampled_positions(self):
        draw = torch.Generator().manual_seed(0)
        full = torch.rand(30, 12, generator=draw, dtype=torch.float64)
        pairs = sample_positions(30, 12, 100, draw)
        truncated = full[pairs[:, 0], pairs[:, 1]] + torch.rand(100, generator=draw, dtype=torch.float64)
        leak = measure_leak(truncated, full, pairs)
        difference = truncated - full[pairs[:, 0], pairs[:, 1]]
        for mean, low, high, sample in (
            (leak.leak, leak.leak_low, leak.leak_high, difference),
            (leak.truncated, leak.truncated_low, leak.truncated_high, truncated),
        ):
            assert mean == pytest.approx(sample.mean().item())
            half = 1.959964 * sample.numpy().std(ddof=1) / 10
            assert (low, high) == pytest.approx((mean - half, mean + half))
        assert leak.leak_standard_error == pytest.approx(difference.numpy().std(ddof=1) / 10)

    def test_a_model_takes_an_absolute_encoding_beside_its_position(self):
        alone = ModelConfig(position="rotary", layers=1, heads=2, dim=8, context=12, dropout=0.0)
        beside = replace(alone, options={"model": {"absolute_too": True}})
        models = [build_model(cell(model=model), len(TEXT.vocabulary)) for model in (alone, beside)]
        added = {name for name, _ in models[1].named_parameters()} - {name for name, _ in models[0].named_parameters()}
        assert {models[1].get_parameter(name).shape for name in added} == {(12, 8)}

    def test_parts_tell_what_they_learned(self):
        model = ModelConfig(attention="ega", position="mope", layers=2, heads=2, dim=8, context=12, dropout=0.0)
        learned = train_cell(cell(model=model), TEXT)["learned"]
        gates = {f"blocks.{i}.attention.key_gate.{name}" for i in range(2) for name in ("tau", "alpha")}
        pairs = {f"position.{name}" for name in ("omega", "sigma", "product", "unclamped_product")}
        assert learned.keys() == gates | pairs
        assert all(len(learned[name]) == 2 for name in gates)
        assert all(len(learned[name]) == 4 for name in pairs)
        assert learned["blocks.0.attention.key_gate.alpha"] != [2.0, 2.0]
        products = [a * b for a, b in zip(learned["position.omega"], learned["position.sigma"], strict=True)]
        assert learned["position.product"] == pytest.approx(products)
        assert min(products) >= 5 - 1e-5
        # Updates are small here: weight decay has pulled some raw product below the bound that the clamp restores.
        assert min(learned["position.unclamped_product"]) < 5

    def test_learned_values_that_json_cannot_hold_are_left_out(self):
        def telling(cell, vocab):
            model = MeanModel(vocab, cell.model)
            model.learned = lambda: {"broken": torch.tensor([1.0, float("nan")]), "kept": torch.tensor([[2.0], [3.0]])}
            return model

        assert train_cell(cell(), TEXT, build=telling)["learned"] == {"kept": [2.0, 3.0]}

    def test_divergence_is_an_outcome(self):
        outcome = train_cell(cell(arm="nan"), TEXT, build=build)
        assert outcome["status"] == "diverged"
        assert outcome["metrics"] == {"diverged_at": 0}
        assert "not finite at step 0" in outcome["error"]
        exploding = replace(FAST, steps=40, warmup=0, learning_rate=1e30, clip=None, evaluate_every=40)
        outcome = train_cell(cell(train=exploding), TEXT, build=build)
        assert outcome["status"] == "diverged"
        assert 1 <= outcome["metrics"]["diverged_at"] <= 5
        json.dumps(outcome, allow_nan=False)

    def test_progress_names_the_cell(self):
        events = []
        train_cell(cell(), TEXT, build=build, progress=events.append)
        assert {event["event"] for event in events} == {"step", "evaluation"}
        assert {(event["id"], event["steps"]) for event in events} == {(cell().id, 6)}
        assert [event["step"] for event in events if event["event"] == "evaluation"] == [0, 3, 6]

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match="splits of at least context \\+ 1 = 1001 tokens"):
            train_cell(cell(model=replace(SMALL, context=1000)), TEXT, build=build)
        with pytest.raises(ValueError, match="got 'abacus'"):
            train_cell(cell(), TEXT, build=build, device="abacus")
