import contextlib
import errno
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from biases import _files
from biases.ablation import (
    Cell,
    Grid,
    ImageCell,
    ImageGrid,
    ImageModelConfig,
    Images,
    ImageTrainConfig,
    ModelConfig,
    TrainConfig,
    _locks,
    _provenance,
    kinds,
    load_results,
    paired_values,
    run_grid,
    table,
    train_cell,
)
from biases.ablation._loop import learning_rate
from biases.ablation.data import Text, load_text
from biases.ablation.evaluation import (
    evaluation_windows,
    full_losses,
    measure_leak,
    sample_positions,
    truncated_losses,
)
from biases.ablation.training import build_model, generator, initialise, training_batch

SMALL = ModelConfig(attention="prefix-mean", layers=1, heads=1, dim=8, context=12, dropout=0.0)
LEAKY = replace(SMALL, attention="window-mean")
FAST = TrainConfig(
    steps=6,
    batch=4,
    warmup=2,
    learning_rate=1e-2,
    evaluate_every=3,
    evaluation_windows=8,
    truncated_positions=40,
)


class MeanModel(nn.Module):
    """Predicts from the mean of the embeddings of the prefix (causal) or of the window (not)."""

    def __init__(self, vocab, config):
        super().__init__()
        self.prefix = config.attention == "prefix-mean"
        if config.attention == "wider":
            self.extra = nn.Parameter(torch.randn(3))
        self.embedding = nn.Embedding(vocab, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.dim, vocab, bias=False)

    def forward(self, tokens):
        x = self.dropout(self.embedding(tokens))
        if self.prefix:
            counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype).unsqueeze(-1)
            return self.head(x.cumsum(1) / counts)
        return self.head(x.mean(1, keepdim=True).expand_as(x) + x)

    def parameter_groups(self, weight_decay):
        return [{"params": list(self.parameters()), "weight_decay": weight_decay}]

    def initial_std(self, name):
        return 0.5 if name.endswith("weight") else None


def build(cell, vocab):
    if cell.arm == "broken":
        raise RuntimeError("this arm cannot be built")
    model = MeanModel(vocab, cell.model)
    if cell.arm == "nan":
        with torch.no_grad():
            model.initial_std = lambda name: None
            model.head.weight.fill_(float("nan"))
    return model


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text():
    return Text.from_string("words", "the quick brown fox jumps over the lazy dog; " * 60)


@pytest.fixture
def text_file(tmp_path, text):
    path = tmp_path / "words.txt"
    path.write_text(text.decode())
    return str(path)


@pytest.fixture
def grid(text_file):
    return Grid({"causal": SMALL, "leaky": LEAKY}, (0, 1), FAST, data=text_file)


def cell(arm="causal", seed=0, model=SMALL, train=FAST):
    return Cell(arm, seed, model, train, "words")


def files(out):
    return sorted(path.name for path in (out / "cells").iterdir() if not path.name.startswith(".takeover"))


class TestSpec:
    def test_identity_depends_on_configuration_and_nothing_else(self):
        assert cell().id == cell().id
        assert len(cell().id) == 12
        assert int(cell().id, 16) >= 0
        others = [
            cell(arm="other"),
            cell(seed=1),
            cell(model=LEAKY),
            cell(train=replace(FAST, steps=7)),
            replace(cell(), data="pydoc"),
            cell(model=replace(SMALL, options={"attention": {"scales": 2}})),
        ]
        assert len({c.id for c in [cell(), *others]}) == 7

    def test_equal_numbers_and_mappings_hash_alike(self):
        a = cell(train=replace(FAST, clip=1, betas=[0.9, 0.95]), model=replace(SMALL, options={"attention": {}}))
        assert a == cell()
        assert a.id == cell().id
        options = [{"a": 1, "b": 2}, {"b": 2, "a": 1}]
        ids = {cell(model=replace(SMALL, options={"position": o})).id for o in options}
        assert len(ids) == 1

    def test_configuration_round_trips_through_json(self):
        original = cell(model=replace(SMALL, options={"attention": {"scales": [1, 2]}}))
        again = Cell.from_config(json.loads(json.dumps(original.config)))
        assert again == original
        assert again.id == original.id

    def test_options_are_a_copy(self):
        options = {"attention": {"scales": [1]}}
        config = ModelConfig(options=options)
        options["attention"]["scales"].append(2)
        assert config.options == {"attention": {"scales": [1]}}

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: ModelConfig(dim=10, heads=4), "ModelConfig dim: expected a multiple of heads=4, got 10"),
            (lambda: ModelConfig(dropout=1.0), r"expected a number in \[0, 1\), got 1.0"),
            (lambda: ModelConfig(context=0), "ModelConfig context"),
            (lambda: ModelConfig(attention=""), "ModelConfig attention: expected a name"),
            (lambda: ModelConfig(options={"attntion": {}}), "did you mean 'attention'"),
            (lambda: ModelConfig(options={"model": {"absolute": True}}), "did you mean 'absolute_too'"),
            (lambda: ModelConfig(options={"model": {"absolute_too": 1}}), "expected True or False, got 1"),
            (lambda: ModelConfig(options={"attention": {"f": print}}), "that JSON can hold"),
            (lambda: ModelConfig(options={"attention": {"x": float("inf")}}), "that JSON can hold"),
            (lambda: TrainConfig(steps=100), "fewer updates than steps=100, got 300"),
            (lambda: replace(FAST, steps=True), "TrainConfig steps"),
            (lambda: replace(FAST, learning_rate=0), r"in \(0, inf\), got 0"),
            (lambda: replace(FAST, learning_rate=float("nan")), "TrainConfig learning_rate"),
            (lambda: replace(FAST, betas=(0.9, 1.0)), "TrainConfig betas"),
            (lambda: replace(FAST, betas=0.9), "expected two numbers, got 0.9"),
            (lambda: replace(FAST, clip=0), "TrainConfig clip"),
            (lambda: replace(FAST, schedule="cosin"), "did you mean 'cosine'"),
            (lambda: replace(FAST, evaluation_windows=0), "TrainConfig evaluation_windows"),
            (lambda: replace(FAST, truncated_positions=-1), "TrainConfig truncated_positions"),
            (lambda: cell(seed=-1), "Cell seed: expected an integer of at least 0, got -1"),
            (lambda: cell(seed=2**63), r"Cell seed: expected at most 2\^63 - 1, got 9223372036854775808"),
            (
                lambda: replace(FAST, learning_rate=10**400),
                r"TrainConfig learning_rate: expected a number in \(0, inf\)",
            ),
            (
                lambda: Grid({"a": SMALL}, range(10_001), FAST),
                "Grid seeds: expected at most 10000 seeds, got 10001 seeds",
            ),
            (lambda: ModelConfig(options={"attention": {"dropout": 0}}), "options.attention: expected no 'dropout'"),
            (
                lambda: ModelConfig(attention="ega[low=1]", options={"attention": {"low": 1}}),
                r"options.attention: expected no 'low', which 'ega\[low=1\]' has already",
            ),
            (lambda: cell(model="standard"), "Cell model: expected a ModelConfig, got str"),
            (lambda: Cell.from_config({"arm": "a"}), "expected the fields of a Cell"),
            (lambda: Grid({}, (0,), FAST), "at least one arm"),
            (lambda: Grid({"a": SMALL}, (), FAST), "at least one seed"),
            (lambda: Grid({"a": SMALL}, (1, 1), FAST), "each once"),
            (lambda: Grid({"a": SMALL, "b": replace(SMALL, context=8)}, (0,), FAST), "one context"),
        ],
    )
    def test_bad_values_are_refused(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()

    def test_cells_come_in_whole_pairs(self, grid):
        assert [(c.arm, c.seed) for c in grid.cells()] == [
            ("causal", 0),
            ("leaky", 0),
            ("causal", 1),
            ("leaky", 1),
        ]


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

    def test_prefix_losses_match_a_loop_and_differ_from_the_window_only_for_a_leak(self, text):
        inputs, targets = evaluation_windows(text.validation, 12, 4)
        pairs = sample_positions(4, 12, 48, torch.Generator().manual_seed(0))
        for config, leaks in ((SMALL, False), (LEAKY, True)):
            torch.manual_seed(0)
            model = MeanModel(len(text.vocabulary), config).train()
            got = truncated_losses(model, inputs, targets, pairs, batch=3, device="cpu")
            for (window, t), loss in zip(pairs.tolist(), got.tolist(), strict=True):
                logits = model.eval()(inputs[window : window + 1, : t + 1])[0, -1]
                assert loss == pytest.approx(nn.functional.cross_entropy(logits, targets[window, t]).item(), abs=1e-5)
            full = full_losses(model, inputs, targets, batch=3, device="cpu")[pairs[:, 0], pairs[:, 1]]
            last = pairs[:, 1] == 11
            assert torch.allclose(got[last], full[last], atol=1e-5)
            assert torch.allclose(got, full, atol=1e-5) is not leaks

    def test_mode_is_restored(self, text):
        model = MeanModel(len(text.vocabulary), SMALL).train()
        full_losses(model, *evaluation_windows(text.validation, 12), batch=2, device="cpu")
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

    def test_batches_are_windows_of_the_text(self, text):
        x, y = training_batch(text.train, 12, 64, generator(0, "batches"))
        assert x.shape == y.shape == (64, 12)
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert all(text.decode(row) in text.decode(text.train) for row in y)
        shortest, _ = training_batch(torch.arange(13), 12, 8, generator(0, "batches"))
        assert torch.equal(shortest, torch.arange(12).expand(8, 12))

    def test_arms_start_equal_where_names_and_shapes_agree(self, text):
        models = []
        for attention in ("prefix-mean", "wider"):
            torch.manual_seed(0)
            model = MeanModel(len(text.vocabulary), replace(SMALL, attention=attention))
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

    def test_parameters_without_a_declared_std_are_left(self, text):
        model = MeanModel(len(text.vocabulary), replace(SMALL, attention="wider"))
        before = model.extra.clone()
        initialise(model, 0)
        assert torch.equal(before, model.extra)

    def test_arms_of_a_seed_see_the_same_batches(self, text, monkeypatch):
        from biases.ablation import training

        seen = []

        def record(*args):
            batch = training_batch(*args)
            seen.append(batch[0])
            return batch

        monkeypatch.setattr(training, "training_batch", record)
        for attention, seed in (("prefix-mean", 0), ("wider", 0), ("prefix-mean", 1)):
            model = replace(SMALL, attention=attention, dropout=0.2)
            train_cell(cell(seed=seed, model=model), text, build=build)
        a, b, other = torch.stack(seen).split(6)
        assert torch.equal(a, b)
        assert not torch.equal(a, other)

    def test_training_learns_is_repeatable_and_leaves_the_random_state(self, text):
        config = replace(FAST, steps=60, evaluate_every=25)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first = train_cell(cell(train=config, model=replace(SMALL, dropout=0.1)), text, build=build)
        assert torch.equal(before, torch.get_rng_state())
        second = train_cell(cell(train=config, model=replace(SMALL, dropout=0.1)), text, build=build)
        assert first == second
        assert first["status"] == "ok"
        assert [point["step"] for point in first["curve"]] == [0, 25, 50, 60]
        assert first["curve"][-1]["validation"] == first["metrics"]["full"]
        assert first["metrics"]["full"] < first["curve"][0]["validation"] - 0.3
        assert first["metrics"]["windows"] == 8
        assert first["metrics"]["parameters"] == 2 * 8 * len(text.vocabulary)

    def test_leak_is_zero_for_a_causal_model_and_found_in_a_leaking_one(self, text):
        causal = train_cell(cell(), text, build=build)["metrics"]
        leaky = train_cell(cell(model=LEAKY), text, build=build)["metrics"]
        assert causal["positions"] == leaky["positions"] == 40
        assert causal["leak"] == pytest.approx(0, abs=1e-5)
        assert abs(leaky["leak"]) > 1e-3
        assert leaky["leak_standard_error"] > 0
        for m in (causal, leaky):
            assert m["leak"] == pytest.approx(m["truncated"] - m["full_at_truncated"], abs=1e-9)

    def test_truncated_loss_can_be_left_out_or_taken_at_one_position(self, text):
        without = train_cell(cell(train=replace(FAST, truncated_positions=0)), text, build=build)["metrics"]
        assert "leak" not in without
        one = train_cell(cell(train=replace(FAST, truncated_positions=1)), text, build=build)["metrics"]
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

    def test_a_model_takes_an_absolute_encoding_beside_its_position(self, text):
        alone = ModelConfig(position="rotary", layers=1, heads=2, dim=8, context=12, dropout=0.0)
        beside = replace(alone, options={"model": {"absolute_too": True}})
        models = [build_model(cell(model=model), len(text.vocabulary)) for model in (alone, beside)]
        added = {name for name, _ in models[1].named_parameters()} - {name for name, _ in models[0].named_parameters()}
        assert {models[1].get_parameter(name).shape for name in added} == {(12, 8)}

    def test_parts_tell_what_they_learned(self, text):
        model = ModelConfig(attention="ega", position="mope", layers=2, heads=2, dim=8, context=12, dropout=0.0)
        learned = train_cell(cell(model=model), text)["learned"]
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

    def test_learned_values_that_json_cannot_hold_are_left_out(self, text):
        def telling(cell, vocab):
            model = MeanModel(vocab, cell.model)
            model.learned = lambda: {"broken": torch.tensor([1.0, float("nan")]), "kept": torch.tensor([[2.0], [3.0]])}
            return model

        assert train_cell(cell(), text, build=telling)["learned"] == {"kept": [2.0, 3.0]}

    def test_divergence_is_an_outcome(self, text):
        outcome = train_cell(cell(arm="nan"), text, build=build)
        assert outcome["status"] == "diverged"
        assert outcome["metrics"] == {"diverged_at": 0}
        assert "not finite at step 0" in outcome["error"]
        exploding = replace(FAST, steps=40, warmup=0, learning_rate=1e30, clip=None, evaluate_every=40)
        outcome = train_cell(cell(train=exploding), text, build=build)
        assert outcome["status"] == "diverged"
        assert 1 <= outcome["metrics"]["diverged_at"] <= 5
        json.dumps(outcome, allow_nan=False)

    def test_progress_names_the_cell(self, text):
        events = []
        train_cell(cell(), text, build=build, progress=events.append)
        assert {event["event"] for event in events} == {"step", "evaluation"}
        assert {(event["id"], event["steps"]) for event in events} == {(cell().id, 6)}
        assert [event["step"] for event in events if event["event"] == "evaluation"] == [0, 3, 6]

    def test_bad_input_is_refused(self, text):
        with pytest.raises(ValueError, match="splits of at least context \\+ 1 = 1001 tokens"):
            train_cell(cell(model=replace(SMALL, context=1000)), text, build=build)
        with pytest.raises(ValueError, match="got 'abacus'"):
            train_cell(cell(), text, build=build, device="abacus")


class TestGrid:
    def test_results_hold_what_a_rerun_needs(self, grid, tmp_path):
        results = run_grid(grid, tmp_path / "run", build=build)
        assert [(r["arm"], r["seed"]) for r in results] == [(c.arm, c.seed) for c in grid.cells()]
        assert files(tmp_path / "run") == sorted(f"{c.id}.json" for c in grid.cells())
        result = results[0]
        assert result["schema"] == 1
        assert result["status"] == "ok"
        assert set(result["versions"]) == {"python", "torch", "numpy", "biases", "code"}
        assert {"git", "seconds", "started", "device", "curve", "error"} <= result.keys()
        assert result["data"]["sha256"] == load_text(grid.data).sha256
        again = train_cell(Cell.from_config(result["config"]), load_text(grid.data), build=build)
        assert again["metrics"] == result["metrics"]
        assert load_results(tmp_path / "run") == sorted(results, key=lambda r: (r["arm"], r["seed"]))

    def test_finished_cells_are_not_run_again(self, grid, tmp_path):
        first = run_grid(grid, tmp_path, build=build)
        events = []
        assert run_grid(grid, tmp_path, build=build, progress=events.append) == first
        assert [event["event"] for event in events] == ["skipped"] * 4

    def test_failures_are_results_and_retried_only_on_request(self, grid, tmp_path):
        mixed = replace(grid, arms={"broken": SMALL, "nan": SMALL, "causal": SMALL}, seeds=(0,))
        results = run_grid(mixed, tmp_path, build=build)
        assert [r["status"] for r in results] == ["failed", "diverged", "ok"]
        assert "this arm cannot be built" in results[0]["error"]
        for retry, expected in ((False, []), (True, ["broken", "nan"])):
            events = []
            run_grid(mixed, tmp_path, build=build, retry_failed=retry, progress=events.append)
            assert [e["arm"] for e in events if e["event"] == "started"] == expected
        assert len(load_results(tmp_path)) == 3

    def test_a_refused_configuration_stops_before_anything_is_written(self, grid, tmp_path):
        def refuse(cell, vocab):
            raise ValueError("unknown attention")

        with pytest.raises(ValueError, match="unknown attention"):
            run_grid(grid, tmp_path / "run", build=refuse)
        with pytest.raises(ValueError, match="workers: expected"):
            run_grid(grid, tmp_path / "run", workers=0, build=build)
        assert not (tmp_path / "run").exists()

    def test_stop_keeps_what_is_finished(self, grid, tmp_path):
        finished = []
        results = run_grid(
            grid,
            tmp_path,
            build=build,
            progress=lambda e: finished.append(e) if e["event"] == "finished" else None,
            stop=lambda: len(finished) >= 2,
        )
        assert [(r["arm"], r["seed"]) for r in results] == [("causal", 0), ("leaky", 0)]
        assert len(run_grid(grid, tmp_path, build=build)) == 4

    def test_interrupt_keeps_finished_cells_and_no_lock(self, grid, tmp_path):
        def interrupt(event):
            if event["event"] == "step" and event["arm"] == "leaky":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_grid(grid, tmp_path, build=build, progress=interrupt)
        assert files(tmp_path) == [f"{grid.cells()[0].id}.json"]

    def test_full_disk_leaves_the_existing_result(self, grid, tmp_path, monkeypatch):
        failing = replace(grid, arms={"broken": SMALL}, seeds=(0,))
        run_grid(failing, tmp_path, build=build)
        before = {path: path.read_bytes() for path in (tmp_path / "cells").glob("*.json")}

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(_files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run_grid(failing, tmp_path, build=build, retry_failed=True)
        assert {path: path.read_bytes() for path in (tmp_path / "cells").glob("*.json")} == before
        assert files(tmp_path) == [path.name for path in before]

    def test_damaged_result_is_run_again_and_litter_removed(self, grid, tmp_path):
        run_grid(grid, tmp_path, build=build)
        path = tmp_path / "cells" / f"{grid.cells()[0].id}.json"
        path.write_text(path.read_text()[:50])
        (path.parent / f".{path.name}.1-abc.tmp").write_text("half")
        assert [r["status"] for r in run_grid(grid, tmp_path, build=build)] == ["ok"] * 4
        assert len(files(tmp_path)) == 4

    def test_results_of_another_text_are_not_mixed_in(self, grid, tmp_path):
        run_grid(grid, tmp_path, build=build)
        Path(grid.data).write_text("another text of the same name altogether " * 40)
        with pytest.raises(ValueError, match="use another output directory"):
            run_grid(grid, tmp_path, build=build)
        assert len(files(tmp_path)) == 4

    def test_workers_give_the_same_numbers(self, grid, tmp_path):
        here = run_grid(grid, tmp_path / "here", build=build)
        events = []
        pooled = run_grid(grid, tmp_path / "pool", build=build, workers=2, progress=events.append)
        assert [r["metrics"] for r in pooled] == [r["metrics"] for r in here]
        assert [r["curve"] for r in pooled] == [r["curve"] for r in here]
        assert {r["threads"] for r in pooled} == {1}
        assert sum(e["event"] == "finished" for e in events) == 4
        assert files(tmp_path / "pool") == files(tmp_path / "here")

    def test_interrupt_ends_the_workers_and_their_locks(self, grid, tmp_path):
        long = replace(grid, train=replace(FAST, steps=10**6))

        def interrupt(event):
            if event["event"] == "step":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_grid(long, tmp_path, build=build, workers=2, progress=interrupt)
        assert files(tmp_path) == []

    def test_a_shard_is_run_alone(self, grid, tmp_path):
        results = run_grid(grid.shard(2, 2), tmp_path, build=build)
        assert [(r["arm"], r["seed"]) for r in results] == [("causal", 1), ("leaky", 1)]
        assert len(run_grid(grid.shard(1, 2), tmp_path, build=build)) == 2
        assert files(tmp_path) == sorted(f"{c.id}.json" for c in grid.cells())

    def test_results_say_how_and_for_what_they_were_run(self, grid, tmp_path):
        results = run_grid(grid, tmp_path, build=build, study={"name": "words", "size": "small"})
        assert {json.dumps(r["execution"]) for r in results} == {'{"workers": 1, "together": 1}'}
        assert {json.dumps(r["study"]) for r in results} == {'{"name": "words", "size": "small"}'}

    def test_a_refused_arm_is_named(self, grid, tmp_path):
        def refuse(cell, vocab):
            if cell.arm == "leaky":
                raise ValueError("attention: expected another")
            return build(cell, vocab)

        with pytest.raises(ValueError, match="arm 'leaky': attention: expected another"):
            run_grid(grid, tmp_path, build=refuse)

    def test_units_can_be_run_elsewhere(self, grid, tmp_path):
        opened = []

        class Inline:
            slots = 3

            def __init__(self, data, work):
                self.data, self.work, self.told, self.units = data, work, [], []
                opened.append(self)

            def submit(self, cells):
                self.units.append(cells)
                future = Future()
                future.set_result(self.work(cells, self.data, self.told.append))
                return future

            def events(self):
                while self.told:
                    yield self.told.pop(0)

        @contextlib.contextmanager
        def open_inline(data, work):
            yield Inline(data, work)

        # The device is of the machines that the executor has.
        run_grid(grid, tmp_path, build=build, device="cuda:7", executor=open_inline, stop=lambda: True)
        assert opened[0].work.keywords["device"] == "cuda:7"
        events = []
        results = run_grid(grid, tmp_path, build=build, executor=open_inline, progress=events.append, together=2)
        assert [len(unit) for unit in opened[1].units] == [2, 2]
        assert {r["status"] for r in results} == {"ok"}
        assert "step" in {event["event"] for event in events}
        assert files(tmp_path) == sorted(f"{c.id}.json" for c in grid.cells())

    def test_what_dies_elsewhere_is_reported_and_its_locks_given_back(self, grid, tmp_path):
        class Dying:
            slots = 1

            def submit(self, cells):
                future = Future()
                future.set_exception(BrokenExecutor("the node is gone"))
                return future

            def events(self):
                return iter(())

        @contextlib.contextmanager
        def open_dying(data, work):
            yield Dying()

        with pytest.raises(RuntimeError, match=rf"in flight were {grid.cells()[0].id}.*the node is gone"):
            run_grid(grid, tmp_path, build=build, executor=open_dying)
        assert files(tmp_path) == []

    def test_workers_need_an_importable_build(self, grid, tmp_path):
        with pytest.raises(ValueError, match="expected an importable function"):
            run_grid(grid, tmp_path, build=lambda cell, vocab: build(cell, vocab), workers=2)


class TestTogether:
    @pytest.fixture
    def real(self, grid):
        model = ModelConfig(layers=1, heads=2, dim=8, context=12, dropout=0.0)
        return replace(grid, arms={"standard": model, "ega": replace(model, attention="ega")}, seeds=(0, 1, 2))

    def test_results_are_those_of_one_by_one(self, real, tmp_path):
        alone = run_grid(real, tmp_path / "alone")
        together = run_grid(real, tmp_path / "together", together=2)
        assert [r["id"] for r in together] == [r["id"] for r in alone]
        # The third seed is alone.
        assert [r["execution"]["together"] for r in together] == [2, 2, 2, 2, 1, 1]
        for a, b in zip(alone, together, strict=True):
            assert b["metrics"] == pytest.approx(a["metrics"], abs=1e-4)
            assert b["seconds"] > 0

    def test_what_is_left_of_a_unit_is_run(self, real, tmp_path):
        one = replace(real, arms={"ega": real.arms["ega"]}, seeds=(1,))
        run_grid(one, tmp_path)
        held = tmp_path / "cells" / f"{real.cells()[0].id}.lock"
        assert _locks.acquire(held)
        events = []
        run_grid(real, tmp_path, together=3, progress=events.append)
        by_kind = {
            kind: [(e["arm"], e["seed"]) for e in events if e["event"] == kind] for kind in ("started", "locked")
        }
        assert by_kind["started"] == [("standard", 1), ("standard", 2), ("ega", 0), ("ega", 2)]
        assert by_kind["locked"] == [("standard", 0)]
        _locks.release(held)
        run_grid(real, tmp_path, together=3)
        assert files(tmp_path) == sorted(f"{c.id}.json" for c in real.cells())

    def test_what_cannot_advance_together_is_run_one_by_one(self, grid, tmp_path, monkeypatch):
        def refuse(*arguments, **options):
            raise ValueError("no stacking here")

        monkeypatch.setattr("biases.ablation.together.train_together", refuse)
        alone = run_grid(grid, tmp_path / "alone", build=build)
        together = run_grid(grid, tmp_path / "together", build=build, together=2)
        assert [r["metrics"] for r in together] == [r["metrics"] for r in alone]
        expected = {"workers": 1, "together": 1, "alone_because": "ValueError: no stacking here"}
        assert [r["execution"] for r in together] == [expected] * 4

    def test_a_broken_arm_is_a_failed_result_of_each_seed(self, grid, tmp_path):
        results = run_grid(replace(grid, arms={"broken": SMALL}), tmp_path, build=build, together=2)
        assert [r["status"] for r in results] == ["failed", "failed"]
        assert "this arm cannot be built" in results[1]["error"]

    def test_images_do_not(self, tmp_path):
        with pytest.raises(ValueError, match="together: expected 1 for images, got 2"):
            run_grid(ImageGrid({"a": ImageModelConfig("x")}, (0,), ImageTrainConfig()), tmp_path, together=2)


class Brightness(nn.Module):
    """Classifies by the mean of each channel."""

    def __init__(self, images):
        super().__init__()
        self.head = nn.Linear(images.channels, len(images.classes))

    def forward(self, images):
        return self.head(images.mean((2, 3)))

    def initial_std(self, name):
        return 0.1 if name == "head.weight" else None


def build_brightness(cell, images):
    if cell.arm == "broken":
        raise RuntimeError("this arm cannot be built")
    return Brightness(images)


class TestImages:
    @pytest.fixture
    def grid(self, monkeypatch):
        draw = torch.Generator().manual_seed(0)

        def split(count):
            labels = torch.arange(count) % 2
            pixels = torch.randint(0, 100, (count, 1, 4, 4), generator=draw) + 100 * labels[:, None, None, None]
            return pixels.to(torch.uint8), labels

        images = Images("squares", "5" * 64, ("dark", "bright"), *split(40), *split(20))
        monkeypatch.setattr(kinds, "IMAGES", replace(kinds.IMAGES, load=lambda name: images))
        monkeypatch.setattr(kinds, "KINDS", {"text": kinds.TEXT, "images": kinds.IMAGES})
        train = ImageTrainConfig(steps=30, batch=8, warmup=2, learning_rate=0.1, evaluate_every=15)
        model = ImageModelConfig("brightness")
        return ImageGrid({"one": model, "two": replace(model, options={"size": "other"})}, (0, 1), train, "squares")

    @pytest.mark.parametrize("workers", [1, 2])
    def test_images_are_run_and_stored_as_texts_are(self, grid, tmp_path, workers):
        events = []
        results = run_grid(grid, tmp_path, build=build_brightness, workers=workers, progress=events.append)
        assert [(r["arm"], r["seed"], r["status"]) for r in results] == [
            ("one", 0, "ok"),
            ("two", 0, "ok"),
            ("one", 1, "ok"),
            ("two", 1, "ok"),
        ]
        assert files(tmp_path) == sorted(f"{c.id}.json" for c in grid.cells())
        assert results[0]["metrics"]["test_accuracy"] > 0.9
        # Both arms are one model here: a seed's order and starts are the same in all arms.
        assert results[0]["metrics"] == results[1]["metrics"] != results[2]["metrics"]
        assert {e["arm"] for e in events if e["event"] == "step"} == {"one", "two"}
        again = []
        assert run_grid(grid, tmp_path, build=build_brightness, progress=again.append) == results
        assert [e["event"] for e in again] == ["skipped"] * 4
        seeds, a, b = paired_values(load_results(tmp_path), "one", "two", "test_loss")
        assert (seeds, a) == ([0, 1], b)

    def test_identity(self, grid):
        cells = grid.cells()
        assert len({c.id for c in cells}) == 4
        assert Cell.from_config(json.loads(json.dumps(cells[1].config))) == cells[1]
        assert replace(cells[0], data="digits").id != cells[0].id

    def test_failures_are_results(self, grid, tmp_path):
        mixed = replace(grid, arms={"broken": ImageModelConfig("x"), "one": grid.arms["one"]}, seeds=(0,))
        results = run_grid(mixed, tmp_path, build=build_brightness)
        assert [r["status"] for r in results] == ["failed", "ok"]

    def test_what_every_cell_would_fail_on_is_refused_first(self, grid, tmp_path):
        for train, message in ((replace(grid.train, flip=True), "flip"), (replace(grid.train, shift=4), "shift")):
            with pytest.raises(ValueError, match=f"ImageTrainConfig {message} with images"):
                run_grid(replace(grid, train=train), tmp_path / "out", build=build_brightness)
        with pytest.raises(ValueError, match=r"arm 'one': .*brightness"):
            run_grid(grid, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_less_precise_updates_are_another_cell_with_other_numbers(self, grid, tmp_path):
        rough = replace(grid, train=replace(grid.train, precision="bfloat16"))
        precise, other = (run_grid(each, tmp_path, build=build_brightness) for each in (grid, rough))
        assert len(files(tmp_path)) == 8
        assert other[0]["metrics"]["test_loss"] == pytest.approx(precise[0]["metrics"]["test_loss"], rel=0.1)
        assert other[0]["metrics"]["test_loss"] != precise[0]["metrics"]["test_loss"]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: ImageModelConfig(""), "ImageModelConfig name: expected a name"),
            (lambda: ImageModelConfig("x", {"f": print}), "that JSON can hold"),
            (lambda: ImageModelConfig("x", ["a"]), "a mapping from names"),
            (lambda: ImageModelConfig("x", {"channels": 3}), "no 'channels', which the images decide"),
            (lambda: ImageTrainConfig(precision="float16"), "ImageTrainConfig precision: expected one of"),
            (lambda: ImageCell("a", 0, ModelConfig(), ImageTrainConfig()), "expected a ImageModelConfig"),
            (lambda: ImageGrid({}, (0,), ImageTrainConfig()), "ImageGrid arms: expected at least one arm"),
        ],
    )
    def test_bad_values_are_refused(self, make, message):
        with pytest.raises(ValueError, match=message):
            make()


OTHER_PROCESS = """
import sys, time
sys.path[:0] = {paths!r}
from dataclasses import replace
from test_ablation import FAST, LEAKY, SMALL, build
from biases.ablation import Grid, run_grid

grid = Grid({{"causal": SMALL, "leaky": LEAKY}}, (0, 1), replace(FAST, steps={steps}), data={data!r})

def tell(event):
    print(event["event"], event["id"], flush=True)
    if event["event"] == "step" and event["arm"] == {hang_in!r}:
        time.sleep(600)

run_grid(grid, {out!r}, build=build, progress=tell, workers={workers})
"""


def start_process(grid, out, steps, workers=1, hang_in=None):
    paths = [str(Path(__file__).parent), *sys.path]
    code = OTHER_PROCESS.format(
        paths=paths, data=grid.data, out=str(out), steps=steps, workers=workers, hang_in=hang_in
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def wait_for(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return line.split()[1]
    raise AssertionError(f"the process ended without {start!r}")


class TestSharing:
    def test_killed_run_loses_only_the_cell_in_flight(self, grid, tmp_path):
        first, second, *_ = grid.cells()
        process = start_process(grid, tmp_path, FAST.steps, hang_in=second.arm)
        try:
            while wait_for(process, "step") != second.id:
                pass
        finally:
            process.kill()
        # Not reaped: a killed process that its parent has not waited for is dead all the same.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        events = []
        assert files(tmp_path) == sorted([f"{first.id}.json", f"{second.id}.lock"])
        assert len(run_grid(grid, tmp_path, build=build, progress=events.append)) == 4
        assert [e["id"] for e in events if e["event"] == "skipped"] == [first.id]
        assert files(tmp_path) == sorted(f"{c.id}.json" for c in grid.cells())
        process.wait()
        process.stdout.close()

    def test_processes_on_one_directory_do_not_run_a_cell_twice(self, grid, tmp_path):
        steps = 40
        shared = replace(grid, train=replace(FAST, steps=steps))
        processes = [start_process(grid, tmp_path / "run", steps) for _ in range(2)]
        outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        started = [line.split()[1] for lines in outputs for line in lines if line.startswith("started")]
        assert sorted(started) == sorted(c.id for c in shared.cells())
        assert files(tmp_path / "run") == sorted(f"{c.id}.json" for c in shared.cells())

    def test_cells_held_by_a_living_process_are_left_to_it(self, grid, tmp_path):
        held = grid.cells()[1]
        lock = tmp_path / "cells" / f"{held.id}.lock"
        lock.parent.mkdir()
        assert _locks.acquire(lock)
        events = []
        results = run_grid(grid, tmp_path, build=build, progress=events.append)
        assert held.id not in [r["id"] for r in results]
        assert [e["id"] for e in events if e["event"] == "locked"] == [held.id]
        assert lock.exists()
        _locks.release(lock)
        assert len(run_grid(grid, tmp_path, build=build)) == 4

    def test_workers_end_with_a_killed_parent(self, grid, tmp_path):
        process = start_process(grid, tmp_path / "run", 10**6, workers=2)
        try:
            wait_for(process, "step")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            if not children.exists():
                pytest.skip("this system does not list a process's children")
            pids = [int(pid) for pid in children.read_text().split()]
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert len(pids) >= 2
        deadline = time.monotonic() + 60
        while any(_locks._alive(pid, None) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not [pid for pid in pids if _locks._alive(pid, None)]


class TestLocks:
    def owner(self, **changes):
        stat = _locks._stat(os.getpid())
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "birth": stat and stat[1]}
        return json.dumps(owner | changes)

    def test_held_once(self, tmp_path):
        lock = tmp_path / "a.lock"
        assert _locks.acquire(lock)
        assert not _locks.acquire(lock)
        _locks.release(lock)
        assert _locks.acquire(lock)

    def test_dead_owner_of_this_machine_is_replaced(self, tmp_path):
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        lock = tmp_path / "a.lock"
        lock.write_text(self.owner(pid=dead.pid, birth=None))
        assert _locks.acquire(lock)
        assert json.loads(lock.read_text())["pid"] == os.getpid()

    def test_reused_pid_is_not_the_owner(self, tmp_path):
        if _locks._stat(os.getpid()) is None:
            pytest.skip("this system does not tell when a process started")
        lock = tmp_path / "a.lock"
        lock.write_text(self.owner(birth="1"))
        assert _locks.acquire(lock)

    def test_owner_on_another_machine_is_respected(self, tmp_path):
        lock = tmp_path / "a.lock"
        lock.write_text(self.owner(host="elsewhere.invalid", pid=2**22 + 1))
        assert not _locks.acquire(lock)

    def test_lock_without_owner_is_respected_while_young(self, tmp_path):
        lock = tmp_path / "a.lock"
        lock.touch()
        assert not _locks.acquire(lock)
        os.utime(lock, (time.time() - 3600, time.time() - 3600))
        assert _locks.acquire(lock)


class TestProvenance:
    @pytest.fixture
    def fingerprint(self, tmp_path, monkeypatch):
        """Of a copy of the package, of which files can be changed."""
        package = tmp_path / "biases"
        shutil.copytree(
            Path(_provenance.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
        monkeypatch.setattr(_provenance, "__file__", str(package / "ablation" / "_provenance.py"))

        def after(*changed):
            for name in changed:
                path = package / name
                path.write_text(path.read_text() + "\n")
            return _provenance.code_fingerprint.__wrapped__()

        return after

    def test_the_code_that_decides_numbers_has_another_fingerprint_when_changed(self, fingerprint):
        seen = {fingerprint()}
        deciding = ("ablation/_loop.py", "ablation/together.py", "ablation/images/sampling.py", "layers/__init__.py")
        for name in deciding:
            seen.add(fingerprint(name))
        assert len(seen) == 1 + len(deciding)

    def test_what_judges_and_shows_results_does_not_change_it(self, fingerprint):
        before = fingerprint()
        names = [f"ablation/{name}.py" for name in _provenance.DECIDE_NOTHING]
        assert fingerprint(*names, "ablation/executors/local.py", "cli.py") == before


class TestResults:
    @pytest.fixture
    def run(self, grid, tmp_path):
        run_grid(replace(grid, arms={**grid.arms, "broken": SMALL}), tmp_path, build=build)
        return tmp_path

    def test_tables_and_pairs(self, run):
        results = load_results(run)
        values = table(results, "full")
        assert {arm: sorted(row) for arm, row in values.items()} == {
            "causal": [0, 1],
            "leaky": [0, 1],
            "broken": [],
        }
        seeds, a, b = paired_values(results, "leaky", "causal", "full")
        assert seeds == [0, 1]
        assert a == [values["leaky"][seed] for seed in seeds]
        assert b == [values["causal"][seed] for seed in seeds]
        assert paired_values(results, "causal", "broken", "full") == ([], [], [])

    def test_only_seeds_that_both_finished_are_paired(self, run):
        results = [r for r in load_results(run) if (r["arm"], r["seed"]) != ("leaky", 0)]
        assert paired_values(results, "causal", "leaky", "leak")[0] == [1]

    def test_bad_requests_are_refused(self, run):
        results = load_results(run)
        with pytest.raises(ValueError, match="did you mean 'leak'"):
            table(results, "leek")
        with pytest.raises(ValueError, match="an arm with results, got 'other'"):
            paired_values(results, "causal", "other", "full")
        with pytest.raises(ValueError, match="one finished cell, got another"):
            table([*results, {**results[-1], "status": "ok", "metrics": {"full": 1}}] * 2, "full")
        with pytest.raises(ValueError, match="a run's directory"):
            load_results(run / "nowhere")

    def test_unequal_pairs_are_refused(self, run):
        results = load_results(run)
        changed = [{**r, "data": {"name": "x", "sha256": "0"}} if r["arm"] == "leaky" else r for r in results]
        with pytest.raises(ValueError, match="expected one text"):
            paired_values(changed, "causal", "leaky", "full")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"seed": 7}, "'seed': expected that of its configuration, [01], got 7"),
            ({"arm": "leaky "}, "'arm': expected that of its configuration, '.*', got 'leaky '"),
            ({"config": {"arm": "causal"}}, "'config': configuration: expected the fields of a Cell, got KeyError"),
            ({"config": {"model": {}, "train": {}, "arm": "x", "seed": -1}}, "'config': Cell seed: expected"),
            ({"metrics": {"full": "1.5"}}, "metric 'full': expected a finite number, got '1.5'"),
            ({"metrics": {"full": True}}, "metric 'full': expected a finite number, got True"),
            ({"metrics": {"full": None}}, "metric 'full': expected a finite number, got None"),
            ({"metrics": {"full": math.nan}}, "expected finite numbers, got NaN"),
            ({"curve": [{"step": 1, "validation": -math.inf}]}, "expected finite numbers, got -Infinity"),
        ],
    )
    def test_results_that_contradict_themselves_are_refused(self, run, changes, message):
        path = sorted((run / "cells").glob("*.json"))[2]
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(ValueError, match=message) as caught:
            load_results(run)
        assert str(caught.value).startswith(f"result {path}")

    def test_numbers_beyond_floats_and_configurations_of_other_cells_are_refused(self, run):
        path, other = sorted((run / "cells").glob("*.json"))[:2]
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | {"metrics": {"full": 0}}).replace('"full": 0', '"full": 1e999'))
        with pytest.raises(ValueError, match="metric 'full': expected a finite number, got inf"):
            load_results(run)
        moved = json.loads(other.read_text()) | {"id": path.stem}
        path.write_text(json.dumps(moved))
        with pytest.raises(ValueError, match=f"'id': expected that of its configuration, '{other.stem}', got"):
            load_results(run)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "expected JSON"),
            ("[" * 100_000, "expected JSON, got values nested too deeply to be read"),
            ("[]", "an object with schema 1, got a list"),
            ('{"schema": 2}', "an object with schema 1, got 2"),
            ('{"schema": 1, "id": "damaged"}', "'arm': expected a str, got None"),
        ],
    )
    def test_damaged_files_are_named(self, run, content, message):
        (run / "cells" / ".x.json.1-2.tmp").write_text("half")
        assert len(load_results(run)) == 6
        (run / "cells" / "damaged.json").write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            load_results(run)
        assert "damaged.json" in str(caught.value)
